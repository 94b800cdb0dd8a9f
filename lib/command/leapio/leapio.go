// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package leapio is the command leapio: all commands in one binary, chosen by
// the first word or by the name the binary is called by, and leapio serve,
// which runs a whole setup for the time of one command.
//
//	leapio.go   the multi-call tree
//	serve.go    the verb serve
//	captive.go  the private daemons behind it
package leapio

import (
	"path/filepath"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/pagemap"
	"github.com/leapio/leapio/lib/command/qmap"
	"github.com/leapio/leapio/lib/command/rdma"
	"github.com/leapio/leapio/lib/command/soc"
	"github.com/leapio/leapio/lib/command/wpt"
)

// commands are the trees, by the first word that chooses them.
func commands() map[string]*cli.Command {
	return map[string]*cli.Command{"wpt": wpt.Command(), "soc": soc.Command(), "qmap": qmap.Command(), "rdma": rdma.Command(), "pagemap": pagemap.Command()}
}

// Main runs the command that args[0], a name such as leap-soc, or else the first
// word chooses, and returns the exit code.
func Main(args []string) int {
	status := 0 // of the command that serve ran
	root := whole(&status)
	for _, tree := range commands() {
		if filepath.Base(args[0]) == tree.Name {
			root = tree
		}
	}
	if code := cli.Main(root, args); code != 0 {
		return code
	}
	return status
}

// whole is the tree of leapio. The status of the command that serve runs goes
// to *status.
func whole(status *int) *cli.Command {
	trees := commands()
	root := &cli.Command{
		Name:  "leapio",
		Usage: "virtual NVMe drives for virtual machines: all commands in one",
	}
	for _, word := range []string{"wpt", "soc", "qmap", "rdma", "pagemap"} {
		tree := trees[word]
		tree.Name = word
		root.Commands = append(root.Commands, tree)
	}
	root.Commands = append(root.Commands, serve(status))
	return root
}
