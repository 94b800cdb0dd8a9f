// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

const (
	// pageSize is what a hole is made of.
	pageSize = 4096
	// clearStep is how much one turn of the poller gives up or zeroes: freeing
	// 8 MiB of pages takes some hundred microseconds.
	clearStep = 8 << 20
)

// queue serves one poller. Reads, writes and short clears are done within
// Submit; long clears, in steps, once a turn.
type queue struct {
	m      *mem
	p      *poller.Poller
	clears []*volume.Request // in progress; Scratch[0] is how far, Scratch[1] whether cancelled
	next   func()            // step, made once
}

func (q *queue) Submit(r *volume.Request) {
	r.Begin(q.p)
	switch r.Op {
	case volume.Read:
		before := q.p.Touch(r)
		from := q.m.bytes()[r.Offset:]
		for _, s := range r.Segments {
			from = from[copy(s.Bytes(), from):]
		}
		q.p.Touch(before)
	case volume.Write:
		before := q.p.Touch(r)
		to := q.m.bytes()[r.Offset:]
		for _, s := range r.Segments {
			to = to[copy(to, s.Bytes()):]
		}
		q.p.Touch(before)
	case volume.Discard, volume.WriteZeroes:
		if r.Length > clearStep {
			q.begin(r)
			return
		}
		q.m.clear(r.Offset, r.Length)
	case volume.Flush: // what has completed is where it stays
	default:
		r.Complete(nvme.StatusInternalError)
		return
	}
	r.Complete(nvme.StatusSuccess)
}

// begin starts a long clear.
func (q *queue) begin(r *volume.Request) {
	r.Scratch = [2]uint64{}
	q.clears = append(q.clears, r)
	if len(q.clears) == 1 {
		q.again()
	}
}

// again has step run in the poller's next turn.
func (q *queue) again() {
	if err := q.p.Post(q.next); err != nil {
		// The poller is ending with requests in flight, which owners do not
		// allow; they get an end all the same.
		for _, r := range q.clears {
			r.Complete(nvme.StatusInternalError)
		}
		q.clears = q.clears[:0]
	}
}

// step clears a piece for the oldest long clear.
func (q *queue) step() {
	r := q.clears[0]
	done := &r.Scratch[0]
	status := nvme.StatusSuccess
	if r.Scratch[1] != 0 {
		status, *done = nvme.StatusAbortRequested, r.Length
	} else {
		// To the end of a page, so that every whole page is given up.
		from, end := r.Offset+*done, r.Offset+r.Length
		end = min(end, (from+clearStep)&^(pageSize-1))
		q.m.clear(from, end-from)
		*done = end - r.Offset
	}
	if *done == r.Length {
		q.clears = q.clears[:copy(q.clears, q.clears[1:])]
		r.Complete(status)
	}
	if len(q.clears) > 0 {
		q.again()
	}
}

// Cancel ends a long clear early.
func (q *queue) Cancel(r *volume.Request) {
	for _, x := range q.clears {
		if x == r {
			r.Scratch[1] = 1
		}
	}
}

func (q *queue) Close() {}

// clear makes a range read zero and gives up its whole pages.
func (m *mem) clear(off, n uint64) {
	data, end := m.bytes(), off+n
	first, last := (off+pageSize-1)&^(pageSize-1), end&^(pageSize-1)
	if first >= last {
		clear(data[off:end])
		return
	}
	clear(data[off:first])
	clear(data[last:end])
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for {
		switch unix.Fallocate(m.fd, punch, int64(first), int64(last-first)) {
		case nil:
			return
		case unix.EINTR:
			continue
		}
		clear(data[first:last])
		return
	}
}
