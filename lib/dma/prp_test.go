// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The guest of the PRP tests has pages of every kind.
const (
	rwPages  = 24 // 0 ..
	roPages  = 4
	woPages  = 4
	farPages = 4 // not shared
	noPages  = 4 // not mapped
	allPages = rwPages + roPages + woPages + farPages + noPages
)

// prpGuest is that guest.
type prpGuest struct {
	space *Space
	view  *View
	far   *relay
	mem   []byte // what is behind the shared pages
}

func newPRPGuest(t testing.TB) *prpGuest {
	const shared = rwPages + roPages + woPages
	g := &prpGuest{far: &relay{base: shared * PageSize, mem: make([]byte, farPages*PageSize)}}
	g.space = NewSpace(g.far)
	fd := memfd(t, "prp", shared*PageSize)
	page := uint64(0)
	for _, r := range []struct {
		pages uint64
		prot  Prot
		fd    int
	}{{rwPages / 2, rw, fd}, {rwPages / 2, rw, fd}, {roPages, ProtRead, fd}, {woPages, ProtWrite, fd}, {farPages, rw, -1}} {
		mustMap(t, g.space, page*PageSize, r.pages*PageSize, r.prot, r.fd, page*PageSize)
		page += r.pages
	}
	// The test's own way to the memory, rights aside.
	all := NewSpace(nil)
	mustMap(t, all, 0, shared*PageSize, rw, fd, 0)
	p, _ := all.NewView(atOnce, nil).Pointer(0, shared*PageSize, rw)
	g.mem = Segment{p, shared * PageSize}.Bytes()
	g.view = g.space.NewView(atOnce, nil)
	t.Cleanup(func() { <-g.space.Reset(2); <-all.Reset(2) })
	return g
}

// page says whether the device may access a page so, and whether it is shared.
func (g *prpGuest) page(addr uint64, prot Prot) (ok, shared bool) {
	switch p := addr / PageSize; {
	case p < rwPages:
		return true, true
	case p < rwPages+roPages:
		return prot == ProtRead, true
	case p < rwPages+roPages+woPages:
		return prot == ProtWrite, true
	case p < rwPages+roPages+woPages+farPages:
		return true, false
	}
	return false, false
}

// word reads guest memory, rights aside.
func (g *prpGuest) word(addr uint64) uint64 {
	if addr >= g.far.base {
		return binary.LittleEndian.Uint64(g.far.mem[addr-g.far.base:])
	}
	return binary.LittleEndian.Uint64(g.mem[addr:])
}

func (g *prpGuest) setWord(addr, v uint64) {
	if addr >= g.far.base {
		binary.LittleEndian.PutUint64(g.far.mem[addr-g.far.base:], v)
		return
	}
	binary.LittleEndian.PutUint64(g.mem[addr:], v)
}

// model is the specification read naively: entry after entry, page after page.
// The last entry of a list page is a pointer to the next list if more than one
// page of data is left.
func (g *prpGuest) model(prp1, prp2, n uint64) (pages []Range, err error) {
	if n == 0 || n > MaxTransfer {
		return nil, ErrTooLong
	}
	if prp1%4 != 0 {
		return nil, ErrOffset
	}
	take := func(addr uint64) {
		size := min(n, PageSize-addr%PageSize)
		pages = append(pages, Range{addr, size})
		n -= size
	}
	take(prp1)
	if n == 0 {
		return pages, nil
	}
	if n <= PageSize {
		if prp2%PageSize != 0 {
			return nil, ErrOffset
		}
		take(prp2)
		return pages, nil
	}
	if prp2%8 != 0 {
		return nil, ErrOffset
	}
	for at := prp2; n > 0; {
		if ok, _ := g.page(at, ProtRead); !ok {
			return nil, ErrFault
		}
		entry := g.word(at)
		if entry%PageSize != 0 {
			return nil, ErrOffset
		}
		if at%PageSize == PageSize-8 && n > PageSize {
			at = entry
			continue
		}
		take(entry)
		at += 8
	}
	return pages, nil
}

