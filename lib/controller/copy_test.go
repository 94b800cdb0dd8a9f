// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// copyRange is a source range, for any format.
type copyRange struct {
	nsid uint32
	slba uint64
	n    int
	sopt uint16
}

// copyCommand makes a Copy to namespace 1.
func (h *host) copyCommand(cp nvme.Copy, ranges ...copyRange) *hostCommand {
	h.t.Helper()
	cp.NR = uint8(len(ranges) - 1)
	e := nvme.SQE{NSID: 1, CID: 5}
	cp.Put(&e)
	cmd := newCommand(h.t, h.p, e)
	for _, r := range ranges {
		if cp.Format&1 == 0 {
			d := nvme.CopyRange{SNSID: r.nsid, SLBA: r.slba, NLB: uint16(r.n - 1), SOPT: r.sopt, EILBRT: 0xffffffff, ELBATM: 0xffff}
			cmd.out = append(cmd.out, nvme.Bytes(&d)...)
		} else {
			d := nvme.CopyRangeExtended{SNSID: r.nsid, SLBA: r.slba, NLB: uint16(r.n - 1), SOPT: r.sopt, ELBATM: 0xffff}
			cmd.out = append(cmd.out, nvme.Bytes(&d)...)
		}
	}
	return cmd
}

// enableCopy enables the formats that name namespaces.
func (h *host) enableCopy() {
	h.t.Helper()
	b := nvme.HostBehavior{CDFE: 0xc}
	h.admin(nvme.SetFeatures{FID: nvme.FeatHostBehavior}, 0, nvme.Bytes(&b)...)
}

// Random copies leave the volumes as a model has them.
func TestCopyModel(t *testing.T) {
	const size, block = 8 << 20, 512
	a, b := filled(size, block), newMemory(size, block)
	copy(b.bytes, pattern(size, 91))
	h := connect(t, newSubsystem(t, a, b), nil)
	h.enableCopy()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 150 {
		cp := nvme.Copy{Format: uint8(rnd.IntN(4)), SDLBA: uint64(rnd.IntN(size / block)), FUA: rnd.IntN(2) == 0}
		model, total, ok := bytes.Clone(a.bytes), 0, true
		var ranges []copyRange
		var data []byte
		for range 1 + rnd.IntN(6) {
			r := copyRange{nsid: 1 + rnd.Uint32N(2), n: 1 + rnd.IntN(3)}
			if rnd.IntN(4) == 0 {
				r.n = 1 + rnd.IntN(2048)
			}
			r.slba = uint64(rnd.IntN(size/block - r.n + 1))
			from := a
			if cp.Format >= 2 && r.nsid == 2 {
				from = b
			}
			ranges = append(ranges, r)
			data = append(data, from.bytes[r.slba*block:][:r.n*block]...)
			total += r.n
		}
		for _, r := range ranges {
			if (cp.Format < 2 || r.nsid == 1) && r.slba < cp.SDLBA+uint64(total) && cp.SDLBA < r.slba+uint64(r.n) {
				ok = false
			}
		}
		if cp.SDLBA+uint64(total) > size/block {
			ok = false
		}
		if ok {
			copy(model[cp.SDLBA*block:], data)
		}
		cmd := h.copyCommand(cp, ranges...)
		cmd.late, cmd.pieces = rnd.IntN(2) == 0, []int{13, 100}
		if h.start(false, cmd).wait(); ok != (cmd.Status == 0) || cmd.DW0 != 0 {
			t.Errorf("%+v of %+v: %v, DW0 %d", cp, ranges, cmd.Status, cmd.DW0)
		}
		if !bytes.Equal(a.bytes, model) {
			t.Fatalf("%+v of %+v: the volume is not as it should be", cp, ranges)
		}
	}
}

