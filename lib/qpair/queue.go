// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"errors"
	"sync/atomic"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
)

// Sizes of ring entries in bytes (CC.IOSQES 6, CC.IOCQES 4).
const (
	SQESize = nvme.SQESize
	CQESize = nvme.CQESize
)

// ErrDoorbell says that a guest wrote a doorbell value that cannot be: beyond
// the queue, or a completion queue head past the tail.
var ErrDoorbell = errors.New("invalid doorbell value")

// Doorbells is the doorbell page (CAP.DSTRD 0) or a shadow doorbell or event
// index page of Doorbell Buffer Config, which have the same layout (NVMe Base
// 3.1.2.1 and 5.2.5).
type Doorbells [PageSize / 4]uint32

// SQTail returns the submission queue tail doorbell of queue qid.
func (d *Doorbells) SQTail(qid int) *uint32 { return &d[2*qid] }

// CQHead returns the completion queue head doorbell of queue qid.
func (d *Doorbells) CQHead(qid int) *uint32 { return &d[2*qid+1] }

// Store stores v into the doorbell at byte offset off of the page, as a
// trapped register write. It reports whether off names a doorbell.
func (d *Doorbells) Store(off uint64, v uint32) bool {
	if off%4 != 0 || off/4 >= 2*MaxQueues {
		return false
	}
	atomic.StoreUint32(&d[off/4], v)
	return true
}

// doorbell is one tail or head as the guest publishes it.
type doorbell struct {
	mmio   *uint32
	shadow *uint32 // nil without Doorbell Buffer Config
	event  *uint32
	frozen uint32 // stands in for a shadow doorbell that cannot be read
}

// freeze has v read in the place of the shadow doorbell.
func (d *doorbell) freeze(v uint32) { d.frozen, d.shadow, d.event = v, &d.frozen, nil }

// load returns what the guest last published. With a shadow doorbell the MMIO
// value is only a kick: it can be older.
func (d *doorbell) load() uint32 {
	if d.shadow != nil {
		return atomic.LoadUint32(d.shadow)
	}
	return atomic.LoadUint32(d.mmio)
}

// arm asks the guest to kick when it moves past v, and reports whether it has
// already. Both accesses are atomic, so that either the guest sees the event
// index or we see its doorbell.
func (d *doorbell) arm(v uint32) bool {
	if d.event != nil {
		atomic.StoreUint32(d.event, v)
	}
	return d.load() != v
}

// SQ is a runtime's handle of one submission queue: it fetches commands into
// the slots of the queue's page. It belongs to the poller of its completion
// queue.
type SQ struct {
	ID   uint16
	CQ   *CQ
	page *SQPage
	mem  *dma.View
	ring ring // the ring where it is one piece of shared memory
	db   doorbell
	head uint64 // copy of page.Head
	next uint32 // head modulo the queue size
	free []uint16
}

// CQ is a runtime's handle of one completion queue: it publishes the results
// of commands in the guest's ring.
type CQ struct {
	ID      uint16
	page    *CQPage
	mem     *dma.View
	ring    ring
	db      doorbell
	tail    uint64 // copy of page.Tail
	head    uint64 // entries the guest has consumed, free-running
	pending []result
}

// result is a command that has been executed and waits to be published.
type result struct {
	sq     *SQ
	slot   uint16
	status nvme.Status
	dw0    uint32
	dw1    uint32
}

// NewCQ returns the handle of a completion queue whose page is valid.
func NewCQ(id uint16, page *CQPage, mem *dma.View, bells *Doorbells) *CQ {
	c := &CQ{ID: id, page: page, mem: mem, tail: page.Tail, db: doorbell{mmio: bells.CQHead(int(id))}}
	c.Rebind()
	return c
}

// NewSQ returns the handle of a submission queue whose page is valid, with its
// completion queue. For a page with commands in it, call CQ.Recover before the
// first Fetch.
func NewSQ(id uint16, page *SQPage, cq *CQ, mem *dma.View, bells *Doorbells) *SQ {
	q := &SQ{ID: id, CQ: cq, page: page, mem: mem, head: page.Head, db: doorbell{mmio: bells.SQTail(int(id))}}
	q.next = uint32(q.head % uint64(page.Entries))
	q.free = make([]uint16, slotsFor(id, page.Entries))
	for i := range q.free {
		q.free[i] = uint16(len(q.free) - 1 - i) // lowest slot first: few pages are touched
	}
	q.Rebind()
	return q
}

// SetShadow makes the doorbells in the guest's shadow page the queue's, with the
// event indexes that ask for a kick.
func (q *SQ) SetShadow(shadow, events *Doorbells) {
	q.db.shadow, q.db.event = shadow.SQTail(int(q.ID)), events.SQTail(int(q.ID))
}

