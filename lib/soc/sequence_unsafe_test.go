// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import "unsafe"

// word is a word of guest memory that the device reads or writes at the same
// time; addr is a multiple of 4.
func (p *player) word(addr uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&p.bytes(p.t, addr, 4)[0]))
}
