// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/leapio/leapio/lib/volume"
)

// fence keeps the writes of a namespace, on all pollers and of all controllers,
// from coming between the halves of a fused pair. A pair that wants to go on
//
//  1. raises the fence: from then on, writes that overlap its range are held
//     back by the queue that was to submit them
//  2. waits until every queue of the namespace has ended the writes it had
//     submitted before
//  3. compares and writes
//  4. lowers the fence: what was held back goes on, before the next pair does
//
// Steps 1 and 4 post to the pollers of all queues while mu is held, so that
// every poller sees them in the same order. As long as there is no pair, a
// write costs one load of a word that nobody changes.
type fence struct {
	raised atomic.Bool
	mu     sync.Mutex
	queues []*nsQueue
	pairs  []*Command // first halves: the one the fence is raised for, and those that wait
}

// enter has queue n respect the fence; it has submitted nothing yet.
func (f *fence) enter(n *nsQueue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queues = append(f.queues, n)
}

// leave is the end of queue n; it has nothing in flight and holds nothing back.
func (f *fence) leave(n *nsQueue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.queues, n); i >= 0 {
		f.queues = slices.Delete(f.queues, i, i+1)
	}
}

// raise puts the fence around the range of c; c goes on by enclosed.
func (f *fence) raise(c *Command) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pairs = append(f.pairs, c); len(f.pairs) == 1 {
		f.enclose()
	}
}

// enclose waits for the writes that are in flight, on behalf of the first pair.
// mu is held.
func (f *fence) enclose() {
	c := f.pairs[0]
	f.raised.Store(true)
	left := new(atomic.Int32)
	left.Store(int32(len(f.queues)) + 1)
	done := func() {
		if left.Add(-1) == 0 {
			_ = c.worker.p.Post(c.enclosed) // which runs as long as a command is in execution
		}
	}
	for _, n := range f.queues {
		if n.w.p.Post(func() { n.drain(done) }) != nil {
			done()
		}
	}
	done()
}

// lower ends the hold of the first pair.
func (f *fence) lower() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs = slices.Delete(f.pairs, 0, 1)
	f.raised.Store(len(f.pairs) > 0)
	for _, n := range f.queues {
		_ = n.w.p.Post(n.resume) // one that has stopped holds nothing back
	}
	if len(f.pairs) > 0 {
		f.enclose()
	}
}

// stops reports whether a request of these bytes must be held back.
func (f *fence) stops(r *volume.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pairs) > 0 && overlap(f.pairs[0].off, f.pairs[0].length, r.Offset, r.Length)
}

// overlap reports whether two ranges within a volume have bytes in common.
func overlap(off1, n1, off2, n2 uint64) bool { return off1 < off2+n2 && off2 < off1+n1 }

// writes are the requests of a queue that change the namespace: those in flight
// in the order of submission, and those held back by the fence.
type writes struct {
	first, last *Command
	seq         uint64 // of the latest
	held        []*Command
	drainTo     uint64 // drained is told when all up to this one have ended
	drained     func()
}

// admit notes a request that changes the namespace. It reports false if the
// request is held back: then it is submitted later.
func (n *nsQueue) admit(c *Command) bool {
	if c.pair != nil {
		return true // the fence is its own
	}
	if n.ns.fence.raised.Load() && n.ns.fence.stops(&c.req) {
		n.writes.held = append(n.writes.held, c)
		return false
	}
	n.writes.add(c)
	return true
}

func (l *writes) add(c *Command) {
	l.seq++
	c.listed, c.seq, c.before, c.after = true, l.seq, l.last, nil
	if l.last != nil {
		l.last.after = c
	} else {
		l.first = c
	}
	l.last = c
}

// remove follows the end of a request.
func (l *writes) remove(c *Command) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		l.first = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	} else {
		l.last = c.before
	}
	c.listed, c.before, c.after = false, nil, nil
	l.look()
}

// look tells drained what it waits for.
func (l *writes) look() {
	if done := l.drained; done != nil && (l.first == nil || l.first.seq > l.drainTo) {
		l.drained = nil
		done()
	}
}

// drain calls done when the writes in flight now have ended. There is one fence
// per namespace, raised for one pair, hence one drain at a time.
func (n *nsQueue) drain(done func()) {
	n.writes.drainTo, n.writes.drained = n.writes.seq, done
	n.writes.look()
}

// resume submits what was held back. Should it overlap the range of the next
// pair, it is before that: the drain on its behalf comes later.
func (n *nsQueue) resume() {
	held := n.writes.held
	n.writes.held = nil
	for _, c := range held {
		n.writes.add(c)
		n.queue.Submit(&c.req)
	}
}

// drop takes a request out of those held back, and reports whether it was there.
func (n *nsQueue) drop(c *Command) bool {
	i := slices.Index(n.writes.held, c)
	if i >= 0 {
		n.writes.held = slices.Delete(n.writes.held, i, i+1)
		c.at = nil
	}
	return i >= 0
}
