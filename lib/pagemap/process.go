// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package pagemap tells what addresses are: which mapping of a process covers
// one, where its page is, at which physical address, on which NUMA node, and
// which ranges are contiguous in physical memory.
//
//	Process  one address space: its mappings (VMA) and pages (Entry, Page)
//	Frames   what the kernel knows of page frames (Flags)
//	Buffer   memory for DMA, pinned, with its physically contiguous runs
//	Pools    the kernel's huge pages
//
// A page may move at any time unless it is pinned, and a process may end, start
// another program, or change its mappings. What is told is never put together from
// before and after such a change: a Lookup is repeated until it is consistent,
// and a process that has gone is ErrGone, not an empty answer.
package pagemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Errors that callers decide on. Permission is fs.ErrPermission.
var (
	ErrNoProcess = errors.New("no such process")
	ErrNoMemory  = errors.New("it is a kernel thread, or is ending: it has no memory")
	ErrGone      = errors.New("the process has ended, or has started another program")
	ErrMoving    = errors.New("the page changes all the time")
)

// pageSize is the base page size in bytes, the unit of page frame numbers.
var pageSize = uint64(os.Getpagesize())

// PageSize returns the base page size in bytes, the unit of page frame numbers.
func PageSize() uint64 { return pageSize }

// Process is the address space of a process. It owns its files, and stays the
// same address space when the process starts another program or its PID is used
// again: then its methods return ErrGone. They may be called from one goroutine
// at a time.
type Process struct {
	pid     int
	process int // pidfd
	pagemap *os.File
	maps    *os.File
	smaps   *os.File

	noQuery bool // the kernel has no PROCMAP_QUERY
	noScan  bool // nor PAGEMAP_SCAN
	buf     []byte
	room
}

// Open opens the address space of a process. Errors: ErrNoProcess, ErrNoMemory,
// fs.ErrPermission (it belongs to someone else: root may, or CAP_SYS_PTRACE).
func Open(pid int) (*Process, error) {
	fail := func(err error) (*Process, error) { return nil, fmt.Errorf("process %d: %w", pid, err) }
	if pid <= 0 {
		return fail(ErrNoProcess)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread, not a process
			err = ErrNoProcess
		}
		return fail(err)
	}
	dir := "/proc/" + strconv.Itoa(pid)
	p := &Process{pid: pid, process: fd}
	if p.pagemap, err = os.Open(dir + "/pagemap"); err == nil {
		p.maps, err = os.Open(dir + "/maps")
	}
	if err == nil {
		p.smaps, err = os.Open(dir + "/smaps")
	}
	if err == nil {
		err = p.hasMemory()
	}
	// If the process is there still, the files are its own and not of another
	// with its number.
	gone := p.check()
	switch {
	case gone != nil || errors.Is(err, fs.ErrNotExist):
		err = ErrNoProcess
	case errors.Is(err, unix.ESRCH):
		err = ErrNoMemory
	}
	if err != nil {
		p.Close()
		return fail(err)
	}
	return p, nil
}

// hasMemory tells kernel threads from processes: they have no mapping at all.
func (p *Process) hasMemory() error {
	var b [1]byte
	if _, err := p.maps.ReadAt(b[:], 0); err == io.EOF {
		return ErrNoMemory
	} else if err != nil {
		return err
	}
	return nil
}

// Close closes what Open opened.
func (p *Process) Close() error {
	unix.Close(p.process)
	var errs []error
	for _, f := range []*os.File{p.pagemap, p.maps, p.smaps} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// PID returns the number the process was opened by.
func (p *Process) PID() int { return p.pid }

// check returns ErrGone if the process has ended.
func (p *Process) check() error {
	fds := []unix.PollFd{{Fd: int32(p.process), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			return ErrGone
		default:
			return nil
		}
	}
}

// Entries reads the pagemap of consecutive pages from the one that holds addr
// on, and returns how many were read: fewer than asked for where the address
// space of user programs ends. The error is ErrGone when the process has no
// memory any more.
func (p *Process) Entries(addr uint64, entries []Entry) (int, error) {
	if need := len(entries) * entrySize; cap(p.buf) < need {
		p.buf = make([]byte, need)
	}
	buf := p.buf[:len(entries)*entrySize]
	n, err := p.pagemap.ReadAt(buf, int64(addr/pageSize*entrySize))
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("process %d: pagemap of %#x: %w", p.pid, addr, err)
	}
	if n == 0 && len(entries) > 0 {
		return 0, p.ended(addr)
	}
	for i := range n / entrySize {
		entries[i] = Entry(binary.NativeEndian.Uint64(buf[i*entrySize:]))
	}
	return n / entrySize, nil
}

// ended says why nothing could be read for addr: the end of the address space,
// which is no error, looks like an address space that has gone.
func (p *Process) ended(addr uint64) error {
	var b [entrySize]byte
	if n, _ := p.pagemap.ReadAt(b[:], 0); n > 0 {
		return nil
	}
	return fmt.Errorf("process %d: %w", p.pid, ErrGone)
}

