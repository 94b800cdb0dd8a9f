// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package volumetest tells whether a kind of volume keeps the contract of
// lib/volume: Suite runs every promise against it, on real pollers, with guest
// memory as a VM shares it. Client and Memory serve a kind's own tests too.
package volumetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// Subject is what Suite tests.
type Subject struct {
	// Make makes a new volume and returns how to open it with a Spec of this
	// shape: the first call opens it empty, each further one, after Close, as
	// it was left.
	Make func(t *testing.T) (open func(volume.Shape) volume.Volume)
	// Poller is what the queues run on.
	Poller poller.Config
	// MovesNoData is set for volumes that promise so.
	MovesNoData bool
}

// Suite runs every test against s, with blocks of 512 and of 4096 bytes.
func Suite(t *testing.T, s Subject) {
	for _, block := range []uint32{512, 4096} {
		t.Run(fmt.Sprintf("block=%d", block), func(t *testing.T) {
			for _, c := range []struct {
				name string
				run  func(*rig)
			}{
				{"info", (*rig).info},
				{"empty", (*rig).empty},
				{"layouts", (*rig).layouts},
				{"boundaries", (*rig).boundaries},
				{"zeroes", (*rig).zeroes},
				{"flush", (*rig).flush},
				{"storm", (*rig).storm},
				{"cancel", (*rig).cancel},
				{"fault", (*rig).fault},
				{"reopen", (*rig).reopen},
				{"pollers", (*rig).pollers},
				{"grow", (*rig).grow},
				{"shrink", (*rig).shrink},
				{"block", (*rig).blockChanges},
				{"allocations", (*rig).allocations},
			} {
				t.Run(c.name, func(t *testing.T) { c.run(newRig(t, s, block)) })
			}
		})
	}
}

const (
	volumeSize = 4 << 20
	memorySize = 16 << 20
)

// rig is a fresh volume, a client and guest memory for one test.
type rig struct {
	*testing.T
	s      Subject
	block  uint64
	open   func(volume.Shape) volume.Volume
	volume volume.Volume
	client *Client
	mem    *Memory
}

func newRig(t *testing.T, s Subject, block uint32) *rig {
	r := &rig{T: t, s: s, block: uint64(block), open: s.Make(t), mem: NewMemory(t, memorySize)}
	r.connect(volume.Shape{Size: volumeSize, Block: block})
	t.Cleanup(r.disconnect)
	return r
}

func (r *rig) connect(s volume.Shape) {
	r.Helper()
	r.volume = r.open(s)
	r.client = Connect(r, r.volume, r.s.Poller)
}

func (r *rig) disconnect() {
	r.Helper()
	r.client.Close()
	for range 2 { // Close can be called twice
		if err := r.volume.Close(); err != nil {
			r.Errorf("Close: %v", err)
		}
	}
}

// reconnect opens the volume again, with a Spec of this shape.
func (r *rig) reconnect(s volume.Shape) {
	r.Helper()
	r.disconnect()
	r.connect(s)
}

// want runs a request and compares its status.
func (r *rig) want(st nvme.Status, op volume.Op, flags volume.Flags, off uint64, segs []dma.Segment) {
	r.Helper()
	var n uint64
	for _, s := range segs {
		n += s.Len
	}
	req := volume.Request{Op: op, Flags: flags, Offset: off, Length: n, Segments: segs}
	if got := r.client.Do(r.Context(), &req); got != st {
		r.Fatalf("%s %d+%d: got %v, want %v", op, off, n, got, st)
	}
}

// span runs a request without data.
func (r *rig) span(op volume.Op, flags volume.Flags, off, n uint64) {
	r.Helper()
	req := volume.Request{Op: op, Flags: flags, Offset: off, Length: n}
	if st := r.client.Do(r.Context(), &req); st != nvme.StatusSuccess {
		r.Fatalf("%s %d+%d: got %v, want success", op, off, n, st)
	}
}

// write writes data to off.
func (r *rig) write(off uint64, data []byte) {
	r.Helper()
	copy(r.mem.Bytes(0, uint64(len(data))), data)
	r.want(nvme.StatusSuccess, volume.Write, 0, off, r.mem.Segments(0, uint64(len(data))))
}

// check reads what should be data at off.
func (r *rig) check(off uint64, data []byte) {
	r.Helper()
	buf := r.mem.Bytes(0, uint64(len(data)))
	fill(buf, 0xee)
	r.want(nvme.StatusSuccess, volume.Read, 0, off, r.mem.Segments(0, uint64(len(data))))
	r.same(fmt.Sprintf("read %d+%d", off, len(data)), buf, data)
}

