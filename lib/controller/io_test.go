// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// rwSQE is a command on a range of blocks.
func rwSQE(op nvme.IOOpcode, nsid uint32, rw nvme.RW) nvme.SQE {
	e := nvme.SQE{Opcode: uint8(op), NSID: nsid, CID: 5}
	rw.Put(&e)
	return e
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)
	}
	return p
}

func TestReadWrite(t *testing.T) {
	for _, block := range []uint32{512, 4096} {
		m := newMemory(4<<20, block)
		h := connect(t, newSubsystem(t, m), nil)
		most := uint16(dma.MaxTransfer/block - 1)
		for _, rw := range []nvme.RW{{}, {SLBA: 3, NLB: 8}, {SLBA: 1, NLB: most}, {SLBA: 4<<20/uint64(block) - 1}} {
			for _, late := range []bool{false, true} {
				want := pattern(int(rw.Blocks()*block), byte(rw.SLBA)+1)
				w := newCommand(t, h.p, rwSQE(nvme.IOWrite, 1, rw))
				w.late, w.out, w.pieces = late, want, []int{100, 4096}
				h.start(false, w).wait()
				r := newCommand(t, h.p, rwSQE(nvme.IORead, 1, rw))
				r.late, r.pieces = late, []int{4096, 1 << 20}
				h.start(false, r).wait()
				w.data() // checks its guards
				if w.Status != 0 || r.Status != 0 || !bytes.Equal(r.data(), want) {
					t.Errorf("block %d, %+v, late %v: write %v, read %v, or data differs", block, rw, late, w.Status, r.Status)
				}
				off := rw.SLBA * uint64(block)
				if !bytes.Equal(m.bytes[off:off+uint64(len(want))], want) {
					t.Errorf("block %d, %+v: it is not where it belongs", block, rw)
				}
			}
		}
	}
}

