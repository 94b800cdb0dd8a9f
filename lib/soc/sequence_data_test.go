// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"encoding/binary"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// data is where a command's data lies in guest memory, and what is wrong with
// how the command says so.
type data struct {
	prp1, prp2 uint64
	sgl        nvme.SGLDescriptor // instead, for shapeSGL
	pieces     [][]byte
	around     [][]byte // the rest of the pages: must stay as it is
	toHost     []nvme.Status
	fromHost   []nvme.Status
	region     bool // it lies in memory that can go
}

// canary is what guest memory holds where nothing has been written.
const canary = 0xa5

const pageSize = vfiousertest.PageSize

// Ways to lie in memory.
const (
	shapePages        = iota // whole pages, one after the other
	shapeOffset              // from the middle of a page
	shapeLastDword           // from the end of a page
	shapeScatter             // pages in falling order
	shapeChain               // the list begins with its page's last entry
	shapeChainOff            // the last but one, data with an offset
	shapeRegions             // across the border of two regions
	shapeRegion              // in a region that can go
	shapeReadOnly            // in memory that can only be read
	shapeNowhere             // no memory
	shapeOdd                 // PRP1 is no multiple of 4
	shapePRP2                // PRP2 has an offset that it must not have
	shapeListNowhere         // the list is not in memory
	shapeEntryOdd            // the last entry of the list has an offset
	shapeEntryNowhere        // the last entry of the list leads nowhere
	shapeFirmware            // memory without a file, read-only
	shapes
)

// shape chooses a shape, mostly one that is right.
func (p *player) shape() int {
	v := int(p.in.u8())
	if v >= 0xc0 {
		return shapeReadOnly + v%(shapes-shapeReadOnly)
	}
	return v % shapeReadOnly
}

// place finds room for n bytes and has e point there. What is not in range of a
// shape is in whole pages. This is the only place where data pointers are
// chosen.
func (p *player) place(e *nvme.SQE, n, shape int) data {
	p.reserve(n, shape)
	return p.placeReserved(e, n, shape)
}

// reserve makes sure that there is room for n bytes in a shape: what is
// outstanding keeps its memory.
func (p *player) reserve(n, shape int) {
	further := ofRegions(shape)
	if p.arena+uint64(n)+4*pageSize > arenaEnd || p.list+8*pageSize > listsEnd || further && p.furtherUsed {
		p.drain()
		p.list, p.arena, p.furtherUsed = listsAt, arenaAt, false
	}
	p.furtherUsed = p.furtherUsed || further
}

// ofRegions reports whether the data of a shape is in memory of which there is
// only so much.
func ofRegions(shape int) bool {
	shape &^= shapeSGL
	return shape == shapeRegions || shape == shapeRegion || shape == shapeReadOnly
}

// placeReserved is place where room has been reserved.
func (p *player) placeReserved(e *nvme.SQE, n, shape int) data {
	d := p.lay(n, shape)
	if shape&shapeSGL == 0 {
		e.PRP1, e.PRP2 = d.prp1, d.prp2
		return d
	}
	if e.PSDT() == nvme.PSDTPRP {
		e.SetPSDT(nvme.PSDTSGL)
	}
	e.SetSGL1(d.sgl)
	return d
}

var transferError, badOffset = []nvme.Status{nvme.StatusDataTransferError}, []nvme.Status{nvme.StatusInvalidPRPOffset}

func (p *player) lay(n, shape int) data {
	sgl := shape&shapeSGL != 0
	shape &^= shapeSGL
	offset, first := 0, 0
	switch shape {
	case shapeOffset:
		offset = 4 * int(p.in.u8())
		if sgl {
			offset++
		}
	case shapeLastDword, shapeChainOff:
		offset = pageSize - 4
	}
	switch shape {
	case shapeChain:
		first = 511
	case shapeChainOff:
		first = 510
	}
	count := (offset + n + pageSize - 1) / pageSize
	if n > playMDTS { // refused before anybody looks
		return data{prp1: arenaAt}
	}
	var d data
	pages := p.pages(&d, shape, count)
	left := n
	for i, page := range pages {
		at := 0
		if i == 0 {
			at = offset
		}
		size := min(left, pageSize-at)
		if page < nowhere && page != firmwareAt {
			b := p.bytes(p.t, page, pageSize)
			for i := range b {
				b[i] = canary
			}
			d.pieces = append(d.pieces, b[at:at+size])
			d.around = append(d.around, b[:at], b[at+size:])
		}
		left -= size
	}
	if sgl {
		p.describe(&d, shape, pages, offset, n)
		return d
	}
	d.prp1 = pages[0] + uint64(offset)
	switch {
	case count == 1:
		d.prp2 = 0x1234567 // means nothing
	case count == 2:
		d.prp2 = pages[1]
	default:
		d.prp2 = p.writeList(pages[1:], first)
	}
	p.spoil(&d, shape, pages, first)
	return d
}

