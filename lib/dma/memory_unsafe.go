// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Segment is a contiguous piece of memory of this process that holds command
// data. Its layout is that of struct iovec, so that segments go to the kernel
// as they are. The memory is a guest's (never Go's heap) or a poller's buffer.
type Segment struct {
	Base unsafe.Pointer
	Len  uint64 // bytes
}

var _ [unsafe.Sizeof(unix.Iovec{})]byte = [unsafe.Sizeof(Segment{})]byte{}

// Bytes returns the segment as a slice.
func (s Segment) Bytes() []byte { return unsafe.Slice((*byte)(s.Base), s.Len) }

// base is where a region is mapped.
type base = unsafe.Pointer

// SegmentOf returns the segment that covers p, which must not move or be freed
// while the segment is in use.
func SegmentOf(p []byte) Segment { return Segment{unsafe.Pointer(unsafe.SliceData(p)), uint64(len(p))} }

// Misaligned reports whether any segment begins at an address that is not a
// multiple of align, or has a length that is not a multiple of unit; both are
// powers of two, in bytes.
func Misaligned(segs []Segment, align, unit uint64) bool {
	var bases, lens uint64
	for i := range segs {
		bases |= uint64(uintptr(segs[i].Base))
		lens |= segs[i].Len
	}
	return bases&(align-1) != 0 || lens&(unit-1) != 0
}

// Iovecs returns the segments as the kernel takes them.
func Iovecs(segs []Segment) []unix.Iovec {
	return unsafe.Slice((*unix.Iovec)(unsafe.Pointer(unsafe.SliceData(segs))), len(segs))
}

// mapShared maps size bytes of fd at offset.
func mapShared(fd int, offset, size uint64, prot Prot) (unsafe.Pointer, error) {
	if offset%PageSize != 0 || offset+size < offset || offset+size > 1<<62 {
		return nil, &RangeError{offset, size, "bad file offset"}
	}
	p, err := unix.MmapPtr(fd, int64(offset), nil, uintptr(size), mmapProt(prot), unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}

	return p, nil
}

// unmap gives the region's mapping back.
func (r *Region) unmap() {
	if r.base != nil {
		// munmap of a range we mapped ourselves cannot fail.
		_ = unix.MunmapPtr(r.base, uintptr(r.Size))
	}
}

// at returns where addr, which lies in r, is in this process.
func (r *Region) at(addr uint64) unsafe.Pointer { return unsafe.Add(r.base, addr-r.Addr) }

// holds reports whether p is an address of this process inside the mapping.
func (r *Region) holds(p uintptr) bool {
	return r.base != nil && p >= uintptr(r.base) && uint64(p-uintptr(r.base)) < r.Size
}

// load copies from the region; [addr, addr+len(p)) lies in it.
func (r *Region) load(p []byte, addr uint64) { copy(p, unsafe.Slice((*byte)(r.at(addr)), len(p))) }

// store copies to the region; [addr, addr+len(p)) lies in it.
func (r *Region) store(p []byte, addr uint64) { copy(unsafe.Slice((*byte)(r.at(addr)), len(p)), p) }

// Pointer returns where [addr, addr+n) is in this process. It is nil, false if
// the range is not in one region with access prot or the region is not shared.
// The pointer is good until the view changes, or while a lease is held.
func (v *View) Pointer(addr, n uint64, prot Prot) (unsafe.Pointer, bool) {
	r := v.find(addr, n, prot)
	if r == nil || !r.Shared() {
		return nil, false
	}
	return r.at(addr), true
}

// Reserve returns size bytes of zeroed memory, which the caller unmaps: pages are
// taken as they are used. Errors are those of mmap(2).
func Reserve(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

// discard returns memory for MaxTransfer bytes of data that nobody wants. All
// commands of the view store to the same memory, and nobody reads it.
func (v *View) discard() ([]byte, error) {
	if v.sink == nil {
		p, err := Reserve(MaxTransfer)
		if err != nil {
			return nil, fmt.Errorf("making memory for bit buckets: %w", err)
		}
		v.sink = p
	}
	return v.sink, nil
}

// dropSink gives the memory of discard back; no command uses it.
func (v *View) dropSink() {
	if v.sink != nil {
		_ = unix.Munmap(v.sink)
		v.sink = nil
	}
}

// entryBytes returns the memory of PRP list entries.
func entryBytes(list []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(list))), len(list)*8)
}
