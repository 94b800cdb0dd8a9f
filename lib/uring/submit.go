// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errNoCompletion refuses an operation whose end nobody would hear of.
var errNoCompletion = errors.New("queueing io_uring operation: no completion given")

// Read queues preadv2(2): it fills iov from the file at off, in bytes. An off
// of -1 reads at the file's own position, for files that have no other, such
// as pipes. flags are unix.RWF_*. More than 1024 iovecs yield -EINVAL.
//
// Like every method that queues, it returns ErrFull (through errors.Is) when
// no operation fits now, calls Submit by itself when the submission queue is
// full, and queues nothing when it returns an error.
func (r *Ring) Read(f File, iov []unix.Iovec, off int64, flags uint32, c Completion) (Op, error) {
	return r.queueRW(opRead, opReadv, f, iov, off, flags, c)
}

// Write queues pwritev2(2): it writes iov to the file at off, in bytes, -1
// being the file's own position. flags are unix.RWF_*: RWF_DSYNC makes the
// data survive a power loss before Done.
func (r *Ring) Write(f File, iov []unix.Iovec, off int64, flags uint32, c Completion) (Op, error) {
	return r.queueRW(opWrite, opWritev, f, iov, off, flags, c)
}

// maxRW is the kernel's limit for one read or write, MAX_RW_COUNT on 4 KiB
// pages. It keeps a segment's length within the 32 bits of an entry.
const maxRW = 1<<31 - 4096

// queueRW queues the plain operation for one segment, which spares the kernel
// an import of the vector, and the vector operation otherwise.
func (r *Ring) queueRW(plain, vector uint8, f File, iov []unix.Iovec, off int64, flags uint32, c Completion) (Op, error) {
	e := sqe{opcode: vector, off: uint64(off), opFlags: flags}
	f.set(&e)
	if len(iov) == 0 {
		return r.queue(&e, nil, c)
	}
	if len(iov) == 1 && iov[0].Len <= maxRW {
		e.opcode, e.addr, e.len = plain, address(iov[0].Base), uint32(iov[0].Len)
	} else {
		e.addr, e.len = address(&iov[0]), uint32(len(iov))
	}
	return r.queue(&e, &iov[0], c)
}

// Fdatasync queues fdatasync(2).
func (r *Ring) Fdatasync(f File, c Completion) (Op, error) {
	e := sqe{opcode: opFsync, opFlags: fsyncDataSync}
	f.set(&e)
	return r.queue(&e, nil, c)
}

// Fallocate queues fallocate(2) with mode unix.FALLOC_FL_*, off and length in
// bytes.
func (r *Ring) Fallocate(f File, mode uint32, off, length int64, c Completion) (Op, error) {
	e := sqe{opcode: opFallocate, off: uint64(off), addr: uint64(length), len: mode}
	f.set(&e)
	return r.queue(&e, nil, c)
}

// Nop queues an operation that does nothing; its result is 0.
func (r *Ring) Nop(c Completion) (Op, error) {
	return r.queue(&sqe{opcode: opNop, fd: -1}, nil, c)
}

// Cancel queues a wish that op ends early. c is told 0 when op was found and
// ended, -ENOENT when op is not in flight any more, -EALREADY when op cannot
// be stopped now. op has its own Done in every case, with -ECANCELED where it
// was ended; until then its buffers stay the kernel's. Cancel takes a place
// of its own, so that it too can meet ErrFull.
func (r *Ring) Cancel(op Op, c Completion) (Op, error) {
	return r.queue(&sqe{opcode: opAsyncCancel, fd: -1, addr: uint64(op)}, nil, c)
}

// queue gives e its user data and writes it at the tail of the submission
// queue.
func (r *Ring) queue(e *sqe, iov *unix.Iovec, c Completion) (Op, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	if c == nil {
		return 0, errNoCompletion
	}
	if r.ops.full() {
		return 0, ErrFull
	}
	// Load-acquire, pairs with the kernel's store-release of the head:
	// entries below it were copied and their places may be written again.
	if r.sqTail-r.sqKernelHead.Load() == uint32(len(r.sqes)) {
		if _, err := r.Submit(); err != nil {
			return 0, err
		}
	}
	op := r.ops.put(c, iov)
	e.userData = uint64(op)
	r.sqes[r.sqTail&uint32(len(r.sqes)-1)] = *e
	r.sqTail++
	return op, nil
}

// Submit hands every queued operation to the kernel, as a rule with one
// io_uring_enter(2), and returns how many it took. It does not wait and calls
// no Done. An error that matches ErrFull leaves the rest queued: Reap, then
// Submit again. After any other error the ring is of no more use.
func (r *Ring) Submit() (int, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	// Store-release, pairs with the kernel's load-acquire of the tail: the
	// entries below it are complete.
	r.sqKernelTail.Store(r.sqTail)
	done := 0
	for {
		left := r.sqTail - r.sqKernelHead.Load()
		if left == 0 {
			return done, nil
		}
		// Completion work that waits is done in the same call.
		var flags uint32
		if r.sqFlags.Load()&(sqTaskRun|sqCQOverflow) != 0 {
			flags = enterGetEvents
		}
		n, err := r.enter(left, flags)
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, fmt.Errorf("submitting to io_uring: %w: %d of %d operations not taken",
				ErrFull, left, int(left)+done)
		}
		// A kernel without setupSubmitAll stops behind an invalid entry,
		// which it completes with an error: go on with the rest.
	}
}

// Reap calls Done for up to max completions that are there now and returns
// their number. It does not wait. It enters the kernel only where that holds
// completions back: work left to this thread, or an overflown queue.
// After an error the ring is of no more use.
//
// Reap can be called again after a Done that panicked: nothing is lost and
// nothing is told twice.
func (r *Ring) Reap(max int) (int, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	n := 0
	for n < max {
		// Load-acquire, pairs with the kernel's store-release of the tail:
		// the entries below it are complete.
		if r.cqHead == r.cqKernelTail.Load() {
			more, err := r.pull()
			if err != nil {
				return n, err
			}
			if !more {
				break
			}
		}
		e := r.cqes[r.cqHead&uint32(len(r.cqes)-1)]
		r.cqHead++
		c := r.ops.take(Op(e.userData))
		if c == nil {
			return n, fmt.Errorf("reaping io_uring: completion %#x belongs to no operation", e.userData)
		}
		n++
		c.Done(e.res, e.flags)
	}
	r.publishHead()
	return n, nil
}

// publishHead gives the entries taken back to the kernel. Store-release,
// pairs with the kernel's load of the head before it writes an entry: ours
// were read before.
func (r *Ring) publishHead() {
	if n := r.cqHead; n != r.cqKernelHead.Load() {
		r.cqKernelHead.Store(n)
	}
}

// pull has the kernel complete what it holds back, and reports whether that
// put anything into the completion queue.
func (r *Ring) pull() (bool, error) {
	if r.sqFlags.Load()&(sqTaskRun|sqCQOverflow) == 0 {
		return false, nil
	}
	if _, err := r.enter(0, enterGetEvents); err != nil {
		return false, err
	}
	return r.cqHead != r.cqKernelTail.Load(), nil
}

// enter is io_uring_enter(2) without waiting; it returns the number of
// entries the kernel took. The head goes first: with it the entries not yet
// taken and the operations in flight, together, fit the completion queue.
func (r *Ring) enter(submit, flags uint32) (int, error) {
	r.publishHead()
	for {
		n, errno := sysEnter(r.fd, submit, flags)
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR: // a signal, before anything was taken
			continue
		}
		return 0, enterError("entering io_uring", errno)
	}
}
