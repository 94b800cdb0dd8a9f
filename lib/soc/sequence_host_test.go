// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

// What a host does beside sending commands, and what is done under it.

// Ways to reset the controller.
const (
	resetEN         = iota
	resetDevice     // DEVICE_RESET
	resetFLR        // function level reset
	resetShutdown   // a shutdown, then EN
	resetAtOnce     // EN cleared and set again without waiting
	resetAbrupt     // an abrupt shutdown that nobody waits for
	resetConnection // the machine goes, and another comes
	resets
)

// reset resets the controller with whatever is in flight and enables it again.
func (p *player) reset(how int, entries uint32) {
	p.logf("reset %d, %d entries", how, entries)
	idle := func(c nvme.CSTS) bool { return c == 0 }
	cc := func(shn uint8) uint32 { return uint32(enabledCC.WithSHN(shn)) }
	switch how {
	case resetDevice, resetFLR:
		var err error
		if how == resetDevice {
			err = p.client.Reset()
		} else {
			at := p.client.Capability(0x10) + 8
			err = p.client.WriteConfig(at+1, 1, 0x80)
		}
		if err != nil {
			p.failf("reset: %v", err)
		}
		p.master(p.t)
		p.waitStatus(p.t, "the end of the reset", idle)
	case resetShutdown:
		p.write32(nvme.RegCC, cc(nvme.SHNNormal))
		p.waitStatus(p.t, "shutdown", func(c nvme.CSTS) bool { return c.SHST() == nvme.SHSTComplete || c.CFS() })
		fallthrough
	case resetEN:
		p.write32(nvme.RegCC, 0)
		p.waitStatus(p.t, "not ready", idle)
	case resetAtOnce:
		p.write32(nvme.RegCC, 0)
	case resetAbrupt:
		p.write32(nvme.RegCC, cc(2))
		p.write32(nvme.RegCC, 0)
		p.waitStatus(p.t, "not ready", idle)
	case resetConnection:
		p.connect(p.t)
	}
	if how == resetAtOnce || how == resetConnection {
		p.enable(entries)
		return
	}
	all := p.released(func(*expected) bool { return true })
	p.enable(entries)
	p.stillReleased(all, "a reset")
}

func (p *player) resetOp() {
	how := int(p.in.u8()) % (4 * resets)
	if how == 4*resets-1 {
		how = resetConnection // slower than the others, and rarer
	}
	p.reset(how%resetConnection, pick[uint32](&p.in, 16, 4, 3, 64, 2))
}

// enableBadly enables the controller with what it cannot do: a fatal status.
func (p *player) enableBadly() {
	p.drain()
	p.write32(nvme.RegCC, 0)
	p.waitStatus(p.t, "not ready", func(c nvme.CSTS) bool { return c == 0 })
	cc, aqa := uint32(enabledCC), uint32(nvme.MakeAQA(15, 15))
	switch p.in.u8() % 5 {
	case 0:
		cc |= 1 << 7 // MPS
	case 1:
		cc |= 1 << 4 // CSS
	case 2:
		cc |= 1 << 11 // AMS
	case 3:
		aqa = 15
	case 4:
		aqa = uint32(nvme.MakeAQA(1024, 15))
	}
	p.logf("enable with CC %#x, AQA %#x", cc, aqa)
	p.write32(nvme.RegAQA, aqa)
	p.write32(nvme.RegCC, cc)
	p.waitStatus(p.t, "fatal status", nvme.CSTS.CFS)
	p.reset(resetEN+int(p.in.u8()%2), 16)
}

// settle waits until what the daemons do by themselves is done: each command is
// a turn of the poller at least.
func (p *player) settle() {
	for range 4 {
		var e nvme.SQE
		nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}.Put(&e)
		p.sync(p.sqs[0], e, new(expected))
	}
	p.told()
}

// namespaceOp shows, hides or protects a namespace.
func (p *player) namespaceOp() {
	nsid, how := pick[uint32](&p.in, 7, 7, 1, 2, 3), p.in.u8()
	s := p.shown[nsid]
	if how&1 != 0 || s.d == nil || s.readOnly {
		p.drain() // or what is to be refused would not be
	}
	for _, x := range p.pending {
		if !x.event {
			x.shake()
		}
	}
	d, readOnly := s.d, how&4 != 0
	if d == nil {
		if d = p.hidden(); d == nil {
			return
		}
	} else {
		p.logf("hide namespace %d", nsid)
		p.hide(nsid)
	}
	if s.d == nil || how&2 != 0 {
		p.logf("show %s as namespace %d, read-only %t", d.name, nsid, readOnly)
		p.show(nsid, d, readOnly)
	}
	p.model.namespace(nsid)
	p.settle()
}

