// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"maps"
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// I/O commands of sequences.

// ioQueue chooses an I/O queue; one is made where there is none.
func (p *player) ioQueue() *playSQ {
	var all []*playSQ
	for _, id := range slices.Sorted(maps.Keys(p.sqs)) {
		if q := p.sqs[id]; id != 0 && !q.odd {
			all = append(all, q)
		}
	}
	which := int(p.in.u8())
	if len(all) == 0 {
		return p.makePair(1, 16, 16)
	}
	return all[which%len(all)]
}

// nsid chooses a namespace, mostly one that is there.
func (p *player) nsid() uint32 {
	if v := p.in.u8(); v < 0xf0 {
		return []uint32{1, 1, 1, 1, 2, 2, 2, 3, 3, 7, 1, 2, 3, 1, 2, 7}[v%16]
	}
	return pick(&p.in, 4, 0, playNN+1, nvme.NSIDBroadcast)
}

// What the flags of an I/O command ask for.
const (
	flagLater = 1 << iota // no doorbell yet
	flagFUA
	flagBig
	flagWait           // until it has ended
	flagWrong   = 0xe0 // all: something is wrong, by bits 0 to 2
	flagsSmooth = flagLater | flagFUA | flagBig | flagWait
)

// blocks fills in where a command works, and what it deserves for that. d is
// nil where there is no such namespace.
func (p *player) blocks(e *nvme.SQE, x *expected, changes bool, flags byte) (d *disk, at, n uint64) {
	s, n := p.shown[e.NSID], uint64(p.in.u8()%64)+1
	at = uint64(p.in.u16())
	if flags&flagBig != 0 {
		n *= 32
	}
	rw := nvme.RW{FUA: flags&flagFUA != 0, LR: at&1 != 0, DSM: uint8(at)}
	x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
	limit := uint64(1 << 10)
	if d = s.d; d != nil {
		limit = d.blocks
		if changes && s.readOnly {
			x.errs = append(x.errs, nvme.StatusNamespaceWriteProtected)
		}
	}
	n = min(n, limit)
	at %= limit - n + 1
	if flags&flagWrong == flagWrong {
		switch flags & 7 {
		case 0:
			at = limit - n + 1
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		case 1:
			at = 1<<64 - 1
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		case 2:
			rw.PRINFO = 8
			x.errs = append(x.errs, nvme.StatusInvalidField)
		case 3:
			e.SetPSDT(3)
			x.errs = append(x.errs, nvme.StatusInvalidField)
		case 4:
			e.SetFuse(3)
			x.errs = append(x.errs, nvme.StatusInvalidField)
		case 5:
			at = limit
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		case 6:
			n, at = 1<<16, 0
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		default:
			if nvme.IOOpcode(e.Opcode) == nvme.IOWrite {
				rw.DTYPE = 1
				x.errs = append(x.errs, nvme.StatusInvalidField)
			}
		}
	}
	rw.SLBA, rw.NLB = at, uint16(n-1)
	rw.Put(e)
	return d, at, n
}

// size returns the length of a transfer and notes if it is too long.
func (x *expected) size(d *disk, n uint64) int {
	block := 512
	if d != nil {
		block = d.block
	}
	if n*uint64(block) > playMDTS {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	return int(n) * block
}

// send submits an I/O command as its flags say.
func (p *player) send(q *playSQ, e nvme.SQE, x *expected, flags byte) {
	if flags&flagWrong == flagWrong {
		flags = 0
	}
	p.submit(q, e, x, flags&flagLater == 0)
	if flags&flagWait != 0 {
		p.drain()
	}
}

// nextMarks returns new marks for n blocks.
func (p *player) nextMarks(n uint64) []uint64 {
	marks := make([]uint64, n)
	for i := range marks {
		p.mark++
		marks[i] = p.mark
	}
	return marks
}

// putMarks fills a command's data with blocks.
func (dat *data) putMarks(d *disk, marks []uint64) {
	b := make([]byte, len(marks)*d.block)
	for i, mark := range marks {
		fillBlock(b[i*d.block:][:d.block], mark)
	}
	dat.put(b)
}

func (p *player) write() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: p.nsid()}, new(expected)
	flags, shape := p.in.u8(), p.ioShape()
	d, at, n := p.blocks(&e, x, true, flags)
	dat := p.place(&e, x.size(d, n), shape)
	x.errs = append(x.errs, dat.fromHost...)
	x.region = dat.region
	if d != nil && len(x.errs) == 0 {
		marks := p.nextMarks(n)
		dat.putMarks(d, marks)
		x.changes = []change{{extent: extent{d, at, n}, marks: marks}}
	}
	p.send(q, e, x, flags)
}

