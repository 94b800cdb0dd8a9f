// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/nvme"
)

// abortPatience is how long an Abort waits for the command it wants to end. No other admin command is executed meanwhile.
const abortPatience = 100 * time.Millisecond

// abort is an Abort command that waits for an I/O command. It belongs to the poller of that command's queue.
type abort struct {
	answer func(aborted bool)
	over   bool
}

// Abort implements controller.Aborter.
func (a *association) Abort(sqid, cid uint16, answer func(aborted bool)) {
	q := a.queues[sqid]
	if q == nil {
		answer(false)
		return
	}
	b := &abort{answer: func(aborted bool) { a.post(func() { answer(aborted) }) }}
	if q.on.p.Post(func() { b.begin(q, cid) }) != nil {
		answer(false)
	}
}

// begin wishes the end of the command, if it is in execution. One whose data the host has been asked for goes on: the data will come.
func (b *abort) begin(q *queue, cid uint16) {
	for _, c := range q.all {
		if c.SQE.CID != cid || c.stage != executing && c.stage != waiting || c.abort != nil || q.dead {
			continue
		}
		c.abort = b
		time.AfterFunc(abortPatience, func() {
			// A poller that has stopped has no commands any more.
			_ = q.on.p.Post(func() {
				if c.abort == b {
					c.abort = nil
				}
				b.end(false)
			})
		})
		if c.stage == waiting {
			q.on.pool.leave(c)
			c.stage = executing
			c.ready(nvme.StatusAbortRequested)
		} else {
			c.Cancel()
		}
		return
	}
	b.end(false)
}

// ended follows the end of the command. Its result is on its way.
func (b *abort) ended(c *command) {
	c.abort = nil
	b.end(c.Status.Code() == nvme.StatusAbortRequested)
}

// end answers, once.
func (b *abort) end(aborted bool) {
	if !b.over {
		b.over = true
		b.answer(aborted)
	}
}

var _ controller.Aborter = (*association)(nil)