// VMAs calls f for each mapping in the order of addresses, until it returns
// false. Memory does not grow with their number. Mappings that change meanwhile
// are told as they were or as they are.
func (p *Process) VMAs(f func(VMA) bool) error {
	some := false
	err := readVMAs(io.NewSectionReader(p.maps, 0, 1<<62), func(v VMA) bool {
		some = true
		return f(v)
	})
	if err == nil && !some || errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("process %d: mappings: %w", p.pid, err)
	}
	return nil
}

// Find returns the mapping that covers addr, and the size in bytes of the pages
// it is made of (hugetlb has its own); size 0 means that it is not known.
func (p *Process) Find(addr uint64) (v VMA, size uint64, ok bool, err error) {
	if !p.noQuery {
		v, size, ok, err = p.query(addr)
		if !errors.Is(err, unix.ENOTTY) {
			return v, size, ok, err
		}
		p.noQuery = true
	}
	err = p.VMAs(func(w VMA) bool {
		if w.Contains(addr) {
			v, ok = w, true
		}
		return w.End <= addr
	})
	if ok && err == nil {
		size, err = readPageSize(io.NewSectionReader(p.smaps, 0, 1<<62), v.Start)
	}
	return v, size, ok, err
}

// sameVMA reports whether two readings are of one mapping as far as an address
// in it is concerned: it may have grown, or been cut elsewhere.
func sameVMA(a, b VMA) bool {
	return a.Perms == b.Perms && a.Major == b.Major && a.Minor == b.Minor && a.Inode == b.Inode &&
		a.Offset-a.Start == b.Offset-b.Start
}

// Page is what is known of the page at an address.
type Page struct {
	Addr    uint64 // as asked for
	State   State
	VMA     VMA    // if not Unmapped
	Size    uint64 // bytes the mapping of the page covers: a base page, or a huge one; 0: not Present
	Entry   Entry
	Phys    uint64 // physical address of Addr
	HasPhys bool   // the kernel tells it
	Node    int    // NUMA node; -1: not Present, or not known

	Flags    Flags // of the frame
	MapCount uint64
	HasFlags bool // Flags and MapCount are known
	Zero     bool // it is the kernel's page of zeroes
}

// tries is how often a Lookup looks again at a page that changes under it.
const tries = 16

// Lookup tells of the page at an address. frames may be nil: then what only it
// knows is missing. Errors: ErrGone, ErrMoving.
func (p *Process) Lookup(addr uint64, frames *Frames) (Page, error) {
	for range tries {
		page, same, err := p.look(addr, frames)
		if err != nil {
			return Page{}, err
		}
		if same {
			return page, nil
		}
	}
	return Page{}, fmt.Errorf("process %d: address %#x: %w", p.pid, addr, ErrMoving)
}

// look reads all of a page, and whether the page has stayed the same meanwhile.
func (p *Process) look(addr uint64, frames *Frames) (page Page, same bool, err error) {
	page = Page{Addr: addr, Node: -1}
	vma, size, mapped, err := p.Find(addr)
	if err != nil {
		return page, false, err
	}
	if !mapped {
		return page, true, p.check()
	}
	var one [1]Entry
	n, err := p.Entries(addr, one[:])
	if err != nil {
		return page, false, err
	}
	if n == 0 {
		// Beyond the user's part: [vsyscall] is no memory of the process.
		page.State, page.VMA = Absent, vma
		return page, true, p.check()
	}
	page.VMA, page.Entry, page.State = vma, one[0], one[0].State()
	if page.State == Present {
		if err := p.lookPresent(&page, size, frames); err != nil {
			return page, false, err
		}
	}
	if n, err = p.Entries(addr, one[:]); err != nil || n == 0 {
		return page, false, err
	}
	again, _, mapped, err := p.Find(addr)
	if err != nil {
		return page, false, err
	}
	return page, mapped && sameVMA(vma, again) && page.Entry.same(one[0]), p.check()
}

// lookPresent adds what only pages in memory have.
func (p *Process) lookPresent(page *Page, size uint64, frames *Frames) error {
	page.Size = max(size, pageSize)
	if page.Size == pageSize {
		huge, zero, err := p.mappedHuge(page.Addr)
		if err != nil {
			return err
		}
		if page.Zero = zero; huge {
			page.Size = hugeSize()
		}
	}
	page.Node = p.node(page.Addr)
	pfn, known := page.Entry.PFN()
	if !known {
		return nil
	}
	page.Phys, page.HasPhys = pfn*pageSize+page.Addr%pageSize, true
	if frames == nil {
		return nil
	}
	var err error
	if page.Flags, err = frames.Flags(pfn); err != nil {
		return err
	}
	if page.MapCount, err = frames.MapCount(pfn); err != nil {
		return err
	}
	page.HasFlags = true
	page.Zero = page.Flags&FlagZero != 0
	return nil
}

// hugeSize returns what one entry of the second level of page tables maps, in
// bytes: the size of a transparent huge page.
var hugeSize = sync.OnceValue(func() uint64 {
	const path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
	if n, err := readNumber(path); err == nil && n > 0 {
		return n
	}
	return pageSize / entrySize * pageSize // a table of one page, an entry a word
})
