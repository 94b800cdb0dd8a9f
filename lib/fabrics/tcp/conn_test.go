// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package tcp

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/poller"
)

// deadline ends a test that hangs. Nothing is measured by it.
const deadline = 20 * time.Second

// peer is one end of a connection. It is for the poller but for its channels.
type peer struct {
	t       *testing.T
	conn    *Conn
	buf     []byte // where data goes
	split   int    // in pieces of this size
	echo    bool   // answers each capsule by its data
	waiting bool
	damage  fabrics.Violation // answers Header
	got     []byte            // data received
	intact  bool
	sent    int
	closed  chan error
	outs    []*Out
}

func newPeer(t *testing.T) *peer {
	return &peer{t: t, buf: make([]byte, 1<<20), split: 1 << 20, intact: true, closed: make(chan error, 2)}
}

func (p *peer) Header(h []byte, f fabrics.Frame) ([]dma.Segment, fabrics.Violation) {
	if p.damage.Bad() {
		return nil, p.damage
	}
	p.got = append(p.got, h[:1]...)
	var segs []dma.Segment
	for off := 0; off < int(f.DataLength); off += p.split {
		segs = append(segs, dma.SegmentOf(p.buf[off:min(off+p.split, int(f.DataLength))]))
	}
	p.buf = p.buf[:f.DataLength]
	return segs, fabrics.Violation{}
}

func (p *peer) Data(intact bool) fabrics.Violation {
	p.intact = p.intact && intact
	data := bytes.Clone(p.buf)
	p.got = append(p.got, data...)
	p.buf = p.buf[:cap(p.buf)]
	if p.echo {
		h := fabrics.Data{DATAL: uint32(len(data))}
		p.send(fabrics.TypeC2HData, fabrics.FlagLast, &h.CommonHeader, fabrics.Bytes(&h), data)
	}
	return fabrics.Violation{}
}

func (p *peer) Waiting() bool    { return p.waiting }
func (p *peer) Closed(err error) { p.closed <- err }
func (p *peer) PDUSent(*Out)     { p.sent++ }

// send queues a PDU; common is part of h.
func (p *peer) send(t fabrics.PDUType, flags uint8, common *fabrics.CommonHeader, h, data []byte) {
	frame := p.conn.Out.Make(common, t, flags, uint32(len(data)))
	o := &Out{Sent: p}
	o.Set(h, frame, []dma.Segment{dma.SegmentOf(data)})
	if p.conn.Send(o) {
		p.outs = append(p.outs, o)
	}
}

// capsule queues a command with data.
func (p *peer) capsule(data []byte) {
	var c fabrics.CapsuleCmd
	p.send(fabrics.TypeCapsuleCmd, 0, &c.CommonHeader, fabrics.Bytes(&c), data)
}

