// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package soc is the command leap-soc: the storage runtime, and the verbs for
// its volumes, subsystems, namespaces and hosts.
package soc

import (
	"context"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// Command is the tree of leap-soc.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "leap-soc",
		Usage: "the storage runtime: volumes and the subsystems that show them",
		Commands: []*cli.Command{
			run(), upgrade(),
			{Name: "volume", Usage: "addressable blocks", Commands: []*cli.Command{
				volumeCreate(), volumeList(), volumeShow(), volumeResize(), volumeDelete(), volumeDescribe(),
			}},
			{Name: "subsystem", Usage: "NVM subsystems", Commands: []*cli.Command{
				subsystemCreate(), subsystemList(), subsystemShow(), subsystemDelete(),
			}},
			{Name: "namespace", Usage: "volumes shown in a subsystem", Commands: []*cli.Command{
				namespaceAdd(), namespaceList(), namespaceRemove(),
			}},
			{Name: "host", Usage: "hosts that may use a subsystem", Commands: []*cli.Command{
				hostAllow(), hostDeny(), hostList(),
			}},
			show(),
			stat(),
			top(),
			metrics(),
			examine(),
			events(),
			wait(),
			export(),
			apply(),
		},
	}
}

var showColumns = []cli.Column[api.RuntimeInfo]{
	{Name: "RUNTIME", Value: func(r api.RuntimeInfo) any { return r.Name }},
	{Name: "PID", Value: func(r api.RuntimeInfo) any { return r.PID }},
	{Name: "VERSION", Value: func(r api.RuntimeInfo) any { return r.Version }},
	{Name: "SINCE", Value: func(r api.RuntimeInfo) any { return r.Since }},
	{Name: "EPOCH", Value: func(r api.RuntimeInfo) any { return r.Epoch }},
	{Name: "POLL", Value: func(r api.RuntimeInfo) any { return r.Poll }},
	{Name: "IO-URING", Value: func(r api.RuntimeInfo) any { return r.IOUring }},
	{Name: "POLLERS", Value: func(r api.RuntimeInfo) any { return len(r.Pollers) }},
	{Name: "QUEUES", Value: queues},
	{Name: "SETUP", Value: func(r api.RuntimeInfo) any { return r.Setup }},
}

// queues is how many queue pairs all pollers serve.
func queues(r api.RuntimeInfo) any {
	n := 0
	for _, p := range r.Pollers {
		n += p.Queues
	}
	return n
}

func show() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "show",
		Usage: "show the runtime, or the limits of both daemons",
		Args:  "[limits]",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			switch call.Arg(0) {
			case "limits":
				return showLimits(ctx, call, client)
			case "":
			default:
				return fault.Errorf(fault.Usage, "", call.Arg(0), "nothing to show").Hint("without it the runtime is shown, and with limits the limits")
			}
			var info api.RuntimeInfo
			if err := client.Get(ctx, api.Path("runtime"), &info); err != nil {
				return err
			}
			return cli.Show(call, showColumns, info)
		},
	}
}

func metrics() *cli.Command {
	var runtime string
	dial := func(call *cli.Call) (*api.Client, error) { return command.Runtime(call, runtime) }
	return command.Metrics("leap-soc stat", "the counters", dial, command.RuntimeFlag(&runtime))
}

func events() *cli.Command {
	var runtime string
	dial := func(call *cli.Call) (*api.Client, error) { return command.Runtime(call, runtime) }
	return command.Events(dial, command.RuntimeFlag(&runtime))
}
