// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
)

// Where the test's rings are in guest memory.
const (
	sqAddr  = 0x10000
	cqAddr  = 0x30000
	memSize = 0x40000
)

// bench is a queue pair between a guest and a runtime, both in this test.
type bench struct {
	t     *testing.T
	fd    int
	guest []byte
	space *dma.Space
	view  *dma.View
	state *Shared[State]
	bells *Shared[Doorbells]
	cq    *CQ
	sq    *SQ

	// The guest's side.
	entries        uint32
	sqTail, cqHead uint32
	phase          uint16
}

func newBench(t *testing.T, entries uint32) *bench {
	t.Helper()
	b := &bench{t: t, entries: entries, phase: 1}
	var err error
	if b.fd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err == nil {
		err = unix.Ftruncate(b.fd, memSize)
	}
	if err == nil {
		b.guest, err = unix.Mmap(b.fd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.state, err = Create[State]("state"); err != nil {
		t.Fatal(err)
	}
	if b.bells, err = Create[Doorbells]("doorbells"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.state.Close()
		b.bells.Close()
		unix.Munmap(b.guest)
		unix.Close(b.fd)
	})
	b.space = dma.NewSpace(nil)
	if err := b.space.Map(1, 0, memSize, dma.ProtRead|dma.ProtWrite, b.fd, 0); err != nil {
		t.Fatal(err)
	}
	b.state.Page.CQ[1].Create(7, cqAddr, entries, 1, true)
	b.state.Page.SQ[1].Create(7, sqAddr, entries, 1)
	b.attach()
	return b
}

// attach makes a runtime's handles from the pages, as at a restart.
func (b *bench) attach() {
	b.view = b.space.NewView(func(f func()) { f() }, func() {
		if b.cq != nil {
			b.cq.Rebind()
			b.sq.Rebind()
		}
	})
	b.cq = NewCQ(1, &b.state.Page.CQ[1], b.view, b.bells.Page)
	b.sq = NewSQ(1, &b.state.Page.SQ[1], b.cq, b.view, b.bells.Page)
}

// submit has the guest write commands and ring the doorbell.
func (b *bench) submit(cids ...uint16) {
	for _, cid := range cids {
		e := nvme.SQE{Opcode: uint8(nvme.IORead), CID: cid}
		copy(b.guest[sqAddr+int(b.sqTail)*SQESize:], nvme.Bytes(&e))
		b.sqTail = (b.sqTail + 1) % b.entries
	}
	*b.bells.Page.SQTail(1) = b.sqTail
}

// reap has the guest take completions and, with ring, say so.
func (b *bench) reap(ring bool) (cids []uint16) {
	for {
		var e nvme.CQE
		copy(nvme.Bytes(&e), b.guest[cqAddr+int(b.cqHead)*CQESize:])
		if e.Status&1 != b.phase {
			break
		}
		cids = append(cids, e.CID)
		if b.cqHead++; b.cqHead == b.entries {
			b.cqHead, b.phase = 0, b.phase^1
		}
	}
	if ring {
		*b.bells.Page.CQHead(1) = b.cqHead
	}
	return cids
}

// fetch takes what is there, at most n.
func (b *bench) fetch(n int) []uint16 {
	b.t.Helper()
	slots, err := b.sq.Fetch(make([]uint16, 0, n))
	if err != nil {
		b.t.Fatal("fetch:", err)
	}
	return slots
}

// publish publishes, and checks how many.
func (b *bench) publish(want int) {
	b.t.Helper()
	if got, err := b.cq.Publish(); got != want || err != nil {
		b.t.Fatalf("publish: %d, %v; want %d", got, err, want)
	}
}

func (b *bench) complete(slots ...uint16) {
	for _, s := range slots {
		b.sq.Complete(s, 0, 0, nvme.StatusSuccess)
	}
}

// check compares identifiers.
func (b *bench) check(what string, got []uint16, want ...uint16) {
	b.t.Helper()
	if !slices.Equal(got, want) {
		b.t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// TestLaps runs many laps around rings of odd sizes, completing out of order.
func TestLaps(t *testing.T) {
	for _, entries := range []uint32{2, 3, 8, 1000, MaxEntries} {
		b := newBench(t, entries)
		rng := rand.New(rand.NewPCG(uint64(entries), 1))
		next, seen := uint16(0), 0
		for total := 0; total < 5*int(entries)+10; {
			n := 1 + rng.IntN(int(entries)-1)
			var cids []uint16
			for range n {
				cids = append(cids, next)
				next++
			}
			b.submit(cids...)
			slots := b.fetch(MaxEntries)
			if len(slots) != n {
				t.Fatalf("%d entries: fetched %d of %d", entries, len(slots), n)
			}
			rng.Shuffle(n, func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
			b.complete(slots...)
			b.publish(n)
			got := b.reap(true)
			slices.Sort(got)
			slices.Sort(cids)
			b.check("completions", got, cids...)
			total += n
			seen += n
		}
		if b.sq.Outstanding() != 0 || b.cq.Pending() != 0 {
			t.Errorf("%d entries: %d outstanding, %d pending after %d", entries, b.sq.Outstanding(), b.cq.Pending(), seen)
		}
	}
}

// TestRoom: a full completion queue holds results back, and no entry is
// overwritten before the guest has read it.
func TestRoom(t *testing.T) {
	b := newBench(t, 4)
	b.submit(1, 2, 3)
	first := b.fetch(8)
	b.submit(4) // the ring is free again, but one slot is left
	b.complete(append(first, b.fetch(8)...)...)
	b.publish(3)
	b.publish(0)
	if b.cq.Pending() != 1 || !b.cq.Unread() {
		t.Error("the fourth result is not waiting")
	}
	b.check("first reap", b.reap(true), 1, 2, 3)
	if !b.cq.Arm() {
		t.Error("arming does not see the room")
	}
	b.publish(1)
	b.check("second reap", b.reap(true), 4)
}

// TestSlots: commands wait in the ring while all slots are taken.
func TestSlots(t *testing.T) {
	b := newBench(t, 3)
	b.submit(1, 2)
	held := b.fetch(8)
	b.submit(3)
	held = append(held, b.fetch(8)...)
	b.submit(4)
	if more := b.fetch(8); len(more) != 0 {
		t.Fatalf("fetched %d commands without a slot", len(more))
	}
	b.complete(held[1])
	b.publish(1)
	b.check("the one with a result", b.reap(true), 2)
	if more := b.fetch(8); len(more) != 1 || b.sq.Slot(more[0]).SQE.CID != 4 {
		t.Fatalf("fetched %v after a slot was freed", more)
	}
}

// TestBadDoorbells: values that cannot be are refused and change nothing.
func TestBadDoorbells(t *testing.T) {
	b := newBench(t, 8)
	for _, v := range []uint32{8, 9, 1 << 16, 1<<32 - 1} {
		*b.bells.Page.SQTail(1) = v
		if slots, err := b.sq.Fetch(make([]uint16, 0, 8)); !errors.Is(err, ErrDoorbell) || len(slots) != 0 {
			t.Errorf("tail %d: %v, %v", v, slots, err)
		}
	}
	*b.bells.Page.SQTail(1) = 0
	b.submit(1, 2)
	b.complete(b.fetch(8)...)
	for _, v := range []uint32{3, 8, 1<<32 - 1} { // nothing is published yet
		*b.bells.Page.CQHead(1) = v
		if n, err := b.cq.Publish(); !errors.Is(err, ErrDoorbell) || n != 0 {
			t.Errorf("head %d: %d, %v", v, n, err)
		}
	}
	*b.bells.Page.CQHead(1) = 0
	b.publish(2)
	b.check("after all", b.reap(true), 1, 2)
}

// TestUnmappedRing: nothing is fetched or published while ring memory is away,
// and nothing is lost.
func TestUnmappedRing(t *testing.T) {
	b := newBench(t, 8)
	b.submit(1)
	held := b.fetch(8)
	b.submit(2)
	if _, err := b.space.Unmap(2, 0, memSize); err != nil {
		t.Fatal(err)
	}
	if slots, err := b.sq.Fetch(make([]uint16, 0, 8)); !errors.Is(err, dma.ErrFault) || len(slots) != 0 {
		t.Errorf("fetch without memory: %v, %v", slots, err)
	}
	b.complete(held...)
	if n, err := b.cq.Publish(); !errors.Is(err, dma.ErrFault) || n != 0 {
		t.Errorf("publish without memory: %d, %v", n, err)
	}
	if err := b.space.Map(3, 0, memSize, dma.ProtRead|dma.ProtWrite, b.fd, 0); err != nil {
		t.Fatal(err)
	}
	b.publish(1)
	b.complete(b.fetch(8)...)
	b.publish(1)
	b.check("afterwards", b.reap(true), 1, 2)
}

// TestShadow: the shadow doorbell counts, and arming sees what came before it.
func TestShadow(t *testing.T) {
	b := newBench(t, 8)
	shadow, events := new(Doorbells), new(Doorbells)
	b.sq.SetShadow(shadow, events)
	b.cq.SetShadow(shadow, events)
	b.submit(1, 2) // rings the register only
	if got := b.fetch(8); len(got) != 0 {
		t.Fatalf("fetched %v from a stale register", got)
	}
	if b.sq.Arm() {
		t.Error("armed with work where there is none")
	}
	*shadow.SQTail(1) = 2
	if !b.sq.Arm() {
		t.Error("arming does not see the shadow doorbell")
	}
	if got := b.fetch(8); len(got) != 2 {
		t.Fatalf("fetched %v", got)
	}
	if b.sq.Arm() || *events.SQTail(1) != 2 {
		t.Errorf("event index %d, want 2", *events.SQTail(1))
	}
}

// TestArmHead: whoever waits for the guest's word that it has taken completions
// gets a kick for the next of them, and none is asked for where all are taken.
func TestArmHead(t *testing.T) {
	b := newBench(t, 8)
	shadow, events := new(Doorbells), new(Doorbells)
	b.cq.SetShadow(shadow, events)
	b.submit(1, 2, 3)
	b.complete(b.fetch(8)...)
	if b.cq.ArmHead() {
		t.Error("unread completions before any was published")
	}
	b.publish(3)
	*shadow.CQHead(1) = 2
	if !b.cq.ArmHead() || *events.CQHead(1) != 2 {
		t.Errorf("one of three is unread: event index %d, want 2", *events.CQHead(1))
	}
	*shadow.CQHead(1) = 7 // never published
	if !b.cq.ArmHead() || *events.CQHead(1) != 2 {
		t.Errorf("impossible doorbell: event index %d, want 2", *events.CQHead(1))
	}
	*shadow.CQHead(1) = 3
	if b.cq.ArmHead() {
		t.Error("unread completions where the guest has taken all")
	}
}

// TestRecover crashes a runtime after each step of the protocol and has the
// next one go on.
func TestRecover(t *testing.T) {
	page := func(b *bench) *SQPage { return &b.state.Page.SQ[1] }
	tests := []struct {
		name  string
		crash func(b *bench) // what the dead runtime did last, with commands 1 to 4
		redo  []uint16       // executed again
		seen  []uint16       // by the guest after recovery, before redo ends
	}{
		{"before F2", func(b *bench) {
			b.fetch(4)
			page(b).Head = 0
		}, nil, nil},
		{"after F2", func(b *bench) { b.fetch(4) }, []uint16{1, 2, 3, 4}, nil},
		{"before P2", func(b *bench) { b.complete(b.fetch(4)...) }, []uint16{1, 2, 3, 4}, nil},
		{"after P2", func(b *bench) {
			slots := b.fetch(4)
			for i, s := range slots[:2] {
				slot := b.sq.Slot(s)
				slot.CQN, slot.State = uint64(i), uint32(SlotDone)
				slot.CQE = nvme.CQE{CID: slot.SQE.CID, SQID: 1, Status: 1}
			}
		}, []uint16{3, 4}, []uint16{1, 2}},
		{"after P3", func(b *bench) {
			slots := b.fetch(4)
			for i, s := range slots[:2] {
				slot := b.sq.Slot(s)
				slot.CQN, slot.State = uint64(i), uint32(SlotDone)
				slot.CQE = nvme.CQE{CID: slot.SQE.CID, SQID: 1, Status: 1}
				if err := b.cq.put(slot); err != nil {
					b.t.Fatal(err)
				}
			}
			// The guest has read both, and reused an identifier at once.
			b.check("early", b.reap(true), 1, 2)
			b.submit(1)
		}, []uint16{3, 4}, nil},
		{"after P4", func(b *bench) {
			slots := b.fetch(4)
			b.complete(slots[0])
			b.publish(1)
			// As if it had not been freed.
			b.sq.Slot(slots[0]).State = uint32(SlotDone)
		}, []uint16{2, 3, 4}, []uint16{1}},
		{"after P5", func(b *bench) {
			b.complete(b.fetch(4)[:3]...)
			b.publish(3)
		}, []uint16{4}, []uint16{1, 2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, 8)
			b.submit(1, 2, 3, 4)
			tt.crash(b)
			b.attach()
			redo, err := b.cq.Recover([]*SQ{b.sq})
			if err != nil {
				t.Fatal(err)
			}
			var again []uint16
			for _, o := range redo {
				again = append(again, o.SQ.Slot(o.Slot).SQE.CID)
			}
			b.check("executed again", again, tt.redo...)
			b.check("seen", b.reap(true), tt.seen...)
			for _, o := range redo {
				b.complete(o.Slot)
			}
			b.publish(len(redo))
			b.check("results", b.reap(true), tt.redo...)
			rest := b.fetch(8)
			b.complete(rest...)
			b.publish(len(rest))
			b.reap(true)
			if n := b.sq.Outstanding(); n != 0 {
				t.Errorf("%d slots are not free in the end", n)
			}
		})
	}
}

// TestNoAllocations: fetch and publish allocate nothing.
func TestNoAllocations(t *testing.T) {
	b := newBench(t, 64)
	slots := make([]uint16, 0, 64)
	cids := make([]uint16, 16)
	run := func() {
		b.submit(cids...)
		got, err := b.sq.Fetch(slots)
		if err != nil {
			t.Fatal(err)
		}
		b.complete(got...)
		if _, err := b.cq.Publish(); err != nil {
			t.Fatal(err)
		}
		b.cqHead = (b.cqHead + 16) % b.entries
		*b.bells.Page.CQHead(1) = b.cqHead
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

// TestPages checks that pages of another layout are refused and that a closed
// or foreign file is.
func TestPages(t *testing.T) {
	regs, err := Create[Registers]("registers")
	if err != nil {
		t.Fatal(err)
	}
	defer regs.Close()
	if err := regs.Page.Check(); err == nil {
		t.Error("an empty register page is accepted")
	}
	regs.Page.Init(0, 0, 0)
	if err := regs.Page.Check(); err != nil {
		t.Error(err)
	}
	regs.Page.Version++
	var version *VersionError
	if err := regs.Page.Check(); !errors.As(err, &version) {
		t.Errorf("another version: %v", err)
	}
	if err := unix.Ftruncate(regs.FD(), 0); err == nil {
		t.Error("the page can be truncated")
	}
	small, err := unix.MemfdCreate("small", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Open[State](small); err == nil {
		s.Close()
		t.Error("a state area of no size is accepted")
	}
}

// TestController: state commits by one store, and only in its generation.
func TestController(t *testing.T) {
	s, err := Create[State]("state")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Page.Init()
	if _, p := s.Page.LoadController(3); p != nil {
		t.Error("state where none was committed")
	}
	s.Page.CommitController(3, 1, nvme.CQE{}, []byte("one"))
	s.Page.CommitController(3, 2, nvme.CQE{DW0: 9}, []byte("second"))
	page, p := s.Page.LoadController(3)
	if string(p) != "second" || page.N != 2 || page.CQE.DW0 != 9 {
		t.Errorf("loaded %q of command %d", p, page.N)
	}
	if _, p := s.Page.LoadController(4); p != nil {
		t.Error("state of another generation")
	}
}

// Fused pairs that had begun come before all that is executed again, whole.
func TestBegunFirst(t *testing.T) {
	a, b := &SQ{ID: 1, page: new(SQPage)}, &SQ{ID: 2, page: new(SQPage)}
	outstanding := func(q *SQ, slot uint16, fuse nvme.Fuse, aux uint64) Outstanding {
		s := q.Slot(slot)
		s.SQE.SetFuse(fuse)
		s.Aux[0] = aux
		return Outstanding{q, slot}
	}
	plain := outstanding(a, 0, nvme.FuseNone, 0)
	compare, write := outstanding(a, 1, nvme.FuseFirst, 0), outstanding(a, 2, nvme.FuseSecond, 0)
	alone := outstanding(a, 3, nvme.FuseFirst, 1)
	read := outstanding(b, 0, nvme.FuseNone, 0)
	compare2, write2 := outstanding(b, 1, nvme.FuseFirst, 1), outstanding(b, 2, nvme.FuseSecond, 5)
	end := outstanding(b, 3, nvme.FuseFirst, 1)
	got := begunFirst([]Outstanding{plain, compare, write, alone, read, compare2, write2, end})
	want := []Outstanding{compare2, write2, plain, compare, write, alone, read, end}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRecoverBadHead: a head that cannot be is found out when there is something
// to publish, as it would have been without a restart. The queue goes on when it
// is one that can be.
func TestRecoverBadHead(t *testing.T) {
	for _, published := range []int{0, 3, 20} {
		b := newBench(t, 8)
		for range published {
			b.submit(1)
			b.complete(b.fetch(1)...)
			b.publish(1)
			b.check("before", b.reap(true), 1)
		}
		b.submit(2)
		b.fetch(1)
		good := *b.bells.Page.CQHead(1)
		*b.bells.Page.CQHead(1) = 8
		b.attach()
		redo, err := b.cq.Recover([]*SQ{b.sq})
		if err != nil || len(redo) != 1 {
			t.Fatalf("%d commands to execute again, %v; want 1", len(redo), err)
		}
		b.complete(redo[0].Slot)
		if n, err := b.cq.Publish(); n != 0 || !errors.Is(err, ErrDoorbell) {
			t.Errorf("published %d, %v", n, err)
		}
		*b.bells.Page.CQHead(1) = good
		b.publish(1)
		b.check("after", b.reap(true), 2)
	}
}
