// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"maps"
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// Commands about queues, events and the whole of a namespace.

// Where the queues of an identifier lie.
func sqAt(id uint16) uint64 { return ioSQAt + uint64(min(id, 6))<<16 }
func cqAt(id uint16) uint64 { return ioCQAt + uint64(min(id, 6))<<14 }

// queueAddress chooses where a queue lies, and notes what that deserves. odd is
// set where a driver could not use it.
func (p *player) queueAddress(x *expected, own uint64) (addr uint64, odd bool) {
	switch p.in.u8() % 16 {
	case 12:
		x.errs = append(x.errs, nvme.StatusInvalidPRPOffset, nvme.StatusInvalidField)
		return own + 8, true
	case 13:
		return nowhere, true
	case 14:
		return playRegions[2].Address, true
	case 15:
		return pick[uint64](&p.in, adminSQAt, adminCQAt, sqAt(1), cqAt(1), doorbellAt, firmwareAt), true
	}
	return own, false
}

// queueSize chooses how many entries a queue has.
func (p *player) queueSize(x *expected) (entries uint32) {
	entries = pick[uint32](&p.in, 2, 3, 4, 16, 64, 1024, 5, 16, 16, 1, 1025, 1<<16)
	if entries < 2 || entries > 1024 {
		x.errs = append(x.errs, nvme.StatusInvalidQueueSize)
	}
	return entries
}

func (p *player) queueID() uint16 {
	return pick[uint16](&p.in, 1, 2, 3, 4, 5, 1, 2, 0, 127, 128, 0xffff)
}

// contiguous says in a command that a queue is in one piece, or rarely not.
func (p *player) contiguous(x *expected) bool {
	if p.in.u8() == 0xff {
		x.errs = append(x.errs, nvme.StatusInvalidField)
		return false
	}
	return true
}

func (p *player) createCQ() {
	x, id := new(expected), p.queueID()
	if id == 0 || id > p.model.queues().NCQ()+1 || p.cqs[id] != nil {
		x.errs = append(x.errs, nvme.StatusInvalidQueueIdentifier)
	}
	entries := p.queueSize(x)
	addr, odd := p.queueAddress(x, cqAt(id))
	iv := pick[uint16](&p.in, 0, 1, 127, 2, 3, 128, 0xffff)
	if iv > 127 {
		x.errs = append(x.errs, nvme.StatusInvalidInterruptVector)
	}
	e := nvme.SQE{PRP1: addr}
	nvme.CreateCQ{QID: id, QSIZE: uint16(entries - 1), PC: p.contiguous(x), IEN: iv&1 != 0, IV: iv}.Put(&e)
	if _, st := p.admin(e, x); st == nvme.StatusSuccess {
		p.model.queueMade = true
		if odd {
			p.cqs[id] = &playCQ{id: id, odd: true}
		} else {
			p.addCQ(id, entries, addr)
		}
	}
}

func (p *player) createSQ() {
	x, id := new(expected), p.queueID()
	if id == 0 || id > p.model.queues().NSQ()+1 || p.sqs[id] != nil {
		x.errs = append(x.errs, nvme.StatusInvalidQueueIdentifier)
	}
	cq := id
	if p.in.u8()&3 == 3 {
		cq = pick[uint16](&p.in, 1, 2, 3, 0, 9, 128, 0xffff)
	}
	if cq == 0 || p.cqs[cq] == nil {
		x.errs = append(x.errs, nvme.StatusCompletionQueueInvalid, nvme.StatusInvalidQueueIdentifier)
	}
	entries := p.queueSize(x)
	addr, odd := p.queueAddress(x, sqAt(id))
	e := nvme.SQE{PRP1: addr}
	nvme.CreateSQ{QID: id, QSIZE: uint16(entries - 1), PC: p.contiguous(x), QPRIO: uint8(entries), CQID: cq}.Put(&e)
	if _, st := p.admin(e, x); st == nvme.StatusSuccess {
		p.model.queueMade = true
		p.addSQ(id, cq, entries, addr).odd = odd || p.cqs[cq].odd
	}
}

