// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
)

// phase is where a port's life cycle stands.
type phase uint8

const (
	disabled  phase = iota // no queues; EN=1 is awaited
	busy                   // enabling, resetting or stopping: its end looks again
	enabled                // commands are served
	unserved               // EN=1 cannot be served, or the controller has failed: a reset is awaited
	abandoned              // no longer ours
)

// Port is one port as the runtime serves it. It follows the register page on
// its home poller: enable, reset, shutdown, interrupt masks.
type Port struct {
	ID        uint32
	Name      string
	Subsystem string // name of the subsystem leap-wpt has bound to it

	c      *Client
	log    *slog.Logger
	home   *poller.Poller
	others []*poller.Poller
	mapped bool // the doorbell page is mapped into the guest
	poll   qpair.PollMode
	kick   int
	regs   *qpair.Shared[qpair.Registers]
	bells  *qpair.Shared[qpair.Doorbells]
	state  *qpair.Shared[qpair.State]
	space  *dma.Space

	vectors [qpair.Vectors]vector
	intx    vector
	raised  atomic.Bool // INTx has been fired and not unmasked since

	// Owned by the goroutine that follows the link.
	unshared bool // the client gives files for memory that it maps privately
	leaving  bool // being given up: messages do not concern it any more

	// What a guest can bring about as often as it likes.
	fatals, badDoorbells fault.Repeats

	// sub is the subsystem shown to the guest; nil: it does not exist (yet).
	sub atomic.Pointer[controller.Subsystem]

	// Owned by the home poller.
	phase   phase
	gen     uint64 // reset generation reached
	cc      nvme.CC
	masks   masks
	queues  *queues
	private *poller.Poller // serves the queues of memory that is not shared
	relayed bool           // set while enabled; read by lanes
	hinted  bool           // that memory is not shared has been logged
	waiting []func()       // to run when the phase is no longer busy
	faulted *dma.Table     // with which queues could not be adopted; nil: none
}

// newPort takes over the fds of a MsgAttach.
func (c *Client) newPort(m *message, pollers []*poller.Poller) (*Port, error) {
	if len(m.fds) != 4 {
		qpair.CloseFDs(m.fds)
		return nil, fmt.Errorf("attach with %d fds, expected 4", len(m.fds))
	}
	p := &Port{
		ID: m.Port, Name: qpair.NameOf(&m.Name), Subsystem: qpair.NameOf(&m.Subsystem),
		c: c, home: pollers[int(m.Port)%len(pollers)], others: pollers, kick: m.fds[3],
		mapped: m.Flags&qpair.PortMapped != 0, poll: m.Index,
		space: dma.NewSpace(relay{c, m.Port}),
	}
	p.log = c.log.With("port", p.Name)
	var err [3]error
	p.regs, err[0] = qpair.Open[qpair.Registers](m.fds[0])
	p.bells, err[1] = qpair.Open[qpair.Doorbells](m.fds[1])
	p.state, err[2] = qpair.Open[qpair.State](m.fds[2])
	p.space.Skip(m.Gen)
	e := errors.Join(err[:]...)
	if e == nil {
		e = errors.Join(p.regs.Page.Check(), p.state.Page.Check())
	}
	if e != nil {
		p.release()
		return nil, fmt.Errorf("port %s: %w", p.Name, e)
	}
	p.unshared = atomic.LoadUint32(&p.state.Page.Header.Unshared) != 0
	return p, nil
}

// release closes what the port holds.
func (p *Port) release() {
	if p.regs != nil {
		p.regs.Close()
	}
	if p.bells != nil {
		p.bells.Close()
	}
	if p.state != nil {
		p.state.Close()
	}
	unix.Close(p.kick)
	for i := range p.vectors {
		p.vectors[i].close()
	}
	p.intx.close()
}

// start has the home poller follow the registers.
func (p *Port) start() {
	p.homePost(func() {
		// What was announced before is found by looking: every poller that may
		// serve queues is woken by the kick.
		word := p.regs.Page.LoadStatus()
		p.gen = uint64(word.Gen())
		if gen := p.regs.Page.LoadResetGen(); word.Current(gen) {
			p.gen = gen
		}
		p.home.Add(p)
	})
	for _, q := range p.others {
		post(q, func() {
			if err := q.Watch(p.kick); err != nil {
				p.log.Error("port cannot be watched", "poller", q.Name(), "err", err)
			}
		})
	}
}

// homePost runs f on the home poller.
func (p *Port) homePost(f func()) { post(p.home, f) }

