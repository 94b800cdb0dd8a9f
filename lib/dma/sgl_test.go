// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// sglModel is the specification read naively: every descriptor of every segment
// in turn, each read by itself, a byte of data at a time where that matters.
func (g *prpGuest) sglModel(first nvme.SGLDescriptor, n uint64, prot Prot) (rs []Range, errs []error) {
	if n == 0 || n > MaxTransfer {
		return nil, []error{ErrTooLong}
	}
	take := func(d nvme.SGLDescriptor) error {
		switch {
		case d.Subtype() != nvme.SGLAddress, d.Type() != nvme.SGLDataBlock && d.Type() != nvme.SGLBitBucket:
			return ErrSGLType
		case d.Type() == nvme.SGLBitBucket && prot == ProtRead || d.Length == 0:
			return nil
		case d.Type() == nvme.SGLDataBlock && d.Address == Nowhere:
			return ErrFault
		}
		size := min(n, uint64(d.Length))
		n -= size
		r := Range{d.Address, size}
		if d.Type() == nvme.SGLBitBucket {
			r.Addr = Nowhere
		} else if k := len(rs) - 1; k >= 0 && rs[k].Addr != Nowhere && rs[k].Addr+rs[k].Len == r.Addr && r.Addr != 0 {
			rs[k].Len += size
			return nil
		}
		rs = append(rs, r)
		if len(rs) > MaxSGLRanges {
			return ErrSGLCount
		}
		return nil
	}
	at, seen := first, 0
	for isSegment(&at) {
		if at.Subtype() != nvme.SGLAddress {
			return nil, []error{ErrSGLType}
		}
		if at.Length == 0 || at.Length%16 != 0 {
			return nil, []error{ErrSGLSegment}
		}
		here := at
		at = nvme.SGLDescriptor{}
		for i := range uint64(here.Length) / 16 {
			if seen++; seen > maxDescriptors+1 {
				// It is as long as that, and may have another fault where a
				// walker that reads on would find it.
				return nil, []error{ErrSGLCount, ErrFault}
			}
			addr := here.Address + 16*i
			for _, word := range []uint64{addr, addr + 15} {
				if ok, _ := g.page(word, ProtRead); !ok {
					return nil, []error{ErrFault}
				}
			}
			var d nvme.SGLDescriptor
			p := nvme.Bytes(&d)
			for k := range uint64(16) {
				p[k] = g.byteAt(addr + k)
			}
			if isSegment(&d) {
				switch {
				case here.Type() == nvme.SGLLastSegment:
					return nil, []error{ErrSGLSegment}
				case i+1 < uint64(here.Length)/16:
					return nil, []error{ErrSGLCount}
				}
				at = d
				break
			}
			if err := take(d); err != nil {
				return nil, []error{err}
			}
			if n == 0 {
				return rs, nil
			}
		}
	}
	if err := take(at); err != nil {
		return nil, []error{err}
	}
	if n > 0 {
		return nil, []error{ErrSGLLength}
	}
	return rs, nil
}

func (g *prpGuest) byteAt(addr uint64) byte {
	if addr >= g.far.base {
		return g.far.mem[addr-g.far.base]
	}
	return g.mem[addr]
}

// compareSGL walks an SGL both ways.
func (g *prpGuest) compareSGL(first nvme.SGLDescriptor, n uint64, prot Prot) error {
	want, wantErrs := g.sglModel(first, n, prot)
	rs, err := g.view.SGL(first, n, prot)
	if err != nil && len(wantErrs) > 0 {
		// The walker reads descriptors in pieces: it may meet the end of the
		// mapped memory before what is wrong in the descriptors before it.
		if slices.Contains(wantErrs, err) || errors.Is(err, ErrFault) {
			return nil
		}
	}
	if err != nil || wantErrs != nil {
		return fmt.Errorf("SGL(%+v, %d, %v): %v, want %v", first, n, prot, err, wantErrs)
	}
	if !slices.Equal(rs, want) {
		return fmt.Errorf("SGL(%+v, %d, %v) = %v, want %v", first, n, prot, rs, want)
	}
	segs, err := g.view.Translate(make([]Segment, 0, MaxSegments), rs, prot)
	if err != nil {
		if err != ErrFault && err != ErrTooLong {
			return err
		}
		return nil
	}
	var total uint64
	for _, s := range segs {
		total += s.Len
		sink := uint64(len(g.view.sink)) > 0 && s.Base == SegmentOf(g.view.sink).Base
		if !sink && (!g.space.Holds(uintptr(s.Base)) || !g.space.Holds(uintptr(s.Base)+uintptr(s.Len)-1)) {
			return errors.New("a segment is not guest memory")
		}
		if sink && prot == ProtRead {
			return errors.New("data would come from a bit bucket")
		}
	}
	if total != n {
		return fmt.Errorf("%d bytes in segments, want %d", total, n)
	}
	return nil
}

