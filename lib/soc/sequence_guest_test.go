// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// player plays one sequence: the driver of the machine, and what it expects.
type player struct {
	*stage
	t     testing.TB
	in    tape
	trace []string
	model model

	sqs     map[uint16]*playSQ
	cqs     map[uint16]*playCQ
	pending map[uint32]*expected // by queue and command identifier
	cid     uint16
	mark    uint64 // of the last block written
	list    uint64 // next free page for PRP lists
	arena   uint64 // next free page for data
	shadow  uint64 // shadow doorbells; event indexes follow; 0: not in use

	furtherUsed bool // the further regions are in use
}

// playSQ and playCQ are queues as the driver has them.
type playSQ struct {
	id, cq     uint16
	entries    uint32
	addr       uint64
	tail, head uint32
	rung       uint32
	odd        bool // not to be used as a driver would
}

type playCQ struct {
	id      uint16
	entries uint32
	addr    uint64
	head    uint32
	rung    uint32
	phase   bool
	odd     bool
}

// expected is a command that has been submitted.
type expected struct {
	sq, cid uint16
	what    string
	errs    []nvme.Status // what may go wrong; success is expected if nothing can
	either  bool          // success is allowed all the same
	changes []change
	reads   []extent
	// done looks at a result that is among those expected; nil: nothing to see.
	done   func(e nvme.CQE, st nvme.Status)
	region bool // its data lies in memory that can go
	shaky  bool // something happened under it: the outcome is open
	event  bool // an Asynchronous Event Request
	// partly: where it fails, its changes may have been made all the same.
	partly  bool
	partner *expected // the other half of a pair
	into    *data     // where a Read stores its data
}

// extent is a range of blocks.
type extent struct {
	d     *disk
	at, n uint64
}

func (x extent) meets(y extent) bool { return x.d == y.d && x.at < y.at+y.n && y.at < x.at+x.n }

// change is what a command does to blocks when it succeeds.
type change struct {
	extent
	marks []uint64 // nil: zeroes
	may   bool     // it may also leave them as they are
}

// failf ends the sequence as failed, and tells what was played.
func (p *player) failf(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("%s\nafter:\n\t%s", fmt.Sprintf(format, args...), strings.Join(p.trace, "\n\t"))
}

func (p *player) logf(format string, args ...any) {
	p.trace = append(p.trace, fmt.Sprintf(format, args...))
}

// write32 writes a register.
func (p *player) write32(offset uint64, v uint32) {
	if err := p.client.Write32(offset, v); err != nil {
		p.failf("register %#x: %v", offset, err)
	}
}

// enable enables the controller with admin queues of so many entries. All that
// was before the last reset is forgotten.
func (p *player) enable(entries uint32) {
	p.forget()
	p.addCQ(0, entries, adminCQAt)
	p.addSQ(0, 0, entries, adminSQAt)
	p.write32(nvme.RegAQA, uint32(nvme.MakeAQA(uint16(entries-1), uint16(entries-1))))
	if err := p.client.Write64(nvme.RegASQ, adminSQAt); err != nil {
		p.failf("ASQ: %v", err)
	}
	if err := p.client.Write64(nvme.RegACQ, adminCQAt); err != nil {
		p.failf("ACQ: %v", err)
	}
	p.write32(nvme.RegCC, uint32(enabledCC))
	p.waitStatus(p.t, "ready", func(c nvme.CSTS) bool {
		if c.CFS() {
			p.failf("CSTS is %#x after an enable", uint32(c))
		}
		return c.RDY()
	})
	// Who does not wait for the end of the reset may be told of a command of before
	// until then. Ready says that this is over, and nothing of after it is there yet.
	clear(p.bytes(p.t, adminCQAt, int(entries)*nvme.CQESize))
}

var enabledCC = nvme.CC(0).WithIOSQES(nvme.SQEShift).WithIOCQES(nvme.CQEShift).WithEN(true)

