// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package poller is the loop that serves queues: one goroutine locked to one
// OS thread, with its own io_uring and its own epoll set.
//
// A turn of the loop, in this order:
//
//  1. functions posted from other goroutines (Post) run
//  2. every Source looks for work and serves at most a batch of it
//  3. deferred continuations run (Defer), at most a batch: bounded stack, no
//     re-entry
//  4. operations queued on the ring are submitted with one system call, and
//     completions reaped; their continuations run
//
// Sources and continuations belong to Shares: whoever competes for the poller has
// one. While several have work, each gets a turn of its own of steps 2 and 3, and
// of the system call, and the time of those turns is what they share; see
// share.go.
//
// When a turn finds nothing, the poller spins for a moment, then arms every
// source (so that the next event wakes it), looks once more and sleeps in
// epoll. Everything a poller owns is used by its goroutine only: no locks.
//
// Sources touch guest memory. The loop runs in dma.Guarded: memory that a
// client takes away costs the source it belongs to, not the process.
package poller

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/uring"
)

// Mode says what a poller does when it finds no work.
type Mode uint8

// Modes of leap-soc run --poll.
const (
	Adaptive  Mode = iota // spin for SpinTime, then sleep until woken
	Busy                  // spin for ever
	Interrupt             // sleep at once
)

// String returns the mode as the command line spells it.
func (m Mode) String() string {
	switch m {
	case Adaptive:
		return "adaptive"
	case Busy:
		return "busy"
	case Interrupt:
		return "interrupt"
	}
	return "invalid"
}

// ParseMode reads a mode as the command line spells it.
func ParseMode(s string) (Mode, error) {
	for m := Adaptive; m <= Interrupt; m++ {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, fmt.Errorf("poll mode %q: not one of adaptive, busy, interrupt", s)
}

const (
	// SpinTime is how long an adaptive poller looks for work before it sleeps.
	// Waking a thread costs some 11 to 13 us each way, so spinning for a few
	// times that wins at low queue depth and costs an idle machine nothing.
	SpinTime = 50 * time.Microsecond
	// descheduled: a turn without work that takes this long means that another
	// thread wanted the CPU. Spinning on would only take it away again.
	descheduled = 20 * time.Microsecond
	// firstLook and lastLook bound the sleep between two looks at a source
	// that cannot wake the poller.
	firstLook = 50 * time.Microsecond
	lastLook  = time.Millisecond

	// longSleep is a sleep after which the next is taken to be as long: letting
	// go of the processor is worth its cost then.
	longSleep = 500 * time.Microsecond

	ringEntries = 256
	maxInFlight = 4096
	maxDeferred = 1024
	fenceSlot   = 0
)

// Wake says how a source that has been armed announces work.
type Wake uint8

// Answers of Source.Arm.
const (
	WakeEvent Wake = iota // by a watched file descriptor: the poller may sleep
	WakeLook              // not at all: the poller must look, once a millisecond
	WakeNow               // there is work already
)

// Source is what a poller serves. All methods are called on the poller.
type Source interface {
	// Poll serves what is ready, at most a batch, and returns how much it did.
	// Between two things of some length it asks Spent whether to go on.
	Poll() int
	// Arm prepares for sleep: it asks for notification of the next work and
	// says whether one will come.
	Arm() Wake
	// Holds reports whether addr is guest memory of this source.
	Holds(addr uintptr) bool
	// Fault tells the source that access to its guest memory faulted. It fails
	// the guest's controller and does not touch that memory again.
	Fault()
}

// Runnable is a continuation.
type Runnable interface{ Run() }

// Toucher is work that accesses guest memory outside a Source's own rings; see
// Touch.
type Toucher interface{ Faulted() }

// Config describes a poller.
type Config struct {
	Name string
	CPU  int // pin the thread to this CPU; negative: anywhere
	Mode Mode
	// Fence is the descriptor that keeps the runtime's predecessor fence open
	// while any I/O of this ring is in flight; negative: none. It stays the
	// caller's.
	Fence int
	// NoRing makes a poller without io_uring, as on kernels that have none.
	NoRing bool
}

// Poller is a running loop.
type Poller struct {
	cfg   Config
	epoll int
	wake  int // eventfd
	done  chan struct{}

	mu       sync.Mutex
	inbox    []func()
	posted   atomic.Bool // inbox may hold something
	sleeping atomic.Bool
	stopping bool
	started  time.Time
	fake     func() int64 // the clock of a test; nil: there is none
	fakeOwn  func() int64 // and its ownTime
	load     load

	// Owned by the loop.
	ring     *uring.Ring
	noRing   error          // why there is no ring
	house    *Share         // of what serves nobody in particular; not among shares
	shares   roster[*Share] // of those who have equal parts
	all      bool           // the next turn looks at everybody
	current  *Share
	mode     Mode // in force now; see Prefer
	wants    [Interrupt + 1]int
	batch    []func() // the inbox being run, from next on
	next     int
	touching Toucher
	faulty   Source // whose memory faulted
	idle     int64  // since when there was no work, as Now; 0 while there is
	idleTurn int64  // when the last turn without work ended
	look     time.Duration
	slow     bool // the last sleep was long
	stop     bool
	now      int64 // see Now; 0: to be read
	ticked   int64 // when it was read last
	busy     int64 // since when there has been work, as Now; 0: there was none, or none that asked

	// How time is shared; see Share.
	worker  *Share // that had work last
	rivals  int    // not 0: time is measured, for as many of its turns
	floor   int64  // least that one has had of those that have work; others begin with it
	began   int64  // of the turn, as Now; 0: it has done nothing yet
	leveled int64  // when the last pass ended, as Now
	asked   int64  // when ownTime was asked for, as Now; 0: not since the last sleep
	own     int64  // what it was

	events [64]unix.EpollEvent
	woken  [8]byte // read from wake
}

// one is what is written to an eventfd.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// newPoller returns a poller whose loop does not run.
func newPoller(cfg Config) *Poller {
	p := &Poller{cfg: cfg, mode: cfg.Mode, done: make(chan struct{}), started: time.Now()}
	p.house = &Share{p: p}
	p.current = p.house
	return p
}

// Start makes a poller and starts its loop.
func Start(cfg Config) (*Poller, error) {
	p := newPoller(cfg)
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("starting poller %s: epoll: %w", cfg.Name, err)
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(p.epoll)
		return nil, fmt.Errorf("starting poller %s: eventfd: %w", cfg.Name, err)
	}
	ready := make(chan error)
	go p.main(ready)
	if err := <-ready; err != nil {
		<-p.done
		return nil, fmt.Errorf("starting poller %s: %w", cfg.Name, err)
	}
	return p, nil
}

