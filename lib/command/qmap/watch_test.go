// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
)

// What comes, goes and is made again between looks.
func TestSights(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := new(watcher)
	look := func(at time.Duration, state string, pairs ...api.QueuePair) []string {
		now := start.Add(at)
		var mappings []mapping
		if state != "" {
			mappings = []mapping{{Port: "vm1", State: state, Queues: pairs}}
		}
		var got []string
		for _, s := range w.compare(now, mappings) {
			text := s.Port + " " + s.State
			if s.Queue != nil {
				text += fmt.Sprintf(" %d", s.Queue.QID)
			}
			if s.Rate != nil {
				text += fmt.Sprintf(" %d/s", *s.Rate)
			}
			got = append(got, text)
		}
		return got
	}
	pair := func(qid uint16, since time.Duration, completed uint64) api.QueuePair {
		return api.QueuePair{Port: "vm1", QID: qid, Since: start.Add(since), Completed: completed}
	}
	for i, tt := range []struct{ got, want []string }{
		{look(0, "enabled", pair(0, 0, 5), pair(1, 0, 10)), []string{"vm1 enabled", "vm1 served 0", "vm1 served 1"}},
		{look(500*time.Millisecond, "enabled", pair(0, 0, 5), pair(1, 0, 60)), []string{"vm1 served 0 0/s", "vm1 served 1 100/s"}},
		{look(time.Second, "enabled", pair(0, 0, 6), pair(1, 700, 70), pair(2, 800, 1)), []string{"vm1 served 0 2/s", "vm1 new 1", "vm1 new 2"}},
		{look(2*time.Second, "frozen"), []string{"vm1 frozen", "vm1 gone 0", "vm1 gone 1", "vm1 gone 2"}},
		{look(3*time.Second, "frozen"), nil},
		{look(4*time.Second, "enabled", pair(1, 3500, 0)), []string{"vm1 enabled", "vm1 new 1"}},
		{look(5*time.Second, ""), []string{"vm1 gone 1", "vm1 gone"}},
		{look(6*time.Second, ""), nil},
	} {
		if d := cmp.Diff(tt.want, tt.got); d != "" {
			t.Errorf("look %d: %s", i, d)
		}
	}
}
