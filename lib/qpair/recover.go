// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

// Outstanding is a command that was fetched and whose effect is not known to
// have been completed: it is executed (again).
type Outstanding struct {
	SQ   *SQ
	Slot uint16
}

// Recover makes the pages of a completion queue and its submission queues
// consistent after their previous owner is gone (all its threads and rings,
// see the fence), and returns the commands to execute again in the order they
// were fetched, but for fused pairs that had begun: those come first. Guest memory is not read to decide anything. Results that were
// final are published; the caller then fires every vector once.
func (c *CQ) Recover(sqs []*SQ) ([]Outstanding, error) {
	var done, redo []Outstanding
	for _, q := range sqs {
		q.free = q.free[:0]
		for i := int(slotsFor(q.ID, q.page.Entries)) - 1; i >= 0; i-- {
			slot := uint16(i)
			s := &q.page.Slots[slot]
			switch state := SlotState(atomic.LoadUint32(&s.State)); {
			case state == SlotTaken && s.N < q.head:
				redo = append(redo, Outstanding{q, slot})
			case state == SlotDone && s.CQN >= c.tail:
				done = append(done, Outstanding{q, slot})
			case state == SlotFree:
				q.free = append(q.free, slot)
			default: // fetched but not announced, or published and not yet freed
				q.release(slot)
			}
		}
	}
	slices.SortFunc(done, func(a, b Outstanding) int {
		return cmp.Compare(a.SQ.Slot(a.Slot).CQN, b.SQ.Slot(b.Slot).CQN)
	})
	slices.SortFunc(redo, func(a, b Outstanding) int {
		if a.SQ != b.SQ {
			return cmp.Compare(a.SQ.ID, b.SQ.ID)
		}
		return cmp.Compare(a.SQ.Slot(a.Slot).N, b.SQ.Slot(b.Slot).N)
	})
	for _, o := range done {
		if err := c.put(o.SQ.Slot(o.Slot)); err != nil {
			return nil, err
		}
		c.tail++
		atomic.StoreUint64(&c.page.Tail, c.tail)
		o.SQ.release(o.Slot)
	}
	// Only now the guest's head: it may already be past what was just
	// published. At most Entries-1 entries are unread, so the difference
	// modulo the queue size tells them all.
	entries := uint64(c.page.Entries)
	if v := uint64(c.db.load()); v < entries {
		c.head = c.tail - (c.tail%entries+entries-v)%entries
	} else {
		// It costs this queue, no more: Publish finds it out. All is unread.
		c.head = c.tail - min(c.tail, entries-1)
	}
	return begunFirst(redo), nil
}

// begunFirst moves fused pairs that had begun to take effect to the front:
// whatever else is executed again must not come between their halves' effects.
func begunFirst(redo []Outstanding) []Outstanding {
	var begun, rest []Outstanding
	for i := 0; i < len(redo); i++ {
		o := redo[i]
		s := o.SQ.Slot(o.Slot)
		if s.Aux[0] == 0 || s.SQE.Fuse() != nvme.FuseFirst || i+1 == len(redo) || redo[i+1].SQ != o.SQ {
			rest = append(rest, o)
			continue
		}
		i++
		begun = append(begun, o, redo[i])
	}
	return append(begun, rest...)
}
