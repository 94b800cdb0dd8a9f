// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

// Entry is what /proc/PID/pagemap says of one page (Linux,
// Documentation/admin-guide/mm/pagemap.rst).
type Entry uint64

// Bits of an Entry.
const (
	frameMask      = 1<<55 - 1
	swapTypeMask   = 1<<5 - 1
	swapOffsetBit  = 5
	bitSoftDirty   = 1 << 55
	bitExclusive   = 1 << 56
	bitWriteTrap   = 1 << 57
	bitGuard       = 1 << 58
	bitFile        = 1 << 61
	bitSwapped     = 1 << 62
	bitPresent     = 1 << 63
	entrySize      = 8
	stableBits     = bitPresent | bitSwapped | bitFile | bitGuard | frameMask
	firstSpecial   = 23 // swap types below it are swap areas, whatever the kernel's configuration (include/linux/swap.h)
	markerSwapType = 31 // a page table marker: userfaultfd write protection, poison
)

// Present reports whether the page is in memory and mapped.
func (e Entry) Present() bool { return e&bitPresent != 0 }

// Swapped reports whether there is a swap entry in place of the page: it has
// been swapped out, or the entry is Special.
func (e Entry) Swapped() bool { return e&bitSwapped != 0 }

// File reports whether the page is of a file or of shared anonymous memory.
func (e Entry) File() bool { return e&bitFile != 0 }

// Exclusive reports whether nobody else has the page mapped.
func (e Entry) Exclusive() bool { return e&bitExclusive != 0 }

// SoftDirty reports whether the page was written since the soft-dirty bits were
// cleared last.
func (e Entry) SoftDirty() bool { return e&bitSoftDirty != 0 }

// WriteProtected reports whether userfaultfd protects the page from writes.
func (e Entry) WriteProtected() bool { return e&bitWriteTrap != 0 }

// Guard reports whether the page is in a guard region (MADV_GUARD_INSTALL).
func (e Entry) Guard() bool { return e&bitGuard != 0 }

// PFN returns the page frame number, in units of the base page size. It is not
// known if the page is not Present, or if the kernel hides frame numbers from
// this process (CAP_SYS_ADMIN shows them).
func (e Entry) PFN() (pfn uint64, known bool) {
	if !e.Present() {
		return 0, false
	}
	pfn = uint64(e & frameMask)
	return pfn, pfn != 0 // no process maps frame 0
}

// Swap returns the swap area's number and the offset there, in pages, of an
// entry that is Swapped and not Special. Both are 0 where the kernel hides them.
func (e Entry) Swap() (area int, offset uint64) {
	return int(e & swapTypeMask), uint64(e&frameMask) >> swapOffsetBit
}

// Special reports whether a swap entry is not of a swap area: the page is being
// migrated, is in a device's memory, is poisoned, or carries a marker. Which
// of these a number means depends on the kernel's configuration.
func (e Entry) Special() bool { return e.Swapped() && e&swapTypeMask >= firstSpecial }

// same reports whether two readings are of one page in one place. What is
// accounted about it, such as soft-dirty, may differ.
func (e Entry) same(other Entry) bool { return e&stableBits == other&stableBits }

// State says where a page is.
type State uint8

// States of a page.
const (
	Unmapped State = iota // no mapping covers the address
	Absent                // never touched, or dropped: a fault would bring it
	Present               // in memory and mapped
	Swapped               // in a swap area
	Special               // see Entry.Special
	Guard                 // an access is a fault, as in Unmapped
)

var stateNames = [...]string{"unmapped", "absent", "present", "swapped", "special", "guard"}

// String returns the state's word, as the command prints it.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "invalid"
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// State returns where the page of an entry in a mapping is.
func (e Entry) State() State {
	switch {
	case e.Present():
		return Present
	case e.Guard():
		return Guard
	case e.Special():
		return Special
	case e.Swapped():
		return Swapped
	}
	return Absent
}
