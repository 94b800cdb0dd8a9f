// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"slices"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/doctor"
	"github.com/leapio/leapio/lib/fault"
)

var findingColumns = []cli.Column[doctor.Finding]{
	{Name: "CHECK", Value: func(f doctor.Finding) any { return f.Check }},
	{Name: "STATE", Value: func(f doctor.Finding) any { return f.State }},
	{Name: "FOUND", Value: func(f doctor.Finding) any { return f.Found }},
	{Name: "FIX", Value: func(f doctor.Finding) any { return f.Fix }},
}

func examine() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look for what is wrong here, before a bug report",
		Help: "It changes nothing, and needs neither daemons nor root, though root sees more.\n" +
			"The exit code is 1 if something does not work.",
		State: true,
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			d := doctor.Doctor{Paths: paths, Version: cli.Version()}
			findings := d.Examine(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := cli.List(call, findingColumns, findings); err != nil {
				return err
			}
			failed := slices.DeleteFunc(slices.Clone(findings), func(f doctor.Finding) bool { return f.State != doctor.Fail })
			if len(failed) > 0 {
				return fault.Errorf(fault.Failure, "", "", "%d of %d checks failed", len(failed), len(findings))
			}
			return nil
		},
	}
}
