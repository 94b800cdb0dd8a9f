// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// This is an explicit-state model of the slot protocol (Slot): every
// interleaving of a guest, a runtime that may die after each of its stores, the
// kernel that carries out what a runtime has begun, and leap-wpt's part in a
// reset, with rings of three entries and few commands. What must hold:
//
//   - an entry that the guest takes is the result of the command that has this
//     identifier now, and that command has taken effect;
//   - a command takes no effect after the guest knows its end, by its entry or
//     by a reset that was acknowledged;
//   - when nothing can happen any more, every command has ended.
//
// TestModelConforms holds Fetch, Publish and Recover against it.

const (
	modelEntries  = 3 // of the rings, and slots
	modelCommands = 4 // that the guest submits
	modelCIDs     = 2
)

// variant is a way to get the protocol wrong.
type variant uint8

const (
	correct               variant = iota
	decideByCID                   // what was published is told by identifiers in the guest's ring
	waitForExitOnly               // the next runtime begins while I/O of the one before is in flight
	clearDoorbellsAtReset         // while a poller may still look at them
	publishBeforeEffect           // a command counts as ended when it was begun
	headBeforeCopy                // F2, then F1
	redoUnannounced               // recovery executes what F2 has not announced
	entryBeforeRest               // P3: dword 3 first
	tailBeforeEntry               // P4, then P3
	freeBeforeTail                // P5, then P4
	headBeforeRecovery            // the guest's head is read before results are published
)

// mark is a set of commands.
type mark uint16

func (m mark) has(k uint8) bool { return m>>k&1 != 0 }

// mSQE is an entry of the submission ring: a command and its identifier.
type mSQE struct{ k, cid uint8 }

// mCQE is an entry of a completion ring: dwords 0 to 2, and dword 3. Each tells
// the command.
type mCQE struct{ rest, sqhd, k, cid, phase uint8 }

// mSlot is a Slot.
type mSlot struct {
	sqe    mSQE
	n, cqn uint8
	cqe    mCQE
	state  SlotState
}

// phases of a runtime.
const (
	dead       uint8 = iota
	recovering       // at step pc of recovery
	idle             // between turns
	fetching         // at step pc of Fetch
	publishing       // at step pc of Publish
)

// what became of a command in a slot that the runtime knows of.
const (
	unknown uint8 = iota
	begun         // by this runtime; in flight when in mState.flying
	pending       // ended, its result waits to be published
)

// mRuntime is what dies with a runtime.
type mRuntime struct {
	phase, pc uint8
	n         uint8               // of the batch
	slots     [modelEntries]uint8 // of the batch
	what      [modelEntries]uint8 // by slot
	queue     [modelEntries]uint8 // slots whose results wait, oldest first
	queued    uint8
	head      int8 // of the completion ring, free-running: what the guest has taken
}

// mState is a state of the whole.
type mState struct {
	// The guest's.
	issued         uint8
	over           mark               // commands whose end it knows
	cids           [modelCIDs]uint8   // command + 1 by identifier; 0: free
	sqTail, sqHead uint8              // as it knows them
	cqHead, phase  uint8              //
	sq             [modelEntries]mSQE // its memory
	cq             [modelEntries]mCQE //
	tailDB, headDB uint8              // doorbells
	// Shared between runtimes: a CQPage and an SQPage.
	head, tail uint8
	slots      [modelEntries]mSlot
	// The kernel's, and the medium's.
	flying  mark // begun by the runtime that lives
	zombies mark // begun by one that has died
	landed  mark // have taken effect

	resetting bool // CC.EN is 0, and nobody has acknowledged it
	resets    uint8
	crashes   uint8
	run       mRuntime
}

// model explores.
type model struct {
	wrong   variant
	out     []mState
	failure string
}

func (m *model) fail(format string, args ...any) {
	if m.failure == "" {
		m.failure = fmt.Sprintf(format, args...)
	}
}

func (m *model) next(s mState) { m.out = append(m.out, s) }

// steps are the states that can come next; progress tells that one of them is
// not just a fault.
func (m *model) steps(s mState) (next []mState, progress bool) {
	m.out = m.out[:0]
	m.guest(s)
	m.kernel(s)
	m.runtime(s)
	progress = len(m.out) > 0
	if s.run.phase != dead && s.crashes > 0 {
		c := s
		c.crashes--
		c.run = mRuntime{}
		c.zombies |= c.flying
		c.flying = 0
		c.forget()
		m.next(c)
	}
	if s.resets > 0 && !s.resetting && s.issued > 0 {
		c := s
		c.resets--
		c.resetting = true
		if m.wrong == clearDoorbellsAtReset {
			c.tailDB, c.headDB = 0, 0
		}
		m.next(c)
	}
	return m.out, progress
}

