// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

const (
	// maxFDs is how many file descriptors a client may send with a message.
	maxFDs = 8
	// maxData is how much a client may read or write at once, in bytes. The
	// largest access there is is that of the configuration space.
	maxData = 64 << 10
	// requestQueue is how many commands may wait for the handler before the
	// reader waits, too.
	requestQueue = 32

	negotiateLimit = 10 * time.Second // for VERSION after the connect
	sendLimit      = 5 * time.Second  // for the client to take a message
)

// request is a command that waits for the handler. It owns its fds.
type request struct {
	header vfiouser.Header
	small  [48]byte // the payload, if it fits: that of a doorbell write does
	n      int
	large  []byte
	fds    [maxFDs]int
	numFDs int
	end    uint64 // its place in the stream
	again  bool   // another program may have carried it out, or a part of it
}

// newRequest copies a message, which the next one will overwrite.
func newRequest(m *vfiouser.Message) request {
	r := request{header: m.Header, n: len(m.Payload), numFDs: m.NumFDs(), end: m.End, again: m.Again}
	if r.n <= len(r.small) {
		copy(r.small[:], m.Payload)
	} else {
		r.large = append([]byte(nil), m.Payload...)
	}
	for i := range r.numFDs {
		r.fds[i] = m.TakeFD(i)
	}
	return r
}

func (r *request) payload() []byte {
	if r.large != nil {
		return r.large
	}
	return r.small[:r.n]
}

// takeFDs gives the file descriptors to the caller.
func (r *request) takeFDs() []int {
	fds := r.fds[:r.numFDs]
	r.numFDs = 0
	return fds
}

// close closes what was not taken.
func (r *request) close() { qpair.CloseFDs(r.takeFDs()) }

// client is one vfio-user connection of a port. Its reader routes replies to
// the relayer and commands to the handler.
type client struct {
	port     *port
	conn     *vfiouser.Conn
	socket   *net.UnixConn // of conn
	socketFD int           // another descriptor of it, for the program that follows
	relays   *relayer
	requests chan request
	done     chan struct{} // closed by end
	ending   sync.Once
	pid      int
	name     string // of the process

	// Guarded by port.mu.
	negotiated bool
	refusedOne bool // a second client was turned away, and that was logged
	leaving    bool // another program goes on with the connection

	// Of the handler.
	request request
	head    [vfiouser.RegionAccessSize]byte
	data    [configSize]byte
	parts   [2][]byte // of a reply
	faults  int       // commands refused
}

// newClient makes the client of a connection that begins.
func newClient(p *port, socket *net.UnixConn) (*client, error) {
	fd, err := p.broker.files.keepCopy(socket)
	if err != nil {
		return nil, err
	}
	p.journal.Begin()
	c, err := openClient(p, socket, fd)
	if err != nil {
		p.broker.files.close(fd)
		return nil, err
	}
	p.log.Info("client connected", "pid", c.pid, "process", c.name)
	return c, nil
}

// openClient makes the client of a connection that is as the journal says. fd is
// another descriptor of its socket.
func openClient(p *port, socket *net.UnixConn, fd int) (*client, error) {
	conn, err := vfiouser.NewNotedConn(socket, vfiouser.Limits{MaxData: maxData, MaxFDs: maxFDs, WriteTimeout: sendLimit}, p.journal)
	if err != nil {
		return nil, err
	}
	c := &client{
		port: p, conn: conn, socket: socket, socketFD: fd,
		relays:   newRelayer(conn, p.journal),
		requests: make(chan request, requestQueue),
		done:     make(chan struct{}),
	}
	c.pid = peerPID(socket)
	c.name = processName(c.pid)
	return c, nil
}

// run serves the connection until it ends, or is left to another program.
func (c *client) run() {
	var handler, relays sync.WaitGroup
	handler.Go(c.handle)
	relays.Go(func() { c.relays.run(c.done) })
	err := c.conn.Resume()
	if err == nil {
		err = c.read()
	}
	left := errors.Is(err, errLeaving)
	if !left {
		c.end()
	}
	close(c.requests)
	handler.Wait()
	if left {
		c.relays.mute()
		c.ending.Do(func() { close(c.done) })
	}
	relays.Wait()
	if left {
		c.conn.Close()
		return
	}
	c.port.disconnected(c)
	log := c.port.log.With("pid", c.pid, "refused", c.faults)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		log.Info("client disconnected")
	} else {
		log.Warn("client disconnected", "err", err)
	}
}

