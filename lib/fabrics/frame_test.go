// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fabrics

import (
	"testing"
)

func TestDigest(t *testing.T) {
	// RFC 3720, B.4: 32 bytes of zeroes.
	zeroes := make([]byte, 32)
	if got := Digest(zeroes); got != 0x8a9136aa {
		t.Errorf("digest is %#x", got)
	}
	if got := DigestMore(DigestMore(0, zeroes[:7]), zeroes[7:]); got != 0x8a9136aa {
		t.Errorf("digest in two pieces is %#x", got)
	}
}

func TestTermReq(t *testing.T) {
	v := Violation{FESInvalidHeader, 0x01020304}
	req := MakeTermReq(TypeC2HTermReq, v, 8)
	b := Bytes(&req)
	if string(b[:14]) != "\x03\x00\x18\x00\x20\x00\x00\x00\x01\x00\x04\x03\x02\x01" || req.Violation() != v {
		t.Errorf("% x is %v", b, req.Violation())
	}
}

// plain and digests are framings of PDUs from the host.
var (
	plain   = Framing{From: FromHost, Align: 4, MaxCapsule: 8192, MaxData: 65536}
	digests = Framing{From: FromHost, HeaderDigest: true, DataDigest: true, Align: 64, MaxCapsule: 8192, MaxData: 65536}
)

func TestFramingCheck(t *testing.T) {
	toHost := Framing{From: FromController, Align: 4, MaxData: 1 << 20}
	bad := func(fes FES, fei uint32) Violation { return Violation{fes, fei} }
	both := FlagHDGST | FlagDDGST
	for _, tt := range []struct {
		name string
		f    Framing
		h    CommonHeader
		want Frame
		v    Violation
	}{
		{"ICReq", plain, CommonHeader{TypeICReq, 0, 128, 0, 128}, Frame{128, 128, 0, 128, false}, Violation{}},
		{"ICReq with digests agreed", digests, CommonHeader{TypeICReq, 0, 128, 0, 128}, Frame{128, 128, 0, 128, false}, Violation{}},
		{"ICReq too short", plain, CommonHeader{TypeICReq, 0, 128, 0, 127}, Frame{}, bad(FESInvalidHeader, 4)},
		{"ICReq too long", plain, CommonHeader{TypeICReq, 0, 128, 0, 129}, Frame{}, bad(FESInvalidHeader, 4)},
		{"ICReq with flags", plain, CommonHeader{TypeICReq, 1, 128, 0, 128}, Frame{}, bad(FESInvalidHeader, 1)},
		{"ICResp from a host", plain, CommonHeader{TypeICResp, 0, 128, 0, 128}, Frame{}, bad(FESInvalidHeader, 0)},
		{"unknown type 08h", plain, CommonHeader{8, 0, 24, 0, 24}, Frame{}, bad(FESInvalidHeader, 0)},
		{"unknown type 0Ah", plain, CommonHeader{10, 0, 24, 0, 24}, Frame{}, bad(FESInvalidHeader, 0)},
		{"unknown type FFh", plain, CommonHeader{255, 0, 24, 0, 24}, Frame{}, bad(FESInvalidHeader, 0)},
		{"capsule", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 0, 72}, Frame{72, 72, 0, 72, false}, Violation{}},
		{"capsule, HLEN", plain, CommonHeader{TypeCapsuleCmd, 0, 71, 0, 72}, Frame{}, bad(FESInvalidHeader, 2)},
		{"capsule, PLEN", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 0, 71}, Frame{}, bad(FESInvalidHeader, 3)},
		{"capsule with data", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 72, 584}, Frame{72, 72, 512, 584, false}, Violation{}},
		{"capsule with most data", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 72, 72 + 8192}, Frame{72, 72, 8192, 72 + 8192, false}, Violation{}},
		{"capsule with too much", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 72, 72 + 8193}, Frame{}, bad(FESInvalidHeader, 4)},
		{"capsule, PDO in the header", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 68, 584}, Frame{}, bad(FESInvalidHeader, 3)},
		{"capsule, PDO misaligned", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 74, 584}, Frame{}, bad(FESInvalidHeader, 3)},
		{"capsule, PDO beyond", plain, CommonHeader{TypeCapsuleCmd, 0, 72, 100, 100}, Frame{}, bad(FESInvalidHeader, 4)},
		{"capsule, digest unasked for", plain, CommonHeader{TypeCapsuleCmd, FlagHDGST, 72, 0, 76}, Frame{}, bad(FESInvalidHeader, 1)},
		{"capsule, digest", digests, CommonHeader{TypeCapsuleCmd, FlagHDGST, 72, 0, 76}, Frame{76, 76, 0, 76, false}, Violation{}},
		{"capsule, no header digest", digests, CommonHeader{TypeCapsuleCmd, 0, 72, 0, 72}, Frame{}, bad(FESInvalidHeader, 1)},
		{"capsule with data, digests", digests, CommonHeader{TypeCapsuleCmd, both, 72, 128, 128 + 512 + 4}, Frame{76, 128, 512, 644, true}, Violation{}},
		{"capsule with data, no data digest", digests, CommonHeader{TypeCapsuleCmd, FlagHDGST, 72, 128, 640}, Frame{}, bad(FESInvalidHeader, 1)},
		{"capsule with data, PDO in the digest", digests, CommonHeader{TypeCapsuleCmd, both, 72, 64, 644}, Frame{}, bad(FESInvalidHeader, 3)},
		{"capsule, digest alone", digests, CommonHeader{TypeCapsuleCmd, both, 72, 128, 132}, Frame{}, bad(FESInvalidHeader, 4)},
		{"H2CData", plain, CommonHeader{TypeH2CData, FlagLast, 24, 24, 24 + 65536}, Frame{24, 24, 65536, 24 + 65536, false}, Violation{}},
		{"H2CData beyond MAXH2CDATA", plain, CommonHeader{TypeH2CData, FlagLast, 24, 24, 24 + 65540}, Frame{}, bad(FESLimitExceeded, 0)},
		{"H2CData without data", plain, CommonHeader{TypeH2CData, FlagLast, 24, 24, 24}, Frame{}, bad(FESInvalidHeader, 4)},
		{"H2CData, SUCCESS", plain, CommonHeader{TypeH2CData, FlagLast | FlagSuccess, 24, 24, 36}, Frame{}, bad(FESInvalidHeader, 1)},
		{"H2CData, huge", plain, CommonHeader{TypeH2CData, 0, 24, 24, 0xffffffff}, Frame{}, bad(FESLimitExceeded, 0)},
		{"H2CTermReq", digests, CommonHeader{TypeH2CTermReq, 0, 24, 0, 96}, Frame{24, 24, 72, 96, false}, Violation{}},
		{"H2CTermReq, nothing cited", plain, CommonHeader{TypeH2CTermReq, 0, 24, 0, 24}, Frame{24, 24, 0, 24, false}, Violation{}},
		{"H2CTermReq too long", plain, CommonHeader{TypeH2CTermReq, 0, 24, 0, 153}, Frame{}, bad(FESInvalidHeader, 4)},
		{"H2CTermReq too short", plain, CommonHeader{TypeH2CTermReq, 0, 24, 0, 23}, Frame{}, bad(FESInvalidHeader, 4)},
		{"R2T from a host", plain, CommonHeader{TypeR2T, 0, 24, 0, 24}, Frame{}, bad(FESInvalidHeader, 0)},
		{"R2T", toHost, CommonHeader{TypeR2T, 0, 24, 0, 24}, Frame{24, 24, 0, 24, false}, Violation{}},
		{"CapsuleResp", toHost, CommonHeader{TypeCapsuleResp, 0, 24, 0, 24}, Frame{24, 24, 0, 24, false}, Violation{}},
		{"CapsuleResp with data", toHost, CommonHeader{TypeCapsuleResp, 0, 24, 24, 28}, Frame{}, bad(FESInvalidHeader, 4)},
		{"C2HData", toHost, CommonHeader{TypeC2HData, FlagLast | FlagSuccess, 24, 24, 4120}, Frame{24, 24, 4096, 4120, false}, Violation{}},
		{"C2HData, SUCCESS before the last", toHost, CommonHeader{TypeC2HData, FlagSuccess, 24, 24, 4120}, Frame{}, bad(FESInvalidHeader, 1)},
		{"capsule to a host", toHost, CommonHeader{TypeCapsuleCmd, 0, 72, 0, 72}, Frame{}, bad(FESInvalidHeader, 0)},
	} {
		got, v := tt.f.Check(&tt.h)
		if got != tt.want || v != tt.v {
			t.Errorf("%s: %+v, %v; want %+v, %v", tt.name, got, v, tt.want, tt.v)
		}
	}
}

