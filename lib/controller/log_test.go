// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

func TestSupportedLogPages(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	var l nvme.SupportedLogPages
	copy(nvme.Bytes(&l), h.log(nvme.LogSupportedLogPages, 1024, false))
	want := map[nvme.LogPageID]bool{0: true, 1: true, 2: true, 3: true, 4: true, 5: true, 0x12: true, 0x13: true}
	for lid := range 256 {
		supported := l.LIDs[lid] == nvme.LIDSupported
		if supported != want[nvme.LogPageID(lid)] || l.LIDs[lid]&^nvme.LIDSupported != 0 {
			t.Errorf("log page %02Xh: entry %#x", lid, l.LIDs[lid])
		}
		if !supported {
			h.refused(nvme.StatusInvalidLogPage, nvme.GetLogPage{LID: nvme.LogPageID(lid), NUMD: 1}, nvme.NSIDBroadcast)
		}
	}
}

// sizes of the log pages, by the specification.
var logSizes = map[nvme.LogPageID]uint64{
	nvme.LogSupportedLogPages: 1024, nvme.LogErrorInformation: 64 * 64, nvme.LogSMART: 512, nvme.LogFirmwareSlot: 512,
	nvme.LogChangedNamespaces: 4096, nvme.LogCommandEffects: 4096, nvme.LogFeatureEffects: 1024, nvme.LogMIEffects: 4096,
}

func TestGetLogPageFields(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	for lid, size := range logSizes {
		dwords := uint32(size / 4)
		for _, tt := range []struct {
			get  nvme.GetLogPage
			nsid uint32
			want nvme.Status
		}{
			{nvme.GetLogPage{NUMD: dwords - 1}, 0, 0},
			{nvme.GetLogPage{NUMD: dwords - 1}, nvme.NSIDBroadcast, 0},
			{nvme.GetLogPage{NUMD: dwords - 1}, 1, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: dwords - 1}, 2, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 0, LPO: size - 4}, 0, 0},
			{nvme.GetLogPage{NUMD: 7, LPO: size}, 0, 0},
			{nvme.GetLogPage{NUMD: 0, LPO: size + 4}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 0, LPO: 1 << 32}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 0, LPO: 1<<64 - 4}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 0, LPO: 2}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 0, OT: true}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 1<<18 - 1}, 0, 0}, // 1 MiB
			{nvme.GetLogPage{NUMD: 1 << 18}, 0, nvme.StatusInvalidField},
			{nvme.GetLogPage{NUMD: 1<<32 - 1}, 0, nvme.StatusInvalidField},
		} {
			tt.get.LID = lid
			if tt.want != 0 {
				h.refused(tt.want, tt.get, tt.nsid)
			} else if n := uint64(len(h.admin(tt.get, tt.nsid).data())); n != tt.get.Bytes() {
				t.Errorf("%+v: %d bytes of data", tt.get, n)
			}
		}
	}
	h.refused(nvme.StatusInvalidField, nvme.GetLogPage{LID: nvme.LogCommandEffects, NUMD: 1023, CSI: nvme.CSIZNS}, 0)
}

// Pieces of a page are the same bytes as the whole, and zeroes follow it.
func TestGetLogPagePieces(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	whole := h.log(nvme.LogCommandEffects, 4096, false)
	for _, off := range []uint64{0, 4, 1000, 4092, 4096} {
		got := h.admin(nvme.GetLogPage{LID: nvme.LogCommandEffects, NUMD: 1023, LPO: off}, 0).data()
		want := append(bytes.Clone(whole[off:]), make([]byte, off)...)
		if !bytes.Equal(got, want) {
			t.Errorf("from offset %d: data differs", off)
		}
	}
}

func (h *host) errors() (l [errorEntries]nvme.ErrorLogEntry) {
	h.t.Helper()
	copy(nvme.SliceBytes(l[:]), h.log(nvme.LogErrorInformation, errorEntries*64, false))
	return l
}

