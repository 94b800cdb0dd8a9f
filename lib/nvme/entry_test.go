// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

func TestSQEFlags(t *testing.T) {
	tests := []struct {
		flags uint8
		fuse  Fuse
		psdt  PSDT
	}{
		{0x00, FuseNone, PSDTPRP},
		{0x01, FuseFirst, PSDTPRP},
		{0x02, FuseSecond, PSDTPRP},
		{0x40, FuseNone, PSDTSGL},
		{0x82, FuseSecond, PSDTSGLMPTRSGL},
		{0xff, 3, 3},
	}
	for _, tt := range tests {
		e := SQE{Flags: tt.flags}
		if got, want := e.Fuse(), tt.fuse; got != want {
			t.Errorf("FUSE of flags %#x: got %d, want %d", tt.flags, got, want)
		}
		if got, want := e.PSDT(), tt.psdt; got != want {
			t.Errorf("PSDT of flags %#x: got %d, want %d", tt.flags, got, want)
		}
		set := SQE{Flags: 0x3c}
		set.SetFuse(tt.fuse)
		set.SetPSDT(tt.psdt)
		if got, want := set.Flags, tt.flags|0x3c; got != want {
			t.Errorf("flags with FUSE %d and PSDT %d: got %#x, want %#x", tt.fuse, tt.psdt, got, want)
		}
	}
}

func TestCQE(t *testing.T) {
	e := CQE{DW0: 0x11223344, SQHead: 0x0506, SQID: 0x0708, CID: 0x090a}
	e.SetStatus(StatusLBAOutOfRange.WithDNR(), true)
	if got, want := e.Status, uint16(0x8101); got != want {
		t.Errorf("status and phase: got %#x, want %#x", got, want)
	}
	if !e.Phase() {
		t.Error("phase: got false, want true")
	}
	if got, want := e.StatusField(), StatusLBAOutOfRange|StatusDNR; got != want {
		t.Errorf("status field: got %#x, want %#x", got, want)
	}
	if got, want := e.DW2(), uint32(0x07080506); got != want {
		t.Errorf("DW2: got %#x, want %#x", got, want)
	}
	if got, want := e.DW3(), uint32(0x8101090a); got != want {
		t.Errorf("DW3: got %#x, want %#x", got, want)
	}
	e.SetStatus(StatusSuccess, false)
	if got, want := e.DW3(), uint32(0x0000090a); got != want {
		t.Errorf("DW3 of success in phase 0: got %#x, want %#x", got, want)
	}
	if e.Phase() {
		t.Error("phase: got true, want false")
	}
}
