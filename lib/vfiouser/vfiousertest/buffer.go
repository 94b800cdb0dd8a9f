// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// Shape says how a buffer lies in guest memory. The zero value is a buffer of
// whole pages, one after the other.
type Shape struct {
	Offset     int  // of the data in the first page, a multiple of 4 below PageSize
	ListOffset int  // of the PRP list or the SGL segments in their pages, a multiple of 8 below PageSize
	Scatter    bool // no two pages follow one another
	High       bool // pages above 4 GiB
	Split      bool // pages below and above 4 GiB in turn
	// SGL describes the buffer by an SGL instead of PRPs: segments of that many
	// descriptors, at least 2. A buffer of one page is one data block. Offset
	// may then be anything below PageSize.
	SGL int
}

// Buffer is a data buffer in guest memory and the PRP entries that describe it
// (Base Specification, "Physical Region Page Entry and List"), or an SGL. A list
// that does not fit in its page goes on in another: the last entry of a page
// points there.
type Buffer struct {
	PRP1, PRP2 uint64
	SGL1       *nvme.SGLDescriptor // instead of PRPs, if not nil
	Pages      []uint64            // address of each piece; the first may begin within its page
	Lists      []uint64            // address of the first entry in each page of the list, or of each segment

	pieces [][]byte
	mem    *Memory
	owned  []uint64 // pages to free
}

// NewBuffer makes a buffer of n bytes.
func (m *Memory) NewBuffer(n int, shape Shape) (*Buffer, error) {
	if n <= 0 || shape.Offset < 0 || shape.Offset >= PageSize || shape.Offset%4 != 0 && shape.SGL == 0 || shape.SGL == 1 ||
		shape.ListOffset < 0 || shape.ListOffset >= PageSize || shape.ListOffset%8 != 0 || shape.ListOffset+shape.SGL*nvme.SGLDescriptorSize > PageSize {
		return nil, fmt.Errorf("no buffer of %d bytes with shape %+v", n, shape)
	}
	b := &Buffer{mem: m}
	if err := b.place(n, shape); err != nil {
		b.Free()
		return nil, err
	}
	link := b.link
	if shape.SGL > 0 {
		link = func(offset int) error { return b.linkSGL(shape.SGL, offset) }
	}
	if err := link(shape.ListOffset); err != nil {
		b.Free()
		return nil, err
	}
	return b, nil
}

// place allocates the pages of the data.
func (b *Buffer) place(n int, shape Shape) error {
	count := (shape.Offset + n + PageSize - 1) / PageSize
	pages, err := b.pages(count, shape)
	if err != nil {
		return err
	}
	left, offset := n, uint64(shape.Offset)
	for _, page := range pages {
		size := min(left, PageSize-int(offset))
		piece, err := b.mem.Bytes(page+offset, uint64(size))
		if err != nil {
			return err
		}
		b.Pages = append(b.Pages, page+offset)
		b.pieces = append(b.pieces, piece)
		left -= size
		offset = 0
	}
	return nil
}

// pages allocates the pages of the data in the order they are to be used.
func (b *Buffer) pages(count int, shape Shape) ([]uint64, error) {
	if !shape.Scatter && !shape.Split {
		at, _, err := b.mem.alloc(count*PageSize, shape.High)
		if err != nil {
			return nil, err
		}
		var pages []uint64
		for i := range count {
			pages = append(pages, at+uint64(i)*PageSize)
		}
		b.owned = append(b.owned, pages...)
		return pages, nil
	}
	var pages []uint64
	for i := range count {
		page, err := b.page(shape.High != (shape.Split && i%2 == 1))
		if err != nil {
			return nil, err
		}
		pages = append(pages, page)
	}
	if shape.Scatter {
		slices.Reverse(pages) // addresses fall: nothing follows anything
	}
	return pages, nil
}

func (b *Buffer) page(high bool) (uint64, error) {
	page, _, err := b.mem.alloc(PageSize, high)
	if err == nil {
		b.owned = append(b.owned, page)
	}
	return page, err
}

// link sets PRP1 and PRP2 and writes the list.
func (b *Buffer) link(listOffset int) error {
	b.PRP1 = b.Pages[0]
	switch len(b.Pages) {
	case 1:
		return nil
	case 2:
		b.PRP2 = b.Pages[1]
		return nil
	}
	rest := b.Pages[1:]
	var pointer []byte // entry of the page before that points here
	for offset := listOffset; len(rest) > 0; offset = 0 {
		page, err := b.page(false)
		if err != nil {
			return err
		}
		at := page + uint64(offset)
		b.Lists = append(b.Lists, at)
		if pointer == nil {
			b.PRP2 = at
		} else {
			le.PutUint64(pointer, at)
		}
		list, err := b.mem.Bytes(at, uint64(PageSize-offset))
		if err != nil {
			return err
		}
		room := len(list) / 8
		n := len(rest)
		if n > room {
			n = room - 1
			pointer = list[n*8:]
		}
		for i, page := range rest[:n] {
			le.PutUint64(list[i*8:], page)
		}
		rest = rest[n:]
	}
	return nil
}

// linkSGL sets SGL1 and writes the segments, of at most size descriptors each.
func (b *Buffer) linkSGL(size, listOffset int) error {
	descriptors := make([]nvme.SGLDescriptor, len(b.Pages))
	for i, at := range b.Pages {
		descriptors[i] = nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLAddress, at, uint32(len(b.pieces[i])))
	}
	// From the last segment to the first, each behind the pointer to the next.
	for len(descriptors) > 1 {
		kind := nvme.SGLSegment
		n := min(size, len(descriptors))
		if len(b.Lists) == 0 {
			kind = nvme.SGLLastSegment
		}
		at, list, err := b.segment(n, listOffset)
		if err != nil {
			return err
		}
		rest := len(descriptors) - n
		copy(list, nvme.SliceBytes(descriptors[rest:]))
		descriptors = append(descriptors[:rest], nvme.MakeSGL(kind, nvme.SGLAddress, at, uint32(len(list))))
	}
	b.SGL1 = &descriptors[0]
	return nil
}

// segment allocates a segment of n descriptors.
func (b *Buffer) segment(n, offset int) (at uint64, list []byte, err error) {
	page, err := b.page(false)
	if err != nil {
		return 0, nil, err
	}
	at = page + uint64(offset)
	if list, err = b.mem.Bytes(at, uint64(n*nvme.SGLDescriptorSize)); err != nil {
		return 0, nil, err
	}
	b.Lists = append([]uint64{at}, b.Lists...)
	return at, list, nil
}

// Set puts the buffer's PRP entries or SGL descriptor into a command.
func (b *Buffer) Set(e *nvme.SQE) {
	if b.SGL1 != nil {
		e.SetPSDT(nvme.PSDTSGL)
		e.SetSGL1(*b.SGL1)
		return
	}
	e.PRP1, e.PRP2 = b.PRP1, b.PRP2
}

// Write copies data into the buffer from its start, as much as fits.
func (b *Buffer) Write(data []byte) {
	for _, piece := range b.pieces {
		data = data[copy(piece, data):]
	}
}

// Read copies the buffer into data from its start, as much as fits.
func (b *Buffer) Read(data []byte) {
	for _, piece := range b.pieces {
		data = data[copy(data, piece):]
	}
}

// Free gives the buffer's pages back.
func (b *Buffer) Free() {
	for _, page := range b.owned {
		b.mem.Free(page, PageSize)
	}
	b.owned, b.pieces = nil, nil
}
