// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench

import "math/bits"

// order is an order of the numbers 0 to n-1.
type order struct {
	n      uint64
	random bool
	key    uint64 // of this order among the random ones
	mask   uint64 // 2^k-1, the least that is not below n-1
	shift  int    // half of k, rounded up
}

func newOrder(n uint64, random bool) order {
	k := bits.Len64(n - 1)
	return order{n: n, random: random, mask: 1<<k - 1, shift: max((k+1)/2, 1)}
}

// factor is odd: multiplying by it can be undone modulo any power of two.
const factor = 0x9e3779b97f4a7c15

// at returns number i of the order. Each step of the loop can be undone among
// the numbers of k bits, so that all of them come, each once; from one that is n
// or more the walk goes on, until it comes below. On average that is not two
// steps.
func (o *order) at(i uint64) uint64 {
	if !o.random {
		return i
	}
	for {
		for key := o.key; key != 0; key >>= 16 {
			i = (i*factor + key) & o.mask
			i ^= i >> o.shift
		}
		if i < o.n {
			return i
		}
	}
}

// source makes numbers that look random, the same for the same start: xorshift64*
// (Vigna 2016). It is never 0.
type source uint64

// newSource starts a source by two numbers.
func newSource(a, b uint64) source { return source((a+1)*factor ^ (b+1)*0xbf58476d1ce4e5b9 | 1) }

func (s *source) next() uint64 {
	x := uint64(*s)
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	*s = source(x)
	return x * 0x2545f4914f6cdd1d
}

// below returns a number of 0 to n-1.
func (s *source) below(n uint64) uint64 {
	hi, _ := bits.Mul64(s.next(), n)
	return hi
}
