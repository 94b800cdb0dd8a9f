// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"math"
	"slices"
	"time"
)

// How time is shared. A poller that serves one guest knows nothing of this. As
// soon as two have work, what each share has of the poller is measured, turn by
// turn, with all that a turn brings about: fetching, copying, system calls,
// continuations. Whoever is ahead of another by more than a quantum is held back
// until that one has caught up. So in the long run those that have work get equal
// parts of the time, whatever they do with it: many small commands or few large
// ones, on however many queues.
//
// A guest with one command at a time has nothing for the poller to do while it
// looks at the last result, just when another is held back for it. If that one
// went on now, the next command would have to wait for all of its turn, again and
// again: beside turns of 100 us, next to nothing would be left for a guest that
// needs 1 us between two commands. So it is waited for, at its own expense, for
// as long as half of such a turn, unless it has been seen to take longer: then it
// has 40 % of its rate anyway.
const (
	// quantum is what a share gets in one turn, and how far it may be ahead.
	quantum = 5 * time.Microsecond
	// longTurn is for how long continuations of a share without rivals run in one
	// turn: another that begins to work has to wait for it.
	longTurn = 100 * time.Microsecond
	// rivalry is for how many turns of one share another that had work before
	// counts as its rival.
	rivalry = 1000
	// maxCharge is the most that a turn costs.
	maxCharge = 2 * time.Millisecond
	// suspect is how long a turn takes in which the kernel may have given the
	// processor to somebody else.
	suspect = 100 * time.Microsecond
	// turnStep is how many continuations run by one reading of the clock.
	turnStep = 16
)

// Share is what one guest or host has of a poller: the sources that serve it and
// the continuations of its commands. Shares that have work get equal parts of the
// poller's time. All methods are for the poller.
type Share struct {
	p        *Poller
	sources  roster[Source]
	deferred []Runnable
	next     int // of deferred
	rests    bool
	closed   bool

	used  int64 // time it has had and has been waited for, in nanoseconds; but see Poller.floor
	turn  int64 // what its last turn cost
	state state // since then
	idled int64 // for how long it has been waited for since then
	think int64 // for how long it has to be waited for, going by the last times
}

// state is what the others know of a share.
type state uint8

const (
	away  state = iota // it has nothing to do, and nobody waits for it
	ready              // its turn was cut short, or it is held back
	idle               // it had nothing more to do, but may soon
)

// House returns the share of what serves nobody in particular. It comes first
// in every turn, and is never held back.
func (p *Poller) House() *Share { return p.house }

// NewShare returns a share of the poller.
func (p *Poller) NewShare() *Share {
	s := &Share{p: p}
	p.shares.add(s)
	return s
}

// Current returns the share on whose behalf the poller works now.
func (p *Poller) Current() *Share { return p.current }

// Close gives the share up. What is left of it goes on in nobody's name.
func (s *Share) Close() {
	if s.closed {
		return
	}
	s.closed = true
	p, house := s.p, s.p.house
	p.shares.remove(s)
	for _, x := range s.sources.seats {
		house.sources.add(x.who)
	}
	house.deferred = append(house.deferred, s.deferred[s.next:]...)
	s.sources, s.deferred, s.next = roster[Source]{}, nil, 0
	if p.current == s {
		p.current = house
	}
}

// Add has the share served by a source.
func (s *Share) Add(x Source) {
	if s.closed {
		s = s.p.house
	}
	s.sources.add(x)
}

// Defer has r run after what runs now has returned, in a turn of the share.
func (s *Share) Defer(r Runnable) {
	if s.closed {
		s = s.p.house
	}
	s.deferred = append(s.deferred, r)
	if s.rests {
		s.rests = false
		s.p.shares.wake(s.p.shares.find(s))
	}
}

// Visit is work on behalf of a share outside of its turns.
type Visit struct {
	share, before *Share
	began         int64 // 0: nobody wants to know
}

// Enter begins such work, which runs at once; Leave ends it, but for a fault of
// guest memory, which ends it too.
func (s *Share) Enter() Visit {
	p := s.p
	if s.closed {
		s = p.house
	}
	v := Visit{share: s, before: p.current}
	if s != v.before && s != p.house && p.rivals > 0 {
		v.began = p.clock()
	}
	p.current = s
	return v
}

