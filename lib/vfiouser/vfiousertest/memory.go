// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser"
)

// PageSize is the guest's page size in bytes.
const PageSize = 4096

const (
	fourGiB = 1 << 32
	oneMiB  = 1 << 20
)

// MemoryOptions describe the RAM of a guest. Sizes are in bytes and whole MiB.
type MemoryOptions struct {
	Low     uint64 // from address 0, at least 2 MiB and less than 4 GiB
	High    uint64 // from address 4 GiB
	Private bool   // not shared with the server: no file descriptors
	Copied  bool   // the server gets a file of which the guest has a private copy (a file backend with share=off)
	Sealed  bool   // the memory file can no longer be made smaller
}

// Memory is the RAM of a guest: one file, mapped here, that backs RAM below and
// above 4 GiB as in QEMU, or private memory. Several clients may share it, as
// the devices of one machine do.
type Memory struct {
	options MemoryOptions
	fd      int    // -1: private
	b       []byte // the whole of it; RAM above 4 GiB begins at options.Low

	mu   sync.Mutex
	used []bool // by page
	next [2]int // where to look for free pages, below and above 4 GiB
}

// NewMemory makes a guest's RAM. No page of it takes up memory until it is
// used.
func NewMemory(options MemoryOptions) (*Memory, error) {
	if options.Low < 2*oneMiB || options.Low >= fourGiB || options.Low%oneMiB != 0 || options.High%oneMiB != 0 {
		return nil, fmt.Errorf("guest memory of %d and %d bytes: whole MiB needed, 2 MiB to 4 GiB below", options.Low, options.High)
	}
	size := int(options.Low + options.High)
	m := &Memory{options: options, fd: -1, used: make([]bool, size/PageSize)}
	flags := unix.MAP_SHARED
	if options.Private {
		flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	} else if err := m.makeFile(int64(size)); err != nil {
		return nil, err
	}
	if options.Copied {
		flags = unix.MAP_PRIVATE
	}
	b, err := unix.Mmap(m.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping guest memory: %w", err), m.Close())
	}
	m.b = b
	// The first MiB is the firmware's: it is mapped anew again and again.
	for p := range oneMiB / PageSize {
		m.used[p] = true
	}
	m.next = [2]int{oneMiB / PageSize, int(options.Low / PageSize)}
	return m, nil
}

func (m *Memory) makeFile(size int64) error {
	fd, err := unix.MemfdCreate("memory-backend-memfd", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("making guest memory: %w", err)
	}
	m.fd = fd
	if err := unix.Ftruncate(fd, size); err != nil {
		return errors.Join(fmt.Errorf("making guest memory: %w", err), m.Close())
	}
	if !m.options.Sealed {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return errors.Join(fmt.Errorf("sealing guest memory: %w", err), m.Close())
	}
	return nil
}

// Close unmaps the memory and closes its file. Slices handed out are dead then.
func (m *Memory) Close() error {
	var errs []error
	if m.b != nil {
		errs = append(errs, unix.Munmap(m.b))
		m.b = nil
	}
	if m.fd >= 0 {
		errs = append(errs, unix.Close(m.fd))
		m.fd = -1
	}
	return errors.Join(errs...)
}

// FD returns the file that backs the memory, -1 if it is private.
func (m *Memory) FD() int { return m.fd }

// Mappings returns the RAM as QEMU maps it when a machine starts.
func (m *Memory) Mappings() []Mapping {
	const rw = vfiouser.DMARead | vfiouser.DMAWrite
	all := []Mapping{{Address: 0, Size: m.options.Low, Offset: 0, Flags: rw, FD: m.fd}}
	if m.options.High > 0 {
		all = append(all, Mapping{Address: fourGiB, Size: m.options.High, Offset: m.options.Low, Flags: rw, FD: m.fd})
	}
	return all
}

// Bytes returns n bytes of RAM at a guest address.
func (m *Memory) Bytes(address, n uint64) ([]byte, error) {
	at, end := address, m.options.Low
	if address >= fourGiB {
		at, end = address-fourGiB+m.options.Low, uint64(len(m.b))
	}
	if at > end || n > end-at {
		return nil, fmt.Errorf("no guest memory at %#x+%#x", address, n)
	}
	return m.b[at : at+n : at+n], nil
}

// Alloc returns n bytes of zeroed RAM below 4 GiB, in one piece and from the
// start of a page.
func (m *Memory) Alloc(n int) (address uint64, b []byte, err error) { return m.alloc(n, false) }

// AllocHigh is Alloc above 4 GiB.
func (m *Memory) AllocHigh(n int) (address uint64, b []byte, err error) { return m.alloc(n, true) }

func (m *Memory) alloc(n int, high bool) (uint64, []byte, error) {
	pages := (n + PageSize - 1) / PageSize
	lowPages := int(m.options.Low / PageSize)
	first, end, which := 0, lowPages, 0
	if high {
		first, end, which = lowPages, len(m.used), 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.findFree(pages, m.next[which], end)
	if p < 0 {
		p = m.findFree(pages, first, end)
	}
	if n <= 0 || p < 0 {
		return 0, nil, fmt.Errorf("allocating %d bytes of guest memory: none free", n)
	}
	for i := range pages {
		m.used[p+i] = true
	}
	m.next[which] = p + pages
	at := p * PageSize
	b := m.b[at : at+n : at+pages*PageSize]
	clear(b)
	address := uint64(at)
	if high {
		address += fourGiB - m.options.Low
	}
	return address, b, nil
}

// findFree returns the first of as many free pages in a row, -1 if there are
// none between first and end.
func (m *Memory) findFree(pages, first, end int) int {
	run := 0
	for p := first; p < end; p++ {
		if m.used[p] {
			run = 0
		} else if run++; run == pages {
			return p - pages + 1
		}
	}
	return -1
}

// Free gives back what Alloc or AllocHigh returned.
func (m *Memory) Free(address uint64, n int) {
	at, which := address, 0
	if address >= fourGiB {
		at, which = address-fourGiB+m.options.Low, 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	first := int(at / PageSize)
	for i := range (n + PageSize - 1) / PageSize {
		m.used[first+i] = false
	}
	m.next[which] = min(m.next[which], first)
}

// Shrink makes the memory file smaller under the server's feet, as a hostile
// client can; it fails if the memory is private or sealed. RAM behind the new
// end must not be touched here either.
func (m *Memory) Shrink(size int64) error {
	if err := unix.Ftruncate(m.fd, size); err != nil {
		return fmt.Errorf("shrinking guest memory to %d bytes: %w", size, err)
	}
	return nil
}
