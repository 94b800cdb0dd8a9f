// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import "testing"

// A crash before the last store leaves all counters as they were.
func TestLife(t *testing.T) {
	var l Life
	if got := l.Load(); got != (LifeCounts{}) {
		t.Errorf("new: %v", got)
	}
	for i := range uint64(5) {
		before := l
		want := LifeCounts{1, i, 2 * i}
		l.Store(want)
		if got := l.Load(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		crashed := l
		crashed.Selector = before.Selector
		if got := crashed.Load(); got != before.Load() {
			t.Errorf("after a crash: got %v, want %v", got, before.Load())
		}
	}
}
