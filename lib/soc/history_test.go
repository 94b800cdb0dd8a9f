// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// access is a read or a write of one block, as a guest has seen it.
type access struct {
	write      bool
	value      uint64 // what it wrote or found; no two writes have the same, 0 was there first; torn
	begin, end uint64 // before it was submitted, after its completion was seen; no two are alike
}

// torn is what a read has found that has found several values: AWUN and AWUPF
// announce a block, so that can never be.
const torn = ^uint64(0)

// checkHistory finds out whether a block can have been what a guest has seen: a
// write takes effect once or more often while it is outstanding, and never before
// or after; a read finds what is there at some time while it is outstanding.
//
// It goes through the beginnings and ends in their order, with all that can be by
// then: what is in the block, and which accesses under way have had their effect.
func checkHistory(history []access) error {
	type moment struct {
		at  uint64
		end bool
		i   int
	}
	var moments []moment
	for i, a := range history {
		moments = append(moments, moment{a.begin, false, i}, moment{a.end, true, i})
	}
	slices.SortFunc(moments, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	type world struct {
		value uint64
		done  uint64 // bits of accesses in pending
	}
	var pending [64]int // indices into history
	var used uint64
	slot := make(map[int]int)
	worlds := map[world]struct{}{{}: {}}
	for _, m := range moments {
		if !m.end {
			i := bits.TrailingZeros64(^used)
			if i == len(pending) {
				return fmt.Errorf("more than %d accesses at a time", len(pending))
			}
			used |= 1 << i
			pending[i], slot[m.i] = m.i, i
			continue
		}
		// All that can have happened since.
		var look []world
		add := func(w world) {
			for rest := used; rest != 0; rest &= rest - 1 {
				i := bits.TrailingZeros64(rest)
				if a := &history[pending[i]]; !a.write && a.value == w.value {
					w.done |= 1 << i
				}
			}
			if _, ok := worlds[w]; !ok {
				worlds[w] = struct{}{}
				look = append(look, w)
			}
		}
		before := worlds
		worlds = make(map[world]struct{})
		for w := range before {
			add(w)
		}
		for len(look) > 0 {
			w := look[len(look)-1]
			look = look[:len(look)-1]
			for rest := used; rest != 0; rest &= rest - 1 {
				i := bits.TrailingZeros64(rest)
				if a := &history[pending[i]]; a.write {
					add(world{a.value, w.done | 1<<i})
				}
			}
		}
		// The access that ends has had its effect.
		bit := uint64(1) << slot[m.i]
		after := make(map[world]struct{})
		for w := range worlds {
			if w.done&bit != 0 {
				w.done &^= bit
				after[w] = struct{}{}
			}
		}
		if len(after) == 0 {
			possible := make(map[uint64]bool)
			for w := range worlds {
				possible[w.value] = true
			}
			return fmt.Errorf("%+v cannot be: the block has one of %v", history[m.i], possible)
		}
		worlds, used = after, used&^bit
	}
	return nil
}

// TestCheckHistory: what is found, and what is not found fault with.
func TestCheckHistory(t *testing.T) {
	w := func(value, begin, end uint64) access { return access{true, value, begin, end} }
	r := func(value, begin, end uint64) access { return access{false, value, begin, end} }
	for _, tt := range []struct {
		name    string
		history []access
		ok      bool
	}{
		{"one after the other", []access{r(0, 1, 2), w(1, 3, 4), r(1, 5, 6), w(2, 7, 8), r(2, 9, 10)}, true},
		{"read under a write", []access{w(1, 1, 6), r(0, 2, 3), r(1, 4, 5)}, true},
		{"in either order", []access{w(1, 1, 3), w(2, 2, 4), r(1, 5, 6), r(1, 7, 8)}, true},
		{"in the other order", []access{w(1, 1, 3), w(2, 2, 4), r(2, 5, 6), r(2, 7, 8)}, true},
		{"twice while outstanding", []access{w(1, 1, 10), r(1, 2, 3), w(2, 4, 5), r(2, 6, 7), r(1, 8, 9)}, true},
		{"not to be told", []access{w(1, 1, 2), w(2, 3, 8), r(2, 4, 6), r(1, 5, 7)}, true},

		{"torn", []access{w(1, 1, 2), r(torn, 3, 4), w(2, 5, 6)}, false},
		{"torn under a write", []access{w(1, 1, 4), r(torn, 2, 5), r(1, 6, 7)}, false},
		{"acknowledged and lost", []access{w(1, 1, 2), r(0, 3, 4)}, false},
		{"lost later", []access{w(1, 1, 2), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)}, false},
		{"takes effect after its end", []access{w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)}, false},
		{"before it is submitted", []access{r(1, 1, 2), w(1, 3, 4)}, false},
		{"one, then the other", []access{w(1, 1, 3), w(2, 2, 4), r(1, 5, 6), r(2, 7, 8)}, false},
		{"gone again under a write", []access{w(1, 1, 2), w(2, 3, 10), r(2, 4, 5), r(1, 6, 7)}, false},
		{"two reads that exclude one another", []access{w(1, 1, 3), w(2, 2, 4), r(1, 5, 7), r(2, 6, 8)}, false},
		{"from nowhere", []access{w(1, 1, 2), r(7, 3, 4)}, false},
	} {
		if err := checkHistory(tt.history); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// historian has a guest access few blocks from many sides, and writes down what
// it sees.
type historian struct {
	clock, value atomic.Uint64
	mu           sync.Mutex
	blocks       [16][]access
}

// work reads and writes at random until stop.
func (h *historian) work(q *vfiousertest.Pair, rng *rand.Rand, stop <-chan struct{}) error {
	b := make([]byte, 512)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := h.access(q, rng.IntN(len(h.blocks)), rng.IntN(2) == 0, b); err != nil {
			return err
		}
	}
}

