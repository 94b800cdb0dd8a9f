// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// consumeBatch is how much of what is done with may stay in the socket, in
	// bytes: one system call takes many small messages out of it. The sender's
	// buffer holds several times as many, overhead included.
	consumeBatch = 1 << 10
	// consumeLate is the same for who has carried out a command, when its reader
	// has nothing to do.
	consumeLate = 4 << 10
	// consumeMost is how much one system call takes.
	consumeMost = 4 << 10
)

// noted is what a Conn with a journal has beside others.
type noted struct {
	journal *Journal
	raw     syscall.RawConn

	// Of reading.
	room, oob      []byte // of the call under way
	n, oobn, flags int
	err            error
	peeker         func(fd uintptr) bool // once, since method values allocate
	stepper        func(fd uintptr)
	handed         uint64   // end of the last command that was handed out
	reply          uint64   // end of the reply that was handed out last
	last           []inode  // file descriptors of the last peek
	withFDs        bool     // a message that is in the socket has some
	resumed        [2]bool  // no command, no reply was handed out yet, and there were some before
	call           *mmsghdr // of peeking
	vector         *iovec

	// Of taking out what is done with: by the reader, or by who has carried out a
	// command while the reader waits for more than the peer has room to send.
	mu          sync.Mutex
	base, given uint64 // at the last peek: up to where messages were handed out, and handed
	scratch     []byte
	take        int
	takeErr     error
	takeVector  *iovec
	consumer    func(fd uintptr)

	// Of writing.
	rest, rights []byte
	writeErr     error
	writer       func(fd uintptr) bool
	sendVector   *iovec

	current uint64 // end of the command that is being carried out; 0: none
}

