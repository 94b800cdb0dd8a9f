// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// What a step of FuzzPages writes to.
const (
	toRegisters = iota
	toDoorbells
	toState
	numPages
)

// What the guest does then.
const (
	idle = iota
	readsCAP
	readsCSTS
	enables
	disables
	ringsDoorbell
	numActs
)

// pageStep makes a step: which page, where in it, what, and what the guest does
// then.
func pageStep(page, act byte, off uint16, v uint64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{page | act<<4}, off)
	return binary.LittleEndian.AppendUint64(b, v)
}

// FuzzPages has a runtime write anything anywhere into the pages of a port that a
// guest uses. leap-wpt lives, and can be replaced; after a reset the next runtime
// and the guest have a drive as if nothing had been.
func FuzzPages(f *testing.F) {
	const all = ^uint64(0)
	f.Add([]byte{})
	f.Add(bytes.Join([][]byte{pageStep(toRegisters, readsCAP, 0, all), pageStep(toRegisters, readsCAP, 8, all), pageStep(toRegisters, readsCAP, 16, all)}, nil))
	f.Add(bytes.Join([][]byte{pageStep(toRegisters, enables, 0, 0), pageStep(toRegisters, disables, 64, 0), pageStep(toRegisters, readsCSTS, 64, all)}, nil))
	f.Add(bytes.Join([][]byte{pageStep(toRegisters, disables, 96, all), pageStep(toRegisters, enables, 104, all-2), pageStep(toRegisters, readsCSTS, 192, all)}, nil))
	f.Add(bytes.Join([][]byte{pageStep(toDoorbells, ringsDoorbell, 0, all), pageStep(toDoorbells, ringsDoorbell, 4, all)}, nil))
	f.Add(bytes.Join([][]byte{pageStep(toState, enables, 0, all), pageStep(toState, enables, 1, all), pageStep(toState, readsCSTS, 0x101, all)}, nil))
	b := startBroker(f, testPaths(f), quick)
	p := addPort(f, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	mem := newMemory(f, vfiousertest.MemoryOptions{Low: 8 * mib})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := dial(t, p, mem, vfiousertest.Options{})
		link, pages := hold(t, b)
		for ; len(in) >= 11; in = in[11:] {
			page, act, off := int(in[0]&15)%numPages, int(in[0]>>4)%numActs, int64(binary.LittleEndian.Uint16(in[1:]))
			at := []int64{off % 4088, 4096 + off%4088, off * 64}[page]
			if _, err := unix.Pwrite(pages[page], in[3:11], at); err != nil {
				t.Fatal(err)
			}
			acts(t, c, act)
		}
		link.Close()
		qpair.CloseFDs(pages)
		isCured(t, b, p, c)
		c.Close()
		eventually(t, "the port waits", func() bool { return fact(b, "vm1", "state") == api.PortWaiting })
	})
}

// hold attaches as the runtime that is to serve the port, and returns its pages,
// the fence and the kick among them.
func hold(t testing.TB, b *Broker) (*qpair.Link, []int) {
	t.Helper()
	var link *qpair.Link
	var fence []int
	eventually(t, "end of the runtime before", func() bool {
		var welcome qpair.Message
		if link, welcome, fence = connect(t, b, api.DefaultRuntime); welcome.Status == 0 {
			return true
		}
		link.Close()
		return false
	})
	for {
		m, _, fds, err := link.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == qpair.MsgAttach {
			return link, append(fds, fence...)
		}
		qpair.CloseFDs(fds)
	}
}

