// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/uring"
)

// ErrStopped says that a poller has ended.
var ErrStopped = errors.New("poller has stopped")

// Post has f run on the poller, after everything posted before it. It may be
// called from any goroutine and never blocks. After Stop it returns ErrStopped
// and f does not run.
func (p *Poller) Post(f func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return ErrStopped
	}
	p.deliver(f)
	return nil
}

// Do runs f on the poller and waits for its end, also where that is a fault in
// guest memory. It must not be called on the poller itself.
func (p *Poller) Do(f func()) error {
	done := make(chan struct{})
	if err := p.Post(func() { defer close(done); f() }); err != nil {
		return err
	}
	<-done
	return nil
}

// Stop ends the loop after everything posted before it has run, and waits.
// Sources have been removed and queues closed by their owners. A second Stop
// only waits.
func (p *Poller) Stop() {
	p.mu.Lock()
	if !p.stopping {
		p.deliver(func() { p.stop = true })
		p.stopping = true
	}
	p.mu.Unlock()
	<-p.done
}

// deliver puts f into the inbox and wakes the loop if it sleeps. The loop sets
// sleeping before it looks at posted, deliver sets posted before it looks at
// sleeping: one of them sees. Called with mu held, which the loop takes to
// find what stops it: nobody writes to the eventfd after it is closed.
func (p *Poller) deliver(f func()) {
	p.inbox = append(p.inbox, f)
	p.posted.Store(true)
	if p.sleeping.Load() {
		// EAGAIN means that the counter is full: the loop is awake.
		_, _ = unix.Write(p.wake, one)
	}
}

// Name returns the poller's name.
func (p *Poller) Name() string { return p.cfg.Name }

// CPU returns the CPU the poller is pinned to, or -1.
func (p *Poller) CPU() int { return max(p.cfg.CPU, -1) }

// Mode returns what the poller was started to do when idle.
func (p *Poller) Mode() Mode { return p.cfg.Mode }

// The methods below are for the poller's own goroutine: sources, continuations
// and posted functions.

// Ring returns the poller's io_uring, or nil and the reason why it has none.
func (p *Poller) Ring() (*uring.Ring, error) { return p.ring, p.noRing }

// SetFence keeps fd open in the ring for as long as any of its I/O is in
// flight, in place of the fence before; a negative fd is none. The
// write end of a pipe kept so reports to its reader that the kernel has ended
// all I/O of this process, which the end of the process does not.
func (p *Poller) SetFence(fd int) error {
	if p.ring == nil {
		return nil
	}
	if err := p.ring.UpdateFile(fenceSlot, max(fd, -1)); err != nil {
		return fmt.Errorf("registering the fence: %w", err)
	}
	return nil
}

// Add gives the poller a source to serve, on behalf of the current share.
func (p *Poller) Add(s Source) { p.current.Add(s) }

// Remove takes a source away.
func (p *Poller) Remove(x Source) {
	if p.house.sources.remove(x) {
		return
	}
	for _, s := range p.shares.seats {
		if s.who.sources.remove(x) {
			return
		}
	}
}

// Prefer adds n (1 or -1) sources that want the poller to be in mode. As long as
// there are any, the poller is busy if one wants that, else adaptive if one
// wants that; without any it is in the mode it was started with.
func (p *Poller) Prefer(mode Mode, n int) {
	p.wants[mode] += n
	p.mode = p.cfg.Mode
	for _, m := range []Mode{Interrupt, Adaptive, Busy} {
		if p.wants[m] > 0 {
			p.mode = m
		}
	}
}

// Watch has events on fd wake the poller. It is edge-triggered: an eventfd
// needs no read, and several pollers can watch the same one.
func (p *Poller) Watch(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watching fd %d: %w", fd, err)
	}
	return nil
}

// Unwatch ends a Watch, before fd is closed.
func (p *Poller) Unwatch(fd int) {
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// Defer has r run after what runs now has returned, on behalf of the current
// share: in this turn, or in its next if there is much to run.
func (p *Poller) Defer(r Runnable) { p.current.Defer(r) }

// Touch says that what follows accesses guest memory on behalf of t, until the
// next Touch; it returns the one before, to be restored. If the access faults,
// t is told: what it was doing has not been done, or in part.
func (p *Poller) Touch(t Toucher) Toucher {
	before := p.touching
	p.touching = t
	return before
}

// holds reports whether addr is guest memory of a source, and notes which.
func (p *Poller) holds(addr uintptr) bool {
	for s := range p.sources {
		if s.Holds(addr) {
			p.faulty = s
			return true
		}
	}
	return false
}

// afterFault tells whom it concerns that guest memory faulted.
func (p *Poller) afterFault() {
	p.current = p.house
	if t := p.touching; t != nil {
		p.touching = nil
		t.Faulted()
	}
	p.faulty.Fault()
	p.faulty = nil
}
