// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"fmt"
	"strconv"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
)

// kindRemote is the kind of volumes that connect makes.
const kindRemote = "remote"

func connect() *cli.Command {
	var (
		runtime      string
		dry, existOK bool
	)
	return &cli.Command{
		Name:  "connect",
		Usage: "make a volume of a namespace of another machine",
		Help: "It is a volume of kind remote, as leap-soc volume create makes it; leap-soc volume\n" +
			"describe remote lists the keys. With --dry-run, print the command by which a host\n" +
			"with nvme-cli connects, and do nothing.",
		Args: "URL [NAME] [KEY=VALUE...]",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "exist-ok", Usage: "a volume that is as asked for already is no error", Value: cli.Bool(&existOK)},
			{Name: "dry-run", Usage: "print nvme-cli's command and do nothing", Value: cli.Bool(&dry)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			addr, err := subsystemAddress(call.Arg(0))
			switch {
			case err != nil:
				return err
			case dry && len(call.Args) > 1:
				return fault.Errorf(fault.Usage, "", "", "--dry-run prints what is typed on another machine, where there is no %s", call.Arg(1))
			case dry:
				_, err = fmt.Fprintln(call.Stdout, nvmeConnect(addr))
				return err
			case len(call.Args) == 1:
				return fault.Errorf(fault.Usage, "", "", "missing NAME").
					Hint("NAME is what the volume will be called; --dry-run makes none")
			}
			words := append([]string{call.Arg(1), kindRemote, "addr=" + call.Arg(0)}, call.Args[2:]...)
			spec, err := command.ParseVolume(words)
			if err != nil {
				return err
			}
			spec.ExistOK = existOK
			return command.MakeVolume(ctx, call, runtime, spec)
		},
	}
}

// nvmeConnect is the command by which a host with nvme-cli connects, for sh.
func nvmeConnect(addr fabrics.Address) string {
	words := []string{"nvme", "connect", "--transport=" + addr.Transport.String(), "--traddr=" + addr.Host,
		"--trsvcid=" + strconv.Itoa(int(addr.Port)), "--nqn=" + addr.NQN}
	return cli.QuoteAll(words)
}

func disconnect() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "disconnect",
		Usage: "delete volumes that connect has made; what is on the other machine stays",
		Args:  "VOLUME...",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			if err := command.CheckNames("volume", call.Args...); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			return call.Each(ctx, call.Args, func(name string) error {
				var v api.Volume
				if err := client.Get(ctx, api.Path("volumes", name), &v); err != nil {
					return err
				}
				if v.Kind != kindRemote {
					return fault.Errorf(fault.Usage, "", "", "volume %s is of kind %s, not %s", name, v.Kind, kindRemote).
						Hint("`leap-soc volume delete " + name + "` deletes it")
				}
				return client.Delete(ctx, api.Path("volumes", name), api.VolumeDelete{}, nil)
			})
		},
	}
}
