// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fabrics

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// TestConnect holds the fields against their places in the specification's figure.
func TestConnect(t *testing.T) {
	want := ConnectCommand{RECFMT: 0x0102, QID: 0x0304, SQSIZE: 0x0506, CATTR: CATTRNoFlowControl, KATO: 0x0708090a}
	var e nvme.SQE
	want.Put(&e)
	b := nvme.Bytes(&e)
	if b[0] != 0x7f || b[4] != 0x01 {
		t.Errorf("opcode %#x, FCTYPE %#x", b[0], b[4])
	}
	for _, tt := range []struct {
		name      string
		got, want uint32
	}{
		{"RECFMT", uint32(binary.LittleEndian.Uint16(b[40:])), 0x0102},
		{"QID", uint32(binary.LittleEndian.Uint16(b[OffsetQID:])), 0x0304},
		{"SQSIZE", uint32(binary.LittleEndian.Uint16(b[OffsetSQSIZE:])), 0x0506},
		{"CATTR", uint32(b[46]), 4},
		{"KATO", binary.LittleEndian.Uint32(b[OffsetKATO:]), 0x0708090a},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %#x, want %#x", tt.name, tt.got, tt.want)
		}
	}
	if got := ConnectOf(&e); got != want || TypeOf(&e) != Connect {
		t.Errorf("read back as %+v, %v", got, TypeOf(&e))
	}
}

func TestProperty(t *testing.T) {
	for _, tt := range []struct {
		p    Property
		want uint64 // value read back
	}{
		{Property{OFST: nvme.RegCC, Value: 0x1_00460001}, 0x00460001},
		{Property{Wide: true, OFST: nvme.RegCAP, Value: 0x1_00460001}, 0x1_00460001},
	} {
		var e nvme.SQE
		tt.p.PutSet(&e)
		b := nvme.Bytes(&e)
		if b[0] != 0x7f || b[4] != 0 || b[40] != attribOf(tt.p.Wide) || binary.LittleEndian.Uint32(b[44:]) != tt.p.OFST ||
			binary.LittleEndian.Uint64(b[48:]) != tt.want {
			t.Errorf("Property Set %+v is % x", tt.p, b)
		}
		if got, ok := PropertyOf(&e); !ok || got.Value != tt.want || got.Wide != tt.p.Wide || got.OFST != tt.p.OFST {
			t.Errorf("%+v read back as %+v, %v", tt.p, got, ok)
		}
		e = nvme.SQE{}
		tt.p.PutGet(&e)
		if got, ok := PropertyOf(&e); !ok || TypeOf(&e) != PropertyGet || got.Value != 0 || got.OFST != tt.p.OFST {
			t.Errorf("Property Get %+v read back as %+v, %v", tt.p, got, ok)
		}
	}
	for attrib := range uint32(8) {
		if _, ok := PropertyOf(&nvme.SQE{CDW10: attrib}); ok != (attrib < 2) {
			t.Errorf("ATTRIB %d: ok %v", attrib, ok)
		}
	}
}

func attribOf(wide bool) uint8 {
	if wide {
		return 1
	}
	return 0
}

func TestInvalidParameter(t *testing.T) {
	for _, tt := range []struct {
		offset uint16
		inData bool
		raw    uint32
		text   string
	}{
		{OffsetQID, false, 42, "QID"},
		{OffsetCNTLID, true, 0x10010, "CNTLID"},
		{OffsetSUBNQN, true, 0x10100, "SUBNQN"},
		{OffsetHOSTNQN, true, 0x10200, "HOSTNQN"},
		{46, false, 46, "byte 46 of the command"},
		{300, true, 0x1012c, "byte 300 of the data"},
	} {
		p := MakeInvalidParameter(tt.offset, tt.inData)
		if uint32(p) != tt.raw || p.IPO() != tt.offset || p.InData() != tt.inData || p.String() != tt.text {
			t.Errorf("%d, %v: %#x %d %v %q", tt.offset, tt.inData, uint32(p), p.IPO(), p.InData(), p)
		}
	}
}

func TestName(t *testing.T) {
	full := strings.Repeat("x", 256)
	for _, tt := range []struct {
		field, want string
		ok          bool
	}{
		{"nqn.a\x00", "nqn.a", true},
		{"\x00", "", true},
		{full[:255] + "\x00", full[:255], true},
		{full, "", false},
		{"nqn.a\x00b", "", false},
	} {
		var f [256]byte
		copy(f[:], tt.field)
		if got, ok := Name(&f); got != tt.want || ok != tt.ok {
			t.Errorf("%.10q: %q, %v; want %q, %v", tt.field, got, ok, tt.want, tt.ok)
		}
	}
}

func TestDiscoveryEntry(t *testing.T) {
	e := DiscoveryEntry{TRTYPE: TransportTCP, ADRFAM: FamilyIPv4, SUBTYPE: SubsystemNVM, PORTID: 1, CNTLID: CNTLIDDynamic, ASQSZ: MinAdminQueue}
	e.Set("nqn.a", "192.0.2.1", "4420")
	b := Bytes(&e)
	if string(b[32:37]) != "4420 " || string(b[512:522]) != "192.0.2.1 " || string(b[256:262]) != "nqn.a\x00" || b[767] != ' ' {
		t.Errorf("entry is % x", b)
	}
	if e.Subsystem() != "nqn.a" || e.Address() != "192.0.2.1" || e.Service() != "4420" {
		t.Errorf("read back as %q %q %q", e.Subsystem(), e.Address(), e.Service())
	}
	clear(e.TRADDR[:])
	copy(e.TRADDR[:], "10.0.0.1\x00junk\x1b")
	if got := e.Address(); got != "10.0.0.1" {
		t.Errorf("padded by NUL: %q", got)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{Connect.String(), "Connect"},
		{CommandType(0x44).String(), "Fabrics Command 44h"},
		{StatusText(StatusInvalidHost.WithDNR()), "Connect Invalid Host"},
		{StatusText(nvme.StatusInvalidField), nvme.StatusInvalidField.String()},
		{TypeR2T.String(), "R2T"},
		{PDUType(8).String(), "PDU type 08h"},
		{PDUType(255).String(), "PDU type FFh"},
		{TransportTCP.String(), "tcp"},
		{TransportType(9).String(), "transport-9"},
		{FamilyIPv6.String(), "ipv6"},
		{SubsystemReferral.String(), "referral"},
		{FESHeaderDigest.String(), "Header Digest Error"},
		{FES(77).String(), "Fatal Error Status 4Dh"},
		{Violation{FESInvalidHeader, 4}.String(), "Invalid PDU Header Field at byte 4"},
		{Violation{FESSequence, 0}.String(), "PDU Sequence Error"},
		{Violation{FESHeaderDigest, 0xab}.String(), "Header Digest Error: got 000000ab"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
