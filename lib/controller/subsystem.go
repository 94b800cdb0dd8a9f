// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// MaxNamespaces is the largest namespace identifier (Identify Controller NN).
const MaxNamespaces = 1024

// Namespace is a volume shown in a subsystem. Its fields are never changed once
// it is there.
type Namespace struct {
	NSID   uint32 // 1 to MaxNamespaces
	Volume volume.Volume
	Name   string   // the volume's name, for statistics and messages
	UUID   [16]byte // of the volume: NGUID and UUID descriptors come from it
	Shared bool     // may be attached to several controllers (NMIC)
	// ReadOnly: hosts cannot change it, whatever the volume could do.
	ReadOnly bool
	// Reblock changes the volume's block to block bytes, for Format NVM, and
	// calls done, on any goroutine, when the change is durable and followed
	// (Subsystem.Follow); or with the reason why the volume is as it was. It is
	// called on a poller and returns at once; no command on the namespace
	// begins meanwhile. nil: the block cannot change.
	Reblock func(block uint32, done func(nvme.Status))
	// Stats counts the namespace's commands, VolumeStats those of its volume in
	// all namespaces that show it; nil: nobody does.
	Stats, VolumeStats *stats.Group

	// Protect keeps whether hosts have write protected the namespace, and has
	// controllers go by it (SetProtected, Subsystem.Follow); it is called as
	// Reblock is, and answers likewise. nil: hosts cannot protect it.
	Protect func(on bool, done func(nvme.Status))

	fence      fence
	formatting formatting
	protected  atomic.Bool
}

// Subsystem is an NVM subsystem. Its methods may be called from any goroutine.
type Subsystem struct {
	NQN    string
	Serial string // 20 characters at most

	table atomic.Pointer[[]*Namespace] // by NSID, ascending

	mu          sync.Mutex
	controllers map[uint16]*Controller // by CNTLID
	ever        uint64                 // controllers there have been
	nextID      uint16
}

// NewSubsystem returns a subsystem without namespaces.
func NewSubsystem(nqn, serial string) *Subsystem {
	s := &Subsystem{NQN: nqn, Serial: serial, controllers: make(map[uint16]*Controller), nextID: rand.N[uint16](MaxCNTLID)}
	s.table.Store(new([]*Namespace))
	return s
}

// Namespaces returns the namespaces by ascending NSID; callers do not change
// the slice.
func (s *Subsystem) Namespaces() []*Namespace { return *s.table.Load() }

// Namespace returns the namespace nsid, or nil.
func (s *Subsystem) Namespace(nsid uint32) *Namespace {
	all := s.Namespaces()
	if i, ok := find(all, nsid); ok {
		return all[i]
	}
	return nil
}

func find(all []*Namespace, nsid uint32) (int, bool) {
	return slices.BinarySearchFunc(all, nsid, func(n *Namespace, id uint32) int { return int(n.NSID) - int(id) })
}