// forget clears what recovery does not look at: two states that differ in it are
// the same.
func (s *mState) forget() {
	for i := range s.slots {
		switch slot := &s.slots[i]; slot.state {
		case SlotFree:
			*slot = mSlot{}
		case SlotTaken:
			slot.cqn, slot.cqe = 0, mCQE{}
		}
	}
}

func (m *model) guest(s mState) {
	if s.resetting {
		return // it polls CSTS.RDY
	}
	if int(s.issued) < modelCommands && (s.sqTail+1)%modelEntries != s.sqHead {
		for cid, k := range s.cids {
			if k == 0 {
				c := s
				c.cids[cid] = c.issued + 1
				c.sq[c.sqTail] = mSQE{c.issued, uint8(cid)}
				c.sqTail = (c.sqTail + 1) % modelEntries
				c.tailDB = c.sqTail
				c.issued++
				m.next(c)
			}
		}
	}
	if e := s.cq[s.cqHead]; e.phase == s.phase {
		c := s
		switch known := c.cids[e.cid]; {
		case known == 0:
			m.fail("the guest gets a result for identifier %d, which has no command", e.cid)
		case known-1 != e.k || e.rest != e.k:
			m.fail("the guest gets the result of command %d (%d) for command %d", e.k, e.rest, known-1)
		case !c.landed.has(e.k):
			m.fail("the guest gets the result of command %d, which has not taken effect", e.k)
		default:
			c.over |= 1 << e.k
			c.cids[e.cid] = 0
		}
		c.sqHead = e.sqhd
		if c.cqHead++; c.cqHead == modelEntries {
			c.cqHead, c.phase = 0, c.phase^1
		}
		m.next(c)
	}
	if s.headDB != s.cqHead {
		c := s
		c.headDB = c.cqHead
		m.next(c)
	}
}

// kernel has what is in flight take effect.
func (m *model) kernel(s mState) {
	for k := range uint8(modelCommands) {
		for _, zombie := range []bool{false, true} {
			c := s
			from := &c.flying
			if zombie {
				from = &c.zombies
			}
			if !from.has(k) {
				continue
			}
			*from &^= 1 << k
			c.landed |= 1 << k
			if c.over.has(k) {
				m.fail("command %d takes effect after the guest knows its end", k)
			}
			m.next(c)
		}
	}
}

// runtime takes the next step of the runtime, or grants the next one.
func (m *model) runtime(s mState) {
	gone := s.zombies == 0 || m.wrong == waitForExitOnly
	switch {
	case s.run.phase == dead && gone && s.resetting:
		m.acknowledge(s) // by leap-wpt
	case s.run.phase == dead && gone:
		s.run.phase = recovering
		if m.wrong == headBeforeRecovery {
			s.run.head = s.consumed()
		}
		m.next(s)
	case s.run.phase == recovering:
		m.recover(s)
	case s.run.phase == fetching:
		m.fetch(s)
	case s.run.phase == publishing:
		m.publish(s)
	case s.run.phase == idle:
		if s.resetting && s.flying == 0 {
			m.acknowledge(s)
		}
		m.turn(s)
	}
}

// acknowledge ends a reset: nothing is in flight. The guest makes the queues
// again, which clears the doorbells.
func (m *model) acknowledge(s mState) {
	for cid, k := range s.cids {
		if k != 0 {
			s.over |= 1 << (k - 1)
			s.cids[cid] = 0
		}
	}
	s.resetting = false
	s.sqTail, s.sqHead, s.cqHead, s.phase = 0, 0, 0, 1
	s.cq = [modelEntries]mCQE{}
	s.tailDB, s.headDB, s.head, s.tail = 0, 0, 0, 0
	s.slots = [modelEntries]mSlot{}
	s.run = mRuntime{phase: s.run.phase}
	m.next(s)
}

