// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of 64-bit machines. The kernel stores n, the bytes
// that were moved. It has addresses as numbers: what a process before has left
// in it must not look like pointers to the collector.
type mmsghdr struct {
	name, nameLen   uint64
	iov, iovLen     uint64
	control, ctlLen uint64
	flags           uint64
	n               uint32
	_               uint32
}

// iovec is struct iovec.
type iovec struct{ base, size uint64 }

// journalSize is the size of a Journal in whole pages.
const journalSize = (unsafe.Sizeof(Journal{}) + 4095) &^ 4095

var _ [64]byte = [unsafe.Sizeof(mmsghdr{})]byte{}

// CreateJournal makes a sealed memfd with an empty journal.
func CreateJournal() (j *Journal, fd int, err error) {
	fd, err = unix.MemfdCreate("leapio-journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, -1, fmt.Errorf("creating a journal: %w", err)
	}
	if err = unix.Ftruncate(fd, int64(journalSize)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		j, err = OpenJournal(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("creating a journal: %w", err)
	}
	j.Begin()
	return j, fd, nil
}

// OpenJournal maps the journal that fd holds, which stays the caller's.
func OpenJournal(fd int) (*Journal, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size != int64(journalSize) {
		return nil, fmt.Errorf("a journal of %d bytes where there are %d", st.Size, journalSize)
	}
	p, err := unix.MmapPtr(fd, 0, nil, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping a journal: %w", err)
	}
	return (*Journal)(p), nil
}

// Unmap gives the memory back. The journal must not be used afterwards.
func (j *Journal) Unmap() error { return unix.MunmapPtr(unsafe.Pointer(j), journalSize) }

// receiveNoted is recvmsg(2) whose result is in call, for which nobody wants
// file descriptors: the kernel drops them.
func receiveNoted(fd uintptr, call *mmsghdr, v *iovec, b []byte) unix.Errno {
	return moveNoted(unix.SYS_RECVMMSG, fd, call, v, b, nil, unix.MSG_DONTWAIT)
}

// sendNoted is sendmsg(2) whose result is in call.
func sendNoted(fd uintptr, call *mmsghdr, v *iovec, b, oob []byte) unix.Errno {
	return moveNoted(unix.SYS_SENDMMSG, fd, call, v, b, oob, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// peek is recvmsg(2) that takes nothing out of the socket.
func peek(fd uintptr, call *mmsghdr, v *iovec, b, oob []byte) unix.Errno {
	return moveNoted(unix.SYS_RECVMMSG, fd, call, v, b, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
}

// moveNoted makes a call with a vector of one message. v, b and oob are not on
// the stack, which moves: their addresses are hidden from the compiler.
func moveNoted(trap, fd uintptr, call *mmsghdr, v *iovec, b, oob []byte, flags uintptr) unix.Errno {
	*v = iovec{uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), uint64(len(b))}
	call.name, call.nameLen, call.flags = 0, 0, 0
	call.iov, call.iovLen = uint64(uintptr(unsafe.Pointer(v))), 1
	call.control, call.ctlLen = 0, 0
	if len(oob) > 0 {
		call.control, call.ctlLen = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(oob)))), uint64(len(oob))
	}
	_, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(call)), 1, flags, 0, 0)
	runtime.KeepAlive(v)
	runtime.KeepAlive(b)
	runtime.KeepAlive(oob)
	return errno
}
