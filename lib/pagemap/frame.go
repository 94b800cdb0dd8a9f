// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"strings"
)

// Flags is what /proc/kpageflags says of a page frame (Linux,
// include/uapi/linux/kernel-page-flags.h).
type Flags uint64

// Flags that decide something, here or in tests; the others only have names.
const (
	FlagSlab         Flags = 1 << 7
	FlagBuddy        Flags = 1 << 10 // free
	FlagAnon         Flags = 1 << 12
	FlagCompoundTail Flags = 1 << 16
	FlagHuge         Flags = 1 << 17 // of hugetlb
	FlagKSM          Flags = 1 << 21
	FlagTHP          Flags = 1 << 22
	FlagZero         Flags = 1 << 24 // the zero page, small or huge
)

// flagNames has the kernel's word for each bit; empty: not assigned.
var flagNames = [64]string{
	"locked", "error", "referenced", "uptodate", "dirty", "lru", "active", "slab",
	"writeback", "reclaim", "buddy", "mmap", "anon", "swapcache", "swapbacked", "compound_head",
	"compound_tail", "huge", "unevictable", "hwpoison", "nopage", "ksm", "thp", "offline",
	"zero_page", "idle", "pgtable",
	32: "reserved", 33: "mlocked", 34: "owner_2", 35: "private", 36: "private_2", 37: "owner_private", 38: "arch", 39: "uncached",
	40: "softdirty", 41: "arch_2", 42: "arch_3",
}

// String returns the names of the flags that are set, joined by commas; a bit
// without a name is bitN.
func (f Flags) String() string {
	var names []string
	for rest := uint64(f); rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		name := flagNames[bit]
		if name == "" {
			name = fmt.Sprintf("bit%d", bit)
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

// Frames reads what the kernel keeps about page frames. Only root may. It owns
// its files.
type Frames struct {
	flags, counts *os.File
}

// OpenFrames opens /proc/kpageflags and /proc/kpagecount. The error is
// fs.ErrPermission without CAP_SYS_ADMIN.
func OpenFrames() (*Frames, error) {
	flags, err := os.Open("/proc/kpageflags")
	if err != nil {
		return nil, err
	}
	counts, err := os.Open("/proc/kpagecount")
	if err != nil {
		flags.Close()
		return nil, err
	}
	return &Frames{flags, counts}, nil
}

// Close closes the files.
func (f *Frames) Close() error { return errors.Join(f.flags.Close(), f.counts.Close()) }

// Flags returns the flags of one frame.
func (f *Frames) Flags(pfn uint64) (Flags, error) {
	v, err := readWord(f.flags, pfn)
	return Flags(v), err
}

// MapCount returns how often one frame is mapped by processes.
func (f *Frames) MapCount(pfn uint64) (uint64, error) { return readWord(f.counts, pfn) }

// readWord reads word n of a file of 64-bit words in the machine's byte order.
func readWord(f *os.File, n uint64) (uint64, error) {
	var b [entrySize]byte
	if _, err := f.ReadAt(b[:], int64(n*entrySize)); err != nil {
		if err == io.EOF {
			return 0, fmt.Errorf("%s: page frame %#x is beyond the last", f.Name(), n)
		}
		return 0, err
	}
	return binary.NativeEndian.Uint64(b[:]), nil
}
