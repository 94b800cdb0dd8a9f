// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Categories of PAGEMAP_SCAN (Linux 6.7, include/uapi/linux/fs.h).
const (
	isPresent = 1 << 3
	isSwapped = 1 << 4
	isZero    = 1 << 5
	isHuge    = 1 << 6 // mapped by one entry of the second level, or hugetlb
)

// walkEntries is how many entries Walk reads at once.
const walkEntries = 32 << 10

// Walk calls f for the pages of [start, end) that are in memory or swapped out,
// in the order of addresses and in pieces as it likes; others may be among them.
// entries belong to Walk. Memory does not grow with the range. Errors: ErrGone, and what f
// returns.
//
// Ranges without pages are skipped where the kernel has PAGEMAP_SCAN, so that
// large reservations cost nothing.
func (p *Process) Walk(start, end uint64, f func(addr uint64, entries []Entry) error) error {
	start, end = start/pageSize*pageSize, min(end, 1<<63)
	if start >= end {
		return p.check()
	}
	entries := make([]Entry, min(walkEntries, (end-start+pageSize-1)/pageSize))
	for start < end {
		regions, next := []region{{start: start, end: end}}, end
		if !p.noScan {
			found, walked, err := p.scan(start, end, isPresent|isSwapped, 0)
			switch {
			case err == nil:
				regions, next = found, walked
			case errors.Is(err, unix.ENOTTY):
				p.noScan = true
			default:
				return err
			}
		}
		for _, r := range regions {
			if err := p.walk(r, entries, f); err != nil {
				return err
			}
		}
		if next <= start {
			return fmt.Errorf("process %d: scanning from %#x got nowhere", p.pid, start)
		}
		start = next
	}
	return p.check()
}

// walk reads the entries of one region.
func (p *Process) walk(r region, entries []Entry, f func(addr uint64, entries []Entry) error) error {
	for r.start < r.end {
		n, err := p.Entries(r.start, entries[:min(uint64(len(entries)), (r.end-r.start+pageSize-1)/pageSize)])
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the end of the address space
		}
		if err := f(r.start, entries[:n]); err != nil {
			return err
		}
		r.start += uint64(n) * pageSize
	}
	return nil
}

// mappedHuge reports whether the page at addr is mapped as a part of a huge
// page, and whether it is of the zero page. Where the kernel cannot tell, it is
// taken for a base page.
func (p *Process) mappedHuge(addr uint64) (huge, zero bool, err error) {
	if p.noScan {
		return false, false, nil
	}
	addr = addr / pageSize * pageSize
	found, _, err := p.scan(addr, addr+pageSize, isPresent, isHuge|isZero)
	if errors.Is(err, unix.ENOTTY) {
		p.noScan = true
		return false, false, nil
	}
	if err != nil || len(found) == 0 {
		return false, false, err
	}
	return found[0].categories&isHuge != 0, found[0].categories&isZero != 0, nil
}

// Run is a range of addresses whose pages follow each other in physical memory.
type Run struct {
	Addr, Phys uint64
	Size       uint64 // bytes
}

// Usage sums up the pages of a range. All but Runs and Longest are bytes.
type Usage struct {
	Present, Swapped, Special uint64
	File                      uint64 // of Present: pages of files or of shared anonymous memory
	Exclusive                 uint64 // of Present: mapped nowhere else
	Hidden                    uint64 // of Present: the kernel hides where
	Runs                      uint64 // physically contiguous runs of what is not Hidden
	Longest                   uint64 // the longest of them, in bytes
}

// Usage sums up [start, end), and calls run, if not nil, for each physically
// contiguous run.
func (p *Process) Usage(start, end uint64, run func(Run) error) (Usage, error) {
	c := counter{run: run}
	err := p.Walk(start, end, c.count)
	if err == nil {
		err = c.end()
	}
	return c.sum, err
}

// counter follows a walk. open is the run that may go on.
type counter struct {
	sum  Usage
	open Run
	run  func(Run) error
}

func (c *counter) count(addr uint64, entries []Entry) error {
	for i, e := range entries {
		switch {
		case e.Present():
			c.sum.Present += pageSize
			if e.File() {
				c.sum.File += pageSize
			}
			if e.Exclusive() {
				c.sum.Exclusive += pageSize
			}
			pfn, known := e.PFN()
			if !known {
				c.sum.Hidden += pageSize
				continue
			}
			at, phys := addr+uint64(i)*pageSize, pfn*pageSize
			if c.open.Size != 0 && at == c.open.Addr+c.open.Size && phys == c.open.Phys+c.open.Size {
				c.open.Size += pageSize
				continue
			}
			if err := c.end(); err != nil {
				return err
			}
			c.open = Run{Addr: at, Phys: phys, Size: pageSize}
		case e.Special():
			c.sum.Special += pageSize
		case e.Swapped():
			c.sum.Swapped += pageSize
		}
	}
	return nil
}

// end ends the open run, if there is one.
func (c *counter) end() error {
	r := c.open
	if c.open = (Run{}); r.Size == 0 {
		return nil
	}
	c.sum.Runs++
	c.sum.Longest = max(c.sum.Longest, r.Size)
	if c.run == nil {
		return nil
	}
	return c.run(r)
}
