// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build !race

// Speed under the race detector says nothing.

package soc_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// crowd is guests that are busy, and others that do nothing, on one poller of
// daemons of their own.
type crowd struct {
	*rig
	busy []*user
}

// newCrowd starts daemons and guests with null volumes: so many that keep
// commands in flight as d says, and so many that do nothing.
func newCrowd(t testing.TB, busy, idle int, d demand) *crowd {
	t.Helper()
	d.kind = "null"
	c := &crowd{rig: newFolders(t, 1)}
	c.child, c.poll = true, poller.Busy // it would give way to others at other times
	// Children are on the processors of the thread that starts them.
	pin(t, 1)
	c.startWpt()
	t.Cleanup(func() { c.stopWpt() })
	pin(t, 0)
	c.startSoc()
	t.Cleanup(c.stopSoc)
	pin(t, 1)
	for i := range busy {
		c.busy = append(c.busy, c.newUser(fmt.Sprintf("busy%d", i), api.DoorbellsMap, d))
	}
	for i := range idle {
		c.newUser(fmt.Sprintf("idle%d", i), api.DoorbellsMap, demand{kind: "null", op: nvme.IORead, size: 4 << 10, queues: 1, depth: 32})
	}
	return c
}

// pin has this goroutine run on a processor of its own, if there are several.
func pin(t testing.TB, cpu int) {
	t.Helper()
	runtime.LockOSThread() // for ever: the thread ends with the goroutine
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
}

// window has the guests go on for a while and returns how many commands have
// ended in a second, and how long leap-soc had a processor for each, in
// nanoseconds.
func (c *crowd) window(t testing.TB, d time.Duration) (rate, cpu float64) {
	count := func() (n int) {
		for _, u := range c.busy {
			n += u.done
		}
		return n
	}
	before, used, start := count(), c.used(), time.Now()
	for time.Since(start) < d {
		for range 16 {
			for _, u := range c.busy {
				u.step(t)
			}
		}
	}
	took, n := time.Since(start), float64(count()-before)
	used = c.used() - used
	for _, u := range c.busy {
		for !u.rest(t) {
		}
	}
	return n / took.Seconds(), float64(used) / n
}

// used is how long leap-soc had a processor.
func (c *crowd) used() time.Duration {
	// The clock of another process, clock_getcpuclockid(3).
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^c.soc.pid<<3|2), &ts); err != nil {
		c.t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// compare has crowds go on by turns, and reports the medians of their rates and
// times, and those of the last in parts of the first.
func compare(b *testing.B, names []string, crowds []*crowd) {
	const windows = 40
	rates, times := make([][]float64, len(crowds)), make([][]float64, len(crowds))
	for range b.N * windows {
		for i, c := range crowds {
			c.window(b, 2*time.Millisecond) // the poller wakes up, and gets used to it
			rate, cpu := c.window(b, 20*time.Millisecond)
			rates[i], times[i] = append(rates[i], rate), append(times[i], cpu)
		}
	}
	for i, name := range names {
		slices.Sort(rates[i])
		slices.Sort(times[i])
		b.ReportMetric(median(rates[i]), name+"/s")
		b.ReportMetric(median(times[i]), name+"-ns")
	}
	last := len(crowds) - 1
	b.ReportMetric(median(rates[last])/median(rates[0]), "rate")
	b.ReportMetric(median(times[0])/median(times[last]), "cpu")
}

// median of what is sorted.
func median(all []float64) float64 { return all[len(all)/2] }

// BenchmarkMany shows what many drives on one poller cost. rate is how many
// commands end in a time, cpu is how many leap-soc would execute in it if it was
// never waiting, both in parts of what they are with one drive.
func BenchmarkMany(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		d := demand{op: nvme.IORead, size: 4 << 10, queues: 1, depth: depth}
		for _, idle := range []int{0, 8, 64, 256} {
			b.Run(fmt.Sprintf("idle%d/qd%d", idle, depth), func(b *testing.B) {
				compare(b, []string{"alone", "beside"}, []*crowd{newCrowd(b, 1, 0, d), newCrowd(b, 1, idle, d)})
			})
		}
	}
	b.Run("drives8/qd32", func(b *testing.B) {
		d := demand{op: nvme.IORead, size: 4 << 10, queues: 1, depth: 256}
		one := newCrowd(b, 1, 0, d)
		d.depth = 32
		compare(b, []string{"one", "eight"}, []*crowd{one, newCrowd(b, 8, 0, d)})
	})
}
