// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"errors"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/stats"
)

const (
	// fewest and most commands are fetched from a queue at once while others want
	// the poller, too: by fewest, a fused pair comes as a whole. They move some
	// piece bytes, going by those before them, which takes a few microseconds.
	fewest, most = 2, 16
	piece        = 32 << 10
	// batch is the most that are fetched while nobody does, so that the guest is
	// interrupted once for many. One that polls takes the results of some while
	// the next are being executed: batchPolled.
	batch, batchPolled = 64, 16
	// ringDeadline is how long a ring may stay unmapped while the controller
	// is enabled. Firmware does it for a moment.
	ringDeadline = 10 * time.Second
)

// queue is a submission queue of a lane.
type queue struct {
	*qpair.SQ
	cq        *completions
	stats     *stats.Set
	executing int    // commands that have no result yet
	broken    bool   // the guest wrote an impossible doorbell: no more commands
	drained   func() // Delete SQ waits for the queue's commands
}

// completions is a completion queue of a lane and the submission queues that
// use it: one poller serves them all.
type completions struct {
	*qpair.CQ
	lane   *lane
	polled bool // it never interrupts
	ready  bool // Run is due
	sqs    []*queue
	turn   int // of sqs: whose turn it is
	broken bool
	held   int       // published entries that wait for others before they interrupt
	due    time.Time // when they interrupt at the latest
}

// lane is a port's queues on one poller, from enable to reset. Its methods and
// fields are for that poller only.
type lane struct {
	port   *Port
	p      *poller.Poller
	share  *poller.Share
	gen    uint64 // reset generation of its queues
	view   *dma.View
	ctrl   *controller.Controller
	worker *controller.Worker

	cqs     []*completions
	turn    int // of cqs: whose turn it is
	moved   int // bytes of commands since the last fetch
	few     int // commands to fetch at once while others want the poller
	running int // commands in execution, parked and pending ones included
	parked  []*command
	all     []*command // every record there is; those with a queue are in execution
	free    []*command
	lists   [][]dma.Segment // long segment lists to lend
	slots   []uint16        // scratch of fetch

	shadow, events uint64 // guest pages of Doorbell Buffer Config; 0: none
	shadowChanged  bool   // since the last commit

	suspended bool   // ring memory is not mapped now
	pauses    int    // how often it was suspended
	stopping  bool   // fetch nothing more
	dead      bool   // publish nothing more
	idle      func() // told once when nothing but parked event requests is running
	admin     bool
	again     bool // the command being started may have been executed before
}

// newLane makes a lane without queues and has its poller serve it.
func (p *Port) newLane(on *poller.Poller, gen uint64, ctrl *controller.Controller) *lane {
	l := &lane{port: p, p: on, share: on.NewShare(), gen: gen, ctrl: ctrl, slots: make([]uint16, 0, batch), few: most}
	l.view = p.space.NewView(func(f func()) { l.post(f) }, l.changed)
	l.share.Add(l)
	on.Prefer(p.pollMode(on), 1)
	return l
}

// newWorker opens the controller's namespaces on the lane's poller.
func (l *lane) newWorker() (*controller.Worker, error) {
	defer l.share.Enter().Leave()
	return l.ctrl.Worker(l.p)
}

// post runs f on the lane's poller. Pollers stop only after their lanes have
// ended, so that f is never lost.
func (l *lane) post(f func()) {
	post(l.p, func() {
		visit := l.share.Enter()
		f() // it may fault, which ends the visit
		visit.Leave()
	})
}

// Poll implements poller.Source.
func (l *lane) Poll() int {
	if l.suspended {
		return 0
	}
	n := 0
	for range l.cqs {
		cq := l.cqs[l.turn]
		if l.turn++; l.turn == len(l.cqs) {
			l.turn = 0
		}
		n += l.publish(cq)
		if l.stopping {
			continue
		}
		for range cq.sqs {
			q := cq.sqs[cq.turn]
			if cq.turn++; cq.turn == len(cq.sqs) {
				cq.turn = 0
			}
			k := 0
			if q.ID == 0 {
				k = l.fetchAdmin(q)
			} else {
				k = l.fetch(q)
			}
			if n += k; k > 0 && l.p.Spent() {
				return n // the next queue is the first of the next turn
			}
		}
	}
	return n
}

