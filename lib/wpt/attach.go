// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// What a runtime is told of a port: first all there is, then every change in
// order. Whoever calls holds the port's mu, so that nothing overtakes.

// binding is what a port shows, and how its runtime is to wait for work.
type binding struct{ subsystem, poll string }

// pollModes are the words of api.PortBinding as the link has them.
var pollModes = map[string]qpair.PollMode{
	"":                qpair.PollDefault,
	api.PollAdaptive:  qpair.PollAdaptive,
	api.PollBusy:      qpair.PollBusy,
	api.PollInterrupt: qpair.PollInterrupt,
}

// reconcile brings the port to the runtime its configuration asks for, as far
// as that can be done now; it is called again when a runtime comes, goes, or
// gives the port up.
func (p *port) reconcile() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	var want *runtime
	if p.record.Subsystem != "" {
		want = p.broker.runtime(p.record.Runtime)
	}
	switch {
	case p.holder == nil:
		p.settle()
		if want != nil {
			p.attach(want)
		}
	case p.holder == want && p.told == p.record.binding(), p.holder.lost(), p.detaching:
		// As it should be; or it must be gone, or answer, first.
	default:
		p.detach()
	}
	p.publish()
}

// attach gives the port to rt.
func (p *port) attach(rt *runtime) {
	if before := p.told.subsystem; before != "" && before != p.record.Subsystem && p.regs.Page.LoadCC().EN() {
		// The guest enabled the controller while it was being bound to another
		// subsystem: it must not take the new one for the old.
		p.resetFunction()
	}
	p.holder, p.told, p.detaching = rt, p.record.binding(), false
	p.renewPages()
	p.note() // a crash must not make it forget that there may be I/O in flight
	p.unmaps.forget()
	// The table gets new generations, and the page the last of them before the
	// runtime hears of anything: it must not take a part of the table for the whole.
	r := p.regs.Page
	gen := r.MapGen
	regions := p.regions.regions
	atomic.StoreUint64(&r.MapGen, gen+uint64(len(regions)))
	m := qpair.Message{Kind: qpair.MsgAttach, Port: p.id, Gen: gen, Index: pollModes[p.told.poll]}
	if p.mapped {
		m.Flags = qpair.PortMapped
	}
	// Both fit: their limits are below those of the fields.
	_ = qpair.SetName(&m.Name, p.name)
	_ = qpair.SetName(&m.Subsystem, p.told.subsystem)
	p.send(m, p.regs.FD(), p.bells.FD(), p.state.FD(), p.kick)
	for i := range regions {
		gen++
		p.sendMapped(&regions[i], gen)
	}
	for index, vectors := range p.irqs.fds[:vfiouser.IRQMSIX+1] {
		for v, fd := range vectors {
			if fd != noFD {
				p.tellVector(change{vfiouser.IRQ(index), uint32(v)})
			}
		}
	}
	p.log.Info("runtime attached", "runtime", rt.name, "epoch", rt.epoch)
}

// detach asks the holder to give the port up.
func (p *port) detach() {
	p.detaching, p.detachedAt = true, time.Now()
	p.expect()
	p.send(qpair.Message{Kind: qpair.MsgDetach, Port: p.id})
}

// detached is a MsgDetached of rt.
func (p *port) detached(rt *runtime) error {
	p.mu.Lock()
	asked := p.holder != rt || p.detaching
	p.mu.Unlock()
	if !asked {
		return fmt.Errorf("it gave up port %s unasked", p.name)
	}
	p.released(rt)
	return nil
}

// released is what follows when rt has given the port up, or is gone.
func (p *port) released(rt *runtime) {
	p.mu.Lock()
	held := p.holder == rt
	if held {
		p.holder, p.detaching = nil, false
		if !p.closed {
			p.note()
		}
		p.notify()
	}
	p.mu.Unlock()
	if held {
		p.reconcile()
	}
}

// abandoned is what follows when the link of rt has ended: it may still write.
func (p *port) abandoned(rt *runtime) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holder == rt && !p.closed {
		level := slog.LevelInfo
		if p.regs.Page.LoadCC().EN() {
			level = slog.LevelWarn // a guest waits
		}
		p.log.Log(context.Background(), level, "runtime lost", "runtime", rt.name, "epoch", rt.epoch)
		p.publish()
	}
}

// statusChanged is a MsgStatus of rt.
func (p *port) statusChanged(rt *runtime) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holder == rt && !p.closed {
		p.acknowledged()
		p.notify()
		p.publish()
	}
}

