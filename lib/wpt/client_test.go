// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// rawClient connects without a word.
func rawClient(t testing.TB, p *port) *vfiouser.Conn {
	t.Helper()
	c, _ := rawConn(t, p)
	return c
}

// rawConn is rawClient, and the socket beneath.
func rawConn(t testing.TB, p *port) (*vfiouser.Conn, *net.UnixConn) {
	t.Helper()
	socket, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c := vfiouser.NewConn(socket, vfiouser.Limits{})
	t.Cleanup(func() {
		c.Close()
		c.ReadMessage() // closes the descriptors of the last message
	})
	return c, socket
}

// call sends a command and reads messages up to its reply.
func call(c *vfiouser.Conn, cmd vfiouser.Command, payload []byte, fds ...int) error {
	const id = 0x4242
	if err := c.SendFDs(vfiouser.Header{ID: id, Command: cmd}, fds, payload); err != nil {
		return err
	}
	return reply(c, id)
}

// reply reads messages up to a reply.
func reply(c *vfiouser.Conn, id uint16) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for {
		m, err := c.ReadMessage()
		if err != nil {
			return err
		}
		if m.Header.IsReply() && m.Header.ID == id {
			return m.Header.Err()
		}
	}
}

func negotiate(t testing.TB, c *vfiouser.Conn) {
	t.Helper()
	v := vfiouser.Version{Capabilities: vfiouser.DefaultCapabilities()}
	// The port may just be getting rid of the client before.
	if err := call(c, vfiouser.CmdVersion, v.Append(nil)); err != nil {
		t.Fatal(err)
	}
}

func mapPayload(addr, size, offset uint64, flags vfiouser.DMAFlags) []byte {
	b := make([]byte, vfiouser.DMAMapSize)
	m := vfiouser.DMAMap{ArgSize: vfiouser.DMAMapSize, Flags: flags, Address: addr, Size: size, Offset: offset}
	m.Put(b)
	return b
}

func unmapPayload(addr, size uint64) []byte {
	b := make([]byte, vfiouser.DMAUnmapSize)
	m := vfiouser.DMAUnmap{ArgSize: vfiouser.DMAUnmapSize, Address: addr, Size: size}
	m.Put(b)
	return b
}

func mapRAM(t testing.TB, c *vfiouser.Conn, size uint64) {
	t.Helper()
	if err := call(c, vfiouser.CmdDMAMap, mapPayload(0, size, 0, vfiouser.DMARead|vfiouser.DMAWrite)); err != nil {
		t.Fatal(err)
	}
}

func TestNegotiate(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	for _, minor := range []uint16{0, 1} {
		c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{Minor: minor})
		if got := c.Server(); got.Minor != minor || got.Capabilities.MaxDMAMaps != maxRegions {
			t.Errorf("proposed 0.%d, got %+v", minor, got)
		}
		c.Close()
		eventually(t, "waiting", func() bool { return !p.hasClient() && p.show().ClientPID == 0 })
	}
	version := func(v vfiouser.Version) []byte { return v.Append(nil) }
	for _, tt := range []struct {
		name    string
		payload []byte
	}{
		{"empty", nil},
		{"no JSON", []byte("\x00\x00\x00\x00{")},
		{"another major version", version(vfiouser.Version{Major: 1, Capabilities: vfiouser.DefaultCapabilities()})},
		{"no data at all", version(vfiouser.Version{})},
	} {
		c := rawClient(t, p)
		if err := call(c, vfiouser.CmdDeviceReset, nil); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: a command before VERSION: %v", tt.name, err)
		}
		if err := call(c, vfiouser.CmdVersion, tt.payload); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", tt.name, err)
		}
		negotiate(t, c)
		if err := call(c, vfiouser.CmdVersion, version(vfiouser.Version{Capabilities: vfiouser.DefaultCapabilities()})); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: VERSION again: %v", tt.name, err)
		}
		c.Close()
		eventually(t, "waiting", func() bool { return p.show().ClientPID == 0 })
	}
}

