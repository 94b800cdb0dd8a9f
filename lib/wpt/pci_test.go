// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

func newConfig() *pciConfig {
	c := new(pciConfig)
	c.reset()
	return c
}

// TestConfigHeader checks what firmware and drivers look for.
func TestConfigHeader(t *testing.T) {
	c := newConfig()
	for _, tt := range []struct {
		name          string
		offset, width int
		want          uint32
	}{
		{"vendor", 0x00, 2, 0x4c49},
		{"class and programming interface", 0x09, 4, 0x00010802}, // the cache line size is next
		{"header type", 0x0e, 1, 0},
		{"BAR0 is memory of 64 bits", 0x10, 4, 0x4},
		{"BAR2", 0x18, 4, 0},
		{"ROM", 0x30, 4, 0},
		{"capability list", 0x06, 2, 0x10},
		{"interrupt pin", 0x3d, 1, 1},
		{"no extended capability", 0x100, 4, 0},
	} {
		b := make([]byte, 4)
		if err := c.read(uint64(tt.offset), b[:tt.width]); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint32(b); got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

// TestConfigCapabilities walks the list.
func TestConfigCapabilities(t *testing.T) {
	c := newConfig()
	var ids []byte
	for at := c[cfgCapPointer]; at != 0; at = c[at+1] {
		if at < 0x40 || at%4 != 0 || len(ids) > 10 {
			t.Fatalf("capability at %#x after %x", at, ids)
		}
		ids = append(ids, c[at])
	}
	if want := []byte{0x01, 0x11, 0x10}; !bytes.Equal(ids, want) {
		t.Errorf("capabilities %x, want %x", ids, want)
	}
	if n := binary.LittleEndian.Uint16(c[cfgMSIX+2:])&0x7ff + 1; n != qpair.Vectors {
		t.Errorf("%d vectors, want %d", n, qpair.Vectors)
	}
	if caps := binary.LittleEndian.Uint32(c[cfgPCIe+4:]); caps&(1<<28) == 0 {
		t.Error("no function level reset")
	}
}

// TestConfigTable checks the rows: they do not overlap, lie where their width
// says, and what can be written has a row.
func TestConfigTable(t *testing.T) {
	var owner [configSize]string
	for _, r := range configRegisters {
		if limit := uint64(1) << (8 * r.width); uint64(r.value) >= limit || uint64(r.write) >= limit {
			t.Errorf("%s: value %#x, mask %#x in %d bytes", r.name, r.value, r.write, r.width)
		}
		for i := r.offset; i < r.offset+r.width; i++ {
			if owner[i] != "" {
				t.Errorf("%s and %s overlap", owner[i], r.name)
			}
			owner[i] = r.name
		}
	}
}

func TestConfigBARs(t *testing.T) {
	c := newConfig()
	for _, tt := range []struct {
		offset uint64
		size   uint64
	}{{cfgBAR0, bar0Size}, {cfgBAR4, bar4Size}} {
		if _, err := c.write(tt.offset, bytes.Repeat([]byte{0xff}, 8)); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(c[tt.offset:]); ^(got&^0xf)+1 != tt.size || got&0xf != 4 {
			t.Errorf("BAR at %#x reads %#x after ones, want a size of %#x", tt.offset, got, tt.size)
		}
	}
	binary.LittleEndian.PutUint64(c[cfgBAR0:], 0xc000000000|bar64Bit)
	for _, tt := range []struct {
		addr, size uint64
		want       bool
	}{
		{0xc000001000, 0x1000, true}, {0xc000001000, 0x3000, true}, {0xc000001000, 0x4000, false},
		{0xc000000000, 0x1000, false}, {0xc000002000, 0x1000, false}, {0x1000, 0x1000, false},
	} {
		if got := c.ownPage(tt.addr, tt.size); got != tt.want {
			t.Errorf("ownPage(%#x, %#x) = %v", tt.addr, tt.size, got)
		}
	}
	c.reset()
	if c.ownPage(0x1000, 0x1000) {
		t.Error("a page of a BAR that is not placed is the port's own")
	}
}

// TestConfigMatrix writes ones and zeroes everywhere in every width: only the
// bits of the masks change, and nothing else happens.
func TestConfigMatrix(t *testing.T) {
	for _, width := range []int{1, 2, 4, 8} {
		for _, fill := range []byte{0xff, 0} {
			c := newConfig()
			data := bytes.Repeat([]byte{fill}, width)
			for off := 0; off < configSize; off++ {
				flr, err := c.write(uint64(off), data)
				inside := off+width <= configSize
				if (err == nil) != inside {
					t.Fatalf("write of %d at %#x: %v", width, off, err)
				}
				wantFLR := inside && fill == 0xff && off <= cfgDeviceControl+1 && off+width > cfgDeviceControl+1
				if flr != wantFLR {
					t.Fatalf("write of %d at %#x: FLR %v", width, off, flr)
				}
			}
			for i := range c {
				want := configImage[i]&^configMask[i] | fill&configMask[i]
				if c[i] != want {
					t.Errorf("width %d, fill %#x: byte %#x is %#x, want %#x", width, fill, i, c[i], want)
				}
			}
		}
	}
	c := newConfig()
	for _, off := range []uint64{configSize, configSize + 1, 1 << 63, ^uint64(0)} {
		if err := c.read(off, make([]byte, 4)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("read at %#x: %v", off, err)
		}
	}
	if err := c.read(0, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("empty read: %v", err)
	}
	all := make([]byte, configSize)
	if err := c.read(0, all); err != nil || !bytes.Equal(all, c[:]) {
		t.Errorf("read of all: %v", err)
	}
}
