// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import "unsafe"

// word32 returns the word at byte i of guest memory, a multiple of 4.
func word32(p []byte, i uint32) *uint32 { return (*uint32)(unsafe.Pointer(&p[i : i+4][0])) }
