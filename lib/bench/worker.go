// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench

import (
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
)

// Queue carries out the I/Os of a Worker, on one thread.
type Queue interface {
	// Start begins an I/O. It does not block, and the I/O ends by one call of its
	// End or Lose, later and not from within Start. False: nothing was begun, and
	// nothing can be any more.
	Start(*IO) bool
	// Now reads a clock that never goes back.
	Now() time.Duration
}

// IO is a read or a write. It is the Queue's from Start to its end.
type IO struct {
	Slot  int // 0 to Job.Depth-1: no other I/O of the Worker in flight has it
	Write bool
	LBA   uint64 // the first block
	Data  []byte // Job.IOSize bytes

	w      *Worker
	place  uint64 // of the Worker's part
	expect stamp  // of what is read; address is not set
	check  bool   // what is read is held against it
	busy   bool   // in flight
	began  time.Duration
}

// stage is what a Worker does.
type stage uint8

const (
	loading  stage = iota // the pattern
	checking              // reads back what the pass has written
)

// Worker is the load on one queue. Its methods are for the queue's thread.
type Worker struct {
	job      *Job
	queue    Queue
	finished func()
	set      *stats.Set
	first    uint64 // place of its part
	order    order
	numbers  source
	ios      []IO
	free     []*IO
	until    time.Duration // as Queue.Now; 0: no limit
	now      time.Duration

	stage   stage
	pass    uint32 // from 1 on
	next    uint64 // number in the order
	written uint64 // checking: how many places this pass has written
	stopped bool   // nothing new is begun
	ended   bool

	unknown    map[uint64]bool // places where a write has failed
	errors     map[nvme.Status]uint64
	checked    uint64
	mismatches uint64
	shown      []Mismatch
}

// NewWorker makes worker number i of a job that Check likes. memory is for the
// data of its I/Os, Depth times IOSize bytes. group counts what it does.
// finished is called on the thread when nothing is in flight and nothing more
// will be.
func NewWorker(job *Job, i int, q Queue, memory []byte, group *stats.Group, finished func()) *Worker {
	first, n := job.part(i)
	w := &Worker{
		job: job, queue: q, finished: finished, set: stats.NewSet(group), first: first,
		order: newOrder(n, job.Pattern.random()), numbers: newSource(uint64(i), uint64(job.Seed)),
		ios: make([]IO, job.Depth), free: make([]*IO, 0, job.Depth),
		unknown: make(map[uint64]bool), errors: make(map[nvme.Status]uint64),
	}
	// Where there are no stamps, data that neither compresses nor repeats.
	fill(memory, w.numbers)
	for slot := range w.ios {
		io := &w.ios[slot]
		*io = IO{Slot: slot, w: w, Data: memory[slot*int(job.IOSize):][:job.IOSize:job.IOSize]}
		w.free = append(w.free, io)
	}
	w.turn()
	return w
}

// turn begins a pass.
func (w *Worker) turn() {
	w.pass++
	w.next = 0
	w.order.key = w.numbers.next() | 1<<63 // so that there are four steps
}

// Begin begins.
func (w *Worker) Begin() {
	w.now = w.queue.Now()
	if w.job.Time > 0 {
		w.until = w.now + w.job.Time
	}
	w.pump()
}

// Stop has the Worker finish when what is in flight has ended.
func (w *Worker) Stop() {
	w.stopped = true
	w.pump()
}

// pump begins as many I/Os as there can be.
func (w *Worker) pump() {
	for !w.stopped && len(w.free) > 0 {
		io := w.free[len(w.free)-1]
		switch {
		case w.choose(io):
			w.start(io)
		case len(w.free) < len(w.ios):
			return // the stage ends with what is in flight
		default:
			w.advance()
		}
	}
	if w.stopped && !w.ended && len(w.free) == len(w.ios) {
		w.ended = true
		w.set.End()
		w.finished()
	}
}

// start hands an I/O to the queue.
func (w *Worker) start(io *IO) {
	w.free = w.free[:len(w.free)-1]
	io.busy = true
	io.began = w.queue.Now()
	if !w.queue.Start(io) {
		io.Lose()
	}
}

// choose makes the next I/O of the stage; false: there is none.
func (w *Worker) choose(io *IO) bool {
	if w.stage == checking {
		return w.chooseCheck(io)
	}
	job := w.job
	switch {
	case w.due():
		return false
	case w.next < w.order.n:
	case w.last() || w.readsBack():
		return false
	default:
		w.turn()
	}
	write := job.Pattern.Writes()
	if job.Pattern == Mixed && w.numbers.below(100) < uint64(job.ReadPercent) {
		if job.Verify && w.chooseSettled(io) {
			return true
		}
		write = job.Verify // until there is something to be read that is known
	}
	place := w.order.at(w.next)
	w.next++
	switch {
	case write:
		w.write(io, place)
	case job.Verify:
		w.read(io, place, stamp{seed: job.Seed})
	default:
		w.put(io, place)
	}
	return true
}