// split cuts ranges at page boundaries.
func split(rs []Range) (pages []Range) {
	for _, r := range rs {
		for r.Len > 0 {
			n := min(r.Len, PageSize-r.Addr%PageSize)
			pages = append(pages, Range{r.Addr, n})
			r.Addr, r.Len = r.Addr+n, r.Len-n
		}
	}
	return pages
}

// compare walks prp1 and prp2 both ways.
func (g *prpGuest) compare(prp1, prp2, n uint64) error {
	want, wantErr := g.model(prp1, prp2, n)
	rs, err := g.view.PRP(prp1, prp2, n)
	if (err == nil) != (wantErr == nil) {
		return fmt.Errorf("PRP(%#x, %#x, %d): %v, want %v", prp1, prp2, n, err, wantErr)
	}
	if err != nil {
		// Of two faults of one list, either is the answer.
		if err != wantErr && (err == ErrTooLong || wantErr == ErrTooLong || !errors.Is(err, ErrOffset) && !errors.Is(err, ErrFault)) {
			return fmt.Errorf("PRP(%#x, %#x, %d): %v, want %v", prp1, prp2, n, err, wantErr)
		}
		return nil
	}
	if got := split(rs); !slices.Equal(got, want) {
		return fmt.Errorf("PRP(%#x, %#x, %d) = %v, want %v", prp1, prp2, n, got, want)
	}
	for _, prot := range []Prot{ProtRead, ProtWrite} {
		if err := g.translate(rs, want, n, prot); err != nil {
			return fmt.Errorf("PRP(%#x, %#x, %d): %w", prp1, prp2, n, err)
		}
	}
	return nil
}

// translate checks the segments of ranges against their pages.
func (g *prpGuest) translate(rs, pages []Range, n uint64, prot Prot) error {
	var want error
	for _, p := range pages {
		if ok, shared := g.page(p.Addr, prot); !ok || !shared {
			want = ErrFault
		}
	}
	segs, err := g.view.Translate(make([]Segment, 0, MaxSegments), rs, prot)
	if err != want {
		return fmt.Errorf("translated for %v: %v, want %v", prot, err, want)
	}
	if err != nil {
		if ok, shared := g.page(g.view.Fault(), prot); ok && shared {
			return fmt.Errorf("a fault at %#x, which is there", g.view.Fault())
		}
		return nil
	}
	var total uint64
	for _, s := range segs {
		total += s.Len
		if !g.space.Holds(uintptr(s.Base)) || !g.space.Holds(uintptr(s.Base)+uintptr(s.Len)-1) {
			return errors.New("a segment is not guest memory")
		}
	}
	if total != n {
		return fmt.Errorf("%d bytes in segments, want %d", total, n)
	}
	return nil
}

