// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
)

// victim is a source with guest memory that it touches when it is told to, in
// Poll or in Arm.
type victim struct {
	*source
	space *dma.Space
	fd    int
	mem   []byte
	inArm bool
	fault chan bool
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, dma.PageSize); err != nil {
		t.Fatal(err)
	}
	v := &victim{source: newSource(WakeEvent), space: dma.NewSpace(nil), fd: fd, fault: make(chan bool, 10)}
	if err := v.space.Map(1, 0, dma.PageSize, dma.ProtRead|dma.ProtWrite, fd, 0); err != nil {
		t.Fatal(err)
	}
	view := v.space.NewView(func(f func()) { f() }, nil)
	segs, err := view.Translate(make([]dma.Segment, 0, 1), []dma.Range{{Addr: 0, Len: dma.PageSize}}, dma.ProtRead)
	if err != nil {
		t.Fatal(err)
	}
	v.mem = segs[0].Bytes()
	t.Cleanup(func() { <-v.space.Reset(2) })
	return v
}

func (v *victim) Poll() int {
	if v.work.Load() == v.seen {
		return 0
	}
	v.mem[0]++
	return v.source.Poll()
}

func (v *victim) Arm() Wake {
	if v.inArm {
		v.mem[0]++
	}
	return v.source.Arm()
}

func (v *victim) Holds(addr uintptr) bool { return v.space.Holds(addr) }

// Fault is as in a controller: the memory is not touched again.
func (v *victim) Fault() {
	v.mem = make([]byte, dma.PageSize)
	v.fault <- true
}

func (v *victim) takeAway(t *testing.T) {
	t.Helper()
	if err := unix.Ftruncate(v.fd, 0); err != nil {
		t.Fatal(err)
	}
}

// Memory that a guest takes away costs its own source and nobody else,
// wherever it is touched.
func TestFault(t *testing.T) {
	eachMode(t, func(t *testing.T, p *Poller) {
		bad, good := newVictim(t), newVictim(t)
		do(t, p, func() { p.Add(good); p.Add(bad); p.Add(newSource(WakeEvent)) })
		for n := range int64(3) {
			for _, v := range []*victim{bad, good} {
				v.work.Store(n + 1)
				do(t, p, func() {}) // wakes it
				wait(t, v.told, "service")
			}
			if n == 1 {
				bad.takeAway(t)
				bad.work.Store(10)
				do(t, p, func() {})
				wait(t, bad.fault, "the fault")
				// The source goes on, without that memory.
				wait(t, bad.told, "service after the fault")
			}
		}
		if len(good.fault) > 0 || len(bad.fault) > 0 {
			t.Error("a source was told of a fault that it did not have")
		}
		if p.sleeping.Load() && p.Mode() == Busy {
			t.Error("a busy poller sleeps")
		}
	})
}

func TestFaultInArm(t *testing.T) {
	p := start(t, Config{Mode: Interrupt})
	bad := newVictim(t)
	bad.takeAway(t)
	bad.inArm = true
	do(t, p, func() { p.Add(bad) })
	wait(t, bad.fault, "the fault")
	asleep(t, p)
	do(t, p, func() {})
}

// toucher counts.
type toucher struct{ faults int }

func (t *toucher) Faulted() { t.faults++ }

// The work that touched the memory is told, once, whether it was posted or
// deferred, and what was to run after it runs.
func TestTouch(t *testing.T) {
	p := start(t, Config{})
	bad := newVictim(t)
	do(t, p, func() { p.Add(bad) })
	outer, inner := &toucher{}, &toucher{}
	lost := bad.mem
	copyIn := func() {
		p.Touch(outer)
		before := p.Touch(inner)
		if before != Toucher(outer) {
			t.Errorf("Touch returned %v, want the one before", before)
		}
		lost[0]++
		p.Touch(before)
		p.Touch(nil)
	}
	do(t, p, copyIn)
	bad.takeAway(t)

	for i, run := range []func(){
		func() { copyIn() },
		func() { p.Defer(runner(copyIn)) },
	} {
		order := make(chan int, 2)
		do(t, p, func() {
			if err := p.Post(run); err != nil {
				t.Error(err)
			}
			if err := p.Post(func() { p.Defer(runner(func() { order <- 2 })); order <- 1 }); err != nil {
				t.Error(err)
			}
		})
		wait(t, bad.fault, "the fault")
		if a, b := wait(t, order, "what was posted after"), wait(t, order, "what was deferred after"); a != 1 || b != 2 {
			t.Errorf("ran %d, %d; want 1, 2", a, b)
		}
		do(t, p, func() {
			if inner.faults != i+1 || outer.faults != 0 {
				t.Errorf("told of faults: inner %d, outer %d; want %d, 0", inner.faults, outer.faults, i+1)
			}
			if p.touching != nil {
				t.Error("the work is still taken to be touching")
			}
		})
	}

	// Do comes back from a function that faults.
	do(t, p, func() { lost[0]++ })
	wait(t, bad.fault, "the fault")
	if inner.faults != 2 {
		t.Error("work that touched nothing was told of a fault")
	}
}
