// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import "unsafe"

// addrOf returns where b is.
func addrOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
