// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli_test

import (
	"context"
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// disk is what the example's verbs show. It would be a type of lib/api.
type disk struct {
	Name string     `json:"name"`
	Size units.Size `json:"size"`
}

var diskColumns = []cli.Column[disk]{
	{Name: "NAME", Value: func(d disk) any { return d.Name }},
	{Name: "SIZE", Value: func(d disk) any { return d.Size }},
}

// command makes the tree. A function per verb keeps a verb's flags, which are
// its local variables, beside the code that uses them.
func command() *cli.Command {
	return &cli.Command{
		Name:  "leap-example",
		Usage: "make and list disks",
		Commands: []*cli.Command{
			{Name: "disk", Usage: "disks", Commands: []*cli.Command{diskCreate(), diskList()}},
		},
	}
}

func diskCreate() *cli.Command {
	size := 10 * units.GiB
	var tags []string
	return &cli.Command{
		Name:  "create",
		Usage: "make a disk",
		Args:  "NAME",
		Flags: []cli.Flag{
			{Name: "size", Arg: "SIZE", Usage: "its size", Value: &size},
			{Name: "tag", Arg: "KEY=VALUE", Usage: "remember a tag with it", Value: cli.Strings(&tags)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := units.CheckName("disk", name); err != nil {
				return err
			}
			if size == 0 {
				return fault.Errorf(fault.Usage, call.Op, name, "a disk of no size").Hint("--size 1G makes a small one")
			}
			return cli.Made(call, name)
		},
	}
}

func diskList() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list disks",
		Run: func(ctx context.Context, call *cli.Call) error {
			return cli.List(call, diskColumns, []disk{{"d1", 10 * units.GiB}, {"scratch", 4096}})
		},
	}
}

// A program's main would be os.Exit(cli.Main(command(), os.Args)).
func Example() {
	run := func(args ...string) {
		stdio := cli.IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stdout, Getenv: func(string) string { return "" }}
		cli.Run(context.Background(), command(), append([]string{"leap-example"}, args...), stdio)
	}
	run("disk", "create", "d1", "--size=1G")
	run("disk", "create", "--size", "0", "d1")
	run("disk", "ls")
	run("disk", "list", "-o", "tsv")
	run("-ojson", "disk", "create", "D1")
	// Output:
	// d1
	// leap-example: disk create d1: a disk of no size
	// hint: --size 1G makes a small one
	// NAME     SIZE
	// d1       10 GiB
	// scratch  4.0 KiB
	// d1	10737418240
	// scratch	4096
	// {"error":{"op":"disk create","name":"","kind":"usage","code":64,"message":"bad disk name \"D1\": it does not begin with a-z or 0-9","hints":[]}}
}
