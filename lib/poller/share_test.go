// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"fmt"
	"testing"
	"time"
)

// sim is a poller whose loop a test runs, by a clock that goes on only while
// something costs time. So what it finds is exact, and the same on every machine.
type sim struct {
	*Poller
	now   int64
	taken int64 // of it by others
}

// passCost is what it takes to look at all sources of a sim.
const passCost = 100

func newSim() *sim {
	s := &sim{Poller: newPoller(Config{NoRing: true}), now: 1}
	s.fake = func() int64 { return s.now }
	s.fakeOwn = func() int64 { return s.now - s.taken }
	return s
}

// run runs turns for d of the sim's time.
func (s *sim) run(d time.Duration) {
	for end := s.now + int64(d); s.now < end; {
		s.turn()
		s.now += passCost
	}
}

// player is a guest that keeps some commands in flight on some queues. Each costs
// the poller time, in pieces if it is a long one; think later the guest has a new
// one for it.
type player struct {
	s       *sim
	share   *Share
	queues  [][]int64 // when commands come, of each queue
	at      int
	costs   []time.Duration // of commands, in turn
	pieces  int
	think   time.Duration
	got     time.Duration // of the poller
	sent    int
	done    int
	longest int64 // that a command has waited
	robbed  int   // every so many commands others take the processor for 3 ms
}

func (s *sim) guest(queues, depth int, think time.Duration, pieces int, costs ...time.Duration) *player {
	g := &player{s: s, share: s.NewShare(), costs: costs, pieces: pieces, think: think}
	for range queues {
		g.queues = append(g.queues, make([]int64, depth))
	}
	g.share.Add(g)
	return g
}

// job is what is left of a command.
type job struct {
	g         *player
	queue     int
	came      int64
	piece     time.Duration
	remaining int
}

func (j *job) Run() {
	j.g.spend(j.piece)
	if j.g.pieces > 1 {
		j.g.s.Tick()
	}
	if j.remaining--; j.remaining > 0 {
		j.g.s.Defer(j)
		return
	}
	g := j.g
	g.done++
	g.longest = max(g.longest, g.s.now-j.came)
	g.queues[j.queue] = append(g.queues[j.queue], g.s.now+int64(g.think))
}

func (g *player) spend(d time.Duration) {
	if g.robbed > 0 && g.sent%g.robbed == 0 {
		g.s.now += 3e6
		g.s.taken += 3e6
	}
	g.s.now += int64(d)
	g.got += d
}

func (g *player) Poll() (n int) {
	for range g.queues {
		i := g.at
		g.at = (g.at + 1) % len(g.queues)
		most := 64
		if g.s.Contended() {
			most = 2
		}
		taken := 0
		for q := g.queues[i]; taken < most && len(q) > 0 && q[0] <= g.s.now; q = g.queues[i] {
			if taken == 0 {
				g.s.Tick()
			}
			taken++
			cost := g.costs[g.sent%len(g.costs)]
			g.sent++
			j := &job{g: g, queue: i, came: q[0], piece: cost / time.Duration(g.pieces), remaining: g.pieces}
			g.queues[i] = q[1:]
			if g.pieces == 1 {
				g.spend(cost)
				j.piece = 0
			}
			g.s.Defer(j)
		}
		if n += taken; taken > 0 && g.s.Spent() {
			return n
		}
	}
	return n
}

func (g *player) Arm() Wake          { return WakeNow }
func (g *player) Holds(uintptr) bool { return false }
func (g *player) Fault()             {}

// forget has the sim begin to count anew.
func (s *sim) forget(all ...*player) {
	for _, g := range all {
		g.got, g.done, g.longest = 0, 0, 0
	}
}

const us = time.Microsecond

// ratio is the least of what guests have got, in parts of the most.
func ratio(all []*player, of func(*player) float64) float64 {
	least, most := of(all[0]), of(all[0])
	for _, g := range all {
		least, most = min(least, of(g)), max(most, of(g))
	}
	return least / most
}

func timeOf(g *player) float64 { return float64(g.got) }
func doneOf(g *player) float64 { return float64(g.done) }

// TestShares: guests that always have something to do get equal parts of the
// time, whatever that is, and nothing is lost.
func TestShares(t *testing.T) {
	s := newSim()
	var equal []*player
	for range 8 {
		equal = append(equal, s.guest(1, 32, 0, 1, 250))
	}
	s.run(20 * time.Millisecond)
	if r := ratio(equal, doneOf); r < 0.99 {
		t.Errorf("of equal guests one does %.3f of another", r)
	}

	s = newSim()
	unequal := []*player{
		s.guest(1, 4, 0, 1, 250),
		s.guest(1, 1023, 0, 1, 250),
		s.guest(16, 511, 0, 1, 200),
		s.guest(16, 1, 0, 1, us),
		s.guest(2, 127, 0, 1, 13*us),
		s.guest(1, 127, 0, 1, 200*us),
		s.guest(4, 16, 0, 32, 800*us), // in pieces
		s.guest(1, 64, 0, 1, 250, 250, 250, 250, 250, 250, 250, 250, 250, 250, 90*us), // mostly small ones
	}
	s.run(100 * time.Millisecond) // of equal parts no one is long against what one command takes
	s.forget(unequal...)
	s.run(400 * time.Millisecond)
	total := time.Duration(0)
	for i, g := range unequal {
		total += g.got
		t.Logf("guest %d: %v, %d commands, longest %v", i, g.got, g.done, time.Duration(g.longest))
	}
	if r := ratio(unequal, timeOf); r < 0.98 {
		t.Errorf("of unequal guests one has %.3f of the time of another", r)
	}
	if total < 385*time.Millisecond {
		t.Errorf("of 400 ms guests had %v", total)
	}
}

