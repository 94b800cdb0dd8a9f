// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Every latency lies in its bucket, buckets follow each other without a gap, and
// none is wider than 1/16 of what is in it.
func TestBuckets(t *testing.T) {
	for i := range Latency(buckets) {
		low, high := time.Duration(0), upper(i)
		if i > 0 {
			low = upper(i-1) + 1
		}
		if LatencyOf(low) != i || LatencyOf(high) != i {
			t.Errorf("bucket %d, %d to %d: they are in %d and %d", i, low, high, LatencyOf(low), LatencyOf(high))
		}
		if width := high - low; width > 0 && width*16 >= low+16 {
			t.Errorf("bucket %d, %d to %d, is too wide", i, low, high)
		}
	}
	for _, d := range []time.Duration{1 << topBits, 1<<topBits + 1, math.MaxInt64} {
		if got := LatencyOf(d); got != buckets-1 {
			t.Errorf("%v is in bucket %d", d, got)
		}
	}
	if last := upper(buckets-2) + 1; last < time.Minute {
		t.Errorf("latencies of %v share a bucket with longer ones", last)
	}
	if got := LatencyOf(-1); got != 0 {
		t.Errorf("-1 ns is in bucket %d", got)
	}
}

// latencies are of all magnitudes.
var latencies = rapid.SliceOf(rapid.Custom(func(t *rapid.T) time.Duration {
	return time.Duration(rapid.Int64Range(0, 1<<topBits-1).Draw(t, "ns") >> rapid.IntRange(0, topBits-1).Draw(t, "shift"))
}))

func record(s *Set, k Kind, took time.Duration, bytes uint64, failed bool) {
	s.Record(k, LatencyOf(took), bytes, failed)
}

// recorded returns a set that has recorded reads.
func recorded(all []time.Duration, groups ...*Group) *Set {
	s := NewSet(groups...)
	for _, d := range all {
		s.Begin()
		record(s, Read, d, 1, false)
		s.Done()
	}
	return s
}

func reads(t Total) Distribution { return t.Latency(Reads) }

// A percentile is the command of that rank, or at most 1/16 above it.
func TestPercentile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := latencies.Draw(t, "latencies")
		d := reads(recorded(all).Total())
		if d.Count() != uint64(len(all)) {
			t.Fatalf("%d commands, want %d", d.Count(), len(all))
		}
		slices.Sort(all)
		for _, p := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1, rapid.Float64Range(0, 1).Draw(t, "p")} {
			got := d.Percentile(p)
			if len(all) == 0 {
				if got != 0 {
					t.Fatalf("without commands p%v is %v", p, got)
				}
				continue
			}
			want := all[max(int(math.Ceil(p*float64(len(all))))-1, 0)]
			if got < want || got > want+want/16 {
				t.Fatalf("p%v of %v is %v, want %v", p, all, got, want)
			}
		}
		if len(all) > 0 && LatencyOf(d.Max()) != LatencyOf(all[len(all)-1]) {
			t.Fatalf("the longest of %v is %v", all, d.Max())
		}
	})
}

// A sum is off by at most 1/32 of each, and what is at most a bound that ends a
// bucket is exact.
func TestSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := latencies.Draw(t, "latencies")
		d := reads(recorded(all).Total())
		bound := time.Duration(1) << rapid.IntRange(0, topBits).Draw(t, "bound")
		var low, high, sum float64
		below := uint64(0)
		for _, took := range all {
			sum += float64(took)
			low += float64(took) * (1 - 1.0/32)
			high += float64(took)*(1+1.0/32) + 1
			// At the bound itself another bucket begins, where they have more than one
			// latency.
			if took < bound || took == bound && bound < 2<<subBits {
				below++
			}
		}
		if got := float64(d.Sum()); got < low-1 || got > high {
			t.Fatalf("the sum of %v is %v, want %v", all, got, sum)
		}
		if got := d.AtMost(bound); got != below {
			t.Fatalf("%d of %v are at most %v, want %d", got, all, bound, below)
		}
	})
}

// What two have recorded is the sum; the sum without one is the other.
func TestAddSub(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := latencies.Draw(t, "a"), latencies.Draw(t, "b")
		da, db := reads(recorded(a).Total()), reads(recorded(b).Total())
		both := reads(recorded(append(slices.Clone(a), b...)).Total())
		if d := cmp.Diff(both, da.Add(db)); d != "" {
			t.Fatal("sum: ", d)
		}
		if d := cmp.Diff(db, both.Sub(da)); d != "" {
			t.Fatal("difference: ", d)
		}
		if d := da.Sub(both); len(d) != 0 {
			t.Fatal("nothing is left of", d)
		}
	})
}

