// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestRuntimeDies: an enabled controller stays, and the next runtime has it; a
// reset in between is answered once the first is gone, not before.
func TestRuntimeDies(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	if err := c.EnableMSIX(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Vector(0); err != nil {
		t.Fatal(err)
	}
	enable(t, c)
	state := func(want string) {
		t.Helper()
		eventually(t, "state "+want, func() bool { return fact(b, "vm1", "state") == want })
	}
	state(api.PortEnabled)

	rt.kill()
	state(api.PortFrozen)
	if got := csts(t, c); got != nvme.CSTS(0).WithRDY(true) {
		t.Errorf("CSTS is %#x without a runtime, want RDY", got)
	}
	rt2 := startRuntime(t, b, api.DefaultRuntime)
	state(api.PortEnabled)
	if rt2.epoch <= rt.epoch {
		t.Errorf("epoch %d after %d", rt2.epoch, rt.epoch)
	}
	f := rt2.caughtUp(t, p)
	if len(f.regions) != 2 || len(f.vectors) != 1 {
		t.Errorf("the second runtime has %d regions and %d vectors, want 2 and 1", len(f.regions), len(f.vectors))
	}

	// Lost, but its I/O may still be in flight.
	rt2.hang()
	state(api.PortFrozen)
	setCC(t, c, 0)
	waiting := make(chan qpair.Message, 1)
	var next *qpair.Link
	var fds []int
	go func() {
		var m qpair.Message
		next, m, fds = connect(t, b, api.DefaultRuntime)
		waiting <- m
	}()
	time.Sleep(20 * time.Millisecond)
	if got := csts(t, c); got != nvme.CSTS(0).WithRDY(true) {
		t.Errorf("CSTS is %#x while the runtime is not gone, want RDY", got)
	}
	select {
	case m := <-waiting:
		t.Errorf("a runtime was welcomed (status %d) while the one before it is not gone", m.Status)
	default:
	}
	rt2.kill()
	m := <-waiting
	if m.Status != 0 || m.Gen <= rt2.epoch {
		t.Errorf("welcome with status %d, epoch %d after %d", m.Status, m.Gen, rt2.epoch)
	}
	next.Close()
	qpair.CloseFDs(fds)
	waitCSTS(t, c, 0)
}

// TestAttachTable: when a runtime hears of a port, the page says already which
// generation of the region table is whole: were it told piece by piece, a quick
// runtime would take a part of the guest's memory for all of it.
func TestAttachTable(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	c := rawClient(t, p)
	negotiate(t, c)
	for i := range uint64(maxRegions) {
		payload := mapPayload(i*mib, mib, 0, vfiouser.DMARead|vfiouser.DMAWrite)
		if err := call(c, vfiouser.CmdDMAMap, payload); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		var link *qpair.Link
		var fds []int
		eventually(t, "end of the runtime before", func() bool {
			var welcome qpair.Message
			link, welcome, fds = connect(t, b, api.DefaultRuntime)
			return welcome.Status == 0
		})
		m, _, shared, err := link.Recv()
		if err != nil || m.Kind != qpair.MsgAttach {
			t.Fatalf("message %v: %v", m.Kind, err)
		}
		regs, err := qpair.Open[qpair.Registers](shared[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := regs.Page.LoadMapGen(); got != m.Gen+maxRegions {
			t.Errorf("attached at generation %d with %d regions, the page says %d", m.Gen, maxRegions, got)
		}
		regs.Close()
		link.Close()
		qpair.CloseFDs(shared)
		qpair.CloseFDs(fds)
	}
}

// TestWelcomeFirst: a runtime that waits for the one before it is welcomed before
// it hears of a port, which is free at the same moment.
func TestWelcomeFirst(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	for i := range 8 {
		addPort(t, b, api.PortSpec{Name: fmt.Sprintf("vm%d", i), Subsystem: "s1"})
	}
	link, _, fence := connect(t, b, api.DefaultRuntime)
	for range 100 {
		link.Close() // lost, but not gone
		eventually(t, "the end of the link", func() bool { return b.runtime(api.DefaultRuntime) == nil })
		next := make(chan func(), 1)
		go func() {
			set := func() {}
			defer func() { next <- set }() // also if there is no welcome
			l, _, fds := connect(t, b, api.DefaultRuntime)
			set = func() { link, fence = l, fds }
		}()
		time.Sleep(time.Millisecond) // most likely it waits
		qpair.CloseFDs(fence)
		(<-next)()
		if t.Failed() {
			return
		}
	}
	link.Close()
	qpair.CloseFDs(fence)
}

// TestResetWithoutGone: a function reset is answered in time also while a dead
// runtime may still write; that is shown until it is gone.
func TestResetWithoutGone(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	rt.hang()
	if err := c.Reset(); err != nil {
		t.Fatal(err)
	}
	waitCSTS(t, c, nvme.CSTS(0).WithCFS(true))
	rt.kill()
	waitCSTS(t, c, 0)
}

func TestHello(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	startRuntime(t, b, "one")
	for _, tt := range []struct {
		name string
		want unix.Errno
	}{{"one", unix.EBUSY}, {"wpt", unix.EINVAL}, {"link", unix.EINVAL}, {"", unix.EINVAL}, {"../x", unix.EINVAL}} {
		link, m, fds := connect(t, b, tt.name)
		if unix.Errno(m.Status) != tt.want || len(fds) != 0 || m.Version != qpair.LinkVersion {
			t.Errorf("%q: status %v, %d fds; want %v", tt.name, unix.Errno(m.Status), len(fds), tt.want)
		}
		link.Close()
	}
	link := dialLink(t, b)
	defer link.Close()
	m := qpair.Message{Kind: qpair.MsgHello, Version: qpair.LinkVersion + 1, Name: [64]byte{'x'}}
	if err := link.Send(&m, nil); err != nil {
		t.Fatal(err)
	}
	if m, _, _, err := link.Recv(); err != nil || unix.Errno(m.Status) != unix.EPROTO || m.Version != qpair.LinkVersion {
		t.Errorf("another version: status %v, %v; want EPROTO", unix.Errno(m.Status), err)
	}
}

// TestHostileRuntime: what breaks the protocol ends the link and nothing else.
func TestHostileRuntime(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	for _, tt := range []struct {
		name string
		m    qpair.Message
		data []byte
		fds  []int
	}{
		{name: "no kind"},
		{name: "unknown kind", m: qpair.Message{Kind: 1 << 31}},
		{name: "hello again", m: qpair.Message{Kind: qpair.MsgHello, Version: 1}},
		{name: "leap-wpt's own", m: qpair.Message{Kind: qpair.MsgAttach, Port: p.id}},
		{name: "keep without an fd", m: qpair.Message{Kind: qpair.MsgKeep}},
		{name: "keep with two", m: qpair.Message{Kind: qpair.MsgKeep}, fds: []int{fd, fd}},
		{name: "status with an fd", m: qpair.Message{Kind: qpair.MsgStatus, Port: p.id}, fds: []int{fd}},
		{name: "status with data", m: qpair.Message{Kind: qpair.MsgStatus, Port: p.id}, data: []byte{1}},
		{name: "gives up unasked", m: qpair.Message{Kind: qpair.MsgDetached, Port: p.id}},
		{name: "too many fds", m: qpair.Message{Kind: qpair.MsgKeep}, fds: []int{fd, fd, fd, fd, fd, fd}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rt := startRuntime(t, b, api.DefaultRuntime)
			rt.attached(t, "vm1")
			if err := rt.link.Send(&tt.m, tt.data, tt.fds...); err != nil {
				t.Fatal(err)
			}
			eventually(t, "end of the link", func() bool { return rt.linkError() != nil })
			rt.kill()
			eventually(t, "gone", func() bool { return len(b.listRuntimes()) == 0 && p.show().Epoch == 0 })
		})
	}
	// What is about another's port, or none, is nothing.
	rt := startRuntime(t, b, "other")
	for _, id := range []uint32{p.id, 999} {
		for _, kind := range []qpair.MessageKind{qpair.MsgDetached, qpair.MsgUnmapped, qpair.MsgStatus, qpair.MsgDrop} {
			rt.send(t, qpair.Message{Kind: kind, Port: id}, nil)
		}
		relay := rt.send(t, qpair.Message{Kind: qpair.MsgRelayRead, Port: id, Size: 16}, nil)
		if a := rt.answer(t, relay); unix.Errno(a.status) != unix.EIO {
			t.Errorf("relay on port %d: status %v, want EIO", id, unix.Errno(a.status))
		}
	}
	if err := rt.linkError(); err != nil {
		t.Errorf("link ended: %v", err)
	}
	// A cut message.
	link, _, fds := connect(t, b, "cut")
	defer qpair.CloseFDs(fds)
	defer link.Close()
}

// TestRuntimeDoesNotRead: a runtime that asks and does not read what it gets
// loses its link, and the port's client does not wait for it for ever.
func TestRuntimeDoesNotRead(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	link, _, fds := connect(t, b, api.DefaultRuntime)
	defer link.Close()
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	for range 3000 {
		if err := c.SetIRQs(vfiouser.IRQSet{Flags: vfiouser.IRQDataNone | vfiouser.IRQActionMask, Index: vfiouser.IRQINTx, Count: 1}, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.EndINTx(); err != nil {
			t.Fatal(err)
		}
	}
	qpair.CloseFDs(fds)
	eventually(t, "end of the runtime", func() bool { return len(b.listRuntimes()) == 0 })
}

// TestDeafRuntime: DMA_UNMAP is answered without a runtime that does not
// answer, and a row of them does not add up the waits.
func TestDeafRuntime(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	c := dial(t, p, mem, vfiousertest.Options{})
	rt.caughtUp(t, p)
	rt.deaf.Store(true)
	begin := time.Now()
	if err := c.Unmap(0, 8*mib); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < quick.unmap {
		t.Errorf("unmapped after %v, without waiting for the runtime", d)
	}
	begin = time.Now()
	for range 20 {
		if err := c.Map(mem.Mappings()[0]); err != nil {
			t.Fatal(err)
		}
		if err := c.Unmap(0, 8*mib); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d > 10*quick.unmap {
		t.Errorf("20 unmaps took %v", d)
	}
	// Its death ends all waits.
	rt.kill()
	eventually(t, "gone", func() bool { return p.show().Epoch == 0 })
	if err := c.Map(mem.Mappings()[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.Unmap(0, 8*mib); err != nil {
		t.Fatal(err)
	}
}

// TestKept: files outlive their runtime, by name of runtime and file.
func TestKept(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	rt := startRuntime(t, b, "one")
	message := func(kind qpair.MessageKind, name string) qpair.Message {
		m := qpair.Message{Kind: kind}
		if err := qpair.SetName(&m.Name, name); err != nil {
			t.Fatal(err)
		}
		return m
	}
	file := func(content string) int {
		fd, err := unix.MemfdCreate("kept", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwrite(fd, []byte(content), 0); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	keep := func(rt *fakeRuntime, name, content string) unix.Errno {
		t.Helper()
		fd := file(content)
		defer unix.Close(fd)
		return unix.Errno(rt.answer(t, rt.send(t, message(qpair.MsgKeep, name), nil, fd)).status)
	}
	fetch := func(rt *fakeRuntime, name string) string {
		t.Helper()
		a := rt.answer(t, rt.send(t, message(qpair.MsgFetch, name), nil))
		if a.status != 0 {
			return unix.Errno(a.status).Error()
		}
		defer unix.Close(a.fd)
		var b [16]byte
		n, err := unix.Pread(a.fd, b[:], 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for _, name := range []string{"d1", "d2"} {
		if errno := keep(rt, name, name); errno != 0 {
			t.Fatal(errno)
		}
	}
	if errno := keep(rt, "d2", "again"); errno != 0 {
		t.Fatal(errno)
	}
	if errno := keep(rt, "", "x"); errno != unix.EINVAL {
		t.Errorf("no name: %v, want EINVAL", errno)
	}
	rt.kill()
	rt = startRuntime(t, b, "one")
	other := startRuntime(t, b, "two")
	for _, tt := range []struct {
		rt         *fakeRuntime
		name, want string
	}{
		{rt, "d1", "d1"}, {rt, "d2", "again"}, {rt, "d1", "d1"}, {rt, "d3", unix.ENOENT.Error()}, {other, "d1", unix.ENOENT.Error()},
	} {
		if got := fetch(tt.rt, tt.name); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if got, want := b.kept.list(), []api.Kept{{Name: "d1", Runtime: "one", Size: 2}, {Name: "d2", Runtime: "one", Size: 5}}; !slices.Equal(got, want) {
		t.Errorf("list: got %+v, want %+v", got, want)
	}
	rt.send(t, message(qpair.MsgDrop, "d1"), nil)
	if got := fetch(rt, "d1"); got != unix.ENOENT.Error() {
		t.Errorf("d1 after drop: %q", got)
	}
	for i := 0; ; i++ {
		if errno := keep(rt, fmt.Sprint("n", i), ""); errno == unix.ENOSPC {
			if i != maxKept-1 {
				t.Errorf("limit after %d, want %d", i, maxKept-1)
			}
			break
		} else if errno != 0 {
			t.Fatal(errno)
		}
	}
}

// TestOutbox: order, duplicates of descriptors, room, and the end.
func TestOutbox(t *testing.T) {
	checkLeaks(t)
	o := newOutbox()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for i := range outboxRoom {
		if err := o.add(qpair.Message{ID: uint64(i)}, nil, int(null.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	if o.waitRoom(time.Millisecond) {
		t.Error("there is room in a full outbox")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if !o.waitRoom(patience) {
			t.Error("no room after the end")
		}
	})
	o.close()
	wg.Wait()
	if err := o.add(qpair.Message{}, nil, int(null.Fd())); err != nil {
		t.Error(err)
	}
	if err := o.add(qpair.Message{}, nil, -1); err == nil {
		t.Error("a descriptor that is none was taken")
	}
	if err := o.write(nil); err != nil {
		t.Errorf("writing a closed outbox: %v", err)
	}
}
