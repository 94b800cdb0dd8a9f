// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/uring"
	"github.com/leapio/leapio/lib/volume"
)

// engine runs calls for the ops of one queue.
type engine interface {
	// start begins o.call; o.finish is told the result, on the poller and
	// never from within start. An error that is uring.ErrFull says that there
	// is no room now.
	start(o *op) error
	// cancel wishes that the call of o ends soon, with ECANCELED or EINTR.
	cancel(o *op)
	// close ends the engine; no call is in flight.
	close()
}

// queue is one poller's way to the file.
type queue struct {
	f      *file
	p      *poller.Poller
	engine engine
	bufs   buffers

	ops  []*op // all there are, by index
	free []*op

	// Ops that found no room, oldest first. The queue is a source of the
	// poller, which tries them again each turn.
	first, last *op

	// What the file system has turned out not to do.
	noPunch, noZeroRange bool
}

// Submit begins a request; see the package's comment for its way.
func (q *queue) Submit(r *volume.Request) {
	r.Begin(q.p)
	o := q.take(r)
	switch r.Op {
	case volume.Read, volume.Write:
		o.step = transfer
		o.bounced = o.layout.direct && dma.Misaligned(r.Segments, o.layout.memAlign, o.layout.unit)
	case volume.Flush:
		o.step = flush
	case volume.WriteZeroes:
		o.step = zeroRange
		if r.Flags&volume.Deallocate != 0 {
			o.step = punch
		}
	case volume.Discard:
		o.step = punch
		o.narrow(uint64(o.layout.info.DiscardGranularity))
	default:
		o.end(nvme.StatusInternalError)
		return
	}
	if o.avoid() || o.length == 0 && o.step != flush {
		o.end(nvme.StatusSuccess)
		return
	}
	q.run(o)
}

// Cancel implements volume.Queue.
func (q *queue) Cancel(r *volume.Request) {
	i := r.Scratch[0]
	if i >= uint64(len(q.ops)) || q.ops[i].r != r {
		return
	}
	o := q.ops[i]
	o.cancelled.Store(true)
	if !o.waits {
		q.engine.cancel(o)
	}
}

// Close implements volume.Queue.
func (q *queue) Close() {
	q.p.Remove(q)
	q.engine.close()
	q.bufs.unmap()
}

// take returns an op for r.
func (q *queue) take(r *volume.Request) *op {
	var o *op
	if n := len(q.free); n > 0 {
		o, q.free = q.free[n-1], q.free[:n-1]
	} else {
		o = &op{q: q, index: uint64(len(q.ops))}
		o.ended = o.finishThread
		q.ops = append(q.ops, o)
	}
	o.r, o.layout, o.done, o.bounced = r, q.f.layout.Load(), 0, false
	o.offset, o.length = r.Offset, r.Length
	o.cancelled.Store(false)
	r.Scratch[0] = o.index
	return o
}

// run starts the next call of o, or has o wait behind those that wait.
func (q *queue) run(o *op) {
	if q.first != nil || !q.start(o) {
		q.wait(o)
	}
}

// start starts the next call of o; it reports false if there is no room.
func (q *queue) start(o *op) bool {
	if !o.plan() {
		return false
	}
	err := q.engine.start(o)
	switch {
	case err == nil:
	case errors.Is(err, uring.ErrFull):
		return false
	default:
		o.end(nvme.StatusInternalError)
	}
	return true
}

// wait keeps o until there is room. It keeps no buffer: what waits before it
// may be waiting for that.
func (q *queue) wait(o *op) {
	o.release()
	o.waits = true
	if q.first == nil {
		q.first = o
	} else {
		q.last.next = o
	}
	q.last = o
}

// Poll implements poller.Source: it tries again what waits.
func (q *queue) Poll() int {
	n := 0
	for q.first != nil {
		// Off the list first: the copy of data in start may fault.
		o := q.first
		q.first, o.next, o.waits = o.next, nil, false
		if o.cancelled.Load() {
			o.end(nvme.StatusAbortRequested)
		} else if !q.start(o) {
			if q.first == nil {
				q.last = o
			}
			q.first, o.next, o.waits = o, q.first, true
			return n
		}
		n++
	}
	return n
}

// Arm implements poller.Source: what ends and makes room wakes the poller, but
// it can be somebody else's.
func (q *queue) Arm() poller.Wake {
	if q.first == nil {
		return poller.WakeEvent
	}
	return poller.WakeLook
}

// Holds implements poller.Source: guest memory is not the queue's.
func (q *queue) Holds(uintptr) bool { return false }

// Fault implements poller.Source.
func (q *queue) Fault() {}

// statusOf translates what the kernel said to op, as contract and admins know
// it: a full file system, a bad medium, memory the guest does not have.
func statusOf(op volume.Op, errno unix.Errno) nvme.Status {
	switch errno {
	case unix.ECANCELED, unix.EINTR:
		return nvme.StatusAbortRequested
	case unix.EFAULT:
		return nvme.StatusDataTransferError
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return nvme.StatusCapacityExceeded
	case unix.EINVAL, unix.EBADF, unix.ENOMEM:
		return nvme.StatusInternalError
	}
	if op == volume.Read {
		return nvme.StatusUnrecoveredReadError
	}
	return nvme.StatusWriteFault
}
