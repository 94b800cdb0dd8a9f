// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lost returns memory of a space whose owner has taken it away.
func lost(t *testing.T) (*Space, []byte) {
	t.Helper()
	s := NewSpace(nil)
	fd := memfd(t, "lost", 2*PageSize)
	mustMap(t, s, 0, 2*PageSize, rw, fd, 0)
	t.Cleanup(func() { <-s.Reset(2) })
	p, _ := s.NewView(atOnce, nil).Pointer(0, 2*PageSize, rw)
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	return s, Segment{p, 2 * PageSize}.Bytes()
}

// Every kind of access to memory that was taken away ends in Guarded.
func TestGuarded(t *testing.T) {
	s, mem := lost(t)
	base := uintptr(unsafe.Pointer(&mem[0]))
	buf := make([]byte, 64)
	for name, access := range map[string]func(){
		"load":         func() { buf[0] = mem[100] },
		"store":        func() { mem[100] = 1 },
		"copy from":    func() { copy(buf, mem[100:]) },
		"copy to":      func() { copy(mem[100:], buf) },
		"clear":        func() { clear(mem[100:200]) },
		"atomic load":  func() { _ = atomic.LoadUint32((*uint32)(unsafe.Pointer(&mem[100]))) },
		"atomic store": func() { atomic.StoreUint32((*uint32)(unsafe.Pointer(&mem[100])), 1) },
	} {
		addr, faulted := Guarded(s.Holds, access)
		if !faulted || addr < base || addr >= base+uintptr(len(mem)) {
			t.Errorf("%s: faulted %v at %#x, want a fault in %#x+%#x", name, faulted, addr, base, len(mem))
		}
	}
	ran := false
	if _, faulted := Guarded(s.Holds, func() { ran = true }); faulted || !ran {
		t.Errorf("no access: faulted %v, ran %v", faulted, ran)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("Guarded has left the goroutine's setting on")
	}
}

// caught returns what f panics with.
func caught(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

// Whatever is not a fault in owned memory goes on as it was.
func TestGuardedPanics(t *testing.T) {
	_, mem := lost(t)
	nobody := func(uintptr) bool { return false }
	everybody := func(uintptr) bool { return true }
	if v := caught(func() { Guarded(everybody, func() { panic("a bug") }) }); v != "a bug" {
		t.Errorf("got %v, want the panic", v)
	}
	var null *int
	v := caught(func() { Guarded(everybody, func() { *null = 1 }) })
	if _, ok := v.(runtime.Error); !ok {
		t.Errorf("nil dereference: got %v, want a runtime error", v)
	}
	v = caught(func() { Guarded(nobody, func() { mem[0] = 1 }) })
	if e, ok := v.(interface{ Addr() uintptr }); !ok || e.Addr() != uintptr(unsafe.Pointer(&mem[0])) {
		t.Errorf("a fault in memory that is nobody's: got %v, want it with its address", v)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("Guarded has left the goroutine's setting on")
	}
}

func TestMisaligned(t *testing.T) {
	s := NewSpace(nil)
	mustMap(t, s, 0, 4*PageSize, rw, memfd(t, "align", 4*PageSize), 0)
	t.Cleanup(func() { <-s.Reset(2) })
	v := s.NewView(atOnce, nil)
	for _, x := range []struct {
		ranges      []Range
		align, unit uint64
		want        bool
	}{
		{nil, 512, 512, false},
		{[]Range{{0, 4096}, {4096, 512}}, 4096, 512, false},
		{[]Range{{0, 4096}, {4096, 512}}, 4096, 4096, true},
		{[]Range{{512, 512}}, 512, 512, false},
		{[]Range{{512, 512}}, 1024, 512, true},
		{[]Range{{0, 512}, {4, 512}}, 512, 512, true},
		{[]Range{{0, 508}, {508, 4}}, 4, 512, true},
		{[]Range{{3, 7}, {5, 1}}, 1, 1, false},
	} {
		segs, err := v.Translate(make([]Segment, 0, 8), x.ranges, rw)
		if err != nil {
			t.Fatal(err)
		}
		if got := Misaligned(segs, x.align, x.unit); got != x.want {
			t.Errorf("Misaligned(%v, %d, %d) = %v", x.ranges, x.align, x.unit, got)
		}
	}
}
