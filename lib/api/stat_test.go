// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/stats"
)

// The difference of two looks is what happened between them; things and
// runtimes that are others began with nothing.
func TestStatSub(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	made := start.Add(time.Minute)
	ops := func(bytes, errors uint64, d stats.Distribution) ThingStat {
		return ThingStat{Since: made, InFlight: 3, Read: NewOpStat(bytes, errors, d)}
	}
	named := func(name string, t ThingStat) ThingStat { t.Name = name; return t }
	before := Stat{
		Runtime: "soc", Since: start, Time: start.Add(time.Hour), Uptime: time.Hour, By: ByVolume,
		GC:      GCStat{Cycles: 3, Paused: 30, LongestPause: 20},
		Pollers: List[PollerStat]{{Name: "p0", Busy: 100, Turns: 10, Sleeps: 1}},
		Things: List[ThingStat]{
			named("a", ops(1000, 1, stats.Distribution{{To: 10, N: 4}, {To: 20, N: 4}})),
			named("b", ops(5000, 5, stats.Distribution{{To: 10, N: 50}})),
			named("gone", ops(1, 1, stats.Distribution{{To: 10, N: 1}})),
		},
	}
	other := named("b", ops(10, 0, stats.Distribution{{To: 10, N: 60}}))
	other.Since = made.Add(1)
	now := Stat{
		Runtime: "soc", Since: start, Time: start.Add(time.Hour + time.Second), Uptime: time.Hour + time.Second, By: ByVolume,
		GC:      GCStat{Cycles: 5, Paused: 70, LongestPause: 25},
		Pollers: List[PollerStat]{{Name: "p0", Busy: 150, Turns: 12, Sleeps: 1}, {Name: "p1", Busy: 7}},
		Things: List[ThingStat]{
			named("a", ops(1500, 1, stats.Distribution{{To: 10, N: 4}, {To: 15, N: 2}, {To: 20, N: 5}})),
			other, named("c", ops(7, 0, stats.Distribution{{To: 5, N: 1}})),
		},
	}
	want := now
	want.Uptime = time.Second
	want.GC = GCStat{Cycles: 2, Paused: 40, LongestPause: 25}
	want.Pollers = List[PollerStat]{{Name: "p0", Busy: 50, Turns: 2}, {Name: "p1", Busy: 7}}
	want.Things = List[ThingStat]{
		named("a", ops(500, 0, stats.Distribution{{To: 15, N: 2}, {To: 20, N: 1}})), now.Things[1], now.Things[2],
	}
	copied := now.Sub(Stat{Since: start})
	if d := cmp.Diff(want, now.Sub(before)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(now, copied); d != "" {
		t.Error("a look has been changed: ", d)
	}
	before.Since = start.Add(-time.Hour)
	if d := cmp.Diff(now, now.Sub(before)); d != "" {
		t.Error("after another runtime: ", d)
	}
}
