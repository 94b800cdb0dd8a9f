// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

// Each command is written, compared with the dwords the specification asks for, and read back.
func TestCommands(t *testing.T) {
	type putter interface{ Put(*SQE) }
	tests := []struct {
		name    string
		command putter
		read    func(*SQE) any
		want    SQE
	}{
		{"Create I/O Completion Queue", CreateCQ{QID: 3, QSIZE: 1023, PC: true, IEN: true, IV: 7},
			func(e *SQE) any { return e.CreateCQ() },
			SQE{Opcode: 0x05, CDW10: 0x03ff0003, CDW11: 0x00070003}},
		{"Create I/O Submission Queue", CreateSQ{QID: 4, QSIZE: 63, PC: true, QPRIO: QPRIOMedium, CQID: 3, NVMSETID: 9},
			func(e *SQE) any { return e.CreateSQ() },
			SQE{Opcode: 0x01, CDW10: 0x003f0004, CDW11: 0x00030005, CDW12: 9}},
		{"Identify", Identify{CNS: CNSIOCSNamespace, CNTID: 0x1234, CNSSID: 0x5678, CSI: CSIZNS, UUIDIndex: 5},
			func(e *SQE) any { return e.Identify() },
			SQE{Opcode: 0x06, CDW10: 0x12340005, CDW11: 0x02005678, CDW14: 5}},
		{"Get Log Page", GetLogPage{LID: LogSMART, LSP: 0x5a, RAE: true, NUMD: 0x0002007f, LSI: 0x1122, LPO: 0x0000000100000200,
			UUIDIndex: 3, OT: true, CSI: CSIZNS},
			func(e *SQE) any { return e.GetLogPage() },
			SQE{Opcode: 0x02, CDW10: 0x007fda02, CDW11: 0x11220002, CDW12: 0x200, CDW13: 1, CDW14: 0x02800003}},
		{"Set Features", SetFeatures{FID: FeatNumberOfQueues, SV: true, Value: uint32(MakeNumberOfQueues(3, 4)), UUIDIndex: 1},
			func(e *SQE) any { return e.SetFeatures() },
			SQE{Opcode: 0x09, CDW10: 0x80000007, CDW11: 0x00040003, CDW14: 1}},
		{"Get Features", GetFeatures{FID: FeatArbitration, SEL: SelectSupported, Value: 5, UUIDIndex: 2},
			func(e *SQE) any { return e.GetFeatures() },
			SQE{Opcode: 0x0a, CDW10: 0x00000301, CDW11: 5, CDW14: 2}},
		{"Abort", Abort{SQID: 2, CID: 0xabcd},
			func(e *SQE) any { return e.Abort() },
			SQE{Opcode: 0x08, CDW10: 0xabcd0002}},
		{"Format NVM", FormatNVM{LBAF: 0x25, MSET: true, PI: 1, PIL: true, SES: SESCrypto},
			func(e *SQE) any { return e.FormatNVM() },
			SQE{Opcode: 0x80, CDW10: 0x00002535}},
		{"Doorbell Buffer Config", DoorbellBuffer{Shadow: 0x1000, EventIndex: 0x2000},
			func(e *SQE) any { return e.DoorbellBuffer() },
			SQE{Opcode: 0x7c, PRP1: 0x1000, PRP2: 0x2000}},
		{"Write", RW{SLBA: 0x0102030405060708, NLB: 7, FUA: true, PRINFO: 0x9, STC: true, DTYPE: 2, DSPEC: 0x1234, DSM: 0x56},
			func(e *SQE) any { return e.RW() },
			SQE{CDW10: 0x05060708, CDW11: 0x01020304, CDW12: 0x65200007, CDW13: 0x12340056}},
		{"Write Zeroes", RW{SLBA: 1, NLB: 65535, LR: true, DEAC: true},
			func(e *SQE) any { return e.RW() },
			SQE{CDW10: 1, CDW12: 0x8200ffff}},
		{"Dataset Management", DatasetManagement{NR: 255, IDW: true, AD: true},
			func(e *SQE) any { return e.DatasetManagement() },
			SQE{Opcode: 0x09, CDW10: 255, CDW11: 6}},
		{"Copy", Copy{SDLBA: 1 << 40, NR: 3, Format: 2, PRINFOR: 0xa, PRINFOW: 0x5, STCW: true, DTYPE: 1, FUA: true, LR: true, DSPEC: 8},
			func(e *SQE) any { return e.Copy() },
			SQE{Opcode: 0x19, CDW11: 0x100, CDW12: 0xd510a203, CDW13: 0x00080000}},
	}
	for _, tt := range tests {
		var got SQE
		tt.command.Put(&got)
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
		if got := tt.read(&tt.want); got != tt.command {
			t.Errorf("%s read back: got %+v, want %+v", tt.name, got, tt.command)
		}
	}
}

func TestCommandCounts(t *testing.T) {
	if got, want := (RW{}).Blocks(), uint32(1); got != want {
		t.Errorf("blocks of NLB 0: got %d, want %d", got, want)
	}
	if got, want := (RW{NLB: 0xffff}).Blocks(), uint32(65536); got != want {
		t.Errorf("blocks of NLB FFFFh: got %d, want %d", got, want)
	}
	if got, want := (GetLogPage{NUMD: 0xffffffff}).Bytes(), uint64(1)<<34; got != want {
		t.Errorf("bytes of NUMD FFFFFFFFh: got %d, want %d", got, want)
	}
	if got, want := (DatasetManagement{NR: 255}).Ranges(), DSMRangesMax; got != want {
		t.Errorf("ranges of NR FFh: got %d, want %d", got, want)
	}
	if got, want := (Copy{NR: 255}).Ranges(), CopyRangesMax; got != want {
		t.Errorf("source ranges of NR FFh: got %d, want %d", got, want)
	}
	if got, want := (&SQE{CDW10: 0xffff0005}).DeleteQID(), uint16(5); got != want {
		t.Errorf("queue to delete: got %d, want %d", got, want)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	e := SQE{Opcode: uint8(IORead), CDW12: 7}
	var c CQE
	var sink uint64
	allocs := testing.AllocsPerRun(100, func() {
		rw := e.RW()
		d := e.SGL1()
		c.SetStatus(StatusLBAOutOfRange.WithDNR(), true)
		sink += rw.SLBA + uint64(rw.Blocks()) + d.Address + uint64(c.DW3()) + uint64(Bytes(&e)[0])
	})
	if allocs != 0 {
		t.Errorf("allocations per command: got %v, want 0", allocs)
	}
	if sink == 0 {
		t.Error("sum of fields: got 0, want more")
	}
}
