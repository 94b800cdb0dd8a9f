// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volumetest

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/poller"
)

// Memory is guest memory: a file mapped through a dma.Space, as a VM shares
// it, that its owner can take away.
type Memory struct {
	space *dma.Space
	view  *dma.View
	fd    int
	size  uint64
}

// NewMemory makes size bytes of guest memory, whole pages. It is unmapped when
// the test ends.
func NewMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	m := &Memory{space: dma.NewSpace(nil), fd: fd, size: size}
	if err := m.space.Map(1, 0, size, dma.ProtRead|dma.ProtWrite, fd, 0); err != nil {
		t.Fatal(err)
	}
	m.view = m.space.NewView(func(f func()) { f() }, nil)
	t.Cleanup(func() { <-m.space.Reset(2) })
	return m
}

// Segments returns the memory of [addr, addr+n).
func (m *Memory) Segments(addr, n uint64) []dma.Segment {
	segs, err := m.view.Translate(make([]dma.Segment, 0, 1), []dma.Range{{Addr: addr, Len: n}}, dma.ProtRead|dma.ProtWrite)
	if err != nil {
		panic(err) // the test asks for memory that it did not make
	}
	return segs
}

// Bytes returns the memory of [addr, addr+n).
func (m *Memory) Bytes(addr, n uint64) []byte { return m.Segments(addr, n)[0].Bytes() }

// Cut returns the memory of [addr, addr+the sum of lens) in pieces of these
// lengths.
func (m *Memory) Cut(addr uint64, lens ...uint64) []dma.Segment {
	var segs []dma.Segment
	for _, n := range lens {
		segs = append(segs, m.Segments(addr, n)...)
		addr += n
	}
	return segs
}

// TakeAway makes every further access fault, as a VM that shrinks its memory.
func (m *Memory) TakeAway(t testing.TB) {
	t.Helper()
	if err := unix.Ftruncate(m.fd, 0); err != nil {
		t.Fatal(err)
	}
}

// guest is the poller's source for a Memory: it has no work and counts faults.
type guest struct {
	mem    *Memory
	faults int
}

func (g *guest) Poll() int               { return 0 }
func (g *guest) Arm() poller.Wake        { return poller.WakeEvent }
func (g *guest) Holds(addr uintptr) bool { return g.mem.space.Holds(addr) }
func (g *guest) Fault()                  { g.faults++ }
