// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

const (
	// stepSize is how many bytes say a step: which one, and how. Where more are
	// asked for they are 0.
	stepSize = 16
	maxSteps = 150
)

// steps is what a step of a sequence may be, by its first byte.
var steps = [...]func(*player){
	(*player).write, (*player).read, (*player).write, (*player).read,
	(*player).compare, (*player).writeZeroes, (*player).deallocate, (*player).flush,
	(*player).verify, (*player).copyBlocks, (*player).fused, (*player).fused,
	(*player).identify, (*player).getLog, (*player).getFeatures, (*player).setFeatures,
	(*player).createCQ, (*player).createSQ, (*player).deleteSQ, (*player).deleteCQ,
	(*player).eventRequest, (*player).abort, (*player).format, (*player).doorbellBuffer,
	(*player).unknownAdmin, (*player).unknownIO, (*player).resetOp, (*player).namespaceOp,
	(*player).mappingOp, (*player).badTail, (*player).badHead, (*player).strayWrites,
	(*player).wild, (*player).enableBadly, (*player).newPair, (*player).drain,
	(*player).createCQ, (*player).createSQ, (*player).setFeatures, (*player).copyBlocks,
	(*player).restart, (*player).protect, (*player).resize, (*player).format,
}

// newPair makes a pair of queues.
func (p *player) newPair() {
	id := uint16(p.in.u8()%3) + 1
	p.makePair(id, pick[uint32](&p.in, 16, 4, 64, 3, 1024, 2), pick[uint32](&p.in, 16, 2, 4, 64, 3, 1024))
}

// play plays the sequence that in says.
func (s *stage) play(t testing.TB, in []byte) {
	s.r.t = t
	if s.dirty {
		// The sequence before has failed. What it has left is unknown.
		if s.r.soc == nil {
			s.r.startSoc()
		}
		s.connect(t)
		s.askShapes()
		for _, d := range s.disks {
			d.forget()
		}
	}
	p := &player{stage: s, t: t, list: listsAt, arena: arenaAt}
	p.sqs = make(map[uint16]*playSQ)
	p.restage()
	p.remap(t)
	p.reset(resetEN, 16)
	if s.dirty {
		p.asFirst()
		p.wipe(false)
		p.reset(resetEN, 16)
	}
	s.dirty = true
	for i := 0; i < maxSteps && len(in) > 0; i++ {
		n := min(stepSize, len(in))
		p.in = tape{in[1:n]}
		steps[int(in[0])%len(steps)](p)
		in = in[n:]
	}
	p.finish()
	s.dirty = false
}

// finish ends a sequence: all commands end, the controller can be reset, and all
// namespaces have what they must.
func (p *player) finish() {
	p.logf("finish")
	p.in = tape{}
	p.drain()
	p.reset(resetEN, 16)
	p.wipe(true)
	p.asFirst()
	p.bystander(p.t)
	v, err := p.client.Read32(nvme.RegCSTS)
	if err != nil || !nvme.CSTS(v).RDY() || nvme.CSTS(v).CFS() {
		p.failf("at the end CSTS is %#x: %v", v, err)
	}
}

// wipe makes all disks zeroes again, after a look at what they have.
func (p *player) wipe(check bool) {
	for _, d := range p.disks {
		if d.lo >= d.hi {
			continue
		}
		nsid := p.writable(d)
		q := p.plainQueue()
		if check {
			p.readAll(q, nsid, d, d.lo, d.hi-d.lo)
		}
		e := nvme.SQE{Opcode: uint8(nvme.IOWriteZeroes), NSID: nsid}
		nvme.RW{SLBA: d.lo, NLB: uint16(d.hi - d.lo - 1)}.Put(&e)
		p.submit(q, e, new(expected), true)
		p.drain()
		d.wiped()
	}
}

// writable shows a disk so that it can be written, if it is not, and returns its
// namespace.
func (p *player) writable(d *disk) uint32 {
	for nsid, s := range p.shown {
		if s.d == d && !s.readOnly {
			return nsid
		}
		if s.d == d {
			p.hide(nsid)
			p.model.namespace(nsid)
			break
		}
	}
	spare := uint32(1)
	for p.shown[spare].d != nil {
		spare++
	}
	p.show(spare, d, false)
	p.model.namespace(spare)
	p.settle()
	return spare
}

