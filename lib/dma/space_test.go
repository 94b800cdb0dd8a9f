// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestCheckRange(t *testing.T) {
	for _, x := range []struct {
		addr, size uint64
		want       string
	}{
		{0, PageSize, ""},
		{math.MaxUint64 - 2*PageSize + 1, PageSize, ""},
		{0, 0, "empty"},
		{1, PageSize, "not page-aligned"},
		{PageSize, PageSize + 1, "not page-aligned"},
		{math.MaxUint64 - PageSize + 1, PageSize, "beyond the end"},
		{math.MaxUint64 - PageSize + 1, 2 * PageSize, "beyond the end"},
		{2 * PageSize, math.MaxUint64 - PageSize + 1, "beyond the end"},
	} {
		err := CheckRange(x.addr, x.size)
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("CheckRange(%#x, %#x) = %v, want %q", x.addr, x.size, err, x.want)
		}
		var e *RangeError
		if err != nil && (!errors.As(err, &e) || e.Addr != x.addr || e.Size != x.size) {
			t.Errorf("CheckRange(%#x, %#x): error %#v does not name the range", x.addr, x.size, err)
		}
	}
}

func TestProt(t *testing.T) {
	for p, want := range map[Prot]string{0: "-", ProtRead: "r", ProtWrite: "w", rw: "rw"} {
		if got := p.String(); got != want {
			t.Errorf("Prot %d is %q, want %q", p, got, want)
		}
	}
}

func TestMapRefused(t *testing.T) {
	s := NewSpace(nil)
	fd := memfd(t, "refused", 4*PageSize)
	mustMap(t, s, 4*PageSize, 4*PageSize, rw, fd, 0)
	table := s.Table()
	for _, x := range []struct {
		name               string
		addr, size, offset uint64
		fd                 int
	}{
		{"the same", 4 * PageSize, 4 * PageSize, 0, fd},
		{"inside", 5 * PageSize, PageSize, 0, fd},
		{"around", 0, 16 * PageSize, 0, -1},
		{"first page", 3 * PageSize, 2 * PageSize, 0, fd},
		{"last page", 7 * PageSize, 2 * PageSize, 0, fd},
		{"empty", 16 * PageSize, 0, 0, fd},
		{"unaligned", 16*PageSize + 8, PageSize, 0, fd},
		{"odd file offset", 16 * PageSize, PageSize, 8, fd},
		{"file offset wraps", 16 * PageSize, 2 * PageSize, math.MaxUint64 - PageSize + 1, fd},
		{"file offset is negative", 16 * PageSize, PageSize, 1 << 63, fd},
		{"bad descriptor", 16 * PageSize, PageSize, 0, 1 << 20},
		{"more than a process has room for", 1 << 50, 1 << 62, 0, fd},
	} {
		if err := s.Map(2, x.addr, x.size, rw, x.fd, x.offset); err == nil {
			t.Errorf("%s: mapped", x.name)
		}
	}
	if s.Table() != table || mappings(t, "refused") != 1 {
		t.Error("what was refused has changed something")
	}
	<-s.Reset(3)
}

func TestUnmapRefused(t *testing.T) {
	s := NewSpace(nil)
	for _, addr := range []uint64{4, 8, 9} {
		mustMap(t, s, addr*PageSize, PageSize, rw, -1, 0)
	}
	mustMap(t, s, 16*PageSize, 4*PageSize, rw, -1, 0)
	table := s.Table()
	for _, x := range []struct{ addr, size uint64 }{
		{0, PageSize},
		{4 * PageSize, 0},
		{5 * PageSize, 3 * PageSize},
		{16 * PageSize, PageSize},
		{17 * PageSize, PageSize},
		{19 * PageSize, 8 * PageSize},
		{8 * PageSize, 9 * PageSize}, // two of them, and a part of the third
		{17 * PageSize, math.MaxUint64},
	} {
		if done, err := s.Unmap(2, x.addr, x.size); err == nil {
			t.Errorf("unmapped %#x+%#x", x.addr, x.size)
			<-done
		}
	}
	if s.Table() != table {
		t.Error("what was refused has changed something")
	}
	// Several regions at once, and everything.
	if _, err := s.Unmap(2, 8*PageSize, 2*PageSize); err != nil {
		t.Error(err)
	}
	if _, err := s.Unmap(3, 0, math.MaxUint64); err != nil {
		t.Error(err)
	}
	if n := len(s.Table().Regions()); n != 0 || s.Table().Gen != 3 {
		t.Errorf("%d regions, generation %d; want 0, 3", n, s.Table().Gen)
	}
}