// makePair makes a pair of queues that works: with this identifier, if it is
// free, or another; after a reset, if there is none.
func (p *player) makePair(id uint16, sqEntries, cqEntries uint32) *playSQ {
	limit := min(p.model.queues().NSQ(), p.model.queues().NCQ(), 4) + 1
	for tries := limit; id > limit || p.sqs[id] != nil || p.cqs[id] != nil; tries-- {
		if id = id%limit + 1; tries == 0 {
			p.reset(resetEN, 16)
			id = 1
			break
		}
	}
	e := nvme.SQE{PRP1: cqAt(id)}
	nvme.CreateCQ{QID: id, QSIZE: uint16(cqEntries - 1), PC: true}.Put(&e)
	p.admin(e, new(expected))
	p.addCQ(id, cqEntries, cqAt(id))
	e = nvme.SQE{PRP1: sqAt(id)}
	nvme.CreateSQ{QID: id, QSIZE: uint16(sqEntries - 1), PC: true, CQID: id}.Put(&e)
	p.admin(e, new(expected))
	p.model.queueMade = true
	return p.addSQ(id, id, sqEntries, sqAt(id))
}

func (p *player) deleteSQ() {
	x, id := new(expected), p.queueID()
	if id == 0 || p.sqs[id] == nil {
		x.errs = append(x.errs, nvme.StatusInvalidQueueIdentifier)
	}
	if p.in.u8()&1 != 0 {
		p.drain()
	}
	for _, y := range p.pending {
		if y.sq == id && len(x.errs) == 0 {
			y.shake() // what is outstanding ends, or is never heard of again
		}
	}
	if _, st := p.admin(nvme.SQE{Opcode: uint8(nvme.AdminDeleteIOSQ), CDW10: uint32(id)}, x); st != nvme.StatusSuccess {
		return
	}
	p.poll()
	for key, y := range p.pending {
		if y.sq == id {
			y.changed(true)
			delete(p.pending, key)
		}
	}
	delete(p.sqs, id)
}

// shake says that the outcome of a command is open from now on.
func (x *expected) shake() {
	x.shaky = true
	if x.partner != nil {
		x.partner.shaky = true
	}
}

func (p *player) deleteCQ() {
	x, id := new(expected), p.queueID()
	if id == 0 || p.cqs[id] == nil {
		x.errs = append(x.errs, nvme.StatusInvalidQueueIdentifier)
	}
	for _, q := range p.sqs {
		if q.cq == id && id != 0 {
			x.errs = append(x.errs, nvme.StatusInvalidQueueDeletion)
		}
	}
	if _, st := p.admin(nvme.SQE{Opcode: uint8(nvme.AdminDeleteIOCQ), CDW10: uint32(id)}, x); st == nvme.StatusSuccess {
		delete(p.cqs, id)
	}
}

// eventRequest parks an Asynchronous Event Request. The last entry of the queue
// is left for others: where it is in use, nobody learns of its being fetched.
func (p *player) eventRequest() {
	q, x := p.sqs[0], &expected{event: true}
	if p.drain(); !q.room(2) {
		return
	}
	e := nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), NSID: uint32(p.in.u8())}
	if p.model.parked == playAERs {
		x.event, x.errs = false, []nvme.Status{nvme.StatusAsyncEventLimitExceeded}
		p.admin(e, x)
		return
	}
	x.done = func(c nvme.CQE, st nvme.Status) {
		if st == nvme.StatusSuccess {
			p.model.told = append(p.model.told, nvme.AsyncEvent(c.DW0))
		}
	}
	p.submit(q, e, x, true)
	p.model.parked++
	p.told()
}

// abort aborts an event request, nothing, or a command in flight.
func (p *player) abort() {
	var target *expected
	how := p.in.u8()
	for _, key := range slices.Sorted(maps.Keys(p.pending)) {
		if x := p.pending[key]; x.event == (how&1 == 0) {
			target = x
			break
		}
	}
	abort := nvme.Abort{SQID: pick[uint16](&p.in, 0, 1, 9, 0xffff), CID: p.cid + 1000}
	if target != nil {
		abort = nvme.Abort{SQID: target.sq, CID: target.cid}
		target.shake()
	}
	ended := nvme.Status(0xffff)
	if target != nil {
		then := target.done
		target.done = func(c nvme.CQE, st nvme.Status) {
			if ended = st; then != nil {
				then(c, st)
			}
		}
		if target.event {
			target.errs = []nvme.Status{nvme.StatusAbortRequested}
			p.model.parked--
		}
	}
	var e nvme.SQE
	abort.Put(&e)
	c, _ := p.admin(e, new(expected))
	done := c.DW0&nvme.AbortNotDone == 0
	p.poll()
	switch {
	case target == nil && done:
		p.failf("a command that is not there was aborted")
	case target != nil && target.event && (!done || ended != nvme.StatusAbortRequested):
		p.failf("%s: aborted %t, status %v", target.what, done, ended)
	case target != nil && done && ended != nvme.StatusAbortRequested:
		p.failf("%s: aborted, but its status is %v", target.what, ended)
	}
}

