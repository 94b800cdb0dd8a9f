// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// Limits of Copy (Identify MSSRL, MCL and MSRC): of one source range and of all
// together, in bytes, and of their number.
const (
	maxCopyRange  = 1 << 20
	maxCopy       = 16 << 20
	maxCopyRanges = nvme.CopyRangesMax
)

// copyFormats are the formats of source ranges (Identify CDFS). Those with
// protection information other than 16b Guard carry it in fields that mean
// nothing here: no namespace has any.
const copyFormats = 0xf

// copyAcross are the formats whose ranges name a namespace; a host must have
// enabled them (Host Behavior Support CDFE).
const copyAcross = 1<<2 | 1<<3

// fastCopyOnly is the bit of a source range's SOPT by which the host wants no
// copy that is not faster than its own would be (FCO).
const fastCopyOnly = 1 << 15

// source is a source range of a Copy that has been checked.
type source struct {
	ns          *nsQueue // in use by the command
	off, length uint64   // bytes
}

// copyBlocks copies source ranges to a destination (NVM Command Set 3.2.2).
func (w *Worker) copyBlocks(c *Command) {
	cp := c.SQE.Copy()
	enabled := uint32(copyFormats&^copyAcross) | w.c.copyFormats.Load()&copyAcross
	if enabled>>cp.Format&1 == 0 || cp.PRINFOR != 0 || cp.PRINFOW != 0 || cp.DTYPE != 0 {
		c.finish(dnr(nvme.StatusInvalidField))
		return
	}
	c.data(uint32(cp.Ranges()*copyRangeSize(cp.Format)), FromHost, func(c *Command) { c.withScratch((*Command).beginCopy) })
}

// copyRangeSize returns the size of a source range in bytes.
func copyRangeSize(format uint8) int {
	if format&1 != 0 {
		return len(nvme.Bytes(&nvme.CopyRangeExtended{}))
	}
	return len(nvme.Bytes(&nvme.CopyRange{}))
}

// beginCopy checks all there is to check before it copies anything. The ranges
// are read from the host's memory once.
func (c *Command) beginCopy() {
	w, cp := c.worker, c.SQE.Copy()
	size := copyRangeSize(cp.Format)
	list := w.scratch.buf[:cp.Ranges()*size]
	before := w.p.Touch(c)
	ok := c.copyIn(list, 0)
	w.p.Touch(before)
	if !ok {
		c.finish(dnr(nvme.StatusInvalidField))
		return
	}
	total := uint64(0)
	for ; len(list) > 0; list = list[size:] {
		n, st := c.addSource(list[:size])
		if st != nvme.StatusSuccess {
			c.finish(st)
			return
		}
		if total += n; total > maxCopy {
			c.finish(dnr(nvme.StatusCommandSizeLimitExceeded))
			return
		}
	}
	if st := c.setRange(cp.SDLBA, total>>c.ns.shift); st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	for _, r := range w.scratch.ranges {
		if r.ns.ns.Volume == c.ns.ns.Volume && overlap(r.off, r.length, c.off, c.length) {
			c.finish(dnr(nvme.StatusOverlappingIORange))
			return
		}
	}
	c.copyPiece()
}

// addSource checks one source range and returns its length in bytes. The fields
// that are used lie at the same place in all formats.
func (c *Command) addSource(p []byte) (n uint64, st nvme.Status) {
	var d nvme.CopyRange
	copy(nvme.Bytes(&d), p)
	ns := c.ns
	if copyAcross>>c.SQE.Copy().Format&1 != 0 {
		if d.SOPT&fastCopyOnly != 0 {
			return 0, dnr(nvme.StatusFastCopyNotPossible)
		}
		if ns, st = c.worker.reach(d.SNSID); st != nvme.StatusSuccess {
			return 0, st
		}
		if ns.shift != c.ns.shift {
			return 0, dnr(nvme.StatusIncompatibleNamespace)
		}
	}
	r := source{ns: ns}
	var ok bool
	if r.off, r.length, ok = ns.bytes(d.SLBA, uint64(d.NLB)+1); !ok {
		return 0, dnr(nvme.StatusLBAOutOfRange)
	}
	if r.length > maxCopyRange {
		return 0, dnr(nvme.StatusCommandSizeLimitExceeded)
	}
	ns.inflight++
	c.worker.scratch.ranges = append(c.worker.scratch.ranges, r)
	return r.length, nvme.StatusSuccess
}

// source returns the source range of the next piece, and where that begins in
// it; ok is false at the end. DW0 is the number of the range, as a command that
// fails has to tell.
func (c *Command) source() (r source, done uint64, ok bool) {
	done = c.step
	for i, r := range c.worker.scratch.ranges {
		if done < r.length {
			c.DW0 = uint32(i)
			return r, done, true
		}
		done -= r.length
	}
	c.DW0 = 0
	return source{}, 0, false
}

// copyPiece reads the piece at step, if there is one.
func (c *Command) copyPiece() {
	r, done, ok := c.source()
	if !ok {
		c.finish(nvme.StatusSuccess)
		return
	}
	n := min(r.length-done, scratchSize)
	c.then = copied
	c.submitTo(r.ns, volume.Read, 0, r.off+done, n, c.worker.scratch.piece(n))
	c.worker.p.Tick() // it may have taken all of a turn
}

// copied follows the reading of a piece, and then its writing.
func copied(c *Command, st nvme.Status) {
	switch {
	case st != nvme.StatusSuccess:
		c.finish(st)
	case c.stopped():
	case c.req.Op == volume.Read:
		n := c.req.Length
		c.submitTo(c.ns, volume.Write, c.fua(), c.off+c.step, n, c.worker.scratch.piece(n))
		c.worker.p.Tick()
	default:
		c.step += c.req.Length
		c.copyPiece()
	}
}
