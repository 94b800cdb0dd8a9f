// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package stats

import (
	"testing"
	"unsafe"
)

// What idle things cost is bounded: a set without commands, and the histogram of
// a class that was used.
func TestMemory(t *testing.T) {
	if got := unsafe.Sizeof(Set{}); got > 512 {
		t.Errorf("a set has %d bytes", got)
	}
	if got := unsafe.Sizeof(Histogram{}); got > 5<<10 {
		t.Errorf("a histogram has %d bytes", got)
	}
	s := NewSet()
	for class := range s.latency {
		if s.latency[class].Load() != nil {
			t.Errorf("a set without commands has a histogram of class %d", class)
		}
	}
}
