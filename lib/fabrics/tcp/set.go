// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package tcp carries NVMe/TCP PDUs over connections that are served by pollers, for either role.
//
//  1. A Set is a source of its poller. It has an epoll set of its own, which the poller's watches: one look tells which of many
//     connections have something to read, or room to write. A connection that alone has something to read, again and again, is read
//     without that look.
//  2. A Conn reads into its buffer and frames PDUs: each header is checked, with its digest, before its Handler sees it. The handler says
//     where the data goes; what of it is not in the buffer yet is read straight to there.
//  3. What is to be sent is queued as Outs and written when the continuations of the turn have run: all of it, header, data and digests,
//     with one system call where there is room.
//
// A connection takes a fixed amount of memory, and nothing is allocated per PDU. All methods are for the poller.
package tcp

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/poller"
)

const (
	// eventBatch is how many connections are looked at in one turn.
	eventBatch = 64
	// turnBytes is how much is read from one connection at once, so that it cannot keep the poller from its neighbours.
	turnBytes = 512 << 10
	// lookStep is how often the eager connection is read before the others are looked at: some microseconds.
	lookStep = 8
	// aloneStep is how often a connection has to be the only one with something to read before it is eager.
	aloneStep = 8
	// vainLooks is how often in a row there is nothing when a socket is read again, after what was there has been handled, before that is left
	// out, and lookAgain how often it is done all the same. Deep queues bring more meanwhile: what is answered together costs less. A command
	// that is alone has nobody to wait for.
	vainLooks = 4
	lookAgain = 16
	// parseStep is how many PDUs are handled by one reading of the clock while others want the poller, too.
	parseStep = 8
	// bufferSize is the receive buffer of a connection: what one read takes of small PDUs.
	bufferSize = 48 << 10
	// narrowBuffer is that of one which has not been widened: enough for any header with its digest.
	narrowBuffer = 512
	// maxIovecs is how many pieces one write has.
	maxIovecs = 128
)

// Set is the connections of one poller.
type Set struct {
	p       *poller.Poller
	epoll   int
	conns   []*Conn // by slot; nil: free
	free    []int32
	gen     int32
	count   int
	more    []*Conn // that have been read from as much as may be at once
	stirred func()  // see OnStir

	// single is the connection that alone had something to read the last alone times; see eager. looks counts turns.
	single       *Conn
	alone, looks int

	events  [eventBatch]unix.EpollEvent
	iovecs  [maxIovecs]unix.Iovec
	message message
}

// NewSet makes a set and has its poller serve it. It is called on the poller.
func NewSet(p *poller.Poller) (*Set, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll set for connections: %w", err)
	}
	s := &Set{p: p, epoll: epoll}
	// The outer set reports every event that the inner one gets: an edge is never lost between a look and the poller's sleep.
	if err := p.Watch(epoll); err != nil {
		unix.Close(epoll)
		return nil, err
	}
	p.House().Add(s)
	return s, nil
}

// Close ends a set without connections.
func (s *Set) Close() {
	s.p.Remove(s)
	s.p.Unwatch(s.epoll)
	unix.Close(s.epoll)
}

// Len returns the number of connections that are not closed.
func (s *Set) Len() int { return s.count }

// Add takes a non-blocking socket, which is the set's from now on, also after an error. in and out are the framings before the connection
// is initialized; h is told what arrives.
func (s *Set) Add(fd int, in, out fabrics.Framing, h Handler) (*Conn, error) {
	c := &Conn{Share: s.p.House(), set: s, fd: fd, h: h, In: in, Out: out, buf: make([]byte, narrowBuffer), moved: s.p.Now()}
	c.in.c, c.out.c = c, c
	if n := len(s.free); n > 0 {
		c.slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		c.slot = int32(len(s.conns))
		s.conns = append(s.conns, nil)
	}
	s.gen++
	c.gen = s.gen
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: c.slot, Pad: c.gen}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		s.free = append(s.free, c.slot)
		unix.Close(fd)
		return nil, fmt.Errorf("watching a connection: %w", err)
	}
	s.conns[c.slot] = c
	s.count++
	s.stir()
	return c, nil
}

// OnStir has f called, once, when a connection comes next, or has something to read or to write. Until then a Sweep that has found nothing
// would find nothing again.
func (s *Set) OnStir(f func()) { s.stirred = f }

// stir says that there may be something to sweep from now on.
func (s *Set) stir() {
	if f := s.stirred; f != nil {
		s.stirred = nil
		f()
	}
}

