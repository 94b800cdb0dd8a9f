// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"unsafe"

	"github.com/leapio/leapio/lib/nvme"
)

// Guest memory and mapped registers come as bytes, page-aligned; these give
// them their types. n and i count within b, which the callers have made.

func sqEntries(b []byte, n int) []nvme.SQE {
	b = b[:n*nvme.SQESize]
	return unsafe.Slice((*nvme.SQE)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

func cqEntries(b []byte, n int) []nvme.CQE {
	b = b[:n*nvme.CQESize]
	return unsafe.Slice((*nvme.CQE)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

// word32 returns the 32-bit word at byte i, a multiple of 4.
func word32(b []byte, i uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&b[i : i+4][0]))
}

// dword3 returns the last dword of a completion, which the controller stores
// last and in one piece: CID in the low half, phase and status in the high one.
func dword3(e *nvme.CQE) *uint32 {
	return (*uint32)(unsafe.Add(unsafe.Pointer(e), nvme.CQESize-4))
}
