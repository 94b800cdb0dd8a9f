// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/leapio/leapio/lib/qpair"
)

// TestRegionTable compares the table with one that knows every page, through
// any sequence of changes.
func TestRegionTable(t *testing.T) {
	const pages = 64
	last := ^uint64(0) - pages*4096 + 1 // the end of the address space is in reach
	rapid.Check(t, func(t *rapid.T) {
		var table regionTable
		var model [pages]int // number of the region, 0: none
		flags := map[int]uint32{}
		base := rapid.SampledFrom([]uint64{0, last}).Draw(t, "base")
		next := 0
		for range 30 {
			first := rapid.IntRange(0, pages-1).Draw(t, "first")
			n := rapid.IntRange(1, pages-first).Draw(t, "n")
			addr, size := base+uint64(first)*4096, uint64(n)*4096
			switch rapid.SampledFrom([]string{"add", "remove", "covers"}).Draw(t, "op") {
			case "add":
				free := true
				for _, m := range model[first : first+n] {
					free = free && m == 0
				}
				f := rapid.SampledFrom([]uint32{qpair.RegionRead, qpair.RegionRead | qpair.RegionWrite, qpair.RegionRead | qpair.RegionWrite | qpair.RegionOwn}).Draw(t, "flags")
				err := table.add(region{addr: addr, size: size, flags: f, fd: noFD})
				// The range that ends with the address space cannot be had: its
				// end is not an address.
				if wraps := addr+size < addr; (err == nil) != (free && !wraps) {
					t.Fatalf("add %#x+%#x: %v, free %v", addr, size, err, free)
				}
				if err == nil {
					next++
					flags[next] = f
					for i := range n {
						model[first+i] = next
					}
				}
			case "remove":
				inside := map[int]bool{}
				whole := addr+size >= addr
				for i := first; i < first+n; i++ {
					if m := model[i]; m != 0 {
						inside[m] = true
						whole = whole && !(i == first && first > 0 && model[first-1] == m) && !(i == first+n-1 && i+1 < pages && model[i+1] == m)
					}
				}
				gone, err := table.remove(addr, size)
				if (err == nil) != (whole && len(inside) > 0) || err == nil && len(gone) != len(inside) {
					t.Fatalf("remove %#x+%#x: %d, %v; want %d, whole %v", addr, size, len(gone), err, len(inside), whole)
				}
				if err == nil {
					for i := range model {
						if inside[model[i]] {
							model[i] = 0
						}
					}
				}
			case "covers":
				want := true
				for _, m := range model[first : first+n] {
					want = want && m != 0 && flags[m]&qpair.RegionWrite != 0 && flags[m]&qpair.RegionOwn == 0
				}
				if got := table.covers(addr+1, size-1, qpair.RegionWrite); got != want {
					t.Fatalf("covers %#x+%#x: %v, want %v", addr, size, got, want)
				}
			}
		}
		total := uint64(0)
		for _, m := range model {
			if m != 0 {
				total += 4096
			}
		}
		if got := table.bytes(); got != total {
			t.Fatalf("%d bytes, want %d", got, total)
		}
	})
}
