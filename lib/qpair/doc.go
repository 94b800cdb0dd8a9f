// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package qpair declares everything leap-wpt and a runtime share about one
// vfio-user port: the register page, the doorbell page, the state area of the
// controller and its queues, the messages of the link, and the protocol by
// which a queue pair survives the death of its runtime.
//
// All of it lives in memfds that leap-wpt makes and hands over the link:
//
//	register page   one page; leap-wpt and the runtime each write their own words
//	doorbell page   one page; BAR0 offset 1000h, may be mapped into the guest
//	state area      controller page, completion queue pages, submission queue pages
//
// A word of shared memory has one writer, is naturally aligned and is accessed
// by sync/atomic wherever the other side may look at it while it changes. The
// other side is never trusted: leap-wpt survives any value a runtime writes,
// and a runtime takes nothing a guest can write (rings, doorbells) for granted.
//
// The slot protocol (slot.go) is the heart: it decides which command is
// executed, which completion is published, and what a successor does after a
// crash between any two stores, without ever reading guest memory to decide.
package qpair
