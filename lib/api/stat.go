// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// What leap-soc has counted.

package api

import (
	"time"

	"github.com/leapio/leapio/lib/stats"
)

// What commands are counted by.
const (
	ByVolume    = "volume"
	ByNamespace = "namespace"
	ByQueue     = "queue"
)

// Stat is what a runtime has counted, at a moment. Its numbers only grow, so
// that the difference of two is what happened between them; a thing whose Since
// differs is another one.
type Stat struct {
	Runtime string           `json:"runtime"` // its name
	Time    time.Time        `json:"time"`
	Since   time.Time        `json:"since"`  // when the runtime started
	Uptime  time.Duration    `json:"uptime"` // from Since to Time
	By      string           `json:"by"`
	GC      GCStat           `json:"gc"`
	Pollers List[PollerStat] `json:"pollers"`
	Things  List[ThingStat]  `json:"things"` // by name
}

// GCStat is what the garbage collector has done. While it pauses, pollers do.
type GCStat struct {
	Cycles       uint64        `json:"cycles"`
	Paused       time.Duration `json:"paused"`        // in all
	LongestPause time.Duration `json:"longest_pause"` // of the latest 256
}

// PollerStat is what a poller has done.
type PollerStat struct {
	Name   string        `json:"name"`
	CPU    int           `json:"cpu"`    // -1: not bound to one
	Busy   time.Duration `json:"busy"`   // time spent on commands
	Turns  uint64        `json:"turns"`  // of its loop that found work
	Sleeps uint64        `json:"sleeps"` // how often it went to sleep
}

// ThingStat is what was counted of a volume, namespace or queue.
type ThingStat struct {
	Name     string    `json:"name"`   // VOLUME, SUBSYSTEM/NSID, PORT/QID or SUBSYSTEM/CNTLID/QID
	Volume   string    `json:"volume"` // of a volume or namespace
	Since    time.Time `json:"since"`  // counted from then on
	InFlight uint64    `json:"in_flight"`
	Read     OpStat    `json:"read"`
	Write    OpStat    `json:"write"`
	Other    OpStat    `json:"other"` // flush, write zeroes, deallocate, compare, verify, copy, administration
}

// OpStat is what was counted of commands that do about the same. Latencies are
// those of lib/stats: at most 1/16 too long.
type OpStat struct {
	Commands uint64 `json:"commands"` // that have ended
	Bytes    uint64 `json:"bytes"`    // moved or covered by those that succeeded
	Errors   uint64 `json:"errors"`   // commands that failed
	Percentiles
	Latency List[stats.Bucket] `json:"latency"`
}

// Percentiles are latencies that a share of the commands did not exceed.
type Percentiles struct {
	P50  time.Duration `json:"p50"`
	P90  time.Duration `json:"p90"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p99_9"`
	Max  time.Duration `json:"max"`
}

// PercentilesOf reads them off a distribution.
func PercentilesOf(d stats.Distribution) Percentiles {
	return Percentiles{
		P50: d.Percentile(0.5), P90: d.Percentile(0.9), P99: d.Percentile(0.99), P999: d.Percentile(0.999), Max: d.Max(),
	}
}

// NewOpStat makes the numbers of which the distribution is one.
func NewOpStat(bytes, errors uint64, latency stats.Distribution) OpStat {
	return OpStat{
		Commands: latency.Count(), Bytes: bytes, Errors: errors,
		Percentiles: PercentilesOf(latency), Latency: List[stats.Bucket](latency),
	}
}

// Sub returns what happened since before, an earlier Stat of the same kind. A
// thing that is new there began with nothing, and so did all things if the
// runtime is another one. GC.LongestPause stays what it is.
func (s Stat) Sub(before Stat) Stat {
	if !s.Since.Equal(before.Since) {
		before = Stat{}
	}
	s.Uptime -= before.Uptime
	s.GC.Cycles -= before.GC.Cycles
	s.GC.Paused -= before.GC.Paused
	pollers := make(map[string]PollerStat)
	for _, p := range before.Pollers {
		pollers[p.Name] = p
	}
	s.Pollers = append(List[PollerStat](nil), s.Pollers...)
	for i := range s.Pollers {
		p, b := &s.Pollers[i], pollers[s.Pollers[i].Name]
		p.Busy, p.Turns, p.Sleeps = p.Busy-b.Busy, p.Turns-b.Turns, p.Sleeps-b.Sleeps
	}
	things := make(map[string]ThingStat)
	for _, t := range before.Things {
		things[t.Name] = t
	}
	s.Things = append(List[ThingStat](nil), s.Things...)
	for i := range s.Things {
		t := &s.Things[i]
		if b, ok := things[t.Name]; ok && b.Since.Equal(t.Since) {
			t.Read, t.Write, t.Other = t.Read.sub(b.Read), t.Write.sub(b.Write), t.Other.sub(b.Other)
		}
	}
	return s
}

func (o OpStat) sub(b OpStat) OpStat {
	latency := stats.Distribution(o.Latency).Sub(stats.Distribution(b.Latency))
	return NewOpStat(o.Bytes-b.Bytes, o.Errors-b.Errors, latency)
}
