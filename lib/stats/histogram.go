// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package stats counts commands and how long they took.
//
//	Histogram     latencies, by buckets (histogram.go)
//	Set           what one poller counts of one thing (set.go)
//	Group         all that is counted of a thing, what has ended included
//	Distribution  latencies as plain numbers: percentiles, differences
//
// A Set has one writer, the poller it was made for, and any number of readers,
// who take no lock and hold up nobody (counter.go). Recording a command
// allocates nothing, but for the first command of its class, which makes the
// histogram: a queue that was never used costs a few hundred bytes.
//
// A reader sees each word as it was at some moment, not all of them at the same:
// totals never go backwards, and are exact when the writer rests.
package stats

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// Buckets are log-linear: 16 of the same width for every power of two, so that
// the width of a bucket is at most 1/16 of the latencies in it. Below 32 ns each
// nanosecond has its own. Latencies of 2^40 ns, some 18 minutes, and above count
// as just below that.
const (
	subBits = 4
	topBits = 40
	buckets = (topBits-subBits-1)<<subBits + 2<<subBits
)

// Latency is a latency as it is counted: the number of its bucket.
type Latency int

// LatencyOf returns the bucket of a latency. One that is negative counts as 0.
func LatencyOf(d time.Duration) Latency {
	v := uint64(min(max(d, 0), 1<<topBits-1))
	e := max(bits.Len64(v)-subBits-1, 0)
	return Latency(e<<subBits + int(v>>e))
}

// upper returns the longest latency of a bucket.
func upper(i Latency) time.Duration {
	if i < 2<<subBits {
		return time.Duration(i)
	}
	e := i>>subBits - 1
	return time.Duration(i&(1<<subBits-1)+1<<subBits+1)<<e - 1
}

// Histogram counts latencies by buckets. It has one writer.
type Histogram [buckets]Counter

// Bucket is how many commands took about as long.
type Bucket struct {
	To time.Duration `json:"to"` // the longest latency counted here
	N  uint64        `json:"n"`
}

// Distribution is latencies by buckets: those that are not empty, the shortest
// first.
type Distribution []Bucket

// distribution makes one of dense buckets.
func distribution(dense []uint64) Distribution {
	var d Distribution
	for i, n := range dense {
		if n > 0 {
			d = append(d, Bucket{upper(Latency(i)), n})
		}
	}
	return d
}

// Count returns the number of commands.
func (d Distribution) Count() uint64 {
	n := uint64(0)
	for _, b := range d {
		n += b.N
	}
	return n
}

// Percentile returns a latency that the share p of the commands, 0 to 1, did not
// exceed: the upper end of the bucket of that command, which is at most 1/16
// above what it took. Without commands it is 0.
func (d Distribution) Percentile(p float64) time.Duration {
	rank := uint64(math.Ceil(p * float64(d.Count())))
	for _, b := range d {
		if b.N >= rank {
			return b.To
		}
		rank -= b.N
	}
	return d.Max()
}

// Max returns the upper end of the bucket of the slowest command.
func (d Distribution) Max() time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[len(d)-1].To
}

// AtMost returns the number of commands whose bucket ends at limit or below it.
func (d Distribution) AtMost(limit time.Duration) uint64 {
	n := uint64(0)
	for _, b := range d {
		if b.To > limit {
			break
		}
		n += b.N
	}
	return n
}

// Sum returns how long all commands together took, each as the middle of its
// bucket, which is at most 1/32 off.
func (d Distribution) Sum() time.Duration {
	sum := time.Duration(0)
	for _, b := range d {
		low := b.To
		if i := LatencyOf(b.To); i > 0 {
			low = upper(i-1) + 1
		}
		sum += time.Duration(b.N) * (low + (b.To-low)/2)
	}
	return sum
}

// Add returns the commands of both.
func (d Distribution) Add(o Distribution) Distribution {
	return d.merge(o, func(a, b uint64) uint64 { return a + b })
}

// Sub returns the commands of d without those of before, an earlier
// distribution of the same thing.
func (d Distribution) Sub(before Distribution) Distribution {
	return d.merge(before, func(a, b uint64) uint64 { return a - min(a, b) })
}

// merge joins the buckets of both by f and leaves out the empty ones.
func (d Distribution) merge(o Distribution, f func(a, b uint64) uint64) Distribution {
	var out Distribution
	for len(d) > 0 || len(o) > 0 {
		var b Bucket
		switch {
		case len(o) == 0 || len(d) > 0 && d[0].To < o[0].To:
			b, d = Bucket{d[0].To, f(d[0].N, 0)}, d[1:]
		case len(d) == 0 || o[0].To < d[0].To:
			b, o = Bucket{o[0].To, f(0, o[0].N)}, o[1:]
		default:
			b, d, o = Bucket{d[0].To, f(d[0].N, o[0].N)}, d[1:], o[1:]
		}
		if b.N > 0 {
			out = append(out, b)
		}
	}
	return slices.Clip(out)
}
