// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package dma is the address space of one controller: which guest-physical
// (IOVA) ranges are mapped where in this process, and the walkers that turn an
// NVMe command's PRPs into segments of this process's memory.
//
// A Space is changed by one control goroutine (Map, Unmap) and read by pollers,
// each through a View of its own: a snapshot that costs no lock and no atomic
// read-modify-write per command. A View counts the commands in flight on its
// snapshot; memory is unmapped from this process when no view uses it any more.
//
// Guests and the clients that speak for them are hostile: addresses, lengths
// and offsets are checked at both ends before memory is touched, and memory
// that a client takes away under our hands (SIGBUS) ends in Guarded.
package dma

import (
	"errors"
	"fmt"
)

// PageSize is the unit of memory registration and of PRPs in bytes (CC.MPS 0).
const PageSize = 4096

// Prot says what the device may do with memory.
type Prot uint8

// Access rights, as in VFIO_USER_F_DMA_REGION_READ and _WRITE.
const (
	ProtRead  Prot = 1 << iota // the device may read guest memory
	ProtWrite                  // the device may write guest memory
)

// String prints r, w, rw or -.
func (p Prot) String() string {
	switch p & (ProtRead | ProtWrite) {
	case ProtRead:
		return "r"
	case ProtWrite:
		return "w"
	case ProtRead | ProtWrite:
		return "rw"
	}
	return "-"
}

// Errors of translation. They are values without context because the data path
// may not allocate; the View that returned one knows the address (Fault).
var (
	// ErrFault: part of the range is not mapped, or not with the right access.
	ErrFault = errors.New("address not mapped")
	// ErrOffset: a PRP entry has an offset where none is allowed, or one that
	// is not a multiple of 4 (NVMe Base 4.3.1).
	ErrOffset = errors.New("invalid PRP offset")
	// ErrTooLong: the data needs more segments than the caller has room for.
	ErrTooLong = errors.New("too many segments")
)

// RangeError says why a range cannot be mapped or unmapped.
type RangeError struct {
	Addr, Size uint64
	Reason     string
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("range %#x+%#x: %s", e.Addr, e.Size, e.Reason)
}

// CheckRange reports whether [addr, addr+size) may be registered: page-aligned,
// not empty and not beyond the end of the address space.
func CheckRange(addr, size uint64) error {
	switch {
	case size == 0:
		return &RangeError{addr, size, "empty"}
	case addr%PageSize != 0 || size%PageSize != 0:
		return &RangeError{addr, size, "not page-aligned"}
	case addr+size < addr:
		return &RangeError{addr, size, "beyond the end of the address space"}
	}
	return nil
}

// Memory is guest memory that this process cannot map: it is read and written
// by messages. Calls block and may fail at any time.
type Memory interface {
	ReadMemory(p []byte, addr uint64) error
	WriteMemory(p []byte, addr uint64) error
}