// sequenceSeeds are sequences that reach everything: each step alone, and long
// ones at random.
func sequenceSeeds() (all [][]byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	step := func(in ...byte) []byte {
		for len(in) < stepSize {
			in = append(in, byte(rng.Uint32()))
		}
		return in
	}
	for i := range steps {
		all = append(all, step(byte(i)))
	}
	for i := range 12 { // I/O on every namespace, one of them write protected
		in := step(27, 0, 4)
		for _, nsid := range []byte{0, 4, 7} { // all of the others have something
			in = append(in, step(0, 0, nsid, flagBig|flagWait, shapePages, 63, 0, 0)...)
			in = append(in, step(0, 0, nsid, flagBig|flagWait, shapePages, 63, 0, 8)...)
		}
		for range 8 {
			for _, nsid := range []byte{0, 4, 7, 9} {
				in = append(in, step(byte(i), 0, nsid, byte(rng.Uint32())&flagsSmooth, byte(rng.Uint32())%shapeReadOnly)...)
			}
		}
		all = append(all, in)
	}
	// Events: more requests than there may be, namespaces that come and go, with
	// their log page read in between or not, stopped queues, aborts.
	request, abort, namespace, stop := step(20), step(21, 0), step(27, 0, 1), step(29, 0, 0)
	enable, changes, errs := step(15, 0x0b, 0, 0xff, 1, 0, 0, 0), step(13, 4, 0, 0, 1, 0, 0), step(13, 1, 0, 0, 1, 0, 0)
	for _, scene := range [][][]byte{
		{request, request, request, request, request, request, abort, request, request, abort, abort, abort, abort, abort},
		{enable, namespace, request, namespace, request, namespace, changes, namespace, request, changes, changes, namespace},
		{request, stop, stop, request, request, errs, stop, errs, stop, namespace, enable, namespace, errs, changes},
		{namespace, changes, request, enable, namespace, namespace, request, changes, request, stop, changes, errs, errs},
	} {
		all = append(all, slices.Concat(scene...))
	}
	for fid := range byte(0x18) { // every feature set, and got in every way
		in := slices.Concat(step(15, fid, 0, 0x5a, 0xa5, 0, 0, 0), step(15, fid, 0), step(15, fid, 4, 0, 0xf))
		for sel := range byte(4) {
			in = append(in, step(14, fid, 1, sel, 0, 0, 0, 0)...)
		}
		all = append(all, in)
	}
	// The runtime goes and comes: what was set, asked for and made is still there.
	restart := step(40, 0)
	all = append(all,
		slices.Concat(enable, request, restart, namespace, namespace, restart, request, restart, changes, step(15, 6, 0), step(15, 0x0e, 0, 9, 9, 9), restart,
			step(14, 6, 0, 0), step(14, 0x0b, 0, 0), step(14, 0x0e, 0, 0), abort),
		slices.Concat(step(0, 0, 0, flagBig, shapePages, 63), step(1, 0, 4, flagBig, shapePages, 63), step(10, 0, 7, 0, 0, 0), restart, step(23, 0, 0), step(9, 0, 0, 0, 0, 3), restart, step(1)),
	)
	// Namespaces that change their size, block and write protection, with blocks
	// in what goes and comes.
	for disk, nsid := range []byte{0, 4, 7} { // by p.nsid
		fill := step(0, 0, nsid, flagBig|flagWait, shapePages, 63, 0xff, 0xff)
		look, size := step(1, 0, nsid, flagBig|flagWait, shapePages, 63, 0xff, 0xff), step(42, byte(disk))
		other, on, off, bad := step(43, nsid, 0x08), step(41, nsid, 0), step(41, nsid, 1), step(41, nsid, 5)
		all = append(all,
			slices.Concat(enable, fill, fill, look, request, size, look, changes, fill, size, look, fill, look, request, size, restart, look, size, look),
			slices.Concat(enable, fill, request, other, look, changes, fill, look, other, restart, look, fill, request, on, fill, look, changes, other, off, fill, look),
			slices.Concat(enable, on, restart, fill, on, bad, request, off, fill, size, on, other, size, off, other, size, look, size, fill, look),
		)
	}
	few := step(15, 7, 0, 0, 0, 0, 0, 0) // Number of Queues: one pair, then more
	all = append(all, slices.Concat(few, step(16, 1, 3, 0, 0, 0), step(16, 0, 3, 0, 0, 0), step(17, 1, 3, 0, 3, 0, 0), step(17, 0, 0, 3, 0, 0), few))
	// Resets, and memory that goes, with large transfers in flight; shadow
	// doorbells that are configured in the midst of it.
	for _, nsid := range []byte{0, 7} {
		write := step(0, 0, nsid, flagBig, shapePages, 63, 0, 0)
		read, region := step(1, 0, nsid, flagBig, shapePages, 63, 0, 0), step(1, 0, nsid, 0, shapeRegion, 63, 0, 0)
		shadow, again, toggle, reset := step(23, 0, 0), step(23, 1, 0), step(28, 0, 2), step(26, 0, 0)
		in := slices.Concat(write, read, read, reset, write, write, read, shadow, read, read, again, region, region, toggle, read, toggle)
		for range 10 {
			in = slices.Concat(in, region, region, read, region, shadow, region, read, region, again)
		}
		for how := range byte(resetConnection) {
			in = slices.Concat(in, write, read, read, read, read, step(26, how, 0), write, step(35), read)
		}
		all = append(all, in)
	}
	for range 30 {
		var in []byte
		for range 40 {
			in = append(in, step()...)
		}
		all = append(all, in)
	}
	return all
}

// FuzzSequence plays sequences of whatever a host may do, well or badly: every
// command ends once, with a status and data that the model allows; after a reset
// all is well, whatever was before; and the machine next door notices nothing.
//
// What is new to the fuzzer here is mostly timing, which is not worth the minute
// it takes by default to make such an input smaller:
//
//	go test ./lib/soc -run FuzzSequence -fuzz FuzzSequence -parallel 1 -fuzzminimizetime 5x
func FuzzSequence(f *testing.F) {
	for _, in := range sequenceSeeds() {
		f.Add(in)
	}
	s := newStage(f, false)
	f.Fuzz(func(t *testing.T, in []byte) { s.play(t, in) })
}

// TestSequencesUnshared plays some of the seeds where guest memory is reached by
// messages.
func TestSequencesUnshared(t *testing.T) {
	s := newStage(t, true)
	for i, in := range sequenceSeeds() {
		if i%4 == 0 {
			t.Run(fmt.Sprint(i), func(t *testing.T) { s.play(t, in) })
		}
	}
	s.r.t = t
}
