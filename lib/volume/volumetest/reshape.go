// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volumetest

import (
	"math"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// A volume that can be reshaped is followed through every step of a change, and
// opened again at each, as after a crash, with the Spec of before and with that
// of after.

// reshaper returns the volume, if its shape can change.
func (r *rig) reshaper() volume.Reshaper {
	v, ok := r.volume.(volume.Reshaper)
	if !ok {
		r.Skip("the shape of this kind cannot change")
	}
	return v
}

// reshape gives the volume another shape.
func (r *rig) reshape(s volume.Shape) {
	r.Helper()
	if err := r.reshaper().Reshape(s); err != nil {
		r.Fatal(err)
	}
	r.shaped(s)
}

// must ends the test after an error.
func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// grow: the part that comes reads zero, the rest stays, and requests in flight
// do not notice.
func (r *rig) grow() {
	old := r.volume.Info().Shape()
	bigger := volume.Shape{Size: 2 * volumeSize, Block: old.Block}
	whole := pattern(80, volumeSize)
	r.write(0, whole)

	// What cannot be leaves everything as it was.
	if err := r.reshaper().Extend(math.MaxUint64 &^ 4095); err == nil && !r.s.MovesNoData {
		r.Error("the volume takes more than there can be")
	}
	r.shaped(old)
	r.check(0, whole)

	r.must(r.reshaper().Extend(bigger.Size))
	r.shaped(old)
	r.reconnect(old) // a crash before the new size was kept
	r.check(0, whole)
	r.shaped(old)

	r.must(r.reshaper().Extend(bigger.Size))
	r.reconnect(bigger) // and one after
	r.shaped(bigger)
	zeroes := make([]byte, volumeSize)
	r.check(0, whole)
	r.check(volumeSize, zeroes)

	// Again, under requests of another poller, and further each time.
	other := Connect(r, r.volume, r.s.Poller)
	defer other.Close()
	load := newLoad(other, NewMemory(r, 1<<20), volume.Write, 4096, 8)
	ended := make(chan struct{})
	go func() { defer close(ended); load.run(1000) }()
	for size := bigger.Size + r.block; size < bigger.Size+8*r.block; size += r.block {
		r.must(r.reshaper().Extend(size))
		r.reshape(volume.Shape{Size: size, Block: old.Block})
		last := pattern(size, r.block)
		r.check(size-r.block, make([]byte, r.block))
		r.write(size-r.block, last)
		r.check(size-r.block, last)
	}
	<-ended
	if load.status != nvme.StatusSuccess {
		r.Errorf("requests meanwhile: %v", load.status)
	}
	r.check(volumeSize, zeroes)
}

// shrink: what stays is as it was; what went and comes again reads zero.
func (r *rig) shrink() {
	old := r.volume.Info().Shape()
	smaller := volume.Shape{Size: volumeSize/2 + r.block, Block: old.Block}
	whole := pattern(81, volumeSize)
	r.write(0, whole)

	r.reshape(smaller)
	r.span(volume.Flush, 0, 0, 0)
	r.reconnect(old) // a crash before the new size was kept
	r.shaped(old)
	r.check(0, whole)

	r.reshape(smaller)
	r.reconnect(smaller) // and one after
	r.shaped(smaller)
	r.check(0, whole[:smaller.Size])
	r.write(smaller.Size-r.block, whole[:r.block])
	copy(whole[smaller.Size-r.block:], whole[:r.block])
	for range 2 {
		r.must(r.reshaper().Trim())
		r.shaped(smaller)
		r.check(0, whole[:smaller.Size])
	}

	r.must(r.reshaper().Extend(old.Size))
	r.reshape(old)
	clear(whole[smaller.Size:])
	r.check(0, whole)
	r.reconnect(old)
	r.check(0, whole)
}

// blockChanges: the volume goes over to the other block and back, keeps its
// data, and takes requests of the block it has.
func (r *rig) blockChanges() {
	whole := pattern(82, volumeSize)
	r.write(0, whole)
	for range 2 {
		now := r.volume.Info().Shape()
		now.Block = 512 + 4096 - now.Block
		r.reshape(now)
		r.block = uint64(now.Block)
		r.check(0, whole)
		for _, off := range []uint64{r.block, volumeSize - r.block} {
			data := pattern(off, r.block)
			copy(r.mem.Bytes(4, r.block), data) // not aligned
			r.want(nvme.StatusSuccess, volume.Write, 0, off, r.mem.Segments(4, r.block))
			copy(whole[off:], data)
		}
		r.span(volume.WriteZeroes, 0, 8*r.block, r.block)
		clear(whole[8*r.block:][:r.block])
		r.check(0, whole)
		r.reconnect(now)
		r.shaped(now)
		r.check(0, whole)
	}
}