// put says where an I/O is; it is a read without more.
func (w *Worker) put(io *IO, place uint64) {
	io.place, io.Write, io.check = place, false, false
	io.LBA = w.job.First + (w.first+place)*w.job.perIO()
}

// write makes a write, with stamps if they will be verified.
func (w *Worker) write(io *IO, place uint64) {
	w.put(io, place)
	io.Write = true
	if !w.job.Verify {
		return
	}
	s := stamp{address: io.LBA, seed: w.job.Seed, pass: w.pass}
	for b := io.Data; len(b) > 0; b = b[w.job.Block:] {
		s.put(b[:w.job.Block])
		s.address++
	}
}

// read makes a read that is held against what is expected.
func (w *Worker) read(io *IO, place uint64, expect stamp) {
	w.put(io, place)
	io.check, io.expect = true, expect
	// What was in this memory before is not taken for what was read.
	for b := io.Data; len(b) > 0; b = b[w.job.Block:] {
		erase(b)
	}
}

// due reports whether the time is up.
func (w *Worker) due() bool { return w.until != 0 && w.now >= w.until }

// last reports whether there is no pass after this one.
func (w *Worker) last() bool { return w.job.Passes != 0 && w.pass == w.job.Passes }

// readsBack reports whether a pass is read back before the next.
func (w *Worker) readsBack() bool { return w.job.Verify && w.job.Pattern.Writes() }

// chooseSettled makes a read of what this pass has written; false: chance has
// found nothing of the kind.
func (w *Worker) chooseSettled(io *IO) bool {
	const tries = 4
	for range min(tries, w.next) {
		place := w.order.at(w.numbers.below(w.next))
		if w.settled(place) {
			w.read(io, place, stamp{seed: w.job.Seed, pass: w.pass})
			return true
		}
	}
	return false
}

// settled reports whether what is in a place is known.
func (w *Worker) settled(place uint64) bool {
	if len(w.unknown) > 0 && w.unknown[place] {
		return false
	}
	for i := range w.ios {
		if io := &w.ios[i]; io.busy && io.Write && io.place == place {
			return false
		}
	}
	return true
}

// chooseCheck makes the next read of what was written: by this pass, and behind
// that by the one before.
func (w *Worker) chooseCheck(io *IO) bool {
	end := w.written
	if w.pass > 1 {
		end = w.order.n
	}
	for w.next < end {
		pass := w.pass
		if w.next >= w.written {
			pass--
		}
		place := w.order.at(w.next)
		w.next++
		if w.settled(place) {
			w.read(io, place, stamp{seed: w.job.Seed, pass: pass})
			return true
		}
	}
	return false
}

// advance goes on to the next stage: nothing is in flight.
func (w *Worker) advance() {
	switch {
	case w.stage == loading && w.readsBack():
		w.stage, w.written, w.next = checking, w.next, 0
	case w.stage == checking && !w.due() && !w.last():
		w.stage = loading
		w.turn()
	default:
		w.stopped = true
	}
}

// End ends the I/O with a status.
func (io *IO) End(st nvme.Status) {
	w := io.w
	w.now = w.queue.Now()
	kind := stats.Read
	if io.Write {
		kind = stats.Write
	}
	failed := st.Code() != nvme.StatusSuccess
	w.set.Record(kind, stats.LatencyOf(w.now-io.began), uint64(len(io.Data)), failed)
	switch {
	case failed:
		w.errors[st.Code()]++
		if io.Write && w.job.Verify {
			w.unknown[io.place] = true
		}
	case io.Write:
		if len(w.unknown) > 0 {
			delete(w.unknown, io.place)
		}
	case io.check:
		w.verify(io)
	}
	io.release()
}

// Lose ends the I/O without a status: it cannot be known whether it has had an
// effect, and nothing more can be begun.
func (io *IO) Lose() {
	io.w.stopped = true
	io.release()
}

// release gives the I/O back.
func (io *IO) release() {
	io.busy = false
	io.w.free = append(io.w.free, io)
	io.w.pump()
}

// maxShown is how many mismatches of a Worker are described.
const maxShown = 8

// verify holds what was read against its stamps.
func (w *Worker) verify(io *IO) {
	s := io.expect
	s.address = io.LBA
	for b := io.Data; len(b) > 0; b = b[w.job.Block:] {
		w.checked++
		if block := b[:w.job.Block]; !s.check(block) {
			w.mismatches++
			if len(w.shown) < maxShown {
				w.shown = append(w.shown, s.mismatch(block))
			}
		}
		s.address++
	}
}

// Result is what a Worker has found. How many I/Os there were, and how long they
// took, is with its group.
type Result struct {
	Passes     uint32                 // begun
	Errors     map[nvme.Status]uint64 // I/Os that have failed, by status code
	Checked    uint64                 // blocks that were held against stamps
	Mismatches uint64                 // of them
	Shown      []Mismatch             // the first of those
}

// Result returns the result of a Worker that has finished.
func (w *Worker) Result() Result {
	return Result{Passes: w.pass, Errors: w.errors, Checked: w.checked, Mismatches: w.mismatches, Shown: w.shown}
}
