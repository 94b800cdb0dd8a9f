// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fault

import "sync/atomic"

// Repeats counts a fault that a guest or a peer can bring about as often as it
// likes, so that it does not fill the log. Its zero value has counted nothing,
// and it may be used from any goroutine.
type Repeats struct{ n atomic.Uint64 }

// Next counts one more, and reports whether it is to be logged: the first, the
// second, the fourth, the eighth and so on. n is its number.
func (r *Repeats) Next() (n uint64, ok bool) {
	n = r.n.Add(1)
	return n, n&(n-1) == 0
}
