// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// shortestInterval keeps those who watch from being the load.
const shortestInterval = 10 * time.Millisecond

// States of a queue pair between two looks. A port has its own, or is gone.
const (
	queueNew    = "new"
	queueServed = "served"
	stateGone   = "gone"
)

// sight is a line of watch: a port whose state has changed, or a queue pair at
// a moment.
type sight struct {
	Time  time.Time      `json:"time"`
	Port  string         `json:"port"`
	State string         `json:"state"`
	Queue *api.QueuePair `json:"queue"` // nil: it is about the port
	Rate  *uint64        `json:"rate"`  // completions per second since the look before, if there was one
}

// of makes the column of a queue pair, empty for a port.
func of(name string, f func(q *api.QueuePair) any) cli.Column[sight] {
	return cli.Column[sight]{Name: name, Value: func(s sight) any {
		if s.Queue == nil {
			return nil
		}
		return f(s.Queue)
	}}
}

var watchColumns = []cli.Column[sight]{
	{Name: "TIME", Value: func(s sight) any { return s.Time }},
	{Name: "PORT", Value: func(s sight) any { return s.Port }},
	{Name: "STATE", Value: func(s sight) any { return s.State }},
	of("QID", func(q *api.QueuePair) any { return q.QID }),
	of("CQID", func(q *api.QueuePair) any { return q.CQID }),
	of("SQ-HEAD", func(q *api.QueuePair) any { return q.SQHead }),
	of("SQ-TAIL", func(q *api.QueuePair) any { return q.SQTail }),
	of("CQ-HEAD", func(q *api.QueuePair) any { return q.CQHead }),
	of("CQ-TAIL", func(q *api.QueuePair) any { return q.CQTail }),
	of("BUSY", func(q *api.QueuePair) any { return q.Outstanding }),
	of("COMPLETED", func(q *api.QueuePair) any { return q.Completed }),
	{Name: "RATE", Value: func(s sight) any { return s.Rate }},
	of("VECTOR", func(q *api.QueuePair) any { return vector(*q) }),
	of("SHADOW", func(q *api.QueuePair) any { return q.Shadow }),
	of("POLLER", func(q *api.QueuePair) any { return q.Poller }),
}

func watch() *cli.Command {
	every := time.Second
	return &cli.Command{
		Name:  "watch",
		Usage: "follow ports and their queue pairs",
		Help: "On a terminal it shows them on all of it, and q ends. Elsewhere, and with\n" +
			"-o json or tsv, it prints lines.",
		Args: "[PORT]",
		Flags: []cli.Flag{
			{Name: "interval", Arg: "DURATION", Usage: "how often to look; without it, 1s", Value: cli.Duration(&every)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			if every < shortestInterval {
				return fault.Errorf(fault.Usage, "", "", "--interval: %v is shorter than %v", every, shortestInterval)
			}
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			w := &watcher{paths: paths, port: call.Arg(0), every: every}
			if w.port != "" {
				if _, err := find(ctx, paths, w.port); err != nil {
					return command.About(call, w.port, err)
				}
			}
			if call.Format == cli.Text {
				screen, err := command.OpenScreen(call)
				if err != nil {
					return err
				}
				if screen != nil {
					defer screen.Close()
					return w.show(ctx, call, screen)
				}
			}
			return w.print(ctx, cli.Stream(call, watchColumns))
		},
	}
}

// watcher looks at ports again and again.
type watcher struct {
	paths api.Paths
	port  string // the only one; empty: all
	every time.Duration

	when   time.Time
	states map[string]string // of ports, at the last look
	queues map[string]map[uint16]api.QueuePair
}

// print prints what each look finds, until the context ends.
func (w *watcher) print(ctx context.Context, line func(sight) error) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		all, err := w.look(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			if err := line(s); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// show draws what there is, until the user has enough.
func (w *watcher) show(ctx context.Context, call *cli.Call, screen *command.Screen) error {
	for {
		next := time.Now().Add(w.every)
		all, err := w.look(ctx)
		if err != nil {
			return err
		}
		var ports []string
		for name, state := range w.states {
			ports = append(ports, name+" "+state)
		}
		slices.Sort(ports)
		var table bytes.Buffer
		c := *call
		c.Stdout = &table
		pairs := slices.DeleteFunc(all, func(s sight) bool { return s.Queue == nil })
		if err := cli.List(&c, watchColumns[1:], pairs); err != nil {
			return err
		}
		lines := []string{fmt.Sprintf("ports: %s; key: q", strings.Join(ports, ", ")), ""}
		lines = append(lines, strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")...)
		if err := screen.Draw(lines, 2); err != nil {
			return err
		}
		for time.Now().Before(next) {
			if key, err := screen.Key(ctx, next); err != nil || key == 'q' {
				return err
			}
		}
	}
}

// look looks once. A runtime that does not answer serves no queue pairs.
func (w *watcher) look(ctx context.Context) ([]sight, error) {
	mappings, err := findAll(ctx, w.paths)
	if mappings == nil {
		return nil, err
	}
	return w.compare(time.Now(), mappings), nil
}

// compare returns the changes of ports since the last look, and every queue
// pair; those that are gone once more.
func (w *watcher) compare(now time.Time, mappings []mapping) []sight {
	states, queues := make(map[string]string), make(map[string]map[uint16]api.QueuePair)
	var all []sight
	for _, m := range mappings {
		if w.port != "" && m.Port != w.port {
			continue
		}
		states[m.Port] = m.State
		if w.states[m.Port] != m.State {
			all = append(all, sight{Time: now, Port: m.Port, State: m.State})
		}
		queues[m.Port] = make(map[uint16]api.QueuePair)
		for _, q := range m.Queues {
			queues[m.Port][q.QID] = q
			all = append(all, w.sight(now, q))
		}
	}
	all = append(all, w.gone(now, states, queues)...)
	w.when, w.states, w.queues = now, states, queues
	return all
}

// sight is a queue pair as it looks now, beside how it looked before.
func (w *watcher) sight(now time.Time, q api.QueuePair) sight {
	s := sight{Time: now, Port: q.Port, State: queueServed, Queue: &q}
	before, ok := w.queues[q.Port][q.QID]
	switch {
	case ok && before.Since.Equal(q.Since):
		rate := uint64(math.Round(float64(q.Completed-before.Completed) / now.Sub(w.when).Seconds()))
		s.Rate = &rate
	case w.queues != nil:
		s.State = queueNew
	}
	return s
}

// gone is what was there at the last look and is no longer.
func (w *watcher) gone(now time.Time, states map[string]string, queues map[string]map[uint16]api.QueuePair) []sight {
	var all []sight
	for port, before := range w.queues {
		for qid, q := range before {
			if _, ok := queues[port][qid]; !ok {
				all = append(all, sight{Time: now, Port: port, State: stateGone, Queue: &q})
			}
		}
	}
	slices.SortFunc(all, func(a, b sight) int {
		if c := strings.Compare(a.Port, b.Port); c != 0 {
			return c
		}
		return int(a.Queue.QID) - int(b.Queue.QID)
	})
	for port := range w.states {
		if _, ok := states[port]; !ok {
			all = append(all, sight{Time: now, Port: port, State: stateGone})
		}
	}
	return all
}