func TestIOErrors(t *testing.T) {
	m, ro := newMemory(4<<20, 512), newMemory(4096, 512)
	ro.info.ReadOnly = true
	protected := testNamespace(5, newMemory(4096, 512))
	protected.ReadOnly = true
	sub := newSubsystem(t, m, ro)
	if err := sub.Add(protected); err != nil {
		t.Fatal(err)
	}
	h := connect(t, sub, nil)
	const (
		lba   = nvme.StatusLBAOutOfRange | nvme.StatusDNR
		field = nvme.StatusInvalidField | nvme.StatusDNR
		ns    = nvme.StatusInvalidNamespaceOrFormat | nvme.StatusDNR
		wp    = nvme.StatusNamespaceWriteProtected | nvme.StatusDNR
		op    = nvme.StatusInvalidOpcode | nvme.StatusDNR
	)
	fused := func(e nvme.SQE, f nvme.Fuse) nvme.SQE { e.SetFuse(f); return e }
	dsm := func(nsid uint32, d nvme.DatasetManagement) nvme.SQE { e := nvme.SQE{NSID: nsid}; d.Put(&e); return e }
	for name, tt := range map[string]struct {
		sqe  nvme.SQE
		want nvme.Status
	}{
		"read past the end":          {rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 8192}), lba},
		"read across the end":        {rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 8191, NLB: 1}), lba},
		"read far away":              {rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 1<<64 - 1, NLB: 0xffff}), lba},
		"read far away, shifted":     {rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 1 << 55}), lba},
		"write past the end":         {rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 8192}), lba},
		"zero past the end":          {rwSQE(nvme.IOWriteZeroes, 1, nvme.RW{SLBA: 8191, NLB: 1}), lba},
		"read more than MDTS":        {rwSQE(nvme.IORead, 1, nvme.RW{NLB: 2048}), field},
		"write more than MDTS":       {rwSQE(nvme.IOWrite, 1, nvme.RW{NLB: 2048}), field},
		"read with PI":               {rwSQE(nvme.IORead, 1, nvme.RW{PRINFO: 1}), field},
		"write with PI":              {rwSQE(nvme.IOWrite, 1, nvme.RW{PRINFO: 8}), field},
		"zero with PI":               {rwSQE(nvme.IOWriteZeroes, 1, nvme.RW{PRINFO: 8}), field},
		"write with a directive":     {rwSQE(nvme.IOWrite, 1, nvme.RW{DTYPE: 1}), field},
		"write of a fused pair":      {fused(rwSQE(nvme.IOWrite, 1, nvme.RW{}), nvme.FuseSecond), nvme.StatusAbortedMissingFused},
		"read of a fused pair":       {fused(rwSQE(nvme.IORead, 1, nvme.RW{}), nvme.FuseFirst), field},
		"NSID 0":                     {rwSQE(nvme.IORead, 0, nvme.RW{}), ns},
		"inactive NSID":              {rwSQE(nvme.IORead, 3, nvme.RW{}), field},
		"inactive NSID, the highest": {rwSQE(nvme.IORead, 1024, nvme.RW{}), field},
		"invalid NSID":               {rwSQE(nvme.IORead, 1025, nvme.RW{}), ns},
		"read of all namespaces":     {rwSQE(nvme.IORead, nvme.NSIDBroadcast, nvme.RW{}), ns},
		"flush of no namespace":      {rwSQE(nvme.IOFlush, 0, nvme.RW{}), ns},
		"write to a read-only one":   {rwSQE(nvme.IOWrite, 2, nvme.RW{}), wp},
		"zero a read-only one":       {rwSQE(nvme.IOWriteZeroes, 2, nvme.RW{}), wp},
		"copy to a read-only one":    {nvme.SQE{Opcode: uint8(nvme.IOCopy), NSID: 2}, wp},
		"write to a protected one":   {rwSQE(nvme.IOWrite, 5, nvme.RW{}), wp},
		"zero a protected one":       {rwSQE(nvme.IOWriteZeroes, 5, nvme.RW{}), wp},
		"discard a protected one":    {dsm(5, nvme.DatasetManagement{AD: true}), wp},
		"copy to a protected one":    {nvme.SQE{Opcode: uint8(nvme.IOCopy), NSID: 5}, wp},
		"read of a protected one":    {rwSQE(nvme.IORead, 5, nvme.RW{}), 0},
		"compare of a read-only one": {rwSQE(nvme.IOCompare, 2, nvme.RW{}), 0},
		"verify of a read-only one":  {rwSQE(nvme.IOVerify, 2, nvme.RW{}), 0},
		"flush of a protected one":   {rwSQE(nvme.IOFlush, 5, nvme.RW{}), 0},
		"discard a read-only one":    {dsm(2, nvme.DatasetManagement{AD: true}), wp},
		"write uncorrectable":        {rwSQE(nvme.IOWriteUncorrectable, 1, nvme.RW{}), op},
		"compare past the end":       {rwSQE(nvme.IOCompare, 1, nvme.RW{SLBA: 8191, NLB: 1}), lba},
		"compare more than MDTS":     {rwSQE(nvme.IOCompare, 1, nvme.RW{NLB: 2048}), field},
		"compare with PI":            {rwSQE(nvme.IOCompare, 1, nvme.RW{PRINFO: 1}), field},
		"verify past the end":        {rwSQE(nvme.IOVerify, 1, nvme.RW{SLBA: 8192}), lba},
		"verify with PI":             {rwSQE(nvme.IOVerify, 1, nvme.RW{PRINFO: 1}), field},
		"compare alone, but fused":   {fused(rwSQE(nvme.IOCompare, 1, nvme.RW{}), nvme.FuseFirst), nvme.StatusAbortedMissingFused},
		"reserved fuse":              {fused(rwSQE(nvme.IORead, 1, nvme.RW{}), 3), field},
		"reserved PSDT":              {func() nvme.SQE { e := rwSQE(nvme.IORead, 1, nvme.RW{}); e.SetPSDT(3); return e }(), field},
		"vendor specific":            {rwSQE(nvme.IOVendorSpecific, 1, nvme.RW{}), op},
		"read of a read-only one":    {rwSQE(nvme.IORead, 2, nvme.RW{}), 0},
		"flush of a read-only one":   {rwSQE(nvme.IOFlush, 2, nvme.RW{}), 0},
	} {
		m.log, ro.log = nil, nil
		if cmd := h.run(false, tt.sqe); cmd.Status != tt.want {
			t.Errorf("%s: %v (%#x), want %v", name, cmd.Status, uint16(cmd.Status), tt.want)
		}
		if got := len(m.log) + len(ro.log); tt.want != 0 && got != 0 {
			t.Errorf("%s: %d requests reached a volume", name, got)
		}
	}
	big := newMemory(16<<20, 512)
	if err := h.sub.Add(testNamespace(4, big)); err != nil {
		t.Fatal(err)
	}
	for nlb, want := range map[uint16]nvme.Status{16383: 0, 16384: field} { // 8 MiB, and a block more
		if cmd := h.run(false, rwSQE(nvme.IOWriteZeroes, 4, nvme.RW{NLB: nlb})); cmd.Status != want {
			t.Errorf("zero %d blocks: %v, want %v", uint32(nlb)+1, cmd.Status, want)
		}
	}
}

