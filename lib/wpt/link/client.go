// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package link is the runtime's side of the link to leap-wpt: it follows the
// ports that leap-wpt hands over and serves their queues on pollers.
//
//	Client   the connection: messages in order, kept fds, relayed memory
//	Port     one port: its registers, enable, reset, shutdown, interrupts
//	lane     a port's queues on one poller: fetch, execute, publish
//	command  one command in execution: its slot, its data, its lease
//
// A Port's life cycle runs on its home poller; each lane runs on its own; they
// talk by posted functions only. Goroutines of a Client: one that receives
// messages and hands replies to who waits for them, and one (Serve) that
// follows the ports; both end with the connection.
package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

// ErrBusy says that another runtime of the same name is attached, or has ended
// with I/O still in flight.
var ErrBusy = errors.New("another runtime of this name is attached to leap-wpt")

// Client is a connection to leap-wpt.
type Client struct {
	name  string
	epoch uint64
	fence int
	link  *qpair.Link
	log   *slog.Logger

	mu      sync.Mutex
	nextID  uint64
	replies map[uint64]chan reply
	inbox   []message     // not yet seen by Serve
	arrived chan struct{} // capacity 1: inbox has grown, or the link has ended
	err     error         // why the link ended
	done    chan struct{} // closed when the receiver has ended
}

// message is a received message with its fds, or something to do in line with
// the messages.
type message struct {
	qpair.Message
	fds []int
	do  func()
}

// reply is an answer to a request of ours.
type reply struct {
	message
	data []byte
}

// Dial connects runtime name to the leap-wpt that listens at path and waits
// for the epoch. Errors: ErrBusy (try again later), *qpair.VersionError, and
// what the socket says.
func Dial(ctx context.Context, path, name string, log *slog.Logger) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to leap-wpt: %w", err)
	}
	c := &Client{
		name: name, fence: -1, link: qpair.NewLink(conn.(*net.UnixConn)), log: log,
		replies: make(map[uint64]chan reply), arrived: make(chan struct{}, 1), done: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { c.link.Close() })
	err = c.hello()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.link.Close()
		c.closeFence()
		return nil, err
	}
	go c.receive()
	return c, nil
}

// hello introduces the runtime and takes its epoch and fence.
func (c *Client) hello() error {
	m := qpair.Message{Kind: qpair.MsgHello, Version: qpair.LinkVersion, ID: uint64(os.Getpid())}
	if err := qpair.SetName(&m.Name, c.name); err != nil {
		return err
	}
	if err := c.link.Send(&m, nil); err != nil {
		return err
	}
	w, _, fds, err := c.link.Recv()
	if err != nil {
		return fmt.Errorf("waiting for leap-wpt's welcome: %w", err)
	}
	switch {
	case w.Kind != qpair.MsgWelcome:
		err = fmt.Errorf("leap-wpt answered with message kind %d instead of a welcome", w.Kind)
	case w.Version != qpair.LinkVersion:
		err = &qpair.VersionError{What: "link protocol of leap-wpt", Got: w.Version, Want: qpair.LinkVersion}
	case unix.Errno(w.Status) == unix.EBUSY:
		err = ErrBusy
	case w.Status != 0:
		err = fmt.Errorf("leap-wpt refused the runtime: %w", unix.Errno(w.Status))
	case len(fds) != 1:
		err = fmt.Errorf("welcome with %d fds, expected the fence", len(fds))
	}
	if err != nil {
		qpair.CloseFDs(fds)
		return err
	}
	c.epoch, c.fence = w.Gen, fds[0]
	return nil
}

// Epoch returns the number of this attachment.
func (c *Client) Epoch() uint64 { return c.epoch }

// Fence returns the write end of the fence pipe: it is registered in every
// io_uring before its first request. It stays the client's.
func (c *Client) Fence() int { return c.fence }

func (c *Client) closeFence() {
	if c.fence >= 0 {
		unix.Close(c.fence)
		c.fence = -1
	}
}

// Close ends the connection and waits for the receiver. Serve has returned.
func (c *Client) Close() {
	c.link.Close()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.inbox {
		qpair.CloseFDs(m.fds)
	}
	c.inbox = nil
	c.closeFence()
}

// receive takes messages until the link ends.
func (c *Client) receive() {
	defer close(c.done)
	for {
		m, data, fds, err := c.link.Recv()
		c.mu.Lock()
		if err != nil {
			c.err = err
			for _, ch := range c.replies {
				close(ch)
			}
			c.replies = nil
			c.mu.Unlock()
			c.signal()
			return
		}
		switch m.Kind {
		case qpair.MsgKept, qpair.MsgRelayed:
			ch := c.replies[m.ID]
			delete(c.replies, m.ID)
			if ch == nil {
				qpair.CloseFDs(fds)
			} else {
				ch <- reply{message{Message: m, fds: fds}, append([]byte(nil), data...)}
			}
			c.mu.Unlock()
		default:
			c.inbox = append(c.inbox, message{Message: m, fds: fds})
			c.mu.Unlock()
			c.signal()
		}
	}
}

