// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the 128-bit counter of log pages and capacities.

package nvme

import (
	"fmt"
	"math/bits"
)

// Uint128 is a 128-bit unsigned integer as it lies on the wire, low half first.
type Uint128 struct {
	Lo uint64
	Hi uint64
}

// Add returns u + n, or the largest value where the sum has more than 128 bits.
func (u Uint128) Add(n uint64) Uint128 {
	lo, carry := bits.Add64(u.Lo, n, 0)
	hi, overflow := bits.Add64(u.Hi, 0, carry)
	if overflow != 0 {
		return Uint128{Lo: ^uint64(0), Hi: ^uint64(0)}
	}
	return Uint128{Lo: lo, Hi: hi}
}

// Mul64 returns a * b, which never overflows: blocks times block size, for example.
func Mul64(a, b uint64) Uint128 {
	hi, lo := bits.Mul64(a, b)
	return Uint128{Lo: lo, Hi: hi}
}

// String returns u in decimal.
func (u Uint128) String() string {
	if u.Hi == 0 {
		return fmt.Sprintf("%d", u.Lo)
	}
	const chunk = 1e19 // the largest power of ten below 2^64
	hiQuo, hiRem := u.Hi/chunk, u.Hi%chunk
	quo, rem := bits.Div64(hiRem, u.Lo, chunk)
	return Uint128{Lo: quo, Hi: hiQuo}.String() + fmt.Sprintf("%019d", rem)
}
