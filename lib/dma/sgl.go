// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"errors"

	"github.com/leapio/leapio/lib/nvme"
)

// Errors of SGLs, each an NVMe status of its own (NVMe Base, "Generic Command
// Status Values").
var (
	// ErrSGLType: a descriptor of a type or sub type that is not supported.
	ErrSGLType = errors.New("unsupported SGL descriptor type")
	// ErrSGLSegment: a segment is empty or no whole number of descriptors, or
	// the last segment leads to another.
	ErrSGLSegment = errors.New("invalid SGL segment descriptor")
	// ErrSGLCount: a segment goes on after its pointer to the next, or there
	// are more descriptors than a command may have.
	ErrSGLCount = errors.New("invalid number of SGL descriptors")
	// ErrSGLLength: the descriptors hold less than the command transfers.
	ErrSGLLength = errors.New("SGL shorter than the data")
)

const (
	// sglChunk is how many descriptors are read from the guest at a time.
	sglChunk = 64
	// maxDescriptors bounds the descriptors of a command, pointers and empty
	// ones included: a list that leads in a circle ends there. It leaves room
	// for a pointer and two empty ones to each piece of data.
	maxDescriptors = 1024
)

// SGLS is what View.SGL understands, as Identify Controller SGLS says it.
const SGLS = nvme.SGLSNoAlignment | nvme.SGLSBitBucket | nvme.SGLSLongerThanData

// MaxSGLRanges is the most pieces of data an SGL can have, pieces that follow
// one another in memory counted once.
const MaxSGLRanges = maxRanges

// SGL returns the guest ranges of n bytes of data described by a command's SGL
// descriptor (NVMe Base, "Scatter Gather List"), adjacent ones merged; what the
// list describes beyond n bytes is not looked at. n is 1 to MaxTransfer. prot
// is what the device does with the data: where it writes, bit buckets discard
// their part of it, where it reads they stand for nothing. Descriptors are read
// once. The result is valid until the next call.
//
// Errors: those of SGLs, ErrFault (a segment is not readable), ErrTooLong (n is
// out of range), or what the relay says.
func (v *View) SGL(first nvme.SGLDescriptor, n uint64, prot Prot) ([]Range, error) {
	if n == 0 || n > MaxTransfer {
		return nil, ErrTooLong
	}
	l := sglist{v: v, ranges: v.ranges[:0], left: n, prot: prot}
	at, budget := first, uint64(maxDescriptors)
	for isSegment(&at) {
		if at.Subtype() != nvme.SGLAddress {
			return nil, ErrSGLType
		}
		count := uint64(at.Length) / nvme.SGLDescriptorSize
		if count == 0 || at.Length%nvme.SGLDescriptorSize != 0 {
			return nil, ErrSGLSegment
		}
		// One beyond the budget tells a list that is too long.
		next, err := l.segment(at.Address, min(count, budget+1), at.Type() == nvme.SGLLastSegment)
		if err != nil {
			return nil, err
		}
		if l.left == 0 {
			return l.ranges, nil
		}
		if count > budget {
			return nil, ErrSGLCount
		}
		budget -= count
		at = next
	}
	if err := l.add(&at); err != nil {
		return nil, err
	}
	if l.left > 0 {
		return nil, ErrSGLLength
	}
	return l.ranges, nil
}

func isSegment(d *nvme.SGLDescriptor) bool {
	return d.Type() == nvme.SGLSegment || d.Type() == nvme.SGLLastSegment
}

// sglist is the data of an SGL as far as it has been walked.
type sglist struct {
	v      *View
	ranges []Range
	left   uint64 // bytes of the transfer that have no place yet
	prot   Prot
}

// segment adds the data of a segment of count descriptors at addr. It returns
// its last descriptor if that leads on, or else an empty one.
func (l *sglist) segment(addr, count uint64, last bool) (next nvme.SGLDescriptor, err error) {
	for count > 0 && l.left > 0 {
		chunk := l.v.descriptors[:min(count, sglChunk)]
		if err := l.v.Read(nvme.SliceBytes(chunk), addr); err != nil {
			return next, err
		}
		for i := range chunk {
			d := &chunk[i]
			switch {
			case l.left == 0:
				return next, nil
			case !isSegment(d):
				err = l.add(d)
			case last:
				err = ErrSGLSegment
			case count > uint64(i)+1:
				err = ErrSGLCount
			default:
				return *d, nil
			}
			if err != nil {
				return next, err
			}
		}
		count -= uint64(len(chunk))
		addr += uint64(len(chunk)) * nvme.SGLDescriptorSize
	}
	return next, nil
}

// add adds the data of a descriptor that leads nowhere else.
func (l *sglist) add(d *nvme.SGLDescriptor) error {
	addr := d.Address
	switch {
	case d.Subtype() != nvme.SGLAddress:
		return ErrSGLType
	case d.Type() == nvme.SGLDataBlock:
		if addr == Nowhere && d.Length > 0 {
			l.v.fault = addr
			return ErrFault
		}
	case d.Type() == nvme.SGLBitBucket:
		if l.prot&ProtWrite == 0 {
			return nil
		}
		addr = Nowhere
	default:
		return ErrSGLType
	}
	n := min(uint64(d.Length), l.left)
	if n == 0 {
		return nil
	}
	l.left -= n
	if last := len(l.ranges) - 1; last >= 0 && addr != Nowhere && l.ranges[last].end() == addr {
		l.ranges[last].Len += n
		return nil
	}
	if len(l.ranges) == cap(l.ranges) {
		return ErrSGLCount
	}
	l.ranges = append(l.ranges, Range{addr, n})
	return nil
}

// end returns the address that follows the range; Nowhere where it is discarded
// or reaches the end of the address space.
func (r *Range) end() uint64 {
	if r.Len > Nowhere-r.Addr {
		return Nowhere
	}
	return r.Addr + r.Len
}