func (p *player) format() {
	p.drain()
	e, x := nvme.SQE{NSID: p.nsid()}, new(expected)
	how := p.in.u8()
	f := nvme.FormatNVM{SES: how % 4 % 3}
	s := p.shown[e.NSID]
	switch {
	case e.NSID == nvme.NSIDBroadcast || f.SES > 1:
		x.errs = append(x.errs, nvme.StatusInvalidField)
	case how&0xf0 == 0xf0:
		f.PI = 1
		x.errs = append(x.errs, nvme.StatusInvalidFormat, nvme.StatusInvalidField)
	case how&0xf0 == 0xe0:
		f.LBAF = 15
		x.errs = append(x.errs, nvme.StatusInvalidFormat)
	}
	x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
	if s.readOnly {
		x.errs = append(x.errs, nvme.StatusNamespaceWriteProtected)
	}
	then := func() {}
	if s.d != nil && len(x.errs) == 0 {
		f.LBAF = p.formatOf(e.NSID)
		if s.d.lo < s.d.hi { // the rest is zeroes already
			x.changes = []change{{extent: extent{s.d, s.d.lo, s.d.hi - s.d.lo}}}
		}
		if how&0x08 != 0 {
			then = p.otherFormat(e.NSID, &f)
		}
	}
	f.Put(&e)
	p.admin(e, x)
	then()
}

// formatOf asks which LBA format a namespace has.
func (p *player) formatOf(nsid uint32) uint8 {
	e, x := nvme.SQE{NSID: nsid}, new(expected)
	nvme.Identify{CNS: nvme.CNSNamespace}.Put(&e)
	dat := p.place(&e, nvme.IdentifySize, shapePages)
	p.admin(e, x)
	var id nvme.IdentifyNamespace
	copy(nvme.Bytes(&id), dat.get())
	return id.FLBAS&0xf | id.FLBAS>>5&3<<4
}

// doorbellBuffer configures shadow doorbells.
func (p *player) doorbellBuffer() {
	p.drain()
	e, x := nvme.SQE{}, new(expected)
	at := pick[uint64](&p.in, shadowAt, shadowAt+2*pageSize)
	buffers := nvme.DoorbellBuffer{Shadow: at, EventIndex: at + pageSize}
	bad := func(st nvme.Status) { x.errs = append(x.errs, st, nvme.StatusInvalidField) }
	switch p.in.u8() % 16 {
	case 10:
		buffers.Shadow += 4
		bad(nvme.StatusInvalidPRPOffset)
	case 11:
		buffers.EventIndex += 64
		bad(nvme.StatusInvalidPRPOffset)
	case 12:
		buffers.Shadow = 0
		bad(nvme.StatusInvalidField)
	case 13:
		buffers.EventIndex = nowhere
		bad(nvme.StatusDataTransferError)
	case 14:
		buffers.Shadow = playRegions[2].Address
		bad(nvme.StatusDataTransferError)
	case 15:
		buffers.EventIndex = firmwareAt
		bad(nvme.StatusDataTransferError)
	}
	if p.private {
		x.errs = []nvme.Status{nvme.StatusInvalidOpcode}
	}
	buffers.Put(&e)
	if _, st := p.admin(e, x); st == nvme.StatusSuccess {
		p.shadow = at
	}
}

// unknownAdmin sends an opcode that is not offered.
func (p *player) unknownAdmin() {
	e := nvme.SQE{Opcode: pick[uint8](&p.in, 0x0d, 0x10, 0x11, 0x14, 0x15, 0x18, 0x19, 0x1a, 0x1c, 0x7f, 0x81, 0x84, 0xc0, 0xff), NSID: p.nsid(), CDW10: p.in.u32()}
	x := &expected{errs: []nvme.Status{nvme.StatusInvalidOpcode}}
	if p.in.u8()&7 == 7 {
		e.Opcode = uint8(nvme.AdminIdentify)
		e.CDW10 = uint32(nvme.CNSController)
		e.SetFuse(nvme.FuseFirst)
		x.errs = []nvme.Status{nvme.StatusInvalidField}
	}
	p.admin(e, x)
}