// hidden returns a disk that is in no namespace, or nil.
func (p *player) hidden() *disk {
	for _, d := range p.disks {
		if !slices.ContainsFunc(slices.Collect(maps.Values(p.shown)), func(s showing) bool { return s.d == d }) {
			return d
		}
	}
	return nil
}

// mappingOp maps or unmaps memory of the guest, with commands in flight.
func (p *player) mappingOp() {
	i, how := int(p.in.u8())%len(playRegions), p.in.u8()
	if how&1 != 0 {
		p.drain()
	}
	for _, x := range p.pending {
		if x.region {
			x.shake()
		}
	}
	if p.private {
		return
	}
	p.logf("toggle region %d", i)
	p.toggle(p.t, i)
	if how&2 != 0 && !p.mapped[i] {
		all := p.released(func(x *expected) bool { return x.region && x.inRegion(i) })
		p.drain()
		p.stillReleased(all, "its region was unmapped")
	}
}

// inRegion reports whether all of a Read's data lies in a further region.
func (x *expected) inRegion(i int) bool {
	m := playRegions[i]
	return x.into.prp1 >= m.Address && x.into.prp1+uint64(len(x.into.get())) <= m.Address+m.Size
}

// badTail writes a tail that cannot be: the queue is stopped, with an event.
func (p *player) badTail() {
	q := p.ioQueue()
	p.drain()
	v := pick[uint32](&p.in, q.entries, q.entries+1, 0xffff, 0xffffffff, 1<<16)
	if v < q.entries {
		return
	}
	p.logf("tail %#x of queue %d", v, q.id)
	p.force(nvme.SQDoorbell(q.id, 0), v)
	q.odd = true
	p.model.event(nvme.EventInvalidDoorbellValue)
	p.settle()
}

// restart stops leap-soc and starts it again, rarely: it takes its time. Nothing
// changes for the host, whatever is in flight.
func (p *player) restart() {
	if p.in.u8()%4 != 0 {
		return
	}
	for _, q := range p.sqs {
		if q.odd {
			return
		}
	}
	for _, q := range p.cqs {
		if q.odd {
			return
		}
	}
	p.logf("restart")
	p.r.stopSoc()
	p.r.startSoc()
}

// force writes a doorbell, the shadow if that is in use.
func (p *player) force(offset uint64, v uint32) {
	if p.shadow != 0 && offset >= nvme.SQDoorbell(1, 0) {
		atomic.StoreUint32(p.word(p.shadow+offset-nvme.RegDoorbells), v)
	}
	p.write32(offset, v)
}

// badHead writes a completion queue head that cannot be: when the next result
// comes, the queue is stopped, with an event.
func (p *player) badHead() {
	q := p.ioQueue()
	p.drain()
	cq := p.cqs[q.cq]
	v := pick(&p.in, cq.entries, 0xffffffff, 1<<16)
	p.logf("head %#x of queue %d", v, cq.id)
	p.force(nvme.CQDoorbell(cq.id, 0), v)
	p.put(q, nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1}, new(expected))
	p.ringSQ(q)
	delete(p.pending, uint32(q.id)<<16|uint32(p.cid)) // never to be heard of again
	cq.odd = true
	for _, other := range p.sqs {
		other.odd = other.odd || other.cq == cq.id
	}
	p.model.event(nvme.EventInvalidDoorbellValue)
	p.settle()
}

// strayWrites writes doorbells of queues that there are not, and registers that
// do not take it.
func (p *player) strayWrites() {
	switch p.in.u8() % 4 {
	case 0:
		id := pick[uint16](&p.in, 6, 9, 100, 126, 128, 200, 1000, 1535)
		p.write32(nvme.SQDoorbell(id, 0), p.in.u32())
		p.write32(nvme.CQDoorbell(id, 0), p.in.u32())
	case 1:
		at := pick[uint64](&p.in, nvme.RegCAP, nvme.RegVS, nvme.RegCSTS, nvme.RegAQA, nvme.RegASQ, nvme.RegACQ, nvme.RegCMBSZ, nvme.RegCRTO, nvme.RegINTMS, nvme.RegINTMC, nvme.RegNSSR, 0x800)
		p.write32(at, p.in.u32())
	case 2:
		b := make([]byte, pick(&p.in, 1, 2, 3, 5, 16, 0))
		_ = p.client.PostRegion(vfiouser.RegionBAR0, uint64(p.in.u16()), b) // zeroes: at worst a doorbell
		return
	case 3:
		for _, q := range p.sqs { // a kick without news
			if !q.odd && p.shadow == 0 {
				p.write32(nvme.SQDoorbell(q.id, 0), q.rung)
			}
		}
	}
	p.logf("stray writes")
}

