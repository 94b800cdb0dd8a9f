// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package tcp

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/poller"
)

// Handler is told what a connection receives, on its poller.
type Handler interface {
	// Header is a PDU whose header is right: h, without the digest, is valid until the return. If the PDU has data, the result is where
	// its DataLength bytes go, nil for nowhere, and Data follows. A violation ends the connection.
	Header(h []byte, f fabrics.Frame) ([]dma.Segment, fabrics.Violation)
	// Data is called when the data of the last Header is where it goes; intact is false if it does not match its digest.
	Data(intact bool) fabrics.Violation
	// Waiting reports whether the peer is to send something, for Sweep.
	Waiting() bool
	// Closed is called once, when the connection is closed: nothing of it is used any more. err is io.EOF where the peer has ended it.
	Closed(err error)
}

// ViolationError is why a connection has ended: what this side has told the peer by a termination request.
type ViolationError struct{ fabrics.Violation }

func (e *ViolationError) Error() string { return "protocol error of the peer: " + e.String() }

// stage is what of a PDU is expected next.
type stage uint8

const (
	header stage = iota
	data
	digest
)

// Conn is a connection.
type Conn struct {
	// In and Out are the framings of what is received and sent. The handler changes them when the connection has been initialized.
	In, Out fabrics.Framing
	// Share is on whose behalf the poller works for the connection: nobody's, unless the handler changes it.
	Share *poller.Share

	set      *Set
	fd       int
	h        Handler
	slot     int32
	gen      int32
	readable bool
	hungUp   bool // readable until what is read says so
	reads    uint
	vain     uint // times in a row that nothing more had come while what had come was handled
	writable bool
	in       input
	out      output
	closed   bool
	shut     bool // nothing more is sent after what is queued, and what is received is dropped
	half     bool // our direction is closed
	err      error
	moved    time.Duration // when bytes were last moved, as poller.Now
	began    time.Duration // when the header began to arrive that is received in part, or the data; 0: there is neither

	// What is received: buf[r:w] has not been looked at.
	buf     []byte
	wide    []byte // that is buf, since Widen
	r, w    int
	behind  bool // not because there is nothing more: others want the poller, too
	stage   stage
	checked bool // frame is that of the header in the buffer
	frame   fabrics.Frame
	skip    uint32 // padding left
	left    uint32 // data left
	into    []dma.Segment
	at      int    // the segment that is filled
	off     uint64 // how much of it is

	// What is to be sent.
	first, last *Out
	sent        int // bytes of first that the kernel has taken
	term        Out
}

// receive reads and handles PDUs, until there is nothing more or as much as budget, or others want the poller. It returns how much it did.
func (c *Conn) receive(budget int) (done int) {
	for (c.readable || c.behind) && !c.closed {
		if done >= budget || done > 0 && c.set.p.Spent() {
			c.set.more = append(c.set.more, c)
			return done
		}
		if c.behind {
			done++
			c.parse()
			continue
		}
		n, room, err := c.read()
		switch {
		case err == unix.EAGAIN:
			c.readable = false
			if done > 0 {
				c.vain++
			}
			return done
		case err == unix.EINTR:
			continue
		case err != nil:
			c.Close(fmt.Errorf("receiving: %w", err))
			return done + 1
		case n == 0:
			c.Close(io.EOF)
			return done + 1
		}
		if done > 0 {
			c.vain = 0
		}
		done += n
		if c.reads++; n < room && !c.hungUp && c.vain >= vainLooks && c.reads%lookAgain != 0 {
			c.readable = false
		}
		if c.shut {
			c.r, c.w = 0, 0 // and a peer that goes on sending is not given more time
			continue
		}
		c.set.p.Tick() // commands are counted from now on
		c.moved = c.set.p.Now()
		c.parse()
	}
	return done
}

