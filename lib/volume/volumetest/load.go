// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volumetest

import (
	"math/rand/v2"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// stormDepth is how many requests storm has in flight.
const stormDepth = 512

// storm: hundreds of random requests in flight, none of them overlapping; each
// read is compared with a model, and the whole volume at the end.
func (r *rig) storm() {
	s := &storm{
		rig:   r,
		rnd:   rand.New(rand.NewPCG(1, r.block)),
		model: make([]byte, volumeSize),
		gone:  make([]bool, volumeSize/r.block),
		busy:  make([]bool, volumeSize/r.block),
		left:  2500,
		done:  make(chan struct{}),
	}
	for i := range s.slots {
		s.slots[i] = &slot{s: s, addr: uint64(i) * (memorySize / stormDepth)}
		s.free = append(s.free, s.slots[i])
	}
	r.client.On(s.fill)
	<-s.done
	r.client.On(func() {
		if s.most < stormDepth/2 {
			r.Errorf("only %d requests were in flight: nothing was tested", s.most)
		}
	})
	if r.Failed() {
		return
	}
	// Blocks given up are zero or as before: take what is there, once.
	buf := r.mem.Bytes(0, volumeSize)
	r.want(nvme.StatusSuccess, volume.Read, 0, 0, r.mem.Segments(0, volumeSize))
	s.compare(buf, 0)
	r.same("at the end", buf, s.model)
}

type storm struct {
	*rig
	rnd   *rand.Rand
	model []byte
	gone  []bool // the block was discarded: zero or as in model
	busy  []bool // a request for the block is in flight
	slots [stormDepth]*slot
	free  []*slot
	left  int // requests to submit
	most  int // in flight at once
	done  chan struct{}
}

// slot is one request in flight with memory of its own.
type slot struct {
	s    *storm
	addr uint64 // of memorySize/stormDepth bytes
	data []byte
	req  volume.Request
}

// fill submits until every slot is in flight.
func (s *storm) fill() {
	for tries := 0; len(s.free) > 0 && s.left > 0 && tries < 4*stormDepth; tries++ {
		x := s.free[len(s.free)-1]
		if x.choose() {
			s.free = s.free[:len(s.free)-1]
			s.left--
			s.client.Queue.Submit(&x.req)
		}
	}
	s.most = max(s.most, stormDepth-len(s.free))
	if s.left == 0 && len(s.free) == stormDepth {
		close(s.done)
	}
}

// choose makes up a request for blocks that no other request is for.
func (x *slot) choose() bool {
	s := x.s
	blocks := uint64(len(s.busy))
	first := s.rnd.Uint64N(blocks)
	n := min(1+s.rnd.Uint64N(max(8192/s.block, 2)), blocks-first)
	for b := first; b < first+n; b++ {
		if s.busy[b] {
			return false
		}
	}
	off, size := first*s.block, n*s.block
	x.req = volume.Request{Owner: x, Offset: off, Length: size}
	switch k := s.rnd.IntN(100); {
	case k < 45:
		x.req.Op = volume.Read
	case k < 85:
		x.req.Op = volume.Write
	case k < 92:
		x.req.Op = volume.WriteZeroes
	case k < 97:
		x.req.Op = volume.Discard
	default:
		x.req.Op, x.req.Offset, x.req.Length = volume.Flush, 0, 0
		n = 0
	}
	if s.rnd.IntN(40) == 0 {
		x.req.Flags = volume.FUA
	}
	for b := first; b < first+n; b++ {
		s.busy[b] = true
	}
	switch x.req.Op {
	case volume.Read, volume.Write:
		addr := x.addr + 4*s.rnd.Uint64N(8)
		x.data = s.mem.Bytes(addr, size)
		x.req.Segments = x.cut(addr, size)
		if x.req.Op == volume.Read {
			fill(x.data, 0xee)
		} else {
			copy(x.data, pattern(s.rnd.Uint64(), size))
			copy(s.model[off:], x.data)
			s.give(first, n, false)
		}
	case volume.WriteZeroes:
		clear(s.model[off : off+size])
		s.give(first, n, false)
	case volume.Discard:
		s.give(first, n, true)
	}
	return true
}

// cut returns memory in one piece or in several.
func (x *slot) cut(addr, n uint64) []dma.Segment {
	if x.s.rnd.IntN(2) == 0 {
		return x.s.mem.Segments(addr, n)
	}
	a := 4 + 4*x.s.rnd.Uint64N(n/8)
	b := 4 * (1 + x.s.rnd.Uint64N((n-a)/4))
	if a+b == n {
		return x.s.mem.Cut(addr, a, b)
	}
	return x.s.mem.Cut(addr, a, b, n-a-b)
}

func (s *storm) give(first, n uint64, gone bool) {
	for b := first; b < first+n; b++ {
		s.gone[b] = gone
	}
}

// Completed implements volume.Owner.
func (x *slot) Completed(r *volume.Request) {
	s := x.s
	if r.Status != nvme.StatusSuccess {
		s.Errorf("%s %d+%d: %v", r.Op, r.Offset, r.Length, r.Status)
	}
	for b := r.Offset / s.block; b < (r.Offset+r.Length)/s.block; b++ {
		if !s.busy[b] {
			s.Errorf("%s %d+%d completed twice", r.Op, r.Offset, r.Length)
		}
		s.busy[b] = false
	}
	if r.Op == volume.Read {
		s.compare(x.data, r.Offset)
	}
	s.free = append(s.free, x)
	s.fill()
}

// compare compares blocks that were read with the model. Where a block was
// given up it notes what is there: it stays so.
func (s *storm) compare(got []byte, off uint64) {
	if s.s.MovesNoData {
		return
	}
	for i := uint64(0); i < uint64(len(got)); i += s.block {
		b, want := (off+i)/s.block, s.model[off+i:][:s.block]
		have := got[i : i+s.block]
		if string(have) == string(want) {
			continue
		}
		if s.gone[b] && allZero(have) {
			clear(want)
			s.gone[b] = false
			continue
		}
		s.Errorf("block %d is not as written (it begins with %x, want %x)", b, have[:8], want[:8])
	}
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// allocations: a request allocates nothing. What Go's runtime allocates for
// threads that it starts is counted too, so one run without any is enough.
func (r *rig) allocations() {
	for _, op := range []volume.Op{volume.Read, volume.Write, volume.Flush, volume.WriteZeroes} {
		const count = 100
		l := newLoad(r.client, r.mem, op, 4096, 8)
		if op == volume.Flush {
			l.size = 0
		}
		run := func() { l.run(count) }
		least := testing.AllocsPerRun(1, run)
		for tries := 0; tries < 10 && least > 0; tries++ {
			least = min(least, testing.AllocsPerRun(1, run))
		}
		if least > 0 {
			r.Errorf("%v allocations in %d %s requests, want 0", least, count, op)
		}
		if l.status != nvme.StatusSuccess {
			r.Errorf("%s: %v", op, l.status)
		}
	}
}

// load runs requests of one kind, depth at a time, without allocating.
type load struct {
	c       *Client
	op      volume.Op
	size    uint64
	blocks  uint64 // of size, in the volume
	reqs    []volume.Request
	next    uint64
	left    int // to submit
	running int
	status  nvme.Status // the last failure
	begin   func()
	done    chan struct{}
}

func newLoad(c *Client, mem *Memory, op volume.Op, size uint64, depth int) *load {
	l := &load{c: c, op: op, size: size, blocks: volumeSize / size, reqs: make([]volume.Request, depth), done: make(chan struct{})}
	for i := range l.reqs {
		l.reqs[i] = volume.Request{Op: op, Owner: l, Segments: mem.Segments(uint64(i)*size, size)}
	}
	l.begin = l.submitAll
	return l
}

// run runs n requests.
func (l *load) run(n int) {
	l.left = n
	if err := l.c.Poller.Post(l.begin); err != nil {
		panic(err)
	}
	<-l.done
}

func (l *load) submitAll() {
	for i := range l.reqs {
		l.submit(&l.reqs[i])
	}
}

func (l *load) submit(r *volume.Request) {
	if l.left == 0 {
		return
	}
	l.left--
	l.running++
	r.Length = l.size
	r.Offset = 0
	if l.size > 0 {
		r.Offset = l.next % l.blocks * l.size
		l.next += 7 // no order that read-ahead would know
	}
	l.c.Queue.Submit(r)
}

// Completed implements volume.Owner.
func (l *load) Completed(r *volume.Request) {
	if r.Status != nvme.StatusSuccess {
		l.status = r.Status
	}
	l.running--
	l.submit(r)
	if l.running == 0 && l.left == 0 {
		l.done <- struct{}{}
	}
}

// Bench measures requests of size bytes, depth in flight, on a volume of 4 MiB
// or more.
func Bench(b *testing.B, v volume.Volume, cfg poller.Config, op volume.Op, size uint64, depth int) {
	c := Connect(b, v, cfg)
	defer c.Close()
	mem := NewMemory(b, size*uint64(depth)+dma.PageSize)
	newLoad(c, mem, volume.Write, size, depth).run(int(volumeSize / size)) // no holes
	l := newLoad(c, mem, op, size, depth)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	l.run(b.N)
	b.StopTimer()
	if l.status != nvme.StatusSuccess {
		b.Fatal(l.status)
	}
}
