// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// putter is a structure with a fixed wire form.
type putter interface{ Put([]byte) }

func bytesOf(m putter, size int) []byte {
	b := make([]byte, size)
	m.Put(b)
	return b
}

// erase makes Parse functions of different types fit one table.
func erase[T any](parse func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) {
		v, err := parse(b)
		return &v, err
	}
}

var structures = []struct {
	name  string
	value putter
	size  int
	parse func([]byte) (any, error)
	hex   string // as captured from, or computed for, a real client
}{
	{"Header", &Header{ID: 0x102, Command: CmdDMAMap, Size: 48, Flags: FlagReply | FlagError, Errno: 17}, HeaderSize,
		erase(ParseHeader), "02010200 30000000 21000000 11000000"},
	{"DMAMap", &DMAMap{ArgSize: 32, Flags: DMARead | DMAWrite, Offset: 0x80000000, Address: 1 << 32, Size: 0xc0000000}, DMAMapSize,
		erase(ParseDMAMap), "20000000 03000000 0000008000000000 0000000001000000 000000c000000000"},
	{"DMAUnmap", &DMAUnmap{ArgSize: 24, Address: 0xc0000, Size: 0x20000}, DMAUnmapSize,
		erase(ParseDMAUnmap), "18000000 00000000 00000c0000000000 0000020000000000"},
	{"DMAAccess", &DMAAccess{Address: 0x1122334455667788, Count: 4096}, DMAAccessSize,
		erase(ParseDMAAccess), "8877665544332211 0010000000000000"},
	{"DeviceInfo", &DeviceInfo{ArgSize: 16, Flags: DeviceReset | DevicePCI, Regions: NumPCIRegions, IRQs: NumPCIIRQs}, DeviceInfoSize,
		erase(ParseDeviceInfo), "10000000 03000000 09000000 05000000"},
	{"RegionInfo", &RegionInfo{ArgSize: 64, Flags: RegionRead | RegionCaps, Index: RegionConfig, CapOffset: 32, Size: 0x2000, Offset: 0x1000}, RegionInfoSize,
		erase(ParseRegionInfo), "40000000 09000000 07000000 20000000 0020000000000000 0010000000000000"},
	{"RegionAccess", &RegionAccess{Offset: 0x1008, Region: RegionBAR0, Count: 4}, RegionAccessSize,
		erase(ParseRegionAccess), "0810000000000000 00000000 04000000"},
	{"RegionIOFDs", &RegionIOFDs{ArgSize: 16, Index: RegionBAR0, Count: 2}, RegionIOFDsSize,
		erase(ParseRegionIOFDs), "10000000 00000000 00000000 02000000"},
	{"IRQInfo", &IRQInfo{ArgSize: 16, Flags: IRQEventFD | IRQNoResize, Index: IRQMSIX, Count: 64}, IRQInfoSize,
		erase(ParseIRQInfo), "10000000 09000000 02000000 40000000"},
	{"IRQSet", &IRQSet{ArgSize: 20, Flags: IRQDataEventFD | IRQActionTrigger, Index: IRQMSIX, Start: 2, Count: 1}, IRQSetSize,
		erase(func(b []byte) (IRQSet, error) { m, _, err := ParseIRQSet(b); return m, err }), "14000000 24000000 02000000 02000000 01000000"},
	{"DeviceFeature", &DeviceFeature{ArgSize: 8, Flags: FeatureProbe | FeatureMigration}, DeviceFeatureSize,
		erase(ParseDeviceFeature), "08000000 01000400"},
	{"MigData", &MigData{ArgSize: 8, Size: 4096}, MigDataSize,
		erase(ParseMigData), "08000000 00100000"},
}

func TestStructures(t *testing.T) {
	for _, s := range structures {
		t.Run(s.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(s.hex, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got := bytesOf(s.value, s.size)
			if !slices.Equal(got, want) {
				t.Errorf("Put: got % x, want % x", got, want)
			}
			back, err := s.parse(append(want, 0xff, 0xff))
			if err != nil {
				t.Fatalf("parsing: %v", err)
			}
			if diff := cmp.Diff(any(s.value), back); diff != "" {
				t.Errorf("parsing: %s", diff)
			}
			for n := range s.size {
				_, err := s.parse(want[:n])
				if err == nil {
					t.Errorf("parsing %d of %d bytes: want an error", n, s.size)
				}
				var format *FormatError
				if s.name != "Header" && (!errors.As(err, &format) || !errors.Is(err, syscall.EINVAL)) {
					t.Errorf("parsing %d bytes: %v is no *FormatError", n, err)
				}
			}
		})
	}
}