// same compares data that was read.
func (r *rig) same(what string, got, want []byte) {
	r.Helper()
	if r.s.MovesNoData || bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if got[i] != want[i] {
			r.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// pattern returns n bytes that differ from block to block and seed to seed.
func pattern(seed, n uint64) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rnd.Read(b)
	return b
}

func (r *rig) info() { r.shaped(volume.Shape{Size: volumeSize, Block: uint32(r.block)}) }

// shaped checks what the volume says of itself, which is of this shape.
func (r *rig) shaped(want volume.Shape) {
	r.Helper()
	i := r.volume.Info()
	if i.Shape() != want {
		r.Fatalf("shape %v, want %v", i.Shape(), want)
	}
	for _, x := range []struct {
		name string
		got  uint32
	}{{"WriteGranularity", i.WriteGranularity}, {"DiscardGranularity", i.DiscardGranularity}, {"AtomicUnit", i.AtomicUnit}} {
		if x.got < i.Block || x.got%i.Block != 0 {
			r.Errorf("%s is %d: not a multiple of the block %d", x.name, x.got, i.Block)
		}
	}
	if r.volume.Info() != i {
		r.Error("Info is not the same snapshot twice")
	}
}

// empty: a new volume reads zero.
func (r *rig) empty() {
	r.check(0, make([]byte, volumeSize))
}

// layouts: data of every length and shape of memory goes there and back, and
// nothing around it changes, neither blocks nor memory.
func (r *rig) layouts() {
	const at = 64 << 10 // where the range is, in the volume and in memory
	for i, l := range layouts(r.block) {
		var n uint64
		for _, x := range l.lens {
			n += x
		}
		around := pattern(1, n+2*r.block)
		r.write(at-r.block, around)

		data := pattern(uint64(i)+2, n)
		addr := at + l.skew
		segs := r.mem.Cut(addr, l.lens...)
		copy(r.mem.Bytes(addr, n), data)
		r.want(nvme.StatusSuccess, volume.Write, 0, at, segs)
		copy(around[r.block:], data)
		r.check(at-r.block, around)

		all := r.mem.Bytes(addr-64, n+128)
		fill(all, 0xaa)
		want := bytes.Clone(all)
		copy(want[64:], data)
		r.want(nvme.StatusSuccess, volume.Read, 0, at, segs)
		r.same(l.String(), all, want)
	}
}

// layout is a shape of memory: where it begins in a page, and its pieces.
type layout struct {
	skew uint64
	lens []uint64
}

func (l layout) String() string {
	return fmt.Sprintf("memory at page+%d in %d pieces of %d..", l.skew, len(l.lens), l.lens[0])
}

// layouts returns shapes whose lengths are whole blocks and whose pieces begin
// at multiples of 4, as PRPs and SGLs allow.
func layouts(block uint64) []layout {
	repeat := func(n int, lens ...uint64) (all []uint64) {
		for range n {
			all = append(all, lens...)
		}
		return all
	}
	const page = 4096
	return []layout{
		{0, []uint64{block}},
		{0, []uint64{16 * page}},
		{0, []uint64{1 << 20}},
		{0, repeat(256, page)},
		{block % page, []uint64{block}},
		{512, []uint64{8 * page}},
		{4, []uint64{block}},
		{page - 4, []uint64{block}},
		{12, []uint64{page - 12, 2 * page, 12}},
		{0, []uint64{4, block - 4}},
		{0, repeat(64, block-4, 4)},
		{4, repeat(int(block/64), 4, 60)},
		{4, []uint64{1 << 20}},
		{2048, append(append([]uint64{2048}, repeat(255, page)...), 2048)},
		// More pieces than the kernel takes at once.
		{0, repeat(int(8*block/4), 4)},
	}
}

// boundaries: the first block, the last, and all of them in one request.
func (r *rig) boundaries() {
	whole := pattern(7, volumeSize)
	r.write(0, whole)
	r.check(0, whole)
	for _, off := range []uint64{0, r.block, volumeSize - 2*r.block, volumeSize - r.block} {
		data := pattern(off+8, r.block)
		r.write(off, data)
		copy(whole[off:], data)
		r.check(off, data)
	}
	r.check(0, whole)
	r.span(volume.WriteZeroes, 0, volumeSize-r.block, r.block)
	clear(whole[volumeSize-r.block:])
	r.check(0, whole)
	r.span(volume.Discard, 0, 0, volumeSize)
	r.check(volumeSize-r.block, make([]byte, r.block))
}

// zeroes: Write Zeroes reads zero, with and without Deallocate and FUA, and
// Discard zero or as before; what is beside is not touched.
func (r *rig) zeroes() {
	for i, x := range []struct {
		op    volume.Op
		flags volume.Flags
	}{
		{volume.WriteZeroes, 0},
		{volume.WriteZeroes, volume.Deallocate},
		{volume.WriteZeroes, volume.FUA},
		{volume.WriteZeroes, volume.Deallocate | volume.FUA},
		{volume.Discard, 0},
	} {
		whole := pattern(uint64(i)+20, volumeSize)
		r.write(0, whole)
		for _, span := range [][2]uint64{
			{0, r.block},
			{r.block, 3 * r.block},
			{64 << 10, 4096},
			{128<<10 + r.block, 64 << 10},
			{1<<20 - r.block, 2 << 20},
			{volumeSize - r.block, r.block},
		} {
			off, n := span[0], span[1]
			r.span(x.op, x.flags, off, n)
			got := r.mem.Bytes(0, n)
			fill(got, 0xee)
			r.want(nvme.StatusSuccess, volume.Read, 0, off, r.mem.Segments(0, n))
			for b := uint64(0); b < n; b += r.block {
				was := whole[off+b:][:r.block]
				if x.op == volume.WriteZeroes || !bytes.Equal(got[b:b+r.block], was) {
					clear(was)
				}
			}
			r.same(fmt.Sprintf("%s %#x %d+%d", x.op, x.flags, off, n), got, whole[off:off+n])
		}
		r.check(0, whole)
	}
}

// flush: Flush and FUA succeed, and change no data.
func (r *rig) flush() {
	data := pattern(30, 256<<10)
	r.span(volume.Flush, 0, 0, 0)
	r.write(0, data)
	r.span(volume.Flush, 0, 0, 0)
	r.check(0, data)
	data = pattern(31, 256<<10)
	copy(r.mem.Bytes(0, 256<<10), data)
	r.want(nvme.StatusSuccess, volume.Write, volume.FUA, 4096, r.mem.Segments(0, 256<<10))
	r.check(4096, data)
	// Memory that must be copied takes another way.
	copy(r.mem.Bytes(4, 512<<10), pattern(32, 512<<10))
	r.want(nvme.StatusSuccess, volume.Write, volume.FUA, 4096, r.mem.Segments(4, 512<<10))
	r.check(4096, pattern(32, 512<<10))
}

// cancel: every request ends once, as if nothing had been wished or aborted,
// and the volume serves on.
func (r *rig) cancel() {
	const n = 512
	reqs := make([]volume.Request, n)
	for i := range reqs {
		off := uint64(i) * r.block % volumeSize
		req := volume.Request{Op: []volume.Op{volume.Read, volume.Write, volume.Write, volume.WriteZeroes, volume.Flush}[i%5]}
		if req.Op != volume.Flush {
			req.Offset, req.Length = off, r.block
		}
		if req.Op == volume.Read || req.Op == volume.Write {
			req.Segments = r.mem.Segments(uint64(i)*8192+uint64(i%2)*4, r.block)
		}
		reqs[i] = req
	}
	r.client.Batch(r, reqs, true)
	for i := range reqs {
		if st := reqs[i].Status; st != nvme.StatusSuccess && st != nvme.StatusAbortRequested {
			r.Errorf("%s cancelled: %v, want success or %v", reqs[i].Op, st, nvme.StatusAbortRequested)
		}
	}
	// A clear that takes long, and one that has ended long ago.
	long := []volume.Request{{Op: volume.WriteZeroes, Length: volumeSize}, {Op: volume.Discard, Length: volumeSize}}
	r.client.Batch(r, long, true)
	r.client.On(func() { r.client.Queue.Cancel(&long[0]) })
	data := pattern(40, volumeSize)
	r.write(0, data)
	r.check(0, data)
}

// fault: memory that the guest has taken away costs the guest its request.
func (r *rig) fault() {
	lost := NewMemory(r, 1<<20)
	g := &guest{mem: lost}
	r.client.On(func() { r.client.Poller.Add(g) })
	lost.TakeAway(r)
	st := nvme.StatusDataTransferError
	if r.s.MovesNoData {
		st = nvme.StatusSuccess
	}
	for _, op := range []volume.Op{volume.Read, volume.Write} {
		for _, segs := range [][]dma.Segment{
			lost.Segments(0, r.block),
			lost.Segments(4, r.block),
			lost.Segments(0, 1<<20),
			append(r.mem.Segments(0, 64<<10), lost.Segments(0, 64<<10)...),
			append(r.mem.Segments(4, r.block), lost.Segments(4, r.block)...),
		} {
			r.want(st, op, 0, 0, segs)
		}
	}
	data := pattern(50, 64<<10)
	r.write(0, data)
	r.check(0, data)
	r.client.On(func() { r.client.Poller.Remove(g) })
}

// reopen: what was written is there after Close.
func (r *rig) reopen() {
	whole := pattern(60, volumeSize)
	r.write(0, whole)
	r.span(volume.WriteZeroes, 0, 1<<20, 128<<10)
	clear(whole[1<<20:][:128<<10])
	r.span(volume.Flush, 0, 0, 0)
	r.reconnect(r.volume.Info().Shape())
	r.check(0, whole)
	r.info()
}

// pollers: what one poller's queue has written, another's reads.
func (r *rig) pollers() {
	other := Connect(r, r.volume, r.s.Poller)
	defer other.Close()
	for i := range uint64(8) {
		r.write(i<<16, pattern(70+i, 64<<10))
		r.client, other = other, r.client
		r.check(i<<16, pattern(70+i, 64<<10))
	}
}
