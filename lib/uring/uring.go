// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package uring submits file operations to the kernel through io_uring(7),
// in batches, without a copy of the data and without an allocation.
//
// A Ring belongs to one thread: the goroutine that calls New has locked
// itself to its thread (runtime.LockOSThread) and alone calls every method
// from then on. Nothing here takes a lock. From Linux 6.0 on the kernel
// answers Submit and the registration of files on another thread with an
// error, ErrWrongThread; the rest is the caller's promise.
// The thread must outlive the operations: the kernel cancels what a thread
// leaves in flight when it ends.
//
// The way of an operation:
//
//  1. Read, Write, Fdatasync, Fallocate, Nop or Cancel writes one submission
//     queue entry and keeps the Completion in the operation table.
//  2. Submit publishes the entries and makes one io_uring_enter(2).
//  3. The owner spins on Reap, or sleeps in epoll on FD.
//  4. Reap takes completion queue entries and calls Done for each. Done is
//     called from Reap alone.
//
// Who owns memory: from the call that queues an operation to its Done the
// caller does not change the iovecs, and does not unmap or reuse the memory
// they name. The ring keeps the iovecs, and Go memory that they point to,
// reachable for that time; memory that was mapped by hand stays mapped by its
// owner's care. A buffer that is not mapped yields -EFAULT, never a signal.
package uring

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Config holds the sizes of a Ring.
type Config struct {
	// Entries is the size of the submission queue: the largest batch of one
	// io_uring_enter(2). 1 to 32768; rounded up to a power of two.
	Entries uint32

	// CQEntries is the size of the completion queue and the number of
	// operations that can be in flight. Entries to 65536, rounded up to a
	// power of two; 0 means twice Entries.
	CQEntries uint32

	// FixedFiles is the number of slots in the fixed-file table, all of
	// them empty at first. 0 makes no table.
	FixedFiles int
}

// check refuses sizes that the kernel would refuse without saying why.
func (c *Config) check() error {
	if c.Entries == 0 || c.Entries > maxEntries {
		return fmt.Errorf("setting up io_uring: %d entries: want 1 to %d", c.Entries, maxEntries)
	}
	if c.CQEntries != 0 && (c.CQEntries < c.Entries || c.CQEntries > maxCQEntries) {
		return fmt.Errorf("setting up io_uring: %d completion entries: want %d to %d",
			c.CQEntries, c.Entries, maxCQEntries)
	}
	if c.FixedFiles < 0 || c.FixedFiles > maxEntries {
		return fmt.Errorf("setting up io_uring: %d fixed files: want 0 to %d", c.FixedFiles, maxEntries)
	}
	return nil
}

// setup is one set of io_uring_setup(2) flags.
type setup struct {
	name  string
	flags uint32
}

// setups lists the sets New tries, best first. Cooperative completion work is
// not forced on the owner by an interrupt; sqTaskRun tells a spinning owner of
// it, and an owner asleep in epoll wakes for it.
//
// IORING_SETUP_DEFER_TASKRUN is left out on purpose: epoll on the ring does
// not wake for work deferred by it (tried on Linux 6.18), and reads, buffered
// or direct, in batches of 1 to 64, became no faster with it.
var setups = [...]setup{
	{"Linux 6.0", setupCQSize | setupSubmitAll | setupCoopTaskRun | setupTaskRunFlag | setupSingleIssuer},
	{"Linux 5.19", setupCQSize | setupSubmitAll | setupCoopTaskRun | setupTaskRunFlag},
	{"Linux 5.6", setupCQSize},
}

// Ring is one io_uring, owned by one thread.
type Ring struct {
	fd int // -1 once closed

	// The submission queue. sqTail counts entries written; the kernel sees
	// it once Submit stores it.
	sqKernelHead *atomic.Uint32
	sqKernelTail *atomic.Uint32
	sqFlags      *atomic.Uint32
	sqTail       uint32
	sqes         []sqe

	// The completion queue. cqHead counts entries taken; the kernel sees it
	// before every enter and at the end of Reap.
	cqKernelHead *atomic.Uint32
	cqKernelTail *atomic.Uint32
	cqHead       uint32
	cqes         []cqe

	ops   table
	fixed []bool // slots of the fixed-file table in use

	ringMap []byte // both rings
	sqeMap  []byte // submission queue entries
}

// New makes a ring for the calling thread, which must be locked to its
// goroutine. An error that matches ErrUnavailable says that this system has
// no io_uring for us; any other is a bad Config or a want of memory or
// descriptors.
func New(cfg Config) (*Ring, error) {
	var last error
	for _, s := range setups {
		r, err := newRing(cfg, s)
		if err == nil {
			return r, nil
		}
		last = err
		// Only EINVAL speaks about flags.
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, last
}

// newRing makes a ring with exactly the flags of s.
func newRing(cfg Config, s setup) (*Ring, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.CQEntries == 0 {
		cfg.CQEntries = 2 * cfg.Entries
	}
	p := params{flags: s.flags, cqEntries: cfg.CQEntries}
	fd, errno := sysSetup(cfg.Entries, &p)
	if errno != 0 {
		return nil, setupError(errno)
	}
	r := &Ring{fd: fd, ops: newTable(p.cqEntries)}
	if err := r.start(&p, cfg.FixedFiles); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// start checks what the kernel offers, maps the queues and makes the
// fixed-file table.
func (r *Ring) start(p *params, fixedFiles int) error {
	for _, f := range requiredFeatures {
		if p.features&f.bit == 0 {
			return &UnavailableError{"kernel feature " + f.name, nil}
		}
	}
	if err := r.probe(); err != nil {
		return err
	}
	if err := r.mapQueues(p); err != nil {
		return fmt.Errorf("mapping io_uring: %w", err)
	}
	return r.makeFixedFiles(fixedFiles)
}

// probe checks that the kernel has every operation this package uses.
func (r *Ring) probe() error {
	var p probe
	if errno := sysProbe(r.fd, &p); errno != 0 {
		return &UnavailableError{"Linux 5.6 or later (asking for its operations)", errno}
	}
	for _, op := range requiredOps {
		if op.code > p.lastOp || p.ops[op.code].flags&probeSupported == 0 {
			return &UnavailableError{"kernel operation " + op.name, nil}
		}
	}
	return nil
}

// FD returns the ring's descriptor, for epoll: it is readable while Reap has
// something to do. The owner itself must be the one that sleeps: completions
// are the work of its thread, so that its sleep in epoll_wait(2) can also end
// with EINTR, which says to look again. The descriptor stays the ring's;
// nobody else closes it.
func (r *Ring) FD() int { return r.fd }

// Cap returns the number of operations that can be in flight.
func (r *Ring) Cap() int { return len(r.ops.slots) }

// InFlight returns the number of operations whose Done was not called yet,
// submitted or not.
func (r *Ring) InFlight() int { return r.ops.used }

// Queued returns the number of operations that wait for Submit. The owner
// does not sleep while it is not 0.
func (r *Ring) Queued() int {
	if r.fd < 0 {
		return 0
	}
	return int(r.sqTail - r.sqKernelHead.Load())
}

// Close gives the ring back. It needs every operation to be reaped: otherwise
// it changes nothing and returns an *InFlightError. It must not be called
// from Done. The kernel lets go of fixed files a little later, on its own
// time. A second Close does nothing.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	if n := r.InFlight(); n != 0 {
		return &InFlightError{n}
	}
	return r.release()
}
