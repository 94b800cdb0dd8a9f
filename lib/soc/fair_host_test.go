// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// caller is a host over NVMe/TCP that keeps commands in flight. All answers are of
// one size: the data of a read with its end, or a response.
type caller struct {
	tally
	socket   syscall.RawConn
	capsules [][]byte // by CID
	sent     []time.Time
	again    []uint16 // commands to send
	out      []byte   // being sent
	in       []byte   // room for answers
	got      int      // bytes of in
	answer   int      // bytes of one
	cidAt    int      // where it has the CID
}

// newCaller connects a host with one I/O queue to a drive of its own.
func (r *rig) newCaller(name string, d demand) *caller {
	r.t.Helper()
	r.volume(name, "mem", "size", "64M")
	s := call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: name + "-sub", Volumes: []string{name}, AllowAny: true})
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0", Targets: []string{s.Name}})
	address := netip.MustParseAddrPort(strings.TrimPrefix(l.URL, "tcp://"))
	connect := func(cmd fabrics.ConnectCommand, cntlid uint16) *fabricstest.Queue {
		return fabricstest.Join(r.t, address, fabricstest.Options{}, cmd, fabricstest.ConnectData(hostOne, s.NQN, cntlid))
	}
	admin := connect(fabrics.ConnectCommand{SQSIZE: 31}, fabrics.CNTLIDDynamic)
	admin.Enable()
	q := connect(fabrics.ConnectCommand{QID: 1, SQSIZE: 127, CATTR: fabrics.CATTRNoFlowControl}, admin.CNTLID)
	c := &caller{sent: make([]time.Time, d.depth)}
	var h fabrics.CommonHeader
	var inline []byte
	sgl := fabrics.InTransport(uint32(d.size))
	if d.op == nvme.IORead {
		c.answer, c.cidAt = int(q.In.Make(&h, fabrics.TypeC2HData, 0, uint32(d.size)).Length), 8
	} else {
		c.answer, c.cidAt = int(q.In.Make(&h, fabrics.TypeCapsuleResp, 0, 0).Length), 8+12
		inline, sgl = make([]byte, d.size), fabrics.InCapsule(uint32(d.size))
	}
	for cid := range d.depth {
		e := nvme.SQE{Opcode: uint8(d.op), CID: uint16(cid), NSID: 1}
		nvme.RW{NLB: uint16(d.size/512 - 1)}.Put(&e)
		e.SetPSDT(nvme.PSDTSGL)
		e.SetSGL1(sgl)
		capsule := fabrics.CapsuleCmd{SQE: e}
		c.capsules = append(c.capsules, q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&capsule), inline))
		c.again = append(c.again, uint16(cid))
	}
	c.in = make([]byte, max(2*c.answer, 256<<10))
	if err := q.Conn.SetDeadline(time.Time{}); err != nil {
		r.t.Fatal(err)
	}
	socket, err := q.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		r.t.Fatal(err)
	}
	c.socket = socket
	return c
}

// transfer calls f, which reads or writes and does not wait, and returns how much.
func (c *caller) transfer(t testing.TB, f func(fd int) (int, error)) int {
	var n int
	var err error
	if e := c.socket.Control(func(fd uintptr) { n, err = f(int(fd)) }); e != nil {
		t.Fatal(e)
	}
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return 0
	case err != nil || n == 0:
		t.Fatalf("%d bytes: %v", n, err)
	}
	return n
}

// receive takes the answers that have come.
func (c *caller) receive(t testing.TB) {
	c.got += c.transfer(t, func(fd int) (int, error) { return unix.Read(fd, c.in[c.got:]) })
	at := 0
	for ; c.got-at >= c.answer; at += c.answer {
		p := c.in[at:]
		if n := binary.LittleEndian.Uint32(p[4:]); int(n) != c.answer {
			t.Fatalf("an answer of type %#x and %d bytes, not %d", p[0], n, c.answer)
		}
		cid := binary.LittleEndian.Uint16(p[c.cidAt:])
		c.done++
		if c.timed {
			c.times = append(c.times, time.Since(c.sent[cid]))
		}
		c.again = append(c.again, cid)
	}
	c.got = copy(c.in, c.in[at:c.got])
}

func (c *caller) step(t testing.TB) {
	c.receive(t)
	if len(c.out) == 0 {
		for _, cid := range c.again {
			if c.timed {
				c.sent[cid] = time.Now()
			}
			c.out = append(c.out, c.capsules[cid]...)
		}
		c.again = c.again[:0]
	}
	c.send(t)
}

// send sends what is to be sent.
func (c *caller) send(t testing.TB) {
	if len(c.out) > 0 {
		n := c.transfer(t, func(fd int) (int, error) { return unix.Write(fd, c.out) })
		c.out = c.out[:copy(c.out, c.out[n:])]
	}
}

func (c *caller) rest(t testing.TB) bool {
	c.receive(t)
	c.send(t)
	return len(c.again) == len(c.capsules)
}

// BenchmarkHostNeighbour is BenchmarkNeighbour with hosts over NVMe/TCP: a guest
// beside a host, a host beside a guest, a host beside a host.
func BenchmarkHostNeighbour(b *testing.B) {
	guest := func(d demand) func(*rig, string) counted {
		return func(r *rig, name string) counted { return r.newUser(name, api.DoorbellsMap, d) }
	}
	host := func(d demand) func(*rig, string) counted {
		return func(r *rig, name string) counted { return r.newCaller(name, d) }
	}
	small := demand{op: nvme.IORead, size: 4 << 10, queues: 1, depth: 127}
	writes := demand{op: nvme.IOWrite, size: 4 << 10, queues: 1, depth: 127}
	large := demand{op: nvme.IORead, size: 128 << 10, queues: 1, depth: 127}
	for _, a := range []struct {
		name      string
		good, bad func(*rig, string) counted
	}{
		{"guest/host-4k", guest(single), host(small)},
		{"guest/host-4k-writes", guest(single), host(writes)},
		{"guest/host-128k", guest(single), host(large)},
		{"host/guest-4k", host(single), guest(small)},
		{"host/guest-128k", host(single), guest(large)},
		{"host/host-4k", host(single), host(small)},
		{"host/host-4k-writes", host(single), host(writes)},
		{"host/host-128k", host(single), host(large)},
	} {
		b.Run(a.name, func(b *testing.B) {
			r := newBusyRig(b)
			beside(b, a.good(r, "good"), a.bad(r, "bad"))
		})
	}
}