func TestArgSizeTooSmall(t *testing.T) {
	for _, s := range structures {
		b := bytesOf(s.value, s.size)
		if s.name == "Header" || le.Uint32(b) != uint32(s.size) || s.name == "MigData" {
			continue
		}
		le.PutUint32(b, uint32(s.size-1))
		if _, err := s.parse(b); err == nil {
			t.Errorf("%s with argsz %d: want an error", s.name, s.size-1)
		}
	}
}

func TestParseIRQSet(t *testing.T) {
	const eventfd = IRQDataEventFD | IRQActionTrigger
	for _, test := range []struct {
		name  string
		set   IRQSet
		data  []byte
		bools []byte
		err   string
	}{
		{"disable", IRQSet{20, IRQDataNone | IRQActionTrigger, IRQMSIX, 0, 0}, nil, nil, ""},
		{"unmask", IRQSet{20, IRQDataNone | IRQActionUnmask, IRQINTx, 0, 1}, nil, nil, ""},
		{"bools", IRQSet{23, IRQDataBool | IRQActionTrigger, IRQMSIX, 1, 3}, []byte{1, 0, 1, 9}, []byte{1, 0, 1}, ""},
		{"few bools", IRQSet{22, IRQDataBool | IRQActionTrigger, IRQMSIX, 1, 3}, []byte{1, 0}, nil, "3 interrupts, data for 2"},
		{"no data kind", IRQSet{20, IRQActionTrigger, IRQMSIX, 0, 1}, nil, nil, "one kind of data and one action"},
		{"two data kinds", IRQSet{20, IRQDataNone | eventfd, IRQMSIX, 0, 1}, nil, nil, "one kind of data and one action"},
		{"two actions", IRQSet{20, eventfd | IRQActionMask, IRQMSIX, 0, 1}, nil, nil, "one kind of data and one action"},
		{"unknown flag", IRQSet{20, eventfd | 0x40, IRQMSIX, 0, 1}, nil, nil, "one kind of data and one action"},
		{"range overflow", IRQSet{20, eventfd, IRQMSIX, 0xffffffff, 2}, nil, nil, "range of 2 from 4294967295"},
	} {
		t.Run(test.name, func(t *testing.T) {
			set, bools, err := ParseIRQSet(append(bytesOf(&test.set, IRQSetSize), test.data...))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || set != test.set || !slices.Equal(bools, test.bools) {
				t.Errorf("got %+v, %v, %v", set, bools, err)
			}
		})
	}
}

func TestRegionInfoReply(t *testing.T) {
	info := RegionInfo{Flags: RegionRead | RegionWrite | RegionMmap, Index: RegionBAR0, Size: 0x4000}
	areas := []SparseArea{{0x1000, 0x1000}, {0x3000, 0x1000}}
	const full = 32 + 16 + 2*16

	short, mappable := RegionInfoReply(info, areas, RegionInfoSize)
	got, gotAreas, err := ParseRegionInfoReply(short)
	want := RegionInfo{ArgSize: full, Flags: RegionRead | RegionWrite, Index: RegionBAR0, Size: 0x4000}
	if err != nil || mappable || got != want || gotAreas != nil || len(short) != RegionInfoSize {
		t.Errorf("no room: got %+v %v %v %v, want %+v", got, gotAreas, mappable, err, want)
	}

	long, mappable := RegionInfoReply(info, areas, full)
	got, gotAreas, err = ParseRegionInfoReply(long)
	want.Flags |= RegionMmap | RegionCaps
	want.CapOffset = 32
	if err != nil || !mappable || got != want || !slices.Equal(gotAreas, areas) || len(long) != full {
		t.Errorf("room: got %+v %v %v %v, want %+v", got, gotAreas, mappable, err, want)
	}

	plain, mappable := RegionInfoReply(RegionInfo{Flags: RegionRead, Index: RegionConfig, Size: 4096}, nil, 32)
	got, gotAreas, err = ParseRegionInfoReply(plain)
	want = RegionInfo{ArgSize: 32, Flags: RegionRead, Index: RegionConfig, Size: 4096}
	if err != nil || mappable || got != want || gotAreas != nil {
		t.Errorf("plain: got %+v %v %v %v, want %+v", got, gotAreas, mappable, err, want)
	}
}