// NewNotedConn makes a connection of a socket as NewConn does, which has the
// journal, and goes on where the journal says that another process stopped: it
// hands out what was not carried out, and no more. The first command may have
// been carried out in part, see Message.Again. Two goroutines may use it, one to
// read, and one that calls Begin and Done for each command in order. Limits.MaxData
// is 64 KiB at most.
func NewNotedConn(socket *net.UnixConn, limits Limits, j *Journal) (*Conn, error) {
	c := NewConn(socket, limits)
	if int(c.limits.MaxData)+dataRoom > journalRoom {
		return nil, fmt.Errorf("a journal has no room for %d bytes of data", c.limits.MaxData)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := &noted{journal: j, raw: raw, scratch: make([]byte, consumeMost), call: new(mmsghdr), vector: new(iovec), takeVector: new(iovec), sendVector: new(iovec)}
	n.peeker, n.consumer, n.writer = n.peekOnce, n.consumeOnce, n.writeOnce
	n.stepper = n.stepBack
	// What was peeked at is not peeked at again.
	var optErr error
	if err := raw.Control(func(fd uintptr) { optErr = setPeekOffset(fd, 0) }); err != nil {
		return nil, err
	}
	if optErr != nil {
		return nil, fmt.Errorf("peeking at a socket: %w", optErr)
	}
	if j.out.total() == j.outEnd && j.answers > j.commands {
		j.commands = j.answers // killed between the answer and Done
	}
	for i := range j.Pieces {
		if p := &j.Pieces[i]; p.end > j.out.total() && j.out.total() == j.outBegin {
			p.Answered() // nothing of it was sent
		}
	}
	if err := n.takeOut(); err != nil {
		return nil, fmt.Errorf("going on with a connection: %w", err)
	}
	c.base = j.in.total()
	n.handed = j.commands
	n.resumed = [2]bool{j.served != 0, j.served != 0}
	j.served = 1
	c.out = j.buf[:0]
	c.noted = n
	return c, nil
}

// Resume sends the rest of a message of which another process has sent a part.
// It comes before all else.
func (c *Conn) Resume() error {
	j := c.noted.journal
	sent := j.out.total()
	if sent == j.outBegin || sent == j.outEnd {
		return nil
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.write(j.buf[sent-j.outBegin:j.outEnd-j.outBegin], nil); err != nil {
		c.writeErr = err
		return err
	}
	j.commands = max(j.commands, j.answers)
	c.noted.handed = j.commands
	return nil
}

// Begin says that the command that ends at a place in the stream is carried out
// from now on. Replies answer it, until Done.
func (c *Conn) Begin(end uint64) { c.noted.current = end }

// Done says that the command is carried out, and answered.
func (c *Conn) Done() {
	n := c.noted
	atomic.StoreUint64(&n.journal.commands, n.current)
	n.current = 0
	// What came after it is still in the socket. If that is as much as the peer can
	// send, it sends nothing that would wake the reader.
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.consumeTo(n.finished(), consumeLate) // the reader will find the same error
}

// replied notes that the reply that was handed out last has been taken: its
// reader asks for the next message.
func (n *noted) replied() {
	if n.reply > n.journal.replies {
		n.journal.replies = n.reply
	}
}

// done reports whether a message needs no work any more, and otherwise notes
// that it is handed out.
func (n *noted) done(m *Message) bool {
	j := n.journal
	i, before := 0, atomic.LoadUint64(&j.commands)
	if m.Header.IsReply() {
		i, before = 1, j.replies
	}
	n.withFDs = n.withFDs || len(m.fds) > 0
	if m.End <= before {
		return true
	}
	m.Again, n.resumed[i] = n.resumed[i], false
	if i == 0 {
		n.handed = m.End
	} else {
		n.reply = m.End
	}
	return false
}

// peek is recvmsg(2) that takes nothing out of the socket. base is up to where
// messages were handed out; inside says that a part of the next is there.
func (n *noted) peek(room, oob []byte, base uint64, inside bool) (int, int, int, error) {
	n.room, n.oob = room, oob
	if err := n.consume(base); err != nil {
		return 0, 0, 0, err
	}
	if err := n.raw.Read(n.peeker); err != nil {
		return 0, 0, 0, err
	}
	if n.err == nil && n.n == 0 {
		return 0, 0, 0, io.EOF
	}
	if n.oobn > 0 && n.n == len(room) && n.n > 1 {
		// A peek that fills the room to the end of what one sendmsg(2) has sent also
		// has the file descriptors of the next. One byte less does not.
		n.closeRights()
		n.room = room[:n.n-1]
		if err := n.raw.Control(n.stepper); err != nil {
			return 0, 0, 0, err
		}
		if n.err != nil {
			return 0, 0, 0, n.err
		}
		if err := n.raw.Read(n.peeker); err != nil {
			return 0, 0, 0, err
		}
	}
	n.dropRepeated(inside)
	return n.n, n.oobn, n.flags, n.err
}

// dropRepeated closes file descriptors that have come before: as long as peeks
// end within what one sendmsg(2) has sent, each has them again. They are told by
// their inodes. inside says that a message was cut there.
func (n *noted) dropRepeated(inside bool) {
	if n.oobn == 0 {
		n.last = nil
		return
	}
	fds := rights(n.oob[:n.oobn])
	files := make([]inode, len(fds))
	for i, fd := range fds {
		var st unix.Stat_t
		_ = unix.Fstat(fd, &st) // what has no inode is like others without
		files[i] = inode{st.Dev, st.Ino}
	}
	if inside && slices.Equal(files, n.last) {
		n.closeRights()
	}
	n.last = files
}

// closeRights closes the file descriptors of the last peek.
func (n *noted) closeRights() {
	for _, fd := range rights(n.oob[:n.oobn]) {
		unix.Close(fd)
	}
	n.oobn = 0
}

// stepBack has the next peek begin where the last one did.
func (n *noted) stepBack(fd uintptr) {
	at, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err == nil {
		err = setPeekOffset(fd, at-n.n)
	}
	n.err = err
}

// setPeekOffset has the next peek begin at a byte that is in the socket.
func setPeekOffset(fd uintptr, at int) error {
	for {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != unix.EINTR {
			return err
		}
	}
}

// inode tells files apart.
type inode struct{ dev, ino uint64 }

// peekOnce tries to peek; it is false if there is nothing.
func (n *noted) peekOnce(fd uintptr) bool {
	for {
		errno := peek(fd, n.call, n.vector, n.room, n.oob)
		switch errno {
		case 0:
			n.n, n.oobn, n.flags, n.err = n.call.moved(), int(n.call.ctlLen), int(n.call.flags), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			n.n, n.oobn, n.flags, n.err = 0, 0, 0, errno
		}
		return true
	}
}

// consume takes what is done with out of the socket, once it is worth a system
// call.
func (n *noted) consume(base uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base, n.given = base, n.handed
	enough := uint64(consumeBatch)
	if n.withFDs {
		enough = 1 // they keep files open
	}
	to := n.finished()
	n.withFDs = n.withFDs && to < base
	return n.consumeTo(to, enough)
}

// finished returns up to where the stream, as far as it was handed out, is done
// with. The caller holds mu.
func (n *noted) finished() uint64 {
	if commands := atomic.LoadUint64(&n.journal.commands); commands < n.given {
		return commands
	}
	return n.base
}

// consumeTo takes the stream out of the socket up to the end of a message, if it
// is enough. The caller holds mu.
func (n *noted) consumeTo(to, enough uint64) error {
	j := n.journal
	if to < j.in.total()+enough {
		return nil
	}
	atomic.StoreUint64(&j.taking, to)
	return n.takeOut()
}

// takeOut takes out up to where the journal says. Who is killed meanwhile leaves
// the rest to the next. The caller holds mu.
func (n *noted) takeOut() error {
	for j := n.journal; j.in.total() < j.taking; {
		n.take = int(min(j.taking-j.in.total(), uint64(len(n.scratch))))
		// Not Read: the reader may be waiting there. All that is taken has come.
		if err := n.raw.Control(n.consumer); err != nil {
			return err
		}
		if n.takeErr != nil {
			return n.takeErr
		}
	}
	return nil
}

// consumeOnce takes bytes out that are there.
func (n *noted) consumeOnce(fd uintptr) {
	for {
		call := n.journal.in.next()
		switch errno := receiveNoted(fd, call, n.takeVector, n.scratch[:n.take]); {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			n.takeErr = errno
		case call.moved() == 0:
			n.takeErr = io.ErrUnexpectedEOF // the journal is not that of this socket
		default:
			n.takeErr = nil
		}
		return
	}
}

// begin notes what is about to be sent, with size and header as they are.
func (n *noted) begin(h *Header, piece *JournalPiece) {
	j := n.journal
	// What was sent before is complete, and stays so for whoever looks, until
	// outEnd says that there is more.
	sent := j.out.total()
	j.outBegin = sent
	atomic.StoreUint64(&j.outEnd, sent+uint64(h.Size))
	j.answers = 0
	if h.IsReply() {
		j.answers = n.current
	}
	if piece != nil {
		atomic.StoreUint64(&piece.end, j.outEnd)
	}
}

// write sends all of b, with file descriptors at its first byte.
func (n *noted) write(b, oob []byte) error {
	n.rest, n.rights, n.writeErr = b, oob, nil
	for len(n.rest) > 0 && n.writeErr == nil {
		if err := n.raw.Write(n.writer); err != nil {
			return err
		}
	}
	n.rights = nil
	return n.writeErr
}

// writeOnce sends as much as the socket takes; it is false if that is nothing.
func (n *noted) writeOnce(fd uintptr) bool {
	call := n.journal.out.next()
	switch errno := sendNoted(fd, call, n.sendVector, n.rest, n.rights); errno {
	case 0:
		n.rest, n.rights = n.rest[call.moved():], nil
	case unix.EAGAIN:
		return false
	case unix.EINTR:
	default:
		n.writeErr = errno
	}
	return true
}

// rights returns the file descriptors of control messages.
func rights(oob []byte) (all []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := 0; err == nil && i < len(messages); i++ {
		fds, _ := unix.ParseUnixRights(&messages[i]) // others have none
		all = append(all, fds...)
	}
	return all
}