// main is the poller's goroutine.
func (p *Poller) main(ready chan<- error) {
	// The thread ends with the goroutine: it has an affinity of its own.
	runtime.LockOSThread()
	defer close(p.done)
	defer unix.Close(p.epoll)
	defer unix.Close(p.wake)
	if err := p.prepare(); err != nil {
		p.closeRing()
		ready <- err
		return
	}
	ready <- nil
	for !p.stop {
		if _, faulted := dma.Guarded(p.holds, p.loop); faulted {
			p.afterFault()
		}
	}
	p.closeRing()
}

// prepare sets up the thread, the ring and the epoll set.
func (p *Poller) prepare() error {
	if p.cfg.CPU >= 0 {
		var set unix.CPUSet
		set.Set(p.cfg.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pinning to CPU %d: %w", p.cfg.CPU, err)
		}
	}
	if err := p.Watch(p.wake); err != nil {
		return err
	}
	if p.cfg.NoRing {
		p.noRing = uring.ErrUnavailable
		return nil
	}
	ring, err := uring.New(uring.Config{Entries: ringEntries, CQEntries: maxInFlight, FixedFiles: 8})
	if errors.Is(err, uring.ErrUnavailable) {
		p.noRing = err
		return nil
	}
	if err != nil {
		return err
	}
	p.ring = ring
	if err := p.SetFence(p.cfg.Fence); err != nil {
		return err
	}
	// Level-triggered: completions that a full turn left behind wake us again.
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(ring.FD())}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, ring.FD(), &ev); err != nil {
		return fmt.Errorf("watching io_uring: %w", err)
	}
	return nil
}