func TestMaxRegions(t *testing.T) {
	s := NewSpace(nil)
	for i := range uint64(MaxRegions) {
		mustMap(t, s, i*2*PageSize, PageSize, rw, -1, 0)
	}
	if err := s.Map(2, 1<<40, PageSize, rw, -1, 0); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("region %d: %v", MaxRegions, err)
	}
	if _, err := s.Unmap(3, 0, PageSize); err != nil {
		t.Error(err)
	}
	mustMap(t, s, 1<<40, PageSize, rw, -1, 0)
}

// The memory behind an address is that of the file, at its offset.
func TestMapOffset(t *testing.T) {
	s := NewSpace(nil)
	fd := memfd(t, "offset", 4*PageSize)
	mustMap(t, s, 1<<32, 2*PageSize, rw, fd, 2*PageSize)
	mustMap(t, s, 0, 4*PageSize, ProtRead, fd, 0)
	v := s.NewView(atOnce, nil)
	if err := v.Write([]byte("abc"), 1<<32+5); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if err := v.Read(got, 2*PageSize+5); err != nil || string(got) != "abc" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := v.Write(got, 0); err != ErrFault || v.Fault() != 0 {
		t.Errorf("writing read-only memory: %v at %#x", err, v.Fault())
	}
	<-s.Reset(2)
	if n := mappings(t, "offset"); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

// The table and every access through it agree with a model: a page is mapped
// or not, with a right, and holds what was written to it.
func TestSpaceModel(t *testing.T) {
	const pages = 24
	type page struct {
		prot   Prot
		shared bool
		region int // pages of one region have one number
		data   [PageSize]byte
	}
	fd := memfd(t, "model", pages*PageSize)
	rapid.Check(t, func(t *rapid.T) {
		var model [pages]*page
		back := &relay{mem: make([]byte, pages*PageSize)}
		s := NewSpace(back)
		defer func() { <-s.Reset(9) }()
		v := s.NewView(atOnce, nil)
		span := func() (first, n int) {
			first = rapid.IntRange(0, pages-1).Draw(t, "first")
			return first, rapid.IntRange(1, min(6, pages-first)).Draw(t, "pages")
		}
		prots := rapid.SampledFrom([]Prot{rw, rw, ProtRead, ProtWrite})
		regions := 0
		t.Repeat(map[string]func(*rapid.T){
			"map": func(t *rapid.T) {
				first, n := span()
				prot, shared := prots.Draw(t, "prot"), rapid.Bool().Draw(t, "shared")
				free := !slices.ContainsFunc(model[first:first+n], func(p *page) bool { return p != nil })
				use := -1
				if shared {
					use = fd
				}
				err := s.Map(1, uint64(first)*PageSize, uint64(n)*PageSize, prot, use, uint64(first)*PageSize)
				if (err == nil) != free {
					t.Fatalf("Map of pages %d+%d: %v, want success: %v", first, n, err, free)
				}
				if !free {
					return
				}
				regions++
				for i := first; i < first+n; i++ {
					p := &page{prot: prot, shared: shared, region: regions}
					if model[i] = p; !shared {
						copy(p.data[:], back.mem[i*PageSize:])
						continue
					}
					if prot&ProtRead != 0 {
						if err := v.Read(p.data[:], uint64(i)*PageSize); err != nil {
							t.Fatal(err)
						}
						continue
					}
					if err := v.Write(p.data[:], uint64(i)*PageSize); err != nil {
						t.Fatal(err)
					}
				}
			},
			"unmap": func(t *rapid.T) {
				first, n := span()
				in := make(map[int]bool)
				for _, p := range model[first : first+n] {
					if p != nil {
						in[p.region] = true
					}
				}
				cut := false
				for i, p := range model {
					if p != nil && in[p.region] && (i < first || i >= first+n) {
						cut = true
					}
				}
				want := len(in) > 0 && !cut
				done, err := s.Unmap(1, uint64(first)*PageSize, uint64(n)*PageSize)
				if (err == nil) != want {
					t.Fatalf("Unmap of pages %d+%d: %v, want success: %v", first, n, err, want)
				}
				if want {
					<-done
					clear(model[first : first+n])
				}
			},
			"access": func(t *rapid.T) {
				addr := rapid.Uint64Range(0, pages*PageSize-1).Draw(t, "addr")
				n := rapid.Uint64Range(1, min(3*PageSize, pages*PageSize-addr)).Draw(t, "n")
				prot := rapid.SampledFrom([]Prot{ProtRead, ProtWrite}).Draw(t, "prot")
				fault, shared, one := uint64(math.MaxUint64), true, true
				var want []byte
				for a := addr; a < addr+n; {
					p := model[a/PageSize]
					if p == nil || p.prot&prot == 0 {
						fault = min(fault, a)
						break
					}
					shared = shared && p.shared
					one = one && p.region == model[addr/PageSize].region
					end := min(addr+n, (a/PageSize+1)*PageSize)
					want = append(want, p.data[a%PageSize:][:end-a]...)
					a = end
				}
				ok := fault == math.MaxUint64
				if _, got := v.Pointer(addr, n, prot); got != (ok && shared && one) {
					t.Fatalf("Pointer(%#x, %d, %v) = %v", addr, n, prot, got)
				}
				segs, err := v.Translate(make([]Segment, 0, 8), []Range{{addr, n}}, prot)
				if (err == nil) != (ok && shared) || err != nil && err != ErrFault {
					t.Fatalf("Translate(%#x, %d, %v): %v", addr, n, prot, err)
				}
				if err == nil && prot == ProtRead {
					var got []byte
					for _, s := range segs {
						got = append(got, s.Bytes()...)
					}
					if !bytes.Equal(got, want) {
						t.Fatalf("the segments of %#x+%d hold something else", addr, n)
					}
				}
				got := make([]byte, n)
				if prot == ProtRead {
					err = v.Read(got, addr)
				} else {
					for i := range got {
						got[i] = byte(i) + byte(addr)
					}
					err = v.Write(got, addr)
					// What comes before a fault is written.
					for i := uint64(0); i < uint64(len(want)); i++ {
						model[(addr+i)/PageSize].data[(addr+i)%PageSize] = got[i]
					}
					want = got
				}
				switch {
				case !ok && (err != ErrFault || v.Fault() != fault):
					t.Fatalf("access %v %#x+%d: %v at %#x, want a fault at %#x", prot, addr, n, err, v.Fault(), fault)
				case ok && (err != nil || !bytes.Equal(got, want)):
					t.Fatalf("access %v %#x+%d: %v, or other data", prot, addr, n, err)
				}
			},
			"": func(t *rapid.T) {
				rs := s.Table().Regions()
				for i := range rs {
					if i > 0 && rs[i].Addr < rs[i-1].Addr+rs[i-1].Size {
						t.Fatalf("regions %d and %d are out of order", i-1, i)
					}
				}
			},
		})
	})
}

func TestRelay(t *testing.T) {
	back := &relay{base: PageSize, mem: make([]byte, PageSize)}
	s := NewSpace(back)
	fd := memfd(t, "relay", PageSize)
	mustMap(t, s, 0, PageSize, rw, fd, 0)
	mustMap(t, s, PageSize, PageSize, rw, -1, 0)
	v := s.NewView(atOnce, nil)
	data := []byte("across the border")
	if err := v.Write(data, PageSize-6); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := v.Read(got, PageSize-6); err != nil || !bytes.Equal(got, data) || string(back.mem[:11]) != " the border" {
		t.Errorf("got %q, %v; behind the relay %q", got, err, back.mem[:11])
	}
	for _, x := range []struct {
		addr           uint64
		shared, mapped bool
	}{{0, true, true}, {PageSize, false, true}, {2 * PageSize, false, false}} {
		if shared, mapped := v.Shared(x.addr); shared != x.shared || mapped != x.mapped {
			t.Errorf("Shared(%#x) = %v, %v", x.addr, shared, mapped)
		}
	}
	back.err = errors.New("away")
	if err := v.Read(got, PageSize); err != back.err {
		t.Errorf("got %v, want the relay's error", err)
	}
	if err := v.Write(got, PageSize); err != back.err {
		t.Errorf("got %v, want the relay's error", err)
	}
	<-s.Reset(2)

	lonely := NewSpace(nil)
	mustMap(t, lonely, 0, PageSize, rw, -1, 0)
	v = lonely.NewView(atOnce, nil)
	if err := v.Read(got, 8); err != ErrFault || v.Fault() != 8 {
		t.Errorf("without a relay: %v at %#x, want a fault at 0x8", err, v.Fault())
	}
}

// Memory stays mapped, and its addresses known, until the last lease of every
// view that could use it is gone; done follows in the order of the changes.
func TestLeases(t *testing.T) {
	s := NewSpace(nil)
	fd := memfd(t, "leases", 2*PageSize)
	mustMap(t, s, 0, PageSize, rw, fd, 0)
	mustMap(t, s, PageSize, PageSize, rw, fd, PageSize)
	var boxes [2]inbox
	var views [2]*View
	changes := 0
	for i := range views {
		views[i] = s.NewView(boxes[i].post, func() { changes++ })
	}
	p, _ := views[0].Pointer(0, PageSize, rw)
	addr := uintptr(p)
	use := Segment{p, PageSize}.Bytes()

	first := views[0].Acquire() // on both regions
	gone1, err := s.Unmap(2, 0, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	// Not caught up: the old table serves on.
	if _, ok := views[0].Pointer(0, 1, rw); !ok || views[0].Gen() != 1 {
		t.Error("a view changed in the middle of its turn")
	}
	boxes[0].run()
	if _, ok := views[0].Pointer(0, 1, rw); ok || views[0].Gen() != 2 || changes != 1 {
		t.Error("a view did not follow")
	}
	second := views[0].Acquire() // on the second region alone
	gone2, err := s.Unmap(3, PageSize, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	boxes[0].run()
	if changes != 2 {
		t.Errorf("told of %d changes, want 2", changes)
	}
	check := func(when string, one, two bool, maps int) {
		t.Helper()
		if closed(gone1) != one || closed(gone2) != two {
			t.Errorf("%s: gone %v, %v; want %v, %v", when, closed(gone1), closed(gone2), one, two)
		}
		if n := mappings(t, "leases"); n != maps {
			t.Errorf("%s: %d mappings, want %d", when, n, maps)
		}
		if got := s.Holds(addr); got != !one {
			t.Errorf("%s: Holds is %v", when, got)
		}
	}
	check("both in use", false, false, 2)
	use[0] = 1 // no fault
	boxes[1].run()
	check("both in use by one view", false, false, 2)
	second.Release()
	check("the older lease is left", false, false, 2)
	first.Release()
	check("nothing in use", true, true, 0)
	if s.Holds(0) || len(s.dying) != 0 {
		t.Error("the space remembers memory that is gone")
	}
}

// A view that has been closed is not waited for, but a change that was already
// on its way to it is.
func TestViewClose(t *testing.T) {
	s := NewSpace(nil)
	fd := memfd(t, "close", PageSize)
	var box inbox
	v := s.NewView(box.post, func() { t.Error("told of a change after Close") })
	mustMap(t, s, 0, PageSize, rw, fd, 0)
	gone, err := s.Unmap(2, 0, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	if closed(gone) {
		t.Error("gone before the view has followed")
	}
	box.run()
	if !closed(gone) {
		t.Error("not gone after the view has followed")
	}
	mustMap(t, s, 0, PageSize, rw, fd, 0)
	if !closed(s.Reset(3)) || len(box) != 0 {
		t.Error("a closed view is waited for")
	}
}

// The last look-up's region is only a hint: it is not used for another table.
func TestHint(t *testing.T) {
	s := NewSpace(nil)
	fd := memfd(t, "hint", 2*PageSize)
	mustMap(t, s, PageSize, PageSize, rw, fd, 0)
	v := s.NewView(atOnce, nil)
	if _, ok := v.Pointer(PageSize, 8, rw); !ok {
		t.Fatal("not mapped")
	}
	mustMap(t, s, 0, PageSize, rw, fd, PageSize)
	if _, ok := v.Pointer(PageSize, 8, rw); !ok {
		t.Error("lost after a change")
	}
	if done, err := s.Unmap(3, PageSize, PageSize); err != nil || !closed(done) {
		t.Fatal(err)
	}
	if _, ok := v.Pointer(PageSize, 8, rw); ok {
		t.Error("found after it was unmapped")
	}
	<-s.Reset(4)
}