// put stores descriptors at addr.
func (g *prpGuest) put(addr uint64, list ...nvme.SGLDescriptor) {
	p := nvme.SliceBytes(list)
	for i := 0; i < len(p); i += 8 {
		g.setWord(addr+uint64(i), binary.LittleEndian.Uint64(p[i:]))
	}
}

func block(addr uint64, n uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLAddress, addr, n)
}

func bucket(n uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLBitBucket, nvme.SGLAddress, 0, n)
}

func segment(addr uint64, descriptors uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLSegment, nvme.SGLAddress, addr, 16*descriptors)
}

func lastSegment(addr uint64, descriptors uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLLastSegment, nvme.SGLAddress, addr, 16*descriptors)
}

func TestSGL(t *testing.T) {
	g := newPRPGuest(t)
	const (
		list = 1 * PageSize
		more = 2 * PageSize
		data = 4 * PageSize
	)
	none := allPages * uint64(PageSize)
	for _, x := range []struct {
		name       string
		list, more []nvme.SGLDescriptor // at those addresses
		first      nvme.SGLDescriptor
		n          uint64
		prot       Prot
		want       []Range
		err        error
	}{
		{"one block", nil, nil, block(data+3, 513), 513, rw, []Range{{data + 3, 513}}, nil},
		{"a longer block", nil, nil, block(data, 4096), 512, rw, []Range{{data, 512}}, nil},
		{"a shorter block", nil, nil, block(data, 511), 512, rw, nil, ErrSGLLength},
		{"no data", nil, nil, block(data, 512), 0, rw, nil, ErrTooLong},
		{"too much data", nil, nil, block(data, 1<<31), MaxTransfer + 1, rw, nil, ErrTooLong},
		{"a last segment", []nvme.SGLDescriptor{block(data, 100), block(data+200, 412)}, nil, lastSegment(list, 2), 512, rw, []Range{{data, 100}, {data + 200, 412}}, nil},
		{"adjacent blocks", []nvme.SGLDescriptor{block(data, 100), block(data+100, 412)}, nil, lastSegment(list, 2), 512, rw, []Range{{data, 512}}, nil},
		{"empty blocks", []nvme.SGLDescriptor{block(none, 0), block(data, 512), block(none, 0)}, nil, lastSegment(list, 3), 512, rw, []Range{{data, 512}}, nil},
		{
			"two segments", []nvme.SGLDescriptor{block(data, 100), lastSegment(more, 1)}, []nvme.SGLDescriptor{block(data+200, 412)},
			segment(list, 2), 512, rw, []Range{{data, 100}, {data + 200, 412}}, nil,
		},
		{
			"a segment that leads on and nothing else", []nvme.SGLDescriptor{segment(more, 1)}, []nvme.SGLDescriptor{block(data, 512)},
			segment(list, 1), 512, rw, []Range{{data, 512}}, nil,
		},
		{"a segment that does not lead on", []nvme.SGLDescriptor{block(data, 512)}, nil, segment(list, 1), 512, rw, []Range{{data, 512}}, nil},
		{"the same, too short", []nvme.SGLDescriptor{block(data, 500)}, nil, segment(list, 1), 512, rw, nil, ErrSGLLength},
		{"a list longer than the data", []nvme.SGLDescriptor{block(data, 512), bucket(7), segment(none, 1)}, nil, lastSegment(list, 3), 512, rw, []Range{{data, 512}}, nil},
		{"an empty segment", nil, nil, segment(list, 0), 512, rw, nil, ErrSGLSegment},
		{"half a descriptor", nil, nil, nvme.MakeSGL(nvme.SGLLastSegment, nvme.SGLAddress, list, 24), 512, rw, nil, ErrSGLSegment},
		{"a last segment that leads on", []nvme.SGLDescriptor{block(data, 100), lastSegment(more, 1)}, []nvme.SGLDescriptor{block(data, 412)}, lastSegment(list, 2), 512, rw, nil, ErrSGLSegment},
		{"a segment that goes on after it leads on", []nvme.SGLDescriptor{lastSegment(more, 1), block(data, 512)}, []nvme.SGLDescriptor{block(data, 512)}, segment(list, 2), 512, rw, nil, ErrSGLCount},
		{"a circle", []nvme.SGLDescriptor{block(data, 0), segment(list, 2)}, nil, segment(list, 2), 512, rw, nil, ErrSGLCount},
		{"a circle with data", []nvme.SGLDescriptor{block(data, 1), segment(list, 2)}, nil, segment(list, 2), 300, rw, nil, ErrSGLCount},
		{"a segment that is not there", nil, nil, segment(none, 1), 512, rw, nil, ErrFault},
		{"a segment of 4 GiB", nil, nil, lastSegment(none-PageSize, 1<<28-1), 512, rw, nil, ErrFault},
		{"a segment that cannot be read", nil, nil, segment((rwPages+roPages)*PageSize, 1), 512, rw, nil, ErrFault},
		{"a block at the last address", nil, nil, block(Nowhere, 1), 1, ProtRead, nil, ErrFault},
		{"keys", nil, nil, nvme.MakeSGL(nvme.SGLKeyedDataBlock, nvme.SGLAddress, data, 512), 512, rw, nil, ErrSGLType},
		{"keys in a list", []nvme.SGLDescriptor{nvme.MakeSGL(nvme.SGLKeyedDataBlock, nvme.SGLAddress, data, 512)}, nil, lastSegment(list, 1), 512, rw, nil, ErrSGLType},
		{"data of the transport", nil, nil, nvme.MakeSGL(nvme.SGLTransportDataBlock, nvme.SGLTransport, 0, 512), 512, rw, nil, ErrSGLType},
		{"an offset", nil, nil, nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLOffset, 0, 512), 512, rw, nil, ErrSGLType},
		{"a segment at an offset", nil, nil, nvme.MakeSGL(nvme.SGLLastSegment, nvme.SGLOffset, list, 16), 512, rw, nil, ErrSGLType},
		{"a bit bucket", []nvme.SGLDescriptor{block(data, 100), bucket(300), block(data+400, 112)}, nil, lastSegment(list, 3), 512, ProtWrite, []Range{{data, 100}, {Nowhere, 300}, {data + 400, 112}}, nil},
		{"a bit bucket to read from", []nvme.SGLDescriptor{block(data, 100), bucket(300), block(data+400, 412)}, nil, lastSegment(list, 3), 512, ProtRead, []Range{{data, 100}, {data + 400, 412}}, nil},
		{"bit buckets only", []nvme.SGLDescriptor{bucket(100), bucket(412)}, nil, lastSegment(list, 2), 512, ProtWrite, []Range{{Nowhere, 100}, {Nowhere, 412}}, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			g.put(list, x.list...)
			g.put(more, x.more...)
			got, err := g.view.SGL(x.first, x.n, x.prot)
			if !slices.Equal(got, x.want) || err != x.err {
				t.Errorf("got %v, %v; want %v, %v", got, err, x.want, x.err)
			}
			for _, prot := range []Prot{ProtRead, ProtWrite} {
				if err := g.compareSGL(x.first, x.n, prot); err != nil {
					t.Errorf("the model disagrees: %v", err)
				}
			}
		})
	}
}

