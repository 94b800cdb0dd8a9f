// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fault

import (
	"slices"
	"testing"
)

func TestRepeats(t *testing.T) {
	var r Repeats
	var logged []uint64
	for range 20 {
		if n, ok := r.Next(); ok {
			logged = append(logged, n)
		}
	}
	if want := []uint64{1, 2, 4, 8, 16}; !slices.Equal(logged, want) {
		t.Errorf("logged %d, want %d", logged, want)
	}
}
