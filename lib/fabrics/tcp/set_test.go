// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package tcp

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/poller"
)

// busySet is a set on a poller that never sleeps.
func busySet(t *testing.T) (*poller.Poller, *Set) {
	t.Helper()
	p, err := poller.Start(poller.Config{Name: "0", CPU: -1, Fence: -1, Mode: poller.Busy, NoRing: true})
	if err != nil {
		t.Fatal(err)
	}
	var set *Set
	do(t, p, func() { set, err = NewSet(p) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		do(t, p, func() {
			for _, c := range set.conns {
				if c != nil {
					c.Close(io.EOF)
				}
			}
		})
		do(t, p, set.Close)
		p.Stop()
	})
	return p, set
}

// wire adds a connection, and returns the other end of it.
func wire(t *testing.T, p *poller.Poller, set *Set) (*peer, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := newPeer(t)
	in := fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: 1 << 20, MaxData: 1 << 20}
	out := in
	out.From = fabrics.FromController
	do(t, p, func() { x.conn, err = set.Add(fds[0], in, out, x) })
	if err != nil {
		t.Fatal(err)
	}
	return x, fds[1]
}

// capsule returns a capsule without data.
func capsule() []byte {
	var c fabrics.CapsuleCmd
	in := fabrics.Framing{From: fabrics.FromHost, Align: 4}
	in.Make(&c.CommonHeader, fabrics.TypeCapsuleCmd, 0, 0)
	return fabrics.Bytes(&c)
}

// put writes a capsule to fd, and waits until x has got it.
func put(t *testing.T, p *poller.Poller, x *peer, fd int) {
	t.Helper()
	var before int
	do(t, p, func() { before = len(x.got) })
	if _, err := unix.Write(fd, capsule()); err != nil {
		t.Fatal(err)
	}
	eventually(t, p, "a capsule", func() bool { return len(x.got) > before })
}

// TestEager: a connection that alone has something to read, for a while, is read without a look at all. Others are seen all the same, and so
// is its end.
func TestEager(t *testing.T) {
	p, set := busySet(t)
	one, fd := wire(t, p, set)
	other, otherFD := wire(t, p, set)
	defer unix.Close(otherFD)
	hasty := func(c *Conn) {
		t.Helper()
		do(t, p, func() {
			if set.eager() != c {
				t.Errorf("eager: %p, want %p", set.eager(), c)
			}
		})
	}
	for range 3 {
		for range aloneStep {
			hasty(nil)
			put(t, p, one, fd)
		}
		put(t, p, one, fd)
		for range 3 * lookStep {
			hasty(one.conn)
			put(t, p, one, fd)
		}
		put(t, p, other, otherFD)
	}
	for range aloneStep + 1 {
		put(t, p, one, fd)
	}
	hasty(one.conn)
	unix.Close(fd)
	if err := <-one.closed; !errors.Is(err, io.EOF) {
		t.Errorf("closed with %v", err)
	}
	hasty(nil)
	put(t, p, other, otherFD)
}

// TestEagerSleeps: before the poller sleeps it looks at all, so that what has been read does not wake it.
func TestEagerSleeps(t *testing.T) {
	p, set := busySet(t)
	one, fd := wire(t, p, set)
	defer unix.Close(fd)
	for range aloneStep + 2 {
		put(t, p, one, fd)
	}
	do(t, p, func() {
		if set.eager() != one.conn || set.Arm() != poller.WakeNow || set.eager() != nil || set.Arm() != poller.WakeEvent {
			t.Error("the poller may sleep with events that nobody has looked at")
		}
	})
	put(t, p, one, fd)
}

// TestFront: a header before its data in memory is one piece with it, and the same on the wire.
func TestFront(t *testing.T) {
	p, _, host, target := pair(t, true, 64)
	target.got = nil
	memory := bytes.Repeat([]byte{7}, 5000)
	var want []byte
	for _, front := range []int{0, 71, 400} {
		data := memory[front : front+1000]
		for i := range data {
			data[i] = byte(i + front)
		}
		var c fabrics.CapsuleCmd
		o := &Out{Sent: host}
		do(t, p, func() {
			frame := host.conn.Out.Make(&c.CommonHeader, fabrics.TypeCapsuleCmd, 0, 1000)
			o.Front = memory[:front]
			o.Set(fabrics.Bytes(&c), frame, []dma.Segment{dma.SegmentOf(data)})
			if !host.conn.Send(o) {
				t.Error("not sent")
			}
			pieces := 3 // header, data, digest
			if front >= int(frame.DataOffset) {
				pieces = 2
			}
			if iov, size := host.conn.gather(); len(iov) != pieces || size != int(frame.Length) {
				t.Errorf("%d bytes before the data: %d pieces of %d bytes, want %d of %d", front, len(iov), size, pieces, frame.Length)
			}
		})
		want = append(append(want, byte(fabrics.TypeCapsuleCmd)), data...)
		eventually(t, p, "the data", func() bool { return len(target.got) == len(want) })
	}
	do(t, p, func() {
		if !bytes.Equal(target.got, want) || !target.intact {
			t.Errorf("not what was sent; intact: %v", target.intact)
		}
	})
}

// TestWiden: what has been received is there afterwards, and the memory is given back at the end.
func TestWiden(t *testing.T) {
	p, set := busySet(t)
	x, fd := wire(t, p, set)
	whole := capsule()
	if _, err := unix.Write(fd, whole[:50]); err != nil {
		t.Fatal(err)
	}
	eventually(t, p, "a part of a capsule", func() bool { return x.conn.w-x.conn.r == 50 })
	do(t, p, func() {
		x.conn.Widen()
		x.conn.Widen()
		if len(x.conn.buf) != bufferSize || &x.conn.wide[0] != &x.conn.buf[0] {
			t.Errorf("a buffer of %d bytes", len(x.conn.buf))
		}
	})
	if _, err := unix.Write(fd, whole[50:]); err != nil {
		t.Fatal(err)
	}
	eventually(t, p, "the capsule", func() bool { return len(x.got) == 1 })
	unix.Close(fd)
	<-x.closed
	do(t, p, func() {
		if x.conn.wide != nil {
			t.Error("the memory is still there")
		}
	})
}

// TestLastWords: a PDU and the end that come together are both seen, also where a socket is not read again.
func TestLastWords(t *testing.T) {
	p, set := busySet(t)
	x, fd := wire(t, p, set)
	var err error
	do(t, p, func() {
		x.conn.vain = vainLooks
		_, err = unix.Write(fd, capsule())
		unix.Close(fd)
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, p, "the end", func() bool { return x.conn.closed })
	if err := <-x.closed; !errors.Is(err, io.EOF) {
		t.Errorf("closed with %v", err)
	}
	do(t, p, func() {
		if len(x.got) != 1 {
			t.Errorf("%d bytes have come", len(x.got))
		}
	})
}
