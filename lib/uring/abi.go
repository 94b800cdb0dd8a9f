// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

// This file declares the kernel's io_uring interface once: operation codes,
// flags and shared structures of <linux/io_uring.h>, the part that this
// package uses. abi_unsafe.go checks the sizes.

// Operation codes (io_uring_enter(2), "opcode").
const (
	opNop         = 0
	opReadv       = 1
	opWritev      = 2
	opFsync       = 3
	opAsyncCancel = 14
	opFallocate   = 17
	opRead        = 22
	opWrite       = 23
)

// requiredOps lists what New insists on, with the words for an error.
var requiredOps = [...]struct {
	code uint8
	name string
}{
	{opNop, "NOP"},
	{opReadv, "READV"},
	{opWritev, "WRITEV"},
	{opFsync, "FSYNC"},
	{opAsyncCancel, "ASYNC_CANCEL"},
	{opFallocate, "FALLOCATE"},
	{opRead, "READ"},
	{opWrite, "WRITE"},
}

// Flags of one submission queue entry.
const (
	sqeFixedFile  = 1 << 0 // fd is a slot of the fixed-file table
	fsyncDataSync = 1 << 0 // fdatasync(2), not fsync(2)
)

// Flags of io_uring_setup(2), with the first Linux release that has them.
const (
	setupCQSize       = 1 << 3  // 5.5: params.cqEntries is given
	setupSubmitAll    = 1 << 7  // 5.18: an invalid entry does not end the batch
	setupCoopTaskRun  = 1 << 8  // 5.19: no interrupt to run completion work
	setupTaskRunFlag  = 1 << 9  // 5.19: sqTaskRun tells that such work waits
	setupSingleIssuer = 1 << 12 // 6.0: one thread submits
)

// Features the kernel reports in params.features.
const (
	featSingleMmap   = 1 << 0 // one mapping holds both rings
	featNoDrop       = 1 << 1 // a full completion queue loses nothing
	featSubmitStable = 1 << 2 // entries and iovecs are copied at submission
)

// requiredFeatures lists what New insists on, with the words for an error.
var requiredFeatures = [...]struct {
	bit  uint32
	name string
}{
	{featSingleMmap, "SINGLE_MMAP"},
	{featNoDrop, "NODROP"},
	{featSubmitStable, "SUBMIT_STABLE"},
}

// Flags the kernel sets in the submission ring.
const (
	sqCQOverflow = 1 << 1 // completions wait outside the full completion queue
	sqTaskRun    = 1 << 2 // completion work waits for an enter
)

// enterGetEvents makes io_uring_enter(2) run completion work and bring
// overflown completions into the queue.
const enterGetEvents = 1 << 0

// Operations of io_uring_register(2).
const (
	registerFiles       = 2
	registerFilesUpdate = 6
	registerProbe       = 8
)

// Offsets for mmap(2) of the ring's descriptor.
const (
	mmapRings = 0
	mmapSQEs  = 0x10000000
)

// Largest queue sizes the kernel accepts.
const (
	maxEntries   = 32768
	maxCQEntries = 2 * maxEntries
)

// sqe is one submission queue entry: struct io_uring_sqe.
type sqe struct {
	opcode   uint8
	flags    uint8
	_        uint16 // ioprio
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [3]uint64 // buffer index, personality, splice fd, addr3
}

// cqe is one completion queue entry: struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// params is struct io_uring_params.
type params struct {
	sqEntries uint32
	cqEntries uint32
	flags     uint32
	_         [2]uint32 // SQPOLL thread
	features  uint32
	_         [4]uint32 // wq_fd, reserved
	sqOff     sqOffsets
	cqOff     cqOffsets
}

// sqOffsets is struct io_sqring_offsets: places in the ring mapping.
type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array uint32

	_ [3]uint32
}

// cqOffsets is struct io_cqring_offsets: places in the ring mapping.
type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags uint32

	_ [3]uint32
}

// filesUpdate is struct io_uring_files_update; fds points to int32 values.
type filesUpdate struct {
	offset uint32
	_      uint32
	fds    uint64
}

// probe is struct io_uring_probe with room for every operation code.
type probe struct {
	lastOp uint8
	opsLen uint8
	_      [14]uint8
	ops    [256]probeOp
}

// probeOp is struct io_uring_probe_op.
type probeOp struct {
	_     [2]uint8
	flags uint16
	_     uint32
}

// probeSupported is set in probeOp.flags for an operation the kernel has.
const probeSupported = 1 << 0
