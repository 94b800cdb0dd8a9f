// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"testing"
	"time"
)

func TestRegisterOffsets(t *testing.T) {
	tests := []struct {
		name      string
		got, want int
	}{
		{"CAP", RegCAP, 0x00}, {"VS", RegVS, 0x08}, {"INTMS", RegINTMS, 0x0c}, {"INTMC", RegINTMC, 0x10}, {"CC", RegCC, 0x14},
		{"CSTS", RegCSTS, 0x1c}, {"NSSR", RegNSSR, 0x20}, {"AQA", RegAQA, 0x24}, {"ASQ", RegASQ, 0x28}, {"ACQ", RegACQ, 0x30},
		{"CMBLOC", RegCMBLOC, 0x38}, {"CMBSZ", RegCMBSZ, 0x3c}, {"BPINFO", RegBPINFO, 0x40}, {"BPRSEL", RegBPRSEL, 0x44},
		{"BPMBL", RegBPMBL, 0x48}, {"CMBMSC", RegCMBMSC, 0x50}, {"CMBSTS", RegCMBSTS, 0x58}, {"NSSD", RegNSSD, 0x64},
		{"CRTO", RegCRTO, 0x68}, {"doorbells", RegDoorbells, 0x1000},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("offset of %s: got %#x, want %#x", tt.name, tt.got, tt.want)
		}
	}
}

func TestDoorbells(t *testing.T) {
	tests := []struct {
		qid    uint16
		dstrd  uint8
		sq, cq uint64
	}{
		{0, 0, 0x1000, 0x1004},
		{1, 0, 0x1008, 0x100c},
		{511, 0, 0x1ff8, 0x1ffc},
		{3, 2, 0x1060, 0x1070},
		{65535, 0, 0x1000 + 131070*4, 0x1000 + 131071*4},
		{65535, 15, 0x1000 + 131070*0x20000, 0x1000 + 131071*0x20000},
	}
	for _, tt := range tests {
		if got := SQDoorbell(tt.qid, tt.dstrd); got != tt.sq {
			t.Errorf("SQ doorbell of queue %d, stride %d: got %#x, want %#x", tt.qid, tt.dstrd, got, tt.sq)
		}
		if got := CQDoorbell(tt.qid, tt.dstrd); got != tt.cq {
			t.Errorf("CQ doorbell of queue %d, stride %d: got %#x, want %#x", tt.qid, tt.dstrd, got, tt.cq)
		}
		if qid, cq, ok := DoorbellAt(tt.sq, tt.dstrd); qid != tt.qid || cq || !ok {
			t.Errorf("doorbell at %#x: got %d, %v, %v, want %d, false, true", tt.sq, qid, cq, ok, tt.qid)
		}
		if qid, cq, ok := DoorbellAt(tt.cq, tt.dstrd); qid != tt.qid || !cq || !ok {
			t.Errorf("doorbell at %#x: got %d, %v, %v, want %d, true, true", tt.cq, qid, cq, ok, tt.qid)
		}
	}
	for _, off := range []uint64{0, 0xffc, 0x1002, 0x1000 + 131072*4, ^uint64(0) &^ 3} {
		if qid, cq, ok := DoorbellAt(off, 0); ok {
			t.Errorf("doorbell at %#x: got %d, %v, true, want none", off, qid, cq)
		}
	}
}

func TestCAP(t *testing.T) {
	c := CAP(0).WithMQES(1023).WithCQR(true).WithTO(255).WithDSTRD(2).WithNSSRS(true).WithCSS(CSSNVM | CSSIOCS).
		WithMPSMIN(1).WithMPSMAX(4).WithCRMS(CRMSWithMedia | CRMSIndependent)
	if got, want := uint64(c), uint64(0x1841<<48|0x0832<<32|0xff0103ff); got != want {
		t.Errorf("CAP: got %#x, want %#x", got, want)
	}
	got := []any{c.MQES(), c.CQR(), c.AMS(), c.TO(), c.Timeout(), c.DSTRD(), c.NSSRS(), c.CSS(), c.BPS(), c.CPS(), c.MPSMIN(), c.MPSMAX(),
		c.PMRS(), c.CMBS(), c.NSSS(), c.CRMS()}
	want := []any{uint16(1023), true, uint8(0), uint8(255), 127500 * time.Millisecond, uint8(2), true, uint8(0x41), false, uint8(0), uint8(1), uint8(4),
		false, false, false, uint8(3)}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("field %d of CAP: got %v, want %v", i, got[i], want[i])
		}
	}
	all := CAP(^uint64(0))
	if !all.BPS() || all.CPS() != 3 || !all.PMRS() || !all.CMBS() || !all.NSSS() || all.AMS() != 3 {
		t.Errorf("fields of a CAP of ones: got %v %d %v %v %v %d, want all set", all.BPS(), all.CPS(), all.PMRS(), all.CMBS(), all.NSSS(), all.AMS())
	}
	if got, want := all.WithCQR(false).WithTO(0), CAP(0xffffffff_00feffff); got != want {
		t.Errorf("CAP with fields cleared: got %#x, want %#x", got, want)
	}
}

