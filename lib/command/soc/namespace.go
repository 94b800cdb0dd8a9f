// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"strconv"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fault"
)

var namespaceColumns = []cli.Column[api.Namespace]{
	{Name: "SUBSYSTEM", Value: func(n api.Namespace) any { return n.Subsystem }},
	{Name: "NSID", Value: func(n api.Namespace) any { return n.NSID }},
	{Name: "VOLUME", Value: func(n api.Namespace) any { return n.Volume }},
	{Name: "SIZE", Value: func(n api.Namespace) any { return n.Size }},
	{Name: "BLOCK", Value: func(n api.Namespace) any { return int64(n.Block) }},
	{Name: "SHARED", Value: func(n api.Namespace) any { return n.Shared }},
	{Name: "UUID", Value: func(n api.Namespace) any { return n.UUID }},
	{Name: "READ-ONLY", Value: func(n api.Namespace) any { return n.ReadOnly || n.WriteProtected }},
}

func namespaceAdd() *cli.Command {
	var (
		runtime string
		spec    api.NamespaceSpec
	)
	return &cli.Command{
		Name:  "add",
		Usage: "show a volume in a subsystem; prints the NSID",
		Args:  "SUBSYSTEM VOLUME",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "nsid", Arg: "N", Usage: "the namespace identifier; without it, the lowest that is free", Value: cli.Int(&spec.NSID, 1, controller.MaxNamespaces)},
			{Name: "shared", Usage: "the volume may be in use elsewhere, too", Value: cli.Bool(&spec.Shared)},
			{Name: "read-only", Usage: "hosts cannot write", Value: cli.Bool(&spec.ReadOnly)},
			{Name: "exist-ok", Usage: "a namespace that is as asked for already is no error", Value: cli.Bool(&spec.ExistOK)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := api.CheckSubsystem(name); err != nil {
				return err
			}
			spec.Volume = call.Arg(1)
			if err := spec.Check(); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var made api.Namespace
			if err := client.Post(ctx, api.Path("subsystems", name, "namespaces"), spec, &made); err != nil {
				return command.About(call, name, err)
			}
			return cli.Made(call, strconv.FormatUint(uint64(made.NSID), 10))
		},
	}
}

func namespaceList() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "list",
		Usage: "list the namespaces of a subsystem, or of all",
		Args:  "[SUBSYSTEM]",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			if name := call.Arg(0); name != "" {
				_, s, err := getSubsystem(ctx, call, runtime, name)
				if err != nil {
					return err
				}
				return cli.List(call, namespaceColumns, s.Namespaces)
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var subsystems []api.Subsystem
			if err := client.Get(ctx, api.Path("subsystems"), &subsystems); err != nil {
				return err
			}
			var all []api.Namespace
			for _, s := range subsystems {
				all = append(all, s.Namespaces...)
			}
			return cli.List(call, namespaceColumns, all)
		},
	}
}

func namespaceRemove() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "remove",
		Usage: "take namespaces out of a subsystem; their volumes stay",
		Args:  "SUBSYSTEM NSID...",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := api.CheckSubsystem(name); err != nil {
				return err
			}
			for _, nsid := range call.Args[1:] {
				if n, err := strconv.ParseUint(nsid, 10, 32); err != nil || n == 0 || n == 1<<32-1 {
					return fault.Errorf(fault.Usage, "", "", "bad nsid %q: it is not a number of 1 to %d", nsid, uint32(1<<32-2))
				}
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			return call.Each(ctx, call.Args[1:], func(nsid string) error {
				err := client.Delete(ctx, api.Path("subsystems", name, "namespaces", nsid), nil, nil)
				return command.About(call, name+"/"+nsid, err)
			})
		},
	}
}
