// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/nvme"
)

// abortPatience is how long an Abort waits for the command it wants to end. No
// other admin command is executed meanwhile.
const abortPatience = 100 * time.Millisecond

// abort is an Abort command (NVMe Base 5.1) that waits for an I/O command. It
// belongs to the poller of that command's queue.
type abort struct {
	lane   *lane
	answer func(aborted bool)
	over   bool
}

// Abort implements controller.Aborter.
func (s *queues) Abort(sqid, cid uint16, done func(aborted bool)) {
	l := s.sqs[sqid]
	if l == nil {
		done(false)
		return
	}
	a := &abort{lane: l, answer: func(aborted bool) { s.admin.post(func() { done(aborted) }) }}
	l.post(func() { a.begin(sqid, cid) })
}

// begin wishes the end of the command, if it is in execution.
func (a *abort) begin(sqid, cid uint16) {
	for _, c := range a.lane.all {
		if c.sq == nil || c.sq.ID != sqid || c.SQE.CID != cid || c.abort != nil {
			continue
		}
		c.abort = a
		time.AfterFunc(abortPatience, func() {
			// A poller that has stopped has no commands any more.
			_ = a.lane.p.Post(func() {
				if c.abort == a {
					c.abort = nil
				}
				a.end(false)
			})
		})
		c.Cancel()
		return
	}
	a.end(false)
}

// ended follows the end of the command. The answer comes after its result.
func (a *abort) ended(c *command) {
	c.abort = nil
	aborted := c.Status.Code() == nvme.StatusAbortRequested
	a.lane.post(func() {
		defer a.end(aborted) // publishing may fault
		a.lane.publishAll()
	})
}

// end answers, once.
func (a *abort) end(aborted bool) {
	if !a.over {
		a.over = true
		a.answer(aborted)
	}
}

var _ controller.Aborter = (*queues)(nil)