// What the volume and the transport say is the command's status.
func TestIOStatus(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	for op, x := range map[volume.Op]nvme.IOOpcode{
		volume.Read: nvme.IORead, volume.Write: nvme.IOWrite, volume.Flush: nvme.IOFlush, volume.WriteZeroes: nvme.IOWriteZeroes,
	} {
		m.fail = map[volume.Op]nvme.Status{op: nvme.StatusWriteFault}
		if cmd := h.run(false, rwSQE(x, 1, nvme.RW{})); cmd.Status != nvme.StatusWriteFault {
			t.Errorf("%v: %v, want %v", x, cmd.Status, nvme.StatusWriteFault)
		}
	}
	if got := h.smart().MediaErrors.Lo; got != 4 {
		t.Errorf("%d media errors, want 4", got)
	}
	m.log = nil
	for _, late := range []bool{false, true} {
		cmd := newCommand(t, h.p, rwSQE(nvme.IOWrite, 1, nvme.RW{}))
		cmd.late, cmd.refuse = late, nvme.StatusDataTransferError
		if h.start(false, cmd).wait(); cmd.Status != nvme.StatusDataTransferError || len(m.log) != 0 {
			t.Errorf("write without data, late %v: %v, %d requests", late, cmd.Status, len(m.log))
		}
	}
}

func TestFlags(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	for _, tt := range []struct {
		op   nvme.IOOpcode
		rw   nvme.RW
		want volume.Flags
	}{
		{nvme.IOWrite, nvme.RW{}, 0},
		{nvme.IOWrite, nvme.RW{FUA: true}, volume.FUA},
		{nvme.IOWriteZeroes, nvme.RW{}, 0},
		{nvme.IOWriteZeroes, nvme.RW{FUA: true}, volume.FUA},
		{nvme.IOWriteZeroes, nvme.RW{DEAC: true}, volume.Deallocate},
		{nvme.IORead, nvme.RW{LR: true, DSM: 0xff}, 0},
	} {
		m.log = nil
		if cmd := h.run(false, rwSQE(tt.op, 1, tt.rw)); cmd.Status != 0 || len(m.log) != 1 || m.log[0].Flags != tt.want {
			t.Errorf("%v %+v: %v, requests %+v, want flags %#x", tt.op, tt.rw, cmd.Status, m.log, tt.want)
		}
	}
}

// A read with Force Unit Access finds on the medium what it reads.
func TestReadFUA(t *testing.T) {
	m, through := newMemory(1<<20, 512), newMemory(1<<20, 512)
	through.info.VolatileCache = false
	h := connect(t, newSubsystem(t, m, through), nil)
	for _, op := range []nvme.IOOpcode{nvme.IORead, nvme.IOCompare, nvme.IOVerify} {
		m.log, through.log = nil, nil
		e := rwSQE(op, 1, nvme.RW{FUA: true, SLBA: 4})
		if st := h.run(false, e).Status; st != 0 || len(m.log) != 2 || m.log[0].Op != volume.Flush || m.log[1].Op != volume.Read || m.log[1].Offset != 2048 {
			t.Errorf("%v: %v, requests %+v", op, st, m.log)
		}
		e.NSID = 2
		if st := h.run(false, e).Status; st != 0 || len(through.log) != 1 {
			t.Errorf("%v without a cache: %v, requests %+v", op, st, through.log)
		}
		m.log, m.fail[volume.Flush] = nil, nvme.StatusWriteFault
		e.NSID = 1
		if st := h.run(false, e).Status; st != nvme.StatusWriteFault || len(m.log) != 1 {
			t.Errorf("%v: the flush fails: %v after %d requests", op, st, len(m.log))
		}
		delete(m.fail, volume.Flush)
	}
}