// adminPost runs f on the admin queue's poller, if the controller is enabled, or
// when it has been adopted.
func (p *Port) adminPost(f func(*lane)) {
	p.homePost(func() {
		p.whenSettled(func() {
			if q := p.queues; q != nil && p.phase == enabled {
				q.admin.post(func() { f(q.admin) })
			}
		})
	})
}

// pollerFor chooses the poller of a completion queue.
func (p *Port) pollerFor(qid uint16) *poller.Poller {
	if p.relayed {
		return p.private
	}
	return p.others[(int(p.ID)+int(qid))%len(p.others)]
}

// pollMode is what the port wants of a poller.
func (p *Port) pollMode(on *poller.Poller) poller.Mode {
	switch p.poll {
	case qpair.PollAdaptive:
		return poller.Adaptive
	case qpair.PollBusy:
		return poller.Busy
	case qpair.PollInterrupt:
		return poller.Interrupt
	}
	return on.Mode()
}

// SetSubsystem shows sub to the guest from the next enable on; nil: enabling
// waits. A controller that is enabled keeps what it has until its reset.
func (p *Port) SetSubsystem(sub *controller.Subsystem) {
	p.sub.Store(sub)
	p.homePost(func() {})
}

// Shows returns the subsystem that SetSubsystem has set.
func (p *Port) Shows() *controller.Subsystem { return p.sub.Load() }

// Poll implements poller.Source: it follows the registers.
func (p *Port) Poll() int {
	if p.phase == busy || p.phase == abandoned {
		return 0
	}
	regs := p.regs.Page
	gen := regs.LoadResetGen()
	cc := regs.LoadCC()
	switch {
	case gen != p.gen:
		p.reset()
		return 1
	case p.phase == disabled && cc.EN():
		return p.enable(cc)
	case cc.SHN() != p.cc.SHN() && p.phase != unserved:
		p.cc = cc
		p.followShutdown(cc.SHN() != 0)
		return 1
	}
	return p.followMasks()
}

// Arm implements poller.Source: every register write kicks.
func (p *Port) Arm() poller.Wake { return poller.WakeEvent }

// Holds implements poller.Source: the lanes hold the guest's memory.
func (p *Port) Holds(uintptr) bool { return false }

// Fault implements poller.Source.
func (p *Port) Fault() {}

// say publishes the controller's status of generation gen.
func (p *Port) say(gen uint64, csts nvme.CSTS) {
	p.regs.Page.StoreStatus(qpair.MakeStatus(gen, csts))
	m := qpair.Message{Kind: qpair.MsgStatus, Port: p.ID}
	// Without a link leap-wpt reads the page when there is one again.
	_ = p.c.link.Send(&m, nil)
}

// enable begins to serve a controller: a new one, or one that a runtime before
// this one has left ready.
func (p *Port) enable(cc nvme.CC) int {
	regs := p.regs.Page
	sub := p.sub.Load()
	if sub == nil || p.space.Table().Gen != regs.LoadMapGen() {
		return 0 // SetSubsystem and the next map message look again
	}
	gen := p.gen
	asq, acq, aqa := atomic.LoadUint64(&regs.ASQ), atomic.LoadUint64(&regs.ACQ), nvme.AQA(atomic.LoadUint32(&regs.AQA))
	status := regs.LoadStatus().CSTS()
	if status.CFS() {
		p.phase = unserved // the runtime before could not go on: a reset is the guest's cure
		return 1
	}
	adopt := status.RDY()
	if adopt && (p.faulted == p.space.Table() || !p.ringsMapped(gen)) {
		return 0 // the client is changing the guest's memory; the next map message looks again
	}
	if regs.LoadResetGen() != gen {
		return 1
	}
	p.cc = cc.WithSHN(0) // a shutdown asked for already is followed once enabled
	p.phase = busy
	if reason := checkEnable(cc, aqa, asq, acq); reason != "" {
		p.phase = unserved
		p.fatal(gen, reason)
		return 1
	}
	region, ok := p.space.Find(asq)
	p.relayed = ok && !region.Shared()
	qs := &queues{
		port: p, gen: gen, lanes: make(map[*poller.Poller]*lane),
		cqs: make(map[uint16]*lane), sqs: make(map[uint16]*lane),
	}
	p.queues = qs
	begin := func(on *poller.Poller) {
		post(on, func() {
			l, err := p.adminLane(on, sub, qs, adopt, func() {
				page := p.state.Page
				page.CQ[0].Create(gen, acq, uint32(aqa.ACQS())+1, 0, true)
				page.SQ[0].Create(gen, asq, uint32(aqa.ASQS())+1, 0)
				atomic.StoreUint32(p.bells.Page.SQTail(0), 0)
				atomic.StoreUint32(p.bells.Page.CQHead(0), 0)
			})
			if err != nil {
				p.homePost(func() { p.started(gen, err) })
				return
			}
			qs.run(l, adopt, func(err error) { p.homePost(func() { p.started(gen, err) }) })
		})
	}
	if !p.relayed {
		begin(p.home)
		return 1
	}
	if !p.hinted {
		p.hinted = true
		p.log.Warn("guest memory is not shared: served slowly, by messages (give QEMU's memory backend share=on)")
	}
	go p.startPrivate(begin)
	return 1
}

