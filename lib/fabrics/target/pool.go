// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/poller"
)

const (
	smallBuffer = 8 << 10
	largeBuffer = 128 << 10
	// maxSmall is the most small buffers of a command; larger data takes large ones.
	maxSmall = 4
	// maxBuffers is the most buffers of a command.
	maxBuffers = dma.MaxTransfer / largeBuffer
)

// buffer is a piece of a pool.
type buffer struct {
	segment dma.Segment
	owner   uint64 // queue.owner of the one that used it last
}

// account is what one association has of a poller, or all connections that belong to none: its memory, and its time.
type account struct {
	share *poller.Share // made when it is first wanted

	held        int      // bytes of the pool
	first, last *command // those that wait, oldest first

	// floor is memory of its own for the data of one command, taken when there is no other for the first time: whatever others hold, and for
	// however long, an association goes on.
	floor    []byte
	floored  bool // a command has it
	stranger bool // there is none
}

// push has a command wait.
func (a *account) push(c *command) {
	c.before, c.after = a.last, nil
	if a.last == nil {
		a.first = c
	} else {
		a.last.after = c
	}
	a.last = c
}

// remove has it wait no more.
func (a *account) remove(c *command) {
	if c.before == nil {
		a.first = c.after
	} else {
		c.before.after = c.after
	}
	if c.after == nil {
		a.last = c.before
	} else {
		c.after.before = c.before
	}
	c.before, c.after = nil, nil
}

// on returns the account's share of its poller.
func (a *account) on(p *poller.Poller) *poller.Share {
	if a.share == nil {
		a.share = p.NewShare()
	}
	return a.share
}

// close gives the memory back that is its own; no command uses it.
func (a *account) close() {
	if a.floor != nil {
		_ = unix.Munmap(a.floor)
		a.floor = nil
	}
}

// pool is the data buffers of a poller. Associations are served in turn.
type pool struct {
	p      *poller.Poller
	memory []byte
	share  int // bytes that one account may hold
	small  []*buffer
	large  []*buffer
	turns  []*account // those with commands that wait, in the order of their turns
	queued bool       // Run is deferred
}

// newPool makes a pool of size bytes, a quarter of it small buffers.
func newPool(p *poller.Poller, size, share int) (*pool, error) {
	memory, err := dma.Reserve(size)
	if err != nil {
		return nil, fmt.Errorf("making %d bytes of data buffers: %w", size, err)
	}
	l := &pool{p: p, memory: memory, share: share}
	cut := func(size int, n int) (list []*buffer) {
		for range n {
			list = append(list, &buffer{segment: dma.SegmentOf(memory[:size:size])})
			memory = memory[size:]
		}
		return list
	}
	l.large = cut(largeBuffer, size/4*3/largeBuffer)
	l.small = cut(smallBuffer, len(memory)/smallBuffer)
	return l, nil
}

// close gives the memory back; no buffer is used.
func (l *pool) close() { _ = unix.Munmap(l.memory) }

// shortage is why a command gets no buffers.
type shortage uint8

const (
	enough  shortage = iota
	ofPool           // others hold too much
	ofShare          // its own association does
)

// take gives a command buffers for its data, if there are enough.
func (l *pool) take(c *command) shortage {
	n, a := c.n, c.account
	free, size := &l.small, smallBuffer
	if n > maxSmall*smallBuffer {
		free, size = &l.large, largeBuffer
	}
	count := (int(n) + size - 1) / size
	switch {
	case a.held > 0 && a.held+count*size > l.share:
		return ofShare
	case count > len(*free):
		return ofPool
	}
	at := len(*free) - count
	c.buffers = append(c.buffers[:0], (*free)[at:]...)
	*free = (*free)[:at]
	a.held += count * size
	c.Segments = c.Segments[:0]
	for _, b := range c.buffers {
		if b.owner != c.q.owner {
			// What another host has left there is not shown to this one, whatever a volume fills in.
			b.owner = c.q.owner
			clear(b.segment.Bytes())
		}
		s := b.segment
		s.Len = min(s.Len, uint64(n))
		n -= uint32(s.Len)
		c.Segments = append(c.Segments, s)
	}
	return enough
}

// takeFloor gives a command the memory that is its association's own, if no other command has it.
func (l *pool) takeFloor(c *command) bool {
	a := c.account
	if a.stranger || a.floored {
		return false
	}
	if a.floor == nil {
		floor, err := dma.Reserve(dma.MaxTransfer)
		if err != nil {
			return false // it waits as without
		}
		a.floor = floor
	}
	a.floored, c.floored = true, true
	c.Segments = append(c.Segments[:0], segmentOf(a.floor[:c.n]))
	return true
}

// give takes a command's memory back.
func (l *pool) give(c *command) {
	switch {
	case c.floored:
		c.floored, c.account.floored = false, false
	case len(c.buffers) == 0:
		return
	default:
		size := int(c.buffers[0].segment.Len)
		c.account.held -= len(c.buffers) * size
		if size == smallBuffer {
			l.small = append(l.small, c.buffers...)
		} else {
			l.large = append(l.large, c.buffers...)
		}
		c.buffers = c.buffers[:0]
	}
	l.serve()
}

// get gives a command memory for c.n bytes, or has it wait: then command.granted follows.
func (l *pool) get(c *command) bool {
	a := c.q.account
	c.account = a
	if len(l.turns) == 0 && l.take(c) == enough || a.first == nil && l.takeFloor(c) {
		return true
	}
	if a.first == nil {
		l.turns = append(l.turns, a)
	}
	a.push(c)
	l.serve() // what it waits for may come in this turn
	return false
}

// serve has Run follow, if anybody waits.
func (l *pool) serve() {
	if len(l.turns) > 0 && !l.queued {
		l.queued = true
		l.p.House().Defer(l)
	}
}

// leave takes a command out of those that wait.
func (l *pool) leave(c *command) {
	a := c.account
	if a.remove(c); a.first == nil {
		l.turns = slices.DeleteFunc(l.turns, func(b *account) bool { return b == a })
	}
}

// Run gives memory to those that wait: to one of each association in turn. Who needs more than the pool has keeps the place: the others
// get on by what is their own until there is enough.
func (l *pool) Run() {
	l.queued = false
	dry := false
	for i := 0; i < len(l.turns); {
		a := l.turns[i]
		c, short := a.first, ofPool
		if !dry {
			short = l.take(c)
		}
		if short != enough && !l.takeFloor(c) {
			dry = dry || short == ofPool
			i++
			continue
		}
		a.remove(c)
		l.turns = slices.Delete(l.turns, i, i+1)
		if a.first != nil {
			l.turns = append(l.turns, a)
		}
		visit := a.share.Enter()
		c.granted()
		visit.Leave()
		i = 0 // others may have come or gone
	}
}
