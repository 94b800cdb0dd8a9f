// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"fmt"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

var limitColumns = []cli.Column[api.Limit]{
	{Name: "LIMIT", Value: func(l api.Limit) any { return l.Name }},
	{Name: "VALUE", Value: func(l api.Limit) any { return inUnit(l, l.Value) }},
	{Name: "USED", Value: func(l api.Limit) any {
		if l.Used == nil {
			return nil
		}
		return inUnit(l, *l.Used)
	}},
	{Name: "PER", Value: func(l api.Limit) any { return l.Per }},
	{Name: "FROM", Value: func(l api.Limit) any { return l.From }},
	{Name: "DAEMON", Value: func(l api.Limit) any { return l.Daemon }},
}

// inUnit is a number in the unit of a limit.
func inUnit(l api.Limit, n int64) any {
	switch l.Unit {
	case api.UnitBytes:
		return units.Size(n)
	case api.UnitNanoseconds:
		return time.Duration(n)
	}
	return n
}

// showLimits prints the limits of the runtime and of leap-wpt.
func showLimits(ctx context.Context, call *cli.Call, client *api.Client) error {
	var broker, runtime []api.Limit
	if err := client.Get(ctx, api.Path("limits"), &runtime); err != nil {
		return err
	}
	wpt, err := command.Wpt(call)
	if err != nil {
		return err
	}
	var partial error
	if err := wpt.Get(ctx, api.Path("limits"), &broker); err != nil {
		partial = fault.New(fault.Partial, "", "", fmt.Errorf("those of leap-wpt are not in it: %w", err))
	}
	if err := cli.List(call, limitColumns, append(broker, runtime...)); err != nil {
		return err
	}
	return partial
}
