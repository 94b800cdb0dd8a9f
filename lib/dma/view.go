// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import "github.com/leapio/leapio/lib/nvme"

// View is one poller's look at a Space. All methods are for that poller only.
type View struct {
	space   *Space
	post    func(func())
	changed func()
	cur     *snapshot
	old     []*snapshot // replaced snapshots not yet drained, oldest first
	last    int         // index of the region that served the last lookup
	fault   uint64      // address of the last ErrFault

	ranges      [maxRanges]Range
	entries     [PageSize / 8]uint64         // PRP list entries, read from the guest once
	descriptors [sglChunk]nvme.SGLDescriptor // of an SGL segment, likewise
	sink        []byte                       // what bit buckets take; nil until there is one
}

// snapshot is a table and the number of commands in flight on it.
type snapshot struct {
	table    *Table
	inflight int
	drained  func() // set when the snapshot is replaced
}

// Lease keeps mapped the memory that a command's segments point to.
type Lease struct {
	v *View
	s *snapshot
}

// Acquire takes a lease on the current snapshot, before a command's data is
// translated. It is released exactly once, when nothing uses the segments.
func (v *View) Acquire() Lease {
	v.cur.inflight++
	return Lease{v, v.cur}
}

// Release gives the lease back.
func (l Lease) Release() {
	l.s.inflight--
	if l.s != l.v.cur {
		l.v.settle()
	}
}

// update switches to t; drained is called when no command uses an older table.
func (v *View) update(t *Table, drained func()) {
	v.cur.drained = drained
	v.old = append(v.old, v.cur)
	v.cur = &snapshot{table: t}
	v.last = 0
	defer v.settle() // also where changed accesses memory that faults
	if v.changed != nil {
		v.changed()
	}
}

// settle reports replaced snapshots as drained, oldest first: memory may be in
// use through any table it was part of.
func (v *View) settle() {
	for len(v.old) > 0 && v.old[0].inflight == 0 {
		v.old[0].drained()
		v.old = v.old[1:]
	}
}

// Close ends the view. No lease may be outstanding.
func (v *View) Close() {
	v.space.viewsMu.Lock()
	for i, x := range v.space.views {
		if x == v {
			v.space.views = append(v.space.views[:i:i], v.space.views[i+1:]...)
			break
		}
	}
	v.space.viewsMu.Unlock()
	// A change published before the view left may still wait in the poller's
	// inbox: update serves it as usual.
	v.changed = nil
	v.dropSink()
}

// Gen returns the generation of the table the view uses.
func (v *View) Gen() uint64 { return v.cur.table.Gen }

// Fault returns the address that the last ErrFault was about.
func (v *View) Fault() uint64 { return v.fault }

// find returns the region that holds [addr, addr+n) with access prot, or nil
// and notes the fault.
func (v *View) find(addr, n uint64, prot Prot) *Region {
	regions := v.cur.table.regions
	if v.last < len(regions) {
		if r := &regions[v.last]; r.contains(addr, n) && r.Prot&prot == prot {
			return r
		}
	}
	if i := v.cur.table.find(addr); i >= 0 {
		v.last = i
		if r := &regions[i]; r.contains(addr, n) && r.Prot&prot == prot {
			return r
		}
	}
	v.fault = addr
	return nil
}

// Shared reports whether the region that holds addr is mapped into this
// process; mapped is false where there is no such region.
func (v *View) Shared(addr uint64) (shared, mapped bool) {
	r := v.find(addr, 1, 0)
	return r != nil && r.Shared(), r != nil
}

// Read fills p from guest memory at addr, through the mapping or by message.
// The range may cross regions. Only ErrFault and the relay's errors are
// returned.
func (v *View) Read(p []byte, addr uint64) error { return v.access(p, addr, ProtRead) }

// Write stores p to guest memory at addr, as Read reads it.
func (v *View) Write(p []byte, addr uint64) error { return v.access(p, addr, ProtWrite) }

func (v *View) access(p []byte, addr uint64, prot Prot) error {
	for len(p) > 0 {
		r := v.find(addr, 1, prot)
		if r == nil {
			return ErrFault
		}
		n := min(uint64(len(p)), r.Size-(addr-r.Addr))
		var err error
		switch {
		case r.Shared() && prot == ProtRead:
			r.load(p[:n], addr)
		case r.Shared():
			r.store(p[:n], addr)
		case v.space.relay == nil:
			v.fault, err = addr, ErrFault
		case prot == ProtRead:
			err = v.space.relay.ReadMemory(p[:n], addr)
		default:
			err = v.space.relay.WriteMemory(p[:n], addr)
		}
		if err != nil {
			return err
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// Translate appends the segments of this process's memory that hold the guest
// ranges rs with access prot. Ranges that are not shared are faults; what is to
// be discarded has memory of the view's own. It returns ErrTooLong rather than
// grow segs beyond its capacity.
func (v *View) Translate(segs []Segment, rs []Range, prot Prot) ([]Segment, error) {
	for i := range rs {
		addr, left := rs[i].Addr, rs[i].Len
		if addr == Nowhere {
			if len(segs) == cap(segs) {
				return segs, ErrTooLong
			}
			sink, err := v.discard()
			if err != nil {
				return segs, err
			}
			segs = append(segs, SegmentOf(sink[:left]))
			continue
		}
		for left > 0 {
			r := v.find(addr, 1, prot)
			if r == nil || !r.Shared() {
				v.fault = addr
				return segs, ErrFault
			}
			if len(segs) == cap(segs) {
				return segs, ErrTooLong
			}
			n := min(left, r.Size-(addr-r.Addr))
			segs = append(segs, Segment{r.at(addr), n})
			addr, left = addr+n, left-n
		}
	}
	return segs, nil
}
