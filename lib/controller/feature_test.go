// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

func TestFeatureTable(t *testing.T) {
	for fid := range featureTable {
		f := &featureTable[fid]
		if f.name == "" && (f.mask != 0 || f.get != nil || f.set != nil) {
			t.Errorf("feature %02Xh has no name", fid)
		}
		if fid >= dwordFeatures && f.name != "" && (f.get == nil || f.set == nil) {
			t.Errorf("feature %02Xh: a dword is not kept for it", fid)
		}
		if f.initial&^f.mask != 0 {
			t.Errorf("feature %02Xh: default %#x is not in %#x", fid, f.initial, f.mask)
		}
	}
}

// dword features: default, what is kept of a value, and what is refused.
func TestFeatures(t *testing.T) {
	const ns = 1
	for _, tt := range []struct {
		fid     nvme.FeatureID
		nsid    uint32
		initial uint32
		set     uint32
		want    uint32 // after set
		refused []uint32
		fabrics bool // there only
		pci     bool // there only
	}{
		{fid: nvme.FeatArbitration, initial: 7, set: 0xffffffff, want: 0xffffff07},
		{fid: nvme.FeatPowerManagement, set: 0x60, want: 0x60, refused: []uint32{1, 31}},
		{fid: nvme.FeatTemperatureThreshold, initial: 0xffff, set: 350, want: 350, refused: []uint32{1 << 16, 2 << 20, 3 << 20}},
		{fid: nvme.FeatErrorRecovery, nsid: ns, set: 5, want: 5, refused: []uint32{1 << 16}},
		{fid: nvme.FeatVolatileWriteCache, initial: 1, set: 0xfffffffe, want: 0},
		{fid: nvme.FeatNumberOfQueues, initial: 14<<16 | 14, set: 99<<16 | 3, want: 14<<16 | 3, refused: []uint32{0xffff, 0xffff0000}},
		{fid: nvme.FeatInterruptCoalescing, set: 0xffffffff, want: 0xffff, pci: true},
		{fid: nvme.FeatInterruptVectorConfig, set: 1 << 16, want: 1 << 16, refused: []uint32{16, 0xffff}, pci: true},
		{fid: nvme.FeatWriteAtomicity, set: 0xffffffff, want: 1},
		{fid: nvme.FeatAsyncEventConfig, set: 0xffffffff, want: 0x1ff},
		{fid: nvme.FeatKeepAliveTimer, set: 123456, want: 123456, fabrics: true},
	} {
		fabrics := connect(t, newSubsystem(t, newMemory(4096, 512)), func(c *Config) { c.KeepAliveExpired = func() {} })
		pci, _ := connectPCI(t)
		for _, h := range []*host{fabrics, pci} {
			if tt.fabrics && h != fabrics || tt.pci && h != pci {
				h.refused(nvme.StatusInvalidField, nvme.GetFeatures{FID: tt.fid}, 0)
				h.refused(nvme.StatusInvalidField, nvme.SetFeatures{FID: tt.fid}, 0)
				continue
			}
			get := func(sel nvme.FeatureSelect) uint32 {
				t.Helper()
				return h.admin(nvme.GetFeatures{FID: tt.fid, SEL: sel}, tt.nsid).DW0
			}
			check := func(current uint32) {
				t.Helper()
				for sel, want := range []uint32{current, tt.initial, tt.initial} {
					if got := get(nvme.FeatureSelect(sel)); got != want {
						t.Errorf("feature %02Xh, SEL %d: %#x, want %#x", tt.fid, sel, got, want)
					}
				}
			}
			check(tt.initial)
			h.admin(nvme.SetFeatures{FID: tt.fid, Value: tt.set}, tt.nsid)
			check(tt.want)
			for _, v := range tt.refused {
				h.refused(nvme.StatusInvalidField, nvme.SetFeatures{FID: tt.fid, Value: v}, tt.nsid)
			}
			check(tt.want)
			wantCaps := nvme.CapabilityChangeable
			if tt.nsid != 0 {
				wantCaps |= nvme.CapabilityNamespaceSpecific
			}
			if got := get(nvme.SelectSupported); got != wantCaps {
				t.Errorf("feature %02Xh: capabilities %#x, want %#x", tt.fid, got, wantCaps)
			}
			h.refused(nvme.StatusFeatureNotSaveable, nvme.SetFeatures{FID: tt.fid, SV: true}, tt.nsid)
			h.refused(nvme.StatusInvalidField, nvme.GetFeatures{FID: tt.fid, SEL: 4}, tt.nsid)
		}
	}
}