// Add shows a namespace. Connected hosts are told by an event.
func (s *Subsystem) Add(ns *Namespace) error {
	if ns.NSID == 0 || ns.NSID > MaxNamespaces {
		return fmt.Errorf("namespace %d: not between 1 and %d", ns.NSID, MaxNamespaces)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.Namespaces()
	i, ok := find(all, ns.NSID)
	if ok {
		return fmt.Errorf("namespace %d: in use by volume %s", ns.NSID, all[i].Name)
	}
	next := slices.Insert(slices.Clone(all), i, ns)
	s.table.Store(&next)
	s.tell(func() {}, (*Worker).refresh, (*Controller).namespaceEvent, ns.NSID)()
	return nil
}

// Remove takes a namespace away and calls drained when no controller has a
// command on it in flight any more: its volume may then be closed. It reports
// whether there was such a namespace.
func (s *Subsystem) Remove(nsid uint32, drained func()) bool {
	s.mu.Lock()
	all := s.Namespaces()
	i, ok := find(all, nsid)
	if !ok {
		s.mu.Unlock()
		return false
	}
	next := slices.Delete(slices.Clone(all), i, i+1)
	s.table.Store(&next)
	told := s.tell(drained, (*Worker).refresh, (*Controller).namespaceEvent, nsid)
	s.mu.Unlock()
	told() // drained may be called, which may use the subsystem
	return true
}

// Follow has every controller take up what namespace nsid is now: its volume
// (Volume.Info), and whether it is write protected. Hosts that know it
// otherwise are told by an event. Commands that have begun go on with what was;
// drained is called when the last of them has ended. It reports whether there
// is such a namespace.
func (s *Subsystem) Follow(nsid uint32, drained func()) bool {
	s.mu.Lock()
	if s.Namespace(nsid) == nil {
		s.mu.Unlock()
		return false
	}
	told := s.tell(drained, (*Worker).renew, (*Controller).shapeEvent, nsid)
	s.mu.Unlock()
	told()
	return true
}

// tell has every worker follow a change of nsid, and every controller tell its
// host; drained is called when the workers are done. s.mu is held; the caller
// calls told when it no longer holds it.
func (s *Subsystem) tell(drained func(), follow func(*Worker, uint32, func()), event func(*Controller, uint32), nsid uint32) (told func()) {
	left := new(atomic.Int32)
	left.Store(1)
	done := func() {
		if left.Add(-1) == 0 {
			drained()
		}
	}
	for _, c := range s.controllers {
		for _, w := range c.present() {
			left.Add(1)
			if w.p.Post(func() { follow(w, nsid, done) }) != nil {
				done()
			}
		}
		_ = c.p.Post(func() { event(c, nsid) })
	}
	return done
}

// allocate gives a new controller the next free CNTLID. Identifiers are not
// reused soon, since a host may still know the one before; for the same reason
// they begin anywhere. want, if not negative, asks for one that is taken if it
// is free.
func (s *Subsystem) allocate(c *Controller, want int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if want >= 0 && want <= MaxCNTLID && s.controllers[uint16(want)] == nil {
		s.ever++
		s.name(c, uint16(want))
		return nil
	}
	for range MaxCNTLID {
		s.nextID = s.nextID%MaxCNTLID + 1
		if s.controllers[s.nextID] == nil {
			s.ever++
			s.name(c, s.nextID)
			return nil
		}
	}
	return fmt.Errorf("subsystem %s: all %d controller identifiers are in use", s.NQN, MaxCNTLID)
}

// rename gives a controller the CNTLID that its host knows, if that is free.
func (s *Subsystem) rename(c *Controller, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id <= MaxCNTLID && s.controllers[id] == nil {
		delete(s.controllers, c.CNTLID())
		s.name(c, id)
	}
}

// Controllers returns how many controllers there are, those that are ending among
// them, and how many there have ever been.
func (s *Subsystem) Controllers() (now int, ever uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.controllers), s.ever
}

// name gives a controller a free CNTLID. s.mu is held.
func (s *Subsystem) name(c *Controller, id uint16) {
	s.controllers[id] = c
	c.cntlid.Store(uint32(id))
}

func (s *Subsystem) forget(c *Controller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.controllers, c.CNTLID())
}

// cntlids returns the identifiers of the controllers in increasing order.
func (s *Subsystem) cntlids() []uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.controllers))
}

// MaxCNTLID is the largest controller identifier given out; FFF0h and above
// are reserved (NVMe Base 5.1.13.2.1).
const MaxCNTLID = 0xffef

// cmic returns the Controller Multi-Path I/O and Namespace Sharing
// Capabilities (NVMe Base 5.1.13.2.1): several controllers are announced where
// every namespace may be shared between them, since otherwise there is one.
func (s *Subsystem) cmic() uint8 {
	all := s.Namespaces()
	if len(all) == 0 || slices.ContainsFunc(all, func(ns *Namespace) bool { return !ns.Shared }) {
		return 0
	}
	return nvme.CMICMultiPort | nvme.CMICMultiController
}