// fetchAdmin executes an admin command. The next is fetched when the result of
// the one before has been published, so that only the last that was committed
// can be executed again. Parked event requests do not count.
func (l *lane) fetchAdmin(q *queue) int {
	if l.adminBusy(q) {
		return 0
	}
	slots := l.newCommands(q, l.slots[:0:1])
	for _, slot := range slots {
		if l.doubtful(q, slot) {
			l.probe(q, slot)
		} else {
			l.execute(q, slot)
		}
	}
	return len(slots)
}

// adminBusy reports whether an admin command is between fetch and publication.
func (l *lane) adminBusy(q *queue) bool {
	return q.executing > l.ctrl.Parked() || q.CQ.Pending() > 0
}

// fetch takes new commands of an I/O queue and executes them.
func (l *lane) fetch(q *queue) int {
	room := l.few
	if !l.p.Contended() {
		room = q.cq.batch()
	}
	slots := l.newCommands(q, l.slots[:0:room])
	if len(slots) == 0 {
		return 0
	}
	l.moved = 0
	for _, slot := range slots {
		l.execute(q, slot)
	}
	l.few = min(max(fewest, piece*len(slots)/max(l.moved, 1)), most)
	return len(slots)
}

// newCommands takes new commands of a queue into slots, up to its capacity.
func (l *lane) newCommands(q *queue, slots []uint16) []uint16 {
	if q.broken {
		return nil
	}
	slots, err := q.Fetch(slots)
	if err != nil {
		l.broken(err, &q.broken)
		return nil
	}
	if len(slots) > 0 {
		l.p.Tick() // they are counted from now on
	}
	return slots
}

// find returns a completion queue of the lane.
func (l *lane) find(id uint16) *completions {
	for _, cq := range l.cqs {
		if cq.ID == id {
			return cq
		}
	}
	return nil
}

// execute runs the command in a slot.
func (l *lane) execute(q *queue, slot uint16) {
	c := l.take()
	c.sq, c.slot, c.SQE, c.SQID, c.Stats = q, slot, q.Slot(slot).SQE, q.ID, q.stats
	c.Kept = &q.Slot(slot).Aux[0]
	l.running++
	q.executing++
	if q.ID == 0 {
		l.ctrl.Admin(&c.Command)
	} else {
		l.worker.Execute(&c.Command)
	}
}

// batch returns how many commands are fetched at once while nobody else wants the
// poller.
func (cq *completions) batch() int {
	if cq.polled {
		return batchPolled
	}
	return batch
}

// complete records the result of a command. A guest that polls sees it soon, with
// those of the commands that end by then; to others the next turn shows it.
func (cq *completions) complete(c *command) {
	c.sq.Complete(c.slot, c.DW0, c.DW1, c.Status)
	if cq.polled && !cq.ready {
		cq.ready = true
		cq.lane.share.Defer(cq)
	}
}

// Run implements poller.Runnable: it follows the continuations that have completed
// commands.
func (cq *completions) Run() {
	cq.ready = false
	if !cq.lane.suspended {
		cq.lane.publish(cq)
	}
}

// publish shows results to the guest and interrupts it.
func (l *lane) publish(cq *completions) int {
	if cq.broken || l.dead {
		return 0
	}
	if cq.held > 0 && (l.stopping || !time.Now().Before(cq.due)) {
		l.release(cq)
	}
	if cq.Pending() == 0 {
		return 0
	}
	n, err := cq.Publish()
	if n > 0 {
		l.interrupt(cq, n)
	}
	if err != nil {
		l.broken(err, &cq.broken)
	}
	return n
}

// interrupt tells the guest of n new entries, or waits for others if that is
// what it wants (Interrupt Coalescing; never of the admin queue).
func (l *lane) interrupt(cq *completions, n int) {
	vector, on := cq.Vector()
	if !on {
		return
	}
	if cq.ID != 0 && !l.stopping {
		if most, wait := l.ctrl.Coalescing(vector); wait > 0 {
			if cq.held == 0 {
				cq.due = time.Now().Add(wait)
			}
			if cq.held += n; cq.held < most {
				return
			}
		}
	}
	cq.held = 0
	l.port.fire(cq.CQ)
}

