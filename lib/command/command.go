// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package command is what the commands share beyond lib/cli: where their
// daemons are, how an error names its thing, how volumes are made, the verb
// events, and the terminal as a whole or one line of it.
//
// Each command has a folder below this one. Its Command function makes the tree
// of verbs, and each verb is a function that makes one node, with the verb's
// flags as local variables beside the code that uses them. A verb reads its
// words, makes calls of the control API (lib/api), and prints what they answer
// through a list of columns; it decides nothing that a daemon can decide. The
// two verbs run hand over to the daemons' bodies, lib/wpt and lib/soc.
//
//	wpt      leap-wpt: ports; the broker
//	soc      leap-soc: volumes, subsystems, namespaces, hosts; what was counted;
//	         the runtime; whole setups, which run verbs of the others
//	qmap     leap-qmap: which port shows what; queue pairs
//	rdma     leap-rdma: listeners for hosts; looking at those of others, and measuring them
//	pagemap  leap-pagemap: what addresses are
//	leapio   leapio: all of them in one binary, and leapio serve
//
// The scripts in testdata/script run the commands with real daemons, and so do
// the tests of the EXAMPLES in man/.
package command

import (
	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// Paths are the files of the daemons that a call is about.
func Paths(call *cli.Call) (api.Paths, error) { return api.NewPaths(call.RunDir, call.StateDir) }

// Wpt is a client of the call's leap-wpt.
func Wpt(call *cli.Call) (*api.Client, error) {
	paths, err := Paths(call)
	if err != nil {
		return nil, err
	}
	return paths.Wpt(), nil
}

// Runtime is a client of the runtime of this name; empty means
// api.DefaultRuntime.
func Runtime(call *cli.Call, name string) (*api.Client, error) {
	paths, err := Paths(call)
	if err != nil {
		return nil, err
	}
	return paths.Runtime(name)
}

// RuntimeFlag is --runtime, which chooses among several runtimes.
func RuntimeFlag(name *string) cli.Flag {
	return cli.Flag{Name: "runtime", Arg: "NAME", Usage: "the runtime to ask, as leap-soc run --name called it", Value: cli.String(name)}
}

// About gives an error the name of the thing it is about, unless it has one.
func About(call *cli.Call, name string, err error) error {
	if err == nil || fault.From(err).Name != "" {
		return err
	}
	return fault.New(0, call.Op, name, err)
}

// CheckNames holds names against units.CheckName.
func CheckNames(kind string, names ...string) error {
	for _, name := range names {
		if err := units.CheckName(kind, name); err != nil {
			return err
		}
	}
	return nil
}
