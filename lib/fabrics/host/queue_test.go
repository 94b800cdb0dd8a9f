// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

const testSize = 8192 // of the data of commands

// link is a queue on a poller, and the controller's end of its connection.
type link struct {
	t      testing.TB
	p      *poller.Poller
	set    *tcp.Set
	queue  *Queue
	socket *Socket
	conn   net.Conn
	closed chan error
	out    fabrics.Framing // of the controller
	in     fabrics.Framing
}

func newLink(t testing.TB, changes ...func(*link)) *link {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "controller")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	l := &link{t: t, conn: conn, closed: make(chan error, 1)}
	l.in = fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: 4096, MaxData: 4096}
	l.out = fabrics.Framing{From: fabrics.FromController, Align: 4, MaxData: maxData}
	for _, change := range changes {
		change(l)
	}
	l.socket = &Socket{QID: 1, fd: fds[0], in: l.out, out: l.in, maxH2C: 4096, entries: 5, inCapsule: 4096}
	if l.p, err = poller.Start(poller.Config{Name: "test", CPU: -1, Fence: -1}); err != nil {
		t.Fatal(err)
	}
	l.on(func() {
		if l.set, err = tcp.NewSet(l.p); err == nil {
			l.queue, err = NewQueue(l.set, l.socket, func(err error) { l.closed <- err })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.on(func() { l.queue.Close(io.EOF) })
		l.on(l.set.Close)
		l.p.Stop()
		conn.Close()
	})
	return l
}

func (l *link) on(f func()) {
	if err := l.p.Do(f); err != nil {
		panic(err)
	}
}

// owner notes the end of a command.
type owner struct{ done chan *Command }

func (o *owner) Ended(c *Command) { o.done <- c }

// start starts a command with that much data and returns its capsule, with the
// data in it, as the controller receives it.
func (l *link) start(op nvme.IOOpcode, size int) (*owner, *Command, fabrics.CapsuleCmd, []byte) {
	l.t.Helper()
	o := &owner{done: make(chan *Command, 2)}
	c := &Command{SQE: nvme.SQE{Opcode: uint8(op), NSID: 1}, Data: make([]byte, size), Owner: o}
	for i := range c.Data {
		c.Data[i] = byte(i >> 5)
	}
	ok := false
	l.on(func() { ok = l.queue.Start(c) })
	if !ok {
		l.t.Fatal("the command was not started")
	}
	var capsule fabrics.CapsuleCmd
	header, data := l.receive()
	copy(fabrics.Bytes(&capsule), header)
	return o, c, capsule, data
}

// receive returns a PDU from the host.
func (l *link) receive() (header, data []byte) {
	l.t.Helper()
	var h fabrics.CommonHeader
	if _, err := io.ReadFull(l.conn, fabrics.Bytes(&h)); err != nil {
		l.t.Fatal(err)
	}
	f, v := l.in.Check(&h)
	if v.Bad() {
		l.t.Fatalf("PDU of type %v: %v", h.Type, v)
	}
	b := make([]byte, f.Length)
	copy(b, fabrics.Bytes(&h))
	if _, err := io.ReadFull(l.conn, b[fabrics.CommonHeaderSize:]); err != nil {
		l.t.Fatal(err)
	}
	return b[:h.HLEN], b[f.DataOffset:][:f.DataLength]
}

// response is a CapsuleResp.
func (l *link) response(cid uint16, st nvme.Status) []byte {
	r := fabrics.CapsuleResp{CQE: nvme.CQE{CID: cid}}
	r.CQE.SetStatus(st, false)
	l.out.Make(&r.CommonHeader, fabrics.TypeCapsuleResp, 0, 0)
	return bytes.Clone(fabrics.Bytes(&r))
}

// data is a C2HData of n bytes.
func (l *link) data(cid uint16, offset, n uint32, flags uint8) []byte {
	d := fabrics.Data{CCCID: cid, DATAO: offset, DATAL: n}
	l.out.Make(&d.CommonHeader, fabrics.TypeC2HData, flags, n)
	return append(bytes.Clone(fabrics.Bytes(&d)), bytes.Repeat([]byte{byte(offset>>8) + 1}, int(n))...)
}