// release interrupts for entries that have waited, unless the guest has found
// them by itself.
func (l *lane) release(cq *completions) {
	cq.held = 0
	if cq.Unread() {
		l.port.fire(cq.CQ)
	}
}

// broken follows an error of a ring: memory that is not mapped now suspends
// the lane; an impossible doorbell costs the queue; anything else the
// controller.
func (l *lane) broken(err error, mark *bool) {
	switch {
	case errors.Is(err, dma.ErrFault):
		l.suspend()
	case errors.Is(err, errLinkDown):
		l.stopping = true // the port is about to be given up
	case errors.Is(err, qpair.ErrDoorbell):
		*mark = true
		if n, ok := l.port.badDoorbells.Next(); ok {
			l.port.log.Warn("guest wrote an invalid doorbell value; the queue is stopped until the next reset", "times", n)
		}
		l.port.adminPost(func(a *lane) { a.ctrl.Event(nvme.EventInvalidDoorbellValue) })
	default:
		l.fail(err.Error())
	}
}

// suspend waits for the ring memory to be mapped again.
func (l *lane) suspend() {
	if l.suspended {
		return
	}
	l.suspended = true
	l.pauses++
	pause := l.pauses
	time.AfterFunc(ringDeadline, func() {
		_ = l.p.Post(func() {
			if l.pauses == pause && l.suspended && !l.stopping {
				l.fail("queue memory is not mapped")
			}
		})
	})
}

// fail stops the lane and shows the guest a fatal controller status.
func (l *lane) fail(reason string) {
	l.stopping, l.dead = true, true
	l.port.homePost(func() { l.port.fatal(l.gen, reason) })
}

// changed follows a change of the guest's memory map.
func (l *lane) changed() {
	waited := l.suspended
	l.suspended = false
	for _, cq := range l.cqs {
		cq.Rebind()
		for _, q := range cq.sqs {
			q.Rebind()
		}
	}
	l.bindShadow()
	// One by one: reading a PRP list may fault, and the others are still there.
	for range len(l.parked) {
		c := l.parked[0]
		l.parked = append(l.parked[:0], l.parked[1:]...)
		if ready, st := c.Data(c.n, c.dir); ready {
			c.Ready(st)
		}
	}
	if waited {
		l.refire() // nobody could look for what is unread
	}
}

// behind reports whether leap-wpt has announced a memory map that has not
// arrived here yet.
func (l *lane) behind() bool { return l.view.Gen() != l.port.regs.Page.LoadMapGen() }

// bindShadow points the queues at the guest's shadow doorbells. While their
// pages are not mapped nothing can be fetched: the registers may be older.
func (l *lane) bindShadow() {
	if l.shadow == 0 {
		return
	}
	shadow, ok1 := l.view.Pointer(l.shadow, qpair.PageSize, dma.ProtRead|dma.ProtWrite)
	events, ok2 := l.view.Pointer(l.events, qpair.PageSize, dma.ProtRead|dma.ProtWrite)
	if !ok1 || !ok2 {
		l.unbindShadow()
		l.suspend()
		return
	}
	for _, cq := range l.cqs {
		// The admin queue's doorbells are always the registers.
		if cq.ID != 0 {
			cq.SetShadow(qpair.DoorbellsAt(shadow), qpair.DoorbellsAt(events))
		}
		for _, q := range cq.sqs {
			if q.ID != 0 {
				q.SetShadow(qpair.DoorbellsAt(shadow), qpair.DoorbellsAt(events))
			}
		}
	}
}

// unbindShadow stops looking at shadow doorbells: their memory is about to go.
func (l *lane) unbindShadow() {
	for _, cq := range l.cqs {
		if cq.ID != 0 {
			cq.FreezeShadow()
		}
		for _, q := range cq.sqs {
			if q.ID != 0 {
				q.FreezeShadow()
			}
		}
	}
}