// wild does what leaves nothing certain but that a reset helps, and that nobody
// else suffers.
func (p *player) wild() {
	q := p.ioQueue()
	p.drain()
	how := p.in.u8()
	p.logf("wild %d", how%10)
	cq, admin := p.cqs[q.cq], p.sqs[0]
	read := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, PRP1: sqAt(q.id), PRP2: cqAt(q.cq)}
	nvme.RW{NLB: 15}.Put(&read) // 8 KiB
	ring := func(n uint32) { p.force(nvme.SQDoorbell(q.id, 0), (q.tail+n)%q.entries) }
	push := func(n int, e nvme.SQE) {
		for range n {
			copy(p.bytes(p.t, q.addr+uint64(q.tail)*nvme.SQESize, nvme.SQESize), nvme.Bytes(&e))
			q.tail = (q.tail + 1) % q.entries
		}
		ring(0)
	}
	raw := func(fields interface{ Put(*nvme.SQE) }, addr uint64) { // an admin command nobody waits for
		e := nvme.SQE{PRP1: addr, CID: 0xf00d}
		fields.Put(&e)
		copy(p.bytes(p.t, admin.addr+uint64(admin.tail)*nvme.SQESize, nvme.SQESize), nvme.Bytes(&e))
		admin.tail = (admin.tail + 1) % admin.entries
		p.write32(nvme.SQDoorbell(0, 0), admin.tail)
		time.Sleep(100 * time.Microsecond)
	}
	switch how % 10 {
	case 0: // backwards: all that has been is fetched again
		ring(q.entries - 1)
	case 1:
		p.force(nvme.SQDoorbell(0, 0), 0xfffff)
	case 2:
		p.force(nvme.CQDoorbell(0, 0), 0xfffff)
		raw(nvme.Identify{CNS: nvme.CNSController}, arenaAt)
	case 3: // the queues are where their commands read to
		push(int(q.entries)-1, read)
	case 4: // one identifier many times
		read.PRP1, read.PRP2 = arenaAt, arenaAt+pageSize
		push(int(q.entries)-1, read)
	case 5: // shadow doorbells that are one page, or a queue
		to := pick[uint64](&p.in, shadowAt, sqAt(q.id), cqAt(cq.id))
		raw(nvme.DoorbellBuffer{Shadow: shadowAt, EventIndex: to}, shadowAt)
		push(2, read)
	case 6: // queues over one another, over no memory, over memory that cannot be written
		for i, at := range []uint64{q.addr, cq.addr, adminSQAt, nowhere, playRegions[2].Address, arenaAt} {
			id := uint16(7 + i)
			raw(nvme.CreateCQ{QID: id, QSIZE: 3, PC: true}, at)
			raw(nvme.CreateSQ{QID: id, QSIZE: 3, PC: true, CQID: id}, at)
			p.force(nvme.SQDoorbell(id, 0), 3)
		}
		push(1, read)
	case 7: // memory goes under a queue
		push(1, read)
		ram := p.mem.Mappings()[0]
		if err := p.client.Unmap(ram.Address, ram.Size); err != nil {
			p.failf("unmapping: %v", err)
		}
		ring(1)
		time.Sleep(50 * time.Microsecond)
		if err := p.client.Map(ram); err != nil {
			p.failf("mapping: %v", err)
		}
	case 8: // a head past the tail, which need not be found out
		p.force(nvme.CQDoorbell(cq.id, 0), (cq.head+1)%cq.entries)
		push(1, read)
	case 9: // completions that are never taken
		push(int(q.entries)-1, read)
		ring(q.entries - 2)
	}
	time.Sleep(time.Duration(p.in.u8()) * time.Microsecond)
	for _, d := range p.disks {
		d.forget()
	}
	p.pending = make(map[uint32]*expected)
	p.reset(int(how/16)%resetConnection, 16)
	p.wipe(false)
}