func TestFlushAllNamespaces(t *testing.T) {
	var volumes []volume.Volume
	var ms []*memory
	for range 4 {
		m := newMemory(4096, 512)
		ms, volumes = append(ms, m), append(volumes, m)
	}
	h := connect(t, newSubsystem(t, volumes...), nil)
	ms[1].fail[volume.Flush] = nvme.StatusWriteFault
	ms[2].fail[volume.Flush] = nvme.StatusInternalError
	h.sub.Remove(1, func() {})
	cmd := h.run(false, rwSQE(nvme.IOFlush, nvme.NSIDBroadcast, nvme.RW{}))
	if cmd.Status != nvme.StatusWriteFault {
		t.Errorf("status %v, want the first error", cmd.Status)
	}
	for i, want := range []int{0, 1, 1, 1} {
		if got := len(ms[i].log); got != want {
			t.Errorf("volume %d: %d flushes, want %d", i, got, want)
		}
	}
	empty := connect(t, newSubsystem(t), nil)
	if cmd := empty.run(false, rwSQE(nvme.IOFlush, nvme.NSIDBroadcast, nvme.RW{})); cmd.Status != 0 {
		t.Errorf("no namespace: %v", cmd.Status)
	}
}

func TestDatasetManagement(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	deallocate := func(ranges []nvme.DSMRange, nr int, pieces ...int) *hostCommand {
		t.Helper()
		e := nvme.SQE{NSID: 1}
		nvme.DatasetManagement{NR: uint8(nr - 1), AD: true}.Put(&e)
		m.log = nil
		cmd := newCommand(t, h.p, e)
		cmd.out = nvme.SliceBytes(ranges)
		if len(pieces) > 0 {
			cmd.pieces = pieces
		}
		h.start(false, cmd).wait()
		return cmd
	}
	ranges := []nvme.DSMRange{{SLBA: 1, NLB: 2}, {SLBA: 2048, NLB: 0}, {SLBA: 100, NLB: 8}, {SLBA: 2047, NLB: 1}}
	if cmd := deallocate(ranges, len(ranges), 7); cmd.Status != 0 {
		t.Fatal(cmd.Status)
	}
	want := []volume.Request{{Offset: 512, Length: 1024}, {Offset: 51200, Length: 4096}, {Offset: 2047 * 512, Length: 512}}
	if len(m.log) != len(want) {
		t.Fatalf("%d requests, want %d", len(m.log), len(want))
	}
	for i, w := range want {
		if r := m.log[i]; r.Op != volume.Discard || r.Offset != w.Offset || r.Length != w.Length {
			t.Errorf("request %d: %v %d+%d, want %d+%d", i, r.Op, r.Offset, r.Length, w.Offset, w.Length)
		}
	}
	// 256 ranges; those not given are empty.
	if cmd := deallocate(ranges[:1], 256); cmd.Status != 0 || len(m.log) != 1 || cmd.asked != 4096 {
		t.Errorf("256 ranges: %v, %d requests, %d bytes", cmd.Status, len(m.log), cmd.asked)
	}
	bad := []nvme.DSMRange{{SLBA: 1, NLB: 1}, {SLBA: 2048, NLB: 1}, {SLBA: 2, NLB: 1}}
	if cmd := deallocate(bad, 3); cmd.Status != nvme.StatusLBAOutOfRange|nvme.StatusDNR || len(m.log) != 1 {
		t.Errorf("a bad range: %v after %d requests", cmd.Status, len(m.log))
	}
	m.fail[volume.Discard] = nvme.StatusInternalError
	if cmd := deallocate(ranges, len(ranges)); cmd.Status != nvme.StatusInternalError || len(m.log) != 1 {
		t.Errorf("a failing volume: %v after %d requests", cmd.Status, len(m.log))
	}
	e := nvme.SQE{NSID: 1}
	nvme.DatasetManagement{NR: 3, IDR: true, IDW: true}.Put(&e)
	m.log = nil
	if cmd := h.run(false, e); cmd.Status != 0 || cmd.asked != 0 || len(m.log) != 0 {
		t.Errorf("hints: %v, %d bytes, %d requests", cmd.Status, cmd.asked, len(m.log))
	}
}

