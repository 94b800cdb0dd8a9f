// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

const (
	// MaxQueues is the number of queue pairs of a port, the admin queue pair
	// included: queue identifiers run from 0 to MaxQueues-1.
	MaxQueues = 128
	// MaxEntries is the largest queue: CAP.MQES is MaxEntries-1.
	MaxEntries = 1024
	// Vectors is the number of MSI-X vectors of a port.
	Vectors = MaxQueues
	// PCIVendor is the PCI vendor identifier of a port's function and of its
	// controller (Identify Controller VID and SSVID): "LI", which names no
	// vendor in the public list of PCI identifiers. Hence no operating system
	// has a quirk for it, and drivers bind by class code.
	PCIVendor = 0x4c49
	// PayloadSize is the room for a controller's own state, in bytes.
	PayloadSize = 8192 - 64
)

const stateMagic = 0x4c65617053746174 // "LeapStat"

// StateVersion is the version of the layout of State, and of what runtimes keep
// in it.
const StateVersion = 1

var errBadMagic = errors.New("not a LeapIO page (bad magic)")

// VersionError says that a shared page or a peer has another layout version.
type VersionError struct {
	What      string
	Got, Want uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has layout version %d, this program understands %d", e.What, e.Got, e.Want)
}

// StateHeader opens the state area. leap-wpt writes it once.
type StateHeader struct {
	Magic   uint64
	Version uint32
	_       uint32
	// Selector says which of the two ControllerPages is valid (its lowest bit).
	// The runtime writes a new state into the other one and then stores the
	// selector: effect and result of an admin command commit by one store.
	Selector uint64
	// Unshared: the runtime has found that the files of the client's memory are
	// not what the guest sees. leap-wpt clears it when the client has gone.
	Unshared uint32
	_        uint32
	Life     Life
	_        [3944]byte
}

// ControllerPage is one of the two copies of what a controller remembers
// beside its queues. Payload is the controller model's own encoding.
type ControllerPage struct {
	Gen  uint64   // reset generation it belongs to; of another one it is void
	N    uint64   // fetch number of the admin command that made it
	CQE  nvme.CQE // and that command's result
	Size uint32   // bytes of Payload in use
	_    [28]byte
	// Payload is opaque here; a controller's state is at most PayloadSize bytes.
	Payload [PayloadSize]byte
}

// CQPage is the state of a completion queue. One writer: the poller that owns it.
type CQPage struct {
	Gen     uint64 // reset generation the queue was made in; 0 or another one: dead
	Addr    uint64 // guest-physical address of the ring
	Entries uint32 // 2 to MaxEntries
	Vector  uint32 // MSI-X vector
	IEN     uint32 // 1: interrupts enabled
	_       uint32
	// Tail counts entries published since the queue was made, free-running: the
	// slot is Tail modulo Entries, the phase tag of lap 0 is 1.
	Tail uint64
	_    [88]byte
}

// EventRequests is how many Asynchronous Event Requests a controller may park
// (Identify Controller AERL, plus one).
const EventRequests = 4

// slotsFor returns how many commands of a queue may be outstanding: as many as
// it has entries. Parked event requests do not count, or four of them would keep
// all others out of an admin queue of three or four entries for good.
func slotsFor(qid uint16, entries uint32) uint32 {
	if qid == 0 {
		entries += EventRequests
	}
	return min(entries, MaxEntries)
}

// SQPage is the state of a submission queue and of its outstanding commands.
// One writer: the poller of its completion queue.
type SQPage struct {
	Gen     uint64 // as CQPage.Gen
	Addr    uint64 // guest-physical address of the ring
	Entries uint32 // 2 to MaxEntries
	CQID    uint32 // its completion queue
	_       uint64
	// Head counts entries fetched since the queue was made, free-running.
	Head  uint64
	_     [88]byte
	Slots [MaxEntries]Slot
	_     [4096 - 128]byte
}

// State is the state area of a port: one sparse memfd, of which only what is
// used takes memory.
type State struct {
	Header     StateHeader
	Controller [2]ControllerPage
	CQ         [MaxQueues]CQPage
	SQ         [MaxQueues]SQPage
}

// Init fills in the header of a new, zeroed area. It changes nothing of one that
// is in use, unless a runtime has damaged its header.
func (s *State) Init() {
	s.Header.Magic = stateMagic
	s.Header.Version = StateVersion
}

// Check reports whether the area is one this code understands.
func (s *State) Check() error {
	if s.Header.Magic != stateMagic {
		return errBadMagic
	}
	if s.Header.Version != StateVersion {
		return &VersionError{What: "state area", Got: s.Header.Version, Want: StateVersion}
	}
	return nil
}

// LoadController returns the valid controller page of reset generation gen and
// its payload, or nil when there is none. The payload aliases shared memory.
func (s *State) LoadController(gen uint64) (*ControllerPage, []byte) {
	p := &s.Controller[atomic.LoadUint64(&s.Header.Selector)&1]
	if p.Gen != gen || p.Size > PayloadSize {
		return nil, nil
	}
	return p, p.Payload[:p.Size]
}

// CommitController makes payload the controller's state of generation gen,
// together with the number and result of the admin command that made it.
// A payload longer than PayloadSize is a programming error and panics.
func (s *State) CommitController(gen, n uint64, cqe nvme.CQE, payload []byte) {
	next := (atomic.LoadUint64(&s.Header.Selector) + 1) & 1
	p := &s.Controller[next]
	p.Gen, p.N, p.CQE, p.Size = gen, n, cqe, uint32(copy(p.Payload[:len(payload)], payload))
	atomic.StoreUint64(&s.Header.Selector, next)
}

// Create makes the completion queue page valid for reset generation gen. The
// generation is stored last: a crash before it leaves no queue.
func (p *CQPage) Create(gen, addr uint64, entries, vector uint32, ien bool) {
	atomic.StoreUint64(&p.Gen, 0)
	p.Addr, p.Entries, p.Vector, p.IEN = addr, entries, vector, 0
	if ien {
		p.IEN = 1
	}
	atomic.StoreUint64(&p.Tail, 0)
	atomic.StoreUint64(&p.Gen, gen)
}

// Delete makes the page void.
func (p *CQPage) Delete() { atomic.StoreUint64(&p.Gen, 0) }

// Valid reports whether the page describes a queue of generation gen within
// the limits of this layout.
func (p *CQPage) Valid(gen uint64) bool {
	return gen != 0 && atomic.LoadUint64(&p.Gen) == gen && p.Entries >= 2 && p.Entries <= MaxEntries && p.Vector < Vectors
}

// Create makes the submission queue page valid for reset generation gen, with
// all its slots free. The generation is stored last.
func (p *SQPage) Create(gen, addr uint64, entries, cqid uint32) {
	atomic.StoreUint64(&p.Gen, 0)
	p.Addr, p.Entries, p.CQID = addr, entries, cqid
	atomic.StoreUint64(&p.Head, 0)
	for i := range p.Slots[:slotsFor(0, entries)] {
		if s := &p.Slots[i]; s.State != uint32(SlotFree) {
			atomic.StoreUint32(&s.State, uint32(SlotFree))
		}
	}
	atomic.StoreUint64(&p.Gen, gen)
}

// Delete makes the page void.
func (p *SQPage) Delete() { atomic.StoreUint64(&p.Gen, 0) }

// Valid reports whether the page describes a queue of generation gen within
// the limits of this layout.
func (p *SQPage) Valid(gen uint64) bool {
	return gen != 0 && atomic.LoadUint64(&p.Gen) == gen && p.Entries >= 2 && p.Entries <= MaxEntries && p.CQID < MaxQueues
}