func TestSecondClient(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	c := dial(t, p, mem, vfiousertest.Options{})
	if second, err := vfiousertest.Dial(p.socket, mem, vfiousertest.Options{}); err == nil {
		t.Error("a second client was let in")
		second.Close()
	}
	if _, err := c.Read32(0); err != nil {
		t.Errorf("the first client: %v", err)
	}
}

// TestCommands sends what is well-formed and wrong, or right and rare; the
// connection stays.
func TestCommands(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	c := rawClient(t, p)
	negotiate(t, c)
	fd := mem.FD()
	pipe, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	u32 := func(values ...uint32) []byte {
		var b []byte
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	access := func(region vfiouser.Region, offset uint64, count uint32, data ...byte) []byte {
		b := make([]byte, vfiouser.RegionAccessSize, vfiouser.RegionAccessSize+len(data))
		m := vfiouser.RegionAccess{Offset: offset, Region: region, Count: count}
		m.Put(b)
		return append(b, data...)
	}
	const rw = vfiouser.DMARead | vfiouser.DMAWrite
	for _, tt := range []struct {
		name    string
		cmd     vfiouser.Command
		payload []byte
		fds     []int
		want    error
	}{
		{"no command", 0, nil, nil, unix.EINVAL},
		{"unknown command", 19, nil, nil, unix.EINVAL},
		{"unknown command with fds", 0xffff, make([]byte, 100), []int{fd, fd}, unix.EINVAL},
		{"the server's", vfiouser.CmdDMARead, make([]byte, 16), nil, unix.EINVAL},
		{"dirty pages", 14, nil, nil, unix.ENOTSUP},
		{"feature", vfiouser.CmdDeviceFeature, make([]byte, 8), nil, unix.ENOTSUP},
		{"migration read", vfiouser.CmdMigDataRead, make([]byte, 8), nil, unix.ENOTSUP},
		{"migration write", vfiouser.CmdMigDataWrite, make([]byte, 8), nil, unix.ENOTSUP},
		{"device info", vfiouser.CmdDeviceGetInfo, u32(16, 0, 0, 0), nil, nil},
		{"device info, small argsz", vfiouser.CmdDeviceGetInfo, u32(8, 0, 0, 0), nil, unix.EINVAL},
		{"device info, short", vfiouser.CmdDeviceGetInfo, u32(16), nil, unix.EINVAL},
		{"region 8", vfiouser.CmdDeviceGetRegionInfo, u32(32, 0, 8, 0, 0, 0, 0, 0), nil, nil},
		{"region 9", vfiouser.CmdDeviceGetRegionInfo, u32(32, 0, 9, 0, 0, 0, 0, 0), nil, unix.EINVAL},
		{"io fds", vfiouser.CmdDeviceGetRegionIOFDs, u32(16, 0, 0, 0), nil, nil},
		{"io fds of region 9", vfiouser.CmdDeviceGetRegionIOFDs, u32(16, 0, 9, 0), nil, unix.EINVAL},
		{"irq 5", vfiouser.CmdDeviceGetIRQInfo, u32(16, 0, 5, 0), nil, unix.EINVAL},
		{"read ROM", vfiouser.CmdRegionRead, access(vfiouser.RegionROM, 0, 4), nil, unix.EINVAL},
		{"read region 77", vfiouser.CmdRegionRead, access(77, 0, 4), nil, unix.EINVAL},
		{"read all configuration", vfiouser.CmdRegionRead, access(vfiouser.RegionConfig, 0, 4096), nil, nil},
		{"read too much", vfiouser.CmdRegionRead, access(vfiouser.RegionConfig, 0, 4097), nil, unix.EINVAL},
		{"read a lot", vfiouser.CmdRegionRead, access(vfiouser.RegionConfig, 0, 0xffffffff), nil, unix.EINVAL},
		{"read 3 bytes of BAR0", vfiouser.CmdRegionRead, access(vfiouser.RegionBAR0, 0, 3), nil, unix.EINVAL},
		{"read 4096 bytes of BAR0", vfiouser.CmdRegionRead, access(vfiouser.RegionBAR0, 0, 4096), nil, unix.EINVAL},
		{"read BAR4", vfiouser.CmdRegionRead, access(vfiouser.RegionBAR4, 4092, 4), nil, nil},
		{"read behind BAR4", vfiouser.CmdRegionRead, access(vfiouser.RegionBAR4, 4094, 4), nil, unix.EINVAL},
		{"write BAR4", vfiouser.CmdRegionWrite, access(vfiouser.RegionBAR4, 0, 4, 1, 2, 3, 4), nil, nil},
		{"write less than said", vfiouser.CmdRegionWrite, access(vfiouser.RegionConfig, 4, 4, 1, 2), nil, unix.EINVAL},
		{"write region 5", vfiouser.CmdRegionWrite, access(vfiouser.RegionBAR5, 4, 1, 1), nil, unix.EINVAL},
		{"write 2 bytes of BAR0", vfiouser.CmdRegionWrite, access(vfiouser.RegionBAR0, 0x14, 2, 1, 0), nil, unix.EINVAL},
		{"write multi", vfiouser.CmdRegionWriteMulti, append(append([]byte{2, 0, 0, 0, 0, 0, 0, 0}, access(vfiouser.RegionBAR0, 0x1000, 4, 9, 0, 0, 0, 0, 0, 0, 0)...), access(vfiouser.RegionConfig, 0x3c, 1, 9, 0, 0, 0, 0, 0, 0, 0)...), nil, nil},
		{"write multi, one bad", vfiouser.CmdRegionWriteMulti, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, access(vfiouser.RegionROM, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0)...), nil, unix.EINVAL},
		{"write multi, more than there are", vfiouser.CmdRegionWriteMulti, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, nil, unix.EINVAL},
		{"map", vfiouser.CmdDMAMap, mapPayload(0, 4*mib, 0, rw), []int{fd}, nil},
		{"map again", vfiouser.CmdDMAMap, mapPayload(mib, mib, 0, rw), []int{fd}, unix.EEXIST},
		{"map with two fds", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 0, rw), []int{fd, fd}, unix.EINVAL},
		{"map odd address", vfiouser.CmdDMAMap, mapPayload(4*mib+1, mib, 0, rw), []int{fd}, unix.EINVAL},
		{"map odd size", vfiouser.CmdDMAMap, mapPayload(4*mib, 7, 0, rw), []int{fd}, unix.EINVAL},
		{"map nothing", vfiouser.CmdDMAMap, mapPayload(4*mib, 0, 0, rw), []int{fd}, unix.EINVAL},
		{"map around the end", vfiouser.CmdDMAMap, mapPayload(^uint64(4095), 8192, 0, rw), nil, unix.EINVAL},
		{"map odd offset", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 512, rw), []int{fd}, unix.EINVAL},
		{"map behind the file", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 8*mib, rw), []int{fd}, unix.EINVAL},
		{"map offset around the end", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, ^uint64(4095), rw), []int{fd}, unix.EINVAL},
		{"map what is no file", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 0, rw), []int{int(pipe.Fd())}, unix.EINVAL},
		{"map with unknown flags", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 0, 8), []int{fd}, unix.EINVAL},
		{"map without access", vfiouser.CmdDMAMap, mapPayload(4*mib, mib, 0, 0), nil, nil},
		{"map, short", vfiouser.CmdDMAMap, mapPayload(5*mib, mib, 0, 0)[:31], nil, unix.EINVAL},
		{"unmap a part", vfiouser.CmdDMAUnmap, unmapPayload(0, mib), nil, unix.EINVAL},
		{"unmap nothing", vfiouser.CmdDMAUnmap, unmapPayload(0, 0), nil, unix.EINVAL},
		{"unmap what is not mapped", vfiouser.CmdDMAUnmap, unmapPayload(64*mib, mib), nil, unix.ENOENT},
		{"unmap with a bitmap", vfiouser.CmdDMAUnmap, append(u32(24, 1), unmapPayload(0, 4*mib)[8:]...), nil, unix.ENOTSUP},
		{"unmap two", vfiouser.CmdDMAUnmap, unmapPayload(0, 8*mib), nil, nil},
		{"map once more", vfiouser.CmdDMAMap, mapPayload(0, mib, 0, rw), []int{fd}, nil},
		{"unmap all", vfiouser.CmdDMAUnmap, append(u32(24, 2), make([]byte, 16)...), nil, nil},
		{"reset", vfiouser.CmdDeviceReset, nil, nil, nil},
		{"reset with fds", vfiouser.CmdDeviceReset, []byte{1, 2, 3}, []int{fd, fd, fd, fd, fd, fd, fd, fd}, nil},
	} {
		if err := call(c, tt.cmd, tt.payload, tt.fds...); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if got := p.show(); got.Regions != 0 {
		t.Errorf("%d regions are left", got.Regions)
	}
}