func (p *player) read() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: p.nsid()}, new(expected)
	flags, shape := p.in.u8(), p.ioShape()
	d, at, n := p.blocks(&e, x, false, flags)
	p.expectRead(&e, x, d, at, n, shape)
	p.send(q, e, x, flags)
}

// expectRead gives a Read its buffer and has the outcome looked at.
func (p *player) expectRead(e *nvme.SQE, x *expected, d *disk, at, n uint64, shape int) {
	dat := p.place(e, x.size(d, n), shape)
	x.errs = append(x.errs, dat.toHost...)
	x.region, x.into = dat.region, &dat
	if d != nil && len(x.errs) == 0 {
		x.reads = []extent{{d, at, n}}
	}
	x.done = func(_ nvme.CQE, st nvme.Status) {
		if !dat.untouched(st != nvme.StatusSuccess && !p.private) && !x.shaky {
			p.failf("%s: %v, and memory beside the data was changed", x.what, st)
		}
		if st == nvme.StatusSuccess && !(x.shaky && x.region) {
			p.checkMarks(x.what, d, at, dat.get())
		}
	}
}

// checkMarks holds data that was read against the model.
func (p *player) checkMarks(what string, d *disk, at uint64, b []byte) {
	for ; len(b) > 0; b, at = b[d.block:], at+1 {
		mark, whole := markOf(b[:d.block])
		if !whole || !d.holds(at, mark) {
			p.failf("%s: block %d of %s is %#x (whole: %t), want %#x or one of %#x", what, at, d.name, mark, whole, d.now[at], d.maybe[at])
		}
	}
}

// resolve reads blocks that may have several contents, so that it is known
// which one they have.
func (p *player) resolve(nsid uint32, d *disk, at, n uint64) {
	p.drain()
	for i := range n {
		if len(d.maybe[at+i]) > 0 {
			q := p.plainQueue()
			p.readAll(q, nsid, d, at, n)
			return
		}
	}
}

// readAll reads and checks blocks, in pieces.
func (p *player) readAll(q *playSQ, nsid uint32, d *disk, at, n uint64) {
	for n > 0 {
		k := min(n, uint64(playMDTS/d.block))
		e, x := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: nsid}, new(expected)
		nvme.RW{SLBA: at, NLB: uint16(k - 1)}.Put(&e)
		p.expectRead(&e, x, d, at, k, shapePages)
		p.submit(q, e, x, true)
		at, n = at+k, n-k
	}
	p.drain()
}

// plainQueue is the first I/O queue that works.
func (p *player) plainQueue() *playSQ {
	in := p.in
	p.in = tape{}
	defer func() { p.in = in }()
	return p.ioQueue()
}

func (p *player) compare() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IOCompare), NSID: p.nsid()}, new(expected)
	flags, shape, differs := p.in.u8(), p.ioShape(), p.in.u8()
	d, at, n := p.blocks(&e, x, false, flags)
	size := x.size(d, n)
	if d != nil && len(x.errs) == 0 {
		p.resolve(e.NSID, d, at, n)
	}
	dat := p.place(&e, size, shape)
	x.errs = append(x.errs, dat.fromHost...)
	x.region = dat.region
	if d != nil && len(x.errs) == 0 {
		x.reads = []extent{{d, at, n}}
		p.putCompare(&dat, x, d, at, n, differs)
	}
	p.send(q, e, x, flags)
}