// pages returns count pages for data.
func (p *player) pages(d *data, shape, count int) []uint64 {
	at, step := p.arena, uint64(pageSize)
	size := uint64(count) * pageSize
	switch {
	case shape == shapeScatter:
		at, step = at+size-pageSize, -step
	case shape == shapeRegion && size <= playRegions[0].Size:
		at, d.region = playRegions[0].Address, true
		if !p.mapped[0] {
			d.toHost, d.fromHost = transferError, transferError
		}
	case shape == shapeRegions && size <= playRegions[0].Size:
		at, d.region = playRegions[1].Address-size/2/pageSize*pageSize, true
		if !p.mapped[0] && at < playRegions[1].Address || !p.mapped[1] {
			d.toHost, d.fromHost = transferError, transferError
		}
	case shape == shapeReadOnly && size <= playRegions[2].Size:
		at, d.region, d.toHost = playRegions[2].Address, true, transferError
		if !p.mapped[2] {
			d.fromHost = transferError
		}
	case shape == shapeNowhere:
		at, d.toHost, d.fromHost = nowhere, transferError, transferError
	case shape == shapeFirmware:
		at, step, d.toHost, d.fromHost = firmwareAt, 0, transferError, transferError
	}
	if at >= arenaAt && at < arenaEnd {
		p.arena += size
	}
	pages := make([]uint64, count)
	for i := range pages {
		pages[i] = at + uint64(i)*step
	}
	return pages
}

// writeList writes a PRP list whose first entry is number first of its page.
func (p *player) writeList(pages []uint64, first int) uint64 {
	head := uint64(0)
	var pointer []byte
	for len(pages) > 0 {
		page := p.list
		p.list += pageSize
		at := page + uint64(first)*8
		if pointer == nil {
			head = at
		} else {
			binary.LittleEndian.PutUint64(pointer, at)
		}
		b := p.bytes(p.t, at, pageSize-first*8)
		n := len(pages)
		if n*8 > len(b) {
			n = len(b)/8 - 1
			pointer = b[n*8:]
		}
		for i, page := range pages[:n] {
			binary.LittleEndian.PutUint64(b[i*8:], page)
		}
		pages, first = pages[n:], 0
	}
	return head
}

// spoil makes wrong what a shape has wrong.
func (p *player) spoil(d *data, shape int, pages []uint64, first int) {
	both := func(st []nvme.Status) { d.toHost, d.fromHost = st, st }
	list := len(pages) > 2
	switch {
	case shape == shapeOdd:
		d.prp1 |= 2
		both(badOffset)
	case shape == shapePRP2 && len(pages) > 1:
		d.prp2 |= 4
		both(badOffset)
	case shape == shapeListNowhere && list:
		d.prp2 = nowhere
		both(transferError)
	case shape == shapeEntryOdd && list && len(pages) <= 512:
		b := p.bytes(p.t, d.prp2+uint64(len(pages)-2)*8, 8)
		binary.LittleEndian.PutUint64(b, pages[len(pages)-1]+8)
		both(badOffset)
	case shape == shapeEntryNowhere && list && len(pages) <= 512:
		b := p.bytes(p.t, d.prp2+uint64(len(pages)-2)*8, 8)
		binary.LittleEndian.PutUint64(b, nowhere)
		both(transferError)
	}
}

// put stores bytes for the device to read.
func (d *data) put(b []byte) {
	for _, piece := range d.pieces {
		b = b[copy(piece, b):]
	}
}

// get returns what the device has stored.
func (d *data) get() []byte { return bytes.Join(d.pieces, nil) }

// released returns the buffers of Reads that are outstanding, full of canaries:
// the device may not store to them any more.
func (p *player) released(of func(*expected) bool) (all []*data) {
	for _, x := range p.pending {
		if x.into == nil || !of(x) {
			continue
		}
		for _, b := range x.into.pieces {
			for i := range b {
				b[i] = canary
			}
		}
		all = append(all, x.into)
	}
	return all
}

// stillReleased checks what released returned.
func (p *player) stillReleased(all []*data, after string) {
	for _, dat := range all {
		if !dat.untouched(true) {
			p.failf("memory was stored to after %s", after)
		}
	}
}

// untouched reports whether all of the pages, or all around the data, is still
// canaries.
func (d *data) untouched(all bool) bool {
	clean := func(b []byte) bool { return len(bytes.TrimLeft(b, string([]byte{canary}))) == 0 }
	for _, b := range d.around {
		if !clean(b) {
			return false
		}
	}
	for _, b := range d.pieces {
		if all && !clean(b) {
			return false
		}
	}
	return true
}
