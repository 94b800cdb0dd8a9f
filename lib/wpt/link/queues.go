// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/stats"
)

// queues is what an enabled controller has of lanes and queues. It belongs to
// the poller of the admin queue; it implements controller.Queues.
type queues struct {
	port  *Port
	gen   uint64
	admin *lane
	lanes map[*poller.Poller]*lane // the admin lane among them
	cqs   map[uint16]*lane
	sqs   map[uint16]*lane
}

// on returns the lane on poller p, made where it is missing. Admin commands
// are executed one at a time, and so are calls of this.
func (s *queues) on(p *poller.Poller, then func(*lane, error)) {
	if l := s.lanes[p]; l != nil {
		then(l, nil)
		return
	}
	admin := s.admin
	post(p, func() {
		l := s.port.newLane(p, s.gen, admin.ctrl)
		worker, err := l.newWorker()
		if err != nil {
			l.end()
			l = nil
		} else {
			l.worker = worker
			l.shadow, l.events = admin.shadow, admin.events
		}
		admin.post(func() {
			if err == nil {
				s.lanes[p] = l
			}
			then(l, err)
		})
	})
}

// post runs f on p, which outlives its lanes.
func post(p *poller.Poller, f func()) {
	if err := p.Post(f); err != nil {
		panic("link: " + p.Name() + " stopped under a port: " + err.Error())
	}
}