// Poll implements poller.Source: it notes which connections have something to read or room to write.
func (s *Set) Poll() int {
	for _, c := range s.more {
		s.queue(c)
	}
	clear(s.more)
	if s.more = s.more[:0]; s.count == 0 {
		return 0
	}
	if c := s.eager(); c != nil {
		if s.looks++; s.looks%lookStep != 0 && !c.in.queued {
			return s.try(c)
		}
	}
	return s.look()
}

// eager is the connection that alone had something to read, several times in a row; nil: none is so now. Its socket is read without a look at
// all of them: one system call in place of two.
func (s *Set) eager() *Conn {
	if s.alone > aloneStep {
		return s.single
	}
	return nil
}

// try reads from the eager connection, if nobody else wants the poller.
func (s *Set) try(c *Conn) int {
	visit := c.Share.Enter()
	defer visit.Leave()
	if s.p.Contended() {
		s.relax()
		return s.look()
	}
	c.readable = true
	if c.receive(turnBytes) == 0 {
		return 0
	}
	s.queue(c) // there is nothing left to do, but the poller learns who has had work
	return 1
}

// relax has no connection read without a look.
func (s *Set) relax() { s.single, s.alone = nil, 0 }

// look asks for events.
func (s *Set) look() (n int) {
	for i := range s.events[:epollLook(s.epoll, s.events[:])] {
		ev := &s.events[i]
		c := s.conns[ev.Fd]
		if c == nil || c.gen != ev.Pad {
			continue // closed since
		}
		if ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			c.readable = true
			c.hungUp = c.hungUp || ev.Events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0
			s.queue(c)
			s.found(c)
			n++
		}
		if ev.Events&unix.EPOLLOUT != 0 && !c.writable {
			c.writable = true
			s.write(c)
			n++
		}
	}
	return n
}

// found notes that a connection has something to read.
func (s *Set) found(c *Conn) {
	if c != s.single {
		s.relax()
		s.single = c
	}
	s.alone++
}

// queue has c read in a turn of its share.
func (s *Set) queue(c *Conn) {
	if c.in.queued || c.closed {
		return
	}
	s.stir()
	c.in.queued = true
	c.Share.Defer(&c.in)
}

// input reads what a connection receives.
type input struct {
	c      *Conn
	queued bool
}

// Run implements poller.Runnable.
func (in *input) Run() {
	in.queued = false
	in.c.receive(turnBytes)
}

// write has what c is to send written when what runs now has returned.
func (s *Set) write(c *Conn) {
	if c.out.queued || c.closed || c.first == nil && !c.shut {
		return
	}
	s.stir()
	c.out.queued = true
	c.Share.Defer(&c.out)
}

// output writes what has been queued on a connection. Deferred by the first Out, it runs after the continuations that were deferred before:
// their results go into the same write.
type output struct {
	c      *Conn
	queued bool
}

// Run implements poller.Runnable.
func (out *output) Run() {
	out.queued = false
	out.c.send()
}

// Arm implements poller.Source.
func (s *Set) Arm() poller.Wake {
	if len(s.more) > 0 || s.eager() != nil {
		s.relax() // events of what has been read would wake the poller for nothing
		return poller.WakeNow
	}
	return poller.WakeEvent
}

// Holds implements poller.Source: connections have no guest memory.
func (s *Set) Holds(uintptr) bool { return false }

// Fault implements poller.Source.
func (s *Set) Fault() {}

// ErrStalled ends a connection whose peer does not go on.
var ErrStalled = errors.New("the peer has stalled")

// lingering is how long a connection that this side has ended waits for the other to do so.
const lingering = time.Second

// Sweep closes, with ErrStalled, connections that are in the middle of something and do not get on for patience: those that
// Handler.Waiting says, and those with output, on which nothing has moved; and those with a PDU that is received in part, however it drips.
// Finished ones are closed after a second. It reports whether there are such connections that may have to be closed later.
func (s *Set) Sweep(patience time.Duration) (later bool) {
	now := s.p.Now()
	for _, c := range s.conns {
		if c == nil || c.closed {
			continue
		}
		limit := patience
		if c.shut {
			limit = min(patience, lingering)
		}
		waits := c.first != nil || c.shut || c.h.Waiting()
		if waits && now-c.moved > limit || c.began != 0 && now-c.began > limit {
			c.Close(ErrStalled)
		} else if waits || c.began != 0 {
			later = true
		}
	}
	return later
}
