// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"testing"
	"time"
)

// run is a continuation.
type run func()

func (r run) Run() { r() }

// The clock is read once for a posted function and a number of continuations,
// and when it is to be.
func TestNow(t *testing.T) {
	eachMode(t, func(t *testing.T, p *Poller) {
		var first, same, ticked time.Duration
		do(t, p, func() {
			first = p.Now()
			time.Sleep(time.Millisecond)
			same = p.Now()
			p.Tick()
			ticked = p.Now()
		})
		if first <= 0 || same != first {
			t.Errorf("the clock shows %v, then %v", first, same)
		}
		if ticked < first+time.Millisecond {
			t.Errorf("after %v and a millisecond a tick shows %v", first, ticked)
		}
		const n = 3*clockStep + 1
		var seen []time.Duration
		done := make(chan struct{})
		do(t, p, func() {
			for range n {
				p.Defer(run(func() {
					seen = append(seen, p.Now())
					time.Sleep(10 * time.Microsecond)
				}))
			}
			p.Defer(run(func() { close(done) }))
		})
		wait(t, done, "the end of the continuations")
		last := ticked
		for i, now := range seen {
			switch fresh := i%clockStep == 0; {
			case fresh && now <= last:
				t.Errorf("continuation %d: %v after %v", i, now, last)
			case !fresh && now != last:
				t.Errorf("continuation %d: %v, want %v", i, now, last)
			}
			last = now
		}
	})
}

// Load counts the time of work, and only that.
func TestLoad(t *testing.T) {
	const work = 20 * time.Millisecond
	eachMode(t, func(t *testing.T, p *Poller) {
		before := p.Load()
		do(t, p, func() { time.Sleep(work) }) // asks for no time: it is no command
		began := time.Now()
		do(t, p, func() {
			p.Now()
			time.Sleep(work)
		})
		eventually(t, "the work is counted", func() bool { return p.Load().Busy >= work })
		if got, most := p.Load().Busy, time.Since(began); got > most {
			t.Errorf("busy for %v within %v", got, most)
		}
		if got := p.Load(); got.Turns < before.Turns+2 {
			t.Errorf("%d turns found work, then %d", before.Turns, got.Turns)
		}
		if p.Mode() == Busy {
			if got := p.Load().Sleeps; got != 0 {
				t.Errorf("it slept %d times", got)
			}
			return
		}
		eventually(t, "it sleeps", func() bool { return p.Load().Sleeps > 0 })
	})
}

// A poller that never rests shows its work all the same.
func TestLoadOfRestless(t *testing.T) {
	p := start(t, Config{Mode: Interrupt})
	stop := false
	var again run
	again = func() {
		p.Now()
		if !stop {
			p.Defer(again)
		}
	}
	do(t, p, func() { p.Defer(again) })
	eventually(t, "work without end is counted", func() bool { return p.Load().Busy > 2*busyStep })
	do(t, p, func() { stop = true })
}
