// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// replace has a broker be replaced, through the list as text.
func replace(t testing.TB, b **Broker) {
	t.Helper()
	text, err := json.Marshal((*b).leave())
	if err != nil {
		t.Fatal(err)
	}
	l := new(legacy)
	if err := json.Unmarshal(text, l); err != nil {
		t.Fatal(err)
	}
	next, err := open(Config{Paths: (*b).paths, Version: "next", Logger: testLogger(t), before: l}, (*b).limits)
	if err != nil {
		t.Fatal(err)
	}
	*b = next
}

// startReplaceable is startBroker for a broker that is replaced.
func startReplaceable(t testing.TB) **Broker {
	t.Helper()
	checkLeaks(t)
	b, err := open(Config{Paths: testPaths(t), Version: "test", Logger: testLogger(t)}, quick)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the broker: %v", err)
		}
	})
	return &b
}

// A client goes on with its memory, its interrupts and its registers; the
// runtime comes again and is told of all of it.
func TestReplace(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	addPort(t, *b, api.PortSpec{Name: "vm2", Doorbells: api.DoorbellsMap})
	rt := startRuntime(t, *b, "soc")
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	c := dial(t, p, mem, vfiousertest.Options{})
	enable(t, c)
	before := rt.caughtUp(t, p)
	epoch, gen, vectors := rt.epoch, before.gen, len(before.vectors)
	state := (*b).ports["vm1"].show()
	for round := range 3 {
		replace(t, b)
		if got, want := fact(*b, "vm1", "subsystem"), "s1"; got != want {
			t.Errorf("fact subsystem %q, want %q", got, want)
		}
		p = mustPort(t, *b, "vm1")
		waitCSTS(t, c, nvme.CSTS(0).WithRDY(true)) // from the page: nobody serves it now
		if got := p.show(); got.State != api.PortFrozen || got.Regions != state.Regions || got.Memory != state.Memory || got.ClientPID != state.ClientPID {
			t.Errorf("round %d: %+v\nwas %+v", round, got, state)
		}
		rt.kill()
		rt = startRuntime(t, *b, "soc")
		if rt.epoch <= epoch {
			t.Errorf("epoch %d after %d", rt.epoch, epoch)
		}
		epoch = rt.epoch
		after := rt.caughtUp(t, p)
		if after.gen <= gen || len(after.regions) != state.Regions || len(after.vectors) != vectors {
			t.Errorf("the runtime knows %d regions (want %d), %d vectors (want %d), generation %d after %d",
				len(after.regions), state.Regions, len(after.vectors), vectors, after.gen, gen)
		}
		gen = after.gen
		eventually(t, "enabled", func() bool { return p.show().State == api.PortEnabled })
	}
	if names := (*b).Attached(); !slices.Equal(names, []string{"vm1"}) {
		t.Errorf("attached: %v", names)
	}
	// What comes new works as before, and the end of the client as well.
	addPort(t, *b, api.PortSpec{Name: "vm3"})
	c.Close()
	eventually(t, "waiting", func() bool { return p.show().State == api.PortWaiting })
	other := dial(t, mustPort(t, *b, "vm2"), mem, vfiousertest.Options{})
	other.Close()
	stored, err := stateFile((*b).paths).Load()
	if err != nil || len(stored.Ports) != 3 {
		t.Errorf("state file: %+v, %v", stored, err)
	}
}

// A runtime whose link ended is not gone while its fence is held, also for the
// next program: resets are not acknowledged, and nobody else gets its name.
func TestReplaceKeepsFence(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, *b, "soc")
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	replace(t, b)
	rt.hang()
	setCC(t, c, 0)
	if got := csts(t, c); !got.RDY() {
		t.Error("a reset is acknowledged while I/O may be in flight")
	}
	link, refused := dialLink(t, *b), make(chan struct{})
	go func() {
		defer close(refused)
		m := qpair.Message{Kind: qpair.MsgHello, Version: qpair.LinkVersion}
		_ = qpair.SetName(&m.Name, "soc")
		_ = link.Send(&m, nil)
		_, _, fds, _ := link.Recv()
		qpair.CloseFDs(fds)
	}()
	select {
	case <-refused:
		t.Error("a runtime is let in while the one before is not gone")
	case <-time.After(50 * time.Millisecond):
	}
	replace(t, b) // also the one that waits can come again
	<-refused
	link.Close()
	if got := csts(t, c); !got.RDY() {
		t.Error("a reset is acknowledged while I/O may be in flight")
	}
	rt.kill()
	waitCSTS(t, c, 0)
	startRuntime(t, *b, "soc")
}

