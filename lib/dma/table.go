// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"slices"
)

// Region is one mapped range. Base is nil where the client did not share the
// memory (no file descriptor): such memory is reached by messages only.
type Region struct {
	Addr uint64 // first guest-physical address
	Size uint64 // bytes
	Prot Prot
	base base // where Addr is in this process, or nil
}

// Shared reports whether the region is mapped into this process.
func (r *Region) Shared() bool { return r.base != nil }

// contains reports whether [addr, addr+n) lies in r. n may be 0.
func (r *Region) contains(addr, n uint64) bool {
	off := addr - r.Addr
	return addr >= r.Addr && off <= r.Size && n <= r.Size-off
}

// Table is an immutable snapshot of a space: regions sorted by address that do
// not overlap.
type Table struct {
	Gen     uint64
	regions []Region
}

// Regions returns the regions in address order; callers do not change them.
func (t *Table) Regions() []Region { return t.regions }

// find returns the index of the region that holds addr, or -1. It is on the
// data path, where a closure called per probe costs more than the search.
func (t *Table) find(addr uint64) int {
	lo, hi := 0, len(t.regions)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if t.regions[mid].Addr <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || addr-t.regions[lo-1].Addr >= t.regions[lo-1].Size {
		return -1
	}
	return lo - 1
}

// overlaps reports whether any region intersects [addr, addr+size).
func (t *Table) overlaps(addr, size uint64) bool {
	for i := range t.regions {
		if r := &t.regions[i]; addr < r.Addr+r.Size && r.Addr < addr+size {
			return true
		}
	}
	return false
}

// with returns a copy of t with r added.
func (t *Table) with(gen uint64, r Region) *Table {
	i, _ := slices.BinarySearchFunc(t.regions, r.Addr, func(x Region, a uint64) int {
		if x.Addr < a {
			return -1
		}
		return 1
	})
	return &Table{Gen: gen, regions: slices.Insert(slices.Clone(t.regions), i, r)}
}

// without returns a copy of t without the regions inside [addr, addr+size), and
// those regions. A region that the range cuts in two is an error: every client
// unmaps what it mapped.
func (t *Table) without(gen, addr, size uint64) (*Table, []Region, error) {
	next := &Table{Gen: gen}
	var gone []Region
	for _, r := range t.regions {
		switch {
		case r.Addr >= addr && r.Size <= size && r.Addr-addr <= size-r.Size:
			gone = append(gone, r)
		case addr-r.Addr < r.Size || r.Addr-addr < size:
			return nil, nil, &RangeError{addr, size, "cuts a mapped region"}
		default:
			next.regions = append(next.regions, r)
		}
	}
	if gone == nil {
		return nil, nil, &RangeError{addr, size, "not mapped"}
	}
	return next, gone, nil
}