// turn is what a runtime does between batches: it begins what it has fetched,
// notices what has ended, and begins a batch.
func (m *model) turn(s mState) {
	for i, what := range s.run.what {
		slot := &s.slots[i]
		switch {
		case what == unknown && slot.state == SlotTaken:
			c := s
			c.run.what[i] = begun
			c.flying |= 1 << slot.sqe.k
			m.next(c)
		case what == begun && (!s.flying.has(slot.sqe.k) || m.wrong == publishBeforeEffect):
			c := s
			c.run.what[i] = pending
			c.run.queue[c.run.queued] = uint8(i)
			c.run.queued++
			m.next(c)
		}
	}
	if c, ok := s.startFetch(); ok {
		m.next(c)
	}
	if c, ok := s.startPublish(); ok {
		m.next(c)
	}
	if unread := int8(s.tail) - s.run.head; unread < 0 || unread >= modelEntries {
		m.fail("the runtime believes that the guest has not taken %d entries", unread)
	}
}

// startFetch chooses the slots of a batch. What is chosen is all that is there
// and has a slot.
func (s mState) startFetch() (mState, bool) {
	n := (s.tailDB + modelEntries - s.head%modelEntries) % modelEntries
	r := &s.run
	r.n, r.pc = 0, 0
	for i := range s.slots {
		if s.slots[i].state == SlotFree && r.n < n {
			r.slots[r.n] = uint8(i)
			r.n++
		}
	}
	r.phase = fetching
	return s, r.n > 0
}

// fetch is F1 and F2.
func (m *model) fetch(s mState) {
	r := &s.run
	step, at := r.pc, s.head
	switch {
	case m.wrong == headBeforeCopy && step == 0:
		step = 2 * r.n
	case m.wrong == headBeforeCopy:
		step, at = step-1, at-r.n
	}
	r.pc++
	if step == 2*r.n {
		s.head += r.n
	} else {
		slot := &s.slots[r.slots[step/2]]
		if step%2 == 1 {
			slot.state = SlotTaken
		} else {
			*slot = mSlot{sqe: s.sq[(at+step/2)%modelEntries], n: at + step/2}
		}
	}
	if r.pc == 2*r.n+1 {
		r.phase, r.pc, r.n, r.slots = idle, 0, 0, [modelEntries]uint8{}
	}
	m.next(s)
}

// startPublish chooses the results of a batch: as many as there is room for.
func (s mState) startPublish() (mState, bool) {
	r := &s.run
	r.head += (int8(s.headDB) + 2*modelEntries - r.head%modelEntries) % modelEntries
	r.n = min(r.queued, uint8(modelEntries-1-(int8(s.tail)-r.head)))
	r.slots, r.pc = r.queue, 0
	r.phase = publishing
	return s, r.n > 0
}

// consumed is what the guest has taken, free-running, if nothing beyond the tail
// was published.
func (s *mState) consumed() int8 {
	tail := int8(s.tail)
	return tail - (tail%modelEntries+modelEntries-int8(s.headDB))%modelEntries
}

// publish is P2 to P5.
func (m *model) publish(s mState) {
	r := &s.run
	order := m.publishOrder(r.n)
	op := order[r.pc]
	slot := &s.slots[r.slots[op.i]]
	entry := &s.cq[slot.cqn%modelEntries]
	switch op.step {
	case stepResult:
		slot.cqn = s.tail + op.i
		slot.cqe = mCQE{slot.sqe.k, s.head % modelEntries, slot.sqe.k, slot.sqe.cid, slot.cqn/modelEntries&1 ^ 1}
	case stepDone:
		slot.state = SlotDone
	case stepRest:
		slot.cqe.putRest(entry)
	case stepEntry:
		slot.cqe.put(entry)
	case stepTail:
		s.tail += r.n
	case stepFree:
		*slot = mSlot{}
		r.what[r.slots[op.i]] = unknown
	}
	if r.pc++; int(r.pc) == len(order) {
		copy(r.queue[:], r.queue[r.n:])
		clear(r.queue[modelEntries-r.n:])
		r.queued -= r.n
		r.phase, r.pc, r.n, r.slots = idle, 0, 0, [modelEntries]uint8{}
	}
	m.next(s)
}

// putRest stores dwords 0 to 2.
func (e mCQE) putRest(to *mCQE) { to.rest, to.sqhd = e.rest, e.sqhd }

// put stores dword 3.
func (e mCQE) put(to *mCQE) { to.k, to.cid, to.phase = e.k, e.cid, e.phase }

// steps of Publish.
const (
	stepResult uint8 = iota // CQE and CQN into the slot
	stepDone
	stepRest  // dwords 0 to 2
	stepEntry // dword 3
	stepTail
	stepFree
)

type publishStep struct{ step, i uint8 }