// access reads or writes a block with the buffer b. All its words are the value.
func (h *historian) access(q *vfiousertest.Pair, block int, write bool, b []byte) (err error) {
	a := access{write: write}
	if write {
		a.value = h.value.Add(1)
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], a.value)
		}
		a.begin = h.clock.Add(1)
		err = q.Write(1, uint64(block), b, len(b))
		a.end = h.clock.Add(1)
	} else {
		a.begin = h.clock.Add(1)
		err = q.Read(1, uint64(block), b, len(b))
		a.end = h.clock.Add(1)
		a.value = binary.LittleEndian.Uint64(b)
		if !bytes.Equal(b[8:], b[:len(b)-8]) {
			a.value = torn
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blocks[block] = append(h.blocks[block], a)
	return err
}

// TestHistory: what guests see of blocks that are read and written from many
// sides, while the runtime is killed and replaced, can be explained: no write
// that was acknowledged is lost, none takes effect after that, and no block is found
// in part.
func TestHistory(t *testing.T) {
	ends := 30
	if testing.Short() {
		ends = 4
	}
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2) // so that blocks are accessed by both at once
			r.stopSoc()
			r.child = true
			r.startSoc()
			r.volume("d1", kind, "size", "32M")
			n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
			var h historian
			var workers sync.WaitGroup
			stop := make(chan struct{})
			var pairs []*vfiousertest.Pair
			for id := range 3 {
				q, err := n.CreatePair(uint16(id+1), 32, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				pairs = append(pairs, q)
				for worker := range 12 {
					workers.Go(func() {
						if err := h.work(q, rand.New(rand.NewPCG(uint64(id), uint64(worker))), stop); err != nil {
							t.Error(err)
						}
					})
				}
			}
			for i := range ends {
				time.Sleep(time.Duration(i*7%31) * time.Millisecond)
				if i%3 == 2 {
					r.upgradeSoc()
				} else {
					r.killSoc()
					r.startSoc()
				}
			}
			close(stop)
			workers.Wait()
			total, buf := 0, make([]byte, 512)
			for block := range h.blocks {
				for range 2 { // what is there in the end stays
					if err := h.access(pairs[0], block, false, buf); err != nil {
						t.Error(err)
					}
				}
				if err := checkHistory(h.blocks[block]); err != nil {
					t.Errorf("block %d: %v", block, err)
				}
				total += len(h.blocks[block])
			}
			t.Logf("%d accesses of %d blocks, %d ends of the runtime", total, len(h.blocks), ends)
		})
	}
}