func TestKinds(t *testing.T) {
	s := NewSet()
	for k := range kinds {
		for range int(k) + 1 {
			record(s, k, time.Microsecond, 100, false)
		}
		record(s, k, time.Second, 100, true)
	}
	s.MediaError()
	total := s.Total()
	for k := range kinds {
		if got, want := total.Commands(k), uint64(k)+2; got != want {
			t.Errorf("kind %d: %d commands, want %d", k, got, want)
		}
		if got, want := total.Bytes(k), (uint64(k)+1)*100; got != want {
			t.Errorf("kind %d: %d bytes, want %d", k, got, want)
		}
	}
	for c, want := range map[Class][3]uint64{Reads: {3, 200, 1}, Writes: {4, 300, 1}, Rest: {47, 4000, 7}} {
		got := [3]uint64{total.Latency(c).Count(), total.ClassBytes(c), total.Errors(c)}
		if got != want {
			t.Errorf("class %d: commands, bytes, errors %d, want %d", c, got, want)
		}
	}
	if total.MediaErrors != 1 {
		t.Errorf("%d media errors", total.MediaErrors)
	}
}

// A group keeps what its sets have counted when they have ended.
func TestGroup(t *testing.T) {
	a, b := NewGroup(), NewGroup()
	first := recorded([]time.Duration{1, 1000}, a, nil, b)
	second := recorded([]time.Duration{1000}, b)
	first.Begin()
	check := func(when string, g *Group, count, inFlight uint64) {
		t.Helper()
		total := g.Total()
		if got := reads(total).Count(); got != count || total.InFlight != inFlight || total.Bytes(Read) != count {
			t.Errorf("%s: %d commands, %d bytes, %d in flight, want %d and %d", when, got, total.Bytes(Read), total.InFlight, count, inFlight)
		}
	}
	check("one set", a, 2, 1)
	check("two sets", b, 3, 1)
	record(first, Read, time.Second, 1, false)
	first.Done()
	first.End()
	check("one has ended", a, 3, 0)
	check("one of two has ended", b, 4, 0)
	record(second, Read, time.Second, 1, false)
	check("the other goes on", b, 5, 0)
	second.End()
	check("all have ended", b, 5, 0)
	if before := reads(b.Total()); !slices.Equal(before, reads(b.Total())) {
		t.Error("a total has changed the group")
	}
}

// Readers take part while writers record and sets come and go: no total goes
// backwards, and the last is exact.
func TestConcurrent(t *testing.T) {
	const writers, rounds, each = 3, 20, 200
	g := NewGroup()
	var writing, reading sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		reading.Go(func() {
			var count, bytes uint64
			for {
				total := g.Total()
				n, b := reads(total).Count(), total.Bytes(Read)
				if n < count || b < bytes || total.InFlight > writers {
					t.Errorf("%d commands, %d bytes, %d in flight, after %d and %d", n, b, total.InFlight, count, bytes)
					return
				}
				count, bytes = n, b
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				s := NewSet(g)
				for range each {
					s.Begin()
					record(s, Read, time.Duration(rng.Uint64N(1<<30)), 512, false)
					s.Done()
				}
				s.End()
			}
		})
	}
	writing.Wait()
	close(stop)
	reading.Wait()
	total := g.Total()
	if got, want := reads(total).Count(), uint64(writers*rounds*each); got != want || total.Bytes(Read) != want*512 || total.InFlight != 0 {
		t.Errorf("%d commands, %d bytes, %d in flight, want %d commands", got, total.Bytes(Read), total.InFlight, want)
	}
}

func TestRecordAllocations(t *testing.T) {
	s := recorded([]time.Duration{1})
	d := time.Duration(1)
	if n := testing.AllocsPerRun(100, func() {
		s.Begin()
		record(s, Read, d, 4096, false)
		s.Done()
		d *= 2
	}); n != 0 {
		t.Errorf("%v allocations for a command", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	s := NewSet()
	b.ReportAllocs()
	for i := range b.N {
		s.Begin()
		record(s, Read, time.Duration(1000+i&0xfff), 4096, false)
		s.Done()
	}
}