// What runtimes left in our care, and a port that could not be opened.
func TestReplaceKeepsFiles(t *testing.T) {
	b := startReplaceable(t)
	rt := startRuntime(t, *b, "soc")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := qpair.Message{Kind: qpair.MsgKeep}
	if err := qpair.SetName(&m.Name, "m1"); err != nil {
		t.Fatal(err)
	}
	id := rt.send(t, m, nil, int(w.Fd()))
	if a := rt.answer(t, id); a.status != 0 {
		t.Fatalf("keep: status %d", a.status)
	}
	w.Close()
	(*b).failed["gone"] = record{Name: "gone", Owner: "no.such.user", Doorbells: "trap", Runtime: "soc"}
	if err := (*b).save(); err != nil {
		t.Fatal(err)
	}
	replace(t, b)
	rt.kill()
	rt = startRuntime(t, *b, "soc")
	m.Kind = qpair.MsgFetch
	a := rt.answer(t, rt.send(t, m, nil))
	if a.status != 0 || a.fd < 0 {
		t.Fatalf("fetch: %+v", a)
	}
	defer unix.Close(a.fd)
	if _, err := unix.Write(a.fd, []byte("x")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(r, got); err != nil || got[0] != 'x' {
		t.Errorf("read %q, %v", got, err)
	}
	if _, ok := (*b).failed["gone"]; !ok {
		t.Error("a port of the state file is forgotten")
	}
}

// The stream may stop anywhere in a message, with file descriptors under way.
func TestReplaceInsideMessage(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1"})
	c, socket := rawConn(t, p)
	memory, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(memory, mib)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memory)
	replace(t, b) // before VERSION
	negotiate(t, c)
	payload := mapPayload(0, mib, 0, vfiouser.DMARead|vfiouser.DMAWrite)
	message := vfiousertest.Message(vfiouser.Header{ID: 7, Command: vfiouser.CmdDMAMap}, payload)
	for cut := 1; cut <= len(message); cut++ {
		if err := sendRaw(socket, message[:cut], memory); err != nil {
			t.Fatal(err)
		}
		if cut%2 == 0 {
			time.Sleep(time.Millisecond) // it may be read before, or not
		}
		replace(t, b)
		if cut < len(message) {
			if err := sendRaw(socket, message[cut:]); err != nil {
				t.Fatal(err)
			}
		}
		if err := reply(c, 7); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if got := mustPort(t, *b, "vm1").show(); got.Regions != 1 || got.Memory != mib {
			t.Fatalf("cut at %d: %d regions of %d bytes", cut, got.Regions, got.Memory)
		}
		if err := call(c, vfiouser.CmdDMAUnmap, unmapPayload(0, mib)); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

// sendRaw writes bytes to a socket, with file descriptors.
func sendRaw(socket *net.UnixConn, b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := socket.WriteMsgUnix(b, oob, nil)
	return err
}

// A DMA_WRITE that is under way is remembered, so that its answer is no answer to
// nothing, and a reset still waits for it.
func TestReplaceRelay(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, *b, "soc")
	c := rawClient(t, p)
	negotiate(t, c)
	mapRAM(t, c, mib)
	at := rt.caughtUp(t, p)
	rt.send(t, qpair.Message{Kind: qpair.MsgRelayWrite, Port: at.id, Addr: 0x1000, Size: 4}, []byte("data"))
	h := nextCommand(t, c)
	replace(t, b)
	rt.kill()
	if err := call(c, vfiouser.CmdDeviceReset, nil); err != nil {
		t.Fatal(err)
	}
	var access [vfiouser.DMAAccessSize]byte
	a := vfiouser.DMAAccess{Address: 0x1000, Count: 4}
	a.Put(access[:])
	if err := c.Reply(h, access[:]); err != nil {
		t.Fatal(err)
	}
	// The connection lives: the answer was expected.
	if err := call(c, vfiouser.CmdDeviceReset, nil); err != nil {
		t.Error(err)
	}
}

// A program that cannot take over changes nothing.
func TestUpgradeRefused(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	script := func(text string) string {
		path := t.TempDir() + "/program"
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name, path string
	}{
		{"no file", t.TempDir() + "/none"},
		{"fails", script("echo broken >&2; exit 1")},
		{"says nothing", script("exit 0")},
		{"another daemon", script(`echo '{"daemon":"leap-soc","version":"1","layouts":{"tables":2,"journal":1,"registers":1,"state":1}}'`)},
		{"another version", script(`echo '{"daemon":"leap-wpt","version":"9","layouts":{"tables":99,"journal":1,"registers":1,"state":1}}'`)},
		{"no program", func() string {
			path := t.TempDir() + "/text"
			if err := os.WriteFile(path, []byte("text"), 0o644); err != nil {
				t.Fatal(err)
			}
			return path
		}()},
	} {
		_, err := b.upgrade(t.Context(), api.Upgrade{Binary: tt.path})
		if err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
		t.Logf("%s: %v", tt.name, err)
	}
	select {
	case path := <-b.upgrades:
		t.Errorf("%s is to take over", path)
	default:
	}
}

// The program cannot be executed after all: the broker goes on.
func TestUpgradeFails(t *testing.T) {
	b := startReplaceable(t)
	p := addPort(t, *b, api.PortSpec{Name: "vm1"})
	c := rawClient(t, p)
	negotiate(t, c)
	l := (*b).leave()
	err := l.exec(t.TempDir() + "/none")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("execute: %v", err)
	}
	next, err := open(Config{Paths: (*b).paths, Version: "test", Logger: testLogger(t), before: l, failed: err}, quick)
	if err != nil {
		t.Fatal(err)
	}
	*b = next
	if next.upgradeError() == "" {
		t.Error("nobody is told")
	}
	if err := call(c, vfiouser.CmdDeviceReset, nil); err != nil {
		t.Error(err)
	}
}