func TestErrorLog(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	if got := h.errors(); got[0] != (nvme.ErrorLogEntry{}) {
		t.Errorf("a new controller has an error: %+v", got[0])
	}
	h.run(true, nvme.SQE{Opcode: 0xff, CID: 77, NSID: 3})
	h.do(func() { h.c.Event(nvme.EventInvalidDoorbellValue) })
	got := h.errors()
	want := []nvme.ErrorLogEntry{
		{ErrorCount: 2, SQID: 0xffff, CID: 0xffff, Status: uint16(nvme.StatusInvalidField) << 1, ParameterError: 0xffff, LPVER: 1},
		{
			ErrorCount: 1, CID: 77, NSID: 3, Opcode: 0xff, Status: uint16(nvme.StatusInvalidOpcode|nvme.StatusDNR) << 1,
			ParameterError: 0xffff, LPVER: 1,
		},
		{},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("entry %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	// The oldest make way.
	for i := range errorEntries + 5 {
		h.run(true, nvme.SQE{Opcode: 0xff, CID: uint16(i)})
	}
	got = h.errors()
	for i := range got {
		if count, cid := uint64(2+errorEntries+5-i), uint16(errorEntries+4-i); got[i].ErrorCount != count || got[i].CID != cid {
			t.Errorf("entry %d: count %d, cid %d, want %d, %d", i, got[i].ErrorCount, got[i].CID, count, cid)
		}
	}
	if l := h.smart(); l.ErrorLogEntries.Lo != 2+errorEntries+5 {
		t.Errorf("SMART counts %v errors", l.ErrorLogEntries)
	}
}

func (h *host) smart() (l nvme.SMARTLog) {
	h.t.Helper()
	copy(nvme.Bytes(&l), h.log(nvme.LogSMART, 512, false))
	return l
}

// Workers on several pollers count, those that have ended too.
func TestSMARTLog(t *testing.T) {
	m := newMemory(4<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	others := []*host{{t: t, p: startPoller(t, "io1"), c: h.c}, {t: t, p: startPoller(t, "io2"), c: h.c}}
	for _, o := range others {
		o.do(func() {
			var err error
			if o.w, err = o.c.Worker(o.p); err != nil {
				t.Error(err)
			}
		})
	}
	rw := func(h *host, op nvme.IOOpcode, blocks int) nvme.Status {
		e := nvme.SQE{NSID: 1, Opcode: uint8(op)}
		nvme.RW{NLB: uint16(blocks - 1)}.Put(&e)
		return h.run(false, e).Status
	}
	for i, x := range append(others, h) {
		for range i + 1 {
			if st := rw(x, nvme.IORead, 1000); st != 0 {
				t.Fatal(st)
			}
			if st := rw(x, nvme.IOWrite, 2); st != 0 {
				t.Fatal(st)
			}
		}
	}
	others[0].do(others[0].w.Close)
	h.do(func() { m.fail[volume.Read] = nvme.StatusUnrecoveredReadError })
	if st := rw(h, nvme.IORead, 1); st != nvme.StatusUnrecoveredReadError {
		t.Errorf("read of a bad block: %v", st)
	}
	want := nvme.SMARTLog{
		AvailableSpare: 100, AvailableSpareThreshold: 10,
		DataUnitsRead: nvme.Uint128{Lo: 6}, DataUnitsWritten: nvme.Uint128{Lo: 1}, // 6000 and 12 blocks
		HostReadCommands: nvme.Uint128{Lo: 7}, HostWriteCommands: nvme.Uint128{Lo: 6}, MediaErrors: nvme.Uint128{Lo: 1},
	}
	if got := h.smart(); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	others[1].do(others[1].w.Close)
	if got := h.smart(); got != want {
		t.Errorf("after a worker has ended: got %+v\nwant %+v", got, want)
	}
}

func TestFirmwareSlotLog(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	var l nvme.FirmwareSlotLog
	copy(nvme.Bytes(&l), h.log(nvme.LogFirmwareSlot, 512, false))
	if l.AFI != 1 || nvme.ASCII(l.FRS[0][:]) != Firmware || l.FRS[1] != [8]byte{} {
		t.Errorf("got AFI %d, revisions %q", l.AFI, l.FRS)
	}
}

func TestEffectsLogs(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	var l nvme.CommandEffectsLog
	copy(nvme.Bytes(&l), h.log(nvme.LogCommandEffects, 4096, false))
	const ns = nvme.EffectSupported
	want := map[nvme.IOOpcode]uint32{
		nvme.IOFlush: ns, nvme.IORead: ns, nvme.IOWrite: ns | nvme.EffectContentChange,
		nvme.IOWriteZeroes: ns | nvme.EffectContentChange, nvme.IODatasetManagement: ns | nvme.EffectContentChange,
		nvme.IOCompare: ns, nvme.IOVerify: ns, nvme.IOCopy: ns | nvme.EffectContentChange,
	}
	for op, got := range l.IO {
		if got != want[nvme.IOOpcode(op)] {
			t.Errorf("%v: effects %#x, want %#x", nvme.IOOpcode(op), got, want[nvme.IOOpcode(op)])
		}
	}
	var f nvme.FeatureEffectsLog
	copy(nvme.Bytes(&f), h.log(nvme.LogFeatureEffects, 1024, false))
	if got, want := f.FIDs[nvme.FeatErrorRecovery], nvme.FIDSupported|nvme.ScopeNamespace; got != want {
		t.Errorf("error recovery: effects %#x, want %#x", got, want)
	}
	for fid, got := range f.FIDs {
		supported := h.run(true, sqe(nvme.GetFeatures{FID: nvme.FeatureID(fid), SEL: nvme.SelectSupported}, 0)).Status == 0
		if got&1 != 0 != supported {
			t.Errorf("feature %02Xh: effects %#x, Get Features has it: %v", fid, got, supported)
		}
	}
	if got := h.log(nvme.LogMIEffects, 4096, false); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("an NVMe-MI command is supported")
	}
}
