// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import "sync/atomic"

// Life is what a port's drive has counted: it outlasts resets, machines and
// runtimes, and ends with the port. It is opaque here. One writer: the
// poller that executes the port's admin commands.
type Life struct {
	// Selector says which copy is valid (its lowest bit): a crash between two
	// stores leaves the copy of before.
	Selector uint64
	Copies   [2]LifeCounts
}

// LifeCounts says which drive it is, and what that has counted.
type LifeCounts [7]uint64

// Load returns the counters.
func (l *Life) Load() LifeCounts { return l.Copies[atomic.LoadUint64(&l.Selector)&1] }

// Store replaces the counters, all of them or, in a crash, none.
func (l *Life) Store(c LifeCounts) {
	next := (atomic.LoadUint64(&l.Selector) + 1) & 1
	l.Copies[next] = c
	atomic.StoreUint64(&l.Selector, next)
}