// Leave counts the time since Enter.
func (v Visit) Leave() {
	p := v.share.p
	if p.current = v.before; v.before.closed {
		p.current = p.house
	}
	if v.began != 0 {
		v.share.charge(v.began, p.clock())
	}
}

// charge counts time that the share has had.
func (s *Share) charge(began, end int64) {
	s.turn = min(s.p.worth(began, end), int64(maxCharge))
	s.used = max(s.used, s.p.floor) + s.turn
}

// worth returns for how much of a time the poller had the processor. The thread's
// own clock is a system call, so only of a long time it is asked.
func (p *Poller) worth(began, end int64) int64 {
	d := end - began
	if d < int64(suspect) {
		return d
	}
	own := p.ownTime()
	if p.asked != 0 {
		// What was taken since then was taken now: no other turn was long.
		d -= min(max((end-p.asked)-(own-p.own), 0), d)
	}
	p.asked, p.own = end, own
	return d
}

// Contended reports whether the current share has rivals: it is not to begin
// much at a time.
func (p *Poller) Contended() bool { return p.rivals > 0 && p.current != p.house }

// Spent reports whether the current share has used its turn: the rest is for its
// next. Without rivals it never has.
func (p *Poller) Spent() bool {
	if !p.Contended() {
		return false
	}
	p.Tick()
	return p.now-p.began >= int64(quantum)
}

// worked notes that a share has had work.
func (p *Poller) worked(s *Share) {
	if s == p.worker {
		p.rivals = max(p.rivals-1, 0)
		return
	}
	if p.worker != nil {
		p.rivals = rivalry
	}
	p.worker = s
}

// pass gives every share that nobody has to wait for, of those that are looked at
// in this turn, a turn of its own, and returns how much they did.
func (p *Poller) pass(all bool) (n int) {
	if p.rivals == 0 {
		for j, end := 0, p.shares.turn(all, p.ticked, shareStep); j < end; j++ {
			i, ok := p.shares.at(j)
			if !ok {
				break
			}
			s := p.shares.seats[i].who
			p.current = s
			k := s.poll(true)
			if len(s.deferred) > 0 {
				k += s.runDeferred()
			}
			if p.noted(i, s, k > 0, true); k > 0 {
				n += k
				if p.worked(s); p.rivals > 0 {
					break // the others' turns are measured
				}
			}
		}
		p.current = p.house
		return n
	}
	held := false
	for j, end := 0, p.shares.turn(all, p.ticked, shareStep); j < end; j++ {
		i, ok := p.shares.at(j)
		if !ok {
			break
		}
		s := p.shares.seats[i].who
		if s.rests { // what it is ahead, by visits, holds it back for nobody
			s.used = min(s.used, p.floor)
		}
		if s.used > p.floor+int64(quantum) {
			held, s.state = true, ready
			p.rivals = rivalry
			continue
		}
		k := p.turnOf(s)
		n += k
		p.noted(i, s, k > 0, s.state != ready)
	}
	p.level(held, n == 0)
	if held {
		n++ // there is work
	}
	return n
}

// noted notes whether a share had work, and may rest otherwise. Nobody waits for
// one that rests.
func (p *Poller) noted(i int, s *Share, worked, may bool) {
	if s.rests = s.rests && !worked; p.shares.note(i, s, worked, may) {
		s.rests, s.state = true, away
	}
}

// runAll runs continuations of all shares, none of which has rivals.
func (p *Poller) runAll() int {
	n := p.house.runDeferred()
	for i := 0; i < p.shares.lively; i++ {
		if s := p.shares.seats[i].who; len(s.deferred) > 0 {
			p.current = s
			n += s.runDeferred()
		}
	}
	p.current = p.house
	return n
}

// unfinished reports whether there are continuations that have not run.
func (p *Poller) unfinished() bool {
	return len(p.house.deferred) > 0 || slices.ContainsFunc(p.shares.seats[:p.shares.lively], func(s seat[*Share]) bool {
		return len(s.who.deferred) > 0
	})
}

// sources yields every source there is.
func (p *Poller) sources(yield func(Source) bool) {
	for i := -1; i < len(p.shares.seats); i++ {
		s := p.house
		if i >= 0 {
			s = p.shares.seats[i].who
		}
		for _, x := range s.sources.seats {
			if !yield(x.who) {
				return
			}
		}
	}
}

