// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/units"
)

// Steps of sequences that change what a namespace is.

// reshape gives a disk another size or block: what is beyond the end is lost,
// what is new is zeroes, and of another block all is zeroes.
func (d *disk) reshape(size, block int) {
	now := make([]uint64, size/block)
	if block == d.block {
		copy(now, d.now)
	}
	d.size, d.block, d.blocks, d.now = size, block, uint64(len(now)), now
	for at := range d.maybe {
		if at >= d.blocks {
			delete(d.maybe, at)
		}
	}
	if d.hi = min(d.hi, d.blocks); d.lo >= d.hi {
		d.lo, d.hi = d.blocks, 0
	}
}

// otherFormat has a Format give a namespace its other LBA format, and returns
// what the disk is then.
func (p *player) otherFormat(nsid uint32, f *nvme.FormatNVM) (then func()) {
	d := p.shown[nsid].d
	f.LBAF ^= 1
	block := map[uint8]int{0: 512, 1: 4096}[f.LBAF]
	p.model.altered(nsid)
	return func() {
		d.wiped()
		d.reshape(d.size, block)
	}
}

// protect has a host set a namespace's write protection.
func (p *player) protect() {
	p.drain()
	e, x := nvme.SQE{NSID: p.nsid()}, new(expected)
	state := pick[uint32](&p.in, nvme.WPSWriteProtect, nvme.WPSNone, nvme.WPSWriteProtect, nvme.WPSNone, 2, 3, 7)
	if e.NSID == nvme.NSIDBroadcast {
		return // all of them: too much for a step
	}
	s, on := p.shown[e.NSID], state == nvme.WPSWriteProtect
	x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
	if state > nvme.WPSWriteProtect {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	if s.d != nil && s.readOnly && !s.byHost && !on {
		x.errs = append(x.errs, nvme.StatusFeatureNotChangeable)
	}
	nvme.SetFeatures{FID: nvme.FeatNamespaceWriteProtect, Value: state}.Put(&e)
	if len(x.errs) == 0 && s.readOnly != on {
		p.model.altered(e.NSID)
		s.readOnly, s.byHost = on, on
		p.shown[e.NSID] = s
	}
	p.admin(e, x)
	if s.d == nil {
		return
	}
	get := nvme.SQE{NSID: e.NSID}
	nvme.GetFeatures{FID: nvme.FeatNamespaceWriteProtect}.Put(&get)
	want := uint32(nvme.WPSNone)
	if s.readOnly {
		want = nvme.WPSWriteProtect
	}
	if c, _ := p.admin(get, new(expected)); c.DW0 != want {
		p.failf("write protection of namespace %d is %d, want %d", e.NSID, c.DW0, want)
	}
}

// resize has a disk lose the second half, or get it back.
func (p *player) resize() {
	d := p.disks[int(p.in.u8())%len(p.disks)]
	p.drain()
	size := d.first.size
	if d.size == size {
		size /= 2
	}
	p.resizeTo(d, size)
}

func (p *player) resizeTo(d *disk, size int) {
	p.logf("%s has %d bytes", d.name, size)
	call[api.Volume](p.r, p.r.client(), "PUT", "/v1/volumes/"+d.name, api.VolumeResize{Size: units.Size(size), Shrink: true})
	d.reshape(size, d.block)
	for nsid, s := range p.shown {
		if s.d == d {
			p.model.altered(nsid)
		}
	}
	p.settle()
}

// asFirst gives all disks the shape that a sequence begins with.
func (p *player) asFirst() {
	for _, d := range p.disks {
		if d.size != d.first.size {
			p.resizeTo(d, d.first.size)
		}
		if d.block == d.first.block {
			continue
		}
		nsid := p.writable(d)
		e, f := nvme.SQE{NSID: nsid}, nvme.FormatNVM{LBAF: p.formatOf(nsid)}
		then := p.otherFormat(nsid, &f)
		f.Put(&e)
		p.admin(e, new(expected))
		then()
	}
}

// askShapes has the disks be what the volumes are, when a sequence has failed.
func (s *stage) askShapes() {
	for _, d := range s.disks {
		v := call[api.Volume](s.r, s.r.client(), "GET", "/v1/volumes/"+d.name, nil)
		d.reshape(int(v.Size), int(v.Block))
	}
}

// altered notes that a namespace looks different now: what the host has set for
// it stays.
func (m *model) altered(nsid uint32) {
	m.changed[nsid] = true
	m.event(nvme.EventNamespaceAttribute)
}
