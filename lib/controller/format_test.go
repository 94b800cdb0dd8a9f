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
