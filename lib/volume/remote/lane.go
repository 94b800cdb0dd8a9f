// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// lane is a poller's way to the remote, shared by its queues. Unless noted, its
// fields and methods are for the poller.
type lane struct {
	r     *remote
	p     *poller.Poller
	set   *tcp.Set
	users int

	given *association // whose connection it was given last; for keep

	a      *association
	queue  *host.Queue // nil: no connection
	socket *host.Socket

	memory []byte // of all ops
	ops    []op
	free   []*op
	lost   []*op // to be sent again, or to be ended when that is safe

	waiting []*volume.Request // from head on; those before it are taken
	head    int

	kicked bool
	ended  bool
	kick   func() // look, made once
	sweep  func()
}

// newLane makes a lane without a connection.
func newLane(r *remote, p *poller.Poller) (*lane, error) {
	l := &lane{r: r, p: p, ops: make([]op, host.MaxEntries-1)}
	l.kick = l.look
	l.sweep = func() {
		if !l.ended {
			l.set.Sweep(stalled)
		}
	}
	var err error
	// Pages are made when an op first uses them, and ops used last are used first.
	l.memory, err = unix.Mmap(-1, 0, len(l.ops)*host.MaxTransfer, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for commands: %w", err)
	}
	if l.set, err = tcp.NewSet(p); err != nil {
		_ = unix.Munmap(l.memory)
		return nil, err
	}
	for i := range l.ops {
		o := &l.ops[i]
		o.l, o.buffer = l, l.memory[i*host.MaxTransfer:][:host.MaxTransfer:host.MaxTransfer]
		o.command.Owner = o
		l.free = append(l.free, o)
	}
	return l, nil
}

// leave ends a queue of the lane, and with the last one the lane.
func (l *lane) leave() {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	l.ended = true
	delete(l.r.lanes, l.p)
	switch {
	case l.queue == nil:
	case l.queue.Detach():
		l.a.park(l.socket)
	default:
		l.a.report(errBroken)
	}
	l.queue = nil
	l.set.Close()
	_ = unix.Munmap(l.memory)
}

// attach takes a connection.
func (l *lane) attach(a *association, s *host.Socket) {
	if l.ended {
		a.park(s)
		return
	}
	var q *host.Queue
	q, err := host.NewQueue(l.set, s, func(err error) {
		if l.queue == q {
			l.queue = nil
		}
		s.Close()
		a.report(err)
		l.look()
	})
	if err != nil {
		s.Close()
		a.report(err)
		return
	}
	l.a, l.queue, l.socket = a, q, s
	l.look()
}

// errBroken is for a connection that was found broken when it was given back.
var errBroken = errors.New("a connection was broken")

// detach breaks the lane's connection of a: the lane sends nothing on it from
// now on.
func (l *lane) detach(a *association, err error) {
	if l.a == a && l.queue != nil {
		l.queue.Close(err)
	}
	l.look()
}

// look has Run look at what there is to do.
func (l *lane) look() {
	if !l.kicked && !l.ended {
		l.kicked = true
		l.p.Defer(l)
	}
}

// submit takes a request.
func (l *lane) submit(r *volume.Request) {
	r.Begin(l.p)
	r.Scratch = [2]uint64{0, queued}
	if l.head > 0 && len(l.waiting) == cap(l.waiting) {
		n := copy(l.waiting, l.waiting[l.head:])
		clear(l.waiting[n:])
		l.waiting, l.head = l.waiting[:n], 0
	}
	l.waiting = append(l.waiting, r)
	l.look()
}

// cancel ends what of r has not been sent; what has must end by itself, or by
// the end of its association.
func (l *lane) cancel(r *volume.Request) {
	for i := range l.ops {
		if l.ops[i].request == r {
			fail(r, nvme.StatusAbortRequested)
		}
	}
	for i := l.head; i < len(l.waiting); i++ {
		if l.waiting[i] == r {
			fail(r, nvme.StatusAbortRequested)
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			l.unqueue(r)
			break
		}
	}
	l.look()
}

// pathStatus is the status of what fails for want of a connection.
const pathStatus = nvme.StatusHostPathingError

// Run implements poller.Runnable: it sends what can be sent, and ends what
// cannot.
func (l *lane) Run() {
	l.kicked = false
	if l.ended {
		return
	}
	failing := l.queue == nil && l.r.failing()
	l.settle(failing)
	for l.head < len(l.waiting) {
		r := l.waiting[l.head]
		switch {
		case begun(r):
			l.waiting[l.head] = nil
			if l.head++; l.head == len(l.waiting) {
				l.waiting, l.head = l.waiting[:0], 0
			}
			l.unqueue(r)
		case failing:
			fail(r, pathStatus)
		case l.queue == nil || l.queue.Room() == 0 || len(l.free) == 0:
			return
		default:
			l.begin(r)
		}
	}
}

// settle sends again, or ends, what was in flight when the connection broke.
func (l *lane) settle(failing bool) {
	now := l.r.now()
	keep := l.lost[:0]
	for _, o := range l.lost {
		given := failing || status(o.request) != nvme.StatusSuccess
		switch {
		case !o.safe(now):
			keep = append(keep, o)
		case given:
			o.end(pathStatus)
		case l.queue != nil && l.queue.Room() > 0:
			if !o.send() {
				keep = append(keep, o)
			}
		default:
			keep = append(keep, o)
		}
	}
	clear(l.lost[len(keep):])
	l.lost = keep
}

// queue is a controller's share of a lane.
type queue struct{ lane *lane }

func (q *queue) Submit(r *volume.Request) { q.lane.submit(r) }
func (q *queue) Cancel(r *volume.Request) { q.lane.cancel(r) }
func (q *queue) Close()                   { q.lane.leave() }