// putCompare gives a Compare what the blocks have, or something else.
func (p *player) putCompare(dat *data, x *expected, d *disk, at, n uint64, differs byte) {
	marks := slices.Clone(d.now[at : at+n])
	if differs&1 != 0 {
		which := []int{0, len(marks) - 1, len(marks) / 2, int(differs) % len(marks)}
		marks[which[differs>>1&3]] ^= 1 << 40
		x.errs = append(x.errs, nvme.StatusCompareFailure)
	}
	dat.putMarks(d, marks)
}

func (p *player) writeZeroes() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IOWriteZeroes), NSID: p.nsid()}, new(expected)
	flags := p.in.u8()
	d, at, n := p.blocks(&e, x, true, flags)
	if at&1 != 0 {
		e.CDW12 |= 1 << 25 // DEAC
	}
	if d != nil && len(x.errs) == 0 {
		x.changes = []change{{extent: extent{d, at, n}}}
	}
	p.send(q, e, x, flags)
}

func (p *player) verify() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IOVerify), NSID: p.nsid()}, new(expected)
	flags := p.in.u8()
	if d, at, n := p.blocks(&e, x, false, flags); d != nil && len(x.errs) == 0 {
		x.reads = []extent{{d, at, n}}
	}
	p.send(q, e, x, flags)
}

func (p *player) flush() {
	q := p.ioQueue()
	e, x := nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: p.nsid()}, new(expected)
	if e.NSID != nvme.NSIDBroadcast {
		x.errs = p.nsidErrors(e.NSID)
	}
	p.send(q, e, x, p.in.u8()&flagsSmooth)
}

func (p *player) deallocate() {
	q := p.ioQueue()
	e, x := nvme.SQE{NSID: p.nsid()}, &expected{partly: true}
	flags, shape, count := p.in.u8(), p.ioShape(), int(p.in.u8()%8)+1
	nvme.DatasetManagement{NR: uint8(count - 1), AD: flags&flagFUA == 0, IDW: flags&flagBig != 0}.Put(&e)
	s := p.shown[e.NSID]
	x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
	if s.readOnly {
		x.errs = append(x.errs, nvme.StatusNamespaceWriteProtected)
	}
	ranges, beyond := make([]nvme.DSMRange, count), false
	for i := range ranges {
		at, n := uint64(p.in.u16()), uint64(p.in.u8())
		ranges[i] = nvme.DSMRange{Attributes: uint32(at), NLB: uint32(n), SLBA: at}
		switch {
		case s.d == nil:
		case at+n > s.d.blocks && at%8 != 0: // mostly not
			n = min(n, s.d.blocks)
			at %= s.d.blocks - n + 1
			ranges[i].SLBA, ranges[i].NLB = at, uint32(n)
			fallthrough
		case at+n <= s.d.blocks:
			if !beyond && n > 0 {
				x.changes = append(x.changes, change{extent: extent{s.d, at, n}, may: true})
			}
		default:
			beyond = true
		}
	}
	dat := p.place(&e, count*nvme.DSMRangeSize, shape)
	dat.put(nvme.SliceBytes(ranges))
	x.region = dat.region
	if flags&flagFUA != 0 {
		// A hint only. Whether its ranges are looked at is the controller's choice.
		x.either, x.changes, beyond = len(x.errs) == 0, nil, false
	}
	x.errs = append(x.errs, dat.fromHost...)
	if beyond {
		x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
	}
	if len(x.errs) > 0 && !beyond {
		x.changes = nil
	}
	p.send(q, e, x, flags&(flagLater|flagWait))
}