// The most pieces an SGL can have, and one more.
func TestSGLRanges(t *testing.T) {
	g := newPRPGuest(t)
	var list []nvme.SGLDescriptor
	for range MaxSGLRanges {
		list = append(list, block(8*PageSize, 1)) // one piece again and again
	}
	g.put(PageSize, append(list, block(8*PageSize, 1))...)
	rs, err := g.view.SGL(lastSegment(PageSize, MaxSGLRanges+1), MaxSGLRanges, rw)
	if err != nil || len(rs) != MaxSGLRanges {
		t.Errorf("%d pieces: got %d, %v", MaxSGLRanges, len(rs), err)
	}
	if rs, err := g.view.SGL(lastSegment(PageSize, MaxSGLRanges+1), MaxSGLRanges+1, rw); err != ErrSGLCount {
		t.Errorf("one more: got %d, %v; want ErrSGLCount", len(rs), err)
	}
}

// What a bit bucket takes is memory of the view's own, and goes with it.
func TestBitBucket(t *testing.T) {
	g := newPRPGuest(t)
	g.put(PageSize, block(4*PageSize, 512), bucket(MaxTransfer-1024), block(5*PageSize, 512))
	rs, err := g.view.SGL(lastSegment(PageSize, 3), MaxTransfer, ProtWrite)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.view.Translate(nil, rs, ProtWrite); err != ErrTooLong {
		t.Fatalf("without room: %v", err)
	}
	segs, err := g.view.Translate(make([]Segment, 0, 3), rs, ProtWrite)
	if err != nil || len(segs) != 3 {
		t.Fatalf("%d segments, %v", len(segs), err)
	}
	for _, s := range segs {
		p := s.Bytes()
		p[0], p[len(p)-1] = 1, 2
	}
	if g.space.Holds(uintptr(segs[1].Base)) {
		t.Error("a bit bucket is guest memory")
	}
	g.view.Close()
	if g.view.sink != nil {
		t.Error("a view that is closed has memory for bit buckets")
	}
}

