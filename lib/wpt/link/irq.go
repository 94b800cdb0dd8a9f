// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

// vector is one interrupt of a port: the client's eventfd, or none for a
// moment, when an interrupt is kept pending. Pollers fire it, Serve sets it.
type vector struct {
	fd      atomic.Int32 // own while there is an eventfd; 0: none
	pending atomic.Bool
	// own is a descriptor plus 1, 0 for none. It is the same for all eventfds of
	// the vector, one after the other: a poller that fires just now fires the one
	// or the other, never a stranger's file.
	own int32
}

// fire interrupts the guest.
func (v *vector) fire() {
	fd := v.fd.Load()
	if fd == 0 {
		v.pending.Store(true)
		// The eventfd may have come in between.
		if fd = v.fd.Load(); fd == 0 || !v.pending.Swap(false) {
			return
		}
	}
	one := [8]byte{1}
	// EAGAIN: the counter is at its limit, so the interrupt is pending anyway.
	_, _ = unix.Write(int(fd-1), one[:])
}

// set takes over fd and makes it the vector's eventfd, or none if it is negative.
func (v *vector) set(fd int) error {
	switch {
	case fd < 0:
		v.fd.Store(0)
		return nil
	case v.own == 0:
		v.own = int32(fd + 1)
	default:
		err := unix.Dup3(fd, int(v.own-1), unix.O_CLOEXEC)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	v.fd.Store(v.own)
	if v.pending.Swap(false) {
		v.fire()
	}
	return nil
}

// close gives up the eventfd; no poller fires any more.
func (v *vector) close() {
	v.fd.Store(0)
	if v.own > 0 {
		unix.Close(int(v.own - 1))
		v.own = 0
	}
}

// fire sends the interrupt of a completion queue to the guest in the way it has
// enabled.
//
// INTx is fired once and then not again until the client has unmasked it, as
// VFIO_IRQ_INFO_AUTOMASKED promises. A client takes it for ended, and lowers the
// line, when the guest accesses a register; a guest with shadow doorbells has to
// be asked to do that. An interrupt that comes when all completions are taken
// already is therefore not fired: nothing might ever end it.
func (p *Port) fire(cq *qpair.CQ) {
	n, on := cq.Vector()
	if !on {
		return
	}
	regs := p.regs.Page
	switch qpair.IRQMode(atomic.LoadUint32(&regs.IRQMode)) {
	case qpair.IRQMSIX:
		p.vectors[n].fire()
	case qpair.IRQINTx:
		if atomic.LoadUint32(&regs.INTM)&1 == 0 && cq.ArmHead() && !p.raised.Swap(true) {
			p.intx.fire()
		}
	}
}

// masks is what keeps interrupts from a guest.
type masks struct {
	intm, mode uint32
	unmasks    uint64
}

// followMasks fires again when the guest has ended, unmasked or enabled an
// interrupt while completions are unread: the INTx line is level-triggered.
func (p *Port) followMasks() int {
	regs := p.regs.Page
	now := masks{atomic.LoadUint32(&regs.INTM), atomic.LoadUint32(&regs.IRQMode), atomic.LoadUint64(&regs.Unmasks)}
	if now == p.masks {
		return 0
	}
	if now.unmasks != p.masks.unmasks || now.mode != p.masks.mode {
		p.raised.Store(false)
	}
	p.masks = now
	p.refire()
	return 1
}

// refire interrupts the guest again wherever it has unread completions. It runs
// on the home poller.
func (p *Port) refire() {
	q := p.queues
	if q == nil || p.phase != enabled {
		return
	}
	q.admin.post(func() {
		for _, l := range q.lanes {
			l.post(l.refire)
		}
	})
}

func (l *lane) refire() {
	if l.suspended || l.dead {
		return
	}
	for _, cq := range l.cqs {
		if cq.Unread() {
			l.port.fire(cq.CQ)
		}
	}
}

// setVector follows a MsgVector.
//
// The guest did not wait for the message: completions may have been published
// since it changed its eventfds and have gone to the one before, where nobody
// looks any more. So those that are unread interrupt again.
func (p *Port) setVector(m *message) {
	fd := -1
	if len(m.fds) == 1 {
		fd = m.fds[0]
		// A client could have made it blocking; a poller must never wait for one.
		if err := unix.SetNonblock(fd, true); err != nil {
			p.log.Warn("interrupt without a usable eventfd", "err", err)
		}
	}
	v := &p.intx
	if m.Index == irqMSIX {
		if m.Start >= qpair.Vectors {
			qpair.CloseFDs(m.fds)
			return
		}
		v = &p.vectors[m.Start]
	}
	if err := v.set(fd); err != nil {
		p.log.Error("interrupt without its eventfd", "err", err)
	}
	if m.Index == irqINTx {
		p.raised.Store(false) // what was raised went to the one before
	}
	if fd >= 0 {
		p.homePost(p.refire)
	}
}

// VFIO PCI interrupt indexes.
const (
	irqINTx = 0
	irqMSIX = 2
)
