// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

// SQ is a submission queue in guest memory. One goroutine pushes and rings.
type SQ struct {
	ID uint16

	entries []nvme.SQE
	tail    uint32
	head    atomic.Uint32 // as the last completion told
	bell    doorbell
	cq      *CQ
	free    func()
}

// CQ is a completion queue in guest memory. One goroutine polls; it may be
// another than the one that pushes.
type CQ struct {
	ID        uint16
	Interrupt *Interrupt // nil: the controller does not interrupt for this queue

	entries []nvme.CQE
	head    uint32
	phase   uint32 // of the next completion, 0 or 1
	bell    doorbell
	drive   *NVMe
	free    func()
}

// Depth returns the number of entries; one less can be in use.
func (q *SQ) Depth() int { return len(q.entries) }

// Room returns how many entries can be pushed now.
func (q *SQ) Room() int {
	used := (q.tail + uint32(len(q.entries)) - q.head.Load()) % uint32(len(q.entries))
	return len(q.entries) - 1 - int(used)
}

// Push puts a command into the queue and returns whether there was room for
// it. The controller does not see it before Ring. It allocates nothing.
func (q *SQ) Push(e *nvme.SQE) bool {
	if q.Room() == 0 {
		return false
	}
	q.entries[q.tail] = *e
	if q.tail++; q.tail == uint32(len(q.entries)) {
		q.tail = 0
	}
	return true
}

// Ring tells the controller of the commands pushed. It allocates nothing.
func (q *SQ) Ring() error { return q.bell.ring(q.tail) }

// SetTail rings the doorbell with any value, for tests of what a controller
// does about it.
func (q *SQ) SetTail(v uint32) error { return q.bell.ring(v) }

// Entries returns the queue in guest memory. The controller may be reading it.
func (q *SQ) Entries() []nvme.SQE { return q.entries }

// CQ returns the completion queue.
func (q *SQ) CQ() *CQ { return q.cq }

// Depth returns the number of entries.
func (q *CQ) Depth() int { return len(q.entries) }

// Poll takes every completion there is, calls f with each, frees the entries,
// and returns how many there were. It allocates nothing. f may push commands,
// also with the identifier just completed.
func (q *CQ) Poll(f func(nvme.CQE)) (int, error) {
	n := 0
	for ; n < len(q.entries); n++ {
		e := &q.entries[q.head]
		last := atomic.LoadUint32(dword3(e))
		if last>>16&1 != q.phase {
			break
		}
		// The load of the last dword comes first, so the others are there.
		c := nvme.CQE{DW0: e.DW0, DW1: e.DW1, SQHead: e.SQHead, SQID: e.SQID, CID: uint16(last), Status: uint16(last >> 16)}
		if q.head++; q.head == uint32(len(q.entries)) {
			q.head = 0
			q.phase ^= 1
		}
		sq := q.drive.sqs[c.SQID].Load()
		if sq == nil || sq.cq != q || int(c.SQHead) >= len(sq.entries) {
			return n, fmt.Errorf("completion queue %d: completion %+v for no such submission queue", q.ID, c)
		}
		sq.head.Store(uint32(c.SQHead))
		f(c)
	}
	if n == 0 {
		return 0, nil
	}
	return n, q.bell.ring(q.head)
}

// Pending reports whether a completion is there, without taking it.
func (q *CQ) Pending() bool {
	return atomic.LoadUint32(dword3(&q.entries[q.head]))>>16&1 == q.phase
}

// Entries returns the queue in guest memory. The controller may be writing it.
func (q *CQ) Entries() []nvme.CQE { return q.entries }

// newSQ lays out a submission queue in guest memory.
func (n *NVMe) newSQ(id uint16, depth int, cq *CQ) (*SQ, uint64, error) {
	address, b, err := n.mem.Alloc(depth * nvme.SQESize)
	if err != nil {
		return nil, 0, err
	}
	return &SQ{
		ID:      id,
		entries: sqEntries(b, depth),
		bell:    n.newDoorbell(nvme.SQDoorbell(id, n.cap.DSTRD()), id != 0),
		cq:      cq,
		free:    func() { n.mem.Free(address, depth*nvme.SQESize) },
	}, address, nil
}

// newCQ lays out a completion queue in guest memory.
func (n *NVMe) newCQ(id uint16, depth int) (*CQ, uint64, error) {
	address, b, err := n.mem.Alloc(depth * nvme.CQESize)
	if err != nil {
		return nil, 0, err
	}
	return &CQ{
		ID:      id,
		entries: cqEntries(b, depth),
		phase:   1,
		bell:    n.newDoorbell(nvme.CQDoorbell(id, n.cap.DSTRD()), id != 0),
		drive:   n,
		free:    func() { n.mem.Free(address, depth*nvme.CQESize) },
	}, address, nil
}