// TestRegionLimit: a client has so many regions and no more.
func TestRegionLimit(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	c := rawClient(t, p)
	negotiate(t, c)
	for i := range uint64(maxRegions + 1) {
		err := call(c, vfiouser.CmdDMAMap, mapPayload(i*4096, 4096, 0, vfiouser.DMARead))
		if want := i < maxRegions; (err == nil) != want || err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("region %d: %v", i, err)
		}
	}
}

// TestBrokenFraming ends the connection, and the next client is let in.
func TestBrokenFraming(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	header := func(h vfiouser.Header) []byte {
		b := make([]byte, vfiouser.HeaderSize)
		h.Put(b)
		return b
	}
	for _, tt := range []struct {
		name  string
		bytes []byte
		fds   int
		close bool
	}{
		{name: "size below the header", bytes: header(vfiouser.Header{Command: 1, Size: 4})},
		{name: "huge size", bytes: header(vfiouser.Header{Command: 1, Size: 1 << 31})},
		{name: "unknown type", bytes: header(vfiouser.Header{Command: 1, Size: 16, Flags: 3})},
		{name: "reply to nothing", bytes: header(vfiouser.Header{Command: 11, Size: 16, Flags: vfiouser.FlagReply})},
		{name: "too many fds", bytes: header(vfiouser.Header{Command: 2, Size: 16}), fds: maxFDs + 1},
		{name: "cut header", bytes: []byte{1, 2, 3}, close: true},
		{name: "cut payload, with fds", bytes: append(header(vfiouser.Header{Command: 2, Size: 48}), 1, 2), fds: 2, close: true},
	} {
		c := rawClient(t, p)
		negotiate(t, c)
		var oob []byte
		if tt.fds > 0 {
			fds := make([]int, tt.fds)
			for i := range fds {
				fds[i] = mem.FD()
			}
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := c.Socket().WriteMsgUnix(tt.bytes, oob, nil); err != nil {
			t.Fatal(err)
		}
		if tt.close {
			if err := c.Socket().CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if err := reply(c, 0xffff); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection goes on: %v", tt.name, err)
		}
		c.Close()
		eventually(t, tt.name+": waiting", func() bool { return p.show().ClientPID == 0 })
	}
	dial(t, p, mem, vfiousertest.Options{})
}

// TestPostedWrites get no answer, wrong ones neither.
func TestPostedWrites(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	for _, region := range []vfiouser.Region{vfiouser.RegionBAR0, vfiouser.RegionROM, 99} {
		for _, n := range []int{0, 1, 3, 4, 100} {
			if err := c.PostRegion(region, 0x1000, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A reply to any of them would be one to no command, and end the client.
	if _, err := c.Read32(0); err != nil {
		t.Error(err)
	}
}

// proxy passes messages between a client and a port, and cuts both off after
// some messages of the client's.
func proxy(t *testing.T, p *port, path string, after int) (cut func()) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer l.Close()
		in, err := l.AcceptUnix()
		if err != nil {
			return
		}
		out, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.socket, Net: "unix"})
		if err != nil {
			in.Close()
			t.Error(err)
			return
		}
		client, server := vfiouser.NewConn(in, vfiouser.Limits{MaxFDs: 64}), vfiouser.NewConn(out, vfiouser.Limits{MaxFDs: 64})
		pass := func(from, to *vfiouser.Conn, limit int) {
			for i := 0; i != limit; i++ {
				m, err := from.ReadMessage()
				if err != nil {
					break
				}
				var fds []int
				for i := range m.NumFDs() {
					fds = append(fds, m.TakeFD(i))
				}
				err = to.SendFDs(m.Header, fds, m.Payload)
				for _, fd := range fds {
					unix.Close(fd)
				}
				if err != nil {
					break
				}
			}
			client.Close()
			server.Close()
		}
		wg.Go(func() { pass(server, client, -1) })
		pass(client, server, after)
	})
	return func() {
		l.Close()
		wg.Wait()
	}
}

