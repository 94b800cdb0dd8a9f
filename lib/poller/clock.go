// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/stats"
)

const (
	// clockStep is how many continuations run by one reading of the clock, which
	// costs as much as some of them.
	clockStep = 32
	// busyStep is how long a poller works before Load shows it.
	busyStep = 10 * time.Millisecond
)

// Now returns the time since the poller started, in nanoseconds. The clock is
// read at most once for each posted function, Poll of a source and clockStep
// continuations, and not at all where nobody asks. It never goes backwards, and
// is never ahead.
func (p *Poller) Now() time.Duration {
	if p.now == 0 {
		p.Tick()
	}
	return time.Duration(p.now)
}

// Tick reads the clock: Now goes on from there. A source calls it that has just
// seen work it is to date.
func (p *Poller) Tick() {
	p.now = p.clock()
	p.ticked = p.now
	if p.began == 0 {
		p.began = p.now
	}
	switch {
	case p.busy == 0:
		p.busy = p.now
	case p.now-p.busy > int64(busyStep):
		p.load.busy.Add(uint64(p.now - p.busy))
		p.busy = p.now
	}
}

// rest notes that a turn has found nothing to do.
func (p *Poller) rest(now int64) {
	if p.busy != 0 {
		p.load.busy.Add(uint64(now - p.busy))
		p.busy = 0
	}
}

// clock reads the clock: nanoseconds since the poller started. It is the
// monotonic one alone, which is half of what time.Now reads.
func (p *Poller) clock() int64 {
	if p.fake != nil {
		return p.fake()
	}
	return int64(time.Since(p.started))
}

// ownTime returns how long the thread has had a processor, in nanoseconds.
func (p *Poller) ownTime() int64 {
	if p.fakeOwn != nil {
		return p.fakeOwn()
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return p.clock() // no kernel is without it
	}
	return ts.Nano()
}

// load is what Load shows. The loop is its writer.
type load struct{ busy, turns, sleeps stats.Counter }

// Load is what a poller has done since it started.
type Load struct {
	// Busy is the time it spent on commands: from the first that it found to the
	// turn that found nothing.
	Busy   time.Duration
	Turns  uint64 // that found something to do
	Sleeps uint64
}

// Load may be called from any goroutine. Busy lags behind by at most some
// milliseconds.
func (p *Poller) Load() Load {
	return Load{
		Busy: time.Duration(p.load.busy.Load()), Turns: p.load.turns.Load(), Sleeps: p.load.sleeps.Load(),
	}
}
