// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"slices"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// TestModelConforms has Fetch, Publish and Recover run in every state of the model
// in which they can, and finds what the model says.
func TestModelConforms(t *testing.T) {
	b := newBench(t, modelEntries)
	var recovered, fetched, published int
	m := model{}
	_, failure := m.explore(start(2, 1), func(s mState) {
		if t.Failed() {
			return
		}
		switch {
		case s.run.phase == dead && s.zombies == 0 && !s.resetting:
			recovered++
			b.recoverAs(s)
		case s.run.phase == idle:
			if want, ok := s.startFetch(); ok {
				fetched++
				b.fetchAs(s, want)
			}
			if want, ok := s.startPublish(); ok {
				published++
				b.publishAs(s, want)
			}
		}
	})
	if failure != "" {
		t.Error(failure)
	}
	t.Logf("%d recoveries, %d fetches, %d publications", recovered, fetched, published)
}

// load makes the pages, the doorbells and the guest's memory those of a state.
func (b *bench) load(s mState) {
	sq, cq := &b.state.Page.SQ[1], &b.state.Page.CQ[1]
	sq.Head, cq.Tail = uint64(s.head), uint64(s.tail)
	*b.bells.Page.SQTail(1), *b.bells.Page.CQHead(1) = uint32(s.tailDB), uint32(s.headDB)
	for i := range modelEntries {
		e := s.sq[i].real()
		copy(b.guest[sqAddr+i*SQESize:], nvme.Bytes(&e))
		c := s.cq[i].real()
		copy(b.guest[cqAddr+i*CQESize:], nvme.Bytes(&c))
		slot := &s.slots[i]
		sq.Slots[i] = Slot{SQE: slot.sqe.real(), N: uint64(slot.n), CQN: uint64(slot.cqn), CQE: slot.cqe.real(), State: uint32(slot.state)}
	}
	b.cq = NewCQ(1, cq, b.view, b.bells.Page)
	b.sq = NewSQ(1, sq, b.cq, b.view, b.bells.Page)
	b.cq.head = uint64(s.run.head)
	b.sq.free = b.sq.free[:0]
	for i := modelEntries - 1; i >= 0; i-- {
		if s.slots[i].state == SlotFree {
			b.sq.free = append(b.sq.free, uint16(i))
		}
	}
}

// real is the command as an entry.
func (e mSQE) real() nvme.SQE { return nvme.SQE{NSID: uint32(e.k), CID: uint16(e.cid)} }

// real is the entry of queue 1.
func (e mCQE) real() nvme.CQE {
	if e == (mCQE{}) {
		return nvme.CQE{}
	}
	c := nvme.CQE{CID: uint16(e.cid), Status: uint16(e.k)<<1 | uint16(e.phase)}
	if e.rest != 0 || e.sqhd != 0 || e.phase != 0 {
		c.DW0, c.SQHead, c.SQID = uint32(e.rest), uint16(e.sqhd), 1
	}
	return c
}

// expect compares the pages, the guest's memory and the handles with a state.
func (b *bench) expect(what string, before, want mState) {
	b.t.Helper()
	want.forget()
	sq, cq := &b.state.Page.SQ[1], &b.state.Page.CQ[1]
	got := want
	got.head, got.tail = uint8(sq.Head), uint8(cq.Tail)
	got.run.head = int8(b.cq.head)
	for i := range modelEntries {
		var c nvme.CQE
		copy(nvme.Bytes(&c), b.guest[cqAddr+i*CQESize:])
		if c != want.cq[i].real() {
			got.cq[i] = mCQE{uint8(c.DW0), uint8(c.SQHead), uint8(c.Status >> 1), uint8(c.CID), uint8(c.Status & 1)}
		}
		slot := &sq.Slots[i]
		got.slots[i] = mSlot{
			sqe: mSQE{uint8(slot.SQE.NSID), uint8(slot.SQE.CID)}, n: uint8(slot.N), state: SlotState(slot.State),
		}
	}
	got.forget()
	if got != want || b.sq.head != sq.Head || b.cq.tail != cq.Tail {
		b.t.Errorf("%s of\n%+v\ngives\n%+v, want\n%+v", what, before, got, want)
	}
}

func (b *bench) recoverAs(s mState) {
	b.load(s)
	redo, err := b.cq.Recover([]*SQ{b.sq})
	if err != nil {
		b.t.Fatal(err)
	}
	m, want := model{}, s
	for want.run.phase = recovering; want.run.phase == recovering; want = m.out[0] {
		m.out = m.out[:0]
		m.recover(want)
	}
	b.expect("Recover", s, want)
	last := -1
	for i := range want.slots {
		if want.slots[i].state == SlotTaken && !slices.Contains(redo, Outstanding{b.sq, uint16(i)}) {
			b.t.Errorf("Recover of\n%+v\ndoes not give the command of slot %d", s, i)
		}
	}
	for _, o := range redo {
		n := int(b.sq.Slot(o.Slot).N)
		if want.slots[o.Slot].state != SlotTaken || n <= last {
			b.t.Errorf("Recover of\n%+v\ngives slot %d after command %d", s, o.Slot, last)
		}
		last = n
	}
}

func (b *bench) fetchAs(s, want mState) {
	b.load(s)
	slots := b.fetch(modelEntries)
	for i, slot := range slots {
		if want.run.slots[i] != uint8(slot) {
			b.t.Errorf("Fetch in\n%+v\ngives slots %v", s, slots)
		}
	}
	m := model{}
	for want.run.phase == fetching {
		m.out = m.out[:0]
		m.fetch(want)
		want = m.out[0]
	}
	b.expect("Fetch", s, want)
}

func (b *bench) publishAs(s, want mState) {
	b.load(s)
	for _, i := range s.run.queue[:s.run.queued] {
		k := s.slots[i].sqe.k
		b.sq.Complete(uint16(i), uint32(k), 0, nvme.Status(k))
	}
	b.publish(int(want.run.n))
	m := model{}
	for want.run.phase == publishing {
		m.out = m.out[:0]
		m.publish(want)
		want = m.out[0]
	}
	b.expect("Publish", s, want)
}