// forget follows a reset: no command is outstanding, and what the outstanding
// ones would have changed has been changed or not.
func (p *player) forget() {
	for _, x := range p.pending {
		x.changed(true)
	}
	p.sqs, p.cqs = make(map[uint16]*playSQ), make(map[uint16]*playCQ)
	p.pending = make(map[uint32]*expected)
	p.shadow = 0
	p.model.reset()
}

func (p *player) addCQ(id uint16, entries uint32, addr uint64) *playCQ {
	q := &playCQ{id: id, entries: entries, addr: addr, phase: true}
	clear(p.bytes(p.t, addr, int(entries)*nvme.CQESize))
	p.cqs[id] = q
	return q
}

func (p *player) addSQ(id, cq uint16, entries uint32, addr uint64) *playSQ {
	q := &playSQ{id: id, cq: cq, entries: entries, addr: addr}
	p.sqs[id] = q
	return q
}

// ring rings a doorbell, a shadow doorbell by its rule.
func (p *player) ring(offset uint64, old, v uint32) {
	if p.shadow != 0 && offset >= nvme.SQDoorbell(1, 0) {
		at := offset - nvme.RegDoorbells
		atomic.StoreUint32(p.word(p.shadow+at), v)
		if event := atomic.LoadUint32(p.word(p.shadow + pageSize + at)); uint16(v-event-1) >= uint16(v-old) {
			return
		}
	}
	p.write32(offset, v)
}

func (p *player) ringSQ(q *playSQ) {
	if q.rung != q.tail {
		p.ring(nvme.SQDoorbell(q.id, 0), q.rung, q.tail)
		q.rung = q.tail
	}
}

// room reports whether n more commands fit.
func (q *playSQ) room(n uint32) bool { return (q.tail+q.entries-q.head)%q.entries+n < q.entries }

// submit puts a command into a queue; the doorbell rings now or with a later
// one. Whatever it would race with is over by then.
func (p *player) submit(q *playSQ, e nvme.SQE, x *expected, now bool) {
	if p.races(x) || !q.room(1) {
		p.drain()
	}
	p.put(q, e, x)
	if now {
		p.ringSQ(q)
	}
}

// put puts a command into a queue that has room.
func (p *player) put(q *playSQ, e nvme.SQE, x *expected) {
	p.cid++
	e.CID, x.sq, x.cid = p.cid, q.id, p.cid
	x.what = fmt.Sprintf("queue %d, command %d: %s", q.id, e.CID, nvme.FormatSQE(q.id == 0, &e))
	p.logf("%s (%v)", x.what, x.errs)
	copy(p.bytes(p.t, q.addr+uint64(q.tail)*nvme.SQESize, nvme.SQESize), nvme.Bytes(&e))
	q.tail = (q.tail + 1) % q.entries
	p.pending[uint32(q.id)<<16|uint32(e.CID)] = x
	for _, c := range x.changes {
		c.d.touch(c.at, c.n)
	}
}

// races reports whether a command would race with one that is outstanding.
func (p *player) races(x *expected) bool {
	meet := func(y *expected, changes []change, reads []extent) bool {
		for _, c := range changes {
			if slices.ContainsFunc(y.reads, c.meets) || slices.ContainsFunc(y.changes, func(o change) bool { return c.meets(o.extent) }) {
				return true
			}
		}
		return slices.ContainsFunc(reads, func(r extent) bool {
			return slices.ContainsFunc(y.changes, func(o change) bool { return r.meets(o.extent) })
		})
	}
	for _, y := range p.pending {
		if meet(y, x.changes, x.reads) {
			return true
		}
	}
	return false
}

// drain rings everything and waits until nothing but event requests is
// outstanding.
func (p *player) drain() {
	p.drainTo(func() bool {
		for _, x := range p.pending {
			if !x.event {
				return false
			}
		}
		return true
	})
}