// SetShadow is SQ.SetShadow for the completion queue head.
func (c *CQ) SetShadow(shadow, events *Doorbells) {
	c.db.shadow, c.db.event = shadow.CQHead(int(c.ID)), events.CQHead(int(c.ID))
}

// FreezeShadow stops the use of shadow doorbells whose memory is about to go:
// until the next SetShadow the guest seems to ring no more.
func (q *SQ) FreezeShadow() { q.db.freeze(q.next) }

// FreezeShadow is SQ.FreezeShadow for the completion queue head.
func (c *CQ) FreezeShadow() { c.db.freeze(uint32(c.head % uint64(c.page.Entries))) }

// Rebind looks up the ring after the address space has changed.
func (q *SQ) Rebind() {
	q.ring, _ = q.mem.Pointer(q.page.Addr, uint64(q.page.Entries)*SQESize, dma.ProtRead)
}

// Rebind looks up the ring after the address space has changed.
func (c *CQ) Rebind() {
	c.ring, _ = c.mem.Pointer(c.page.Addr, uint64(c.page.Entries)*CQESize, dma.ProtWrite)
}

// Slot returns a slot of the queue.
func (q *SQ) Slot(i uint16) *Slot { return &q.page.Slots[i] }

// RingInfo is where a ring stands.
type RingInfo struct {
	Addr    uint64 // guest-physical
	Entries uint32
	Head    uint32 // oldest entry that its consumer has not taken
	Tail    uint32 // next entry that its producer will write
	Shadow  bool   // the guest's side is read from a shadow doorbell
}

// Info returns where the ring stands. The tail is the guest's word.
func (q *SQ) Info() RingInfo {
	return RingInfo{Addr: q.page.Addr, Entries: q.page.Entries, Head: q.next, Tail: q.db.load(), Shadow: q.db.shadow != nil}
}

// Info returns where the ring stands. The head is the guest's word.
func (c *CQ) Info() RingInfo {
	return RingInfo{
		Addr: c.page.Addr, Entries: c.page.Entries, Head: c.db.load(),
		Tail: uint32(c.tail % uint64(c.page.Entries)), Shadow: c.db.shadow != nil,
	}
}

// Vector returns the interrupt vector and whether interrupts are enabled.
func (c *CQ) Vector() (vector uint32, enabled bool) { return c.page.Vector, c.page.IEN != 0 }

// Outstanding returns the number of commands fetched and not yet completed.
func (q *SQ) Outstanding() int { return int(slotsFor(q.ID, q.page.Entries)) - len(q.free) }

// Fetch copies new commands into free slots (steps F1 and F2) and appends the
// slots' numbers to slots, up to its capacity. Commands without a free slot
// stay in the ring, and so does the first half of a fused pair whose second half
// is there but does not fit: a pair is fetched as a whole (room for two is
// needed). Errors: ErrDoorbell; dma.ErrFault when the ring is not
// mapped now; the relay's errors. Nothing is fetched on error.
func (q *SQ) Fetch(slots []uint16) ([]uint16, error) {
	tail := q.db.load()
	if tail == q.next {
		return slots, nil
	}
	entries := q.page.Entries
	if tail >= entries {
		return slots, ErrDoorbell
	}
	n := tail - q.next
	if tail < q.next {
		n += entries
	}
	pending, room := n, cap(slots)-len(slots)
	n = min(n, uint32(len(q.free)), uint32(room))
	next, first := q.next, len(slots)
	for i := range n {
		slot := q.free[len(q.free)-1-int(i)]
		s := &q.page.Slots[slot]
		if q.ring != nil {
			ringSQE(q.ring, next, &s.SQE)
		} else if err := q.mem.Read(sqeBytes(&s.SQE), q.page.Addr+uint64(next)*SQESize); err != nil {
			// Slots taken so far have N >= head: as good as free.
			for _, slot := range slots[first:] {
				release32(&q.page.Slots[slot].State, uint32(SlotFree))
			}
			return slots[:first], err
		}
		s.N = q.head + uint64(i)
		s.Aux = [2]uint64{}
		release32(&s.State, uint32(SlotTaken))
		slots = append(slots, slot)
		if next++; next == entries {
			next = 0
		}
	}
	if n > 0 && n < pending && room > 1 {
		if s := &q.page.Slots[slots[len(slots)-1]]; s.SQE.Fuse() == nvme.FuseFirst {
			release32(&s.State, uint32(SlotFree))
			slots = slots[:len(slots)-1]
			n--
			next = (next + entries - 1) % entries
		}
	}
	q.free = q.free[:len(q.free)-int(n)]
	q.head += uint64(n)
	q.next = next
	release64(&q.page.Head, q.head)
	return slots, nil
}

// Arm asks to be kicked for the next command, and reports whether one is
// already there.
func (q *SQ) Arm() bool { return q.db.arm(q.next) && len(q.free) > 0 }