func TestPRP(t *testing.T) {
	g := newPRPGuest(t)
	// A list in page 1 that goes on in page 2, of pages 4, 5, 7, 8, 9, ...
	for i := range uint64(PageSize / 8) {
		g.setWord(1*PageSize+8*i, (4+i%16)*PageSize)
		g.setWord(2*PageSize+8*i, (4+i%16)*PageSize)
	}
	g.setWord(2*PageSize-8, 2*PageSize)
	for _, x := range []struct {
		prp1, prp2, n uint64
		want          []Range
		err           error
	}{
		{4096, 0, 512, []Range{{4096, 512}}, nil},
		{4096 + 4, 1, 4092, []Range{{4100, 4092}}, nil},
		{4096 + 4, 12288, 4096, []Range{{4100, 4092}, {12288, 4}}, nil},
		{4096, 8192, 8192, []Range{{4096, 8192}}, nil}, // merged
		{4096, 12288 + 512, 8192, nil, ErrOffset},
		{4096 + 2, 0, 512, nil, ErrOffset},
		{4096, 0, 0, nil, ErrTooLong},
		{4096, 0, MaxTransfer + 1, nil, ErrTooLong},
		{3 * PageSize, 1 * PageSize, 3 * PageSize, []Range{{3 * PageSize, 3 * PageSize}}, nil},
		{2048, 1 * PageSize, 3 * PageSize, []Range{{2048, 2048}, {4 * PageSize, 2*PageSize + 2048}}, nil},
		// The list begins in its page's last entry, which leads on.
		{0, 2*PageSize - 8, 3 * PageSize, []Range{{0, 4096}, {4 * PageSize, 2 * PageSize}}, nil},
		// The last entry of a page is data if it is the last one needed.
		{0, 2*PageSize - 16, 3 * PageSize, []Range{{0, 4096}, {18 * PageSize, 4096}, {2 * PageSize, 4096}}, nil},
		{0, PageSize + 4, 3 * PageSize, nil, ErrOffset},
		{0, (allPages - 1) * PageSize, 3 * PageSize, nil, ErrFault},
		{0, 1 << 63, 3 * PageSize, nil, ErrFault},
	} {
		got, err := g.view.PRP(x.prp1, x.prp2, x.n)
		if !slices.Equal(got, x.want) || err != x.err {
			t.Errorf("PRP(%#x, %#x, %d) = %v, %v; want %v, %v", x.prp1, x.prp2, x.n, got, err, x.want, x.err)
		}
		if err := g.compare(x.prp1, x.prp2, x.n); err != nil {
			t.Errorf("the model disagrees: %v", err)
		}
	}
	// The largest transfer, from the last dword of a page.
	rs, err := g.view.PRP(4092, 1*PageSize, MaxTransfer)
	if pages := split(rs); err != nil || len(pages) != maxRanges {
		t.Errorf("%d pages, %v; want %d", len(pages), err, maxRanges)
	}
}

// A list that leads to itself ends: each round has data.
func TestPRPLoop(t *testing.T) {
	g := newPRPGuest(t)
	for _, at := range []uint64{0, 8, PageSize - 8} {
		g.setWord(PageSize+at, PageSize)
	}
	g.setWord(2*PageSize-8, PageSize)
	for _, prp2 := range []uint64{PageSize, 2*PageSize - 8, 2*PageSize - 16} {
		if err := g.compare(0, prp2, MaxTransfer); err != nil {
			t.Error(err)
		}
	}
}

func TestTranslateTooLong(t *testing.T) {
	g := newPRPGuest(t)
	rs := []Range{{0, 4096}, {8192, 4096}}
	segs, err := g.view.Translate(make([]Segment, 0, 1), rs, ProtRead)
	if err != ErrTooLong || len(segs) != 1 {
		t.Errorf("%d segments, %v; want 1 and ErrTooLong", len(segs), err)
	}
	// A range across regions is two segments.
	segs, err = g.view.Translate(make([]Segment, 0, 4), []Range{{(rwPages/2 - 1) * PageSize, 2 * PageSize}}, ProtRead)
	if err != nil || len(segs) != 2 {
		t.Errorf("%d segments, %v; want 2", len(segs), err)
	}
}

