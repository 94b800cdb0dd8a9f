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

// pool is the data buffers of a poller.
type pool struct {
	p       *poller.Poller
	memory  []byte
	share   int // bytes that one association may hold
	small   []*buffer
	large   []*buffer
	waiting []*command // oldest first
	queued  bool       // Run is deferred
}

// newPool makes a pool of size bytes, a quarter of it small buffers.
func newPool(p *poller.Poller, size, share int) (*pool, error) {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
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
	enough shortage = iota
	ofPool
	ofShare // its association holds too much
)

// take gives a command the buffers for n bytes and makes them its Segments.
func (l *pool) take(c *command, n uint32) shortage {
	free, size := &l.small, smallBuffer
	if n > maxSmall*smallBuffer {
		free, size = &l.large, largeBuffer
	}
	count := (int(n) + size - 1) / size
	switch {
	case *c.q.held > 0 && *c.q.held+count*size > l.share:
		return ofShare
	case count > len(*free):
		return ofPool
	}
	at := len(*free) - count
	c.buffers = append(c.buffers[:0], (*free)[at:]...)
	*free = (*free)[:at]
	c.held = c.q.held
	*c.held += count * size
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

// give takes back the buffers of a command. Those that wait get them when what runs now has returned.
func (l *pool) give(c *command) {
	if len(c.buffers) == 0 {
		return
	}
	size := int(c.buffers[0].segment.Len)
	*c.held -= len(c.buffers) * size
	if size == smallBuffer {
		l.small = append(l.small, c.buffers...)
	} else {
		l.large = append(l.large, c.buffers...)
	}
	c.buffers = c.buffers[:0]
	l.serve()
}

// get gives a command buffers for n bytes, and reports whether it has: others may be before it. If not, command.granted follows.
func (l *pool) get(c *command, n uint32) bool {
	if len(l.waiting) == 0 && l.take(c, n) == enough {
		return true
	}
	c.n = n
	l.waiting = append(l.waiting, c)
	l.serve()
	return false
}

// serve has Run called if somebody waits.
func (l *pool) serve() {
	if len(l.waiting) > 0 && !l.queued {
		l.queued = true
		l.p.Defer(l)
	}
}

// leave takes the command from those that wait.
func (l *pool) leave(c *command) {
	if i := slices.Index(l.waiting, c); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
}

// Run implements poller.Runnable: it gives buffers to those that wait, in their order. One whose association holds its share is passed over;
// if the pool has not enough, all wait.
func (l *pool) Run() {
	l.queued = false
	for i := 0; i < len(l.waiting); {
		c := l.waiting[i]
		switch l.take(c, c.n) {
		case enough:
			l.waiting = slices.Delete(l.waiting, i, i+1)
			c.granted()
			i = 0 // others may have come or gone
		case ofShare:
			i++
		case ofPool:
			return
		}
	}
}
