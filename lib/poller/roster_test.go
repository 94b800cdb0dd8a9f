// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"slices"
	"testing"
	"time"
)

// looker is a source that counts how often it is looked at.
type looker struct {
	s     *sim
	looks int
	work  int
	done  int64 // when work was found, as sim.now
}

func (l *looker) Poll() int {
	l.looks++
	if l.work == 0 {
		return 0
	}
	l.work--
	l.s.Tick()
	l.done = l.s.now
	return 1
}

func (l *looker) Arm() Wake          { return WakeEvent }
func (l *looker) Holds(uintptr) bool { return false }
func (l *looker) Fault()             {}

// TestIdleNeighbours: who has nothing to do is hardly looked at while others are
// busy, whether these are rivals or not, and is served soon when it has.
func TestIdleNeighbours(t *testing.T) {
	const many = 64
	for _, busy := range []int{1, 2} {
		s := newSim()
		var idle []*looker
		for i := range 2 * many {
			l := &looker{s: s}
			if idle = append(idle, l); i < many {
				s.NewShare().Add(l)
			} else {
				s.House().Add(l)
			}
		}
		var all []*player
		for range busy {
			all = append(all, s.guest(1, 32, 0, 1, 250))
		}
		s.run(30 * time.Millisecond) // they come to rest
		for _, l := range idle {
			l.looks = 0
		}
		s.run(30 * time.Millisecond)
		looks := 0
		for _, l := range idle {
			if looks += l.looks; l.looks == 0 {
				t.Fatalf("%d busy: one is not looked at any more", busy)
			}
		}
		// A look every 4 us, and every 16 us at one of the house's.
		if most := int(30*time.Millisecond)/shareStep*5/4 + 20; looks > most {
			t.Errorf("%d busy: %d looks at those that do nothing, more than %d", busy, looks, most)
		}
		for i, limit := range map[int]time.Duration{0: many * shareStep, many: (many + 1) * houseStep} {
			l, began := idle[i], s.now
			l.work, l.done = 1, 0
			s.run(2 * limit)
			if took := time.Duration(l.done - began); l.done == 0 || took > limit+20*us {
				t.Errorf("%d busy: work of one that did nothing is found after %v", busy, took)
			}
			before := l.looks
			s.run(limit)
			if l.looks-before < int(limit/(80*us)) {
				t.Errorf("%d busy: it is looked at %d times in %v then", busy, l.looks-before, limit)
			}
		}
		if r := ratio(all, timeOf); r < 0.98 {
			t.Errorf("of busy ones one has %.3f of the time of another", r)
		}
	}
}

// TestRestedContinuation: a continuation of a share that rests runs at once.
func TestRestedContinuation(t *testing.T) {
	s := newSim()
	share := s.NewShare()
	l := &looker{s: s}
	share.Add(l)
	for range restedTurns + 1 {
		s.turn()
	}
	if !share.rests || s.shares.lively != 0 {
		t.Fatal("it does not rest")
	}
	ran := false
	share.Defer(runner(func() { ran = true }))
	if !s.unfinished() {
		t.Error("the poller would sleep")
	}
	if s.turn(); !ran || share.rests {
		t.Error("it has not run in the next turn")
	}
	// What is posted has everybody looked at.
	for range restedTurns {
		s.turn()
	}
	for range 2 * restedLook {
		before := l.looks
		if err := s.Post(func() {}); err != nil {
			t.Fatal(err)
		}
		if s.turn(); l.looks == before {
			t.Fatal("after a posted function it is not looked at")
		}
	}
}

// TestRoster: everybody is looked at, whoever comes, goes, rests or wakes.
func TestRoster(t *testing.T) {
	var r roster[int]
	in := make(map[int]bool)
	now := int64(0)
	for i := range 20_000 {
		who := i * 7919 % 101
		switch {
		case i%211 == 0 && in[who]:
			if !r.remove(who) || r.remove(who) {
				t.Fatal("remove does not know who is there")
			}
			delete(in, who)
		case (i%211 == 1 || i < 60) && !in[who]:
			r.add(who)
			in[who] = true
		case i%97 == 2 && in[who]:
			if at := r.find(who); at >= r.lively {
				r.wake(at)
			}
		}
		now += 3000
		last := -1
		for n, end := 0, r.turn(i%50 == 0, now, shareStep); n < end; n++ {
			at, ok := r.at(n)
			if !ok {
				break
			}
			if n < r.lively && at <= last {
				t.Fatal("the lively ones are not looked at in order")
			}
			last = at
			r.note(at, r.seats[at].who, r.seats[at].who == 5 && i%3 == 0, r.seats[at].who%2 == 0)
		}
		if len(r.seats) != len(in) || r.lively > len(in) {
			t.Fatalf("%d seats, %d of them lively, for %d", len(r.seats), r.lively, len(in))
		}
	}
	for _, s := range r.seats {
		if !in[s.who] {
			t.Errorf("%d has gone", s.who)
		}
	}
	// Each of those that rest has its turn.
	var seen []int
	for range len(r.seats) {
		now += shareStep
		for n, end := 0, r.turn(false, now, shareStep); n < end; n++ {
			if at, ok := r.at(n); ok && at >= r.lively {
				seen = append(seen, at)
			}
		}
	}
	slices.Sort(seen)
	if seen = slices.Compact(seen); len(seen) != len(r.seats)-r.lively || len(seen) == 0 {
		t.Errorf("%d of %d that rest were looked at", len(seen), len(r.seats)-r.lively)
	}
}

// TestRestedAhead: who was ahead of others, before all came to rest, is not held
// back for them.
func TestRestedAhead(t *testing.T) {
	s := newSim()
	var all []*looker
	var shares []*Share
	for range 3 {
		l := &looker{s: s}
		all, shares = append(all, l), append(shares, s.NewShare())
		shares[len(shares)-1].Add(l)
	}
	for round := range 3 {
		for i, l := range all {
			l.work = 1
			s.run(100 * us)
			shares[i].used = s.floor + int64(i*int(100*us)) // it was a long turn
		}
		s.run(5 * time.Millisecond)
		for i := range all {
			all[i].work = 1
			s.run(100 * us)
		}
		s.run(5 * time.Millisecond)
		for i, share := range shares { // while the others are rivals
			s.rivals = rivalry
			v := share.Enter()
			s.now += int64(i) * int64(100*us)
			v.Leave()
		}
		if s.shares.lively != 0 {
			t.Fatalf("round %d: %d do not rest", round, s.shares.lively)
		}
		for i, l := range all {
			l.work = 1
			s.run(100 * us)
			if l.work > 0 {
				t.Fatalf("round %d: the work of %d is not found", round, i)
			}
		}
	}
}