// TestFramingMake: what Make makes, Check accepts with the same frame.
func TestFramingMake(t *testing.T) {
	for typ := range formats {
		for _, hdgst := range []bool{false, true} {
			for _, ddgst := range []bool{false, true} {
				for pda := range uint8(MaxPDA + 1) {
					if formats[typ].hlen == 0 {
						continue
					}
					f := Framing{formats[typ].from, hdgst, ddgst, Align(pda), 8192, 65536}
					n := uint32(0)
					if formats[typ].data {
						n = 4096
					}
					var h CommonHeader
					want := f.Make(&h, PDUType(typ), 0, n)
					if got, v := f.Check(&h); v.Bad() || got != want {
						t.Errorf("%+v, %+v: %v, %+v, want %+v", f, h, v, got, want)
					}
				}
			}
		}
	}
}

func TestDataCheck(t *testing.T) {
	d := Data{DATAL: 512}
	if v := d.Check(Frame{DataLength: 512}); v.Bad() {
		t.Error(v)
	}
	if v := d.Check(Frame{DataLength: 508}); v != (Violation{FESInvalidHeader, OffsetDATAL}) {
		t.Error(v)
	}
}

// FuzzFraming: whatever a header says, the frame lies within the PDU and the limits.
func FuzzFraming(f *testing.F) {
	f.Add(uint64(0x48_0048_0004), uint8(0), uint8(0))
	f.Add(uint64(0x1018_1818_0c07), uint8(1), uint8(31))
	f.Fuzz(func(t *testing.T, raw uint64, how, pda uint8) {
		h := CommonHeader{PDUType(raw), uint8(raw >> 8), uint8(raw >> 16), uint8(raw >> 24), uint32(raw >> 32)}
		fr := Framing{Direction(how & 1), how&2 != 0, how&4 != 0, Align(pda % (MaxPDA + 1)), 8192, 131072}
		got, v := fr.Check(&h)
		if v.Bad() {
			return
		}
		tail := uint32(0)
		if got.HasDigest {
			tail = DigestSize
		}
		if got.Header < uint32(h.HLEN) || got.Header > MaxHeaderSize || got.DataOffset < got.Header || got.Length != h.PLEN ||
			uint64(got.DataOffset)+uint64(got.DataLength)+uint64(tail) != uint64(got.Length) || got.DataLength > 131072 {
			t.Errorf("%+v, %+v: %+v", fr, h, got)
		}
	})
}
