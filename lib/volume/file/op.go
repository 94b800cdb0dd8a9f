// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/uring"
	"github.com/leapio/leapio/lib/volume"
)

// step is what an op does for its request now.
type step uint8

const (
	transfer    step = iota // read or write
	flush                   // fdatasync
	punch                   // make a hole
	zeroRange               // have the file system zero a range
	writeZeroes             // write zeroes, where it cannot
)

// callKind names a system call.
type callKind uint8

const (
	callRead callKind = iota
	callWrite
	callSync
	callAllocate
)

// call is one call to the kernel.
type call struct {
	kind   callKind
	flags  uint32 // RWF_* or FALLOC_FL_*
	iov    []unix.Iovec
	off, n int64 // n is for callAllocate
}

// maxIovecs is the kernel's limit per call (UIO_MAXIOV).
const maxIovecs = 1024

// op turns one request into calls, one at a time. Ops belong to a queue, which
// reuses them.
type op struct {
	q     *queue
	index uint64 // in q.ops

	r              *volume.Request // nil: free
	layout         *layout         // of the file, as r began
	step           step
	offset, length uint64 // the range of the file
	done           uint64 // bytes of it that are finished
	bounced        bool   // data goes through buf
	buf            []byte // nil: none
	piece          [1]dma.Segment
	call           call
	cancelled      atomic.Bool

	waits bool // in the queue's list
	next  *op

	token  uring.Op // of ringEngine
	result int      // of threads: what the call returned, or minus errno
	ended  func()   // finishThread, made once
}

// narrow shrinks the range to whole units: holes are made of those.
func (o *op) narrow(unit uint64) {
	first := (o.offset + unit - 1) / unit * unit
	last := (o.offset + o.length) / unit * unit
	if first >= last {
		o.length = 0
		return
	}
	o.offset, o.length = first, last-first
}

// plan makes the next call; it reports false if a buffer is missing.
func (o *op) plan() bool {
	off, rest := int64(o.offset+o.done), o.length-o.done
	switch o.step {
	case transfer:
		return o.planTransfer(off, rest)
	case flush:
		o.call = call{kind: callSync}
	case punch:
		o.call = call{kind: callAllocate, flags: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, off: off, n: int64(rest)}
	case zeroRange:
		o.call = call{kind: callAllocate, flags: unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, off: off, n: int64(rest)}
	case writeZeroes:
		zeroes := o.q.bufs.zeroes
		o.piece[0] = dma.SegmentOf(zeroes[:min(rest, uint64(len(zeroes)))])
		o.call = call{kind: callWrite, flags: o.durable(), iov: dma.Iovecs(o.piece[:]), off: off}
	}
	return true
}

// planTransfer reads or writes the rest of the range, or a part of it.
func (o *op) planTransfer(off int64, rest uint64) bool {
	o.call = call{kind: callRead, off: off}
	if o.r.Op == volume.Write {
		o.call.kind, o.call.flags = callWrite, o.durable()
	}
	if !o.bounced {
		segs := o.r.Segments
		if o.done > 0 {
			segs = o.left()
		}
		o.call.iov = dma.Iovecs(segs[:min(len(segs), maxIovecs)])
		return true
	}
	if o.buf == nil {
		if o.buf = o.q.bufs.take(); o.buf == nil {
			return false
		}
	}
	buf := o.buf[:min(rest, uint64(len(o.buf)))]
	if o.r.Op == volume.Write {
		before := o.q.p.Touch(o)
		gather(buf, o.r.Segments, o.done)
		o.q.p.Touch(before)
	}
	o.piece[0] = dma.SegmentOf(buf)
	o.call.iov = dma.Iovecs(o.piece[:])
	return true
}

// left returns the segments of what is not done. The request's own are not
// changed: a segment done in part comes alone.
func (o *op) left() []dma.Segment {
	skip := o.done
	for i, s := range o.r.Segments {
		switch {
		case skip == 0:
			return o.r.Segments[i:]
		case skip < s.Len:
			o.piece[0] = dma.SegmentOf(s.Bytes()[skip:])
			return o.piece[:]
		}
		skip -= s.Len
	}
	return nil
}

// durable returns the flag for a write with FUA.
func (o *op) durable() uint32 {
	if o.r.Flags&volume.FUA != 0 {
		return unix.RWF_DSYNC
	}
	return 0
}

// finish is told the result of the call: as the system call returns it, or
// minus errno.
func (o *op) finish(res int) {
	if res < 0 {
		o.failed(unix.Errno(-res))
		return
	}
	switch o.step {
	case transfer, writeZeroes:
		o.moved(uint64(res))
	case punch, zeroRange:
		if o.durable() != 0 && o.r.Op == volume.WriteZeroes {
			o.step = flush
			o.again()
			return
		}
		o.end(nvme.StatusSuccess)
	case flush:
		o.end(nvme.StatusSuccess)
	}
}

// moved is told that n bytes were read or written.
func (o *op) moved(n uint64) {
	// Direct I/O goes on at a whole unit.
	if rest := o.length - o.done; n < rest {
		n &^= o.layout.unit - 1
	}
	if n == 0 {
		// Nothing at all, inside the file: somebody has made it shorter.
		o.end(statusOf(o.r.Op, unix.EIO))
		return
	}
	if o.bounced && o.r.Op == volume.Read {
		before := o.q.p.Touch(o)
		scatter(o.r.Segments, o.done, o.buf[:n])
		o.q.p.Touch(before)
	}
	if o.done += n; o.done < o.length {
		o.again()
		return
	}
	o.end(nvme.StatusSuccess)
}

// failed is told that the call failed.
func (o *op) failed(errno unix.Errno) {
	switch errno {
	case unix.EINTR, unix.EAGAIN:
		if o.cancelled.Load() {
			o.end(nvme.StatusAbortRequested)
			return
		}
		o.q.wait(o)
		return
	case unix.EOPNOTSUPP, unix.ENOSYS:
		o.q.noPunch = o.q.noPunch || o.step == punch
		o.q.noZeroRange = o.q.noZeroRange || o.step == zeroRange
		if o.step == punch || o.step == zeroRange {
			if o.avoid() {
				o.end(nvme.StatusSuccess)
			} else {
				o.again()
			}
			return
		}
	}
	o.end(statusOf(o.r.Op, errno))
}

// avoid replaces a step that the file system has turned out not to do. It
// reports whether that leaves nothing to do: Discard is a hint.
func (o *op) avoid() bool {
	if o.step == punch && o.q.noPunch || o.step == zeroRange && o.q.noZeroRange {
		if o.r.Op == volume.Discard {
			return true
		}
		o.step = writeZeroes
	}
	return false
}

// again goes on with the next call.
func (o *op) again() {
	if o.cancelled.Load() {
		o.end(nvme.StatusAbortRequested)
		return
	}
	o.q.run(o)
}

// Faulted implements poller.Toucher: the guest took away the memory that a
// copy was going to or coming from.
func (o *op) Faulted() { o.end(nvme.StatusDataTransferError) }

// end gives the op back and completes its request.
func (o *op) end(st nvme.Status) {
	r := o.r
	o.release()
	o.r, o.call.iov, o.piece[0] = nil, nil, dma.Segment{}
	o.q.free = append(o.q.free, o)
	r.Complete(st)
}

// release gives the op's buffer back.
func (o *op) release() {
	if o.buf != nil {
		o.q.bufs.give(o.buf)
		o.buf = nil
	}
}
