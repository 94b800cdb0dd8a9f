// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

// MaxTransfer is the largest data transfer of one command in bytes (MDTS).
const MaxTransfer = 1 << 20

// maxRanges is the most ranges a transfer can have: one per page, and one more
// when the first does not start at a page boundary.
const maxRanges = MaxTransfer/PageSize + 1

// MaxSegments bounds the segments of one command: the ranges of its PRPs or SGL,
// some of which may cross from one region into the next.
const MaxSegments = maxRanges + 8

// Range is a contiguous piece of guest memory, or with Addr Nowhere a piece of
// the data that is discarded.
type Range struct{ Addr, Len uint64 }

// Nowhere is the address of what is discarded. No guest memory is there: the
// last page of the address space cannot be registered (CheckRange).
const Nowhere = 1<<64 - 1

// PRP returns the guest ranges of n bytes of data described by a command's PRP
// entries (NVMe Base 4.3.1), contiguous pages merged. n is 1 to MaxTransfer.
// List entries are read once. The result is valid until the next call.
//
// Errors: ErrOffset, ErrFault (a list is not readable), ErrTooLong (n is out of
// range), or what the relay says.
func (v *View) PRP(prp1, prp2, n uint64) ([]Range, error) {
	if n == 0 || n > MaxTransfer {
		return nil, ErrTooLong
	}
	if prp1&3 != 0 {
		return nil, ErrOffset
	}
	first := min(n, PageSize-prp1%PageSize)
	v.ranges[0] = Range{prp1, first}
	left := n - first
	switch {
	case left == 0:
		return v.ranges[:1], nil
	case left <= PageSize:
		if prp2%PageSize != 0 {
			return nil, ErrOffset
		}
		return appendRange(v.ranges[:1], prp2, left), nil
	case prp2&7 != 0:
		return nil, ErrOffset
	}
	return v.prpList(v.ranges[:1], prp2, left)
}

// prpList walks the list at addr for left more bytes. Only the first list may
// start inside a page, so each further one holds at least 511 pages of data:
// the walk ends whatever the guest wrote.
func (v *View) prpList(rs []Range, addr, left uint64) ([]Range, error) {
	for {
		room := (PageSize - addr%PageSize) / 8
		need := (left + PageSize - 1) / PageSize
		list := v.entries[:min(need, room)]
		if err := v.Read(entryBytes(list), addr); err != nil {
			return nil, err
		}
		chained := need > room
		if chained {
			addr = list[len(list)-1]
			list = list[:len(list)-1]
		}
		for _, p := range list {
			if p%PageSize != 0 {
				return nil, ErrOffset
			}
			n := min(left, PageSize)
			rs = appendRange(rs, p, n)
			left -= n
		}
		if !chained {
			return rs, nil
		}
		if addr%PageSize != 0 {
			return nil, ErrOffset
		}
	}
}

// appendRange adds a page, merged with the range before it where they touch.
func appendRange(rs []Range, addr, n uint64) []Range {
	if last := &rs[len(rs)-1]; last.Addr+last.Len == addr && addr != 0 {
		last.Len += n
		return rs
	}
	return append(rs, Range{addr, n})
}