// TestDisconnects cuts a client off after each of its messages: the port is
// as new for the next one.
func TestDisconnects(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib, High: 8 * mib})
	p := addPort(t, b, api.PortSpec{Name: "vm1", Doorbells: api.DoorbellsMap, Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	rt.attached(t, "vm1")
	for n := 1; ; n++ {
		path := filepath.Join(b.paths.Run, fmt.Sprint("p", n))
		cut := proxy(t, p, path, n)
		c, err := vfiousertest.Dial(path, mem, vfiousertest.Options{})
		if err == nil {
			// All messages went through.
			c.Close()
			cut()
			eventually(t, "waiting", func() bool { return p.show().ClientPID == 0 })
			if n < 50 {
				t.Errorf("the client starts with %d messages", n)
			}
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("after %d messages: %v", n, err)
		}
		cut()
		eventually(t, "waiting", func() bool { return p.show().ClientPID == 0 })
		if got := p.show(); got.Regions != 0 || got.State != api.PortWaiting {
			t.Fatalf("after %d messages: %+v", n, got)
		}
	}
	dial(t, p, mem, vfiousertest.Options{})
	if f := rt.caughtUp(t, p); len(f.regions) != 4 {
		t.Errorf("%d regions, want 4", len(f.regions))
	}
}

// TestIRQs sends DEVICE_SET_IRQS in all its forms.
func TestIRQs(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	has := func(index, vector uint32, want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("vector %d of type %d: %v", vector, index, want), func() bool {
			_, ok := rt.attached(t, "vm1").vectors[[2]uint32{index, vector}]
			return ok == want
		})
	}
	mode := func(want uint32) {
		t.Helper()
		p.mu.Lock()
		defer p.mu.Unlock()
		if got := p.regs.Page.IRQMode; got != want {
			t.Errorf("mode is %d, want %d", got, want)
		}
	}
	intx := uint32(vfiouser.IRQINTx)
	msix := uint32(vfiouser.IRQMSIX)
	const trigger, unmask, mask = vfiouser.IRQActionTrigger, vfiouser.IRQActionUnmask, vfiouser.IRQActionMask
	const none, boolean, event = vfiouser.IRQDataNone, vfiouser.IRQDataBool, vfiouser.IRQDataEventFD

	has(intx, 0, true)
	mode(1)
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQINTx, Count: 1}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.INTx().Wait(patience); err != nil {
		t.Errorf("triggered INTx: %v", err)
	}
	// Masked, the runtime cannot fire it; unmasking counts as an end.
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: none | mask, Index: vfiouser.IRQINTx, Count: 1}, nil); err != nil {
		t.Fatal(err)
	}
	has(intx, 0, false)
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: boolean | unmask, Index: vfiouser.IRQINTx, Count: 1}, nil, 0); err != nil {
		t.Fatal(err)
	}
	has(intx, 0, false)
	before := p.regs.Page.Unmasks
	if err := c.EndINTx(); err != nil {
		t.Fatal(err)
	}
	has(intx, 0, true)
	if p.regs.Page.Unmasks != before+1 {
		t.Errorf("%d unmasks, want %d", p.regs.Page.Unmasks, before+1)
	}

	if err := c.EnableMSIX(); err != nil { // INTx off, MSI-X on without vectors
		t.Fatal(err)
	}
	has(intx, 0, false)
	mode(2)
	v5, err := c.Vector(5)
	if err != nil {
		t.Fatal(err)
	}
	has(msix, 5, true)
	// Many at once, as where vectors cannot be added one by one.
	var all []int
	for range 4 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		all = append(all, fd)
	}
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX, Start: 124, Count: 4}, all); err != nil {
		t.Fatal(err)
	}
	has(msix, 127, true)
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: boolean | trigger, Index: vfiouser.IRQMSIX, Start: 4, Count: 3}, nil, 1, 1, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := v5.Wait(patience); err != nil || n != 1 {
		t.Errorf("triggered vector 5: %d, %v", n, err)
	}
	// The client's eventfds do not block whoever fires them.
	full := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
	if _, err := unix.Write(all[0], full); err != nil {
		t.Fatal(err)
	}
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSIX, Start: 124, Count: 1}, nil); err != nil {
		t.Fatal(err)
	}
	// One vector taken away.
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX, Start: 5, Count: 1}, nil); err != nil {
		t.Fatal(err)
	}
	has(msix, 5, false)
	mode(2)

	memory, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memory)
	for _, tt := range []struct {
		name string
		set  vfiouser.IRQSet
		fds  []int
		data []byte
		want syscall.Errno
	}{
		{"error interrupt", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQErr, Count: 1}, all[:1], nil, 0},
		{"no MSI", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSI, Count: 1}, nil, nil, unix.EINVAL},
		{"MSI off", vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSI}, nil, nil, 0},
		{"no such type", vfiouser.IRQSet{Flags: none | trigger, Index: 5, Count: 1}, nil, nil, unix.EINVAL},
		{"too many vectors", vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSIX, Start: 120, Count: 9}, nil, nil, unix.EINVAL},
		{"start behind the end", vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSIX, Start: 129}, nil, nil, unix.EINVAL},
		{"overflow", vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSIX, Start: ^uint32(0), Count: 2}, nil, nil, unix.EINVAL},
		{"nothing", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX}, nil, nil, unix.EINVAL},
		{"fewer fds", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX, Count: 3}, all[:2], nil, unix.EINVAL},
		{"more fds", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX, Count: 1}, all[:2], nil, unix.EINVAL},
		{"fds for nothing", vfiouser.IRQSet{Flags: none | trigger, Index: vfiouser.IRQMSIX, Count: 1}, all[:1], nil, unix.EINVAL},
		{"no eventfd", vfiouser.IRQSet{Flags: event | trigger, Index: vfiouser.IRQMSIX, Count: 1}, []int{memory}, nil, unix.EINVAL},
		{"mask MSI-X", vfiouser.IRQSet{Flags: none | mask, Index: vfiouser.IRQMSIX, Count: 1}, nil, nil, unix.ENOTSUP},
		{"unmask by eventfd", vfiouser.IRQSet{Flags: event | unmask, Index: vfiouser.IRQINTx, Count: 1}, all[:1], nil, unix.ENOTSUP},
		{"short data", vfiouser.IRQSet{Flags: boolean | trigger, Index: vfiouser.IRQMSIX, Count: 2}, nil, []byte{1}, unix.EINVAL},
		{"two actions", vfiouser.IRQSet{Flags: none | mask | unmask, Index: vfiouser.IRQINTx, Count: 1}, nil, nil, unix.EINVAL},
	} {
		err := c.SetIRQs(tt.set, tt.fds, tt.data...)
		if tt.want == 0 && err != nil || tt.want != 0 && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := c.DisableMSIX(); err != nil {
		t.Fatal(err)
	}
	has(msix, 127, false)
	has(intx, 0, true)
	mode(1)
}
