// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// stalled is how long the controller may neither answer a command nor go on
// with one before it is given up: as long as Linux waits for I/O.
const stalled = 30 * time.Second

var errClosed = errors.New("the volume is closed")

// keep is the volume's goroutine. It serves an association until that is lost,
// and makes the next. a is the first; nil: there is none yet.
func (r *remote) keep(ctx context.Context, a *association) {
	defer close(r.done)
	attempt := time.Now()
	for {
		if a != nil {
			err := r.serve(ctx, a)
			r.lose(a, err)
		}
		if a, attempt = r.reconnect(ctx, attempt); a == nil {
			return
		}
	}
}

// serve gives lanes their connections and keeps the controller alive, until
// something breaks.
func (r *remote) serve(ctx context.Context, a *association) error {
	tick := time.NewTicker(r.options.KeepAlive / 2)
	defer tick.Stop()
	for {
		if err := r.connectLanes(ctx, a); err != nil {
			return err
		}
		if r.down.Load() != 0 {
			r.setErr(nil)
		}
		select {
		case <-ctx.Done():
			return errClosed
		case err := <-a.broken:
			return err
		case <-r.opened:
		case <-tick.C:
			if _, err := a.admin.KeepAlive(ctx); err != nil {
				return err
			}
			for _, l := range r.list() {
				_ = l.p.Post(l.sweep)
			}
		}
	}
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

// connectLanes gives every lane without one a connection of a.
func (r *remote) connectLanes(ctx context.Context, a *association) error {
	for _, l := range r.list() {
		if l.given == a {
			continue
		}
		s, err := a.socket(ctx, r)
		if err != nil {
			return err
		}
		l.given = a
		if err := l.p.Post(func() { l.attach(a, s) }); err != nil {
			a.park(s)
		}
	}
	return nil
}

// lose ends an association. Lanes keep what was in flight on it. Some
// controllers take any command for a Keep Alive, so the time until nothing is
// in execution begins when no lane sends anything more.
func (r *remote) lose(a *association, err error) {
	if err != errClosed {
		r.setErr(fmt.Errorf("%s: the connection was lost: %w", r.addr, err))
	}
	a.end()
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
	if r.fastIOFail >= 0 {
		time.AfterFunc(r.fastIOFail+time.Millisecond, r.wake)
	}
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
				r.dead.Store(true)
				r.wake()
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
