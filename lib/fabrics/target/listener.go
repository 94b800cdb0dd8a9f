// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/stats"
)

// Listener is an address that hosts connect to.
type Listener struct {
	t    *Target
	id   int
	tcp  *net.TCPListener
	done chan struct{} // closed when no connection is accepted any more
	live sync.WaitGroup

	mu       sync.Mutex
	warnings map[string]*fault.Repeats // by message
}

// seldom logs what peers can bring about as often as they like; each msg, of which there are only some, is counted for itself.
func (l *Listener) seldom(msg string, args ...any) {
	l.mu.Lock()
	if l.warnings[msg] == nil {
		l.warnings[msg] = new(fault.Repeats)
	}
	n, ok := l.warnings[msg].Next()
	l.mu.Unlock()
	if ok {
		l.t.cfg.Log.Warn(msg, append(args, "listener", l.id, "warnings", n)...)
	}
}

// Association is a host's use of a subsystem.
type Association struct {
	HostNQN      string
	SubsystemNQN string // as the host has named it: for a discovery controller there are two names
	CNTLID       uint16
	Queues       int // I/O queues
	Peer         netip.AddrPort
	Since        time.Time
}

// Listen has hosts connect to addr; port 0 is any free one. id is the listener's number, handed to the Config functions.
func (t *Target) Listen(id int, addr netip.AddrPort) (*Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.start(); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	socket, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	l := &Listener{t: t, id: id, tcp: socket, done: make(chan struct{}), warnings: make(map[string]*fault.Repeats)}
	t.listeners[l] = true
	go l.accept()
	return l, nil
}

// Addr is where the listener listens; it has the real port.
func (l *Listener) Addr() netip.AddrPort {
	return addrPort(l.tcp.Addr())
}

func addrPort(tcp net.Addr) netip.AddrPort {
	a := tcp.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// acceptPause is how long no connection is accepted when there are no descriptors or no memory for one.
const acceptPause = 100 * time.Millisecond

// accept is the listener's goroutine.
func (l *Listener) accept() {
	defer close(l.done)
	for {
		conn, err := l.tcp.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.seldom("connection cannot be accepted", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if err := l.hand(conn); err != nil {
			l.seldom("connection refused", "peer", conn.RemoteAddr(), "err", err)
		}
		conn.Close()
	}
}

// hand gives a connection to a poller.
func (l *Listener) hand(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(orig uintptr) { fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if dupErr != nil {
		return dupErr
	}
	q := newQueue(l, addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr()))
	if err := l.t.admit(q); err != nil {
		unix.Close(fd)
		return err
	}
	l.live.Add(1)
	if err := q.on.p.Post(func() { q.begin(fd) }); err != nil {
		unix.Close(fd)
		l.t.forget(q)
		l.live.Done()
		return err
	}
	return nil
}

var errNoRoom = errors.New("it had to make room")

// roomPause is how long a connection waits for another to make room.
const roomPause = time.Second

// admit counts a connection, and chooses its poller. If there are as many as may be, one that belongs to no host that was let in makes room:
// who only holds connections keeps nobody out.
func (t *Target) admit(q *queue) error {
	for {
		t.mu.Lock()
		if t.connections < t.limits.Connections {
			t.connections++
			t.turn = (t.turn + 1) % len(t.shards)
			q.on = t.shards[t.turn]
			t.guests = append(t.guests, q)
			t.mu.Unlock()
			return nil
		}
		full := fmt.Errorf("there are %d connections already", t.connections)
		if len(t.guests) == 0 {
			t.mu.Unlock()
			return full
		}
		i := max(0, slices.IndexFunc(t.guests, func(q *queue) bool { return !q.known }))
		guest := t.guests[i]
		t.guests = slices.Delete(t.guests, i, i+1)
		select {
		case <-t.room: // of before
		default:
		}
		t.mu.Unlock()
		_ = guest.on.p.Post(guest.evict)
		select {
		case <-t.room:
		case <-time.After(roomPause):
			return full
		}
	}
}

// welcome notes that a connection has come to Connect. That of a host which was let in does not have to make room any more, that of a
// discovery controller only where all others have come as far.
func (t *Target) welcome(q *queue, discovery bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q.known = true
	if i := slices.Index(t.guests, q); i >= 0 && !discovery {
		t.guests = slices.Delete(t.guests, i, i+1)
	}
}

// forget counts a connection no more.
func (t *Target) forget(q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connections--
	if i := slices.Index(t.guests, q); i >= 0 {
		t.guests = slices.Delete(t.guests, i, i+1)
	}
	select {
	case t.room <- struct{}{}:
	default:
	}
}

// Associations returns those made through this listener, by controller and host.
func (l *Listener) Associations() []Association {
	var list []Association
	for _, a := range l.t.present() {
		if a.admin.l == l {
			list = append(list, a.describe())
		}
	}
	slices.SortFunc(list, func(x, y Association) int {
		return cmp.Or(cmp.Compare(x.SubsystemNQN, y.SubsystemNQN), cmp.Compare(x.CNTLID, y.CNTLID))
	})
	return list
}

// Queue is a queue of a host that is connected to a subsystem, at a moment.
type Queue struct {
	SubsystemNQN string
	CNTLID       uint16
	QID          uint16 // 0 is the admin queue
	Outstanding  int    // commands that have come and are not answered
	Poller       string // that serves it
	Stats        *stats.Set
}

// Queues returns the queues of hosts, those of discovery controllers left out, in no particular order. It asks the pollers and must not be
// called on one.
func (t *Target) Queues() []Queue {
	t.mu.Lock()
	shards := t.shards
	t.mu.Unlock()
	var all []Queue
	for _, s := range shards {
		// A poller that has stopped has none.
		_ = s.p.Do(func() {
			for q := range s.queues {
				if q.stats != nil {
					all = append(all, Queue{SubsystemNQN: q.a.subNQN, CNTLID: q.a.cntlid, QID: q.id, Outstanding: q.running, Poller: s.p.Name(), Stats: q.stats})
				}
			}
		})
	}
	return all
}

var errListenerClosed = errors.New("the listener was closed")

// Close ends the listener and the connections made through it, and returns when none of their commands is in flight. Hosts have some two
// seconds to end their side: Linux retries what it was sending then, while a reset makes it fail. A second Close does nothing.
func (l *Listener) Close() {
	_ = l.tcp.Close() // the second time it is closed already
	<-l.done
	l.t.mu.Lock()
	delete(l.t.listeners, l)
	shards := l.t.shards
	l.t.mu.Unlock()
	for _, s := range shards {
		_ = s.p.Post(func() {
			for q := range s.queues {
				if q.l == l {
					q.conn.Finish(errListenerClosed)
				}
			}
		})
	}
	l.live.Wait()
}