// r2t asks for n bytes.
func (l *link) r2t(cid uint16, offset, n uint32) []byte {
	r := fabrics.R2T{CCCID: cid, TTAG: 77, R2TO: offset, R2TL: n}
	l.out.Make(&r.CommonHeader, fabrics.TypeR2T, 0, 0)
	return l.digested(fabrics.Bytes(&r))
}

// digested appends the digest of a header, if there is one.
func (l *link) digested(header []byte) []byte {
	pdu := bytes.Clone(header)
	if l.out.HeaderDigest {
		pdu = binary.LittleEndian.AppendUint32(pdu, fabrics.Digest(header))
	}
	return pdu
}

func (l *link) send(pdus ...[]byte) {
	l.t.Helper()
	if _, err := l.conn.Write(bytes.Join(pdus, nil)); err != nil {
		l.t.Fatal(err)
	}
}

// TestViolations: whatever a controller sends out of place ends the connection
// with a termination request, and commands as lost, once.
func TestViolations(t *testing.T) {
	const last, success = fabrics.FlagLast, fabrics.FlagLast | fabrics.FlagSuccess
	for _, tt := range []struct {
		name string
		op   nvme.IOOpcode
		pdus func(l *link, cid uint16) [][]byte
		want fabrics.FES
	}{
		{"response to another command", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.response(cid+1, 0)} }, fabrics.FESInvalidHeader},
		{"response to an earlier use", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.response(cid+1<<cidBits, 0)} }, fabrics.FESInvalidHeader},
		{"slot out of range", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.response(cid|cidSlots, 0)} }, fabrics.FESInvalidHeader},
		{"success without data", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.response(cid, 0)} }, fabrics.FESSequence},
		{"success with half the data", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.data(cid, 0, 4096, success)} }, fabrics.FESSequence},
		{"success of a write without data", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.response(cid, 0)} }, fabrics.FESSequence},
		{"data of a write", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.data(cid, 0, 4096, last)} }, fabrics.FESInvalidHeader},
		{"data of no command", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.data(cid+1, 0, 4096, last)} }, fabrics.FESInvalidHeader},
		{"data beyond the end", nvme.IORead, func(l *link, cid uint16) [][]byte {
			return [][]byte{l.data(cid, 0, 4096, 0), l.data(cid, 4096, 8192, last)}
		}, fabrics.FESDataOutOfRange},
		{"data that wraps", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.data(cid, 0xfffff000, 8192, last)} }, fabrics.FESDataOutOfRange},
		{"data out of order", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.data(cid, 4096, 4096, 0)} }, fabrics.FESDataOutOfRange},
		{"data twice", nvme.IORead, func(l *link, cid uint16) [][]byte {
			return [][]byte{l.data(cid, 0, 4096, 0), l.data(cid, 0, 4096, 0)}
		}, fabrics.FESDataOutOfRange},
		{"R2T for a read", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{l.r2t(cid, 0, 4096)} }, fabrics.FESInvalidHeader},
		{"R2T for no command", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.r2t(cid+1, 0, 4096)} }, fabrics.FESInvalidHeader},
		{"R2T of nothing", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.r2t(cid, 0, 0)} }, fabrics.FESDataOutOfRange},
		{"R2T beyond the end", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.r2t(cid, 0, testSize+4)} }, fabrics.FESDataOutOfRange},
		{"R2T that wraps", nvme.IOWrite, func(l *link, cid uint16) [][]byte { return [][]byte{l.r2t(cid, 0, 0xffffffff)} }, fabrics.FESDataOutOfRange},
		{"R2T for what has been asked for", nvme.IOWrite, func(l *link, cid uint16) [][]byte {
			return [][]byte{l.r2t(cid, 0, testSize), l.r2t(cid, 4096, 4096)}
		}, fabrics.FESDataOutOfRange},
		{"R2Ts that overlap", nvme.IOWrite, func(l *link, cid uint16) [][]byte {
			return [][]byte{l.r2t(cid, 4096, 4096), l.r2t(cid, 0, 4100)}
		}, fabrics.FESDataOutOfRange},
		{"too many pieces", nvme.IOWrite, func(l *link, cid uint16) [][]byte {
			var pdus [][]byte
			for i := range uint32(maxSpans + 1) {
				pdus = append(pdus, l.r2t(cid, 8*i, 4))
			}
			return pdus
		}, fabrics.FESLimitExceeded},
		{"success of a write of which a part was not asked for", nvme.IOWrite, func(l *link, cid uint16) [][]byte {
			return [][]byte{l.r2t(cid, 4096, 4096), l.r2t(cid, 0, 4092), l.response(cid, 0)}
		}, fabrics.FESSequence},
		{"initialization again", nvme.IORead, func(l *link, cid uint16) [][]byte {
			var r fabrics.ICResp
			l.out.Make(&r.CommonHeader, fabrics.TypeICResp, 0, 0)
			return [][]byte{bytes.Clone(fabrics.Bytes(&r))}
		}, fabrics.FESSequence},
		{"a PDU of a host", nvme.IORead, func(l *link, cid uint16) [][]byte { return [][]byte{{4, 0, 72, 0, 72, 0, 0, 0}} }, fabrics.FESInvalidHeader},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLink(t)
			o, _, capsule, _ := l.start(tt.op, testSize)
			l.send(tt.pdus(l, capsule.SQE.CID)...)
			header, _ := l.receive()
			for fabrics.PDUType(header[0]) == fabrics.TypeH2CData {
				header, _ = l.receive()
			}
			var term fabrics.TermReq
			if n := copy(fabrics.Bytes(&term), header); n != fabrics.TermHeaderSize || term.Violation().FES != tt.want {
				t.Errorf("got %v: %v, want %v", fabrics.PDUType(header[0]), term.Violation(), tt.want)
			}
			l.conn.Close()
			if c := <-o.done; !c.Lost {
				t.Errorf("the command is not lost: %v", c.Status)
			}
			if err := <-l.closed; err == nil {
				t.Error("no reason is given")
			}
			l.on(func() {
				if l.queue.Room() != 4 || l.queue.Start(&Command{}) {
					t.Error("a queue that has ended takes commands, or has not given all back")
				}
			})
			if len(o.done) != 0 {
				t.Error("the command has ended twice")
			}
		})
	}
}

