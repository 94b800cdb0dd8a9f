// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run makes the call on this thread, unless cancelled is set before. It
// returns what the system call does, or minus errno.
func (c *call) run(fd int, cancelled *atomic.Bool) int {
	if cancelled.Load() {
		return -int(unix.ECANCELED)
	}
	switch c.kind {
	case callRead:
		return c.vector(unix.SYS_PREADV2, fd)
	case callWrite:
		return c.vector(unix.SYS_PWRITEV2, fd)
	case callSync:
		return result(0, unix.Fdatasync(fd))
	case callAllocate:
		return result(0, unix.Fallocate(fd, c.flags, c.off, c.n))
	}
	return -int(unix.EINVAL)
}

// vector is preadv2 or pwritev2. It is not x/sys's because that wants slices.
func (c *call) vector(number uintptr, fd int) int {
	// The offset is two words of which 64-bit kernels use the first.
	n, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(c.iov))), uintptr(len(c.iov)),
		uintptr(c.off), 0, uintptr(c.flags))
	if errno != 0 {
		return -int(errno)
	}
	return int(n)
}

func result(n int, err error) int {
	if errno, ok := err.(unix.Errno); ok {
		return -int(errno)
	}
	return n
}
