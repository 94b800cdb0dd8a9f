// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package clitest runs commands inside a test and holds manual pages against
// them.
package clitest

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/cli"
)

// Result is what a run of a command left behind.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Run runs the command with args, which do not include the program's name, with
// an empty standard input and no environment but env, whose entries are
// "NAME=value".
func Run(t testing.TB, root *cli.Command, env []string, args ...string) Result {
	t.Helper()
	var out, errs bytes.Buffer
	getenv := func(name string) string {
		for _, e := range env {
			if value, ok := strings.CutPrefix(e, name+"="); ok {
				return value
			}
		}
		return ""
	}
	stdio := cli.IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: getenv}
	code := cli.Run(t.Context(), root, append([]string{root.Name}, args...), stdio)
	return Result{code, out.String(), errs.String()}
}

// ManPage fails the test for everything that the manual page in file (mdoc) and
// the command do not have in common:
//
//   - Verbs are the ".It Cm volume create ..." entries of the outermost list in
//     .Sh COMMANDS, one for each verb of the tree, by their names.
//   - The flags of a verb (.Fl -size) are in its entry, and no flags of others.
//   - The flags every verb has, their environment variables (.Ev) and the
//     aliases of verbs (.Cm ls) are anywhere on the page.
//   - No other flag is on the page.
func ManPage(t testing.TB, root *cli.Command, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range compare(cli.Describe(root), parsePage(string(b))) {
		t.Errorf("%s: %s", file, problem)
	}
}
