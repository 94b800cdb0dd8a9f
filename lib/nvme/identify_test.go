// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFormatInUse(t *testing.T) {
	tests := []struct {
		nlbaf, flbas, lbads uint8
		index               uint8
		size                uint32
		ok                  bool
	}{
		{0, 0x00, 9, 0, 512, true},
		{1, 0x11, 12, 1, 4096, true},
		{15, 0x6f, 9, 15, 512, true}, // bits 6:5 count only with more than 16 formats
		{63, 0x6f, 9, 63, 512, true},
		{63, 0x20, 31, 16, 1 << 31, true},
		{0, 0, 0, 0, 0, false},
		{0, 0, 8, 0, 0, false},
		{0, 0, 255, 0, 0, false},
	}
	for _, tt := range tests {
		n := IdentifyNamespace{NLBAF: tt.nlbaf, FLBAS: tt.flbas}
		n.LBAF[tt.index].LBADS = tt.lbads
		if got := n.FormatIndex(); got != tt.index {
			t.Errorf("format of NLBAF %d, FLBAS %#x: got %d, want %d", tt.nlbaf, tt.flbas, got, tt.index)
		}
		if size, ok := n.BlockSize(); size != tt.size || ok != tt.ok {
			t.Errorf("block size of LBADS %d: got %d, %v, want %d, %v", tt.lbads, size, ok, tt.size, tt.ok)
		}
	}
}

func TestIDDescriptors(t *testing.T) {
	nguid := bytes.Repeat([]byte{0xaa}, 16)
	list := AppendIDDescriptor(nil, NIDTNGUID, nguid)
	list = AppendIDDescriptor(list, NIDTCSI, []byte{byte(CSINVM)})
	want := append(append([]byte{2, 16, 0, 0}, nguid...), 4, 1, 0, 0, 0)
	if !bytes.Equal(list, want) {
		t.Fatalf("list of NGUID and CSI:\ngot  %x\nwant %x", list, want)
	}
	descriptors := []IDDescriptor{{NIDTNGUID, nguid}, {NIDTCSI, []byte{0}}}
	for _, padding := range []int{0, 1, 3, 4, 100} {
		got, err := ParseIDDescriptors(append(bytes.Clone(list), make([]byte, padding)...))
		if err != nil {
			t.Errorf("parsing with %d bytes of padding: %v", padding, err)
		}
		if diff := cmp.Diff(descriptors, got); diff != "" {
			t.Errorf("parsed with %d bytes of padding (-want +got):\n%s", padding, diff)
		}
	}
	for _, n := range []int{5, 19, len(list) - 1} {
		if got, err := ParseIDDescriptors(list[:n]); err == nil {
			t.Errorf("parsing the first %d bytes: got %v, want an error", n, got)
		}
	}
}

func FuzzParseIDDescriptors(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{3, 16, 0, 0})
	f.Add(AppendIDDescriptor(nil, NIDTEUI64, make([]byte, 8)))
	f.Add(AppendIDDescriptor(AppendIDDescriptor(nil, NIDTUUID, make([]byte, 16)), NIDTCSI, []byte{2}))
	f.Fuzz(func(t *testing.T, list []byte) {
		ds, err := ParseIDDescriptors(list)
		if err != nil {
			return
		}
		var again []byte
		for _, d := range ds {
			again = AppendIDDescriptor(again, d.Type, d.ID)
		}
		if len(again) > len(list) {
			t.Fatalf("%d bytes parsed to descriptors of %d bytes", len(list), len(again))
		}
		reparsed, err := ParseIDDescriptors(again)
		if err != nil {
			t.Fatalf("parsing what was written: %v", err)
		}
		if diff := cmp.Diff(ds, reparsed); diff != "" {
			t.Fatalf("parsed again (-want +got):\n%s", diff)
		}
	})
}
