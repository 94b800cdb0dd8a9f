// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file keeps apart the associations that a host has one after the other.

package target

import (
	"io"
	"time"
)

// fencePatience is how long Connect waits for an association that is ending. Linux waits a minute for the answer. A late one serves it better
// than Controller Busy: that fails `nvme connect`, and costs a host that reconnects its reconnect delay.
const fencePatience = 5 * time.Second

// alone calls then, on the poller of the queue, when no association with the subsystem is left that this host has ended and that still has
// commands in execution: nothing of it takes effect after what comes now. If that takes too long, ok is false. Associations that the host
// still has are no obstacle: it may have several.
func (q *queue) alone(r request, then func(ok bool)) {
	var others []*association
	for _, a := range q.t.present() {
		if a.discovery == nil && a.subNQN == r.subNQN && a.hostNQN == r.hostNQN && a.hostID == r.hostID {
			others = append(others, a)
		}
	}
	if len(others) == 0 {
		then(true)
		return
	}
	left, over := len(others), false
	var limit *time.Timer
	answer := func(ok bool) {
		if !over {
			over = true
			limit.Stop()
			then(ok)
		}
	}
	limit = time.AfterFunc(min(fencePatience, q.t.limits.Patience), func() { _ = q.on.p.Post(func() { answer(false) }) })
	gone := func() {
		_ = q.on.p.Post(func() {
			if left--; left == 0 {
				answer(true)
			}
		})
	}
	for _, a := range others {
		if a.admin.on.p.Post(func() { a.whenGone(gone) }) != nil {
			gone() // with its poller
		}
	}
}

// whenGone calls told when nothing of the association is in execution any more, or at once if its host has not left it.
func (a *association) whenGone(told func()) {
	if !a.ending && a.admin.conn.Left() {
		a.end(io.EOF) // what the poller would find next
	}
	if a.gone || !a.ending {
		told()
		return
	}
	a.follow = append(a.follow, told)
	a.cut(errAssociationEnded) // nobody reads what its connections still say
}
