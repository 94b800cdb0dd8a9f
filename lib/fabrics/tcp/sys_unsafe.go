// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package tcp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollLook returns the number of events there are now. It does not sleep.
func epollLook(epoll int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0 // EINTR: the events are still there
	}
	return int(n)
}

// iovec returns the kernel's view of p, which is not empty.
func iovec(p []byte) unix.Iovec { return unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))} }

// extend adds p, which is not empty, to v if it is what comes next in memory.
func extend(v *unix.Iovec, p []byte) bool {
	// As numbers: a pointer to behind an object is none of Go's.
	next := uintptr(unsafe.Pointer(unsafe.SliceData(p))) == uintptr(unsafe.Pointer(v.Base))+uintptr(v.Len)
	if next {
		v.Len += uint64(len(p))
	}
	return next
}

// shortCall is how many bytes a system call moves at most that the Go scheduler is not told of, which costs as much as some small calls
// themselves. Until it returns this thread cannot be stopped, and with it a collection of garbage: that is some 20 us.
const shortCall = 64 << 10

// receive fills p, which is not empty, from a socket, as far as there is something.
func receive(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// message is a msghdr that is used again and again, so that nothing is allocated.
type message struct{ hdr unix.Msghdr }

// send writes the pieces, of size bytes, to a socket, as much as there is room for.
func (m *message) send(fd int, iov []unix.Iovec, size int) (int, error) {
	return m.do(unix.SYS_SENDMSG, fd, iov, size, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
}

// receive fills the pieces, of size bytes, from a socket, as far as there is something.
func (m *message) receive(fd int, iov []unix.Iovec, size int) (int, error) {
	return m.do(unix.SYS_RECVMSG, fd, iov, size, unix.MSG_DONTWAIT)
}

func (m *message) do(call uintptr, fd int, iov []unix.Iovec, size int, flags uintptr) (int, error) {
	m.hdr = unix.Msghdr{Iov: unsafe.SliceData(iov), Iovlen: uint64(len(iov))}
	var n uintptr
	var errno unix.Errno
	if size <= shortCall {
		n, _, errno = unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&m.hdr)), flags)
	} else {
		n, _, errno = unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&m.hdr)), flags)
	}
	m.hdr.Iov = nil
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
