// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

// sweepValues calls f with 0, with all ones, and with 100 values at random. The
// seed is in the test's output; LEAP_TEST_SEED sets it.
func sweepValues(t *testing.T, f func(v uint64)) {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("LEAP_TEST_SEED"), 0, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("LEAP_TEST_SEED=%#x", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	f(0)
	f(^uint64(0))
	for range 100 {
		f(rng.Uint64())
	}
}

// sweeper makes accesses as a client's messages ask for them.
type sweeper struct {
	t *testing.T
	c *client
	b [vfiouser.RegionAccessSize + 8]byte
}

func newSweeper(t *testing.T, p *port) *sweeper {
	t.Helper()
	c, err := newClient(p, unconnected(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	c.negotiated = true
	return &sweeper{t: t, c: c}
}

func (s *sweeper) write(region vfiouser.Region, off uint64, width int, v uint64) error {
	m := vfiouser.RegionAccess{Offset: off, Region: region, Count: uint32(width)}
	m.Put(s.b[:])
	binary.LittleEndian.PutUint64(s.b[vfiouser.RegionAccessSize:], v)
	_, _, err := s.c.regionWrite(s.b[:vfiouser.RegionAccessSize+width])
	return err
}

func (s *sweeper) read(region vfiouser.Region, off uint64, b []byte) error {
	m := vfiouser.RegionAccess{Offset: off, Region: region, Count: uint32(len(b))}
	m.Put(s.b[:])
	reply, _, err := s.c.regionRead(s.b[:vfiouser.RegionAccessSize])
	if err == nil {
		copy(b, reply[1])
	}
	return err
}

// TestConfigSweep writes all values to every offset of configuration space in
// every width, as the messages of a client do: after each write what lies around
// it, and after each pass all of the space, is what it was but for the bits that
// can be written there.
func TestConfigSweep(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	s := newSweeper(t, p)
	want, got := configImage, make([]byte, configSize)
	resets := p.regs.Page.LoadResetGen()
	check := func(from, to uint64, width int, v uint64) {
		t.Helper()
		if err := s.read(vfiouser.RegionConfig, from, got[from:to]); err != nil || !bytes.Equal(got[from:to], want[from:to]) {
			i := from
			for i < to-1 && got[i] == want[i] {
				i++
			}
			t.Fatalf("after a write of %#x, width %d: byte %#x is %#x, want %#x; %v", v, width, i, got[i], want[i], err)
		}
	}
	sweepValues(t, func(v uint64) {
		for _, width := range []int{1, 2, 4, 8} {
			for off := range uint64(configSize + 8) {
				err := s.write(vfiouser.RegionConfig, off, width, v)
				if off+uint64(width) > configSize {
					if !errors.Is(err, unix.EINVAL) {
						t.Fatalf("write of %d at %#x: %v", width, off, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("write of %d at %#x: %v", width, off, err)
				}
				flr := false
				for i := range width {
					at, written := off+uint64(i), byte(v>>(8*i))
					want[at] = want[at]&^configMask[at] | written&configMask[at]
					flr = flr || at == cfgDeviceControl+1 && written&flrBit != 0
				}
				if flr {
					want = configImage
					resets++
				}
				check(max(off, 8)-8, min(off+uint64(width)+8, configSize), width, v)
			}
			check(0, configSize, width, v)
		}
	})
	if got := p.regs.Page.LoadResetGen(); got != resets {
		t.Errorf("reset generation %d, want %d", got, resets)
	}
}

// registers is what the first page of BAR0 must read as, from what was written.
type registers struct{ page [4096]byte }

func (r *registers) u32(off int) uint32        { return binary.LittleEndian.Uint32(r.page[off:]) }
func (r *registers) set32(off int, v uint32)   { binary.LittleEndian.PutUint32(r.page[off:], v) }
func (r *registers) enabled() bool             { return r.u32(nvme.RegCC)&1 != 0 }
func (r *registers) write64(off int, v uint64) { binary.LittleEndian.PutUint64(r.page[off:], v) }

// reset gives the registers their first values.
func (r *registers) reset() {
	clear(r.page[:])
	r.write64(nvme.RegCAP, uint64(constCAP))
	r.set32(nvme.RegVS, 0x20000)
	r.set32(nvme.RegCRTO, 255)
}

// write follows a write of one register.
func (r *registers) write(off int, v uint32) {
	switch off {
	case nvme.RegINTMS, nvme.RegINTMC:
		mask := r.u32(nvme.RegINTMS) | v
		if off == nvme.RegINTMC {
			mask = r.u32(nvme.RegINTMS) &^ v
		}
		r.set32(nvme.RegINTMS, mask)
		r.set32(nvme.RegINTMC, mask)
	case nvme.RegCC:
		was := r.enabled()
		r.set32(off, v&0x00fffff1)
		if was && !r.enabled() {
			r.set32(nvme.RegINTMS, 0)
			r.set32(nvme.RegINTMC, 0)
		}
		// Nobody is there to make it ready; a shutdown is complete at once.
		csts := uint32(0)
		if v>>14&3 != 0 {
			csts = 2 << 2
		}
		r.set32(nvme.RegCSTS, csts)
	case nvme.RegAQA:
		if !r.enabled() {
			r.set32(off, v&0x0fff0fff)
		}
	case nvme.RegASQ, nvme.RegACQ:
		if !r.enabled() {
			r.set32(off, v&^0xfff)
		}
	case nvme.RegASQ + 4, nvme.RegACQ + 4:
		if !r.enabled() {
			r.set32(off, v)
		}
	}
}

// TestBARSweep writes all values to every offset of the first page of BAR0 in
// every width: misaligned and narrow writes are refused, read-only registers
// ignore them, the others change as the specification says, and nothing else
// does.
func TestBARSweep(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	s := newSweeper(t, p)
	want := new(registers)
	want.reset()
	check := func(off uint64, width int, what uint64) {
		t.Helper()
		var got [8]byte
		for at := off &^ 7; at < off+uint64(width); at += 8 {
			if err := s.read(vfiouser.RegionBAR0, at, got[:]); err != nil || !bytes.Equal(got[:], want.page[at:at+8]) {
				t.Fatalf("after a write of %#x, width %d, at %#x: %#x reads % x, want % x; %v", what, width, off, at, got, want.page[at:at+8], err)
			}
		}
	}
	sweepValues(t, func(v uint64) {
		for _, width := range []int{1, 2, 4, 8} {
			for off := range uint64(nvme.RegDoorbells) {
				err := s.write(vfiouser.RegionBAR0, off, width, v)
				if refused := width < 4 || off%uint64(width) != 0; refused != errors.Is(err, unix.EINVAL) || !refused && err != nil {
					t.Fatalf("write of %d at %#x: %v", width, off, err)
				} else if refused {
					continue
				}
				for i := 0; i < width; i += 4 {
					want.write(int(off)+i, uint32(v>>(8*i)))
				}
				check(off, width, v)
			}
			check(0, nvme.RegDoorbells, v)
		}
	})
	if err := s.write(vfiouser.RegionBAR0, nvme.RegCC, 4, 0); err != nil {
		t.Fatal(err)
	}
}
