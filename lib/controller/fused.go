// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"slices"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// pairs finds the halves of fused commands (NVMe Base 3.4.2). They follow each
// other in one submission queue and reach Execute in one turn of the poller:
// what is then without its other half stays so.
//
// A process that is killed may have executed a pair whose host has not been
// told, or not of both halves. It must not be compared once more with what it
// has written itself, nor be executed after its first half was published. So
// each half keeps a word (Command.Kept):
//
//	first   keptCompared before the write begins: the next process also goes on
//	        if it finds what was to be written
//	second  keptEnded and both results when the pair has ended, before either is
//	        completed: the next process gives the same
type pairs struct {
	w     *Worker
	first []*Command // at most one of each queue
}

// take deals with a half of a pair, and with what follows a first half. It
// reports false for a command that is neither a half nor ended.
func (p *pairs) take(c *Command) bool {
	i := slices.IndexFunc(p.first, func(x *Command) bool { return x.SQID == c.SQID })
	var first *Command
	if i >= 0 {
		first = p.first[i]
		p.first = slices.Delete(p.first, i, i+1)
	}
	if v := c.kept(); c.SQE.Fuse() == nvme.FuseSecond && v&keptEnded != 0 {
		if first != nil {
			first.finish(nvme.Status(v >> 16 & 0xffff))
		}
		c.finish(nvme.Status(v & 0xffff))
		return true
	}
	if c.SQE.Fuse() == nvme.FuseSecond && first != nil {
		p.w.compareAndWrite(first, c)
		return true
	}
	if first != nil {
		first.finish(nvme.StatusAbortedMissingFused)
	}
	switch c.SQE.Fuse() {
	case nvme.FuseNone:
		return false
	case nvme.FuseSecond:
		c.finish(nvme.StatusAbortedMissingFused)
	case nvme.FuseFirst:
		if ioCommands[c.SQE.Opcode].fuses == 0 {
			c.finish(dnr(nvme.StatusInvalidField))
			return true
		}
		if p.first = append(p.first, c); len(p.first) == 1 {
			p.w.p.Defer(p)
		}
	default:
		c.finish(dnr(nvme.StatusInvalidField))
	}
	return true
}

// Run implements poller.Runnable: the turn is over.
func (p *pairs) Run() {
	for len(p.first) > 0 {
		c := p.first[0]
		p.first = slices.Delete(p.first, 0, 1)
		c.finish(nvme.StatusAbortedMissingFused)
	}
}

// drop takes out a first half that waits, and reports whether it was there.
func (p *pairs) drop(c *Command) bool {
	i := slices.Index(p.first, c)
	if i >= 0 {
		p.first = slices.Delete(p.first, i, i+1)
	}
	return i >= 0
}

// compareAndWrite executes a fused pair. The first half does the work for both.
func (w *Worker) compareAndWrite(first, second *Command) {
	a, b := first.SQE.RW(), second.SQE.RW()
	if nvme.IOOpcode(second.SQE.Opcode) != nvme.IOWrite || !knownPSDT(&first.SQE) || !knownPSDT(&second.SQE) ||
		first.SQE.NSID != second.SQE.NSID || a.SLBA != b.SLBA || a.NLB != b.NLB || b.PRINFO != 0 || b.DTYPE != 0 {
		first.finish(dnr(nvme.StatusInvalidField))
		second.finish(dnr(nvme.StatusInvalidField))
		return
	}
	first.pair, second.pair = second, first
	for _, c := range [...]*Command{first, second} {
		if st := w.use(c, c.SQE.NSID); st != nvme.StatusSuccess {
			c.finish(st)
			return
		}
	}
	if second.ns.readOnly {
		second.finish(dnr(nvme.StatusNamespaceWriteProtected))
		return
	}
	first.transfer(FromHost, func(first *Command) {
		first.pair.transfer(FromHost, func(second *Command) { second.pair.scan() })
	})
}

// fencePair goes on with next, for a first half, when no other write can come
// between; at once for a command alone.
func (c *Command) fencePair(next func(*Command)) {
	if c.pair == nil {
		next(c)
		return
	}
	c.next = next
	c.ns.ns.fence.raise(c)
}

// enclosed goes on with the pair the fence has been raised for.
func (c *Command) enclosed() {
	c.fenced = true
	if !c.stopped() {
		c.next(c)
	}
}

// writePair writes the second half, the first of which has found what it
// compared to be equal.
func (c *Command) writePair() {
	second := c.pair
	c.keep(keptCompared)
	second.then = (*Command).finish
	second.submit(volume.Write, second.fua())
}

// finishPair ends both halves: c with st, the other with Aborted due to Failed
// Fused Command if c has failed.
func (c *Command) finishPair(st nvme.Status) {
	other := c.pair
	c.pair, other.pair = nil, nil
	for _, half := range [...]*Command{c, other} {
		if half.fenced {
			half.fenced = false
			half.ns.ns.fence.lower()
		}
	}
	failed := nvme.StatusSuccess
	if st != nvme.StatusSuccess {
		failed = nvme.StatusAbortedFailedFused
	}
	// The first half, which is the one with fuse 01b, is told first.
	first, second, st1, st2 := c, other, st, failed
	if c.SQE.Fuse() != nvme.FuseFirst {
		first, second, st1, st2 = other, c, failed, st
	}
	// Anything else comes of what the next process finds for itself.
	if st == nvme.StatusSuccess || st1.Code() == nvme.StatusCompareFailure {
		second.keep(keptEnded | uint64(st1)<<16 | uint64(st2))
	}
	first.finish(st1)
	second.finish(st2)
}

// Values of Command.Kept; 0: nothing.
const (
	keptCompared = 1
	keptEnded    = 1 << 63
)

// keep leaves v to the next process.
func (c *Command) keep(v uint64) {
	if c.Kept != nil {
		atomic.StoreUint64(c.Kept, v)
	}
}

// kept returns what was left for this process.
func (c *Command) kept() uint64 {
	if c.Kept == nil {
		return 0
	}
	return *c.Kept
}
