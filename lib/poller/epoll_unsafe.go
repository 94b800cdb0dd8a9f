// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollWait waits for events, at most timeout (nil: for ever). It lets go of
// the Go scheduler's processor while it sleeps.
func epollWait(epoll int, events []unix.EpollEvent, timeout *unix.Timespec) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
