// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build !race

package qpair

// A release store is seen by whoever sees it after all stores before it, and is
// stored in one piece. On x86-64 every store is one, if the compiler leaves it
// where it is: it moves none across a call. An atomic store of Go's is an exchange
// there, which waits until all stores before it have reached the cache, and holds
// up all loads after it: a miss on every ring entry that the guest has touched, one
// after the other instead of all at once. BenchmarkApart (lib/wpt/link) shows it.

//go:noinline
func release32(p *uint32, v uint32) { *p = v }

//go:noinline
func release64(p *uint64, v uint64) { *p = v }