// ringsMapped reports whether the guest's memory has all queues of a generation.
// Without them what is outstanding would be executed in vain: its data is likely to
// be away, too.
func (p *Port) ringsMapped(gen uint64) bool {
	state := p.state.Page
	for id := range state.CQ {
		if cq := &state.CQ[id]; cq.Valid(gen) {
			if _, ok := p.space.Find(cq.Addr); !ok {
				return false
			}
		}
		if sq := &state.SQ[id]; sq.Valid(gen) {
			if _, ok := p.space.Find(sq.Addr); !ok {
				return false
			}
		}
	}
	return true
}

// startPrivate starts a poller for this port alone: accesses to its memory
// wait for messages, which must not hold up other ports.
func (p *Port) startPrivate(begin func(*poller.Poller)) {
	q, err := poller.Start(poller.Config{Name: p.Name, CPU: -1, Mode: poller.Interrupt, Fence: p.c.fence})
	if err == nil {
		_ = q.Do(func() { err = q.Watch(p.kick) }) // nobody else can have stopped it
		if err != nil {
			q.Stop()
		}
	}
	p.homePost(func() {
		if err != nil {
			p.started(p.gen, err)
			return
		}
		p.private = q
		begin(q)
	})
}

// checkEnable says why a controller cannot be enabled with these registers, or
// "" (NVMe Base 3.1.4.5, 3.1.4.8).
func checkEnable(cc nvme.CC, aqa nvme.AQA, asq, acq uint64) string {
	switch {
	case cc.MPS() != 0:
		return fmt.Sprintf("CC.MPS %d is not supported", cc.MPS())
	case cc.CSS() != 0:
		return fmt.Sprintf("CC.CSS %d is not supported", cc.CSS())
	case cc.AMS() != 0:
		return fmt.Sprintf("CC.AMS %d is not supported", cc.AMS())
	case aqa.ASQS() == 0 || aqa.ACQS() == 0:
		return "admin queue of one entry"
	case aqa.ASQS() >= qpair.MaxEntries || aqa.ACQS() >= qpair.MaxEntries:
		return fmt.Sprintf("admin queue of more than %d entries", qpair.MaxEntries)
	case asq%qpair.PageSize != 0 || acq%qpair.PageSize != 0:
		return "admin queue is not page-aligned"
	}
	return ""
}