func TestVS(t *testing.T) {
	tests := []struct {
		vs   VS
		raw  uint32
		want string
	}{
		{MakeVS(1, 4, 0), 0x00010400, "1.4"},
		{MakeVS(1, 2, 1), 0x00010201, "1.2.1"},
		{MakeVS(2, 1, 0), 0x00020100, "2.1"},
	}
	for _, tt := range tests {
		if got := uint32(tt.vs); got != tt.raw {
			t.Errorf("version %s: got %#x, want %#x", tt.want, got, tt.raw)
		}
		if got := tt.vs.String(); got != tt.want {
			t.Errorf("name of version %#x: got %q, want %q", tt.raw, got, tt.want)
		}
	}
}

func TestCC(t *testing.T) {
	c := CC(0).WithEN(true).WithCSS(CCCSSAllIO).WithMPS(1).WithAMS(1).WithSHN(SHNNormal).WithIOSQES(SQEShift).WithIOCQES(CQEShift)
	if got, want := uint32(c), uint32(0x004648e1); got != want {
		t.Errorf("CC: got %#x, want %#x", got, want)
	}
	got := []any{c.EN(), c.CSS(), c.MPS(), c.PageSize(), c.AMS(), c.SHN(), c.IOSQES(), c.IOCQES(), c.CRIME()}
	want := []any{true, CCCSSAllIO, uint8(1), uint64(8192), uint8(1), SHNNormal, uint8(6), uint8(4), false}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("field %d of CC: got %v, want %v", i, got[i], want[i])
		}
	}
	if !CC(1 << 24).CRIME() {
		t.Error("CRIME of CC bit 24: got false, want true")
	}
	if got, want := CC(^uint32(0)).PageSize(), uint64(128<<20); got != want {
		t.Errorf("largest page size: got %d, want %d", got, want)
	}
}

func TestCSTS(t *testing.T) {
	c := CSTS(0).WithRDY(true).WithCFS(true).WithSHST(SHSTComplete).WithNSSRO(true).WithPP(true)
	if got, want := uint32(c), uint32(0x3b); got != want {
		t.Errorf("CSTS: got %#x, want %#x", got, want)
	}
	if !c.RDY() || !c.CFS() || c.SHST() != SHSTComplete || !c.NSSRO() || !c.PP() || c.ST() {
		t.Errorf("fields of CSTS %#x: got %v %v %d %v %v %v", uint32(c), c.RDY(), c.CFS(), c.SHST(), c.NSSRO(), c.PP(), c.ST())
	}
	if got, want := c.WithRDY(false).WithSHST(SHSTOccurring), CSTS(0x36); got != want {
		t.Errorf("CSTS with fields changed: got %#x, want %#x", got, want)
	}
}

func TestAQAAndCRTO(t *testing.T) {
	a := MakeAQA(31, 4095)
	if got, want := uint32(a), uint32(0x0fff001f); got != want {
		t.Errorf("AQA: got %#x, want %#x", got, want)
	}
	if a.ASQS() != 31 || a.ACQS() != 4095 {
		t.Errorf("AQA sizes: got %d, %d, want 31, 4095", a.ASQS(), a.ACQS())
	}
	if got, want := MakeAQA(0xffff, 0xffff), AQA(0x0fff0fff); got != want {
		t.Errorf("AQA of too large sizes: got %#x, want %#x", got, want)
	}
	c := MakeCRTO(255, 2)
	if got, want := uint32(c), uint32(0x000200ff); got != want {
		t.Errorf("CRTO: got %#x, want %#x", got, want)
	}
	if c.CRWMT() != 255 || c.CRIMT() != 2 {
		t.Errorf("CRTO times: got %d, %d, want 255, 2", c.CRWMT(), c.CRIMT())
	}
}