// drainTo rings everything and takes completions until ok.
func (p *player) drainTo(ok func() bool) {
	for _, q := range p.sqs {
		if !q.odd {
			p.ringSQ(q)
		}
	}
	for start, spins := time.Now(), 0; !ok(); spins++ {
		if p.poll() > 0 {
			spins = 0
			continue
		}
		if spins > 1000 && time.Since(start) > hangs {
			lost := make([]string, 0, len(p.pending))
			for _, x := range p.pending {
				lost = append(lost, x.what)
			}
			slices.Sort(lost)
			v, err := p.client.Read32(nvme.RegCSTS)
			p.failf("lost, CSTS is %#x (%v):\n\t%s", v, err, strings.Join(lost, "\n\t"))
		}
		pauseFor(spins)
	}
}

// poll takes the completions there are and returns how many.
func (p *player) poll() (n int) {
	for _, q := range p.cqs {
		for !q.odd {
			at := q.addr + uint64(q.head)*nvme.CQESize
			last := atomic.LoadUint32(p.word(at + 12))
			if (last>>16&1 != 0) != q.phase {
				break
			}
			var e nvme.CQE
			copy(nvme.Bytes(&e), p.bytes(p.t, at, nvme.CQESize))
			if q.head++; q.head == q.entries {
				q.head, q.phase = 0, !q.phase
			}
			p.completed(q, e)
			n++
		}
		if !q.odd && q.rung != q.head {
			p.ring(nvme.CQDoorbell(q.id, 0), q.rung, q.head)
			q.rung = q.head
		}
	}
	return n
}

// completed takes one completion.
func (p *player) completed(q *playCQ, e nvme.CQE) {
	sq := p.sqs[e.SQID]
	key := uint32(e.SQID)<<16 | uint32(e.CID)
	x := p.pending[key]
	if sq == nil || sq.cq != q.id || x == nil || uint32(e.SQHead) >= sq.entries {
		p.failf("completion queue %d: %+v is for no command that is outstanding", q.id, e)
	}
	delete(p.pending, key)
	sq.head = uint32(e.SQHead)
	st := e.StatusField().Code()
	if !x.may(st) {
		p.failf("%s: status %v, want %v", x.what, st, x.errs)
	}
	if st == nvme.StatusSuccess {
		x.changed(false)
	} else if x.shaky || x.partly {
		x.changed(true)
	}
	if x.done != nil {
		x.done(e, st)
	}
}

// may reports whether a command may have this status.
func (x *expected) may(st nvme.Status) bool {
	if slices.Contains(x.errs, st) {
		return true
	}
	if st == nvme.StatusSuccess {
		return len(x.errs) == 0 || x.either || x.shaky
	}
	return x.shaky && slices.Contains(shakyStatuses, st)
}

// shakyStatuses are those of commands under which memory or namespaces went
// away, or that were aborted.
var shakyStatuses = []nvme.Status{
	nvme.StatusDataTransferError, nvme.StatusAbortRequested, nvme.StatusInvalidField, nvme.StatusNamespaceNotReady,
	nvme.StatusAbortedFailedFused, nvme.StatusAbortedSQDeletion, nvme.StatusNamespaceWriteProtected, nvme.StatusFormatInProgress,
}

// changed has the command's changes done: for certain, or perhaps.
func (x *expected) changed(perhaps bool) {
	for _, c := range x.changes {
		for i := range c.n {
			mark := uint64(0)
			if c.marks != nil {
				mark = c.marks[i]
			}
			if perhaps || c.may {
				c.d.allow(c.at+i, mark)
			} else {
				c.d.set(c.at+i, mark)
			}
		}
	}
	x.changes = nil
}

// sync submits a command, waits for it alone, and returns its result.
func (p *player) sync(q *playSQ, e nvme.SQE, x *expected) (nvme.CQE, nvme.Status) {
	var result nvme.CQE
	over := false
	then := x.done
	x.done = func(e nvme.CQE, st nvme.Status) {
		result, over = e, true
		if then != nil {
			then(e, st)
		}
	}
	p.submit(q, e, x, true)
	p.drainTo(func() bool { return over })
	return result, result.StatusField().Code()
}
