// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapMemory maps size bytes of fd. They begin at a multiple of hugePage, or else no
// huge page could be mapped as one.
func mapMemory(fd int, size uint64) ([]byte, error) {
	span := uintptr(size) + hugePage
	room, err := unix.MmapPtr(-1, 0, nil, span, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	head := -uintptr(room) % hugePage
	begin := unsafe.Add(room, head)
	if _, err := unix.MmapPtr(fd, 0, begin, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE|unix.MAP_FIXED); err != nil {
		_ = unix.MunmapPtr(room, span)
		return nil, err
	}
	// What is left of the room. A mapping ends with its last page.
	if head > 0 {
		_ = unix.MunmapPtr(room, head)
	}
	end := (head + uintptr(size) + pageSize - 1) &^ (pageSize - 1)
	if end < span {
		_ = unix.MunmapPtr(unsafe.Add(room, end), span-end)
	}
	return unsafe.Slice((*byte)(begin), size), nil
}

// unmapMemory undoes mapMemory.
func unmapMemory(data []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(&data[0]), uintptr(len(data)))
}