func (p *player) copyBlocks() {
	q := p.ioQueue()
	e, x := nvme.SQE{NSID: p.nsid()}, new(expected)
	flags, shape, count, format := p.in.u8(), p.ioShape(), int(p.in.u8()%4)+1, pick[uint8](&p.in, 0, 1, 2, 3, 0, 1, 0, 4)
	across := format == 2 || format == 3
	x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
	to := p.shown[e.NSID]
	if to.readOnly {
		x.errs = append(x.errs, nvme.StatusNamespaceWriteProtected)
	}
	if format > 3 || across && p.model.host.CDFE>>format&1 == 0 {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	var list []byte
	var sources []extent
	var from []uint32
	total := uint64(0)
	for range count {
		r := nvme.CopyRange{NLB: uint16(p.in.u8() % 48), SLBA: uint64(p.in.u16())}
		if flags&flagBig != 0 && to.d != nil {
			r.NLB = min(r.NLB*32, uint16(to.d.blocks/8)-1)
		}
		nsid := e.NSID
		if across {
			nsid = p.nsid()
			r.SNSID = nsid
			if r.SLBA%16 == 15 {
				r.SOPT = 1 << 15
				x.errs = append(x.errs, nvme.StatusFastCopyNotPossible)
			}
			x.errs = append(x.errs, p.nsidErrors(nsid)...)
		}
		d, n := p.shown[nsid].d, uint64(r.NLB)+1
		switch {
		case d == nil || to.d == nil:
		case d.block != to.d.block:
			x.errs = append(x.errs, nvme.StatusIncompatibleNamespace)
		case r.SLBA%32 == 31:
			r.SLBA += d.blocks
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		default:
			r.SLBA %= d.blocks - n + 1
			sources, from = append(sources, extent{d, r.SLBA, n}), append(from, nsid)
		}
		total += n
		b := make([]byte, 32+8*int(format&1))
		copy(b, nvme.Bytes(&r)[:24]) // the rest means nothing, and is longer in formats 1 and 3
		list = append(list, b...)
	}
	at := uint64(p.in.u16())
	if to.d != nil {
		if at%32 == 31 {
			at = to.d.blocks - total + 1
			x.errs = append(x.errs, nvme.StatusLBAOutOfRange)
		} else {
			at %= to.d.blocks - total + 1
		}
		dest := extent{to.d, at, total}
		if slices.ContainsFunc(sources, dest.meets) {
			x.errs = append(x.errs, nvme.StatusOverlappingIORange)
		}
	}
	nvme.Copy{SDLBA: at, NR: uint8(count - 1), Format: format, FUA: flags&flagFUA != 0}.Put(&e)
	p.reserve(len(list), shape)
	var marks []uint64
	if len(x.errs) == 0 {
		for i, r := range sources {
			p.resolve(from[i], r.d, r.at, r.n)
			marks = append(marks, r.d.now[r.at:r.at+r.n]...)
		}
	}
	dat := p.place(&e, len(list), shape)
	dat.put(list)
	x.errs, x.region = append(x.errs, dat.fromHost...), dat.region
	if len(x.errs) == 0 {
		x.reads = sources
		x.changes = []change{{extent: extent{to.d, at, total}, marks: marks}}
	}
	p.send(q, e, x, flags&(flagLater|flagWait))
}

// unknownIO sends an opcode that is not offered.
func (p *player) unknownIO() {
	q := p.ioQueue()
	e := nvme.SQE{Opcode: pick[uint8](&p.in, 4, 0x0d, 0x0e, 0x11, 0x15, 0x79, 0x7a, 0x7d, 0x7f, 0x80, 0xff, 3), NSID: p.nsid(), CDW10: p.in.u32()}
	p.send(q, e, &expected{errs: []nvme.Status{nvme.StatusInvalidOpcode}}, p.in.u8()&flagsSmooth)
}
