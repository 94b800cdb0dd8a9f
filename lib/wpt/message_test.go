// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// message is a command that is right.
type message struct {
	cmd     vfiouser.Command
	payload []byte
	fds     int // it wants
	least   int // bytes of the payload that must be there
}

// messages are all commands a client can send, and two that only a server can.
func messages() []message {
	words := func(values ...uint32) []byte {
		var b []byte
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	access := func(region vfiouser.Region, offset uint64, count uint32, data ...byte) []byte {
		b := make([]byte, vfiouser.RegionAccessSize)
		m := vfiouser.RegionAccess{Offset: offset, Region: region, Count: count}
		m.Put(b)
		return append(b, data...)
	}
	irqs := make([]byte, vfiouser.IRQSetSize)
	set := vfiouser.IRQSet{ArgSize: vfiouser.IRQSetSize, Flags: vfiouser.IRQDataEventFD | vfiouser.IRQActionTrigger, Index: vfiouser.IRQMSIX, Start: 3, Count: 2}
	set.Put(irqs)
	version := vfiouser.Version{Capabilities: vfiouser.DefaultCapabilities()}
	multi := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, access(vfiouser.RegionConfig, 0x3c, 1, 9, 0, 0, 0, 0, 0, 0, 0)...)
	return []message{
		{cmd: vfiouser.CmdDMAMap, payload: mapPayload(0, mib, 0, vfiouser.DMARead), fds: 1, least: vfiouser.DMAMapSize},
		{cmd: vfiouser.CmdDMAUnmap, payload: unmapPayload(0, mib), least: vfiouser.DMAUnmapSize},
		{cmd: vfiouser.CmdDeviceGetInfo, payload: words(16, 0, 0, 0), least: 16},
		{cmd: vfiouser.CmdDeviceGetRegionInfo, payload: words(32, 0, 0, 0, 0, 0, 0, 0), least: 32},
		{cmd: vfiouser.CmdDeviceGetRegionIOFDs, payload: words(16, 0, 0, 0), least: 16},
		{cmd: vfiouser.CmdDeviceGetIRQInfo, payload: words(16, 0, 2, 0), least: 16},
		{cmd: vfiouser.CmdDeviceSetIRQs, payload: irqs, fds: 2, least: vfiouser.IRQSetSize},
		{cmd: vfiouser.CmdRegionRead, payload: access(vfiouser.RegionBAR0, 0, 8), least: vfiouser.RegionAccessSize},
		{cmd: vfiouser.CmdRegionWrite, payload: access(vfiouser.RegionBAR0, 0x1000, 4, 0, 0, 0, 0), least: vfiouser.RegionAccessSize + 4},
		{cmd: vfiouser.CmdDeviceReset},
		{cmd: vfiouser.CmdRegionWriteMulti, payload: multi, least: len(multi)},
		{cmd: vfiouser.CmdDeviceFeature, payload: make([]byte, 8)},
		{cmd: vfiouser.CmdMigDataRead, payload: make([]byte, 8)},
		{cmd: vfiouser.CmdMigDataWrite, payload: make([]byte, 8)},
		{cmd: vfiouser.CmdDMARead, payload: make([]byte, 16)},
		{cmd: vfiouser.CmdDMAWrite, payload: make([]byte, 24)},
		{cmd: vfiouser.CmdVersion, payload: version.Append(nil)},
	}
}

// refuses reports whether an error is one that a command is answered with: the
// connection goes on.
func refuses(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestMessageShapes sends every command too short by each number of bytes, too
// long, and with every number of file descriptors: what is too short is refused,
// everything has an answer, and nothing is left open.
func TestMessageShapes(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	c := rawClient(t, p)
	negotiate(t, c)
	answered := func(what string, m message, payload []byte, fds ...int) error {
		t.Helper()
		err := call(c, m.cmd, payload, fds...)
		if err != nil && !refuses(err) {
			t.Fatalf("%v, %s: %v", m.cmd, what, err)
		}
		return err
	}
	for _, m := range messages() {
		fd := mem.FD()
		if m.cmd == vfiouser.CmdDeviceSetIRQs {
			fd = event
		}
		fds := func(n int) []int {
			all := make([]int, n)
			for i := range all {
				all[i] = fd
			}
			return all
		}
		clean := func() {
			_ = call(c, vfiouser.CmdDMAUnmap, append([]byte{24, 0, 0, 0, 2, 0, 0, 0}, make([]byte, 16)...))
		}
		for n := range len(m.payload) {
			err := answered(fmt.Sprintf("%d of %d bytes", n, len(m.payload)), m, m.payload[:n], fds(m.fds)...)
			if n < m.least && !errors.Is(err, unix.EINVAL) {
				t.Errorf("%v with %d of %d bytes: %v, want EINVAL", m.cmd, n, len(m.payload), err)
			}
			clean()
		}
		for _, n := range []int{1, 4, 8, 100, 40000} {
			answered(fmt.Sprintf("%d bytes too long", n), m, append(m.payload[:len(m.payload):len(m.payload)], make([]byte, n)...), fds(m.fds)...)
			clean()
		}
		for n := range maxFDs + 1 {
			err := answered(fmt.Sprintf("%d fds", n), m, m.payload, fds(n)...)
			if m.fds > 0 && n > m.fds && !errors.Is(err, unix.EINVAL) {
				t.Errorf("%v with %d fds: %v, want EINVAL", m.cmd, n, err)
			}
			clean()
		}
		// The one before has worked, or not, but the next one does.
		if err := call(c, vfiouser.CmdRegionRead, messages()[7].payload); err != nil {
			t.Fatalf("after %v: %v", m.cmd, err)
		}
	}
	if got := p.show(); got.Regions != 0 {
		t.Errorf("%d regions are left", got.Regions)
	}
}

// TestMessageCuts ends the connection within every command, and sends every one
// with more file descriptors than there may be: the next client finds a port as
// new.
func TestMessageCuts(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	over := func(what string) {
		t.Helper()
		eventually(t, what, func() bool { return !p.hasClient() && p.show().ClientPID == 0 })
		if got := p.show(); got.Regions != 0 || got.State != api.PortWaiting {
			t.Fatalf("%s: %+v", what, got)
		}
	}
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = mem.FD()
		}
		return unix.UnixRights(fds...)
	}
	for i, m := range messages() {
		whole := vfiousertest.Message(vfiouser.Header{ID: 7, Command: m.cmd}, m.payload)
		for n := 1 + i%7; n < len(whole); n += 7 { // every place is hit by some command
			c := rawClient(t, p)
			negotiate(t, c)
			if _, _, err := c.Socket().WriteMsgUnix(whole[:n], rights(m.fds+1), nil); err != nil {
				t.Fatal(err)
			}
			c.Close()
			over(fmt.Sprintf("%v after %d of %d bytes", m.cmd, n, len(whole)))
		}
		c := rawClient(t, p)
		negotiate(t, c)
		if _, _, err := c.Socket().WriteMsgUnix(whole, rights(maxFDs+1), nil); err != nil {
			t.Fatal(err)
		}
		if err := reply(c, 7); err == nil || refuses(err) {
			t.Errorf("%v with %d fds: the connection goes on: %v", m.cmd, maxFDs+1, err)
		}
		c.Close()
		over(fmt.Sprintf("%v with too many fds", m.cmd))
	}
	dial(t, p, mem, vfiousertest.Options{})
}
