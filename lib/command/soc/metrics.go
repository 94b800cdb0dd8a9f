// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

func metrics() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "metrics",
		Usage: "print what was counted for Prometheus",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			if call.Format != cli.Text {
				return fault.Errorf(fault.Usage, "", "", "metrics are in the text format of Prometheus, and not in %s", call.Format).
					Hint("`leap-soc stat -o " + string(call.Format) + "` has the counters")
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			page, err := client.GetText(ctx, "/metrics")
			if err != nil {
				return err
			}
			_, err = call.Stdout.Write(page)
			return err
		},
	}
}