// Complete records the result of a command for the next Publish. The command's
// effect must already outlive this process (step P1).
func (q *SQ) Complete(slot uint16, dw0, dw1 uint32, status nvme.Status) {
	q.CQ.pending = append(q.CQ.pending, result{q, slot, status, dw0, dw1})
}

// Pending returns the number of results that wait to be published.
func (c *CQ) Pending() int { return len(c.pending) }

// Forget drops the results of a submission queue that is being deleted: nobody
// will look at them.
func (c *CQ) Forget(q *SQ) {
	keep := c.pending[:0]
	for _, r := range c.pending {
		if r.sq != q {
			keep = append(keep, r)
		}
	}
	c.pending = keep
}

// Unread reports whether the guest has not consumed all published entries.
func (c *CQ) Unread() bool {
	_ = c.follow()
	return c.head != c.tail
}

// follow reads the guest's head doorbell.
func (c *CQ) follow() error {
	v := c.db.load()
	entries := uint64(c.page.Entries)
	at := uint32(c.head % entries)
	if v == at {
		return nil
	}
	if v >= c.page.Entries {
		return ErrDoorbell
	}
	n := uint64(v) - uint64(at)
	if v < at {
		n += entries
	}
	if n > c.tail-c.head {
		return ErrDoorbell
	}
	c.head += n
	return nil
}

// Arm asks to be kicked when the guest consumes entries, if results wait for
// room, and reports whether there is room already.
func (c *CQ) Arm() bool {
	if len(c.pending) == 0 {
		return false
	}
	return c.db.arm(uint32(c.head % uint64(c.page.Entries)))
}

// ArmHead asks to be kicked when the guest consumes the next entry, and reports
// whether there is one that it has not consumed.
func (c *CQ) ArmHead() bool {
	for c.Unread() {
		at := c.head
		moved := c.db.arm(uint32(at % uint64(c.page.Entries)))
		// A doorbell that moved and still leads nowhere is not worth another try.
		if !moved || !c.Unread() || c.head == at {
			break
		}
	}
	return c.head != c.tail
}

// Publish publishes recorded results in the order of Complete, as many as the
// ring has room for (steps P2 to P5), and returns how many. The caller sends
// the interrupt (P6). Errors: ErrDoorbell; dma.ErrFault when the ring is not
// mapped now; the relay's errors. What was not published is kept for the next
// call.
func (c *CQ) Publish() (int, error) {
	if len(c.pending) == 0 {
		return 0, nil
	}
	if err := c.follow(); err != nil {
		return 0, err
	}
	// One entry stays unused, or a full ring would look empty.
	room := uint64(c.page.Entries) - 1 - (c.tail - c.head)
	n := int(min(room, uint64(len(c.pending))))
	if n == 0 {
		return 0, nil
	}
	batch := c.pending[:n]
	for i := range batch {
		r := &batch[i]
		s := &r.sq.page.Slots[r.slot]
		cqn := c.tail + uint64(i)
		s.CQE = nvme.CQE{
			DW0: r.dw0, DW1: r.dw1, SQHead: uint16(r.sq.next), SQID: r.sq.ID, CID: s.SQE.CID,
			Status: c.statusField(cqn, r.status),
		}
		s.CQN = cqn
		release32(&s.State, uint32(SlotDone))
	}
	var err error
	for i := range batch {
		if err = c.put(&batch[i].sq.page.Slots[batch[i].slot]); err != nil {
			// The guest has not seen the rest: it stays first in line and gets
			// the same numbers again.
			n = i
			break
		}
	}
	batch = batch[:n]
	c.tail += uint64(n)
	release64(&c.page.Tail, c.tail)
	for i := range batch {
		batch[i].sq.release(batch[i].slot)
	}
	c.pending = c.pending[:copy(c.pending, c.pending[n:])]
	return n, err
}

// statusField builds the status half of dword 3 with the phase tag of entry cqn.
func (c *CQ) statusField(cqn uint64, st nvme.Status) uint16 {
	lap := cqn / uint64(c.page.Entries)
	return uint16(st)<<1 | uint16(lap&1^1)
}

// put writes a slot's final entry into the guest's ring (P3).
func (c *CQ) put(s *Slot) error {
	i := uint32(s.CQN % uint64(c.page.Entries))
	if c.ring != nil {
		putCQE(c.ring, i, &s.CQE)
		return nil
	}
	b := cqeBytes(&s.CQE)
	at := c.page.Addr + uint64(i)*CQESize
	if err := c.mem.Write(b[:12], at); err != nil {
		return err
	}
	return c.mem.Write(b[12:], at+12)
}

// release frees a slot (P5).
func (q *SQ) release(slot uint16) {
	release32(&q.page.Slots[slot].State, uint32(SlotFree))
	q.free = append(q.free, slot)
}
