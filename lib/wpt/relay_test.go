// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// relayRig is a port with a guest whose memory is not shared, and a runtime.
type relayRig struct {
	b   *Broker
	p   *port
	rt  *fakeRuntime
	mem *vfiousertest.Memory
	c   *vfiousertest.Client
}

func newRelayRig(t *testing.T) *relayRig {
	b := startBroker(t, testPaths(t), quick)
	r := &relayRig{b: b, p: addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})}
	r.rt = startRuntime(t, b, api.DefaultRuntime)
	r.mem = newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib, Private: true})
	r.c = dial(t, r.p, r.mem, vfiousertest.Options{})
	if err := r.c.Command(0x0106); err != nil { // memory, bus master, SERR
		t.Fatal(err)
	}
	if f := r.rt.caughtUp(t, r.p); f.shared != 0 {
		t.Errorf("%d regions are shared", f.shared)
	}
	return r
}

func (r *relayRig) read(t *testing.T, addr, size uint64) answer {
	t.Helper()
	return r.rt.answer(t, r.rt.send(t, qpair.Message{Kind: qpair.MsgRelayRead, Port: r.p.id, Addr: addr, Size: size}, nil))
}

func (r *relayRig) write(t *testing.T, addr uint64, data []byte) answer {
	t.Helper()
	m := qpair.Message{Kind: qpair.MsgRelayWrite, Port: r.p.id, Addr: addr, Size: uint64(len(data))}
	return r.rt.answer(t, r.rt.send(t, m, data))
}

func TestRelay(t *testing.T) {
	r := newRelayRig(t)
	for _, size := range []int{1, 12, 4096, qpair.MaxRelay} {
		addr, ram, err := r.mem.Alloc(size)
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{0xa5, byte(size), 7}, size)[:size]
		if a := r.write(t, addr, data); a.status != 0 || !bytes.Equal(ram, data) {
			t.Errorf("write of %d: status %v, equal %v", size, unix.Errno(a.status), bytes.Equal(ram, data))
		}
		if a := r.read(t, addr, uint64(size)); a.status != 0 || !bytes.Equal(a.data, data) {
			t.Errorf("read of %d: status %v, %d bytes", size, unix.Errno(a.status), len(a.data))
		}
	}
	for _, tt := range []struct {
		name       string
		addr, size uint64
		want       unix.Errno
	}{
		{"empty", 0, 0, unix.EINVAL},
		{"too long", 0, qpair.MaxRelay + 1, unix.EINVAL},
		{"huge", 0, ^uint64(0), unix.EINVAL},
		{"not mapped", 8 * mib, 16, unix.EFAULT},
		{"across the end", 8*mib - 8, 16, unix.EFAULT},
		{"around the end of addresses", ^uint64(0) - 7, 16, unix.EFAULT},
	} {
		if a := r.read(t, tt.addr, tt.size); unix.Errno(a.status) != tt.want {
			t.Errorf("%s: status %v, want %v", tt.name, unix.Errno(a.status), tt.want)
		}
	}
	// The firmware can be read, not written.
	if a := r.write(t, 0xfffc0000, []byte{1}); unix.Errno(a.status) != unix.EFAULT {
		t.Errorf("write to ROM: status %v, want EFAULT", unix.Errno(a.status))
	}
	// The client's own refusal comes through: it knows of no such memory.
	if a := r.read(t, 0xfffc0000, 1); unix.Errno(a.status) != unix.ENODEV {
		t.Errorf("read of ROM: status %v, want the client's ENODEV", unix.Errno(a.status))
	}
	// Size and data that differ.
	id := r.rt.send(t, qpair.Message{Kind: qpair.MsgRelayWrite, Port: r.p.id, Size: 2}, []byte{1})
	if a := r.rt.answer(t, id); unix.Errno(a.status) != unix.EINVAL {
		t.Errorf("write of 1 byte said to be 2: status %v", unix.Errno(a.status))
	}
}

// TestRelayReset: a runtime that waits for the memory of a client that waits
// for its reset gets an error, and the reset ends.
func TestRelayReset(t *testing.T) {
	r := newRelayRig(t)
	enable(t, r.c)
	r.rt.holdResets.Store(true)
	reset := make(chan error, 1)
	go func() { reset <- r.c.Reset() }()
	eventually(t, "reset", func() bool { return r.p.regs.Page.LoadStatus().Gen() != uint32(r.p.regs.Page.LoadResetGen()) })
	if a := r.read(t, 0, 4096); unix.Errno(a.status) != unix.EIO {
		t.Errorf("read while the client waits: status %v, want EIO", unix.Errno(a.status))
	}
	r.rt.holdResets.Store(false)
	if err := <-reset; err != nil {
		t.Fatal(err)
	}
	enable(t, r.c)
	if a := r.read(t, 0, 4096); a.status != 0 {
		t.Errorf("read after the reset: %v", unix.Errno(a.status))
	}
}

// mute is a client that does not answer the server's commands.
func mute(t *testing.T, r *relayRig) *vfiouser.Conn {
	t.Helper()
	r.c.Close()
	eventually(t, "waiting", func() bool { return !r.p.hasClient() })
	c := rawClient(t, r.p)
	negotiate(t, c)
	mapRAM(t, c, 8*mib)
	return c
}

// nextCommand returns the server's next command.
func nextCommand(t *testing.T, c *vfiouser.Conn) vfiouser.Header {
	t.Helper()
	m, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.IsReply() {
		t.Fatalf("%v reply where a command was expected", m.Header.Command)
	}
	return m.Header
}

