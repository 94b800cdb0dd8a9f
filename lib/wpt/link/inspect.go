// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"sync"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/stats"
)

// QueueInfo is a submission queue with its completion queue, at a moment.
type QueueInfo struct {
	QID, CQID   uint16
	SQ, CQ      qpair.RingInfo
	Vector      uint32
	Interrupts  bool
	Outstanding int // commands fetched and not completed
	Shadow      bool
	Poller      string
	Stats       *stats.Set // since this runtime serves the queue
}

// Queues returns the port's queues in no particular order; none while its
// controller is not enabled. It asks their pollers and must not be called on one.
func (p *Port) Queues() []QueueInfo {
	var (
		mu  sync.Mutex
		all []QueueInfo
	)
	p.eachLane(func(l *lane) {
		mu.Lock()
		defer mu.Unlock()
		for _, cq := range l.cqs {
			vector, on := cq.Vector()
			for _, q := range cq.sqs {
				info := QueueInfo{
					QID: q.ID, CQID: cq.ID, SQ: q.Info(), CQ: cq.Info(), Vector: vector, Interrupts: on,
					Outstanding: q.Outstanding(), Poller: l.p.Name(), Stats: q.stats,
				}
				info.Shadow = info.SQ.Shadow
				all = append(all, info)
			}
		}
	})
	return all
}

// Dump copies the ring of a queue as it is in guest memory now. Nothing is
// changed; a queue in use goes on. The error is a not-found fault if there is
// no such queue.
func (p *Port) Dump(qid uint16, completion bool) (qpair.RingInfo, []byte, error) {
	var (
		mu   sync.Mutex
		info qpair.RingInfo
		raw  []byte
		err  = error(fault.Errorf(fault.NotFound, "", "", "port %s has no queue %d now", p.Name, qid))
	)
	p.eachLane(func(l *lane) {
		mu.Lock()
		defer mu.Unlock()
		for _, cq := range l.cqs {
			if completion && cq.ID == qid {
				info = cq.Info()
				raw = make([]byte, info.Entries*qpair.CQESize)
				err = l.view.Read(raw, info.Addr)
			}
			for _, q := range cq.sqs {
				if !completion && q.ID == qid {
					info = q.Info()
					raw = make([]byte, info.Entries*qpair.SQESize)
					err = l.view.Read(raw, info.Addr)
				}
			}
		}
	})
	return info, raw, err
}

// eachLane runs f on the poller of every lane and waits for all.
func (p *Port) eachLane(f func(*lane)) {
	var wg sync.WaitGroup
	wg.Add(1)
	p.homePost(func() {
		q := p.queues
		if q == nil || p.phase != enabled {
			wg.Done()
			return
		}
		q.admin.post(func() {
			for _, l := range q.lanes {
				wg.Add(1)
				l.post(func() {
					defer wg.Done()
					f(l)
				})
			}
			wg.Done()
		})
	})
	wg.Wait()
}
