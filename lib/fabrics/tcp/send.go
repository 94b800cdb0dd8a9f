// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package tcp

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
)

// Out is a PDU to be sent. Its owner reuses it when it has been sent.
type Out struct {
	// Sent is told when the PDU has been sent, or never will be because the connection is closed: the data is no longer used. nil: nobody
	// is.
	Sent Sender
	// Front is memory that ends where the data begins: the header is put there, so that both are one piece, which is a tenth of the cost of
	// a small PDU. nil, or shorter than the header: they are two.
	Front []byte

	head []byte // header, digest and padding
	data []dma.Segment
	tail []byte // digest of the data
	size int
	next *Out
	busy bool
	buf  [fabrics.MaxTermSize]byte
	sum  [fabrics.DigestSize]byte
}

// Sender is told of PDUs that have been sent.
type Sender interface{ PDUSent(*Out) }

// Busy reports whether the PDU is queued: it cannot be set.
func (o *Out) Busy() bool { return o.busy }

// Set makes o the PDU with this header, as Framing.Make has filled it in, and frame.DataLength bytes of data, all that the segments
// hold, which are used until the PDU has been sent.
func (o *Out) Set(header []byte, f fabrics.Frame, data []dma.Segment) {
	head := o.buf[:0]
	if at := len(o.Front) - int(f.DataOffset); f.DataLength > 0 && at >= 0 {
		head = o.Front[at:at:len(o.Front)]
	}
	o.head = append(head, header...)
	if f.Header > uint32(len(header)) {
		o.head = binary.LittleEndian.AppendUint32(o.head, fabrics.Digest(o.head))
	}
	pad := len(o.head)
	o.head = o.head[:f.DataOffset]
	clear(o.head[pad:])
	o.data, o.tail = data, nil
	if f.DataLength == 0 {
		o.data = nil
	}
	if f.HasDigest {
		o.tail = binary.LittleEndian.AppendUint32(o.sum[:0], digestOf(data, uint64(f.DataLength)))
	}
}

// Send queues a PDU. It is written when what runs now has returned. False: the connection is closed or about to be, and nothing is queued.
func (c *Conn) Send(o *Out) bool {
	if c.closed || c.shut {
		return false
	}
	if o.busy {
		panic("tcp: a PDU was queued twice")
	}
	o.next, o.busy = nil, true
	o.size = len(o.head) + len(o.tail)
	for i := range o.data {
		o.size += int(o.data[i].Len)
	}
	if c.first == nil {
		c.first = o
		c.moved = c.set.p.Now() // a peer that does not take it is stalled from now on
	} else {
		c.last.next = o
	}
	c.last = o
	c.set.write(c)
	return true
}

// pop takes the first PDU from the queue and tells its owner.
func (c *Conn) pop() {
	o := c.first
	c.first, c.sent = o.next, 0
	if c.first == nil {
		c.last = nil
	}
	o.next, o.busy = nil, false
	if o.Sent != nil {
		o.Sent.PDUSent(o)
	}
}

// send writes what is queued, as far as there is room.
func (c *Conn) send() {
	for !c.closed && c.writable && c.first != nil {
		iov, size := c.gather()
		n, err := c.set.message.send(c.fd, iov, size)
		switch err {
		case nil:
			c.moved = c.set.p.Now()
			c.took(n)
		case unix.EAGAIN:
			c.writable = false
		case unix.EINTR:
		default:
			c.Close(fmt.Errorf("sending: %w", err))
		}
	}
	if c.shut && !c.half && !c.closed && c.first == nil {
		// The peer sees the end after the last PDU. Closing with unread data would make that a reset, which loses the PDU.
		c.half = true
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}

// gather collects the pieces of what is queued, and returns how much that is.
func (c *Conn) gather() (iov []unix.Iovec, size int) {
	iov = c.set.iovecs[:0]
	skip := c.sent
	add := func(p []byte) {
		if skip >= len(p) {
			skip -= len(p)
			return
		}
		p = p[skip:]
		switch n := len(iov); {
		case n > 0 && extend(&iov[n-1], p):
			size += len(p)
		case n < maxIovecs:
			iov = append(iov, iovec(p))
			size += len(p)
		}
		skip = 0
	}
	for o := c.first; o != nil && len(iov) < maxIovecs; o = o.next {
		add(o.head)
		for i := range o.data {
			add(o.data[i].Bytes())
		}
		add(o.tail)
	}
	return iov, size
}

// took notes that the kernel has taken n bytes.
func (c *Conn) took(n int) {
	c.sent += n
	for c.first != nil && c.sent >= c.first.size {
		over := c.sent - c.first.size
		c.pop()
		c.sent = over
	}
}
