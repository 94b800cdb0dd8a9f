// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package wpt is the command leap-wpt: the broker, and the verbs for its ports.
package wpt

import (
	"context"
	"fmt"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
)

// Command is the tree of leap-wpt.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "leap-wpt",
		Usage: "the broker between virtual machines and storage runtimes",
		Commands: []*cli.Command{
			run(), upgrade(),
			{Name: "port", Usage: "vfio-user entries, one per virtual machine and drive", Commands: []*cli.Command{
				portAdd(), portList(), portShow(), portRemove(), portQEMU(),
			}},
			show(),
			command.Metrics("leap-wpt show", "what is there", command.Wpt),
			command.Events(command.Wpt),
		},
	}
}

var showColumns = []cli.Column[api.WptShow]{
	{Name: "VERSION", Value: func(s api.WptShow) any { return s.Version }},
	{Name: "PID", Value: func(s api.WptShow) any { return s.PID }},
	{Name: "SINCE", Value: func(s api.WptShow) any { return s.Since }},
	{Name: "PORTS", Value: func(s api.WptShow) any { return names(s.Ports, func(p api.Port) string { return p.Name }) }},
	{Name: "RUNTIMES", Value: func(s api.WptShow) any { return names(s.Runtimes, func(r api.Runtime) string { return r.Name }) }},
	{Name: "KEPT", Value: func(s api.WptShow) any { return names(s.Kept, func(k api.Kept) string { return k.Name }) }},
}

var runtimeColumns = []cli.Column[api.Runtime]{
	{Name: "RUNTIME", Value: func(r api.Runtime) any { return r.Name }},
	{Name: "PID", Value: func(r api.Runtime) any { return r.PID }},
	{Name: "EPOCH", Value: func(r api.Runtime) any { return r.Epoch }},
	{Name: "SINCE", Value: func(r api.Runtime) any { return r.Since }},
	{Name: "PORTS", Value: func(r api.Runtime) any { return []string(r.Ports) }},
}

var keptColumns = []cli.Column[api.Kept]{
	{Name: "KEPT", Value: func(k api.Kept) any { return k.Name }},
	{Name: "RUNTIME", Value: func(k api.Kept) any { return k.Runtime }},
	{Name: "SIZE", Value: func(k api.Kept) any { return k.Size }},
}

// names gives the names of things.
func names[T any](list []T, name func(T) string) []string {
	var all []string
	for _, t := range list {
		all = append(all, name(t))
	}
	return all
}

func show() *cli.Command {
	return &cli.Command{
		Name:  "show",
		Usage: "show all that the broker knows",
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Wpt(call)
			if err != nil {
				return err
			}
			var s api.WptShow
			if err := client.Get(ctx, api.Path("show"), &s); err != nil {
				return err
			}
			if err := cli.Show(call, showColumns, s); err != nil || call.Format != cli.Text {
				return err
			}
			if err := section(call, portColumns, s.Ports); err != nil {
				return err
			}
			if err := section(call, runtimeColumns, s.Runtimes); err != nil {
				return err
			}
			return section(call, keptColumns, s.Kept)
		},
	}
}

// section prints a table below others, if it has rows.
func section[T any](call *cli.Call, columns []cli.Column[T], rows []T) error {
	if len(rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(call.Stdout); err != nil {
		return err
	}
	return cli.List(call, columns, rows)
}