// All is checked before anything is written.
func TestCopyErrors(t *testing.T) {
	const mib = 2048 // blocks
	many := func(n, size int) (l []copyRange) {
		for range n {
			l = append(l, copyRange{nsid: 2, n: size})
		}
		return l
	}
	a, b, c := newMemory(32<<20, 512), newMemory(32<<20, 512), newMemory(32<<20, 4096)
	h := connect(t, newSubsystem(t, a, b, c), nil)
	one := []copyRange{{nsid: 2, slba: 50, n: 1}}
	run := func(name string, cp nvme.Copy, ranges []copyRange, want nvme.Status) {
		t.Helper()
		a.log, b.log, c.log = nil, nil, nil
		cmd := h.copyCommand(cp, ranges...)
		h.start(false, cmd).wait()
		if cmd.Status != want {
			t.Errorf("%s: %v, want %v", name, cmd.Status, want)
		}
		if n := len(a.log) + len(b.log) + len(c.log); want != 0 && n != 0 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
	for _, format := range []uint8{2, 3} {
		run("not enabled", nvme.Copy{Format: format, SDLBA: 0}, one, nvme.StatusInvalidField|nvme.StatusDNR)
	}
	h.enableCopy()
	for _, tt := range []struct {
		name   string
		cp     nvme.Copy
		ranges []copyRange
		want   nvme.Status
	}{
		{"format 4", nvme.Copy{Format: 4}, one, nvme.StatusInvalidField},
		{"format 15", nvme.Copy{Format: 15}, one, nvme.StatusInvalidField},
		{"PI, read", nvme.Copy{PRINFOR: 1}, one, nvme.StatusInvalidField},
		{"PI, write", nvme.Copy{PRINFOW: 8}, one, nvme.StatusInvalidField},
		{"directive", nvme.Copy{DTYPE: 1}, one, nvme.StatusInvalidField},
		{"source past the end", nvme.Copy{}, []copyRange{{slba: 9, n: 1}, {slba: 65535, n: 2}}, nvme.StatusLBAOutOfRange},
		{"source far away", nvme.Copy{}, []copyRange{{slba: 1<<64 - 1, n: 1}}, nvme.StatusLBAOutOfRange},
		{"destination past the end", nvme.Copy{SDLBA: 65535}, []copyRange{{slba: 9, n: 1}, {slba: 5, n: 1}}, nvme.StatusLBAOutOfRange},
		{"destination far away", nvme.Copy{SDLBA: 1 << 63}, one, nvme.StatusLBAOutOfRange},
		{"more than MSSRL", nvme.Copy{SDLBA: 9000}, []copyRange{{n: mib + 1}}, nvme.StatusCommandSizeLimitExceeded},
		{"more than MCL", nvme.Copy{Format: 2}, append(many(16, mib), many(1, 1)...), nvme.StatusCommandSizeLimitExceeded},
		{"256 ranges of more", nvme.Copy{Format: 3}, many(256, 200), nvme.StatusCommandSizeLimitExceeded},
		{"onto itself", nvme.Copy{SDLBA: 7}, []copyRange{{slba: 7, n: 1}}, nvme.StatusOverlappingIORange},
		{"overlap at the end", nvme.Copy{SDLBA: 10}, []copyRange{{slba: 100, n: 1}, {slba: 9, n: 2}}, nvme.StatusOverlappingIORange},
		{"overlap with another's target", nvme.Copy{SDLBA: 10}, []copyRange{{slba: 100, n: 1}, {slba: 11, n: 1}}, nvme.StatusOverlappingIORange},
		{"fast copy only", nvme.Copy{Format: 2}, []copyRange{{nsid: 2, n: 1, sopt: 0x8000}}, nvme.StatusFastCopyNotPossible},
		{"another block size", nvme.Copy{Format: 2}, []copyRange{{nsid: 3, n: 1}}, nvme.StatusIncompatibleNamespace},
		{"inactive namespace", nvme.Copy{Format: 3}, []copyRange{{nsid: 9, n: 1}}, nvme.StatusInvalidField},
		{"invalid namespace", nvme.Copy{Format: 3}, []copyRange{{nsid: 0, n: 1}}, nvme.StatusInvalidNamespaceOrFormat},
		{"every namespace", nvme.Copy{Format: 2}, []copyRange{{nsid: nvme.NSIDBroadcast, n: 1}}, nvme.StatusInvalidNamespaceOrFormat},
		{"beside itself", nvme.Copy{SDLBA: 10}, []copyRange{{slba: 9, n: 1}, {slba: 12, n: 1}}, 0},
		{"from another, same place", nvme.Copy{Format: 2, SDLBA: 10}, []copyRange{{nsid: 2, slba: 10, n: 1}}, 0},
		{"all of MCL", nvme.Copy{Format: 2}, many(16, mib), 0},
		{"256 ranges", nvme.Copy{Format: 3}, many(256, 1), 0},
		{"fields of formats 2 and 3 in 0", nvme.Copy{SDLBA: 10}, []copyRange{{nsid: 77, slba: 1, n: 1, sopt: 0x8000}}, 0},
	} {
		want := tt.want
		if want != 0 {
			want |= nvme.StatusDNR
		}
		run(tt.name, tt.cp, tt.ranges, want)
	}
	if h.w.ns[1].inflight+h.w.ns[2].inflight+h.w.ns[3].inflight != 0 {
		t.Error("a namespace is still in use")
	}
}

// DW0 of a Copy that fails is the number of the first range that was not copied.
func TestCopyFails(t *testing.T) {
	a, b := newMemory(4<<20, 512), newMemory(4<<20, 512)
	h := connect(t, newSubsystem(t, a, b), nil)
	h.enableCopy()
	ranges := []copyRange{{nsid: 1, slba: 4000, n: 1}, {nsid: 1, slba: 4100, n: 1024}, {nsid: 2, n: 1}}
	b.fail[volume.Read] = nvme.StatusUnrecoveredReadError
	cmd := h.copyCommand(nvme.Copy{Format: 2}, ranges...)
	if h.start(false, cmd).wait(); cmd.Status != nvme.StatusUnrecoveredReadError || cmd.DW0 != 2 {
		t.Errorf("a source fails: %v, DW0 %d, want 2", cmd.Status, cmd.DW0)
	}
	a.fail[volume.Write] = nvme.StatusWriteFault
	cmd = h.copyCommand(nvme.Copy{Format: 2}, ranges...)
	if h.start(false, cmd).wait(); cmd.Status != nvme.StatusWriteFault || cmd.DW0 != 0 {
		t.Errorf("the destination fails: %v, DW0 %d, want 0", cmd.Status, cmd.DW0)
	}
	delete(a.fail, volume.Write)
	a.log, a.hold = nil, true
	cmd = h.start(false, h.copyCommand(nvme.Copy{Format: 2}, ranges...))
	for range 5 { // read, write, read, write, read
		h.do(a.step)
		settle(h)
	}
	h.cancel(cmd)
	if cmd.wait(); cmd.Status != nvme.StatusAbortRequested || cmd.DW0 != 1 {
		t.Errorf("cancelled: %v, DW0 %d, want 1", cmd.Status, cmd.DW0)
	}
	short := h.copyCommand(nvme.Copy{}, ranges...)
	short.refuse = nvme.StatusDataTransferError
	a.log = nil
	if h.start(false, short).wait(); short.Status != nvme.StatusDataTransferError || len(a.log) != 0 {
		t.Errorf("no ranges: %v, %d requests", short.Status, len(a.log))
	}
}

// Namespaces that a Copy reads are not drained before it has ended.
func TestCopyRemove(t *testing.T) {
	a, b := newMemory(1<<20, 512), filled(1<<20, 512)
	h := connect(t, newSubsystem(t, a, b), nil)
	h.enableCopy()
	a.hold = true // the writes
	cmd := h.start(false, h.copyCommand(nvme.Copy{Format: 2}, copyRange{nsid: 2, n: 1}, copyRange{nsid: 2, slba: 7, n: 1}))
	h.do(func() {})
	drained := make(chan bool, 2)
	h.sub.Remove(2, func() { drained <- true })
	settle(h)
	if len(drained) != 0 {
		t.Fatal("drained under a Copy")
	}
	h.do(a.release)
	if cmd.wait(); cmd.Status != 0 || !bytes.Equal(a.bytes[512:1024], b.bytes[7*512:8*512]) {
		t.Errorf("copy: %v, or data differs", cmd.Status)
	}
	settle(h)
	if len(drained) != 1 || b.open != 0 {
		t.Errorf("drained %d times, %d queues open", len(drained), b.open)
	}
}
