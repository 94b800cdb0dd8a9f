// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// What top can be sorted by.
const (
	sortIOPS      = "iops"
	sortBandwidth = "bandwidth"
	sortName      = "name"
)

func top() *cli.Command {
	v := topView{watched: watched{by: api.ByVolume}, sort: sortIOPS, every: time.Second}
	return &cli.Command{
		Name:  "top",
		Usage: "show what is busiest, on the whole terminal",
		Help: "Keys: i, b and n sort by IOPS, bandwidth or name; v, s and u show volumes,\n" +
			"namespaces or queues; q ends.",
		Args: "[NAME...]",
		Flags: []cli.Flag{
			byFlag(&v.by),
			{Name: "sort", Arg: "iops|bandwidth|name", Usage: "what comes first; without it, the most IOPS", Value: cli.Enum(&v.sort, sortIOPS, sortBandwidth, sortName)},
			{Name: "interval", Arg: "DURATION", Usage: "how often to look; without it, 1s", Value: cli.Duration(&v.every)},
			command.RuntimeFlag(&v.runtime),
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			v.names = call.Args
			if v.every < shortestInterval {
				return fault.Errorf(fault.Usage, "", "", "--interval: %v is shorter than %v", v.every, shortestInterval)
			}
			const hint = "`leap-soc stat --interval 1s` prints lines"
			if call.Format != cli.Text {
				return fault.Errorf(fault.Usage, "", "", "it draws for people, not -o %s", call.Format).Hint(hint)
			}
			first, err := v.get(ctx, call)
			if err != nil {
				return err
			}
			screen, err := command.OpenScreen(call)
			if err != nil {
				return err
			}
			if screen == nil {
				return fault.Errorf(fault.Usage, "", "", "standard output is no terminal").Hint(hint)
			}
			defer screen.Close()
			return v.run(ctx, call, screen, first)
		},
	}
}

// topView is what top shows.
type topView struct {
	watched
	sort  string
	every time.Duration
	lost  error // why the picture is an old one
}

// run draws until the user has enough, also while no runtime answers. The first picture has what was counted
// since the runtime's start, so that there is one at once.
func (v *topView) run(ctx context.Context, call *cli.Call, screen *command.Screen, last api.Stat) error {
	shown := between(api.Stat{}, last)
	for {
		next := time.Now().Add(v.every)
		for time.Now().Before(next) {
			if err := v.draw(call, screen, shown); err != nil {
				return err
			}
			key, err := screen.Key(ctx, next)
			if err != nil || key == 'q' {
				return err
			}
			if key != 0 && v.press(key) {
				break // something else is wanted: look at once
			}
		}
		now, err := v.look(ctx, call)
		if v.lost = err; err != nil {
			continue // another runtime may come
		}
		if now.By != last.By {
			last = api.Stat{}
		}
		shown, last = between(last, now), now
	}
}

// press follows a key, and reports whether it asks for other things.
func (v *topView) press(key byte) bool {
	by := v.by
	switch key {
	case 'i':
		v.sort = sortIOPS
	case 'b':
		v.sort = sortBandwidth
	case 'n':
		v.sort = sortName
	case 'v':
		v.by = api.ByVolume
	case 's':
		v.by = api.ByNamespace
	case 'u':
		v.by = api.ByQueue
	}
	return v.by != by
}

// draw draws an interval.
func (v *topView) draw(call *cli.Call, screen *command.Screen, i interval) error {
	rows := slices.Clone(i.Things)
	slices.SortStableFunc(rows, func(a, b rates) int { return cmp.Compare(v.rank(b), v.rank(a)) })
	var table bytes.Buffer
	c := *call
	c.Stdout = &table
	if err := cli.List(&c, topColumns(cli.Text), rows); err != nil {
		return err
	}
	lines := []string{
		header(i.Stat, i.Interval),
		fmt.Sprintf("by %s, sorted by %s, over %v; keys: q i b n v s u", i.By, v.sort, i.Interval.Round(time.Millisecond)),
		"",
	}
	if v.lost != nil {
		lines[0] = "no answer: " + v.lost.Error()
	}
	const tableHead = 3
	return screen.Draw(append(lines, strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")...), tableHead)
}

// rank is what rows are sorted by, the highest first. They come by name.
func (v *topView) rank(r rates) uint64 {
	switch v.sort {
	case sortIOPS:
		return r.IOPS.total()
	case sortBandwidth:
		return r.Bandwidth.total()
	}
	return 0
}