// acts is something that a guest does. Whatever it reads is right.
func acts(t *testing.T, c *vfiousertest.Client, what int) {
	t.Helper()
	var err error
	switch what {
	case readsCAP:
		_, err = c.Read64(nvme.RegCAP)
	case readsCSTS:
		_, err = c.Read32(nvme.RegCSTS)
	case enables:
		setCC(t, c, nvme.CC(0).WithEN(true).WithIOSQES(6).WithIOCQES(4))
	case disables:
		err = c.Write32(nvme.RegCC, 0)
	case ringsDoorbell:
		err = c.Write32(nvme.SQDoorbell(0, 0), 1)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// isCured holds that nothing is left of what a runtime has made of the pages.
func isCured(t testing.TB, b *Broker, p *port, c *vfiousertest.Client) {
	t.Helper()
	if err := c.Reset(); err != nil {
		t.Fatal(err)
	}
	waitCSTS(t, c, 0)
	if got, err := c.Read64(nvme.RegCAP); err != nil || got != uint64(constCAP) {
		t.Errorf("CAP is %#x, %v", got, err)
	}
	if got, err := c.Read32(nvme.RegVS); err != nil || got != uint32(constVS) {
		t.Errorf("VS is %#x, %v", got, err)
	}
	rt := startRuntime(t, b, api.DefaultRuntime) // which looks at the versions of the pages
	defer rt.kill()
	rt.caughtUp(t, p)
	enable(t, c)
	if err := c.Write32(nvme.RegCC, 0); err != nil {
		t.Fatal(err)
	}
	waitCSTS(t, c, 0)
	enable(t, c)
	eventually(t, "the port is enabled", func() bool { return fact(b, "vm1", "state") == api.PortEnabled })
}

// TestDamagedPagesReplace: leap-wpt is replaced although a runtime has damaged
// what says which pages these are; the guest does not notice.
func TestDamagedPagesReplace(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	link, pages := hold(t, *b)
	garbage := bytes.Repeat([]byte{0xff}, 64)
	for _, fd := range []int{pages[toRegisters], pages[toState]} {
		if _, err := unix.Pwrite(fd, garbage, 0); err != nil {
			t.Fatal(err)
		}
	}
	replace(t, b)
	link.Close()
	qpair.CloseFDs(pages)
	p, err := (*b).port("test", "vm1")
	if err != nil {
		t.Fatal(err)
	}
	isCured(t, *b, p, c)
}

// TestCCOfRuntime: that a controller is enabled is what the guest has said, not
// what a runtime says for it: the guest's reset is one.
func TestCCOfRuntime(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	link, pages := hold(t, b)
	setCC(t, c, nvme.CC(0).WithEN(true).WithIOSQES(6).WithIOCQES(4))
	if _, err := c.Read32(nvme.RegCC); err != nil { // behind the write
		t.Fatal(err)
	}
	before := p.regs.Page.LoadResetGen()
	const offsetCC = 64
	if _, err := unix.Pwrite(pages[toRegisters], make([]byte, 4), offsetCC); err != nil {
		t.Fatal(err)
	}
	if got := p.regs.Page.LoadCC(); got != 0 {
		t.Fatalf("CC is not there: %#x", got)
	}
	if err := c.Write32(nvme.RegCC, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a reset", func() bool { return p.regs.Page.LoadResetGen() == before+1 })
	link.Close()
	qpair.CloseFDs(pages)
	waitCSTS(t, c, 0)
}

// TestSkewRefused: a runtime that speaks another version of the link is refused,
// both sides say why, and guests wait for the next one.
func TestSkewRefused(t *testing.T) {
	checkLeaks(t)
	logFile := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	b, err := open(Config{Paths: testPaths(t), Version: "test", Logger: slog.New(slog.NewTextHandler(log, nil))}, quick)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), log.Close()); err != nil {
			t.Error(err)
		}
	})
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	rt.kill()
	eventually(t, "the guest waits", func() bool { return fact(b, "vm1", "state") == api.PortFrozen })
	for _, version := range []uint32{qpair.LinkVersion - 1, qpair.LinkVersion + 1} {
		link := dialLink(t, b)
		m := qpair.Message{Kind: qpair.MsgHello, Version: version, Name: [64]byte{'s', 'o', 'c'}}
		if err := link.Send(&m, nil); err != nil {
			t.Fatal(err)
		}
		m, _, fds, err := link.Recv()
		if err != nil || unix.Errno(m.Status) != unix.EPROTO || m.Version != qpair.LinkVersion || len(fds) != 0 {
			t.Errorf("version %d: answer %+v, %v", version, m, err)
		}
		link.Close()
		want := (&qpair.VersionError{What: "link protocol of the runtime", Got: version, Want: qpair.LinkVersion}).Error()
		eventually(t, "the log says "+want, func() bool {
			text, err := os.ReadFile(logFile)
			return err == nil && strings.Contains(string(text), want)
		})
		if got := csts(t, c); got != nvme.CSTS(0).WithRDY(true) || fact(b, "vm1", "state") != api.PortFrozen {
			t.Errorf("version %d: CSTS is %#x, state %s", version, got, fact(b, "vm1", "state"))
		}
	}
	startRuntime(t, b, api.DefaultRuntime)
	eventually(t, "the guest goes on", func() bool { return fact(b, "vm1", "state") == api.PortEnabled })
}
