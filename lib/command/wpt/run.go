// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/wpt"
)

func run() *cli.Command {
	var (
		check bool
		group string
	)
	ports := wpt.MaxPorts
	return &cli.Command{
		Name:   "run",
		Usage:  "be the broker, until TERM or INT",
		Daemon: true,
		Flags: []cli.Flag{
			{Name: "ports", Arg: "N", Usage: "how many ports there may be", Value: cli.Int(&ports, 1, wpt.MaxPorts)},
			{Name: "group", Arg: "GROUP", Usage: "whose members may look by the control API, and change nothing; without it, nobody's", Value: cli.String(&group)},
			{Name: "check", Usage: "say whether this program could be the broker, and do nothing", Value: cli.Bool(&check)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			log := call.Logger("wpt")
			config := wpt.Config{
				Paths: paths, Group: group, Version: cli.Version(), Logger: log, Ports: ports,
				Ready: func() {
					log.Info("ready", "socket", paths.WptSocket())
					command.NotifyReady(log)
				},
			}
			if !check {
				return serve(ctx, config)
			}
			program, err := wpt.Check(config)
			if err != nil {
				return err
			}
			return command.ShowProgram(call, program)
		},
	}
}

// serve is the broker. Its open files are with the service manager, too, in case
// it crashes.
func serve(ctx context.Context, config wpt.Config) (err error) {
	if config.Stored, err = command.StoredFiles(); err != nil {
		return err
	}
	store, err := command.NewFileStore()
	if err != nil {
		config.Logger.Warn("a crash will cost guests their drives", "err", err)
	}
	if store != nil {
		defer store.Close()
		config.Store = store
	}
	err = wpt.Run(ctx, config)
	if len(config.Stored) > 0 && fault.KindOf(err) == fault.Unsupported {
		// Nothing is lost, and guests wait for a program that knows what is kept:
		// the service manager need not try this one all the time.
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
		}
	}
	return err
}

// refusedPause is how long a program stays that cannot take over.
const refusedPause = time.Second

func upgrade() *cli.Command {
	return command.Upgrade("replace the running broker by another program; guests pause and keep their drives", command.Wpt,
		func(ctx context.Context, client *api.Client) (command.Running, error) {
			var s api.WptShow
			err := client.Get(ctx, api.Path("show"), &s)
			return command.Running{Version: s.Version, PID: s.PID, Since: s.Since, Pause: s.Pause, UpgradeError: s.UpgradeError}, err
		})
}
