// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollWait waits for events, at most timeout (nil: for ever). It lets go of
// the Go scheduler's processor if that is wanted while it sleeps.
func epollWait(epoll int, events []unix.EpollEvent, timeout *unix.Timespec) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// The Go scheduler has these for programs that know that a system call will
// sleep. That others use them by these names is noted there, as a reason to keep
// them.
//
//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// epollSleep is epollWait for a long time. It lets go of the processor at once.
// After an ordinary system call the scheduler's monitor comes to take it away,
// and looks some 50 times within 10 ms before it does: on a machine on which
// little happens that costs more than all that does happen.
//
//go:nosplit
func epollSleep(epoll int, events []unix.EpollEvent, timeout *unix.Timespec) (int, error) {
	entersyscallblock()
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	exitsyscall()
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
