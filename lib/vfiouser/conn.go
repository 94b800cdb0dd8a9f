// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what a connection takes from its peer and how long it waits for
// it. Zero values stand for the defaults.
type Limits struct {
	// MaxData is the greatest data of one read or write in bytes, as promised
	// in Capabilities.MaxDataXferSize. Default DefaultMaxDataXferSize.
	MaxData uint32
	// MaxFDs is the most file descriptors of one message, as promised in
	// Capabilities.MaxMsgFDs, 1 to 253 (the kernel's own limit). Default 8.
	MaxFDs int
	// WriteTimeout ends a write the peer does not take. Default: none.
	WriteTimeout time.Duration
}

const (
	defaultMaxFDs = 8
	kernelMaxFDs  = 253 // SCM_MAX_FD

	// dataRoom is the part of a message that is not data: the header and what
	// stands before the data, or a VERSION with its capabilities.
	dataRoom = HeaderSize + MaxVersionSize

	// smallBuffer is what a connection keeps for reading. A longer message has
	// a buffer of its own, which goes when the message has been read.
	smallBuffer = 16 << 10
)

// Conn reads and writes messages on a UNIX stream socket. One goroutine reads;
// any number may write.
//
// A read takes whatever the socket has: part of a message, or several. File
// descriptors come with certain bytes of the stream, and a Conn hands them out
// with the message those bytes belong to; see arrival.
type Conn struct {
	socket *net.UnixConn
	limits Limits

	rmu     sync.Mutex // held while reading; Close waits for it
	buf     []byte     // bytes r to w are unread
	r, w    int
	base    uint64 // place in the stream of buf[r]
	pending []arrival
	oob     []byte
	msg     Message
	readErr error // the end of reading, sticky

	wmu      sync.Mutex // held while writing
	out      []byte
	writeErr error // the end of writing: a message may have gone out in part

	noted *noted // of a Conn with a journal; nil: it has none
}

// arrival is a file descriptor that has come in with unread bytes.
//
// Descriptors are a barrier in the stream (unix(7)): a recvmsg that returns
// some ends with the bytes of the sendmsg they were sent with. So at is the
// place in the stream of the last byte that recvmsg returned, which is in the
// message the descriptor belongs to, whatever stood before it in the buffer.
type arrival struct {
	at uint64
	fd int
}

// Message is one message as read. It is valid until the next ReadMessage.
type Message struct {
	Header  Header
	Payload []byte // what follows the header; in the Conn's buffer
	End     uint64 // its place in the stream, for Begin
	Again   bool   // another process may have carried it out, or a part of it
	fds     []int  // -1: taken
}

// NumFDs returns how many file descriptors came with the message, taken or not.
func (m *Message) NumFDs() int { return len(m.fds) }

// TakeFD gives file descriptor i, counted from 0, to the caller, who closes it.
// Those not taken are closed by the Conn at the next ReadMessage. It returns
// -1 if there is no such descriptor or it was taken before.
func (m *Message) TakeFD(i int) int {
	if i < 0 || i >= len(m.fds) {
		return -1
	}
	fd := m.fds[i]
	m.fds[i] = -1
	return fd
}

func (m *Message) closeFDs() {
	for _, fd := range m.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	m.fds = m.fds[:0]
}

// NewConn makes a connection of a connected UNIX stream socket and owns it from
// then on.
func NewConn(socket *net.UnixConn, limits Limits) *Conn {
	if limits.MaxData == 0 {
		limits.MaxData = DefaultMaxDataXferSize
	}
	if limits.MaxFDs == 0 {
		limits.MaxFDs = defaultMaxFDs
	}
	limits.MaxFDs = min(limits.MaxFDs, kernelMaxFDs)
	return &Conn{
		socket: socket,
		limits: limits,
		buf:    make([]byte, smallBuffer),
		oob:    make([]byte, unix.CmsgSpace(limits.MaxFDs*4)),
	}
}

// ReadMessage returns the next message, waiting for it if need be. It closes
// what is left of the file descriptors of the message before. In the ordinary
// case it allocates nothing, and one system call brings in a message, or many.
//
// Errors:
//   - io.EOF: the peer closed the connection between two messages.
//   - io.ErrUnexpectedEOF (wrapped): the peer closed it within a message.
//   - *ProtocolError: the peer broke the framing, or sent more than Limits
//     allow.
//   - os.ErrDeadlineExceeded (wrapped): SetReadDeadline. Nothing is lost, and
//     reading may go on; all other errors are final.
//   - any other: the system's, net.ErrClosed (wrapped) after Close.
func (c *Conn) ReadMessage() (*Message, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.msg.closeFDs()
	if c.readErr != nil {
		return nil, c.readErr
	}
	if c.noted != nil {
		c.noted.replied()
	}
	m, err := c.next()
	for err == nil && c.noted != nil && c.noted.done(m) {
		c.msg.closeFDs()
		m, err = c.next()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.endReading(err)
	}
	return m, err
}

