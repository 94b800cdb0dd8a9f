// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

const (
	// pageSize is what a hole is made of, and what is copied at a time.
	pageSize = 4096
	// clearStep is how much one turn of the poller gives up or zeroes: freeing
	// 8 MiB of pages takes some hundred microseconds.
	clearStep = 8 << 20
	// clearLocked is how much of it keeps others from the volume at a time.
	clearLocked = 1 << 20
	// rereads is how often a page is read once more because it was changed
	// meanwhile, before whoever changes it is kept out.
	rereads = 4
)

// queue serves one poller. Reads, writes and short clears are done within
// Submit, unless another poller is changing the same pages; long clears in
// steps. What is left goes on once a turn.
type queue struct {
	m       *mem
	p       *poller.Poller
	slot    *slot
	waiting []*volume.Request // Scratch[0] is how far, in bytes, Scratch[1] whether cancelled
	next    func()            // step, made once
}

func (q *queue) Submit(r *volume.Request) {
	r.Begin(q.p)
	r.Scratch = [2]uint64{}
	if long(r) || !q.advance(r) {
		q.waiting = append(q.waiting, r)
		if len(q.waiting) == 1 {
			q.again()
		}
	}
}

// long reports whether r takes more than one turn in any case.
func long(r *volume.Request) bool {
	return (r.Op == volume.Discard || r.Op == volume.WriteZeroes) && r.Length > clearStep
}

// again has step run in the poller's next turn.
func (q *queue) again() {
	if err := q.p.Post(q.next); err != nil {
		// The poller is ending with requests in flight, which owners do not
		// allow; they get an end all the same.
		for _, r := range q.waiting {
			r.Complete(nvme.StatusInternalError)
		}
		q.waiting = q.waiting[:0]
	}
}

// step goes on with what waits: of the long clears, with the oldest.
func (q *queue) step() {
	defer func() { // also if guest memory faults
		if len(q.waiting) > 0 {
			q.again()
		}
	}()
	cleared := false
	for i := 0; i < len(q.waiting); {
		r := q.waiting[i]
		switch {
		case r.Scratch[1] != 0:
			q.waiting = slices.Delete(q.waiting, i, i+1)
			r.Complete(nvme.StatusAbortRequested)
			continue
		case long(r) && cleared:
			i++
			continue
		}
		cleared = cleared || long(r)
		// Off the list first: a fault ends it.
		q.waiting = slices.Delete(q.waiting, i, i+1)
		if !q.advance(r) {
			q.waiting = slices.Insert(q.waiting, i, r)
			i++
		}
	}
}

// Cancel ends early what waits.
func (q *queue) Cancel(r *volume.Request) {
	if slices.Contains(q.waiting, r) {
		r.Scratch[1] = 1
	}
}

func (q *queue) Close() { q.m.log.leave(q.p) }

// advance goes on with r and reports whether that was its end.
func (q *queue) advance(r *volume.Request) bool {
	switch r.Op {
	case volume.Read, volume.Write:
		before := q.p.Touch(r)
		ok := q.transfer(r)
		q.p.Touch(before)
		if !ok {
			return false
		}
	case volume.Discard, volume.WriteZeroes:
		if !q.clear(r) {
			return false
		}
	case volume.Flush: // what has completed is where it stays
	default:
		r.Complete(nvme.StatusInternalError)
		return true
	}
	r.Complete(nvme.StatusSuccess)
	return true
}

// transfer reads or writes page by page. It reports false where another poller
// is at the next page.
func (q *queue) transfer(r *volume.Request) bool {
	at := seek(r.Segments, r.Scratch[0])
	for done := &r.Scratch[0]; *done < r.Length; {
		off := r.Offset + *done
		n := min(pageSize-off%pageSize, r.Length-*done)
		var ok bool
		if r.Op == volume.Read {
			ok = q.read(&at, off, n)
		} else {
			ok = q.write(&at, off, n)
		}
		if !ok {
			return false
		}
		*done += n
	}
	return true
}

