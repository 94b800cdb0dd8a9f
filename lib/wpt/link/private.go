// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"errors"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

// A client may give us a file for memory that it maps privately: QEMU does so
// for a file or memfd backend with share=off. What the guest writes then never
// reaches the file, and what we write never reaches the guest. It shows in the
// first command of the admin queue: in the file its entry is still zero, which
// no driver ever sends (Delete I/O Submission Queue 0). The client's view of
// the same entry, asked for by message, tells for sure.

// doubtful reports whether the admin command in a slot is what private memory
// looks like.
func (l *lane) doubtful(q *queue, slot uint16) bool {
	s := q.Slot(slot)
	return s.N == 0 && s.SQE == nvme.SQE{} && !l.port.relayed
}

// probe compares the command in a slot with the client's view of it, and either
// executes it or has the port served by messages. Until then the admin queue
// waits.
func (l *lane) probe(q *queue, slot uint16) {
	q.broken = true
	addr := q.Info().Addr
	go func() {
		var seen nvme.SQE
		err := relay{l.port.c, l.port.ID}.ReadMemory(nvme.Bytes(&seen), addr)
		_ = l.p.Post(func() {
			switch {
			case l.dead, errors.Is(err, errLinkDown): // a successor asks again
			case err != nil || seen == nvme.SQE{}:
				q.broken = false
				l.execute(q, slot)
			default:
				l.port.homePost(func() { l.port.unshare(l.gen) })
			}
		})
	}()
}

// unshare gives up the mappings of the guest's memory and begins again with the
// admin queue, of which nothing has been executed.
func (p *Port) unshare(gen uint64) {
	if p.phase == busy {
		p.whenSettled(func() { p.unshare(gen) })
		return
	}
	if p.phase != enabled || p.gen != gen {
		return // a reset came first
	}
	p.phase = busy
	p.quiesce(false, func() {
		p.c.enqueue(func() {
			p.unshared = true
			atomic.StoreUint32(&p.state.Page.Header.Unshared, 1)
			p.space.Unshare()
			p.homePost(func() {
				page := &p.state.Page.SQ[0]
				page.Create(gen, page.Addr, page.Entries, 0)
				p.settle(disabled)
			})
		})
	})
}