// Arm implements poller.Source.
func (l *lane) Arm() poller.Wake {
	if l.suspended || l.dead {
		return poller.WakeEvent
	}
	wake := poller.WakeEvent
	if l.port.mapped && !l.stopping {
		wake = poller.WakeLook
	}
	for _, cq := range l.cqs {
		if !cq.broken && cq.Arm() {
			return poller.WakeNow
		}
		if cq.held > 0 {
			wake = poller.WakeLook
		}
		if l.stopping {
			continue
		}
		for _, q := range cq.sqs {
			if q.ID == 0 && l.adminBusy(q) {
				continue // its end is followed by another look
			}
			if !q.broken && q.Arm() {
				return poller.WakeNow
			}
		}
	}
	return wake
}

// Holds implements poller.Source.
func (l *lane) Holds(addr uintptr) bool { return l.port.space.Holds(addr) }

// Fault implements poller.Source: the client took away memory under an access.
func (l *lane) Fault() { l.fail("guest memory was truncated by the client") }

// take returns a command record.
func (l *lane) take() *command {
	if n := len(l.free); n > 0 {
		c := l.free[n-1]
		l.free = l.free[:n-1]
		return c
	}
	c := &command{lane: l}
	c.Init(c)
	l.all = append(l.all, c)
	return c
}

// borrow lends a segment list for the largest transfer.
func (l *lane) borrow() []dma.Segment {
	if n := len(l.lists); n > 0 {
		s := l.lists[n-1]
		l.lists = l.lists[:n-1]
		return s
	}
	return make([]dma.Segment, 0, dma.MaxSegments)
}

// stop ends the lane: it fetches nothing more, waits for what is in execution
// and calls done. With publish, results still go to the guest (a clean stop:
// the queues live on); without, the queues are dead already (a reset).
func (l *lane) stop(publish bool, done func()) {
	l.quit(publish)
	// In turns of their own: publishing may fault.
	l.idle = func() {
		l.post(l.publishAll)
		l.post(func() {
			l.end()
			done()
		})
	}
	l.settle()
}

// quit fetches nothing more, and publishes nothing more if publish is false.
// Commands that wait for a mapping have done nothing: their slots stay taken and
// a successor executes them.
func (l *lane) quit(publish bool) {
	l.stopping = true
	if !publish {
		l.dead = true
	}
	parked := l.parked
	l.parked = nil
	for _, c := range parked {
		c.abandoned = true
		c.Ready(nvme.StatusCommandInterrupted)
	}
	if publish {
		time.AfterFunc(drain, func() { _ = l.p.Post(l.leave) }) // the poller may have stopped after the lane
		return
	}
	// A reset does not wait for a Format, nor for a volume whose medium is away.
	for _, c := range l.all {
		if c.sq != nil {
			c.Cancel()
		}
	}
}

// drain is how long a clean stop waits for commands before it leaves them to a
// successor: a volume whose medium is away may hold them for long.
const drain = time.Second

// leave cancels what is still in execution at a clean stop. A command that ends
// aborted is not published: its slot stays taken, and a successor executes it
// again, as after a kill. Fused pairs are waited for: their halves go together.
func (l *lane) leave() {
	if l.idle == nil {
		return // it has ended
	}
	for _, c := range l.all {
		if c.sq != nil && c.sq.ID != 0 && c.SQE.Fuse() == nvme.FuseNone {
			c.left = true
			c.Cancel()
		}
	}
}

// publishAll publishes what there is room for. Results without room were not
// published: a successor executes their commands again.
func (l *lane) publishAll() {
	for _, cq := range l.cqs {
		l.publish(cq)
	}
}

// settle calls idle when nothing is in execution that ends by itself.
func (l *lane) settle() {
	waiting := l.running
	if l.admin {
		waiting -= l.ctrl.Parked()
	}
	if l.idle == nil || waiting > 0 {
		return
	}
	idle := l.idle
	l.idle = nil
	idle()
}

// end gives everything back.
func (l *lane) end() {
	l.stopping, l.dead = true, true
	if l.admin {
		l.ctrl.Close() // parked event requests end without a result
	}
	if l.worker != nil {
		l.worker.Close()
	}
	l.view.Close()
	l.p.Prefer(l.port.pollMode(l.p), -1)
	l.p.Remove(l)
	l.share.Close()
}