// read reads what comes next: data to where it goes, and what follows into the buffer. It also returns how much there was room for.
func (c *Conn) read() (n, room int, err error) {
	if c.stage != data || c.skip > 0 || c.into == nil || c.shut {
		if c.r > 0 {
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		}
		n, err = receive(c.fd, c.buf[c.w:])
		room = len(c.buf) - c.w
		c.w += n
		return n, room, err
	}
	// parse has emptied the buffer.
	iov, left := c.set.iovecs[:0], uint64(c.left)
	for i, off := c.at, c.off; left > 0 && len(iov) < maxIovecs-1; i, off = i+1, 0 {
		n := min(c.into[i].Len-off, left)
		iov = append(iov, iovec(c.into[i].Bytes()[off:off+n]))
		left -= n
	}
	room = int(uint64(c.left) - left)
	if left == 0 {
		iov = append(iov, iovec(c.buf))
		room += len(c.buf)
	}
	n, err = c.set.message.receive(c.fd, iov, room)
	if n > 0 {
		placed := min(uint64(n), uint64(c.left)-left)
		c.placed(placed)
		c.r, c.w = 0, int(uint64(n)-placed)
	}
	return n, room, err
}

// placed notes that n bytes of data are where they go.
func (c *Conn) placed(n uint64) {
	c.left -= uint32(n)
	for n > 0 && c.into != nil {
		k := min(n, c.into[c.at].Len-c.off)
		n -= k
		if c.off += k; c.off == c.into[c.at].Len {
			c.at, c.off = c.at+1, 0
		}
	}
}

// parse handles what is in the buffer.
func (c *Conn) parse() {
	c.behind = false
	for n := 1; !c.closed && !c.shut; n++ {
		more := false
		switch c.stage {
		case header:
			more = c.parseHeader()
		case data:
			more = c.parseData()
		case digest:
			more = c.parseDigest()
		}
		if !more {
			return
		}
		if n%parseStep == 0 && c.set.p.Spent() {
			c.behind = true
			return
		}
	}
}

// parseHeader handles the header of a PDU. It reports whether it was there.
func (c *Conn) parseHeader() bool {
	p := c.buf[c.r:c.w]
	if c.began == 0 && len(p) > 0 {
		c.began = c.moved
	}
	if len(p) < fabrics.CommonHeaderSize {
		return false
	}
	var common fabrics.CommonHeader
	copy(fabrics.Bytes(&common), p)
	if !c.checked {
		frame, v := c.In.Check(&common)
		if v.Bad() {
			c.Violate(v, p)
			return false
		}
		c.frame, c.checked = frame, true
	}
	if uint32(len(p)) < c.frame.Header {
		return false
	}
	h := p[:common.HLEN]
	if c.frame.Header > uint32(common.HLEN) {
		if got := binary.LittleEndian.Uint32(p[common.HLEN:]); got != fabrics.Digest(h) {
			c.Violate(fabrics.Violation{FES: fabrics.FESHeaderDigest, FEI: got}, h)
			return false
		}
	}
	c.r += int(c.frame.Header)
	c.checked, c.began = false, 0
	into, v := c.h.Header(h, c.frame)
	if v.Bad() {
		c.Violate(v, h)
		return false
	}
	if c.frame.DataLength > 0 {
		c.stage, c.skip, c.left = data, c.frame.DataOffset-c.frame.Header, c.frame.DataLength
		c.at, c.off, c.into, c.began = 0, 0, into, c.moved
	}
	return true
}

// parseData takes padding and data from the buffer. It reports whether that was all.
func (c *Conn) parseData() bool {
	n := min(c.skip, uint32(c.w-c.r))
	c.skip -= n
	c.r += int(n)
	for c.skip == 0 && c.left > 0 && c.r < c.w {
		p := c.buf[c.r:min(c.w, c.r+int(c.left))]
		if c.into != nil {
			p = p[:copy(c.into[c.at].Bytes()[c.off:], p)]
		}
		c.r += len(p)
		c.placed(uint64(len(p)))
	}
	if c.skip > 0 || c.left > 0 {
		return false
	}
	if c.stage = header; c.frame.HasDigest {
		c.stage = digest
		return true
	}
	return c.arrived(true)
}

