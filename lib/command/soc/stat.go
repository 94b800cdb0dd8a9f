// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// shortestInterval keeps those who watch from being the load.
const shortestInterval = 10 * time.Millisecond

func byFlag(by *string) cli.Flag {
	return cli.Flag{Name: "by", Arg: "volume|namespace|queue", Usage: "what to count by; without it, volume", Value: cli.Enum(by, api.ByVolume, api.ByNamespace, api.ByQueue)}
}

func stat() *cli.Command {
	w := watched{by: api.ByVolume}
	var (
		interval time.Duration
		count    int
	)
	return &cli.Command{
		Name:  "stat",
		Usage: "print what was counted and how long it took",
		Help: "Without --interval, totals since the start of the runtime. With it, what happens\n" +
			"in each interval, until interrupted.",
		Args: "[NAME...]",
		Flags: []cli.Flag{
			byFlag(&w.by),
			{Name: "interval", Arg: "DURATION", Usage: "print rates, one interval after the other", Value: cli.Duration(&interval)},
			{Name: "count", Arg: "N", Usage: "end after so many intervals", Value: cli.Int(&count, 1, 1<<31-1)},
			command.RuntimeFlag(&w.runtime),
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			w.names = call.Args
			switch {
			case call.IsSet("count") && !call.IsSet("interval"):
				return fault.Errorf(fault.Usage, "", "", "--count is for --interval")
			case call.IsSet("interval") && interval < shortestInterval:
				return fault.Errorf(fault.Usage, "", "", "--interval: %v is shorter than %v", interval, shortestInterval)
			}
			first, err := w.get(ctx, call)
			if err != nil {
				return err
			}
			if !call.IsSet("interval") {
				return printTotals(call, first)
			}
			return printIntervals(ctx, call, &w, first, interval, count)
		},
	}
}

// watched is what stat and top look at.
type watched struct {
	by      string
	runtime string
	names   []string // empty: everything
}

// get asks the runtime. A name that is nothing is an error.
func (w *watched) get(ctx context.Context, call *cli.Call) (api.Stat, error) {
	s, err := w.look(ctx, call)
	if err != nil {
		return s, err
	}
	for _, name := range w.names {
		if !slices.ContainsFunc(s.Things, func(t api.ThingStat) bool { return names(name, t.Name) }) {
			return s, fault.Errorf(fault.NotFound, "", name, "no such %s", w.by)
		}
	}
	return s, nil
}

// look is get where things may have gone.
func (w *watched) look(ctx context.Context, call *cli.Call) (api.Stat, error) {
	client, err := command.Runtime(call, w.runtime)
	if err != nil {
		return api.Stat{}, err
	}
	var s api.Stat
	if err := client.Get(ctx, api.Path("stat", w.by), &s); err != nil {
		return s, err
	}
	if len(w.names) > 0 {
		s.Things = slices.DeleteFunc(s.Things, func(t api.ThingStat) bool {
			return !slices.ContainsFunc(w.names, func(name string) bool { return names(name, t.Name) })
		})
	}
	return s, nil
}

// names reports whether a word of the user's names a thing: in full, or its
// subsystem or port.
func names(word, thing string) bool {
	return word == thing || strings.HasPrefix(thing, word+"/")
}

// totals is a line of what was counted.
type totals struct {
	name, op string
	api.OpStat
}

// totalColumns are those of stat without an interval.
func totalColumns(format cli.Format) []cli.Column[totals] {
	return []cli.Column[totals]{
		{Name: "NAME", Value: func(t totals) any { return t.name }},
		{Name: "OP", Value: func(t totals) any { return t.op }},
		{Name: "COMMANDS", Value: func(t totals) any { return t.Commands }},
		{Name: "BYTES", Value: func(t totals) any { return units.Size(t.Bytes) }},
		{Name: "ERRORS", Value: func(t totals) any { return t.Errors }},
		{Name: "P50", Value: func(t totals) any { return command.Latency(format, t.OpStat, t.P50) }},
		{Name: "P90", Value: func(t totals) any { return command.Latency(format, t.OpStat, t.P90) }},
		{Name: "P99", Value: func(t totals) any { return command.Latency(format, t.OpStat, t.P99) }},
		{Name: "P99.9", Value: func(t totals) any { return command.Latency(format, t.OpStat, t.P999) }},
		{Name: "MAX", Value: func(t totals) any { return command.Latency(format, t.OpStat, t.Max) }},
	}
}

// printTotals prints what was counted since the start.
func printTotals(call *cli.Call, s api.Stat) error {
	if call.Format == cli.JSON {
		return cli.Show(call, nil, s)
	}
	if call.Format == cli.Text {
		if _, err := fmt.Fprintf(call.Stdout, "%s\n\n", header(s, s.Uptime)); err != nil {
			return err
		}
	}
	var rows []totals
	for _, t := range s.Things {
		rows = append(rows, totals{t.Name, "read", t.Read}, totals{t.Name, "write", t.Write}, totals{t.Name, "other", t.Other})
	}
	return cli.List(call, totalColumns(call.Format), rows)
}

// header says how the runtime does, in a line. s is of a time of this length.
func header(s api.Stat, during time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: up %v", s.Runtime, s.Time.Sub(s.Since).Round(time.Second))
	for _, p := range s.Pollers {
		fmt.Fprintf(&b, ", %s %.0f%% busy", p.Name, 100*share(p.Busy, during))
	}
	fmt.Fprintf(&b, ", %d garbage collections, %v paused", s.GC.Cycles, command.Short(s.GC.Paused))
	if s.GC.LongestPause > 0 {
		fmt.Fprintf(&b, ", longest %v", command.Short(s.GC.LongestPause))
	}
	return b.String()
}

// share is a part of a time, 0 to 1.
func share(part, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return min(float64(part)/float64(whole), 1)
}

// printIntervals prints rates until the context ends, or count times if that is
// not 0.
func printIntervals(ctx context.Context, call *cli.Call, w *watched, last api.Stat, every time.Duration, count int) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	print := cli.Stream(call, rateColumns(call.Format))
	object := cli.Stream[interval](call, nil)
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		now, err := w.look(ctx, call)
		if err != nil {
			return err
		}
		i := between(last, now)
		last = now
		if call.Format == cli.JSON {
			err = object(i)
		}
		for _, t := range i.Things {
			if call.Format != cli.JSON && err == nil {
				err = print(t)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