// TestTransfers: data in the capsule, by R2Ts in pieces of MAXH2CDATA, in
// C2HData with and without a response.
func TestTransfers(t *testing.T) {
	l := newLink(t)
	for range 300 { // more often than a CID has uses
		o, c, capsule, data := l.start(nvme.IOWrite, 4096)
		if !bytes.Equal(data, c.Data) {
			t.Fatal("the data in the capsule is not that of the command")
		}
		l.send(l.response(capsule.SQE.CID, 0))
		if <-o.done; c.Lost || c.Status != nvme.StatusSuccess {
			t.Fatalf("write: %v, lost: %v", c.Status, c.Lost)
		}
	}

	o, c, capsule, _ := l.start(nvme.IOWrite, testSize)
	var got []byte
	for _, n := range []uint32{512, testSize - 512} {
		l.send(l.r2t(capsule.SQE.CID, uint32(len(got)), n))
		for end := len(got) + int(n); len(got) < end; {
			var d fabrics.Data
			var header []byte
			header, data := l.receive()
			copy(fabrics.Bytes(&d), header)
			got = append(got, data...)
			if d.Type != fabrics.TypeH2CData || d.CCCID != capsule.SQE.CID || d.TTAG != 77 || int(d.DATAO)+len(data) != len(got) ||
				(d.Flags&fabrics.FlagLast != 0) != (len(got) == end) {
				t.Fatalf("data: %+v, %d bytes of %d", d, len(got), end)
			}
		}
	}
	l.send(l.response(capsule.SQE.CID, nvme.StatusInternalError))
	if <-o.done; c.Lost || c.Status.Code() != nvme.StatusInternalError || !bytes.Equal(got, c.Data) {
		t.Errorf("long write: %v, lost: %v, equal: %v", c.Status, c.Lost, bytes.Equal(got, c.Data))
	}

	for _, flags := range []uint8{0, fabrics.FlagSuccess} {
		o, c, capsule, _ := l.start(nvme.IORead, testSize)
		l.send(l.data(capsule.SQE.CID, 0, 4096, 0), l.data(capsule.SQE.CID, 4096, 4096, fabrics.FlagLast|flags))
		if flags == 0 {
			l.send(l.response(capsule.SQE.CID, 0))
		}
		want := append(bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{17}, 4096)...)
		if <-o.done; c.Lost || c.Status != nvme.StatusSuccess || !bytes.Equal(c.Data, want) {
			t.Errorf("read: %v, lost: %v", c.Status, c.Lost)
		}
	}

	// An error needs no data, and may come early.
	o, c, capsule, _ = l.start(nvme.IOWrite, testSize)
	l.send(l.r2t(capsule.SQE.CID, 0, testSize), l.response(capsule.SQE.CID, nvme.StatusInternalError))
	if <-o.done; c.Lost || c.Status.Code() != nvme.StatusInternalError {
		t.Errorf("early error: %v, lost: %v", c.Status, c.Lost)
	}
	var ok bool
	l.on(func() { ok = l.queue.Detach() })
	if !ok {
		t.Error("a queue that is at rest cannot be given back")
	}
}