// adminLane makes the controller and the lane of its admin queue; create makes
// the queue's pages for a new controller. It runs on the lane's poller.
func (p *Port) adminLane(on *poller.Poller, sub *controller.Subsystem, qs *queues, adopt bool, create func()) (*lane, error) {
	regs := p.regs.Page
	ctrl, err := sub.New(controller.Config{
		Poller: on, CNTLID: -1, VS: nvme.VS(regs.VS), MaxQueues: qpair.MaxQueues - 1, SGLS: dma.SGLS,
		Queues: qs, Aborter: qs, PCIVendor: qpair.PCIVendor, PCISubsystemVendor: qpair.PCIVendor, Life: p.life(sub), Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	l := p.newLane(on, qs.gen, ctrl)
	l.admin = true
	if l.worker, err = l.newWorker(); err == nil && adopt {
		err = l.restore()
	}
	if err != nil {
		l.end()
		return nil, err
	}
	if !adopt {
		create()
	}
	return l, nil
}

// run begins to serve the admin queue, and when adopting also the I/O queues.
func (s *queues) run(l *lane, adopt bool, done func(error)) {
	s.admin = l
	s.lanes[l.p] = l
	if adopt {
		s.adopt(1, done)
		return
	}
	l.addCQ(0)
	l.addSQ(0)
	done(nil)
}

// started ends enable.
func (p *Port) started(gen uint64, err error) {
	if p.phase != busy {
		return
	}
	if errors.Is(err, errLinkDown) {
		p.settle(unserved) // the port is about to be given up; a successor tries again
		return
	}
	if errors.Is(err, dma.ErrFault) {
		// It has changed just now. With the next map it is begun again.
		p.faulted = p.space.Table()
		p.quiesce(false, func() { p.settle(disabled) })
		return
	}
	if errors.Is(err, controller.ErrStateVersion) {
		// The guest waits for a runtime that can go on with what is outstanding, or
		// begins anew by a reset, with this one.
		p.log.Error("controller is left to a runtime of another release", "err", err)
		p.settle(unserved)
		return
	}
	if err != nil {
		p.settle(unserved)
		p.fatal(gen, err.Error())
		return
	}
	if p.regs.Page.LoadStatus().CSTS().CFS() {
		p.settle(unserved) // a lane has failed meanwhile
		return
	}
	p.say(gen, nvme.CSTS(0).WithRDY(true))
	p.settle(enabled)
}

// settle ends what kept the port busy.
func (p *Port) settle(to phase) {
	p.phase = to
	waiting := p.waiting
	p.waiting = nil
	for _, f := range waiting {
		p.whenSettled(f)
	}
}

// whenSettled runs f when the port is not busy. It runs on the home poller.
func (p *Port) whenSettled(f func()) {
	if p.phase == busy {
		p.waiting = append(p.waiting, f)
		return
	}
	f()
}

// fatal shows CSTS.CFS in generation gen; a reset is the guest's cure.
func (p *Port) fatal(gen uint64, reason string) {
	if gen != p.regs.Page.LoadResetGen() || p.regs.Page.LoadStatus().CSTS().CFS() {
		return // a reset is under way, or the guest knows
	}
	if n, ok := p.fatals.Next(); ok {
		p.log.Error("controller fatal status", "reason", reason, "times", n)
	}
	p.say(gen, nvme.CSTS(0).WithRDY(p.phase == enabled).WithCFS(true))
	if p.phase == enabled {
		p.phase = unserved
	}
}

// reset ends all I/O of the generation before and acknowledges the new one.
func (p *Port) reset() {
	p.phase = busy
	p.quiesce(false, func() {
		// Nothing is in flight: later resets need no other answer.
		p.gen = p.regs.Page.LoadResetGen()
		p.cc = 0
		p.say(p.gen, 0)
		p.settle(disabled)
	})
}

// quiesce ends the lanes, if there are any; done runs on the home poller.
func (p *Port) quiesce(publish bool, done func()) {
	q := p.queues
	p.queues = nil
	finish := func() {
		private := p.private
		p.private = nil
		if private == nil {
			done()
			return
		}
		go func() { // Stop waits for the poller
			private.Stop()
			p.homePost(done)
		}()
	}
	if q == nil || q.admin == nil {
		finish()
		return
	}
	q.admin.post(func() { q.stop(publish, func() { p.homePost(finish) }) })
}

// followShutdown follows CC.SHN (NVMe Base 3.6): what the guest has written is
// flushed, then the shutdown is complete. Without queues it is complete at once.
func (p *Port) followShutdown(wanted bool) {
	gen, ready := p.gen, p.phase == enabled
	status := func(shst uint8) nvme.CSTS { return nvme.CSTS(0).WithRDY(ready).WithSHST(shst) }
	switch {
	case !wanted:
		p.say(gen, status(nvme.SHSTNormal))
		return
	case !ready:
		p.say(gen, status(nvme.SHSTComplete))
		return
	}
	p.say(gen, status(nvme.SHSTOccurring))
	admin := p.queues.admin
	admin.post(func() {
		if admin.stopping {
			return // a reset came first
		}
		admin.running++ // the lane does not end under the flush
		admin.ctrl.Shutdown(admin.worker, func() {
			admin.running--
			admin.settle()
			p.homePost(func() {
				if gen == p.gen && p.phase == enabled {
					p.say(gen, status(nvme.SHSTComplete))
				}
			})
		})
	})
}

// giveUp stops serving the port and calls done. Its controller stays enabled:
// a runtime after this one, or this one again, goes on where it stopped.
func (p *Port) giveUp(done func()) {
	stop := func() {
		p.phase = abandoned
		p.quiesce(true, func() {
			p.home.Remove(p)
			go p.unwatch(done)
		})
	}
	p.homePost(func() { p.whenSettled(stop) })
}

// unwatch lets go of the kick on every poller, of the guest's memory and of
// everything else.
func (p *Port) unwatch(done func()) {
	for _, q := range p.others {
		_ = q.Do(func() { q.Unwatch(p.kick) })
	}
	<-p.space.Reset(p.space.Table().Gen)
	p.release()
	done()
}
