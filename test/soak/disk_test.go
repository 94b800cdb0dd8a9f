// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// disk is what a volume must hold. Each block holds a stamp: of what volume and
// block it is, and of which write. What a block may hold is known exactly, but
// for writes of which nobody was told the end.
type disk struct {
	name  string
	id    uint64
	block int  // bytes
	keeps bool // false: nothing is kept, so nothing is checked
	torn  bool // a write that was cut short may leave half a block

	mu      sync.Mutex
	limit   uint64              // blocks that may be accessed
	busy    []bool              // an access is under way, or has had no end
	version []uint32            // what is there: the number of a write, 0 for zeroes
	maybe   map[uint64][]uint32 // instead, where it may be one of several
	next    uint32              // number of the next write
	away    uint64              // rises when the namespace begins to be removed, and when it has been added again
}

// maxDisk is the most blocks a disk may have.
const maxDisk = 1 << 17

func newDisk(name string, id uint64, block int, size uint64) *disk {
	return &disk{
		name: name, id: id, block: block, keeps: true, limit: size / uint64(block),
		busy: make([]bool, maxDisk), version: make([]uint32, maxDisk), maybe: make(map[uint64][]uint32),
	}
}

// word is the i-th eight bytes of a block with a stamp.
func (d *disk) word(lba uint64, version uint32, i int) uint64 {
	switch {
	case version == 0:
		return 0
	case i == 0:
		return d.id<<56 | lba<<32 | uint64(version)
	}
	x := d.id<<56 ^ lba<<24 ^ uint64(version)<<8 ^ uint64(i)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// stamp fills blocks.
func (d *disk) stamp(b []byte, lba uint64, version uint32) {
	for ; len(b) > 0; b = b[d.block:] {
		for i := range d.block / 8 {
			binary.LittleEndian.PutUint64(b[i*8:], d.word(lba, version, i))
		}
		lba++
	}
}

// kind is what an access does.
type kind int

const (
	read kind = iota
	write
	writeZeroes
	deallocate
	compare
	flush
	numKinds
)

func (k kind) String() string {
	return []string{"read", "write", "write zeroes", "deallocate", "compare", "flush"}[k]
}

// changes reports whether the access leaves something else in blocks.
func (k kind) changes() bool { return k == write || k == writeZeroes || k == deallocate }

// access is a command to a disk. While it is under way nobody else accesses its
// blocks.
type access struct {
	d       *disk
	kind    kind
	lba     uint64
	blocks  int
	version uint32 // what is written
	fua     bool
	data    []byte // of reads, writes and compares
	begun   time.Time
	away    uint64 // of the disk, then
}

func (a *access) String() string {
	return fmt.Sprintf("%v of %s, %d blocks from %d (stamp %d)", a.kind, a.d.name, a.blocks, a.lba, a.version)
}

// choose begins an access, nil if there is none to be had at once.
func (d *disk) choose(rng *rand.Rand, maxBytes int) *access {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away%2 == 1 {
		return nil
	}
	a := &access{d: d, begun: time.Now(), away: d.away}
	switch n := rng.IntN(100); {
	case n < 45:
		a.kind = read
	case n < 86:
		a.kind, a.fua = write, rng.IntN(8) == 0
	case n < 90:
		a.kind = writeZeroes
	case n < 94:
		a.kind = deallocate
	case n < 97 && d.keeps:
		a.kind = compare
	default:
		a.kind = flush
		return a
	}
	most := max(1, maxBytes/d.block)
	a.blocks = 1 + rng.IntN(min(most, max(1, 4096/d.block)))
	if rng.IntN(16) == 0 {
		a.blocks = 1 + rng.IntN(most)
	}
	if uint64(a.blocks) > d.limit {
		return nil
	}
	const hot = 1024 // blocks, so that many are met again
	last := d.limit - uint64(a.blocks)
	if rng.IntN(4) > 0 {
		last = min(last, hot)
	}
	a.lba = rng.Uint64N(last + 1)
	for i := range uint64(a.blocks) {
		_, several := d.maybe[a.lba+i]
		if d.busy[a.lba+i] || several && a.kind == compare {
			return nil
		}
	}
	for i := range uint64(a.blocks) {
		d.busy[a.lba+i] = true
	}
	if a.kind != writeZeroes && a.kind != deallocate {
		a.data = make([]byte, a.blocks*d.block)
	}
	switch a.kind {
	case write:
		d.next++
		a.version = d.next
		d.stamp(a.data, a.lba, a.version)
	case compare:
		for i := range a.blocks {
			d.stamp(a.data[i*d.block:][:d.block], a.lba+uint64(i), d.version[a.lba+uint64(i)])
		}
	}
	return a
}

// done is the end of an access that has succeeded; of a read it checks the data.
func (a *access) done() error {
	d := a.d
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for i := range a.blocks {
		lba := a.lba + uint64(i)
		switch a.kind {
		case read:
			if e := d.check(a.data[i*d.block:][:d.block], lba); e != nil && err == nil {
				err = fmt.Errorf("%v: %w", a, e)
			}
		case write, writeZeroes:
			d.version[lba] = a.version
			delete(d.maybe, lba)
		case deallocate:
			d.add(lba, 0) // an advice; DLFEAT reports nothing
		}
		d.busy[lba] = false
	}
	return err
}

// lost is the end of an access that has had none, or one with an error: a write
// may have had an effect, and will have none any more.
func (a *access) lost() {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	for i := range uint64(a.blocks) {
		if a.kind.changes() {
			a.d.add(a.lba+i, a.version)
		}
		a.d.busy[a.lba+i] = false
	}
}

// add notes that a block may hold a version, too.
func (d *disk) add(lba uint64, version uint32) {
	all, several := d.maybe[lba]
	if !several {
		all = []uint32{d.version[lba]}
	}
	if slices.Contains(all, version) {
		return
	}
	d.maybe[lba] = append(all, version)
}

// check looks at what was read from a block, and takes note of which it was.
func (d *disk) check(b []byte, lba uint64) error {
	if !d.keeps {
		return nil
	}
	may := d.maybe[lba]
	if may == nil {
		may = []uint32{d.version[lba]}
	}
	for _, v := range may {
		if d.holds(b, lba, v) {
			d.version[lba] = v
			delete(d.maybe, lba)
			return nil
		}
	}
	if d.torn && len(may) > 1 {
		return d.mixed(b, lba, may)
	}
	return fmt.Errorf("block %d has %s, want stamp %d", lba, d.describe(b), may)
}

func (d *disk) holds(b []byte, lba uint64, version uint32) bool {
	for i := range d.block / 8 {
		if binary.LittleEndian.Uint64(b[i*8:]) != d.word(lba, version, i) {
			return false
		}
	}
	return true
}

// mixed reports whether a block is made of what it may hold.
func (d *disk) mixed(b []byte, lba uint64, may []uint32) error {
	for i := range d.block / 8 {
		got := binary.LittleEndian.Uint64(b[i*8:])
		if !slices.ContainsFunc(may, func(v uint32) bool { return got == d.word(lba, v, i) }) {
			return fmt.Errorf("block %d has %s, and word %d of none of the stamps %d", lba, d.describe(b), i, may)
		}
	}
	return nil
}

// describe says what is in a block.
func (d *disk) describe(b []byte) string {
	first := binary.LittleEndian.Uint64(b)
	lba, version := first>>32&0xffffff, uint32(first)
	whole := "whole"
	if !d.holds(b, lba, version) {
		whole = "not whole"
	}
	if first == 0 {
		return fmt.Sprintf("zeroes (%s)", whole)
	}
	return fmt.Sprintf("stamp %d of block %d of disk %d (%s)", version, lba, first>>56, whole)
}

// retire lets no access begin any more at and beyond a block, and waits until
// none is under way.
func (d *disk) retire(s *soak, from uint64) error {
	d.mu.Lock()
	d.limit = min(d.limit, from)
	d.mu.Unlock()
	return s.await(fmt.Sprintf("accesses to %s beyond block %d end", d.name, from), func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return !slices.Contains(d.busy[from:], true)
	})
}

// resized notes that the disk has another size, and that what is beyond may have
// gone, or has.
func (d *disk) resized(blocks uint64, certain bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for lba := blocks; lba < maxDisk; lba++ {
		if _, several := d.maybe[lba]; !several && d.version[lba] == 0 {
			continue
		}
		if certain {
			delete(d.maybe, lba)
			d.version[lba] = 0
		} else {
			d.add(lba, 0)
		}
	}
	d.limit = blocks
}

// turn has the disk be away, or no more: accesses of the time may fail, since
// there is no namespace.
func (d *disk) turn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away++
}

// turns tells how often it was.
func (d *disk) turns() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.away
}

// excuses reports whether a command may have ended with this status because its
// namespace was away.
func (a *access) excuses(st nvme.Status) bool {
	if a.d.turns() == a.away {
		return false
	}
	switch st.Code() {
	case nvme.StatusInvalidNamespaceOrFormat, nvme.StatusInvalidField, nvme.StatusNamespaceNotReady:
		return true // there is none, it is inactive, or it is just coming
	}
	return false
}
