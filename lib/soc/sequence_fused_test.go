// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"github.com/leapio/leapio/lib/nvme"
)

// Ways in which a pair of fused commands is broken.
const (
	pairWhole = iota
	pairDiffers
	pairRanges // the halves work on different blocks
	pairReads  // the second half is no Write
	pairFirst  // the second half does not come
	pairSecond // the first half does not come
	pairSplit  // the second half comes with a doorbell of its own
	pairOpcode // the first half cannot be one
	pairsBroken
)

// fused sends a Compare and Write, or what looks like one.
func (p *player) fused() {
	q := p.ioQueue()
	nsid, flags, shape, how, differs := p.nsid(), p.in.u8(), p.ioShape(), int(p.in.u8())%pairsBroken, p.in.u8()
	if q.entries < 3 {
		return // it could never be fetched as a whole
	}
	first := nvme.SQE{Opcode: uint8(nvme.IOCompare), NSID: nsid}
	x, y := new(expected), new(expected)
	flags &= flagsSmooth &^ flagBig
	d, at, n := p.blocks(&first, x, true, flags)
	second := first
	second.Opcode = uint8(nvme.IOWrite)
	first.SetFuse(nvme.FuseFirst)
	second.SetFuse(nvme.FuseSecond)
	size := x.size(d, n)
	if d != nil && len(x.errs) == 0 {
		p.resolve(nsid, d, at, n)
	}
	p.drain()
	p.arena, p.list, p.furtherUsed = arenaAt, listsAt, true
	one := p.placeReserved(&first, size, shape)
	other := shapePages
	if differs&2 != 0 && !ofRegions(shape) {
		other = shape
	}
	two := p.placeReserved(&second, size, other)
	x.errs = append(x.errs, one.fromHost...)
	x.errs = append(x.errs, two.fromHost...)
	x.region, y.region = one.region, two.region
	var marks []uint64
	if d != nil && len(x.errs) == 0 {
		marks = p.nextMarks(n)
		two.putMarks(d, marks)
		p.putCompare(&one, x, d, at, n, map[bool]byte{true: differs | 1}[how == pairDiffers])
		x.reads = []extent{{d, at, n}}
	}
	// What one half fails with, the other is told by one status.
	if len(x.errs) > 0 {
		x.errs = append(x.errs, nvme.StatusAbortedFailedFused)
	}
	missing := []nvme.Status{nvme.StatusAbortedMissingFused}
	y.errs = x.errs
	switch how {
	case pairRanges:
		second.CDW10 ^= 1
		x.errs = append(x.errs, nvme.StatusInvalidField)
		y.errs = x.errs
	case pairReads:
		second.Opcode = uint8(nvme.IORead)
		x.errs = append(x.errs, nvme.StatusInvalidField)
		y.errs = x.errs
	case pairFirst:
		x.errs = append(x.errs, missing...)
		p.put(q, first, x)
		p.ringSQ(q)
		return
	case pairSecond:
		y.errs = append(y.errs, missing...)
		p.put(q, second, y)
		p.ringSQ(q)
		return
	case pairOpcode:
		first.Opcode = uint8(nvme.IOWriteZeroes)
		x.errs = []nvme.Status{nvme.StatusInvalidField}
		y.errs = missing
	case pairSplit:
		// The first half may have been found alone.
		x.either, y.either = len(x.errs) == 0, len(x.errs) == 0
		x.errs = append(x.errs[:len(x.errs):len(x.errs)], missing...)
		y.errs = x.errs
	}
	if d != nil && marks != nil && (len(y.errs) == 0 || y.either) {
		y.changes = []change{{extent: extent{d, at, n}, marks: marks}}
	}
	var results []nvme.Status
	note := func(_ nvme.CQE, st nvme.Status) {
		results = append(results, st)
		ok := func(st nvme.Status) bool { return st == nvme.StatusSuccess }
		if len(results) == 2 && ok(results[0]) != ok(results[1]) && !x.shaky {
			p.failf("halves of a pair: %s and %s: %v", x.what, y.what, results)
		}
	}
	x.done, y.done = note, note
	x.partner, y.partner = y, x
	p.put(q, first, x)
	if how == pairSplit {
		p.ringSQ(q)
	}
	p.put(q, second, y)
	p.ringSQ(q)
	if flags&flagWait != 0 {
		p.drain()
	}
}
