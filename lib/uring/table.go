// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import "golang.org/x/sys/unix"

// This file holds the operation table: it finds the owner of a completion by
// the entry's user data without allocating, and keeps the iovecs of an
// operation reachable while the kernel uses them.

// Completion is told the end of one operation.
type Completion interface {
	// Done is called once, by Reap, on the ring's thread. res is the result
	// of the operation: a count of bytes, or 0, or a negative errno. A count
	// can be short of what was asked. flags are those of the completion
	// queue entry. Done may queue operations and Submit; it must not Close
	// the ring.
	Done(res int32, flags uint32)
}

// Op names one operation in flight, for Cancel. An Op is never used again for
// a later operation (until 2^32 operations went through its place in the
// table), and is never 0.
type Op uint64

func makeOp(index, gen uint32) Op { return Op(gen)<<32 | Op(index) }

func (op Op) index() uint32 { return uint32(op) }
func (op Op) gen() uint32   { return uint32(op >> 32) }

// slot is one place of the table. It is in use while done is not nil.
type slot struct {
	done Completion
	iov  *unix.Iovec // keeps the array, and what its entries point to
	gen  uint32
	next uint32 // the next free slot, while this one is free
}

// table holds the operations in flight.
type table struct {
	slots []slot
	free  uint32 // first free slot; len(slots) ends the list
	used  int
}

func newTable(n uint32) table {
	t := table{slots: make([]slot, n)}
	for i := range t.slots {
		t.slots[i].next = uint32(i) + 1
	}
	return t
}

// full reports whether put has no slot left.
func (t *table) full() bool { return t.used == len(t.slots) }

// put takes a slot. The table must not be full, nor done nil.
func (t *table) put(done Completion, iov *unix.Iovec) Op {
	i := t.free
	s := &t.slots[i]
	t.free = s.next
	t.used++
	s.gen++
	if s.gen == 0 { // no Op is 0
		s.gen = 1
	}
	s.done, s.iov = done, iov
	return makeOp(i, s.gen)
}

// take frees the slot of op and returns its Completion, or nil where op is
// not in flight.
func (t *table) take(op Op) Completion {
	i := op.index()
	if uint64(i) >= uint64(len(t.slots)) {
		return nil
	}
	s := &t.slots[i]
	if s.done == nil || s.gen != op.gen() {
		return nil
	}
	done := s.done
	s.done, s.iov = nil, nil
	s.next, t.free = t.free, i
	t.used--
	return done
}