// TestAlignments: every alignment of data that a controller may want (CPDA), with
// and without digests, in capsules and in H2CData.
func TestAlignments(t *testing.T) {
	for cpda := range uint8(fabrics.MaxPDA + 1) {
		for _, digest := range []bool{false, true} {
			l := newLink(t, func(l *link) {
				l.in.Align = fabrics.Align(cpda)
				for _, f := range []*fabrics.Framing{&l.in, &l.out} {
					f.HeaderDigest, f.DataDigest = digest, digest
				}
			})
			_, c, _, data := l.start(nvme.IOWrite, 4096)
			if !bytes.Equal(data, c.Data) {
				t.Errorf("CPDA %d: the data in the capsule is not that of the command", cpda)
			}
			_, c, capsule, _ := l.start(nvme.IOWrite, testSize)
			l.send(l.r2t(capsule.SQE.CID, 0, 4096))
			if _, data = l.receive(); !bytes.Equal(data, c.Data[:4096]) {
				t.Errorf("CPDA %d: the data of H2CData is not that of the command", cpda)
			}
		}
	}
}

// TestR2Ts: several at a time, in any order, of any length.
func TestR2Ts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	l := newLink(t)
	for range 50 {
		_, c, capsule, _ := l.start(nvme.IOWrite, testSize)
		// The data in pieces, in any order, as many at once as may be.
		var cuts []uint32
		for range rnd.IntN(30) {
			cuts = append(cuts, 4*uint32(rnd.IntN(testSize/4)))
		}
		cuts = append(cuts, 0, testSize)
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		var pieces []span
		for i := range cuts[:len(cuts)-1] {
			pieces = append(pieces, span{cuts[i], cuts[i+1]})
		}
		rnd.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		got := make([]byte, testSize)
		for len(pieces) > 0 {
			n := min(1+rnd.IntN(maxR2Ts), len(pieces))
			var pdus [][]byte
			for _, p := range pieces[:n] {
				pdus = append(pdus, l.r2t(capsule.SQE.CID, p.from, p.to-p.from))
			}
			l.send(pdus...)
			for _, p := range pieces[:n] {
				for at := p.from; at < p.to; {
					var d fabrics.Data
					header, data := l.receive()
					copy(fabrics.Bytes(&d), header)
					if d.DATAO != at || d.TTAG != 77 || d.Flags&fabrics.FlagLast != 0 != (at+d.DATAL == p.to) {
						t.Fatalf("%+v comes, the data from %d to %d is asked for", d, at, p.to)
					}
					copy(got[at:], data)
					at += d.DATAL
				}
			}
			pieces = pieces[n:]
		}
		o := c.Owner.(*owner)
		l.send(l.response(capsule.SQE.CID, 0))
		if <-o.done; c.Lost || c.Status != nvme.StatusSuccess || !bytes.Equal(got, c.Data) {
			t.Fatalf("write: %v, lost: %v, equal: %v", c.Status, c.Lost, bytes.Equal(got, c.Data))
		}
	}
}
