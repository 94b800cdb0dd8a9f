// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestBARMatrix reads and writes everywhere in every width.
func TestBARMatrix(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	var buf [16]byte
	for off := uint64(0); off < bar0Size+16; off++ {
		for n := range buf {
			aligned := n == 1 || n == 2 && off%2 == 0 || n == 4 && off%4 == 0 || n == 8 && off%8 == 0
			inside := off+uint64(n) <= bar0Size
			if err := p.readBAR0(off, buf[:n]); (err == nil) != (aligned && inside) || err != nil && !errors.Is(err, unix.EINVAL) {
				t.Fatalf("read of %d at %#x: %v", n, off, err)
			}
			if err := p.writeBAR0(off, make([]byte, n)); (err == nil) != (aligned && inside && n >= 4) || err != nil && !errors.Is(err, unix.EINVAL) {
				t.Fatalf("write of %d at %#x: %v", n, off, err)
			}
		}
	}
}

func readRegister(t *testing.T, p *port, off uint64, n int) uint64 {
	t.Helper()
	var b [8]byte
	if err := p.readBAR0(off, b[:n]); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func writeRegister(t *testing.T, p *port, off uint64, n int, v uint64) {
	t.Helper()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if err := p.writeBAR0(off, b[:n]); err != nil {
		t.Fatal(err)
	}
}

func TestRegisters(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	c := constCAP
	if c.MQES() != 1023 || !c.CQR() || c.Timeout() != 127500*time.Millisecond || c.DSTRD() != 0 || c.CSS() != nvme.CSSNVM ||
		c.MPSMIN() != 0 || c.MPSMAX() != 0 || c.NSSRS() || c.CRMS() != nvme.CRMSWithMedia {
		t.Errorf("CAP is %#x", uint64(c))
	}
	if got := readRegister(t, p, nvme.RegCAP, 8); got != uint64(constCAP) {
		t.Errorf("CAP reads %#x", got)
	}
	if lo, hi := readRegister(t, p, 0, 4), readRegister(t, p, 4, 4); lo|hi<<32 != uint64(constCAP) {
		t.Errorf("CAP reads %#x, %#x", lo, hi)
	}
	if got := readRegister(t, p, nvme.RegVS, 4); got != 0x20000 {
		t.Errorf("VS reads %#x", got)
	}
	if got := readRegister(t, p, nvme.RegVS+2, 2); got != 2 {
		t.Errorf("major version reads %#x", got)
	}
	if got := readRegister(t, p, nvme.RegCRTO, 4); got != 255 {
		t.Errorf("CRTO reads %#x", got)
	}
	// Both ways to write the 64-bit registers.
	writeRegister(t, p, nvme.RegASQ, 4, 0x12345fff)
	writeRegister(t, p, nvme.RegASQ+4, 4, 0xa)
	writeRegister(t, p, nvme.RegACQ, 8, 0xb_6789_afff)
	writeRegister(t, p, nvme.RegAQA, 4, 0xffffffff)
	for _, tt := range []struct {
		off  uint64
		n    int
		want uint64
	}{
		{nvme.RegASQ, 8, 0xa_1234_5000}, {nvme.RegACQ, 8, 0xb_6789_a000}, {nvme.RegACQ + 4, 4, 0xb}, {nvme.RegAQA, 4, 0x0fff0fff},
	} {
		if got := readRegister(t, p, tt.off, tt.n); got != tt.want {
			t.Errorf("register %#x reads %#x, want %#x", tt.off, got, tt.want)
		}
	}
	writeRegister(t, p, nvme.RegINTMS, 4, 0xf0)
	writeRegister(t, p, nvme.RegINTMC, 4, 0x10)
	if s, c := readRegister(t, p, nvme.RegINTMS, 4), readRegister(t, p, nvme.RegINTMC, 4); s != 0xe0 || c != 0xe0 {
		t.Errorf("masks read %#x, %#x, want 0xe0", s, c)
	}
	// Read-only, and not there.
	for _, off := range []uint64{nvme.RegCAP, nvme.RegVS, nvme.RegCSTS, nvme.RegNSSR, nvme.RegCMBSZ, nvme.RegCRTO, 0xe00, 0x2000} {
		before := readRegister(t, p, off, 4)
		writeRegister(t, p, off, 4, uint64(nvme.NSSRValue))
		if got := readRegister(t, p, off, 4); got != before {
			t.Errorf("register %#x changed from %#x to %#x", off, before, got)
		}
	}
	// CC as one half of a pair; the admin queue cannot change while EN is 1.
	writeRegister(t, p, nvme.RegINTMC, 8, 0xffffffff<<32|0xe0)
	if got := readRegister(t, p, nvme.RegCC, 4); got != ccBits {
		t.Errorf("CC reads %#x, want %#x", got, ccBits)
	}
	writeRegister(t, p, nvme.RegAQA, 4, 0)
	writeRegister(t, p, nvme.RegASQ, 8, 0)
	if readRegister(t, p, nvme.RegAQA, 4) != 0x0fff0fff || readRegister(t, p, nvme.RegASQ, 8) != 0xa_1234_5000 {
		t.Error("the admin queue changed while the controller is enabled")
	}
}

// TestDoorbells stores what arrives and always kicks, without allocating.
func TestDoorbells(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	var kicks [8]byte
	for _, qid := range []uint16{0, 1, qpair.MaxQueues - 1} {
		writeRegister(t, p, nvme.SQDoorbell(qid, 0), 4, uint64(qid)+7)
		if got := atomic.LoadUint32(p.bells.Page.SQTail(int(qid))); got != uint32(qid)+7 {
			t.Errorf("tail of queue %d is %d", qid, got)
		}
		writeRegister(t, p, nvme.SQDoorbell(qid, 0), 8, 9<<32|8)
		if sq, cq := atomic.LoadUint32(p.bells.Page.SQTail(int(qid))), atomic.LoadUint32(p.bells.Page.CQHead(int(qid))); sq != 8 || cq != 9 {
			t.Errorf("doorbells of queue %d are %d and %d", qid, sq, cq)
		}
		if _, err := unix.Read(p.kick, kicks[:]); err != nil || kicks[0] != 2 {
			t.Errorf("queue %d: %d kicks, %v; want 2", qid, kicks[0], err)
		}
	}
	writeRegister(t, p, nvme.SQDoorbell(qpair.MaxQueues, 0), 4, 1) // no such queue
	c := &client{port: p, negotiated: true}
	c.request.header = vfiouser.Header{Command: vfiouser.CmdRegionWrite, Flags: vfiouser.FlagNoAck}
	access := vfiouser.RegionAccess{Offset: nvme.SQDoorbell(1, 0), Region: vfiouser.RegionBAR0, Count: 4}
	access.Put(c.request.small[:])
	c.request.n = vfiouser.RegionAccessSize + 4
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := c.execute(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a doorbell costs %v allocations", n)
	}
}

// TestWithoutRuntime: resets and shutdowns end at once, an enable waits.
func TestWithoutRuntime(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	on := nvme.CC(0).WithEN(true).WithIOSQES(6).WithIOCQES(4)
	setCC(t, c, on)
	if got := csts(t, c); got != 0 {
		t.Errorf("CSTS is %#x without a runtime, want 0", got)
	}
	if got := fact(b, "vm1", "state"); got != api.PortFrozen {
		t.Errorf("state is %q, want frozen", got)
	}
	if left := p.show().TimeLeft; left < time.Minute || left > 128*time.Second {
		t.Errorf("time left is %v", left)
	}
	gen := p.regs.Page.LoadResetGen()
	setCC(t, c, on.WithEN(false))
	waitCSTS(t, c, 0)
	if got := p.regs.Page.LoadResetGen(); got != gen+1 {
		t.Errorf("reset generation is %d, want %d", got, gen+1)
	}
	setCC(t, c, on.WithEN(false).WithSHN(nvme.SHNNormal))
	waitCSTS(t, c, nvme.CSTS(0).WithSHST(nvme.SHSTComplete))
	if err := c.Reset(); err != nil {
		t.Fatal(err)
	}
	waitCSTS(t, c, 0)
	if cc, err := c.Read32(nvme.RegCC); err != nil || cc != 0 {
		t.Errorf("CC is %#x after a reset, %v", cc, err)
	}
}

// TestControllerReset: RDY stays until the runtime has ended its I/O.
func TestControllerReset(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	rt.holdResets.Store(true)
	setCC(t, c, 0)
	for range 20 {
		if got := csts(t, c); got != nvme.CSTS(0).WithRDY(true) {
			t.Fatalf("CSTS is %#x while the reset is held up, want RDY", got)
		}
		time.Sleep(time.Millisecond)
	}
	rt.holdResets.Store(false)
	waitCSTS(t, c, 0)
	enable(t, c)
	// A guest that does not wait sees RDY of the new generation only.
	rt.holdResets.Store(true)
	setCC(t, c, 0)
	setCC(t, c, nvme.CC(0).WithEN(true))
	if got := csts(t, c); got != 0 {
		t.Errorf("CSTS is %#x after a reset and an enable, want 0", got)
	}
	rt.holdResets.Store(false)
	waitCSTS(t, c, nvme.CSTS(0).WithRDY(true))
	// Shutdown.
	setCC(t, c, nvme.CC(0).WithEN(true).WithSHN(nvme.SHNNormal))
	waitCSTS(t, c, nvme.CSTS(0).WithRDY(true).WithSHST(nvme.SHSTComplete))
}

// TestFunctionReset: DEVICE_RESET and FLR are answered when acknowledged, or
// after a while; then CFS is shown until they are, and who enables the controller
// before has to wait.
func TestFunctionReset(t *testing.T) {
	resets := map[string]func(*vfiousertest.Client) error{
		"device reset": (*vfiousertest.Client).Reset,
		"FLR":          func(c *vfiousertest.Client) error { return c.WriteConfig(cfgDeviceControl, 2, 0xa810) },
	}
	for name, reset := range resets {
		t.Run(name, func(t *testing.T) {
			b := startBroker(t, testPaths(t), quick)
			p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
			rt := startRuntime(t, b, api.DefaultRuntime)
			c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
			enable(t, c)
			if err := reset(c); err != nil {
				t.Fatal(err)
			}
			if got := csts(t, c); got != 0 {
				t.Errorf("CSTS is %#x after a reset, want 0", got)
			}
			enable(t, c)
			rt.holdResets.Store(true)
			if err := reset(c); err != nil {
				t.Fatal(err)
			}
			for _, tt := range []struct {
				cc   nvme.CC
				csts nvme.CSTS
			}{{0, nvme.CSTS(0).WithCFS(true)}, {nvme.CC(0).WithEN(true), 0}} {
				setCC(t, c, tt.cc)
				if got := csts(t, c); got != tt.csts {
					t.Errorf("CSTS is %#x while I/O is in flight and CC is %#x, want %#x", got, tt.cc, tt.csts)
				}
			}
			rt.holdResets.Store(false)
			waitCSTS(t, c, nvme.CSTS(0).WithRDY(true))
		})
	}
}