// parseDigest compares the data digest. It reports whether it was there.
func (c *Conn) parseDigest() bool {
	if c.w-c.r < fabrics.DigestSize {
		return false
	}
	got := binary.LittleEndian.Uint32(c.buf[c.r:])
	c.r += fabrics.DigestSize
	c.stage = header
	return c.arrived(c.into == nil || got == digestOf(c.into, uint64(c.frame.DataLength)))
}

// arrived tells the handler of data.
func (c *Conn) arrived(intact bool) bool {
	c.into, c.began = nil, 0
	if v := c.h.Data(intact); v.Bad() {
		c.Violate(v, nil)
		return false
	}
	return true
}

// digestOf returns the digest of the first n bytes of segs.
func digestOf(segs []dma.Segment, n uint64) (sum uint32) {
	for _, s := range segs {
		k := min(s.Len, n)
		sum = fabrics.DigestMore(sum, s.Bytes()[:k])
		n -= k
	}
	return sum
}

// Violate ends the connection for an error of the peer: it is told by a termination request that cites what was wrong, and then has a moment
// to read that.
func (c *Conn) Violate(v fabrics.Violation, cite []byte) {
	if c.closed || c.shut {
		return
	}
	t := fabrics.TypeC2HTermReq
	if c.Out.From == fabrics.FromHost {
		t = fabrics.TypeH2CTermReq
	}
	cite = cite[:min(len(cite), fabrics.MaxTermSize-fabrics.TermHeaderSize)]
	req := fabrics.MakeTermReq(t, v, len(cite))
	c.term.head = append(append(c.term.buf[:0], fabrics.Bytes(&req)...), cite...)
	c.term.data, c.term.tail = nil, nil
	_ = c.Send(&c.term)
	c.Finish(&ViolationError{v})
}

// Finish ends the connection when what is queued has been sent: the handler is told err when the peer has ended its direction, too, or has
// not for a second (Sweep). What the peer still sends is dropped. A peer that is in the middle of sending takes this better than the
// reset that Close may be.
func (c *Conn) Finish(err error) {
	if c.closed || c.shut {
		return
	}
	c.err, c.shut, c.moved = err, true, c.set.p.Now()
	c.into, c.stage, c.r, c.w, c.began = nil, header, 0, 0, 0
	c.set.write(c)
}

// Close ends the connection; the handler is told afterwards, not from within Close.
func (c *Conn) Close(err error) {
	if c.closed {
		return
	}
	c.closed = true
	if c.err == nil {
		c.err = err
	}
	c.set.conns[c.slot] = nil
	c.set.free = append(c.set.free, c.slot)
	c.set.count--
	if c == c.set.single {
		c.set.relax()
	}
	// To close it is not enough where the socket has another descriptor: the set would go on with this one, and refuse it if it came again.
	_ = unix.EpollCtl(c.set.epoll, unix.EPOLL_CTL_DEL, c.fd, nil) // it is in there
	unix.Close(c.fd)
	c.Share.Defer(c)
}

// Run implements poller.Runnable: it tells of the end.
func (c *Conn) Run() {
	for c.first != nil {
		c.pop()
	}
	c.h.Closed(c.err)
	if c.wide != nil {
		_ = unix.Munmap(c.wide)
		c.buf, c.wide = nil, nil
	}
}

// Widen gives the connection the memory to read many small PDUs at once, which a peer has to deserve. It is taken as it is used.
func (c *Conn) Widen() {
	if c.wide != nil {
		return
	}
	buf, err := dma.Reserve(bufferSize)
	if err != nil {
		return // it goes on with what it has
	}
	c.r, c.w = 0, copy(buf, c.buf[c.r:c.w])
	c.buf, c.wide = buf, buf
}

// Left reports whether the peer has ended the connection, also where what it has sent before is still to be read.
func (c *Conn) Left() bool {
	if c.closed {
		return true
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}, 0)
	return err == nil && n > 0
}

// Ended reports whether the connection is closed, or about to be.
func (c *Conn) Ended() bool { return c.closed || c.shut }
