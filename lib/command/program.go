// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

var programColumns = []cli.Column[api.Program]{
	{Name: "DAEMON", Value: func(p api.Program) any { return p.Daemon }},
	{Name: "VERSION", Value: func(p api.Program) any { return p.Version }},
	{Name: "LAYOUTS", Value: func(p api.Program) any {
		var words []string
		for _, name := range slices.Sorted(maps.Keys(p.Layouts)) {
			words = append(words, fmt.Sprintf("%s=%d", name, p.Layouts[name]))
		}
		return words
	}},
}

// ShowProgram prints what run --check has found.
func ShowProgram(call *cli.Call, p api.Program) error { return cli.Show(call, programColumns, p) }

// Running is a program that is a daemon now.
type Running struct {
	Version      string
	PID          int
	Since        time.Time
	Pause        time.Duration // for guests, when it took over
	UpgradeError string
}

// upgraded is how an upgrade went.
type upgraded struct {
	Version string        `json:"version"`
	From    string        `json:"from"`
	PID     int           `json:"pid"`
	Pause   time.Duration `json:"pause"`
}

var upgradedColumns = []cli.Column[upgraded]{
	{Name: "VERSION", Value: func(u upgraded) any { return u.Version }},
	{Name: "FROM", Value: func(u upgraded) any { return u.From }},
	{Name: "PID", Value: func(u upgraded) any { return u.PID }},
	{Name: "PAUSE", Value: func(u upgraded) any { return u.Pause }},
}

const (
	// takeoverLimit is how long the next program may take until it answers.
	takeoverLimit = 90 * time.Second
	// pauseLimit is how long it may then take to know the pause.
	pauseLimit = 5 * time.Second
)

// Upgrade is the verb upgrade of a daemon: dial finds it, and ask asks it who it
// is.
func Upgrade(usage string, dial func(*cli.Call) (*api.Client, error), ask func(context.Context, *api.Client) (Running, error), flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: usage,
		Args:  "BINARY",
		Flags: flags,
		Run: func(ctx context.Context, call *cli.Call) error {
			path, err := filepath.Abs(call.Arg(0))
			if err != nil {
				return err
			}
			client, err := dial(call)
			if err != nil {
				return err
			}
			before, err := ask(ctx, client)
			if err != nil {
				return err
			}
			if err := client.Post(ctx, api.Path("upgrade"), api.Upgrade{Binary: path}, nil); err != nil {
				return About(call, path, err)
			}
			after, err := successor(ctx, client, ask, before)
			if err != nil {
				return fault.New(0, "upgrade", path, err)
			}
			return cli.Show(call, upgradedColumns, upgraded{Version: after.Version, From: before.Version, PID: after.PID, Pause: after.Pause})
		},
	}
}

// successor waits for the program that has taken the place of another.
func successor(ctx context.Context, client *api.Client, ask func(context.Context, *api.Client) (Running, error), before Running) (Running, error) {
	ctx, cancel := context.WithTimeout(ctx, takeoverLimit)
	defer cancel()
	var seen time.Time
	for {
		// While one makes room for the other, calls fail.
		after, err := ask(ctx, client)
		switch {
		case err != nil || after.Since.Equal(before.Since):
		case after.UpgradeError != "":
			return after, fault.Errorf(fault.Failure, "", "", "%s goes on: %s", after.Version, after.UpgradeError)
		case after.Pause > 0, !seen.IsZero() && time.Since(seen) > pauseLimit:
			return after, nil
		case seen.IsZero():
			seen = time.Now()
		}
		select {
		case <-ctx.Done():
			return after, fault.Errorf(fault.Timeout, "", "", "nobody answers: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
