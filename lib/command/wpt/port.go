// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"fmt"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/wpt"
)

// portColumns are those of port list; port show has more at the end.
var portColumns = []cli.Column[api.Port]{
	{Name: "PORT", Value: func(p api.Port) any { return p.Name }},
	{Name: "STATE", Value: func(p api.Port) any { return p.State }},
	{Name: "SINCE", Value: func(p api.Port) any { return p.Since }},
	{Name: "SUBSYSTEM", Value: func(p api.Port) any { return p.Subsystem }},
	{Name: "RUNTIME", Value: func(p api.Port) any { return p.Runtime }},
	{Name: "QUEUES", Value: func(p api.Port) any { return p.Queues }},
	{Name: "CLIENT", Value: client},
}

var portDetails = append(portColumns[:len(portColumns):len(portColumns)], []cli.Column[api.Port]{
	{Name: "SOCKET", Value: func(p api.Port) any { return p.Socket }},
	{Name: "OWNER", Value: func(p api.Port) any { return p.Owner }},
	{Name: "DOORBELLS", Value: func(p api.Port) any { return p.Doorbells }},
	{Name: "POLL", Value: func(p api.Port) any { return p.Poll }},
	{Name: "EPOCH", Value: func(p api.Port) any { return p.Epoch }},
	{Name: "REGIONS", Value: func(p api.Port) any { return p.Regions }},
	{Name: "MEMORY", Value: func(p api.Port) any { return p.Memory }},
	{Name: "RESETS", Value: func(p api.Port) any { return p.ResetGen }},
	{Name: "TIME-LEFT", Value: timeLeft},
}...)

// client is the process at the other end of a port: its command and pid.
func client(p api.Port) any {
	if p.ClientPID == 0 {
		return nil
	}
	return fmt.Sprintf("%s/%d", p.ClientName, p.ClientPID)
}

// timeLeft is how long a guest that waits goes on doing so.
func timeLeft(p api.Port) any {
	if p.State != api.PortFrozen {
		return nil
	}
	return p.TimeLeft.Round(100 * time.Millisecond)
}

func portAdd() *cli.Command {
	var spec api.PortSpec
	return &cli.Command{
		Name:  "add",
		Usage: "make a port",
		Args:  "NAME",
		Flags: []cli.Flag{
			{Name: "owner", Arg: "USER[:GROUP]", Usage: "who may connect; without it, who runs the command", Value: cli.String(&spec.Owner)},
			{Name: "doorbells", Arg: "trap|map", Usage: "how doorbell writes reach the runtime; without it, trap", Value: cli.Enum(&spec.Doorbells, api.DoorbellsTrap, api.DoorbellsMap)},
			{Name: "exist-ok", Usage: "a port that is as asked for already is no error", Value: cli.Bool(&spec.ExistOK)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			spec.Name = call.Arg(0)
			if err := spec.Check(); err != nil {
				return err
			}
			client, err := command.Wpt(call)
			if err != nil {
				return err
			}
			var made api.Port
			if err := client.Post(ctx, api.Path("ports"), spec, &made); err != nil {
				return command.About(call, spec.Name, err)
			}
			return cli.Made(call, made.Name)
		},
	}
}

func portList() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the ports",
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Wpt(call)
			if err != nil {
				return err
			}
			var ports []api.Port
			if err := client.Get(ctx, api.Path("ports"), &ports); err != nil {
				return err
			}
			return cli.List(call, portColumns, ports)
		},
	}
}

func portShow() *cli.Command {
	return &cli.Command{
		Name:  "show",
		Usage: "show one port",
		Args:  "PORT",
		Run: func(ctx context.Context, call *cli.Call) error {
			ports, err := getPorts(ctx, call)
			if err != nil {
				return err
			}
			return cli.Show(call, portDetails, ports[0])
		},
	}
}

// getPorts asks for the ports that are the arguments of call.
func getPorts(ctx context.Context, call *cli.Call) ([]api.Port, error) {
	if err := command.CheckNames("port", call.Args...); err != nil {
		return nil, err
	}
	client, err := command.Wpt(call)
	if err != nil {
		return nil, err
	}
	ports := make([]api.Port, len(call.Args))
	for i, name := range call.Args {
		if err := client.Get(ctx, api.Path("ports", name), &ports[i]); err != nil {
			return nil, command.About(call, name, err)
		}
	}
	return ports, nil
}

func portRemove() *cli.Command {
	var remove wpt.PortRemove
	return &cli.Command{
		Name:  "remove",
		Usage: "remove ports",
		Args:  "PORT...",
		Flags: []cli.Flag{
			{Name: "force", Usage: "even those with a guest attached, which loses its drive", Value: cli.Bool(&remove.Force)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			if err := command.CheckNames("port", call.Args...); err != nil {
				return err
			}
			client, err := command.Wpt(call)
			if err != nil {
				return err
			}
			return call.Each(ctx, call.Args, func(name string) error {
				return client.Delete(ctx, api.Path("ports", name), remove, nil)
			})
		},
	}
}

func portQEMU() *cli.Command {
	var (
		mem     units.Size
		libvirt bool
	)
	return &cli.Command{
		Name:  "qemu",
		Usage: "print the arguments QEMU needs for ports",
		Help: "The arguments are one line for an unquoted $(...): the machine's memory as a\n" +
			"file that can be shared, once, and a device per port.",
		Args: "PORT...",
		Flags: []cli.Flag{
			{Name: "mem", Arg: "SIZE", Usage: "the memory of the machine, as in its -m; not needed for libvirt", Value: &mem},
			{Name: "libvirt", Usage: "print elements for a libvirt domain", Value: cli.Bool(&libvirt)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			if !libvirt && !call.IsSet("mem") {
				return fault.Errorf(fault.Usage, "", "", "missing option --mem").
					Hint("give the size of the machine's memory, the one of -m: --mem 2G")
			}
			ports, err := getPorts(ctx, call)
			if err != nil {
				return err
			}
			text, err := wpt.QEMUArgs(ports, mem, libvirt)
			if err != nil {
				return err
			}
			if call.Format == cli.JSON {
				return cli.Show(call, nil, qemuArguments{text})
			}
			_, err = fmt.Fprintln(call.Stdout, text)
			return err
		},
	}
}

// qemuArguments is the JSON of port qemu.
type qemuArguments struct {
	Arguments string `json:"arguments"`
}
