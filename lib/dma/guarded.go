// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import "runtime/debug"

// Guarded runs f, in which an access to memory that a client has taken away
// (SIGBUS: its file was truncated) does not end the process. If owned says that
// the faulting address is guest memory, Guarded returns it with faulted true;
// the caller fails that guest's controller and goes on. Any other panic goes on
// unchanged: it is a bug, and restart is its cure.
//
// The setting is per goroutine and costs nothing per access.
func Guarded(owned func(addr uintptr) bool, f func()) (addr uintptr, faulted bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		// runtime.Error of a memory fault at a known address.
		if e, ok := r.(interface{ Addr() uintptr }); ok && owned(e.Addr()) {
			addr, faulted = e.Addr(), true
			return
		}
		panic(r)
	}()
	f()
	return 0, false
}