// publishOrder is the order of the stores of a batch.
func (m *model) publishOrder(n uint8) []publishStep {
	var order []publishStep
	each := func(steps ...uint8) {
		for i := range n {
			for _, step := range steps {
				order = append(order, publishStep{step, i})
			}
		}
	}
	tail := func() { order = append(order, publishStep{step: stepTail}) }
	each(stepResult, stepDone)
	switch m.wrong {
	case entryBeforeRest:
		each(stepEntry, stepRest)
		tail()
		each(stepFree)
	case tailBeforeEntry:
		tail()
		each(stepRest, stepEntry)
		each(stepFree)
	case freeBeforeTail:
		each(stepRest, stepEntry)
		each(stepFree)
		tail()
	default:
		each(stepRest, stepEntry)
		tail()
		each(stepFree)
	}
	return order
}

// recover takes the next step of recovery.
func (m *model) recover(s mState) {
	for i := range s.slots {
		slot := &s.slots[i]
		if slot.state == SlotTaken && slot.n >= s.head && m.wrong != redoUnannounced ||
			slot.state == SlotDone && m.published(&s, slot) {
			*slot = mSlot{}
			m.next(s)
			return
		}
	}
	// What is final, in the order of its numbers.
	final := -1
	for i := range s.slots {
		if s.slots[i].state == SlotDone && (final < 0 || s.slots[i].cqn < s.slots[final].cqn) {
			final = i
		}
	}
	if final < 0 {
		head := s.run.head
		if m.wrong != headBeforeRecovery {
			head = s.consumed()
		}
		s.run = mRuntime{phase: idle, head: head}
		m.next(s)
		return
	}
	slot := &s.slots[final]
	entry := &s.cq[slot.cqn%modelEntries]
	switch s.run.pc {
	case 0:
		slot.cqe.putRest(entry)
	case 1:
		slot.cqe.put(entry)
	case 2:
		s.tail++
	}
	s.run.pc = (s.run.pc + 1) % 3
	m.next(s)
}

// published reports whether a final result has been published.
func (m *model) published(s *mState, slot *mSlot) bool {
	if m.wrong != decideByCID {
		return slot.cqn < s.tail
	}
	for _, e := range s.cq {
		if e.phase != 0 && e.cid == slot.sqe.cid {
			return true
		}
	}
	return false
}

// start is a new queue with a runtime.
func start(crashes, resets uint8) mState {
	return mState{phase: 1, crashes: crashes, resets: resets, run: mRuntime{phase: idle}}
}

// explore visits every state that can be reached, and returns how many, and what
// went wrong first, with the way there.
func (m *model) explore(from mState, visit func(mState)) (states int, failure string) {
	seen := map[mState]struct{}{from: {}}
	all, parents := []mState{from}, []int32{-1}
	for at := 0; at < len(all); at++ {
		s := all[at]
		if visit != nil {
			visit(s)
		}
		next, progress := m.steps(s)
		if !progress && s.over != 1<<modelCommands-1 {
			m.fail("nothing happens any more, and not every command has ended")
		}
		if m.failure != "" {
			var way []string
			for i := int32(at); i >= 0; i = parents[i] {
				way = append(way, fmt.Sprintf("%+v", all[i]))
			}
			slices.Reverse(way)
			return len(all), m.failure + "\n" + strings.Join(way, "\n")
		}
		for _, n := range next {
			if _, ok := seen[n]; !ok {
				seen[n] = struct{}{}
				all, parents = append(all, n), append(parents, int32(at))
			}
		}
	}
	return len(all), ""
}

// TestModel finds nothing wrong with the protocol, and something with each way
// to get it wrong.
func TestModel(t *testing.T) {
	m := model{}
	states, failure := m.explore(start(2, 1), nil)
	t.Logf("%d states", states)
	if failure != "" {
		t.Error(failure)
	}
	for wrong, name := range map[variant]string{
		decideByCID: "decide by CID", waitForExitOnly: "wait for exit only", clearDoorbellsAtReset: "clear doorbells at reset",
		publishBeforeEffect: "publish before effect", headBeforeCopy: "head before copy", redoUnannounced: "redo what is not announced",
		entryBeforeRest: "dword 3 before the rest", tailBeforeEntry: "tail before entry", freeBeforeTail: "free before tail",
		headBeforeRecovery: "head before recovery",
	} {
		m := model{wrong: wrong}
		states, failure := m.explore(start(2, 1), nil)
		if failure == "" {
			t.Errorf("%s: nothing is found in %d states", name, states)
		}
		first, _, _ := strings.Cut(failure, "\n")
		t.Logf("%s: %s (%d states)", name, first, states)
	}
}