// enqueue has Serve run f after the messages that have arrived.
func (c *Client) enqueue(f func()) {
	c.mu.Lock()
	c.inbox = append(c.inbox, message{do: f})
	c.mu.Unlock()
	c.signal()
}

// signal tells Serve to look.
func (c *Client) signal() {
	select {
	case c.arrived <- struct{}{}:
	default:
	}
}

// take returns the messages that have arrived, and why the link has ended if
// there are none and there will be none.
func (c *Client) take() ([]message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ms := c.inbox
	c.inbox = nil
	if len(ms) == 0 {
		return nil, c.err
	}
	return ms, nil
}

// errLinkDown is what requests get when the link ends under them.
var errLinkDown = errors.New("link to leap-wpt is down")

// ask sends a request and waits for its answer.
func (c *Client) ask(m *qpair.Message, data []byte, fds ...int) (reply, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	if c.replies == nil {
		c.mu.Unlock()
		return reply{}, errLinkDown
	}
	c.nextID++
	m.ID = c.nextID
	c.replies[m.ID] = ch
	c.mu.Unlock()
	if err := c.link.Send(m, data, fds...); err != nil {
		c.mu.Lock()
		delete(c.replies, m.ID)
		c.mu.Unlock()
		return reply{}, fmt.Errorf("%w: %w", errLinkDown, err)
	}
	r, ok := <-ch
	if !ok {
		return reply{}, errLinkDown
	}
	if r.Status != 0 {
		qpair.CloseFDs(r.fds)
		return reply{}, unix.Errno(r.Status)
	}
	return r, nil
}

// Keep has leap-wpt hold fd under name beyond this process. fd stays the
// caller's.
func (c *Client) Keep(name string, fd int) error {
	m := qpair.Message{Kind: qpair.MsgKeep}
	if err := qpair.SetName(&m.Name, name); err != nil {
		return err
	}
	if _, err := c.ask(&m, nil, fd); err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	return nil
}

// Fetch returns what is kept under name; the error is fs.ErrNotExist if there
// is nothing.
func (c *Client) Fetch(name string) (int, error) {
	m := qpair.Message{Kind: qpair.MsgFetch}
	if err := qpair.SetName(&m.Name, name); err != nil {
		return -1, err
	}
	r, err := c.ask(&m, nil)
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, fs.ErrNotExist
	case err != nil:
		return -1, fmt.Errorf("fetching %s: %w", name, err)
	case len(r.fds) != 1:
		qpair.CloseFDs(r.fds)
		return -1, fmt.Errorf("fetching %s: leap-wpt sent %d fds", name, len(r.fds))
	}
	return r.fds[0], nil
}

// Drop forgets what is kept under name.
func (c *Client) Drop(name string) error {
	m := qpair.Message{Kind: qpair.MsgDrop}
	if err := qpair.SetName(&m.Name, name); err != nil {
		return err
	}
	return c.link.Send(&m, nil)
}

// relay reaches a port's memory by messages; it implements dma.Memory.
type relay struct {
	c    *Client
	port uint32
}

// ReadMemory implements dma.Memory.
func (r relay) ReadMemory(p []byte, addr uint64) error {
	for len(p) > 0 {
		n := min(len(p), qpair.MaxRelay)
		m := qpair.Message{Kind: qpair.MsgRelayRead, Port: r.port, Addr: addr, Size: uint64(n)}
		a, err := r.c.ask(&m, nil)
		if err != nil {
			return fmt.Errorf("reading guest memory %#x+%#x: %w", addr, n, err)
		}
		if len(a.data) != n {
			return fmt.Errorf("reading guest memory %#x+%#x: %d bytes came", addr, n, len(a.data))
		}
		p, addr = p[copy(p, a.data):], addr+uint64(n)
	}
	return nil
}

// WriteMemory implements dma.Memory.
func (r relay) WriteMemory(p []byte, addr uint64) error {
	for len(p) > 0 {
		n := min(len(p), qpair.MaxRelay)
		m := qpair.Message{Kind: qpair.MsgRelayWrite, Port: r.port, Addr: addr, Size: uint64(n)}
		if _, err := r.c.ask(&m, p[:n]); err != nil {
			return fmt.Errorf("writing guest memory %#x+%#x: %w", addr, n, err)
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// unmapGrace is how long I/O in flight on an unmapped range is waited for
// before leap-wpt is told that the range has gone. What is still in flight then
// is orphaned: the pages stay pinned and mapped here until it ends.
const unmapGrace = time.Second
