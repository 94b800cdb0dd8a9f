// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"github.com/leapio/leapio/lib/nvme"
)

// SGLs of sequences: an I/O command's data may have any shape with shapeSGL. The
// pages are those of the shape, each a data block; what is wrong is what an SGL
// can have wrong.

// shapeSGL says that an SGL describes the data.
const shapeSGL = 0x100

// ioShape is shape for I/O commands, some of which have SGLs.
func (p *player) ioShape() int {
	v := int(p.in.u8())
	switch {
	case v >= 0xe0:
		return shapeReadOnly + v%(shapes-shapeReadOnly) | shapeSGL
	case v >= 0xc0:
		return shapeReadOnly + v%(shapes-shapeReadOnly)
	case v >= 0x80:
		return v%shapeReadOnly | shapeSGL
	}
	return v % shapeReadOnly
}

var (
	sglType    = []nvme.Status{nvme.StatusInvalidSGLDescriptorType}
	sglSegment = []nvme.Status{nvme.StatusInvalidSGLSegmentDescriptor}
	sglCount   = []nvme.Status{nvme.StatusInvalidNumberOfSGLDescriptors}
	sglLength  = []nvme.Status{nvme.StatusInvalidDataSGLLength}
)

// describe makes the SGL of data whose first piece begins at offset of its page.
func (p *player) describe(d *data, shape int, pages []uint64, offset, n int) {
	var blocks []nvme.SGLDescriptor
	for i, page := range pages {
		at := 0
		if i == 0 {
			at = offset
		}
		size := min(n, pageSize-at)
		blocks = append(blocks, nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLAddress, page+uint64(at), uint32(size)))
		n -= size
	}
	both := func(st []nvme.Status) { d.toHost, d.fromHost = st, st }
	last := &blocks[len(blocks)-1]
	switch shape {
	case shapeOdd:
		*last = nvme.MakeSGL(nvme.SGLKeyedDataBlock, nvme.SGLAddress, last.Address, last.Length)
		both(sglType)
	case shapePRP2:
		last.Length--
		both(sglLength)
	case shapeEntryNowhere:
		last.Address = nowhere
		both(transferError)
	case shapeOffset:
		last.Length += 1 << 20 // more than is needed
	}
	size := 1 << 10
	switch shape {
	case shapeChain:
		size = 2
		blocks = append(blocks, nvme.SGLDescriptor{}, nvme.SGLDescriptor{}) // without data, not looked at
	case shapeChainOff:
		size = 3
		blocks = append([]nvme.SGLDescriptor{{}}, blocks...)
	}
	d.sgl = p.link(blocks, size)
	switch shape {
	case shapeListNowhere:
		d.sgl = nvme.MakeSGL(nvme.SGLLastSegment, nvme.SGLAddress, nowhere, 32)
		both(transferError)
	case shapeEntryOdd:
		at := p.list
		p.list += pageSize
		loop := nvme.MakeSGL(nvme.SGLSegment, nvme.SGLAddress, at, 16)
		switch {
		case offset != 0 || len(blocks)%3 == 0: // a circle
			both(sglCount)
		case len(blocks)%3 == 1:
			loop = nvme.MakeSGL(nvme.SGLLastSegment, nvme.SGLAddress, at, 16)
			both(sglSegment)
		default:
			loop.Length = 24
			both(sglSegment)
		}
		copy(p.bytes(p.t, at, 16), nvme.SliceBytes([]nvme.SGLDescriptor{loop}))
		d.sgl = loop
	}
}

// link writes descriptors as segments of at most size, and returns the first.
func (p *player) link(blocks []nvme.SGLDescriptor, size int) nvme.SGLDescriptor {
	kind := nvme.SGLLastSegment
	for len(blocks) > 1 {
		rest := len(blocks) - min(size, len(blocks))
		b := nvme.SliceBytes(blocks[rest:])
		at := p.list
		p.list += uint64(len(b))
		copy(p.bytes(p.t, at, len(b)), b)
		blocks = append(blocks[:rest:rest], nvme.MakeSGL(kind, nvme.SGLAddress, at, uint32(len(b))))
		kind = nvme.SGLSegment
	}
	p.list = (p.list + pageSize - 1) &^ (pageSize - 1)
	return blocks[0]
}
