// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Send writes one message: the header, whose Size it sets, and the parts of the
// payload one after the other. The message leaves in one piece as far as the
// socket allows, and never mixed with another goroutine's. Nothing of the
// arguments is kept. After an error the connection cannot be written to any
// more, since part of a message may have gone out.
func (c *Conn) Send(h Header, payload ...[]byte) error {
	return c.SendFDs(h, nil, payload...)
}

// SendFDs is Send with file descriptors, which arrive with the first byte of
// the message. They stay the caller's.
func (c *Conn) SendFDs(h Header, fds []int, payload ...[]byte) error {
	return c.send(h, nil, fds, payload...)
}

// SendPiece is Send for a command of ours that the journal knows: the peer owes
// an answer as soon as the command is on its way.
func (c *Conn) SendPiece(h Header, piece *JournalPiece, payload ...[]byte) error {
	return c.send(h, piece, nil, payload...)
}

func (c *Conn) send(h Header, piece *JournalPiece, fds []int, payload ...[]byte) error {
	size := HeaderSize
	for _, p := range payload {
		size += len(p)
	}
	if limit := int(c.limits.MaxData) + dataRoom; size > limit {
		return fmt.Errorf("sending %v: message of %d bytes, at most %d possible", h.Command, size, limit)
	}
	h.Size = uint32(size)

	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	if c.noted != nil {
		c.noted.begin(&h, piece)
	}
	if cap(c.out) < size {
		c.out = make([]byte, 0, max(size, 512))
	}
	c.out = c.out[:HeaderSize]
	h.Put(c.out)
	for _, p := range payload {
		c.out = append(c.out, p...)
	}
	if err := c.write(c.out, fds); err != nil {
		c.writeErr = fmt.Errorf("sending %v: %w", h.Command, err)
	}
	if cap(c.out) > smallBuffer && c.noted == nil {
		c.out = nil
	}
	return c.writeErr
}

// write sends b, with fds at its first byte.
func (c *Conn) write(b []byte, fds []int) error {
	if c.limits.WriteTimeout > 0 {
		if err := c.socket.SetWriteDeadline(time.Now().Add(c.limits.WriteTimeout)); err != nil {
			return err
		}
	}
	if c.noted != nil {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		return c.noted.write(b, oob)
	}
	if len(fds) > 0 {
		n, _, err := c.socket.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.socket.Write(b)
	return err
}

// Reply answers a command with a payload. A command that wants no reply gets
// none, and Reply returns nil.
func (c *Conn) Reply(command Header, payload ...[]byte) error {
	return c.ReplyFDs(command, nil, payload...)
}

// ReplyFDs is Reply with file descriptors.
func (c *Conn) ReplyFDs(command Header, fds []int, payload ...[]byte) error {
	if !command.WantsReply() {
		return nil
	}
	return c.SendFDs(Header{ID: command.ID, Command: command.Command, Flags: FlagReply}, fds, payload...)
}

// ReplyError answers a command with the errno in err's chain, EINVAL if there
// is none. A command that wants no reply gets none, and ReplyError returns nil.
func (c *Conn) ReplyError(command Header, err error) error {
	if !command.WantsReply() {
		return nil
	}
	errno := syscall.EINVAL
	errors.As(err, &errno)
	return c.Send(Header{
		ID:      command.ID,
		Command: command.Command,
		Flags:   FlagReply | FlagError,
		Errno:   uint32(errno),
	})
}

// Socket returns the socket, for its address, its peer's credentials and its
// file descriptor. Reading from it or writing to it breaks the Conn.
func (c *Conn) Socket() *net.UnixConn { return c.socket }