// send queues a message for the holder. A runtime that cannot be told
// everything in order must come anew.
func (p *port) send(m qpair.Message, fds ...int) {
	if p.holder == nil {
		return
	}
	if err := p.holder.out.add(m, nil, fds...); err != nil {
		p.holder.fail(err)
	}
}

// makeRoom waits until the holder can be told more. One that does not read its
// link is given up.
func (p *port) makeRoom() {
	p.mu.Lock()
	rt := p.holder
	p.mu.Unlock()
	if rt != nil && !rt.out.waitRoom(p.broker.limits.room) {
		rt.fail(errNotReading)
	}
}

// nextMapGen counts a change of the region table.
func (p *port) nextMapGen() uint64 { return atomic.AddUint64(&p.regs.Page.MapGen, 1) }

// tellMapped passes on a new region.
func (p *port) tellMapped(r *region) { p.sendMapped(r, p.nextMapGen()) }

// sendMapped sends a region as generation gen of the table.
func (p *port) sendMapped(r *region, gen uint64) {
	m := qpair.Message{
		Kind: qpair.MsgMap, Port: p.id, Gen: gen,
		Addr: r.addr, Size: r.size, Offset: r.offset, Flags: r.flags,
	}
	if r.fd == noFD {
		p.send(m)
	} else {
		p.send(m, r.fd)
	}
}

// tellUnmapped passes on that regions are gone, and returns the number of the
// last message, which is answered; 0 if nobody needs to be waited for.
func (p *port) tellUnmapped(gone []region) (last uint64) {
	for i := range gone {
		gen := p.nextMapGen()
		if p.holder == nil {
			continue
		}
		last = p.unmaps.next()
		p.expect()
		if len(p.unmaps.open) > maxUnmaps {
			p.holder.fail(errNotAnswering)
		}
		p.send(qpair.Message{
			Kind: qpair.MsgUnmap, Port: p.id, Gen: gen, ID: last,
			Addr: gone[i].addr, Size: gone[i].size,
		})
	}
	return last
}

// tellVector passes on a vector's eventfd, or that it has none.
func (p *port) tellVector(v change) {
	if v.index > vfiouser.IRQMSIX {
		return // it is never fired
	}
	m := qpair.Message{Kind: qpair.MsgVector, Port: p.id, Index: uint32(v.index), Start: v.vector}
	if fd := p.irqs.deliver(v.index, v.vector); fd == noFD {
		p.send(m)
	} else {
		p.send(m, fd)
	}
}

// unmapWaits are the MsgUnmap of a port that wait for their answers, which come
// in any order.
type unmapWaits struct {
	sent  uint64              // the last number
	open  map[uint64]struct{} // not answered
	since time.Time           // when open was empty, or got smaller, last
	late  uint64              // the highest that was not answered in time
}

// maxUnmaps is how many answers a runtime may owe.
const maxUnmaps = 4096

func (w *unmapWaits) next() uint64 {
	if w.open == nil {
		w.open = make(map[uint64]struct{})
	}
	if len(w.open) == 0 {
		w.since = time.Now()
	}
	w.sent++
	w.open[w.sent] = struct{}{}
	return w.sent
}

// forget is for a new holder, which owes nothing.
func (w *unmapWaits) forget() { w.open, w.late = nil, 0 }

// answered reports whether all up to id are.
func (w *unmapWaits) answered(id uint64) bool {
	for n := range w.open {
		if n <= id {
			return false
		}
	}
	return true
}

// unmapped is a MsgUnmapped of rt.
func (p *port) unmapped(rt *runtime, id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holder == rt {
		delete(p.unmaps.open, id)
		p.unmaps.since = time.Now()
		p.notify()
	}
}

// awaitUnmapped waits for the answers to all MsgUnmap up to id, or until the
// runtime is gone, for limits.unmap at most. While one is late it does not wait
// again, since the client's patience is for all messages it has sent together.
// It is called without mu.
func (p *port) awaitUnmapped(id uint64, done <-chan struct{}) {
	if id == 0 {
		return
	}
	p.mu.Lock()
	rt := p.holder
	behind := !p.unmaps.answered(p.unmaps.late)
	p.mu.Unlock()
	if rt == nil || behind {
		return
	}
	over := func() bool { return p.holder != rt || p.unmaps.answered(id) }
	if p.wait(over, p.broker.limits.unmap, done) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holder == rt && !p.unmaps.answered(id) {
		p.unmaps.late = id
	}
}
