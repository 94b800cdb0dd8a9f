// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import "unsafe"

// word returns the first 8 bytes of p, which are aligned, as a word: it is stored
// as a whole, however the process ends.
func word(p []byte) *uint64 { return (*uint64)(unsafe.Pointer(&p[:8][0])) }
