// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"regexp"
	"strings"
	"testing"
)

func TestFormatSQE(t *testing.T) {
	read := SQE{Opcode: 0x02, CID: 5, NSID: 1, PRP1: 0x1000, PRP2: 0x2000}
	RW{SLBA: 2048, NLB: 7, FUA: true, PRINFO: 0xf}.Put(&read)

	fused := SQE{Opcode: 0x05, CID: 6, NSID: 1, MPTR: 0x3000}
	RW{SLBA: 1 << 40}.Put(&fused)
	fused.SetFuse(FuseFirst)
	fused.SetPSDT(PSDTSGL)
	fused.SetSGL1(MakeSGL(SGLDataBlock, SGLAddress, 0x4000, 512))

	keyed := SQE{Opcode: 0x00, Flags: 0x83, CID: 7, NSID: NSIDBroadcast, PRP1: 0x10, PRP2: 0x40_12345678_000200}

	createCQ := SQE{CID: 1, PRP1: 0x7000}
	CreateCQ{QID: 2, QSIZE: 1023, PC: true, IEN: true, IV: 3}.Put(&createCQ)
	createSQ := SQE{CID: 1, PRP1: 0x7000}
	CreateSQ{QID: 2, QSIZE: 65535, PC: true, CQID: 2}.Put(&createSQ)
	log := SQE{NSID: NSIDBroadcast}
	GetLogPage{LID: LogSMART, RAE: true, NUMD: 127, LPO: 4}.Put(&log)
	format := SQE{NSID: 1}
	FormatNVM{LBAF: 1, SES: SESUserData}.Put(&format)
	dsm := SQE{NSID: 1}
	DatasetManagement{NR: 1, AD: true}.Put(&dsm)
	cp := SQE{NSID: 1}
	Copy{SDLBA: 9, NR: 2, Format: 1}.Put(&cp)
	zeroes := SQE{Opcode: 0x08, NSID: 1}
	RW{NLB: 65535, DEAC: true}.Put(&zeroes)

	tests := []struct {
		admin bool
		e     SQE
		want  string
	}{
		{false, read, "op=read opc=0x02 cid=5 nsid=1 lba=2048 blocks=8 fua=1 lr=0 prinfo=0xf prp1=0x1000 prp2=0x2000"},
		{false, fused, "op=compare opc=0x05 cid=6 nsid=1 fuse=first lba=1099511627776 blocks=1 fua=0 lr=0 prinfo=0x0 " +
			"sgl_type=0x0 sgl_subtype=0x0 sgl_address=0x4000 sgl_length=512 mptr=0x3000"},
		{false, keyed, "op=flush opc=0x00 cid=7 nsid=4294967295 fuse=reserved " +
			"sgl_type=0x4 sgl_subtype=0x0 sgl_address=0x10 sgl_length=512 sgl_key=0x12345678"},
		{false, zeroes, "op=write_zeroes opc=0x08 cid=0 nsid=1 lba=0 blocks=65536 fua=0 lr=0 prinfo=0x0 deac=1 prp1=0x0 prp2=0x0"},
		{false, dsm, "op=dataset_management opc=0x09 cid=0 nsid=1 ranges=2 idr=0 idw=0 ad=1 prp1=0x0 prp2=0x0"},
		{false, cp, "op=copy opc=0x19 cid=0 nsid=1 lba=9 ranges=3 format=1 fua=0 lr=0 prp1=0x0 prp2=0x0"},
		{false, SQE{Opcode: 0x90, Flags: 0xc2, CDW10: 1, CDW15: 0xffffffff, PRP1: 1, PRP2: 2},
			"op=vendor_specific_io_90h opc=0x90 cid=0 nsid=0 fuse=second cdw10=0x00000001 cdw11=0x00000000 cdw12=0x00000000 " +
				"cdw13=0x00000000 cdw14=0x00000000 cdw15=0xffffffff psdt=reserved dptr0=0x1 dptr1=0x2"},
		{true, SQE{Opcode: 0x00, CDW10: 3}, "op=delete_io_submission_queue opc=0x00 cid=0 nsid=0 qid=3 prp1=0x0 prp2=0x0"},
		{true, createCQ, "op=create_io_completion_queue opc=0x05 cid=1 nsid=0 qid=2 entries=1024 pc=1 ien=1 iv=3 prp1=0x7000 prp2=0x0"},
		{true, createSQ, "op=create_io_submission_queue opc=0x01 cid=1 nsid=0 qid=2 entries=65536 pc=1 qprio=0 cqid=2 nvmsetid=0 " +
			"prp1=0x7000 prp2=0x0"},
		{true, log, "op=get_log_page opc=0x02 cid=0 nsid=4294967295 lid=0x02 lsp=0x00 rae=1 bytes=512 lsi=0 lpo=4 ot=0 csi=0 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x06, CDW10: 1}, "op=identify opc=0x06 cid=0 nsid=0 cns=0x01 cntid=0 cnssid=0 csi=0 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x08, CDW10: 0x00050001}, "op=abort opc=0x08 cid=0 nsid=0 sqid=1 abort_cid=5 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x09, CDW10: 0x80000006, CDW11: 1},
			"op=set_features opc=0x09 cid=0 nsid=0 fid=0x06 sv=1 cdw11=0x00000001 cdw12=0x00000000 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x0a, CDW10: 0x0207}, "op=get_features opc=0x0a cid=0 nsid=0 fid=0x07 sel=2 cdw11=0x00000000 prp1=0x0 prp2=0x0"},
		{true, format, "op=format_nvm opc=0x80 cid=0 nsid=1 lbaf=1 mset=0 pi=0 pil=0 ses=1 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x0c, CID: 9}, "op=asynchronous_event_request opc=0x0c cid=9 nsid=0 prp1=0x0 prp2=0x0"},
		{true, SQE{Opcode: 0x84}, "op=sanitize opc=0x84 cid=0 nsid=0 cdw10=0x00000000 cdw11=0x00000000 cdw12=0x00000000 " +
			"cdw13=0x00000000 cdw14=0x00000000 cdw15=0x00000000 prp1=0x0 prp2=0x0"},
	}
	for _, tt := range tests {
		if got := FormatSQE(tt.admin, &tt.e); got != tt.want {
			t.Errorf("SQE of opcode %#x, admin %v:\ngot  %s\nwant %s", tt.e.Opcode, tt.admin, got, tt.want)
		}
	}
}

func TestFormatCQE(t *testing.T) {
	e := CQE{DW0: 0x00030003, SQHead: 12, SQID: 1, CID: 34}
	e.SetStatus(StatusLBAOutOfRange.WithDNR(), true)
	want := "sqid=1 sqhd=12 cid=34 phase=1 status=lba_out_of_range sct=0x0 sc=0x80 crd=0 more=0 dnr=1 dw0=0x00030003 dw1=0x00000000"
	if got := FormatCQE(&e); got != want {
		t.Errorf("CQE:\ngot  %s\nwant %s", got, want)
	}
	e = CQE{DW1: 1, Status: 0xf000}
	want = "sqid=0 sqhd=0 cid=0 phase=0 status=successful_completion sct=0x0 sc=0x00 crd=2 more=1 dnr=1 dw0=0x00000000 dw1=0x00000001"
	e.SetStatus((StatusSuccess | StatusMore).WithCRD(2).WithDNR(), false)
	if got := FormatCQE(&e); got != want {
		t.Errorf("CQE with retry bits:\ngot  %s\nwant %s", got, want)
	}
}

// keyValues is the promise of both formatters: fields without blanks, no key twice.
var keyValues = regexp.MustCompile(`^[a-z0-9_]+=[a-z0-9_().-]+( [a-z0-9_]+=[a-z0-9_().-]+)*$`)

func checkFields(t *testing.T, line string) {
	if !keyValues.MatchString(line) {
		t.Fatalf("line is not key=value fields: %q", line)
	}
	seen := make(map[string]bool)
	for f := range strings.FieldsSeq(line) {
		key, _, _ := strings.Cut(f, "=")
		if seen[key] {
			t.Fatalf("key %s twice: %q", key, line)
		}
		seen[key] = true
	}
}

func TestFormatEveryOpcodeAndStatus(t *testing.T) {
	for opc := range 256 {
		for _, flags := range []uint8{0x00, 0x41, 0x82, 0xc3} {
			e := SQE{Opcode: uint8(opc), Flags: flags, MPTR: 1, PRP2: 0x40 << 56}
			checkFields(t, FormatSQE(true, &e))
			checkFields(t, FormatSQE(false, &e))
		}
	}
	for code := range 1 << 11 {
		checkFields(t, FormatCQE(&CQE{Status: uint16(code) << 1}))
	}
}

func FuzzFormatEntries(f *testing.F) {
	seed := SQE{Opcode: 0x02, CID: 1, NSID: 1, CDW12: 7}
	f.Add(true, Bytes(&seed))
	f.Add(false, Bytes(&seed))
	f.Add(true, []byte(strings.Repeat("\xff", 64)))
	f.Add(false, []byte{0x19, 0x80})
	f.Fuzz(func(t *testing.T, admin bool, data []byte) {
		var e SQE
		copy(Bytes(&e), data)
		checkFields(t, FormatSQE(admin, &e))
		var c CQE
		copy(Bytes(&c), data)
		checkFields(t, FormatCQE(&c))
	})
}
