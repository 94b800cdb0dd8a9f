// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"math"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/units"
)

// interval is what happened in an interval. Its numbers are those of the
// interval, but for how long the runtime is up.
type interval struct {
	api.Stat
	Interval time.Duration   `json:"interval"`
	Things   api.List[rates] `json:"things"`
}

// rates is what happened to a thing in an interval.
type rates struct {
	api.ThingStat
	IOPS      perSecond `json:"iops"`      // commands
	Bandwidth perSecond `json:"bandwidth"` // bytes

	time time.Time
}

// perSecond has a number per second for each kind of commands.
type perSecond struct {
	Read  uint64 `json:"read"`
	Write uint64 `json:"write"`
	Other uint64 `json:"other"`
}

// between makes the interval between two looks.
func between(before, now api.Stat) interval {
	i := interval{Stat: now.Sub(before)}
	i.Interval, i.Uptime = i.Uptime, now.Uptime
	per := func(n uint64) uint64 {
		if i.Interval <= 0 {
			return 0
		}
		return uint64(math.Round(float64(n) / i.Interval.Seconds()))
	}
	for _, t := range i.Stat.Things {
		i.Things = append(i.Things, rates{
			ThingStat: t, time: now.Time,
			IOPS:      perSecond{per(t.Read.Commands), per(t.Write.Commands), per(t.Other.Commands)},
			Bandwidth: perSecond{per(t.Read.Bytes), per(t.Write.Bytes), per(t.Other.Bytes)},
		})
	}
	return i
}

// total is the number for all commands.
func (p perSecond) total() uint64 { return p.Read + p.Write + p.Other }

// rateColumns are those of stat with an interval.
func rateColumns(format cli.Format) []cli.Column[rates] {
	return append([]cli.Column[rates]{{Name: "TIME", Value: func(r rates) any { return r.time }}}, topColumns(format)...)
}

// topColumns are those of top.
func topColumns(format cli.Format) []cli.Column[rates] {
	return []cli.Column[rates]{
		{Name: "NAME", Value: func(r rates) any { return r.Name }},
		{Name: "R-IOPS", Value: func(r rates) any { return r.IOPS.Read }},
		{Name: "R-BYTES/S", Value: func(r rates) any { return units.Size(r.Bandwidth.Read) }},
		{Name: "R-P50", Value: func(r rates) any { return command.Latency(format, r.Read, r.Read.P50) }},
		{Name: "R-P99", Value: func(r rates) any { return command.Latency(format, r.Read, r.Read.P99) }},
		{Name: "R-P99.9", Value: func(r rates) any { return command.Latency(format, r.Read, r.Read.P999) }},
		{Name: "W-IOPS", Value: func(r rates) any { return r.IOPS.Write }},
		{Name: "W-BYTES/S", Value: func(r rates) any { return units.Size(r.Bandwidth.Write) }},
		{Name: "W-P50", Value: func(r rates) any { return command.Latency(format, r.Write, r.Write.P50) }},
		{Name: "W-P99", Value: func(r rates) any { return command.Latency(format, r.Write, r.Write.P99) }},
		{Name: "W-P99.9", Value: func(r rates) any { return command.Latency(format, r.Write, r.Write.P999) }},
		{Name: "O-IOPS", Value: func(r rates) any { return r.IOPS.Other }},
		{Name: "ERRORS", Value: func(r rates) any { return r.Read.Errors + r.Write.Errors + r.Other.Errors }},
		{Name: "DEPTH", Value: func(r rates) any { return r.InFlight }},
	}
}
