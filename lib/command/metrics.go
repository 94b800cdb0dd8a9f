// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"context"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

// Metrics is the verb that prints what the daemon that dial finds has for
// Prometheus. Other formats are refused; the command instead has what they want.
func Metrics(instead, what string, dial func(*cli.Call) (*api.Client, error), flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:  "metrics",
		Usage: "print what was counted for Prometheus",
		Flags: flags,
		Run: func(ctx context.Context, call *cli.Call) error {
			if call.Format != cli.Text {
				return fault.Errorf(fault.Usage, "", "", "metrics are in the text format of Prometheus, and not in %s", call.Format).
					Hint("`" + instead + " -o " + string(call.Format) + "` has " + what)
			}
			client, err := dial(call)
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
