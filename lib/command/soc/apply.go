// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"io"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

var appliedColumns = []cli.Column[applied]{
	{Name: "LINE", Value: func(a applied) any { return a.Line }},
	{Name: "RESULT", Value: func(a applied) any { return a.Result }},
	{Name: "ERROR", Value: func(a applied) any { return a.reason() }},
	{Name: "HINT", Value: func(a applied) any { return strings.Join(fault.Hints(a.err()), "; ") }},
	{Name: "COMMAND", Value: func(a applied) any { return cli.QuoteAll(a.Argv) }},
}

// err is why the line has failed, or nil.
func (a applied) err() error {
	if a.Error == nil {
		return nil
	}
	return a.Error
}

// reason is why the line has failed, without what the command says already.
func (a applied) reason() string {
	if a.Error == nil {
		return ""
	}
	bare := *a.Error
	bare.Op, bare.Name = "", ""
	return bare.Error()
}

func apply() *cli.Command {
	var (
		runtime string
		dry     bool
	)
	return &cli.Command{
		Name:  "apply",
		Usage: "make what a file of commands asks for and is not there",
		Help: "FILE has lines as export prints them; - is standard input. What is there\n" +
			"already, as asked for, is left as it is, and what is there in another way is\n" +
			"not changed.",
		Args: "FILE",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "dry-run", Usage: "tell what is missing, and make nothing", Value: cli.Bool(&dry)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			s, err := setupOf(call, paths, runtime)
			if err != nil {
				return err
			}
			s.dry = dry
			if err := s.answers(ctx); err != nil {
				return err
			}
			counts, err := s.apply(ctx, nil, cli.Stream(call, appliedColumns))
			if err != nil {
				return err
			}
			return failed(counts)
		},
	}
}

// setupOf reads the setup that is the argument of a call.
func setupOf(call *cli.Call, paths api.Paths, runtime string) (*setup, error) {
	stdio := call.IO
	stdio.Stdin, stdio.Stdout = strings.NewReader(""), io.Discard
	if call.Arg(0) != "-" {
		return openSetup(call.Arg(0), paths, runtime, stdio)
	}
	text, err := io.ReadAll(call.Stdin)
	if err != nil {
		return nil, err
	}
	return newSetup("stdin", string(text), paths, runtime, stdio)
}
