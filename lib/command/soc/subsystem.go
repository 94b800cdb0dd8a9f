// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"fmt"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// subsystemColumns are those of subsystem list; subsystem show has more at the
// end.
var subsystemColumns = []cli.Column[api.Subsystem]{
	{Name: "SUBSYSTEM", Value: func(s api.Subsystem) any { return s.Name }},
	{Name: "NQN", Value: func(s api.Subsystem) any { return s.NQN }},
	{Name: "IMPLICIT", Value: func(s api.Subsystem) any { return s.Implicit }},
	{Name: "NAMESPACES", Value: namespaceWords},
	{Name: "HOSTS", Value: hostWords},
	{Name: "PORTS", Value: func(s api.Subsystem) any { return []string(s.Ports) }},
}

var subsystemDetails = append(subsystemColumns[:len(subsystemColumns):len(subsystemColumns)], []cli.Column[api.Subsystem]{
	{Name: "SERIAL", Value: func(s api.Subsystem) any { return s.Serial }},
	{Name: "UUID", Value: func(s api.Subsystem) any { return s.UUID }},
}...)

// namespaceWords are the namespaces of a subsystem, each NSID=VOLUME.
func namespaceWords(s api.Subsystem) any {
	var words []string
	for _, ns := range s.Namespaces {
		words = append(words, fmt.Sprintf("%d=%s", ns.NSID, ns.Volume))
	}
	return words
}

// hosts are who may use a subsystem: api.HostAny and NQNs.
func hosts(s api.Subsystem) []string {
	var list []string
	if s.AllowAny {
		list = append(list, api.HostAny)
	}
	return append(list, s.Hosts...)
}

func hostWords(s api.Subsystem) any { return hosts(s) }

// getSubsystem asks for the subsystem of this name or NQN.
func getSubsystem(ctx context.Context, call *cli.Call, runtime, name string) (*api.Client, api.Subsystem, error) {
	var s api.Subsystem
	if err := api.CheckSubsystem(name); err != nil {
		return nil, s, err
	}
	client, err := command.Runtime(call, runtime)
	if err != nil {
		return nil, s, err
	}
	return client, s, command.About(call, name, client.Get(ctx, api.Path("subsystems", name), &s))
}

func subsystemCreate() *cli.Command {
	var (
		runtime string
		spec    api.SubsystemSpec
	)
	return &cli.Command{
		Name:  "create",
		Usage: "make a subsystem",
		Args:  "NAME",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "nqn", Arg: "NQN", Usage: "its NQN; without it, one made of a new UUID", Value: cli.String(&spec.NQN)},
			{Name: "uuid", Arg: "UUID", Usage: "its UUID, of which its serial number is made; without it, a new one", Value: cli.String(&spec.UUID)},
			{Name: "implicit", Usage: "it goes with the last port or listener that shows it", Value: cli.Bool(&spec.Implicit)},
			{Name: "allow-any", Usage: "let every host use it, as host allow NAME any does", Value: cli.Bool(&spec.AllowAny)},
			{Name: "exist-ok", Usage: "a subsystem that is as asked for already is no error", Value: cli.Bool(&spec.ExistOK)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			spec.Name = call.Arg(0)
			if err := spec.Check(); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var made api.Subsystem
			if err := client.Post(ctx, api.Path("subsystems"), spec, &made); err != nil {
				return command.About(call, spec.Name, err)
			}
			return cli.Made(call, made.Name)
		},
	}
}

func subsystemList() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "list",
		Usage: "list the subsystems",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var subsystems []api.Subsystem
			if err := client.Get(ctx, api.Path("subsystems"), &subsystems); err != nil {
				return err
			}
			return cli.List(call, subsystemColumns, subsystems)
		},
	}
}

func subsystemShow() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "show",
		Usage: "show one subsystem",
		Args:  "SUBSYSTEM",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			_, s, err := getSubsystem(ctx, call, runtime, call.Arg(0))
			if err != nil {
				return err
			}
			return cli.Show(call, subsystemDetails, s)
		},
	}
}

func subsystemDelete() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "delete",
		Usage: "delete subsystems; their volumes stay",
		Args:  "SUBSYSTEM...",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			for _, name := range call.Args {
				if err := api.CheckSubsystem(name); err != nil {
					return err
				}
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			return call.Each(ctx, call.Args, func(name string) error {
				return client.Delete(ctx, api.Path("subsystems", name), nil, nil)
			})
		},
	}
}

// host is a host that may use a subsystem.
type host struct {
	Subsystem string `json:"subsystem"`
	Host      string `json:"host"` // an NQN or api.HostAny
}

var hostColumns = []cli.Column[host]{
	{Name: "SUBSYSTEM", Value: func(h host) any { return h.Subsystem }},
	{Name: "HOST", Value: func(h host) any { return h.Host }},
}

func hostAllow() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "allow",
		Usage: "let a host, or any, use a subsystem",
		Args:  "SUBSYSTEM NQN|any",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, path, spec, err := hostCall(call, runtime)
			if err != nil {
				return err
			}
			return command.About(call, call.Arg(0), client.Post(ctx, path, spec, nil))
		},
	}
}

func hostDeny() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "deny",
		Usage: "take a host, or any, off the list of a subsystem",
		Args:  "SUBSYSTEM NQN|any",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, _, spec, err := hostCall(call, runtime)
			if err != nil {
				return err
			}
			path := api.Path("subsystems", call.Arg(0), "hosts", spec.Host)
			return command.About(call, call.Arg(0), client.Delete(ctx, path, nil, nil))
		},
	}
}

// hostCall reads the words of host allow and host deny.
func hostCall(call *cli.Call, runtime string) (client *api.Client, path string, spec api.HostSpec, err error) {
	spec.Host = call.Arg(1)
	if err = api.CheckSubsystem(call.Arg(0)); err != nil {
		return nil, "", spec, err
	}
	if err = spec.Check(); err != nil {
		return nil, "", spec, fault.New(0, "", "", err, "it is the host's NQN, as in its /etc/nvme/hostnqn, or the word any")
	}
	client, err = command.Runtime(call, runtime)
	return client, api.Path("subsystems", call.Arg(0), "hosts"), spec, err
}

func hostList() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "list",
		Usage: "list the hosts that may use a subsystem",
		Args:  "SUBSYSTEM",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			_, s, err := getSubsystem(ctx, call, runtime, call.Arg(0))
			if err != nil {
				return err
			}
			var rows []host
			for _, h := range hosts(s) {
				rows = append(rows, host{s.Name, h})
			}
			return cli.List(call, hostColumns, rows)
		},
	}
}