// read fills guest memory from a page, or a part of it. What is there before the
// read has completed means nothing, so it may be filled more than once.
func (q *queue) read(at *cursor, off, n uint64) bool {
	page, stripe := q.m.bytes()[off:off+n], q.m.stripes.of(off)
	for range rereads {
		seq, ok := stripe.begin()
		if !ok {
			return false
		}
		to := *at
		to.scatter(page)
		if stripe.same(seq) {
			*at = to
			return true
		}
	}
	if !stripe.lock() {
		return false
	}
	data := q.slot.data[:n]
	copy(data, page)
	stripe.unlock()
	at.scatter(data)
	return true
}

// write stores to a page, or to a part of it, from guest memory.
func (q *queue) write(at *cursor, off, n uint64) bool {
	data := q.slot.data[:n]
	from := *at
	from.gather(data)
	stripe := q.m.stripes.of(off)
	if !stripe.lock() {
		return false
	}
	*at = from
	*q.slot.intent = intentOf(off, n)
	copy(q.m.bytes()[off:], data)
	*q.slot.intent = 0
	stripe.unlock()
	return true
}

// clear makes the next part of a range read zero, up to clearStep, and gives up
// its whole pages. It reports whether that was the end.
func (q *queue) clear(r *volume.Request) bool {
	last := r.Offset + r.Length
	off := r.Offset + r.Scratch[0]
	// To the end of a page, so that every whole page is given up.
	for end := min(last, (off+clearStep)&^(pageSize-1)); off < end; r.Scratch[0] = off - r.Offset {
		n := end - off
		if in := off % pageSize; in != 0 || n < pageSize {
			n = min(n, pageSize-in) // within a page
		} else {
			n = min(n, clearLocked) &^ (pageSize - 1) // whole pages
		}
		pages := max(n/pageSize, 1)
		if !q.m.stripes.lockPages(off/pageSize, pages) {
			return false
		}
		if n < pageSize || !q.m.punch(off, n) {
			q.zero(off, n)
		}
		q.m.stripes.unlockPages(off/pageSize, pages)
		off += n
	}
	return off == last
}

// zero zeroes what is locked, page by page.
func (q *queue) zero(off, n uint64) {
	for n > 0 {
		part := min(pageSize-off%pageSize, n)
		*q.slot.intent = intentOf(off, part) | intentZero
		clear(q.m.bytes()[off : off+part])
		*q.slot.intent = 0
		off, n = off+part, n-part
	}
}

// punch gives up whole pages.
func (m *mem) punch(off, n uint64) bool {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for {
		switch unix.Fallocate(m.fd, punch, int64(off), int64(n)) {
		case nil:
			return true
		case unix.EINTR:
		default:
			return false
		}
	}
}

// cursor is a place in the memory of a request.
type cursor struct {
	segments []dma.Segment
	skip     uint64 // bytes of the first
}

// seek returns the place that is done bytes in.
func seek(segments []dma.Segment, done uint64) cursor {
	for len(segments) > 0 && done >= segments[0].Len {
		done -= segments[0].Len
		segments = segments[1:]
	}
	return cursor{segments, done}
}

// gather fills p from there.
func (c *cursor) gather(p []byte) {
	for len(p) > 0 {
		p = p[c.moved(copy(p, c.rest())):]
	}
}

// scatter copies p there.
func (c *cursor) scatter(p []byte) {
	for len(p) > 0 {
		p = p[c.moved(copy(c.rest(), p)):]
	}
}

// rest returns what is left of the segment.
func (c *cursor) rest() []byte { return c.segments[0].Bytes()[c.skip:] }

// moved goes n bytes further, which are in this segment.
func (c *cursor) moved(n int) int {
	if c.skip += uint64(n); c.skip == c.segments[0].Len {
		c.segments, c.skip = c.segments[1:], 0
	}
	return n
}