func TestFeaturesUnknown(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	for fid := range 256 {
		if featureTable[fid].name == "" {
			h.refused(nvme.StatusInvalidField, nvme.GetFeatures{FID: nvme.FeatureID(fid)}, 0)
			h.refused(nvme.StatusInvalidField, nvme.SetFeatures{FID: nvme.FeatureID(fid)}, 0)
		}
	}
}

func TestFeaturesNamespace(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512), newMemory(4096, 512)), nil)
	const invalid, field, other = nvme.StatusInvalidNamespaceOrFormat, nvme.StatusInvalidField, nvme.StatusFeatureNotNamespaceSpecific
	for nsid, want := range map[uint32]nvme.Status{1: other, 2: other, 3: other, 1024: other, 1025: invalid, 0xfffffffe: invalid} {
		h.refused(want, nvme.SetFeatures{FID: nvme.FeatWriteAtomicity}, nsid)
	}
	h.admin(nvme.SetFeatures{FID: nvme.FeatWriteAtomicity}, nvme.NSIDBroadcast)
	for nsid, want := range map[uint32]nvme.Status{0: invalid, 3: field, 1025: invalid} {
		h.refused(want, nvme.SetFeatures{FID: nvme.FeatErrorRecovery}, nsid)
		h.refused(want, nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, nsid)
	}
	h.refused(invalid, nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, nvme.NSIDBroadcast)
	tler := func(want ...uint32) {
		t.Helper()
		for i, w := range want {
			if got := h.admin(nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, uint32(i+1)).DW0; got != w {
				t.Errorf("namespace %d: %d, want %d", i+1, got, w)
			}
		}
	}
	h.admin(nvme.SetFeatures{FID: nvme.FeatErrorRecovery, Value: 9}, nvme.NSIDBroadcast)
	tler(9, 9)
	h.admin(nvme.SetFeatures{FID: nvme.FeatErrorRecovery, Value: 3}, 2)
	tler(9, 3)
	// Another namespace begins with the default.
	h.sub.Remove(2, func() {})
	if err := h.sub.Add(testNamespace(2, newMemory(4096, 512))); err != nil {
		t.Fatal(err)
	}
	tler(9, 0)
}

func TestTemperatureUnder(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	const under = 1 << 20
	h.admin(nvme.SetFeatures{FID: nvme.FeatTemperatureThreshold, Value: under | 0xf<<16 | 270}, 0) // all sensors
	for sel, want := range map[nvme.FeatureSelect]uint32{nvme.SelectCurrent: 270, nvme.SelectDefault: 0} {
		if got := h.admin(nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold, SEL: sel, Value: under}, 0).DW0; got != want {
			t.Errorf("under threshold, SEL %d: %d, want %d", sel, got, want)
		}
	}
	if got := h.admin(nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold}, 0).DW0; got != 0xffff {
		t.Errorf("over threshold: %d", got)
	}
	h.refused(nvme.StatusInvalidField, nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold, Value: 0xf << 16}, 0)
}

func TestInterruptVectors(t *testing.T) {
	h, _ := connectPCI(t)
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 1<<16 | 3}, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 1<<16 | 15}, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 3}, 0)
	for iv := range uint32(16) {
		want := iv
		if iv == 15 {
			want |= 1 << 16
		}
		if got := h.admin(nvme.GetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: iv}, 0).DW0; got != want {
			t.Errorf("vector %d: %#x, want %#x", iv, got, want)
		}
	}
	h.refused(nvme.StatusInvalidField, nvme.GetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 16}, 0)
}

// What a transport is told of interrupts to be coalesced.
func TestCoalescing(t *testing.T) {
	h, _ := connectPCI(t)
	check := func(c *Controller, vector uint32, entries int, wait time.Duration) {
		t.Helper()
		if n, d := c.Coalescing(vector); n != entries || d != wait {
			t.Errorf("vector %d: %d entries in %v, want %d in %v", vector, n, d, entries, wait)
		}
	}
	check(h.c, 1, 1, 0)
	for _, off := range []uint32{9, 20 << 8} { // no time, no number
		h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptCoalescing, Value: off}, 0)
		check(h.c, 1, 1, 0)
	}
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptCoalescing, Value: 20<<8 | 9}, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 1<<16 | 3}, 0)
	check(h.c, 1, 10, 2*time.Millisecond)
	check(h.c, 3, 1, 0)
	check(h.c, maxVectors+3, 10, 2*time.Millisecond)
	h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 3}, 0)
	check(h.c, 3, 10, 2*time.Millisecond)
}

