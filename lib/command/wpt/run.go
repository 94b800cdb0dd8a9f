// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"path/filepath"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/wpt"
)

func run() *cli.Command {
	var check bool
	return &cli.Command{
		Name:   "run",
		Usage:  "be the broker, until TERM or INT",
		Daemon: true,
		Flags: []cli.Flag{
			{Name: "check", Usage: "say whether this program could be the broker, and do nothing", Value: cli.Bool(&check)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			log := call.Logger("wpt")
			config := wpt.Config{
				Paths: paths, Version: cli.Version(), Logger: log,
				Ready: func() { log.Info("ready", "socket", paths.WptSocket()) },
			}
			if !check {
				return wpt.Run(ctx, config)
			}
			c, err := wpt.Check(config)
			if err != nil {
				return err
			}
			return cli.Show(call, checkColumns, c)
		},
	}
}

var checkColumns = []cli.Column[api.WptCheck]{
	{Name: "DAEMON", Value: func(c api.WptCheck) any { return c.Daemon }},
	{Name: "VERSION", Value: func(c api.WptCheck) any { return c.Version }},
	{Name: "HANDOVER", Value: func(c api.WptCheck) any { return c.Handover }},
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

// takeoverLimit is how long the next program may take until it answers.
const takeoverLimit = 30 * time.Second

func upgrade() *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: "replace the running broker by another program; guests pause and keep their drives",
		Args:  "BINARY",
		Run: func(ctx context.Context, call *cli.Call) error {
			path, err := filepath.Abs(call.Arg(0))
			if err != nil {
				return err
			}
			client, err := command.Wpt(call)
			if err != nil {
				return err
			}
			var before, after api.WptShow
			if err := client.Get(ctx, api.Path("show"), &before); err != nil {
				return err
			}
			if err := client.Post(ctx, api.Path("upgrade"), api.WptUpgrade{Binary: path}, nil); err != nil {
				return command.About(call, path, err)
			}
			ctx, cancel := context.WithTimeout(ctx, takeoverLimit)
			defer cancel()
			for {
				// While one program makes room for the other, calls fail.
				err := client.Get(ctx, api.Path("show"), &after)
				switch {
				case err == nil && after.UpgradeError != "":
					return fault.Errorf(fault.Failure, "upgrade", path, "%s goes on: %s", after.Version, after.UpgradeError)
				case err == nil && !after.Since.Equal(before.Since):
					return cli.Show(call, upgradedColumns, upgraded{Version: after.Version, From: before.Version, PID: after.PID, Pause: after.Pause})
				}
				select {
				case <-ctx.Done():
					return fault.Errorf(fault.Timeout, "upgrade", path, "no answer from the broker: %w", context.Cause(ctx))
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
	}
}
