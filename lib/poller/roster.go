// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import "slices"

// A poller may serve hundreds of guests, most of which do nothing most of the
// time. Looking at one costs some cache lines: with many it would be most of a turn
// of another that is busy. So whoever had nothing to do for long rests, and is
// looked at now and then only, until there is something: by turns, one every
// shareStep of work. A poller that comes back from sleep, or has run what was
// posted, looks at everybody.
const (
	// restedTurns is after how many turns without work in a row somebody rests.
	restedTurns = 1024
	// shareStep is the time in nanoseconds between looks at two shares that rest,
	// houseStep that of the house's sources, most of which wait for resets.
	shareStep, houseStep = 4 << 10, 16 << 10
	// restedLook is after how many turns one of them is looked at anyway: nobody
	// reads the clock in turns without work.
	restedLook = 8
)

// roster is who is looked at in the turns of a poller.
type roster[T comparable] struct {
	seats []seat[T] // the first lively of them in each turn, the others by turns
	// lively is how many are.
	lively int
	next   int   // of the others: who is looked at next
	looked int64 // when that was due, as Poller.Now
	turns  uint  // since then
}

// seat is one of a roster.
type seat[T comparable] struct {
	who   T
	quiet int // turns without work
}

// add takes in somebody who is to be looked at in every turn.
func (r *roster[T]) add(who T) {
	r.seats = append(r.seats, seat[T]{who: who})
	r.wake(len(r.seats) - 1)
}

// remove reports whether who was there. A turn that goes on may miss another.
func (r *roster[T]) remove(who T) bool {
	i := r.find(who)
	if i < 0 {
		return false
	}
	if i < r.lively {
		r.lively--
		r.swap(i, r.lively)
		i = r.lively
	}
	last := len(r.seats) - 1
	r.swap(i, last)
	r.seats[last] = seat[T]{}
	r.seats = r.seats[:last]
	return true
}

func (r *roster[T]) find(who T) int {
	return slices.IndexFunc(r.seats, func(s seat[T]) bool { return s.who == who })
}

func (r *roster[T]) swap(i, j int) { r.seats[i], r.seats[j] = r.seats[j], r.seats[i] }

// turn returns how many seats a turn has: those that are lively, and all of the
// others, or as many as there are steps since the last look.
func (r *roster[T]) turn(all bool, now, step int64) int {
	rested := len(r.seats) - r.lively
	if rested == 0 || all {
		return len(r.seats)
	}
	due := (now - r.looked) / step
	r.looked += due * step
	if r.turns++; due == 0 && r.turns >= restedLook {
		due, r.looked = 1, now
	}
	if due > 0 {
		r.turns = 0
	}
	return r.lively + int(min(due, int64(rested)))
}

// at returns the place of seat n of a turn, in ascending order; false: there is
// none any more.
func (r *roster[T]) at(n int) (i int, ok bool) {
	switch {
	case n < r.lively:
		return n, true
	case n >= len(r.seats):
		return 0, false
	}
	if i = max(r.next, r.lively); i >= len(r.seats) {
		i = r.lively
	}
	r.next = i + 1
	return i, true
}

// note says whether the one in a place had work, and may rest otherwise. It
// reports whether it rests from now on.
func (r *roster[T]) note(i int, who T, worked, may bool) (rests bool) {
	if i >= len(r.seats) || r.seats[i].who != who { // others have come or gone meanwhile
		if i = r.find(who); i < 0 {
			return false
		}
	}
	s := &r.seats[i]
	switch {
	case worked:
		s.quiet = 0
		if i >= r.lively {
			r.wake(i)
		}
	case i < r.lively:
		if s.quiet++; s.quiet >= restedTurns && may {
			r.lively--
			r.swap(i, r.lively)
			return true
		}
	}
	return false
}

// wake has the one in a place be looked at in every turn.
func (r *roster[T]) wake(i int) {
	r.seats[i].quiet = 0
	r.swap(i, r.lively)
	r.lively++
}
