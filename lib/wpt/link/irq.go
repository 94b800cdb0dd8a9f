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
	fd      atomic.Int32 // the eventfd plus 1; 0: none
	pending atomic.Bool
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

// set makes fd (or none, if negative) the vector's eventfd and returns the one
// before, to be closed when no poller can be using it any more.
func (v *vector) set(fd int) (old int) {
	old = int(v.fd.Swap(int32(fd+1))) - 1
	if fd >= 0 && v.pending.Swap(false) {
		v.fire()
	}
	return old
}

// close gives up the eventfd.
func (v *vector) close() {
	if old := v.set(-1); old >= 0 {
		unix.Close(old)
	}
	v.pending.Store(false)
}

// fire sends interrupt n to the guest in the way it has enabled.
func (p *Port) fire(n uint32) {
	regs := p.regs.Page
	switch qpair.IRQMode(atomic.LoadUint32(&regs.IRQMode)) {
	case qpair.IRQMSIX:
		p.vectors[n].fire()
	case qpair.IRQINTx:
		if atomic.LoadUint32(&regs.INTM)&1 == 0 {
			p.intx.fire()
		}
	}
}

// followMasks fires INTx again when the guest has ended or unmasked an
// interrupt while completions are unread: the line is level-triggered.
func (p *Port) followMasks() int {
	regs := p.regs.Page
	intm, unmasks := atomic.LoadUint32(&regs.INTM), atomic.LoadUint64(&regs.Unmasks)
	if intm == p.intm && unmasks == p.unmasks {
		return 0
	}
	p.intm, p.unmasks = intm, unmasks
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
	for _, cq := range l.cqs {
		if n, on := cq.Vector(); on && cq.Unread() {
			l.port.fire(n)
		}
	}
}

// setVector follows a MsgVector; it closes the fd before when all pollers have
// passed a turn. It must not be called on a poller.
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
	old := v.set(fd)
	if fd >= 0 {
		p.homePost(p.refire)
	}
	if old < 0 {
		return
	}
	p.barrier()
	unix.Close(old)
}

// barrier waits until every poller that may serve the port has finished the
// turn it is in.
func (p *Port) barrier() {
	for _, q := range p.others {
		_ = q.Do(func() {})
	}
	var private = make(chan struct{})
	p.homePost(func() {
		if p.private != nil {
			_ = p.private.Post(func() { close(private) })
			return
		}
		close(private)
	})
	<-private
}

// VFIO PCI interrupt indexes.
const (
	irqINTx = 0
	irqMSIX = 2
)