// poll has the share's sources look for work: all, or those that are looked at in
// this turn.
func (s *Share) poll(all bool) (n int) {
	r := &s.sources
	for j, end := 0, r.turn(all, s.p.ticked, houseStep); j < end; j++ {
		i, ok := r.at(j)
		if !ok {
			break
		}
		x := r.seats[i].who
		s.p.now = 0
		k := x.Poll()
		n += k
		r.note(i, x, k > 0, true)
	}
	return n
}

// turnOf gives a share that has rivals a turn: all that it has to do, or what a
// quantum is enough for. What it has queued on the ring is submitted, since that
// is where the kernel does the work.
func (p *Poller) turnOf(s *Share) (n int) {
	p.current, p.began, p.now = s, 0, 0
	state, end := idle, int64(0)
	for {
		k := s.runDeferred()
		p.now = 0 // the clock was read before them
		k += s.poll(true)
		if k == 0 {
			break
		}
		n += k
		if end = p.now; end == 0 { // else a source has just asked whether its turn is over
			end = p.clock()
		}
		if p.began != 0 && end-p.began >= int64(quantum) {
			state = ready
			break
		}
	}
	p.current = p.house
	if n == 0 {
		if s.state == ready {
			s.state = idle
		}
		return 0
	}
	if p.ring != nil && p.ring.Queued() > 0 {
		_, err := p.ring.Submit()
		p.check(err)
		end = p.clock()
	}
	if p.began != 0 {
		s.charge(p.began, end)
	}
	if s.idled > 0 && s.state == idle {
		s.think = s.idled
	}
	s.state, s.idled = state, 0
	p.worked(s)
	return n
}

// level finds out what the least is that anybody has had of those that have work,
// or are waited for: the floor, which others are held back for. In a pass without
// work those that are waited for pay for it.
func (p *Poller) level(held, nothing bool) {
	now := p.clock()
	waited := int64(0)
	if held && nothing && p.leveled != 0 {
		waited = min(now-p.leveled, int64(descheduled))
	}
	p.leveled = now
	turn := int64(0) // the longest of those that others would have to wait for
	lively := p.shares.seats[:p.shares.lively]
	for _, seat := range lively {
		if s := seat.who; s.state == ready {
			turn = max(turn, s.turn)
		}
	}
	floor := int64(math.MaxInt64)
	for _, seat := range lively {
		s := seat.who
		if s.state == idle {
			s.used = max(s.used, p.floor) + waited
			s.idled += waited
			if held && max(s.think, s.idled) > turn/2 {
				s.leave(turn)
				continue
			}
		}
		if s.state != away {
			floor = min(floor, s.used)
		}
	}
	if floor != math.MaxInt64 {
		p.floor = max(p.floor, floor)
	}
}

// leave has nobody wait for the share until its next turn: it was in vain, which
// may happen to a guest that has no processor for a moment, or would be, which is
// tried again now and then. turn is what others are held back for.
func (s *Share) leave(turn int64) {
	s.state = away
	if s.idled > turn/2 {
		s.think += (2*s.idled - s.think) / 4
	} else {
		s.think = min(s.think, turn)
		s.think -= s.think / 32
	}
}

// runDeferred runs continuations until there are none, or as many as one turn may
// run, or the share's turn is over: what they defer in turn may never end.
func (s *Share) runDeferred() int {
	p, n := s.p, 0
	contended, limit := p.Contended(), int64(longTurn)
	switch {
	case contended:
		limit = int64(quantum)
	case s == p.house:
		limit = math.MaxInt64
	default:
		p.began = 0
	}
	for s.next < len(s.deferred) && n < maxDeferred {
		switch {
		case contended && n%turnStep == 0:
			if n > 0 || p.now == 0 { // else turnOf knows the time
				p.Tick()
			}
		case n%clockStep == 0:
			p.now = 0
		}
		if n > 0 && p.now-p.began >= limit { // of what has read the clock
			break
		}
		r := s.deferred[s.next]
		s.next++ // first: r may fault
		r.Run()
		n++
	}
	left := copy(s.deferred, s.deferred[s.next:])
	clear(s.deferred[left:])
	s.deferred, s.next = s.deferred[:left], 0
	return n
}
