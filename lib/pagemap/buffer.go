// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// Buffer is memory for DMA: in a memory file, of huge pages where there are
// any, all of it in memory and pinned there. It goes with the process, also
// when that is killed.
type Buffer struct {
	Bytes    []byte
	PageSize uint64 // bytes of the pages it is made of
	fd       int
}

// NewBuffer makes a buffer of size bytes, rounded up to whole pages. page is
// the page size in bytes; 0: the largest that is not larger than size and of
// which enough are free, else base pages. Errors: unix.ENOMEM (no such pages are
// free), unix.EPERM and unix.EAGAIN (RLIMIT_MEMLOCK).
func NewBuffer(size, page uint64) (*Buffer, error) {
	if size == 0 || size > 1<<46 {
		return nil, fmt.Errorf("buffer of %d bytes: %w", size, unix.EINVAL)
	}
	if page != 0 {
		return newBuffer(size, page)
	}
	for _, page := range candidates(size) {
		b, err := newBuffer(size, page)
		if err == nil || page == pageSize {
			return b, err
		}
	}
	panic("pagemap: base pages are always a candidate")
}

// candidates are page sizes to try, the largest first.
func candidates(size uint64) []uint64 {
	sizes := []uint64{pageSize}
	pools, err := Pools(Sysfs)
	if err != nil {
		return sizes // no huge pages then
	}
	for _, p := range pools {
		if p.Node < 0 && p.PageSize <= size && (p.Free-p.Promised)*p.PageSize >= size {
			sizes = append([]uint64{p.PageSize}, sizes...)
		}
	}
	return sizes
}

func newBuffer(size, page uint64) (_ *Buffer, err error) {
	if page < pageSize || page&(page-1) != 0 {
		return nil, fmt.Errorf("page size %d: %w", page, unix.EINVAL)
	}
	flags := unix.MFD_CLOEXEC
	if page != pageSize {
		flags |= unix.MFD_HUGETLB | bits.TrailingZeros64(page)<<unix.MFD_HUGE_SHIFT
	}
	b := &Buffer{PageSize: page}
	if b.fd, err = unix.MemfdCreate("leap-dma", flags); err != nil {
		return nil, fmt.Errorf("memory file of pages of %d bytes: %w", page, err)
	}
	size = (size + page - 1) / page * page
	if err := unix.Ftruncate(b.fd, int64(size)); err != nil {
		b.Close()
		return nil, fmt.Errorf("memory file of %d bytes: %w", size, err)
	}
	b.Bytes, err = unix.Mmap(b.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err == nil {
		err = unix.Mlock(b.Bytes)
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("%d bytes of pages of %d: %w", size, page, err)
	}
	return b, nil
}

// Addr returns the virtual address of the buffer.
func (b *Buffer) Addr() uint64 { return addrOf(b.Bytes) }

// Close gives the memory back.
func (b *Buffer) Close() error {
	var err error
	if b.Bytes != nil {
		err = unix.Munmap(b.Bytes)
		b.Bytes = nil
	}
	return errors.Join(err, unix.Close(b.fd))
}

// Runs calls f for each physically contiguous run of the buffer and sums them up. Where
// the kernel hides frame numbers there are none, and Usage.Hidden says so.
func (b *Buffer) Runs(f func(Run) error) (Usage, error) {
	p, err := Open(os.Getpid())
	if err != nil {
		return Usage{}, err
	}
	defer p.Close()
	start := b.Addr()
	return p.Usage(start, start+uint64(len(b.Bytes)), f)
}

// Verify fills the buffer with a pattern in which every word is different, and
// reads it back through another mapping of the same memory. progress, if not
// nil, is called now and then with the bytes that are done, of twice the size.
// The pattern stays: the 64-bit word at offset N is PatternWord(N), in the
// machine's byte order.
func (b *Buffer) Verify(progress func(done uint64)) error {
	other, err := unix.Mmap(b.fd, 0, len(b.Bytes), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the buffer again: %w", err)
	}
	defer unix.Munmap(other)
	const step = 1 << 20
	told := func(done int) {
		if done%step == 0 && progress != nil {
			progress(uint64(done))
		}
	}
	for at := 0; at < len(b.Bytes); at += entrySize {
		binary.NativeEndian.PutUint64(b.Bytes[at:], PatternWord(at))
		told(at + entrySize)
	}
	for at := 0; at < len(other); at += entrySize {
		if got, want := binary.NativeEndian.Uint64(other[at:]), PatternWord(at); got != want {
			return fmt.Errorf("at offset %#x the memory holds %#016x, not %#016x as written", at, got, want)
		}
		told(len(other) + at + entrySize)
	}
	return nil
}

// PatternWord is the word at an offset of what Verify writes: a bijection of the
// offset, so that all words differ.
func PatternWord(offset int) uint64 { return (uint64(offset) + 1) * 0x9e3779b97f4a7c15 }
