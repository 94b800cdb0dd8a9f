// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

// shelf is a tree with one verb, which prints what it was told.
func shelf() *cli.Command {
	var (
		size int
		tags []string
	)
	return &cli.Command{Name: "shelf", Usage: "shelves", Commands: []*cli.Command{
		{Name: "box", Usage: "boxes", Commands: []*cli.Command{{
			Name: "add", Usage: "add a box", Args: "NAME [PLACE]",
			Flags: []cli.Flag{
				{Name: "size", Arg: "N", Usage: "its size", Value: cli.Int(&size, 1, 9)},
				{Name: "tag", Arg: "TAG", Usage: "a tag", Value: cli.Strings(&tags)},
			},
			Run: func(_ context.Context, call *cli.Call) error {
				if call.Arg(0) == "bad" {
					return fault.Errorf(fault.NotFound, "", "bad", "no such name")
				}
				_, err := fmt.Fprint(call.Stdout, call.Args, size, tags, call.RunDir)
				return err
			},
		}}},
	}}
}

func TestPrepare(t *testing.T) {
	p, err := cli.Prepare(shelf, []string{"shelf", "--size=3", "box", "add", "--tag", "a", "one", "--tag=b", "--size", "4"})
	if err != nil {
		t.Fatal(err)
	}
	if p.Op() != "box add" || len(p.Args()) != 1 || p.Args()[0] != "one" || !p.Takes("tag") || p.Takes("output") {
		t.Errorf("%s %q", p.Op(), p.Args())
	}
	if v, ok := p.Value("size"); v != "4" || !ok {
		t.Errorf("size %q, %v", v, ok)
	}
	// It can run again and again, each time on values of its own.
	for range 2 {
		var out bytes.Buffer
		stdio := cli.IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Getenv: func(name string) string {
			return map[string]string{"LEAP_RUN_DIR": "/elsewhere"}[name]
		}}
		if err := p.Run(t.Context(), stdio); err != nil || out.String() != "[one] 4 [a b]/elsewhere" {
			t.Errorf("%q, %v", &out, err)
		}
	}
	if p, err = cli.Prepare(shelf, []string{"shelf", "box", "add", "bad"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), cli.IO{Stdin: strings.NewReader(""), Getenv: func(string) string { return "" }}); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"shelf":                           "missing verb",
		"shelf box":                       "missing verb",
		"shelf box remove":                `unknown verb "remove"`,
		"shelf box add":                   "missing NAME",
		"shelf box add a b c":             `unexpected argument "c"`,
		"shelf box add a --color red":     "unknown option --color",
		"shelf box add a --size":          "option --size needs a value",
		"shelf box add a --size 10":       `--size: bad value "10": not in 1 to 9`,
		"shelf box add a --output json":   "option --output is not for a line of its own",
		"shelf box add a -o json":         "option -o is not",
		"shelf box add a --run-dir /x":    "option --run-dir is not",
		"shelf box add a --help":          "option --help is not",
		"shelf help":                      "option help is not",
		"shelf --version":                 "option --version is not",
		"shelf box add a --dump-metadata": "option --dump-metadata is not",
	} {
		_, err := cli.Prepare(shelf, strings.Fields(line))
		if fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}