// pair is a connection with both ends on one poller.
func pair(t *testing.T, digests bool, align uint32) (p *poller.Poller, set *Set, host, target *peer) {
	t.Helper()
	p, err := poller.Start(poller.Config{Name: "0", CPU: -1, Fence: -1})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host, target = newPeer(t), newPeer(t)
	down := fabrics.Framing{From: fabrics.FromHost, HeaderDigest: digests, DataDigest: digests, Align: align, MaxCapsule: 1 << 20, MaxData: 1 << 20}
	up := down
	up.From = fabrics.FromController
	do(t, p, func() {
		if set, err = NewSet(p); err != nil {
			return
		}
		if host.conn, err = set.Add(fds[0], up, down, host); err == nil {
			target.conn, err = set.Add(fds[1], down, up, target)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		do(t, p, func() { host.conn.Close(io.EOF); target.conn.Close(io.EOF) })
		do(t, p, func() {
			if set.Len() != 0 {
				t.Errorf("%d connections are left", set.Len())
			}
			set.Close()
		})
		p.Stop()
	})
	return p, set, host, target
}

func do(t *testing.T, p *poller.Poller, f func()) {
	t.Helper()
	if err := p.Do(f); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f, on the poller, is true.
func eventually(t *testing.T, p *poller.Poller, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		var ok bool
		do(t, p, func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: in vain", what)
		}
	}
}

// TestEcho: PDUs of all sizes go both ways, more of them than a socket takes at once, and arrive in order.
func TestEcho(t *testing.T) {
	for _, tt := range []struct {
		digests bool
		align   uint32
		split   int
	}{{false, 4, 1 << 20}, {true, 4, 4096}, {false, 128, 1000}, {true, 64, 4099}} {
		p, _, host, target := pair(t, tt.digests, tt.align)
		target.echo, target.split, host.split = true, tt.split, tt.split
		var want []byte
		do(t, p, func() {
			for i, n := range []int{1, 4, 511, 4096, 16384, 16385, 65536, 1 << 20, 3, 100000} {
				for range 5 {
					data := bytes.Repeat([]byte{byte(i + 1), byte(n), byte(n >> 8)}, n/3+1)[:n]
					want = append(append(want, byte(fabrics.TypeC2HData)), data...)
					host.capsule(data)
				}
			}
		})
		eventually(t, p, "the data", func() bool { return len(host.got) == len(want) })
		do(t, p, func() {
			if !bytes.Equal(host.got, want) || !host.intact || !target.intact {
				t.Errorf("%+v: not what was sent; intact: %v, %v", tt, host.intact, target.intact)
			}
			if host.sent != 50 || target.sent != 50 {
				t.Errorf("%+v: told of %d and %d PDUs", tt, host.sent, target.sent)
			}
			for _, o := range host.outs {
				if o.Busy() {
					t.Error("a PDU is busy that was sent")
				}
			}
		})
	}
}

// TestViolate: either side says what the other has done, in the words of its role.
func TestViolate(t *testing.T) {
	want := fabrics.Violation{FES: fabrics.FESDataOutOfRange, FEI: 7}
	for _, byHost := range []bool{false, true} {
		p, _, host, target := pair(t, true, 4)
		from, by, typ := host, target, fabrics.TypeC2HTermReq
		if byHost {
			from, by, typ = target, host, fabrics.TypeH2CTermReq
		}
		by.damage = want
		do(t, p, func() {
			if byHost {
				h := fabrics.Data{DATAL: 5}
				from.send(fabrics.TypeC2HData, 0, &h.CommonHeader, fabrics.Bytes(&h), []byte("hello"))
			} else {
				from.capsule([]byte("hello"))
			}
		})
		eventually(t, p, "the termination request", func() bool { return len(from.got) > fabrics.CommonHeaderSize })
		do(t, p, func() {
			if from.got[0] != byte(typ) || by.conn.Send(new(Out)) || !by.conn.Ended() {
				t.Errorf("got PDU type %d; a connection that has ended sends: %v", from.got[0], by.conn.Ended())
			}
		})
		if err := <-from.closed; !errors.Is(err, io.EOF) {
			t.Errorf("the other side: %v", err)
		}
		var violation *ViolationError
		if err := <-by.closed; !errors.As(err, &violation) || violation.Violation != want {
			t.Errorf("this side: %v", err)
		}
	}
}

// TestClose: what was queued is given back, and the handler is told once.
func TestClose(t *testing.T) {
	p, _, host, _ := pair(t, false, 4)
	reason := errors.New("enough")
	do(t, p, func() {
		host.capsule([]byte("hello"))
		host.conn.Close(reason)
		host.conn.Close(io.EOF)
		host.conn.Violate(fabrics.Violation{FES: fabrics.FESSequence}, nil)
		host.conn.Finish(io.EOF)
		if host.sent != 0 || host.conn.Send(new(Out)) {
			t.Error("told from within Close, or a closed connection sends")
		}
	})
	if err := <-host.closed; err != reason {
		t.Errorf("closed with %v", err)
	}
	do(t, p, func() {
		if host.sent != 1 || host.outs[0].Busy() || len(host.closed) != 0 {
			t.Errorf("told of %d PDUs; %d more ends", host.sent, len(host.closed))
		}
	})
}

// TestFinish: what is queued arrives before the end.
func TestFinish(t *testing.T) {
	p, _, host, target := pair(t, true, 4)
	data := bytes.Repeat([]byte("finish"), 100000)
	reason := errors.New("done")
	do(t, p, func() {
		host.capsule(data)
		host.conn.Finish(reason)
	})
	if err := <-target.closed; !errors.Is(err, io.EOF) {
		t.Errorf("the other side: %v", err)
	}
	if err := <-host.closed; err != reason {
		t.Errorf("this side: %v", err)
	}
	if !bytes.Equal(target.got[1:], data) {
		t.Errorf("%d bytes arrived", len(target.got))
	}
}

// TestSweep: connections that are in the middle of something and do not move are closed, others are not.
func TestSweep(t *testing.T) {
	p, set, host, target := pair(t, false, 4)
	sweep := func() { set.Sweep(-1) }
	stirs := 0
	do(t, p, func() { set.OnStir(func() { stirs++ }) })
	do(t, p, sweep)
	do(t, p, func() {
		if host.conn.Ended() || target.conn.Ended() {
			t.Error("an idle connection is closed")
		}
		target.waiting = true
	})
	do(t, p, func() {
		if !set.Sweep(time.Hour) {
			t.Error("a connection that waits is not to be looked at again")
		}
		target.waiting = false
		if set.Sweep(time.Hour) {
			t.Error("idle connections are to be looked at again")
		}
	})
	do(t, p, func() {
		if target.conn.Ended() || stirs != 0 {
			t.Errorf("closed too early, or stirred %d times", stirs)
		}
		host.capsule(make([]byte, 64))
		host.capsule(make([]byte, 64))
		if stirs != 1 {
			t.Errorf("stirred %d times", stirs)
		}
		target.waiting = true
	})
	do(t, p, sweep)
	if err := <-target.closed; err != ErrStalled {
		t.Errorf("closed with %v", err)
	}
}

// TestLeft: that the peer has gone is seen before what it has sent is read.
func TestLeft(t *testing.T) {
	p, _, host, target := pair(t, false, 4)
	eventually(t, p, "that it can write", func() bool { return host.conn.writable })
	do(t, p, func() {
		if target.conn.Left() {
			t.Error("the peer is there")
		}
		host.capsule(make([]byte, 64))
		host.conn.send()
		host.conn.Close(io.EOF)
		if !target.conn.Left() || host.sent != 1 || len(target.got) != 0 {
			t.Errorf("the peer has gone: %v; sent: %d, read: %d", target.conn.Left(), host.sent, len(target.got))
		}
	})
	eventually(t, p, "the end", func() bool { return target.conn.closed })
	do(t, p, func() {
		if !target.conn.Left() {
			t.Error("a closed connection has a peer")
		}
	})
}
