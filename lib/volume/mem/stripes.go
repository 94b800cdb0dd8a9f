// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"runtime"
	"sync/atomic"
)

// stripes keep pollers from finding, or leaving behind, a page of the volume
// that is in part what one command has stored and in part another. Page n
// belongs to stripe n mod stripeCount.
//
// Whoever changes a page locks its stripe, copies from memory that is at hand,
// and unlocks it: guest memory, which may fault or be slow, is never touched
// meanwhile. Whoever reads takes no lock. It copies, to wherever, and does so
// once more if the stripe has been locked since it began.
//
// No poller waits for another. What finds a stripe locked for long is tried
// again in its poller's next turn.
type stripes [stripeCount]stripe

// stripeCount bounds what a change of many pages has to lock.
const stripeCount = 64

// stripe counts: odd while it is locked, and another even number each time it is
// unlocked. Each has a cache line of its own.
type stripe struct {
	seq atomic.Uint32
	_   [60]byte
}

// tries is how often a stripe is looked at before the poller turns to something
// else. That is some microseconds: a page is copied in less.
const tries = 1000

// of returns the stripe of the page that has the byte at off.
func (s *stripes) of(off uint64) *stripe { return &s[off/pageSize%stripeCount] }

// lock has the caller alone change the stripe's pages. It reports false if
// somebody else is at it.
func (s *stripe) lock() bool {
	for range tries {
		if now := s.seq.Load(); now%2 == 0 && s.seq.CompareAndSwap(now, now+1) {
			return true
		}
	}
	return false
}

func (s *stripe) unlock() { s.seq.Store(s.seq.Load() + 1) }

// begin returns what same is to be asked after reading pages of the stripe; ok is
// false while it is locked.
func (s *stripe) begin() (seq uint32, ok bool) {
	for range tries {
		if seq = s.seq.Load(); seq%2 == 0 {
			return seq, true
		}
	}
	return 0, false
}

// same reports whether nobody has changed the stripe's pages since begin.
func (s *stripe) same(seq uint32) bool {
	if loadsInOrder {
		return s.seq.Load() == seq
	}
	// What was read before could be read after the load. An exchange is either
	// before the next lock, which then acquires from it, or fails.
	return s.seq.CompareAndSwap(seq, seq)
}

// loadsInOrder: the processor does not let a load overtake an earlier one.
const loadsInOrder = runtime.GOARCH == "amd64"

// lockPages locks the stripes of n pages, from number first on, or none of them.
// Of two that lock many, in the same order, one gets all.
func (s *stripes) lockPages(first, n uint64) bool {
	for i := range uint64(stripeCount) {
		if (i-first)%stripeCount < n && !s[i].lock() {
			s.unlockBelow(i, first, n)
			return false
		}
	}
	return true
}

// unlockPages takes lockPages back.
func (s *stripes) unlockPages(first, n uint64) { s.unlockBelow(stripeCount, first, n) }

func (s *stripes) unlockBelow(end, first, n uint64) {
	for i := range end {
		if (i-first)%stripeCount < n {
			s[i].unlock()
		}
	}
}
