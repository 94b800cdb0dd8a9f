// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

func TestFormat(t *testing.T) {
	for _, ses := range []uint8{nvme.SESNone, nvme.SESUserData} {
		m, other := filled(20<<20, 512), filled(4096, 512)
		h := connect(t, newSubsystem(t, m, other), nil)
		h.admin(nvme.FormatNVM{SES: ses}, 1)
		if !bytes.Equal(m.bytes, make([]byte, 20<<20)) || bytes.Equal(other.bytes, make([]byte, 4096)) {
			t.Error("not erased, or too much")
		}
		next := uint64(0)
		for _, r := range m.log[:len(m.log)-1] {
			if r.Op != volume.WriteZeroes || r.Offset != next || r.Length > maxWriteZeroes || r.Flags != volume.Deallocate {
				t.Errorf("%v %d+%d, flags %#x; want write-zeroes at %d", r.Op, r.Offset, r.Length, r.Flags, next)
			}
			next += r.Length
		}
		if last := m.log[len(m.log)-1]; len(m.log) != 4 || last.Op != volume.Flush {
			t.Errorf("%d requests, the last a %v", len(m.log), last.Op)
		}
		if cmd := h.run(false, rwSQE(nvme.IOWrite, 1, nvme.RW{})); cmd.Status != 0 {
			t.Errorf("write after the format: %v", cmd.Status)
		}
	}
}

func TestFormatErrors(t *testing.T) {
	m := filled(4096, 512)
	sub := newSubsystem(t, m)
	ro := testNamespace(2, filled(4096, 512))
	ro.ReadOnly = true
	if err := sub.Add(ro); err != nil {
		t.Fatal(err)
	}
	h := connect(t, sub, nil)
	for _, tt := range []struct {
		f    nvme.FormatNVM
		nsid uint32
		want nvme.Status
	}{
		{nvme.FormatNVM{LBAF: 1}, 1, nvme.StatusInvalidFormat},
		{nvme.FormatNVM{LBAF: 63}, 1, nvme.StatusInvalidFormat},
		{nvme.FormatNVM{MSET: true}, 1, nvme.StatusInvalidFormat},
		{nvme.FormatNVM{PI: 1}, 1, nvme.StatusInvalidFormat},
		{nvme.FormatNVM{PIL: true}, 1, nvme.StatusInvalidFormat},
		{nvme.FormatNVM{SES: nvme.SESCrypto}, 1, nvme.StatusInvalidField},
		{nvme.FormatNVM{SES: 7}, 1, nvme.StatusInvalidField},
		{nvme.FormatNVM{}, nvme.NSIDBroadcast, nvme.StatusInvalidField},
		{nvme.FormatNVM{}, 0, nvme.StatusInvalidNamespaceOrFormat},
		{nvme.FormatNVM{}, 3, nvme.StatusInvalidField},
		{nvme.FormatNVM{}, 1025, nvme.StatusInvalidNamespaceOrFormat},
		{nvme.FormatNVM{}, 2, nvme.StatusNamespaceWriteProtected},
	} {
		h.refused(tt.want, tt.f, tt.nsid)
	}
	if len(m.log) != 0 {
		t.Errorf("%d requests", len(m.log))
	}
}

