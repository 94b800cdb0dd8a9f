// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import "unsafe"

// The kernel's sizes, checked at compile time.
var (
	_ [64]byte         = [unsafe.Sizeof(sqe{})]byte{}
	_ [16]byte         = [unsafe.Sizeof(cqe{})]byte{}
	_ [120]byte        = [unsafe.Sizeof(params{})]byte{}
	_ [40]byte         = [unsafe.Sizeof(sqOffsets{})]byte{}
	_ [40]byte         = [unsafe.Sizeof(cqOffsets{})]byte{}
	_ [16]byte         = [unsafe.Sizeof(filesUpdate{})]byte{}
	_ [16 + 8*256]byte = [unsafe.Sizeof(probe{})]byte{}
	_ [8]byte          = [unsafe.Sizeof(probeOp{})]byte{}
	_ [32]byte         = [unsafe.Offsetof(sqe{}.userData)]byte{}
	_ [40]byte         = [unsafe.Offsetof(params{}.sqOff)]byte{}
	_ [20]byte         = [unsafe.Offsetof(params{}.features)]byte{}
)