// CreateCQ implements controller.Queues.
func (s *queues) CreateCQ(cmd nvme.CreateCQ, addr uint64, done func(nvme.Status)) {
	entries := uint32(cmd.QSIZE) + 1
	switch {
	case s.admin.again && s.made(cmd, addr):
		done(nvme.StatusSuccess)
		return
	case cmd.QID == 0 || cmd.QID >= qpair.MaxQueues || s.cqs[cmd.QID] != nil:
		done(nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR)
		return
	case entries < 2 || entries > qpair.MaxEntries:
		done(nvme.StatusInvalidQueueSize | nvme.StatusDNR)
		return
	case cmd.IV >= qpair.Vectors:
		done(nvme.StatusInvalidInterruptVector | nvme.StatusDNR)
		return
	case !cmd.PC:
		done(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	case addr%qpair.PageSize != 0:
		done(nvme.StatusInvalidPRPOffset | nvme.StatusDNR)
		return
	}
	s.on(s.port.pollerFor(cmd.QID), func(l *lane, err error) {
		if err != nil {
			s.port.log.Error("queue cannot be served", "qid", cmd.QID, "err", err)
			done(nvme.StatusInternalError)
			return
		}
		s.cqs[cmd.QID] = l
		s.ask(l, done, func() nvme.Status {
			bells := s.port.bells.Page
			atomic.StoreUint32(bells.CQHead(int(cmd.QID)), 0)
			l.clearShadow(func(d *qpair.Doorbells) *uint32 { return d.CQHead(int(cmd.QID)) })
			s.port.state.Page.CQ[cmd.QID].Create(s.gen, addr, entries, uint32(cmd.IV), cmd.IEN)
			l.addCQ(cmd.QID)
			return nvme.StatusSuccess
		})
	})
}

// ask runs f on l's poller and done with its result on the admin queue's. f may
// access guest memory, which may fault.
func (s *queues) ask(l *lane, done func(nvme.Status), f func() nvme.Status) {
	l.post(func() {
		st := nvme.StatusDataTransferError
		defer func() { s.admin.post(func() { done(st) }) }()
		st = f()
	})
}

// made reports whether the completion queue of a command that is executed again
// is there already.
func (s *queues) made(cmd nvme.CreateCQ, addr uint64) bool {
	if s.cqs[cmd.QID] == nil {
		return false
	}
	p := &s.port.state.Page.CQ[cmd.QID]
	return p.Addr == addr && p.Entries == uint32(cmd.QSIZE)+1 && p.Vector == uint32(cmd.IV) && (p.IEN != 0) == cmd.IEN
}

// madeSQ is made for a submission queue.
func (s *queues) madeSQ(cmd nvme.CreateSQ, addr uint64) bool {
	if s.sqs[cmd.QID] == nil {
		return false
	}
	p := &s.port.state.Page.SQ[cmd.QID]
	return p.Addr == addr && p.Entries == uint32(cmd.QSIZE)+1 && p.CQID == uint32(cmd.CQID)
}

// CreateSQ implements controller.Queues. The queue is served by the poller of
// its completion queue.
func (s *queues) CreateSQ(cmd nvme.CreateSQ, addr uint64, done func(nvme.Status)) {
	entries := uint32(cmd.QSIZE) + 1
	l := s.cqs[cmd.CQID]
	switch {
	case s.admin.again && s.madeSQ(cmd, addr):
		done(nvme.StatusSuccess)
		return
	case cmd.QID == 0 || cmd.QID >= qpair.MaxQueues || s.sqs[cmd.QID] != nil:
		done(nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR)
		return
	case cmd.CQID == 0 || l == nil:
		done(nvme.StatusCompletionQueueInvalid | nvme.StatusDNR)
		return
	case entries < 2 || entries > qpair.MaxEntries:
		done(nvme.StatusInvalidQueueSize | nvme.StatusDNR)
		return
	case !cmd.PC:
		done(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	case addr%qpair.PageSize != 0:
		done(nvme.StatusInvalidPRPOffset | nvme.StatusDNR)
		return
	}
	s.sqs[cmd.QID] = l
	s.ask(l, done, func() nvme.Status {
		bells := s.port.bells.Page
		atomic.StoreUint32(bells.SQTail(int(cmd.QID)), 0)
		l.clearShadow(func(d *qpair.Doorbells) *uint32 { return d.SQTail(int(cmd.QID)) })
		s.port.state.Page.SQ[cmd.QID].Create(s.gen, addr, entries, uint32(cmd.CQID))
		l.addSQ(cmd.QID)
		return nvme.StatusSuccess
	})
}

// DeleteSQ implements controller.Queues: commands of the queue end first.
func (s *queues) DeleteSQ(qid uint16, done func(nvme.Status)) {
	l := s.sqs[qid]
	if qid == 0 || l == nil {
		done(s.missing(qid))
		return
	}
	delete(s.sqs, qid)
	l.post(func() {
		l.deleteSQ(qid, func() { s.admin.post(func() { done(nvme.StatusSuccess) }) })
	})
}

// missing is the status of deleting a queue that is not there: success where
// the command may have done so itself before.
func (s *queues) missing(qid uint16) nvme.Status {
	if s.admin.again && qid != 0 && qid < qpair.MaxQueues {
		return nvme.StatusSuccess
	}
	return nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR
}

// DeleteCQ implements controller.Queues.
func (s *queues) DeleteCQ(qid uint16, done func(nvme.Status)) {
	l := s.cqs[qid]
	if qid == 0 || l == nil {
		done(s.missing(qid))
		return
	}
	l.post(func() {
		st := l.deleteCQ(qid)
		s.admin.post(func() {
			if st == nvme.StatusSuccess {
				delete(s.cqs, qid)
			}
			done(st)
		})
	})
}

// CanShadow implements controller.Queues: shadow doorbells need memory that
// both sides can access.
func (s *queues) CanShadow() bool { return !s.port.relayed }

// Shadow implements controller.Queues.
func (s *queues) Shadow(shadow, events uint64, done func(nvme.Status)) {
	switch {
	case shadow%qpair.PageSize != 0 || events%qpair.PageSize != 0:
		done(nvme.StatusInvalidPRPOffset | nvme.StatusDNR)
		return
	case shadow == 0 || events == 0 || !s.admin.canShadow(shadow, events):
		done(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	left := len(s.lanes)
	var result nvme.Status
	for _, l := range s.lanes {
		s.ask(l, func(st nvme.Status) {
			if st != nvme.StatusSuccess {
				result = st
			}
			if left--; left == 0 {
				done(result)
			}
		}, func() nvme.Status {
			l.setShadow(shadow, events)
			return nvme.StatusSuccess
		})
	}
}

// stop ends all lanes, the admin lane first, so that no command makes new
// ones; done is called on the admin poller.
func (s *queues) stop(publish bool, done func()) {
	for _, l := range s.lanes {
		if l != s.admin {
			// An admin command may wait for the end of their commands.
			l.post(func() { l.quit(publish) })
		}
	}
	s.admin.stop(publish, func() {
		left := len(s.lanes)
		for _, l := range s.lanes {
			if l == s.admin {
				continue
			}
			l.post(func() {
				l.stop(publish, func() {
					s.admin.post(func() {
						if left--; left == 0 {
							done()
						}
					})
				})
			})
		}
		if left--; left == 0 {
			done()
		}
	})
}

// addCQ serves the completion queue of a valid page.
func (l *lane) addCQ(qid uint16) *completions {
	cq := &completions{lane: l, CQ: qpair.NewCQ(qid, &l.port.state.Page.CQ[qid], l.view, l.port.bells.Page)}
	_, interrupts := cq.Vector()
	cq.polled = !interrupts
	l.cqs, l.turn = append(l.cqs, cq), 0
	l.bindShadow()
	return cq
}

// addSQ serves the submission queue of a valid page, whose completion queue the
// lane has.
func (l *lane) addSQ(qid uint16) *queue {
	page := &l.port.state.Page.SQ[qid]
	cq := l.find(uint16(page.CQID))
	q := &queue{SQ: qpair.NewSQ(qid, page, cq.CQ, l.view, l.port.bells.Page), cq: cq, stats: stats.NewSet()}
	cq.sqs = append(cq.sqs, q)
	l.bindShadow()
	return q
}

// deleteSQ removes a submission queue when its commands have ended.
func (l *lane) deleteSQ(qid uint16, done func()) {
	for _, cq := range l.cqs {
		for i, q := range cq.sqs {
			if q.ID != qid {
				continue
			}
			q.broken = true // fetch nothing more
			drained := func() {
				defer func() { // publishing may fault
					cq.Forget(q.SQ)
					cq.sqs, cq.turn = append(cq.sqs[:i:i], cq.sqs[i+1:]...), 0
					l.port.state.Page.SQ[qid].Delete()
					done()
				}()
				l.publish(cq)
			}
			if q.executing > 0 {
				q.drained = drained
			} else {
				drained()
			}
			return
		}
	}
	done()
}

// deleteCQ removes a completion queue that no submission queue uses.
func (l *lane) deleteCQ(qid uint16) nvme.Status {
	for i, cq := range l.cqs {
		if cq.ID != qid {
			continue
		}
		if len(cq.sqs) > 0 {
			return nvme.StatusInvalidQueueDeletion | nvme.StatusDNR
		}
		l.cqs, l.turn = append(l.cqs[:i:i], l.cqs[i+1:]...), 0
		l.port.state.Page.CQ[qid].Delete()
		return nvme.StatusSuccess
	}
	return nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR
}

// canShadow reports whether these pages can be shadow doorbells.
func (l *lane) canShadow(shadow, events uint64) bool {
	_, ok1 := l.view.Pointer(shadow, qpair.PageSize, dma.ProtRead|dma.ProtWrite)
	_, ok2 := l.view.Pointer(events, qpair.PageSize, dma.ProtRead|dma.ProtWrite)
	return ok1 && ok2
}

// setShadow begins the use of shadow doorbells: what the guest has published
// so far, in the registers or in other shadow doorbells, is copied first, since
// it may never write it again. Shadow doorbells that are in use already stay as
// they are: the guest may be ringing.
func (l *lane) setShadow(shadow, events uint64) {
	pages := []uint64{shadow, events}
	if shadow == l.shadow {
		pages = pages[1:]
	}
	l.shadow, l.events, l.shadowChanged = shadow, events, true
	defer l.bindShadow()
	for _, addr := range pages {
		p, ok := l.view.Pointer(addr, qpair.PageSize, dma.ProtRead|dma.ProtWrite)
		if !ok {
			return // on its way to this poller: no queue can be in use yet
		}
		page := qpair.DoorbellsAt(p)
		for _, cq := range l.cqs {
			if cq.ID != 0 {
				atomic.StoreUint32(page.CQHead(int(cq.ID)), cq.Info().Head)
			}
			for _, q := range cq.sqs {
				if q.ID != 0 {
					atomic.StoreUint32(page.SQTail(int(q.ID)), q.Info().Tail)
				}
			}
		}
	}
}

// clearShadow zeroes a new queue's word in the shadow pages, if they are used
// and mapped.
func (l *lane) clearShadow(word func(*qpair.Doorbells) *uint32) {
	if l.shadow == 0 {
		return
	}
	for _, addr := range []uint64{l.shadow, l.events} {
		if p, ok := l.view.Pointer(addr, qpair.PageSize, dma.ProtRead|dma.ProtWrite); ok {
			atomic.StoreUint32(word(qpair.DoorbellsAt(p)), 0)
		}
	}
}

// adopt serves the queues that a runtime before this one has left, valid in
// generation gen, from qid on and the admin queue last: its commands rely on
// what is known of the others. done is called on the admin poller.
func (s *queues) adopt(qid uint16, done func(error)) {
	state := s.port.state.Page
	for qid < qpair.MaxQueues && !state.CQ[qid].Valid(s.gen) {
		qid++
	}
	next := func() { s.adopt(qid+1, done) }
	if qid == qpair.MaxQueues {
		if qid, next = 0, func() { done(nil) }; !state.CQ[0].Valid(s.gen) {
			next()
			return
		}
	}
	p := s.admin.p
	if qid != 0 {
		p = s.port.pollerFor(qid)
	}
	s.on(p, func(l *lane, err error) {
		if err != nil {
			done(err)
			return
		}
		s.cqs[qid] = l
		for id := range state.SQ {
			if state.SQ[id].Valid(s.gen) && state.SQ[id].CQID == uint32(qid) {
				s.sqs[uint16(id)] = l
			}
		}
		l.post(func() {
			err := errAdoptFault
			defer func() {
				s.admin.post(func() {
					if err != nil {
						done(err)
						return
					}
					next()
				})
			}()
			err = l.adopt(qid)
		})
	})
}

// errAdoptFault is why adopting ends where guest memory faults.
var errAdoptFault = errors.New("guest memory was truncated by the client")

// adopt serves completion queue qid and its submission queues again: what was
// final is published, what was not is executed again.
func (l *lane) adopt(qid uint16) error {
	state := l.port.state.Page
	cq := l.addCQ(qid)
	byID := make(map[uint16]*queue)
	var sqs []*qpair.SQ
	for id := range state.SQ {
		if page := &state.SQ[id]; page.Valid(l.gen) && page.CQID == uint32(qid) {
			q := l.addSQ(uint16(id))
			byID[q.ID] = q
			sqs = append(sqs, q.SQ)
		}
	}
	redo, err := cq.Recover(sqs)
	if err != nil {
		return fmt.Errorf("recovering completion queue %d: %w", qid, err)
	}
	l.again = true
	for _, o := range redo {
		q := byID[o.SQ.ID]
		if cqe, ok := l.committed(q, o.Slot); ok {
			q.Complete(o.Slot, cqe.DW0, cqe.DW1, cqe.StatusField())
		} else if l.doubtful(q, o.Slot) {
			l.probe(q, o.Slot)
		} else {
			l.execute(q, o.Slot)
		}
	}
	l.again = false
	l.port.fire(cq.CQ)
	return nil
}

var _ controller.Queues = (*queues)(nil)

// An admin queue has slots for as many event requests as the controller parks.
var _ [controller.EventRequests]struct{} = [qpair.EventRequests]struct{}{}