// next returns the message at the front of the buffer, filling it as needed.
func (c *Conn) next() (*Message, error) {
	if err := c.fill(HeaderSize); err != nil {
		return nil, err
	}
	h, err := ParseHeader(c.buf[c.r:c.w])
	if err != nil {
		return nil, err
	}
	if limit := uint64(c.limits.MaxData) + dataRoom; uint64(h.Size) > limit {
		return nil, protocolErrorf("message %#x (%v) of %d bytes, at most %d taken", h.ID, h.Command, h.Size, limit)
	}
	size := int(h.Size)
	if err := c.fill(size); err != nil {
		return nil, err
	}
	end := c.base + uint64(size)
	taken := 0
	for _, a := range c.pending {
		if a.at >= end {
			break
		}
		c.msg.fds = append(c.msg.fds, a.fd)
		taken++
	}
	c.pending = slices.Delete(c.pending, 0, taken)
	if n := len(c.msg.fds); n > c.limits.MaxFDs {
		return nil, protocolErrorf("message %#x (%v) with %d file descriptors, at most %d taken", h.ID, h.Command, n, c.limits.MaxFDs)
	}
	c.msg.Header, c.msg.End, c.msg.Again = h, end, false
	c.msg.Payload = c.buf[c.r+HeaderSize : c.r+size : c.r+size]
	c.r += size
	c.base = end
	return &c.msg, nil
}

// fill reads until n unread bytes are in the buffer.
func (c *Conn) fill(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	c.makeRoom(n)
	for c.w-c.r < n {
		if err := c.receive(); err != nil {
			if err != io.EOF || c.w == c.r {
				return err
			}
			return fmt.Errorf("peer closed the connection %d bytes into a message: %w", c.w-c.r, io.ErrUnexpectedEOF)
		}
	}
	return nil
}

// makeRoom moves the unread bytes to the front of a buffer that can hold n.
func (c *Conn) makeRoom(n int) {
	if c.noted != nil {
		n += smallBuffer / 16 // see noted.peek
	}
	switch size := max(n, smallBuffer); {
	case len(c.buf) < size || len(c.buf) > size && c.w-c.r <= size:
		buf := make([]byte, size)
		c.w = copy(buf, c.buf[c.r:c.w])
		c.buf = buf
	case c.r > 0:
		c.w = copy(c.buf, c.buf[c.r:c.w])
	}
	c.r = 0
}

// receive makes one recvmsg.
func (c *Conn) receive() error {
	var n, oobn, flags int
	var err error
	if c.noted == nil {
		n, oobn, flags, _, err = c.socket.ReadMsgUnix(c.buf[c.w:], c.oob)
	} else {
		n, oobn, flags, err = c.noted.peek(c.buf[c.w:], c.oob, c.base, c.w > c.r)
	}
	if oobn > 0 {
		if err := c.receiveFDs(c.oob[:oobn], c.base+uint64(c.w-c.r+n-1)); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return io.EOF // reset: the peer closed without reading all it was sent
	}
	if err != nil {
		return err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return protocolErrorf("more than %d file descriptors at once, or more than this process may open", c.limits.MaxFDs)
	}
	c.w += n
	return nil
}

// receiveFDs puts the descriptors of one recvmsg on the pending list, where
// endReading finds them if anything goes wrong.
func (c *Conn) receiveFDs(oob []byte, at uint64) error {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return protocolErrorf("control message: %v", err)
		}
		if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS {
			return protocolErrorf("control message %d/%d", h.Level, h.Type)
		}
		for ; len(data) >= 4; data = data[4:] {
			c.pending = append(c.pending, arrival{at: at, fd: int(int32(le.Uint32(data)))})
		}
		oob = rest
	}
	return nil
}

// endReading remembers the error that ended the stream and closes every
// descriptor that has no message any more.
func (c *Conn) endReading(err error) {
	if c.readErr == nil {
		c.readErr = err
	}
	c.msg.closeFDs()
	for _, a := range c.pending {
		unix.Close(a.fd)
	}
	c.pending = nil
}

// SetReadDeadline makes a ReadMessage that waits past t fail; the zero time
// means never. It may be called from any goroutine, also to wake a reader.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.socket.SetReadDeadline(t) }

// Close closes the socket and every file descriptor that has arrived and not
// been handed out. Reads and writes under way end with net.ErrClosed. It may be
// called from any goroutine and more than once. File descriptors of the last
// message that were not taken are closed by the reader's next ReadMessage.
func (c *Conn) Close() error {
	err := c.socket.Close()
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for _, a := range c.pending {
		unix.Close(a.fd)
	}
	c.pending = nil
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
