// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
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

	// For keep: whose connections it was given last, and how many it has; and when
	// that was, among all lanes.
	given *association
	count int
	turn  int

	// hungry: there is something to send, and no connection.
	hungry atomic.Bool

	a      *association
	wires  []*wire      // connections of a, in order of use
	asked  *association // wants a connection back; nil: none does
	giving *wire        // is given back when nothing is in flight on it

	memory []byte // of all ops
	ops    []op
	free   []*op
	lost   []*op // to be sent again, or to be ended when that is safe

	waiting []*volume.Request // from head on; those before it are taken
	head    int

	kicked bool
	ended  bool
	timed  bool   // look follows
	kick   func() // look, made once
	sweep  func()
}

// wire is a connection of a lane.
type wire struct {
	queue  *host.Queue
	socket *host.Socket
}

// newLane makes a lane without a connection.
func newLane(r *remote, p *poller.Poller) (*lane, error) {
	l := &lane{r: r, p: p, ops: make([]op, r.queues*(host.MaxEntries-1))}
	l.kick, l.sweep = l.look, l.patrol
	var err error
	// Pages are made when an op first uses them, and ops used last are used first.
	l.memory, err = dma.Reserve(len(l.ops) * host.MaxTransfer)
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
	l.hand()
	delete(l.r.lanes, l.p)
	if l.giving != nil {
		l.wires = append(l.wires, l.giving)
		l.settle()
	}
	for _, w := range l.wires {
		l.park(w)
	}
	l.wires = nil
	l.set.Close()
	_ = unix.Munmap(l.memory)
}

// park gives back a connection on which nothing is in flight.
func (l *lane) park(w *wire) {
	if w.queue.Detach() {
		l.a.park(w.socket)
	} else {
		l.a.report(errBroken)
	}
}

// attach takes a connection.
func (l *lane) attach(a *association, s *host.Socket) {
	if l.ended {
		a.park(s)
		return
	}
	w := &wire{socket: s}
	var err error
	w.queue, err = host.NewQueue(l.set, s, func(err error) {
		l.drop(w)
		s.Close()
		a.report(lost(err))
		l.look()
	})
	if err != nil {
		s.Close()
		a.report(err)
		return
	}
	l.a, l.wires = a, append(l.wires, w)
	l.hungry.Store(false)
	l.look()
}

// starve has keep find a connection for the lane, which has something to send
// and none.
func (l *lane) starve() {
	if len(l.wires) == 0 && !l.hungry.Swap(true) {
		l.r.wantWork()
	}
}

// drop has nothing more be sent on a connection that has broken.
func (l *lane) drop(w *wire) {
	l.wires = slices.DeleteFunc(l.wires, func(x *wire) bool { return x == w })
	if l.giving == w {
		l.settle()
	}
}

// settle ends what giveBack has begun.
func (l *lane) settle() {
	l.giving = nil
	l.a.settle()
	l.r.wantWork()
}

// giveBack has a connection of a be given back when what waits has been sent, and
// nothing is in flight on it.
func (l *lane) giveBack(a *association) {
	l.asked = a
	l.look()
	if l.ended {
		l.hand()
	}
}

// hand begins to give back a connection, if one is asked for.
func (l *lane) hand() {
	a := l.asked
	if a == nil {
		return
	}
	l.asked = nil
	if l.ended || l.a != a || len(l.wires) == 0 {
		a.settle()
		l.r.wantWork()
		return
	}
	l.giving = l.wires[0]
	l.wires = slices.Delete(l.wires, 0, 1)
	l.give()
	l.look() // without a connection it may want one again
}

// give parks the connection that is to be given back, if it is at rest.
func (l *lane) give() {
	if w := l.giving; w != nil && w.queue.Idle() {
		l.park(w)
		l.settle()
	}
}

// errBroken is for a connection that was found broken when it was to be used or
// given back.
var errBroken = lost(errors.New("it was found broken"))

// detach breaks the lane's connections of a: the lane sends nothing on them from
// now on.
func (l *lane) detach(a *association, err error) {
	if l.a == a {
		all := l.wires
		if l.giving != nil {
			all = append(all, l.giving)
			l.settle()
		}
		l.wires = nil
		for _, w := range all {
			w.queue.Close(err)
		}
	}
	l.look()
}

// patrol closes connections on which nothing moves although something should,
// or that have a command which is not answered.
func (l *lane) patrol() {
	if l.ended {
		return
	}
	l.set.Sweep(l.r.stalled)
	for i := range l.ops {
		if o := &l.ops[i]; o.wire != nil && l.p.Now()-o.began > l.r.unanswered {
			o.wire.queue.Close(tcp.ErrStalled)
		}
	}
}

// pick returns the connection with the most room, nil if none has any. Those
// with the same room come in turn.
func (l *lane) pick() *wire {
	best := -1
	for i, w := range l.wires {
		if room := w.queue.Room(); room > 0 && (best < 0 || room > l.wires[best].queue.Room()) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	w := l.wires[best]
	copy(l.wires[best:], l.wires[best+1:])
	l.wires[len(l.wires)-1] = w
	return w
}

// look has Run look at what there is to do.
func (l *lane) look() {
	if !l.kicked && !l.ended {
		l.kicked = true
		l.p.House().Defer(l)
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

// Run implements poller.Runnable: it does what there is to do.
func (l *lane) Run() {
	l.kicked = false
	if l.ended {
		return
	}
	l.dispatch()
	l.hand()
}

// dispatch sends what can be sent, and ends what cannot.
func (l *lane) dispatch() {
	failing := len(l.wires) == 0 && l.r.failing()
	l.resume(failing)
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
		case len(l.free) == 0:
			return
		default:
			w := l.pick()
			if w == nil {
				l.starve()
				return
			}
			l.begin(r, w)
		}
	}
}

// resume sends again, or ends, what was in flight when the connection broke.
func (l *lane) resume(failing bool) {
	now := l.r.now()
	keep := l.lost[:0]
	for _, o := range l.lost {
		switch given := failing || status(o.request) != nvme.StatusSuccess; {
		case !o.safe(now):
			keep = append(keep, o)
		case !given && now < o.again:
			keep = append(keep, o)
			l.lookLater()
		case o.a != nil && o.changes() && l.r.resubmit == resubmitNever:
			o.end(pathStatus | nvme.StatusDNR)
		case given:
			o.end(pathStatus)
		default:
			if w := l.pick(); w == nil || !o.send(w) {
				keep = append(keep, o)
				l.starve()
			}
		}
	}
	clear(l.lost[len(keep):])
	l.lost = keep
}

// accessPause is how long a command waits that is sent again because the
// controller could not get at the namespace.
const accessPause = 100 * time.Millisecond

// lookLater has look follow when commands that wait for access can be sent.
func (l *lane) lookLater() {
	if l.timed {
		return
	}
	l.timed = true
	time.AfterFunc(accessPause, func() {
		// The poller may have stopped: then so has the lane.
		_ = l.p.Post(func() {
			l.timed = false
			l.look()
		})
	})
}

// queue is a controller's share of a lane.
type queue struct{ lane *lane }

func (q *queue) Submit(r *volume.Request) { q.lane.submit(r) }
func (q *queue) Cancel(r *volume.Request) { q.lane.cancel(r) }
func (q *queue) Close()                   { q.lane.leave() }
