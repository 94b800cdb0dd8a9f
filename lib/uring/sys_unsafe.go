// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file holds the system calls, the mappings shared with the kernel and
// the addresses given to it.

// sysSetup is io_uring_setup(2). The kernel makes the descriptor
// close-on-exec.
func sysSetup(entries uint32, p *params) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// sysEnter is io_uring_enter(2) with min_complete 0. It can sleep, for locks
// and memory and inside file systems, so it must be Syscall: a thread that
// sleeps in RawSyscall stops the garbage collector, and with it everything.
//
// The descriptor is not registered with the thread (IORING_REGISTER_RING_FDS
// spares a look-up): that would keep a closed ring, and its fixed files,
// alive as long as the thread.
func sysEnter(fd int, submit, flags uint32) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 0, uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func sysRegister(fd int, op uintptr, arg unsafe.Pointer, n int) (int, unix.Errno) {
	for {
		res, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), op, uintptr(arg), uintptr(n), 0, 0)
		if errno != unix.EINTR {
			return int(res), errno
		}
	}
}

func sysProbe(fd int, p *probe) unix.Errno {
	_, errno := sysRegister(fd, registerProbe, unsafe.Pointer(p), len(p.ops))
	return errno
}

func sysRegisterFiles(fd int, fds []int32) unix.Errno {
	_, errno := sysRegister(fd, registerFiles, unsafe.Pointer(&fds[0]), len(fds))
	return errno
}

func sysUpdateFile(ring int, slot uint32, fd int32) unix.Errno {
	// The kernel finds fd through an address that the compiler does not see
	// as a pointer: pinned, it neither moves with the stack nor goes away.
	var pin runtime.Pinner
	pin.Pin(&fd)
	defer pin.Unpin()
	u := filesUpdate{offset: slot, fds: address(&fd)}
	_, errno := sysRegister(ring, registerFilesUpdate, unsafe.Pointer(&u), 1)
	return errno
}

// address returns the address of what p points to, as the kernel takes it.
// The object must be on the heap or mapped, and reachable until the kernel is
// done with it: operation slots hold on to iovecs for that reason.
func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// mapQueues maps both rings and the submission queue entries, of the sizes
// the kernel put into p.
func (r *Ring) mapQueues(p *params) error {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := int(p.cqOff.cqes) + int(p.cqEntries)*int(unsafe.Sizeof(cqe{}))
	size = max(size, int(p.sqOff.array)+int(p.sqEntries)*4)
	var err error
	if r.ringMap, err = unix.Mmap(r.fd, mmapRings, size, prot, flags); err != nil {
		return err
	}
	size = int(p.sqEntries) * int(unsafe.Sizeof(sqe{}))
	if r.sqeMap, err = unix.Mmap(r.fd, mmapSQEs, size, prot, flags); err != nil {
		return err
	}
	word := func(off uint32) *atomic.Uint32 {
		return (*atomic.Uint32)(unsafe.Pointer(&r.ringMap[off]))
	}
	r.sqKernelHead, r.sqKernelTail, r.sqFlags = word(p.sqOff.head), word(p.sqOff.tail), word(p.sqOff.flags)
	r.cqKernelHead, r.cqKernelTail = word(p.cqOff.head), word(p.cqOff.tail)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeMap[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.ringMap[p.cqOff.cqes])), p.cqEntries)
	// Entries are used in order: place i of the index always names entry i.
	index := unsafe.Slice((*uint32)(unsafe.Pointer(&r.ringMap[p.sqOff.array])), p.sqEntries)
	for i := range index {
		index[i] = uint32(i)
	}
	return nil
}

// release unmaps the queues, as far as they are mapped, and closes the
// descriptor.
func (r *Ring) release() error {
	var errs [3]error
	if r.ringMap != nil {
		errs[0] = unix.Munmap(r.ringMap)
	}
	if r.sqeMap != nil {
		errs[1] = unix.Munmap(r.sqeMap)
	}
	errs[2] = unix.Close(r.fd)
	*r = Ring{fd: -1}
	return errors.Join(errs[:]...)
}