// Guests write what they like into lists.
func TestPRPModel(t *testing.T) {
	g := newPRPGuest(t)
	addr := rapid.Custom(func(t *rapid.T) uint64 {
		page := rapid.Uint64Range(0, allPages).Draw(t, "page") * PageSize
		switch rapid.IntRange(0, 19).Draw(t, "kind") {
		case 0:
			return page + rapid.Uint64Range(0, PageSize-1).Draw(t, "offset")
		case 1:
			return rapid.Uint64().Draw(t, "anything") &^ (PageSize - 1)
		}
		return rapid.Uint64Range(0, rwPages-1).Draw(t, "page") * PageSize
	})
	rapid.Check(t, func(t *rapid.T) {
		// Three lists, filled with a few entries over and over.
		lists := []uint64{PageSize, 2 * PageSize, (rwPages + roPages + woPages) * PageSize}
		for _, l := range lists {
			entries := rapid.SliceOfN(addr, 1, 8).Draw(t, "entries")
			for i := range uint64(PageSize / 8) {
				g.setWord(l+8*i, entries[i%uint64(len(entries))])
			}
			g.setWord(l+PageSize-8, rapid.SampledFrom(append(lists, 3*PageSize, 8)).Draw(t, "next"))
		}
		prp1 := addr.Draw(t, "prp1")
		if rapid.Bool().Draw(t, "offset") {
			prp1 += rapid.SampledFrom([]uint64{4, 512, 4088, 4092}).Draw(t, "prp1 offset")
		}
		prp2 := rapid.OneOf(addr, rapid.SampledFrom(lists)).Draw(t, "prp2")
		if rapid.Bool().Draw(t, "offset") {
			prp2 += rapid.SampledFrom([]uint64{4, 8, 4080, 4088}).Draw(t, "prp2 offset")
		}
		n := rapid.OneOf(rapid.Uint64Range(0, 4*PageSize), rapid.Uint64Range(0, MaxTransfer+1), rapid.Just(uint64(MaxTransfer))).Draw(t, "n")
		if err := g.compare(prp1, prp2, n); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzPRP(f *testing.F) {
	f.Add(uint64(0), uint64(0), uint64(512), []byte{})
	f.Add(uint64(4092), uint64(8192), uint64(8192), []byte{0, 0x30})
	f.Add(uint64(4), uint64(8184), uint64(MaxTransfer), []byte{0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20})
	f.Add(uint64(0), uint64(4096), uint64(MaxTransfer), []byte{1})
	g := newPRPGuest(f)
	f.Fuzz(func(t *testing.T, prp1, prp2, n uint64, list []byte) {
		clear(g.mem)
		clear(g.far.mem)
		if len(list) > 0 {
			for i := 0; i < rwPages*PageSize; i += len(list) {
				copy(g.mem[i:rwPages*PageSize], list)
			}
			copy(g.far.mem, list)
		}
		if err := g.compare(prp1, prp2, n); err != nil {
			t.Fatal(err)
		}
	})
}

// data prepares a guest for transfers of n bytes in scattered pages, as an
// operating system leaves them, and returns the PRPs.
func (g *prpGuest) data(n uint64) (prp1, prp2 uint64) {
	page := func(i uint64) uint64 { return (4 + i*7%20) * PageSize }
	for i := range n / PageSize {
		g.setWord(PageSize+8*i, page(i+1))
	}
	if n == 2*PageSize {
		return page(0), page(1)
	}
	return page(0), PageSize
}

func TestAllocations(t *testing.T) {
	g := newPRPGuest(t)
	segs := make([]Segment, 0, MaxSegments)
	word := make([]byte, 64)
	for _, n := range []uint64{4 << 10, 8 << 10, 128 << 10, 1 << 20} {
		prp1, prp2 := g.data(n)
		if allocs := testing.AllocsPerRun(100, func() {
			lease := g.view.Acquire()
			rs, err := g.view.PRP(prp1, prp2, n)
			if err == nil {
				_, err = g.view.Translate(segs, rs, ProtWrite)
			}
			if err != nil {
				t.Fatal(err)
			}
			if Misaligned(segs, 512, 512) {
				t.Fatal("misaligned")
			}
			if g.view.Read(word, 8) != nil || g.view.Write(word, 8) != nil {
				t.Fatal("no access")
			}
			// A guest that sends nonsense costs nothing either.
			if _, err := g.view.PRP(1, 0, n); err == nil {
				t.Fatal("no error")
			}
			if _, err := g.view.Translate(segs, []Range{{1 << 60, 1}}, ProtRead); err == nil {
				t.Fatal("no error")
			}
			lease.Release()
		}); allocs != 0 {
			t.Errorf("%d bytes: %v allocations, want 0", n, allocs)
		}
	}
}

func BenchmarkPRP(b *testing.B) {
	for _, n := range []uint64{4 << 10, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dK", n>>10), func(b *testing.B) {
			g := newPRPGuest(b)
			prp1, prp2 := g.data(n)
			segs := make([]Segment, 0, MaxSegments)
			b.ReportAllocs()
			for b.Loop() {
				lease := g.view.Acquire()
				rs, err := g.view.PRP(prp1, prp2, n)
				if err == nil {
					_, err = g.view.Translate(segs, rs, ProtWrite)
				}
				if err != nil {
					b.Fatal(err)
				}
				lease.Release()
			}
		})
	}
}
