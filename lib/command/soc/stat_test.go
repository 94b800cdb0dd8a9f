// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/stats"
)

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		word, thing string
		want        bool
	}{
		{"d1", "d1", true}, {"d1", "d10", false}, {"s1", "s1/1", true}, {"s1/1", "s1/1", true}, {"s1/1", "s1/10", false}, {"s1", "s10/1", false},
	} {
		if got := names(tt.word, tt.thing); got != tt.want {
			t.Errorf("%s names %s: %t", tt.word, tt.thing, got)
		}
	}
}

// Rates are those of the time between two looks, by the runtime's own clock.
func TestBetween(t *testing.T) {
	look := func(up time.Duration, commands uint64) api.Stat {
		ops := api.NewOpStat(commands*4096, 0, stats.Distribution{{To: 100, N: commands}})
		return api.Stat{Uptime: up, Things: api.List[api.ThingStat]{{Name: "d1", InFlight: 2, Write: ops}}}
	}
	i := between(look(time.Second, 10), look(1500*time.Millisecond, 510))
	got := i.Things[0]
	if i.Interval != 500*time.Millisecond || i.Uptime != 1500*time.Millisecond {
		t.Errorf("interval %v, up %v", i.Interval, i.Uptime)
	}
	if got.IOPS != (perSecond{Write: 1000}) || got.Bandwidth != (perSecond{Write: 1000 * 4096}) || got.Write.Commands != 500 || got.InFlight != 2 {
		t.Errorf("got %+v", got)
	}
	if i := between(look(time.Second, 10), look(time.Second, 10)); i.Things[0].IOPS != (perSecond{}) {
		t.Errorf("in no time %+v", i.Things[0].IOPS)
	}
}