func TestTimestamp(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	get := func(sel nvme.FeatureSelect) (ms uint64, origin uint8) {
		t.Helper()
		var ts nvme.Timestamp
		copy(nvme.Bytes(&ts), h.admin(nvme.GetFeatures{FID: nvme.FeatTimestamp, SEL: sel}, 0).data())
		return ts.Milliseconds(), ts.Attributes >> 1 & 7
	}
	if ms, origin := get(nvme.SelectCurrent); ms > uint64(deadline.Milliseconds()) || origin != nvme.TimestampOriginReset {
		t.Errorf("before it was set: %d ms, origin %d", ms, origin)
	}
	const base = 1_700_000_000_000
	var ts nvme.Timestamp
	ts.Set(base, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatTimestamp}, 0, nvme.Bytes(&ts)...)
	if ms, origin := get(nvme.SelectCurrent); ms < base || ms > base+uint64(deadline.Milliseconds()) || origin != nvme.TimestampOriginHost {
		t.Errorf("after it was set to %d: %d ms, origin %d", uint64(base), ms, origin)
	}
	if ms, origin := get(nvme.SelectDefault); ms != 0 || origin != 0 {
		t.Errorf("default: %d ms, origin %d", ms, origin)
	}
}

func TestHostBehavior(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	get := func(sel nvme.FeatureSelect) (b nvme.HostBehavior) {
		t.Helper()
		copy(nvme.Bytes(&b), h.admin(nvme.GetFeatures{FID: nvme.FeatHostBehavior, SEL: sel}, 0).data())
		return b
	}
	want := nvme.HostBehavior{ACRE: 1, LBAFEE: 1, CDFE: 0xc}
	h.admin(nvme.SetFeatures{FID: nvme.FeatHostBehavior}, 0, nvme.Bytes(&want)...)
	if got := get(nvme.SelectCurrent); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := get(nvme.SelectDefault); got != (nvme.HostBehavior{}) {
		t.Errorf("default: %+v", got)
	}
	for _, bad := range []nvme.HostBehavior{{ACRE: 2}, {LBAFEE: 255}, {ETDAS: 1}, {HDISNS: 1}, {CDFE: 2}, {CDFE: 16}} {
		h.refused(nvme.StatusInvalidField, nvme.SetFeatures{FID: nvme.FeatHostBehavior}, 0, nvme.Bytes(&bad)...)
	}
	if got := get(nvme.SelectCurrent); got != want {
		t.Errorf("after errors: %+v, want %+v", got, want)
	}
}

// With the write cache disabled, what it holds is flushed and writes go through.
func TestWriteCache(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	write := func() (flags volume.Flags) {
		t.Helper()
		e := nvme.SQE{NSID: 1, Opcode: uint8(nvme.IOWrite)}
		if cmd := h.run(false, e); cmd.Status != 0 {
			t.Fatal(cmd.Status)
		}
		h.do(func() { flags = m.log[len(m.log)-1].Flags })
		return flags
	}
	flushes := func() (n int) {
		h.do(func() {
			for _, r := range m.log {
				if r.Op == volume.Flush {
					n++
				}
			}
		})
		return n
	}
	off, on := nvme.SetFeatures{FID: nvme.FeatVolatileWriteCache}, nvme.SetFeatures{FID: nvme.FeatVolatileWriteCache, Value: 1}
	if got := write(); got != 0 {
		t.Errorf("cache enabled: write with flags %#x", got)
	}
	for range 2 {
		h.admin(off, 0)
		if got := flushes(); got != 1 {
			t.Errorf("cache disabled: %d flushes, want 1", got)
		}
	}
	if got := write(); got != volume.FUA {
		t.Errorf("cache disabled: write with flags %#x", got)
	}
	h.admin(on, 0)
	if got := write(); got != 0 || flushes() != 1 {
		t.Errorf("cache enabled again: write with flags %#x, %d flushes", got, flushes())
	}
	h.do(func() { m.fail[volume.Flush] = nvme.StatusWriteFault })
	if st := h.run(true, sqe(off, 0)).Status; st != nvme.StatusWriteFault {
		t.Errorf("flush fails: status %v", st)
	}
	if got := h.admin(nvme.GetFeatures{FID: nvme.FeatVolatileWriteCache}, 0).DW0; got != 1 || write() != 0 {
		t.Error("flush fails: the cache was disabled")
	}
}