// A namespace being formatted takes no other commands, on any controller; when
// the format ends, whatever becomes of it, it works again.
func TestFormatInProgress(t *testing.T) {
	const busy = nvme.StatusFormatInProgress
	for name, tt := range map[string]struct {
		end  func(h *host, m *memory, f *hostCommand)
		want nvme.Status
	}{
		"succeeds": {func(h *host, m *memory, _ *hostCommand) { h.do(m.release) }, 0},
		"fails": {func(h *host, m *memory, _ *hostCommand) {
			m.fail[volume.WriteZeroes] = nvme.StatusWriteFault
			h.do(m.release)
		}, nvme.StatusWriteFault},
		"cancelled":  {func(h *host, m *memory, f *hostCommand) { h.cancel(f) }, nvme.StatusAbortRequested},
		"ends early": {func(h *host, m *memory, f *hostCommand) { h.do(func() { f.cancelled = true; m.release() }) }, nvme.StatusAbortRequested},
		"flush fails": {func(h *host, m *memory, f *hostCommand) {
			m.fail[volume.Flush] = nvme.StatusWriteFault
			h.do(m.release)
		}, nvme.StatusWriteFault},
	} {
		m := filled(40<<20, 512)
		sub := newSubsystem(t, m)
		h := connect(t, sub, nil)
		other := connect(t, sub, nil)
		m.hold = true
		f := h.start(true, newCommand(t, h.p, sqe(nvme.FormatNVM{}, 1)))
		for range 2 {
			h.do(m.step)
			settle(h)
		}
		for _, x := range []*host{h, other} {
			if st := x.run(false, rwSQE(nvme.IORead, 1, nvme.RW{})).Status; st != busy {
				t.Errorf("%s: read meanwhile: %v, want %v", name, st, busy)
			}
		}
		if st := other.run(true, sqe(nvme.FormatNVM{}, 1)).Status; st != busy {
			t.Errorf("%s: format meanwhile: %v, want %v", name, st, busy)
		}
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), other.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
		if id.FPI != 0x80|60 {
			t.Errorf("%s: format progress %#x, want 60 percent to go", name, id.FPI)
		}
		tt.end(h, m, f)
		if f.wait(); f.Status != tt.want {
			t.Errorf("%s: %v, want %v", name, f.Status, tt.want)
		}
		m.hold = false
		if st := other.run(false, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 81919})).Status; st != 0 {
			t.Errorf("%s: read afterwards: %v", name, st)
		}
		copy(nvme.Bytes(&id), other.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
		if id.FPI != 0x80 {
			t.Errorf("%s: format progress %#x afterwards", name, id.FPI)
		}
	}
}

// blocks makes the volume of namespace nsid one whose block can change: by
// change, which is called on a goroutine.
func (h *host) blocks(nsid uint32, change func(block uint32) nvme.Status) {
	h.sub.Namespace(nsid).Reblock = func(block uint32, done func(nvme.Status)) {
		go func() { done(change(block)) }()
	}
}

// Format NVM with another LBA format erases, then changes the block; executed
// again, it gives the same answer.
func TestFormatBlock(t *testing.T) {
	m := filled(20<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	h.blocks(1, func(block uint32) nvme.Status {
		drained := make(chan bool)
		h.sub.Follow(1, func() { close(drained) })
		<-drained // the command itself is no hindrance
		m.reshape(20<<20, block)
		drained = make(chan bool)
		h.sub.Follow(1, func() { close(drained) })
		<-drained
		return nvme.StatusSuccess
	})
	h.admin(enableNotices, 0)
	for _, lbaf := range []uint8{1, 1, 0, 0} {
		block := lbaFormats[lbaf]
		copy(m.bytes, pattern(20<<20, 9))
		h.admin(nvme.FormatNVM{LBAF: lbaf}, 1)
		if !bytes.Equal(m.bytes, make([]byte, 20<<20)) {
			t.Error("not erased")
		}
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), h.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
		if size, _ := id.BlockSize(); size != block || id.NSZE != 20<<20/uint64(block) || id.NLBAF != 1 || id.FPI != 0x80 {
			t.Errorf("LBAF %d: %d blocks of %d bytes, NLBAF %d, FPI %#x", lbaf, id.NSZE, size, id.NLBAF, id.FPI)
		}
		for _, x := range []*host{h, o} {
			cmd := x.run(false, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: id.NSZE - 1}))
			if cmd.Status != 0 || cmd.asked != block {
				t.Errorf("read of the last block: %v, %d bytes", cmd.Status, cmd.asked)
			}
		}
	}
	// One event for both changes: its log page has not been read.
	told(t, h.park(), nvme.EventNamespaceAttribute)
	if got := h.changed(false); len(got) != 1 || got[0] != 1 {
		t.Errorf("changed namespaces %v, want 1", got)
	}
}