func FuzzSGL(f *testing.F) {
	seed := func(n uint64, first nvme.SGLDescriptor, list ...nvme.SGLDescriptor) {
		f.Add(first.Address, uint64(first.Length)|uint64(first.ID)<<56, n, true, slices.Clone(nvme.SliceBytes(list)))
	}
	seed(512, block(4*PageSize, 512))
	seed(4096, lastSegment(PageSize, 3), block(4*PageSize, 100), bucket(300), block(6*PageSize, 4096))
	seed(MaxTransfer, segment(PageSize, 3), block(4*PageSize, 4096), bucket(300), segment(2*PageSize, 256))
	seed(300, segment(0, 1), segment(0, 1))
	seed(512, segment(24*PageSize, 2), block(28*PageSize, 512))
	g := newPRPGuest(f)
	f.Fuzz(func(t *testing.T, lo, hi, n uint64, write bool, list []byte) {
		clear(g.mem)
		clear(g.far.mem)
		if len(list) > 0 {
			for i := 0; i < len(g.mem); i += len(list) {
				copy(g.mem[i:], list)
			}
			copy(g.far.mem, list)
		}
		prot := ProtRead
		if write {
			prot = ProtWrite
		}
		e := nvme.SQE{PRP1: lo, PRP2: hi}
		if err := g.compareSGL(e.SGL1(), n, prot); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSGLAllocations(t *testing.T) {
	g := newPRPGuest(t)
	var list []nvme.SGLDescriptor
	for i := range uint32(250) {
		list = append(list, block(uint64(3+i*7%20)*PageSize, 4096))
	}
	g.put(PageSize, append(list, lastSegment(PageSize, 2), bucket(8192))...)
	segs := make([]Segment, 0, MaxSegments)
	for _, first := range []nvme.SGLDescriptor{block(4*PageSize, 4096), segment(PageSize, 251), bucket(4096)} {
		n := uint64(4096)
		if first.Type() == nvme.SGLSegment {
			n = 252 * PageSize
		}
		walk := func() {
			rs, err := g.view.SGL(first, n, ProtWrite)
			if err == nil {
				_, err = g.view.Translate(segs, rs, ProtWrite)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.view.SGL(segment(1<<60, 1), n, ProtWrite); err != ErrFault {
				t.Fatal(err)
			}
		}
		walk() // memory for bit buckets is made once
		if allocs := testing.AllocsPerRun(100, walk); allocs != 0 {
			t.Errorf("%+v: %v allocations, want 0", first, allocs)
		}
	}
}

func BenchmarkSGL(b *testing.B) {
	for _, n := range []uint32{1, 32, 256} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			g := newPRPGuest(b)
			first := block(4*PageSize, 4096)
			if n > 1 {
				var list []nvme.SGLDescriptor
				for i := range n {
					list = append(list, block(uint64(4+i*7%20)*PageSize, 4096))
				}
				g.put(PageSize, list...)
				first = lastSegment(PageSize, n)
			}
			segs := make([]Segment, 0, MaxSegments)
			b.ReportAllocs()
			for b.Loop() {
				rs, err := g.view.SGL(first, uint64(n)*PageSize, ProtWrite)
				if err == nil {
					_, err = g.view.Translate(segs, rs, ProtWrite)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
