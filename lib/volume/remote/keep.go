// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/nvme"
)

// stalled is how long the controller may neither answer a command nor go on
// with one before it is given up: as long as Linux waits for I/O. unanswered is
// how long for one command, while it goes on with others: it may have many.
const (
	stalled    = 30 * time.Second
	unanswered = 2 * time.Minute
)

// eventPause is the least time from one event to the next: a controller that
// always has one to tell costs no more than that.
const eventPause = 10 * time.Millisecond

var errClosed = errors.New("the volume is closed")

// lost says that err has cost the association a connection.
func lost(err error) error { return fmt.Errorf("the connection was lost: %w", err) }

// keep is the volume's goroutine. It serves an association until that is lost,
// and makes the next. a is the first; nil: there is none yet.
func (r *remote) keep(ctx context.Context, a *association) {
	defer close(r.done)
	// Nobody connects any more: what still waits, ends.
	defer r.wake()
	defer r.dead.Store(true)
	attempt := time.Now()
	for {
		if a != nil {
			err := r.serve(a)
			r.lose(a, err)
		}
		if a, attempt = r.reconnect(ctx, attempt); a == nil {
			return
		}
	}
}

// serve gives lanes their connections, while two goroutines beside it keep the
// controller alive and follow what it tells, until something breaks.
func (r *remote) serve(a *association) error {
	r.offer(&a.ns.info) // before watch can offer what is younger
	var beside sync.WaitGroup
	beside.Go(func() { r.keepAlive(a) })
	beside.Go(func() { r.watch(a) })
	defer beside.Wait()
	defer a.end()
	for {
		if err := r.connectLanes(a); err != nil {
			a.report(lost(err))
		} else if r.down.Load() != 0 {
			r.setErr(nil)
		}
		select {
		case <-a.ctx.Done():
			return context.Cause(a.ctx)
		case <-r.opened:
		}
	}
}

// keepAlive sends Keep Alives, and has lanes look for commands that are not
// answered, until the association ends.
func (r *remote) keepAlive(a *association) {
	tick := time.NewTicker(r.options.KeepAlive / 2)
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := a.admin.KeepAlive(a.ctx); err != nil {
			a.report(lost(err))
			return
		}
		for _, l := range r.list() {
			_ = l.p.Post(l.sweep)
		}
	}
}

// watch follows the namespace when the controller tells that it has changed,
// until the association ends. It also notices at once that the connection has.
func (r *remote) watch(a *association) {
	for {
		event, err := a.admin.Event(a.ctx)
		switch {
		case errors.As(err, new(*host.StatusError)):
			return // it has no events
		case err != nil:
			a.report(lost(err))
			return
		}
		if event == nvme.EventNamespaceAttribute {
			if err := r.follow(a); err != nil {
				a.report(err)
				return
			}
		}
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(eventPause):
		}
	}
}

// follow looks at the namespace again. The log of what has changed is read
// before, which has the controller tell of changes from then on.
func (r *remote) follow(a *association) error {
	var e nvme.SQE
	nvme.GetLogPage{LID: nvme.LogChangedNamespaces, NUMD: nvme.NSListMax - 1}.Put(&e)
	var changed nvme.NSList
	if _, err := optional(a.admin.Do(a.ctx, "changed namespace list", e, nil, nvme.Bytes(&changed))); err != nil {
		return lost(err)
	}
	var ns namespace
	if err := ns.identify(a.ctx, a.admin, &a.ctrl, r.addr.NSID); err != nil {
		return err
	}
	if err := r.check(&ns); err != nil {
		return err
	}
	r.offer(&ns.info)
	return nil
}

// list returns the lanes.
func (r *remote) list() []*lane {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*lane, 0, len(r.lanes))
	for _, l := range r.lanes {
		all = append(all, l)
	}
	return all
}

// connectLanes gives every lane as many connections of a as it is to have: first
// one to each, then a second, and so on. If there are not enough for one to each,
// lanes that have something to send take turns.
func (r *remote) connectLanes(a *association) error {
	lanes := r.list()
	for _, l := range lanes {
		if l.given != a {
			l.given, l.count = a, 0
		}
	}
	slices.SortStableFunc(lanes, func(x, y *lane) int { return x.turn - y.turn })
	turns := len(lanes) > int(a.queues)
	for n := range r.queues {
		for _, l := range lanes {
			if l.count > n || turns && !l.hungry.Load() {
				continue
			}
			s, err := a.socket(r)
			if err != nil {
				return err
			}
			if s == nil {
				r.tellFew(a, turns)
				if n == 0 {
					r.takeBack(a, lanes)
				}
				return nil
			}
			r.turns++
			l.count++
			l.turn = r.turns
			if err := l.p.Post(func() { l.attach(a, s) }); err != nil {
				a.park(s)
			}
		}
	}
	return nil
}

// tellFew logs, once each, that there are fewer connections than are wanted.
func (r *remote) tellFew(a *association, turns bool) {
	switch {
	case turns && !a.turns:
		a.turns = true
		r.log.Warn("the remote grants fewer connections than there are pollers: they take turns", "remote", r.addr, "granted", a.queues)
	case !turns && !a.few:
		a.few = true
		r.log.Warn("the remote grants fewer connections than queues= wants", "remote", r.addr, "granted", a.queues)
	}
}

// takeBack has the lane with most connections, or one of those that have theirs
// for the longest time, give one back, for a lane that has none. It parks it when
// nothing is in flight on it, and has keep look again.
func (r *remote) takeBack(a *association, lanes []*lane) {
	most := slices.MaxFunc(lanes, func(x, y *lane) int { return x.count - y.count })
	if most.count > 0 && a.owe() {
		most.count--
		if most.p.Post(func() { most.giveBack(a) }) != nil {
			a.settle()
		}
	}
}

// lose ends an association. Lanes keep what was in flight on it. Some
// controllers take any command for a Keep Alive, so the time until nothing is
// in execution begins when no lane sends anything more.
func (r *remote) lose(a *association, err error) {
	if !errors.Is(err, errClosed) {
		r.setErr(fmt.Errorf("%s: %w", r.addr, err))
	}
	lanes := r.list()
	var left atomic.Int32
	left.Store(int32(len(lanes)) + 1)
	detached := func() {
		if left.Add(-1) == 0 {
			a.safe.Store(r.now() + int64(a.quiesce))
			time.AfterFunc(a.quiesce+time.Millisecond, r.wake)
		}
	}
	for _, l := range lanes {
		if l.p.Post(func() { l.detach(a, err); detached() }) != nil {
			detached()
		}
	}
	detached()
}

// wake has every lane look at what it keeps.
func (r *remote) wake() {
	for _, l := range r.list() {
		_ = l.p.Post(l.kick)
	}
}

// reconnect makes an association, beginning an attempt every reconnect-delay;
// last is when the one before began. nil: the volume is closed or has failed.
func (r *remote) reconnect(ctx context.Context, last time.Time) (*association, time.Time) {
	for {
		next := last.Add(r.reconnectDelay)
		if r.ctrlLoss >= 0 {
			end := r.epoch.Add(time.Duration(r.down.Load()) + r.ctrlLoss)
			if time.Now().After(end) {
				return nil, last
			}
			if end.Before(next) {
				next = end.Add(time.Millisecond)
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, last
		case <-timer.C:
		}
		if next.Before(last.Add(r.reconnectDelay)) {
			continue // it is ctrl-loss-timeout that has passed
		}
		last = time.Now()
		a, err := r.connect(ctx)
		if err == nil {
			return a, last
		}
		if ctx.Err() == nil {
			r.setErr(err)
		}
	}
}
