// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// counts is what has been done.
type counts struct {
	ios     [numKinds]atomic.Uint64
	longest atomic.Int64 // latency since pauseOf began

	mu     sync.Mutex
	steps  map[string]int
	pauses map[string][]time.Duration
}

// ended counts an I/O. fast: a pause of a daemon would show in its latency.
func (c *counts) ended(k kind, took time.Duration, fast bool) {
	c.ios[k].Add(1)
	if !fast {
		return
	}
	for {
		old := c.longest.Load()
		if int64(took) <= old || c.longest.CompareAndSwap(old, int64(took)) {
			return
		}
	}
}

func (c *counts) total() (n uint64) {
	for i := range c.ios {
		n += c.ios[i].Load()
	}
	return n
}

// step counts a step.
func (c *counts) step(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps == nil {
		c.steps, c.pauses = make(map[string]int), make(map[string][]time.Duration)
	}
	c.steps[name]++
}

func (c *counts) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.steps[name]
}

// pause notes for how long guests had to wait in a step.
func (c *counts) pause(name string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pauses[name] = append(c.pauses[name], took)
}

// String is a line or two.
func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d I/Os (", c.total())
	for k := range numKinds {
		if k > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%v %d", k, c.ios[k].Load())
	}
	b.WriteString("); ")
	for i, name := range slices.Sorted(maps.Keys(c.steps)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", name, c.steps[name])
	}
	return b.String()
}

// Pauses is a line for each step that makes guests wait.
func (c *counts) Pauses() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.pauses)) {
		all := slices.Sorted(slices.Values(c.pauses[name]))
		at := func(share float64) time.Duration {
			return all[int(share*float64(len(all)-1))].Round(100 * time.Microsecond)
		}
		fmt.Fprintf(&b, "  %-20s %5d times, guests waited p50 %v, p99 %v, max %v\n", name, len(all), at(0.5), at(0.99), at(1))
	}
	return b.String()
}
