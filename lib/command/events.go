// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"context"
	"encoding/json"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

var eventColumns = []cli.Column[api.Event]{
	{Name: "TIME", Value: func(e api.Event) any { return e.Time }},
	{Name: "KIND", Value: func(e api.Event) any { return e.Kind }},
	{Name: "NAME", Value: func(e api.Event) any { return e.Name }},
	{Name: "STATE", Value: func(e api.Event) any { return e.State }},
	{Name: "DETAIL", Value: func(e api.Event) any { return e.Detail }},
}

// Events is the verb that prints what happens in the daemon that dial finds.
func Events(dial func(call *cli.Call) (*api.Client, error), flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print changes as they happen",
		Flags: flags,
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := dial(call)
			if err != nil {
				return err
			}
			print := cli.Stream(call, eventColumns)
			return client.Stream(ctx, api.Path("events"), func(item json.RawMessage) error {
				var e api.Event
				if err := json.Unmarshal(item, &e); err != nil {
					return fault.Errorf(fault.Peer, "", "", "bad event: %w", err)
				}
				if err := print(e); err != nil {
					return err
				}
				if e.Kind == api.KindEvents && e.State == api.StateDropped {
					return fault.Errorf(fault.Failure, "", "", "events were lost: %s", e.Detail).
						Hint("run it again, and look at the state of things meanwhile")
				}
				return nil
			})
		},
	}
}