func TestParseRegionInfoReplyHostile(t *testing.T) {
	good, _ := RegionInfoReply(RegionInfo{Flags: RegionMmap, Size: 0x2000}, []SparseArea{{0x1000, 0x1000}}, 64)
	for _, test := range []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"caps flag without capability", func(b []byte) []byte { le.PutUint32(b[12:], 0); return b }, ""},
		{"capability inside structure", func(b []byte) []byte { le.PutUint32(b[12:], 16); return b }, "capability at offset 16"},
		{"capability past the end", func(b []byte) []byte { le.PutUint32(b[12:], 60); return b }, "capability at offset 60"},
		{"capability far away", func(b []byte) []byte { le.PutUint32(b[12:], 0xfffffffc); return b }, "capability at offset 4294967292"},
		{"loop", func(b []byte) []byte { le.PutUint32(b[36:], 32); return b }, "more than 16 capabilities"},
		{"unknown capability", func(b []byte) []byte { b[32] = 9; return b }, ""},
		{"cut before count", func(b []byte) []byte { return b[:40] }, "payload of 8 bytes"},
		{"cut before area", func(b []byte) []byte { return b[:60] }, "payload of 28 bytes"},
		{"many areas", func(b []byte) []byte { le.PutUint32(b[40:], 65); return b }, "65 areas"},
		{"area past the region", func(b []byte) []byte { le.PutUint64(b[56:], 0x1001); return b }, "area 0x1000+0x1001"},
		{"area wraps", func(b []byte) []byte { le.PutUint64(b[48:], ^uint64(0)); return b }, "in a region of 0x2000"},
	} {
		_, areas, err := ParseRegionInfoReply(test.change(slices.Clone(good)))
		if test.want == "" {
			if err != nil || areas != nil {
				t.Errorf("%s: got %v, %v, want nothing", test.name, areas, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

func TestParseRegionWrite(t *testing.T) {
	access := RegionAccess{Offset: 4, Region: RegionBAR0, Count: 2}
	b := append(bytesOf(&access, RegionAccessSize), 8, 9)
	if got, data, err := ParseRegionWrite(b); err != nil || got != access || !slices.Equal(data, []byte{8, 9}) {
		t.Errorf("got %+v, %v, %v", got, data, err)
	}
	for _, bad := range [][]byte{b[:17], append(slices.Clone(b), 0), b[:3]} {
		if _, _, err := ParseRegionWrite(bad); err == nil {
			t.Errorf("% x: want an error", bad)
		}
	}
}

func TestParseRegionWriteMulti(t *testing.T) {
	b := make([]byte, WriteMultiHeaderSize, 64)
	le.PutUint64(b, 2)
	for i := range 2 {
		m := RegionAccess{Offset: uint64(0x1000 + 4*i), Region: RegionBAR0, Count: uint32(4 * (i + 1))}
		b = append(b, bytesOf(&m, RegionAccessSize)...)
		b = append(b, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	w, err := ParseRegionWriteMulti(b)
	if err != nil || w.Len() != 2 {
		t.Fatalf("got %d writes, %v", w.Len(), err)
	}
	m, data := w.At(1)
	if m.Offset != 0x1004 || !slices.Equal(data, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("write 1: got %+v, % x", m, data)
	}
	if _, data := w.At(0); len(data) != 4 {
		t.Errorf("write 0: got % x, want 4 bytes", data)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":      func(b []byte) []byte { return b[:7] },
		"cut":        func(b []byte) []byte { return b[:len(b)-1] },
		"huge count": func(b []byte) []byte { le.PutUint64(b, ^uint64(0)); return b },
		"long write": func(b []byte) []byte { le.PutUint32(b[8+12:], 9); return b },
	} {
		if _, err := ParseRegionWriteMulti(change(slices.Clone(b))); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func TestStrings(t *testing.T) {
	for _, test := range []struct {
		got  interface{ String() string }
		want string
	}{
		{CmdDeviceSetIRQs, "DEVICE_SET_IRQS"}, {Command(14), "command 14"}, {Command(99), "command 99"},
		{Flags(0), "command"}, {FlagNoAck, "command|no_reply"}, {FlagReply | FlagError, "reply|error"}, {Flags(0x41), "reply|0x40"},
		{Flags(0x42), "0x42"},
		{DMARead | DMAWrite, "read|write"}, {DMAFlags(0), "0"}, {DMAFlags(0x11), "read|0x10"},
		{UnmapAll, "all"}, {DevicePCI, "pci"}, {RegionConfig, "CONFIG"}, {Region(12), "region 12"},
		{RegionMmap | RegionCaps, "mmap|caps"}, {IRQMSIX, "MSIX"}, {IRQ(7), "irq 7"},
		{IRQNoResize, "noresize"}, {IRQDataEventFD | IRQActionTrigger, "eventfd|trigger"},
		{FeatureMigration | FeatureProbe, "migration|probe"}, {FeatureFlags(3), "feature 3"},
	} {
		if got := test.got.String(); got != test.want {
			t.Errorf("%T: got %q, want %q", test.got, got, test.want)
		}
	}
}

func TestErrors(t *testing.T) {
	h := Header{Command: CmdDMAMap, Flags: FlagReply | FlagError, Errno: uint32(syscall.EEXIST)}
	if err := h.Err(); !errors.Is(err, syscall.EEXIST) || err.Error() != "DMA_MAP: file exists" {
		t.Errorf("got %v", err)
	}
	h.Errno = 0
	if err := h.Err(); err == nil || err.Error() != "DMA_MAP: refused without a reason" {
		t.Errorf("got %v", err)
	}
	h.Flags = FlagReply
	if err := h.Err(); err != nil {
		t.Errorf("good reply: got %v", err)
	}
	h.Flags = FlagError
	if err := h.Err(); err != nil {
		t.Errorf("command with the error bit: got %v", err)
	}
}

// qemuVersion is what QEMU 11.1 sends.
const qemuVersion = `{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, ` +
	`"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}`

func TestParseVersion(t *testing.T) {
	index := uint32(1)
	defaults := DefaultCapabilities()
	for _, test := range []struct {
		name, json string
		want       Capabilities
		err        string
	}{
		{"QEMU", qemuVersion + "\x00", Capabilities{16, 1 << 20, 65535, 4096, true, &Migration{4096, 1 << 28}, nil}, ""},
		{"nothing", "", defaults, ""},
		{"only NUL", "\x00", defaults, ""},
		{"no NUL", "{}", defaults, ""},
		{"bytes after NUL", "{}\x00garbage", defaults, ""},
		{"null", `{"capabilities": null}`, defaults, ""},
		{"unknown names", `{"a": [1], "capabilities": {"b": {}, "max_msg_fds": 2}}`, Capabilities{2, 1 << 20, 65535, 4096, false, nil, nil}, ""},
		{"twin socket", `{"capabilities": {"twin_socket": {"supported": true, "fd_index": 1}}}`,
			Capabilities{1, 1 << 20, 65535, 4096, false, nil, &TwinSocket{true, &index}}, ""},
		{"no JSON", "hello\x00", Capabilities{}, "capabilities: invalid character"},
		{"negative", `{"capabilities": {"max_msg_fds": -1}}`, Capabilities{}, "capabilities"},
		{"wrong type", `{"capabilities": {"write_multiple": 1}}`, Capabilities{}, "capabilities"},
		{"long", `{"a":"` + strings.Repeat("x", MaxVersionSize) + `"}`, Capabilities{}, "at most 4096 taken"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseVersion(append([]byte{0, 0, 1, 0}, test.json...))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || !errors.Is(err, syscall.EINVAL) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Version{0, 1, test.want}, got); diff != "" {
				t.Error(diff)
			}
			again, err := ParseVersion(got.Append(nil))
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("after Append: %v %s", err, diff)
			}
		})
	}
	if _, err := ParseVersion([]byte{0, 0, 0}); err == nil {
		t.Error("3 bytes: want an error")
	}
}

func TestNegotiate(t *testing.T) {
	server := Version{0, 1, Capabilities{8, 1 << 20, 65535, 4096, true, &Migration{4096, 1 << 20}, &TwinSocket{Supported: true}}}
	plain := server.Capabilities
	plain.WriteMultiple, plain.Migration, plain.TwinSocket = false, nil, nil
	for _, test := range []struct {
		name   string
		client Version
		want   Version
	}{
		{"QEMU", Version{0, 0, Capabilities{WriteMultiple: true, Migration: &Migration{}}},
			Version{0, 0, Capabilities{8, 1 << 20, 65535, 4096, true, &Migration{4096, 1 << 20}, nil}}},
		{"bare", Version{0, 1, DefaultCapabilities()}, Version{0, 1, plain}},
		{"newer", Version{0, 7, Capabilities{TwinSocket: &TwinSocket{}}}, Version{0, 1, plain}},
		{"all", Version{0, 1, server.Capabilities}, server},
	} {
		got, err := Negotiate(test.client, server)
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", test.name, err, diff)
		}
	}
	if _, err := Negotiate(Version{Major: 1}, server); err == nil {
		t.Error("major version 1: want an error")
	}
}
