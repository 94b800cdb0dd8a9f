// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package stats

import "sync/atomic"

// Counter is a number that one goroutine adds to and any may read.
//
// The writer uses plain stores. An atomic one is an exchange on x86-64 and waits
// until all stores before it are done, which cost a quarter of the time of a
// command that does nothing else. Plain stores are enough: Go's memory model has
// a read of one word see a value that was written there, whole, and a store that
// is to be seen after others is an atomic one, such as that of a completion. The
// race detector knows no such use; hence the norace.
type Counter struct{ n uint64 }

// Add adds n. It is for the one writer.
//
//go:norace
func (c *Counter) Add(n uint64) { c.n += n }

// Sub subtracts n. It is for the one writer.
//
//go:norace
func (c *Counter) Sub(n uint64) { c.n -= n }

// Load returns the number, as it was a moment ago at most.
func (c *Counter) Load() uint64 { return atomic.LoadUint64(&c.n) }