func TestShutdown(t *testing.T) {
	a, b := newMemory(4096, 512), newMemory(4096, 512)
	h := connect(t, newSubsystem(t, a, b), nil)
	a.fail[volume.Flush] = nvme.StatusWriteFault
	done := make(chan int, 2)
	h.do(func() { h.c.Shutdown(h.w, func() { done <- len(a.log) + len(b.log) }) })
	if got := <-done; got != 2 {
		t.Errorf("%d volumes were flushed, want 2", got)
	}
	// A worker that has ended has nothing to flush.
	h.do(func() { h.w.Close(); h.c.Shutdown(h.w, func() { done <- len(a.log) + len(b.log) }) })
	if got := <-done; got != 2 {
		t.Errorf("%d flushes after the end, want none more than 2", got)
	}
}

// bareQueue leaves requests to the test, which ends them itself.
type bareQueue struct{ last *volume.Request }

func (q *bareQueue) Submit(r *volume.Request) { q.last = r }
func (q *bareQueue) Cancel(*volume.Request)   {}
func (q *bareQueue) Close()                   {}

// bareCarrier has one segment for everything.
type bareCarrier struct {
	Command
	segment [1]dma.Segment
	ended   int
}

func (b *bareCarrier) Data(n uint32, _ Direction) (bool, nvme.Status) {
	b.segment[0].Len = uint64(n)
	b.Segments = b.segment[:]
	return true, nvme.StatusSuccess
}

func (b *bareCarrier) Complete() { b.ended++ }

// The path of an I/O command allocates nothing.
func TestIOAllocations(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(1<<20, 512)), nil)
	q := new(bareQueue)
	for name, e := range map[string]nvme.SQE{
		"read":         rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 9, NLB: 7}),
		"write":        rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 9, NLB: 7, FUA: true}),
		"write zeroes": rwSQE(nvme.IOWriteZeroes, 1, nvme.RW{SLBA: 9, NLB: 7}),
		"flush":        rwSQE(nvme.IOFlush, 1, nvme.RW{}),
		"read, FUA":    rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 9, FUA: true}),
		"compare":      rwSQE(nvme.IOCompare, 1, nvme.RW{SLBA: 9, NLB: 7}),
		"verify":       rwSQE(nvme.IOVerify, 1, nvme.RW{SLBA: 9, NLB: 7}),
		"flush all":    rwSQE(nvme.IOFlush, nvme.NSIDBroadcast, nvme.RW{}),
		"deallocate":   {Opcode: uint8(nvme.IODatasetManagement), NSID: 1, CDW11: 4},
		"error":        rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 1 << 40}),
	} {
		ranges := []nvme.DSMRange{{SLBA: 1, NLB: 1}}
		b := &bareCarrier{segment: [1]dma.Segment{dma.SegmentOf(append(nvme.SliceBytes(ranges), make([]byte, 4080)...))}}
		b.Init(b)
		b.Stats = stats.NewSet()
		var allocs float64
		h.do(func() {
			real := h.w.ns[1].queue
			h.w.ns[1].queue = q
			allocs = testing.AllocsPerRun(100, func() {
				b.SQE = e
				h.w.Execute(&b.Command)
				for q.last != nil {
					r := q.last
					q.last = nil
					r.Status = nvme.StatusSuccess
					r.Run()
				}
			})
			h.w.ns[1].queue = real
		})
		if allocs != 0 || b.ended != 101 {
			t.Errorf("%s: %v allocations, ended %d times of 101", name, allocs, b.ended)
		}
	}
}