// TestRelayDropped: what is under way ends with EIO when the memory goes, at a
// reset, and when the client goes.
func TestRelayDropped(t *testing.T) {
	r := newRelayRig(t)
	c := mute(t, r)
	start := func(kind qpair.MessageKind) (uint64, vfiouser.Header) {
		var data []byte
		if kind == qpair.MsgRelayWrite {
			data = make([]byte, 64)
		}
		id := r.rt.send(t, qpair.Message{Kind: kind, Port: r.p.id, Addr: 0x1000, Size: 64}, data)
		return id, nextCommand(t, c)
	}
	dropped := func(what string, id uint64) {
		t.Helper()
		if a := r.rt.answer(t, id); unix.Errno(a.status) != unix.EIO {
			t.Errorf("%s: status %v, want EIO", what, unix.Errno(a.status))
		}
	}
	id, first := start(qpair.MsgRelayRead)
	if err := call(c, vfiouser.CmdDMAUnmap, unmapPayload(0, 8*mib)); err != nil {
		t.Fatal(err)
	}
	dropped("unmap", id)
	mapRAM(t, c, 8*mib)
	// The late answer is no answer to anything, and no harm.
	if err := c.Reply(first, make([]byte, vfiouser.DMAAccessSize)); err != nil {
		t.Fatal(err)
	}

	id, write := start(qpair.MsgRelayWrite)
	if err := call(c, vfiouser.CmdDeviceReset, nil); err != nil {
		t.Fatal(err)
	}
	dropped("reset", id)
	// The client may still carry out the write: the guest must neither use its
	// memory for something else nor start anew.
	if got := readRegister(t, r.p, nvme.RegCSTS, 4); got != uint64(nvme.CSTS(0).WithRDY(true)) {
		t.Errorf("CSTS is %#x after a reset while a write is with the client, want RDY", got)
	}
	writeRegister(t, r.p, nvme.RegCC, 4, uint64(nvme.CC(0).WithEN(true)))
	eventually(t, "ready runtime", func() bool { return r.p.regs.Page.LoadStatus().CSTS().RDY() })
	if got := readRegister(t, r.p, nvme.RegCSTS, 4); got != 0 {
		t.Errorf("CSTS is %#x while a write is with the client, want 0", got)
	}
	if err := c.Reply(write, make([]byte, vfiouser.DMAAccessSize)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "RDY", func() bool { return readRegister(t, r.p, nvme.RegCSTS, 4) == 1 })

	id, _ = start(qpair.MsgRelayRead)
	var more []uint64
	for range relayQueue + 1 {
		more = append(more, r.rt.send(t, qpair.Message{Kind: qpair.MsgRelayRead, Port: r.p.id, Addr: 0x1000, Size: 64}, nil))
	}
	if a := r.rt.answer(t, more[relayQueue]); unix.Errno(a.status) != unix.EBUSY {
		t.Errorf("one too many: status %v, want EBUSY", unix.Errno(a.status))
	}
	c.Close()
	dropped("disconnect", id)
	for _, id := range more[:relayQueue] {
		dropped("disconnect", id)
	}
	if a := r.read(t, 0x1000, 64); unix.Errno(a.status) != unix.EIO {
		t.Errorf("without a client: status %v, want EIO", unix.Errno(a.status))
	}
}

// TestRelayBadReplies: a client that answers what was not asked is thrown out.
func TestRelayBadReplies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		reply  func(c *vfiouser.Conn, h vfiouser.Header) error
		want   unix.Errno
		thrown bool
	}{
		{"err", func(c *vfiouser.Conn, h vfiouser.Header) error { return c.ReplyError(h, unix.EPERM) }, unix.EPERM, false},
		{"no reason", func(c *vfiouser.Conn, h vfiouser.Header) error {
			return c.Send(vfiouser.Header{ID: h.ID, Command: h.Command, Flags: vfiouser.FlagReply | vfiouser.FlagError})
		}, unix.EIO, false},
		{"empty", func(c *vfiouser.Conn, h vfiouser.Header) error { return c.Reply(h) }, unix.EINVAL, false},
		{"short", func(c *vfiouser.Conn, h vfiouser.Header) error {
			return c.Reply(h, make([]byte, vfiouser.DMAAccessSize+3))
		}, unix.EIO, false},
		{"other ID", func(c *vfiouser.Conn, h vfiouser.Header) error {
			h.ID += 5
			return c.Reply(h)
		}, unix.EIO, true},
		{"other command", func(c *vfiouser.Conn, h vfiouser.Header) error {
			h.Command = vfiouser.CmdDMAWrite
			return c.Reply(h)
		}, unix.EIO, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRelayRig(t)
			c := mute(t, r)
			id := r.rt.send(t, qpair.Message{Kind: qpair.MsgRelayRead, Port: r.p.id, Addr: 0x1000, Size: 64}, nil)
			if err := tt.reply(c, nextCommand(t, c)); err != nil {
				t.Fatal(err)
			}
			if a := r.rt.answer(t, id); unix.Errno(a.status) != tt.want {
				t.Errorf("status %v, want %v", unix.Errno(a.status), tt.want)
			}
			if tt.thrown {
				eventually(t, "end of the client", func() bool { return !r.p.hasClient() })
				return
			}
			time.Sleep(time.Millisecond)
			if !r.p.hasClient() {
				t.Error("the client was thrown out")
			}
		})
	}
}
