// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// MaxRegions bounds the region table of one space. QEMU sends some ten.
const MaxRegions = 4096

// Space is the address space of one controller. Map and Unmap are called by
// the goroutine that follows the client's table; everything else may be called
// from anywhere.
type Space struct {
	table atomic.Pointer[Table]
	relay Memory // reaches regions that are not shared; may be nil

	viewsMu sync.Mutex // held while views are told of a change
	views   []*View

	mu sync.Mutex
	// Regions given up by the table that is the key, and still mapped because
	// some view has not drained the tables before it.
	dying map[*Table][]Region
}

// NewSpace returns an empty space. relay reaches memory that the client does
// not share; nil if there is no way to reach it.
func NewSpace(relay Memory) *Space {
	s := &Space{relay: relay, dying: make(map[*Table][]Region)}
	s.table.Store(&Table{})
	return s
}

// Table returns the current snapshot.
func (s *Space) Table() *Table { return s.table.Load() }

// Map adds [addr, addr+size) with generation gen. fd holds the memory at
// offset and is only used during the call; a negative fd means that the client
// does not share the memory. The views follow at their next turn.
func (s *Space) Map(gen, addr, size uint64, prot Prot, fd int, offset uint64) error {
	t := s.table.Load()
	if err := CheckRange(addr, size); err != nil {
		return err
	}
	if t.overlaps(addr, size) {
		return &RangeError{addr, size, "overlaps a mapped region"}
	}
	if len(t.regions) >= MaxRegions {
		return &RangeError{addr, size, "too many regions"}
	}
	r := Region{Addr: addr, Size: size, Prot: prot}
	if fd >= 0 {
		var err error
		if r.base, err = mapShared(fd, offset, size, prot); err != nil {
			return fmt.Errorf("mapping guest memory %#x+%#x: %w", addr, size, err)
		}
	}
	s.publish(t.with(gen, r), nil)
	return nil
}

// Unmap removes the regions inside [addr, addr+size) with generation gen. New
// translations fail at once in every view that has caught up; done is closed
// when no command in flight uses the memory any more and it has been unmapped
// from this process. Orphaned I/O only delays done: the pages stay valid.
func (s *Space) Unmap(gen, addr, size uint64) (done <-chan struct{}, err error) {
	t, gone, err := s.table.Load().without(gen, addr, size)
	if err != nil {
		return nil, err
	}
	return s.publish(t, gone), nil
}

// Reset removes every region, as when the client has disconnected.
func (s *Space) Reset(gen uint64) (done <-chan struct{}) {
	return s.publish(&Table{Gen: gen}, s.table.Load().regions)
}

// Skip brings the table to generation gen without a change: what that
// generation announced is not memory for data, or could not be mapped.
func (s *Space) Skip(gen uint64) {
	s.publish(&Table{Gen: gen, regions: s.table.Load().regions}, nil)
}

// Unshare gives up the mappings of all regions: their memory turned out not to
// be the guest's, and is reached by messages from now on. done is as Unmap's.
func (s *Space) Unshare() (done <-chan struct{}) {
	t := s.table.Load()
	regions := slices.Clone(t.regions)
	for i := range regions {
		regions[i].base = nil
	}
	return s.publish(&Table{Gen: t.Gen, regions: regions}, t.regions)
}

// Find returns the region that holds addr.
func (s *Space) Find(addr uint64) (Region, bool) {
	t := s.table.Load()
	if i := t.find(addr); i >= 0 {
		return t.regions[i], true
	}
	return Region{}, false
}

// publish makes t the current table and gives up the regions in gone when
// every view has drained the tables before it.
func (s *Space) publish(t *Table, gone []Region) <-chan struct{} {
	// Posting is part of it: a view that has left is not told any more, since
	// its poller may stop then.
	s.viewsMu.Lock()
	defer s.viewsMu.Unlock()
	s.mu.Lock()
	s.table.Store(t)
	s.dying[t] = gone
	s.mu.Unlock()

	done := make(chan struct{})
	left := new(atomic.Int32)
	left.Store(int32(len(s.views)) + 1)
	drained := func() {
		if left.Add(-1) > 0 {
			return
		}
		s.mu.Lock()
		delete(s.dying, t)
		s.mu.Unlock()
		for i := range gone {
			gone[i].unmap()
		}
		close(done)
	}
	for _, v := range s.views {
		v.post(func() { v.update(t, drained) })
	}
	drained()
	return done
}

// NewView returns a view for one poller. post runs a function on that poller;
// the view is used there only. changed, if not nil, is called there after each
// change of the table.
func (s *Space) NewView(post func(func()), changed func()) *View {
	s.viewsMu.Lock()
	defer s.viewsMu.Unlock()
	v := &View{space: s, post: post, changed: changed}
	v.cur = &snapshot{table: s.table.Load()}
	s.views = append(s.views, v)
	return v
}

// Holds reports whether addr, an address of this process, lies in memory
// mapped for this space: whether a SIGBUS there is this space's. Memory that
// is being given up counts: a view may be using it yet.
func (s *Space) Holds(addr uintptr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if holds(s.table.Load().regions, addr) {
		return true
	}
	for _, regions := range s.dying {
		if holds(regions, addr) {
			return true
		}
	}
	return false
}

func holds(regions []Region, addr uintptr) bool {
	return slices.ContainsFunc(regions, func(r Region) bool { return r.holds(addr) })
}

// mmapProt gives the protection of a mapping: what the device may do.
func mmapProt(p Prot) int {
	var prot int
	if p&ProtRead != 0 {
		prot |= unix.PROT_READ
	}
	if p&ProtWrite != 0 {
		prot |= unix.PROT_WRITE
	}
	return prot
}