// What keeps the block from changing is told, and the namespace works with the
// block that it has. Until then it is being formatted; a cancellation is too late.
func TestFormatBlockFails(t *testing.T) {
	m := filled(8192, 512)
	h := connect(t, newSubsystem(t, m), nil)
	goon := make(chan bool)
	h.blocks(1, func(uint32) nvme.Status { <-goon; return nvme.StatusInternalError })
	f := h.start(true, newCommand(t, h.p, sqe(nvme.FormatNVM{LBAF: 1}, 1)))
	if st := h.run(false, rwSQE(nvme.IORead, 1, nvme.RW{})).Status; st != nvme.StatusFormatInProgress {
		t.Errorf("read meanwhile: %v", st)
	}
	h.cancel(f)
	if !f.running() {
		t.Error("ended before the change of the block")
	}
	close(goon)
	ended(t, "format", nvme.StatusInternalError, f)
	if cmd := h.run(false, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 15})); cmd.Status != 0 || cmd.asked != 512 {
		t.Errorf("read afterwards: %v, %d bytes", cmd.Status, cmd.asked)
	}
	h.idle()
}

// A namespace offers the formats that its size allows, and none but its own
// where the block cannot change.
func TestFormatsOffered(t *testing.T) {
	for _, tt := range []struct {
		size   uint64
		block  uint32
		change bool
		want   []uint8 // LBADS
		flbas  uint8
	}{
		{8192, 512, true, []uint8{9, 12}, 0},
		{8192, 4096, true, []uint8{9, 12}, 1},
		{8192 + 512, 512, true, []uint8{9}, 0},
		{8192, 512, false, []uint8{9}, 0},
		{8192, 4096, false, []uint8{0, 12}, 1},
	} {
		m := filled(tt.size, tt.block)
		h := connect(t, newSubsystem(t, m), nil)
		if tt.change {
			h.blocks(1, func(uint32) nvme.Status { return nvme.StatusSuccess })
		}
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), h.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
		for i, f := range id.LBAF {
			want := uint8(0)
			if i < len(tt.want) {
				want = tt.want[i]
			}
			if f.LBADS != want {
				t.Errorf("%+v: format %d has LBADS %d, want %d", tt, i, f.LBADS, want)
			}
			if want == 0 && i < 16 {
				h.refused(nvme.StatusInvalidFormat, nvme.FormatNVM{LBAF: uint8(i)}, 1)
			}
		}
		if int(id.NLBAF) != len(tt.want)-1 || id.FLBAS != tt.flbas {
			t.Errorf("%+v: NLBAF %d, FLBAS %d", tt, id.NLBAF, id.FLBAS)
		}
		if len(m.log) != 0 {
			t.Errorf("%+v: refused, and yet %d requests", tt, len(m.log))
		}
		h.admin(nvme.FormatNVM{LBAF: tt.flbas}, 1)
	}
}

// A namespace that is removed does not wait for all of a format.
func TestFormatRemove(t *testing.T) {
	m := filled(40<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	m.hold = true
	f := h.start(true, newCommand(t, h.p, sqe(nvme.FormatNVM{}, 1)))
	drained := make(chan bool, 2)
	h.sub.Remove(1, func() { drained <- true })
	settle(h)
	if len(drained) != 0 {
		t.Fatal("drained under a format")
	}
	h.do(m.release)
	if f.wait(); f.Status != nvme.StatusInvalidField|nvme.StatusDNR || len(m.log) != 1 {
		t.Errorf("format: %v after %d requests", f.Status, len(m.log))
	}
	settle(h)
	if len(drained) != 1 {
		t.Errorf("drained %d times", len(drained))
	}
}