// closeRing ends the ring. Its owners have closed their queues before Stop:
// what can be in flight are wishes to cancel, which end at once. If something
// else is, the ring ends with the process.
func (p *Poller) closeRing() {
	if p.ring == nil {
		return
	}
	for tries := 0; p.ring.InFlight() > 0 && tries < 100; tries++ {
		_, _ = p.ring.Submit()
		if n, _ := p.ring.Reap(maxInFlight); n == 0 {
			ts := unix.NsecToTimespec(int64(10 * time.Millisecond))
			_, _ = epollWait(p.epoll, p.events[:], &ts)
		}
	}
	_ = p.ring.Close()
}

// loop runs turns until the poller stops or a source's memory faults.
func (p *Poller) loop() {
	for !p.stop {
		if p.turn() > 0 {
			p.idle, p.look = 0, 0
			p.load.turns.Add(1)
			continue
		}
		if p.spin() {
			continue
		}
		p.sleep()
	}
}

// turn does what there is to do now and returns how much it was.
func (p *Poller) turn() int {
	n := p.runInbox()
	all := p.all || n > 0
	p.all = false
	n += p.house.poll(all) + p.house.runDeferred()
	n += p.pass(all)
	if p.ring != nil {
		if p.ring.Queued() > 0 {
			_, err := p.ring.Submit()
			p.check(err)
		}
		if p.ring.InFlight() > 0 {
			m, err := p.ring.Reap(maxInFlight)
			p.check(err)
			n += m
			if p.rivals == 0 {
				n += p.runAll()
			}
		}
	}
	return n
}

// check ends the process if the ring is broken: what is in flight on it would
// never be told its end, and a restart loses nothing. ErrFull only means that
// entries stay queued for the next turn.
func (p *Poller) check(err error) {
	if err != nil && !errors.Is(err, uring.ErrFull) {
		panic(fmt.Sprintf("poller %s: io_uring is broken: %v", p.cfg.Name, err))
	}
}

// spin reports whether to look again at once rather than to sleep.
func (p *Poller) spin() bool {
	if p.mode != Adaptive {
		if p.busy != 0 {
			p.rest(p.clock())
		}
		return p.mode == Busy
	}
	now := p.clock()
	p.rest(now)
	if p.idle == 0 {
		p.idle = now
		p.idleTurn = now
		return true
	}
	turn := now - p.idleTurn
	p.idleTurn = now
	return p.look == 0 && turn < int64(descheduled) && now-p.idle < int64(SpinTime)
}

// sleep arms everything, looks once more and waits for an event.
func (p *Poller) sleep() {
	p.sleeping.Store(true)
	defer p.sleeping.Store(false)
	p.all = true
	if p.posted.Load() || p.unfinished() || p.ring != nil && p.ring.Queued() > 0 {
		return
	}
	wake := WakeEvent
	for s := range p.sources {
		wake = max(wake, s.Arm())
	}
	var timeout *unix.Timespec
	switch wake {
	case WakeNow:
		return
	case WakeLook:
		p.look = min(max(2*p.look, firstLook), lastLook)
		ts := unix.NsecToTimespec(int64(p.look))
		timeout = &ts
	}
	p.load.sleeps.Add(1)
	p.asked = 0
	began := p.clock()
	var n int
	var err error
	if p.slow {
		n, err = epollSleep(p.epoll, p.events[:], timeout)
	} else {
		n, err = epollWait(p.epoll, p.events[:], timeout)
	}
	p.slow = p.clock()-began > int64(longSleep)
	if err != nil {
		return // EINTR: look again
	}
	for _, ev := range p.events[:max(n, 0)] {
		if int(ev.Fd) == p.wake {
			_, _ = unix.Read(p.wake, p.woken[:])
		}
	}
	if n > 0 {
		p.idle = 0
	}
}

// runInbox runs what was posted.
func (p *Poller) runInbox() int {
	if p.next == len(p.batch) {
		if !p.posted.Load() {
			return 0
		}
		p.mu.Lock()
		clear(p.batch)
		p.batch, p.inbox = p.inbox, p.batch[:0]
		p.next = 0
		p.posted.Store(false)
		p.mu.Unlock()
	}
	n := 0
	for p.next < len(p.batch) {
		f := p.batch[p.next]
		p.next++ // first: f may fault
		p.now = 0
		f()
		n++
	}
	return n
}