// end ends the connection and all waits for it. Any goroutine may call it.
func (c *client) end() {
	c.ending.Do(func() { close(c.done) })
	// Others may have the socket open.
	c.socket.CloseWrite()
	c.socket.CloseRead()
	c.conn.Close()
}

// read hands on messages until the connection ends.
func (c *client) read() error {
	if err := c.limitReading(); err != nil {
		return err
	}
	for {
		m, err := c.conn.ReadMessage()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if c.isLeaving() {
				return errLeaving
			}
			return errors.New("no VERSION in time")
		}
		if err != nil {
			return err
		}
		if m.Header.IsReply() {
			if err := c.relays.answered(m); err != nil {
				return err
			}
			continue
		}
		r := newRequest(m)
		select {
		case c.requests <- r:
		case <-c.done:
			r.close()
			return net.ErrClosed
		}
	}
}

// limitReading gives a client that has not negotiated its time for that.
func (c *client) limitReading() error {
	c.port.mu.Lock()
	defer c.port.mu.Unlock()
	switch {
	case c.leaving:
		return nil // the reader is to stop
	case c.negotiated:
		return c.conn.SetReadDeadline(time.Time{})
	}
	return c.conn.SetReadDeadline(time.Now().Add(negotiateLimit))
}

func (c *client) isLeaving() bool {
	c.port.mu.Lock()
	defer c.port.mu.Unlock()
	return c.leaving
}

// handle carries out commands in order until the reader has ended.
func (c *client) handle() {
	for c.request = range c.requests {
		if !c.ended() {
			c.conn.Begin(c.request.end)
			c.serve()
			c.conn.Done()
		}
		c.request.close()
	}
}

// ended reports whether the connection is over: nobody waits for answers.
func (c *client) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// serve carries out one command and answers it. A client that does not take
// the answer loses its connection.
func (c *client) serve() {
	c.port.counts.messages.Add(1)
	h := c.request.header
	payload, fd, err := c.execute()
	if err == nil {
		if fd == noFD {
			err = c.conn.Reply(h, payload...)
		} else {
			err = c.conn.ReplyFDs(h, []int{fd}, payload...)
		}
	} else {
		c.port.counts.refused.Add(1)
		if c.faults++; c.faults == 1 {
			c.port.log.Warn("command of the client refused; more are only counted", "command", h.Command, "err", err)
		}
		err = c.conn.ReplyError(h, err)
	}
	if err != nil {
		c.end()
	}
}

// execute carries out one command. The reply is payload, and fd if it is not
// noFD; both stay the callee's. An error carries the errno to answer with.
func (c *client) execute() (payload [][]byte, fd int, err error) {
	cmd := c.request.header.Command
	if int(cmd) >= len(commands) || commands[cmd] == nil {
		return nil, noFD, fmt.Errorf("unknown command: %w", unix.EINVAL)
	}
	if c.negotiated != (cmd != vfiouser.CmdVersion) && !(cmd == vfiouser.CmdVersion && c.request.again) { // written by this goroutine only
		return nil, noFD, fmt.Errorf("VERSION comes first, and once: %w", unix.EINVAL)
	}
	return commands[cmd](c, c.request.payload())
}

// dropRelays gives up all that waits for this client, which is being reset.
func (c *client) dropRelays() { c.relays.drop(true, func(*relay) bool { return true }) }

// staleWrites reports whether the client has not answered writes from before a
// reset.
func (c *client) staleWrites() bool { return c.relays.stale.Load() > 0 }

// peerPID returns the process at the other end of a socket, 0 if unknown.
func peerPID(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}); err != nil {
		return 0
	}
	return pid
}

// processName returns the command name of a process, empty if unknown.
func processName(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