// TestTakenTime: what others of the machine take in a guest's turn is nobody's.
func TestTakenTime(t *testing.T) {
	s := newSim()
	all := []*player{s.guest(1, 64, 0, 1, 250), s.guest(1, 64, 0, 1, us), s.guest(1, 64, 0, 1, 200*us)}
	all[0].robbed = 10_000
	s.run(50 * time.Millisecond)
	s.forget(all...)
	s.run(500 * time.Millisecond)
	if s.taken == 0 {
		t.Fatal("nothing was taken")
	}
	if r := ratio(all, timeOf); r < 0.98 {
		t.Errorf("one has %.3f of the time of another", r)
	}
}

// TestNeighbour: a guest with one command at a time keeps 40 % of its rate
// beside any other, whether it is quick to send the next one or not, and waits
// for not much more than what the other has begun.
func TestNeighbour(t *testing.T) {
	for _, good := range []struct{ think, cost time.Duration }{
		{200, 300}, {us, 300}, {3 * us, us}, {12 * us, us}, {29 * us, 500}, {100 * us, us},
	} {
		alone := newSim()
		g := alone.guest(1, 1, good.think, 1, good.cost)
		alone.run(30 * time.Millisecond)
		for _, bad := range []struct {
			queues, depth, pieces int
			cost, begun           time.Duration // begun is the most that is not given up for others
		}{
			{1, 1023, 1, 250, 6 * us}, {16, 127, 1, 100, 6 * us}, {1, 1, 1, us, 6 * us},
			{1, 127, 1, 13 * us, 26 * us}, {1, 1, 1, 30 * us, 30 * us}, {1, 127, 1, 210 * us, 420 * us}, {1, 64, 32, 800 * us, 25 * us},
		} {
			s := newSim()
			a := s.guest(1, 1, good.think, 1, good.cost)
			b := s.guest(bad.queues, bad.depth, 300, bad.pieces, bad.cost)
			s.run(30 * time.Millisecond)
			s.forget(a, b)
			s.run(30 * time.Millisecond)
			name := fmt.Sprintf("one command of %v every %v beside %d queues of %d of %v", good.cost, good.think, bad.queues, bad.depth, bad.cost)
			kept := float64(a.done) / float64(g.done)
			t.Logf("%s: %.2f, the other %.2f, longest %v", name, kept, b.got.Seconds()/0.03, time.Duration(a.longest))
			if kept < 0.4 {
				t.Errorf("%s: %.2f of its rate is left", name, kept)
			}
			if most := bad.begun + good.cost + 10*passCost; time.Duration(a.longest) > most {
				t.Errorf("%s: one took %v, more than %v", name, time.Duration(a.longest), most)
			}
			if b.got < 12*time.Millisecond {
				t.Errorf("%s: the other has %v of 30 ms", name, b.got)
			}
		}
	}
}

// TestWaitInVain: who seldom has something to do, or nothing any more, is hardly
// waited for.
func TestWaitInVain(t *testing.T) {
	s := newSim()
	a := s.guest(1, 1, 100*us, 1, us)
	b := s.guest(1, 1023, 0, 1, 250)
	s.run(50 * time.Millisecond)
	s.forget(a, b)
	s.run(50 * time.Millisecond)
	if b.got < 47*time.Millisecond || time.Duration(a.longest) > 8*us {
		t.Errorf("beside one command every 100 us another guest has %v of 50 ms; that one takes %v at most", b.got, time.Duration(a.longest))
	}
	a.think = time.Hour
	s.run(10 * time.Millisecond)
	s.forget(b)
	s.run(50 * time.Millisecond)
	if b.got < 49*time.Millisecond {
		t.Errorf("beside a guest that does nothing another has %v of 50 ms", b.got)
	}
	if s.rivals != 0 {
		t.Error("it is still taken for a rival")
	}
}

// TestAlone: nothing is measured for a guest that has no rival, and it works in
// large batches.
func TestAlone(t *testing.T) {
	s := newSim()
	s.NewShare()
	reads := 0
	s.fake = func() int64 { reads++; return s.now }
	g := s.guest(1, 64, 0, 1, 250)
	polls := 0
	for g.done < 64*100 {
		s.turn()
		polls++
	}
	if reads > polls || polls > 105 {
		t.Errorf("%d turns and %d readings of the clock for 100 batches", polls, reads)
	}
}

// TestShareClose: what is left of a share goes on, and what comes later.
func TestShareClose(t *testing.T) {
	p := start(t, Config{})
	src := newSource(WakeEvent)
	ran := make(chan string, 3)
	var s *Share
	do(t, p, func() {
		s = p.NewShare()
		v := s.Enter()
		p.Add(src)
		p.Defer(runner(func() { ran <- "before" }))
		if p.Current() != s {
			t.Error("what follows Enter is not on behalf of the share")
		}
		v.Leave()
		s.Close()
		s.Close()
		s.Defer(runner(func() { ran <- "after" }))
		v = s.Enter()
		if p.Current() != p.House() {
			t.Error("the share is used after Close")
		}
		v.Leave()
		if len(p.shares.seats) != 0 {
			t.Error("the share is still served")
		}
	})
	for _, want := range []string{"before", "after"} {
		if got := wait(t, ran, "a continuation"); got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
	}
	src.work.Store(1)
	do(t, p, func() {})
	wait(t, src.told, "a look at the source")
	do(t, p, func() {
		p.Remove(src)
		if p.unfinished() {
			t.Error("there are continuations left")
		}
	})
}
