// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// This file holds the fixed-file table: open files that the ring itself
// refers to. An operation on such a file spares the kernel the look-up, and
// the file stays open until the slot is cleared or the last operation of the
// ring has ended after its death: a pipe in a slot tells its reader when a
// ring is gone.

// File is the open file of an operation: a descriptor or a slot of the
// fixed-file table.
type File struct {
	n     int32
	fixed bool
}

// FD returns the file of descriptor fd. The kernel looks fd up at Submit and
// holds the file until Done.
func FD(fd int) File { return File{n: narrow(fd)} }

// Fixed returns the file in slot of the ring's fixed-file table. An empty
// slot, or one outside of the table, completes with -EBADF.
func Fixed(slot int) File { return File{n: narrow(slot), fixed: true} }

// narrow turns a number that names no file into another one that does not.
func narrow(n int) int32 {
	if n < 0 || n > math.MaxInt32 {
		return -1
	}
	return int32(n)
}

func (f File) set(e *sqe) {
	e.fd = f.n
	if f.fixed {
		e.flags |= sqeFixedFile
	}
}

// errNoFreeSlot is RegisterFile's answer when the table is full.
var errNoFreeSlot = errors.New("no free slot")

// makeFixedFiles registers a table of n empty slots.
func (r *Ring) makeFixedFiles(n int) error {
	if n == 0 {
		return nil
	}
	fds := make([]int32, n)
	for i := range fds {
		fds[i] = -1
	}
	if errno := sysRegisterFiles(r.fd, fds); errno != 0 {
		return enterError(fmt.Sprintf("registering a table of %d fixed files", n), errno)
	}
	r.fixed = make([]bool, n)
	return nil
}

// RegisterFile puts the open file of fd into the first free slot of the
// fixed-file table and returns the slot, for Fixed. The caller may close fd
// afterwards.
func (r *Ring) RegisterFile(fd int) (int, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	if fd < 0 {
		return 0, fmt.Errorf("registering fd %d: %w", fd, unix.EBADF)
	}
	slot := slices.Index(r.fixed, false)
	if slot < 0 {
		return 0, fmt.Errorf("registering fd %d: %w among %d", fd, errNoFreeSlot, len(r.fixed))
	}
	if err := r.UpdateFile(slot, fd); err != nil {
		return 0, err
	}
	return slot, nil
}

// UpdateFile puts the open file of fd into a slot of the fixed-file table, in
// the place of what was there; an fd of -1 empties the slot. Operations
// submitted before keep the file they began with.
func (r *Ring) UpdateFile(slot, fd int) error {
	if r.fd < 0 {
		return ErrClosed
	}
	if slot < 0 || slot >= len(r.fixed) {
		return fmt.Errorf("registering fd %d: slot %d is outside of the table of %d", fd, slot, len(r.fixed))
	}
	if fd != -1 && narrow(fd) < 0 {
		return fmt.Errorf("registering fd %d: %w", fd, unix.EBADF)
	}
	if errno := sysUpdateFile(r.fd, uint32(slot), int32(fd)); errno != 0 {
		return enterError(fmt.Sprintf("registering fd %d in slot %d", fd, slot), errno)
	}
	r.fixed[slot] = fd >= 0
	return nil
}
