// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package clitest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/cli"
)

func tree() *cli.Command {
	var n int
	var size string
	run := func(_ context.Context, call *cli.Call) error {
		in, err := io.ReadAll(call.Stdin)
		fmt.Fprintf(call.Stdout, "%s %q %q\n", call.RunDir, call.Args, in)
		return err
	}
	return &cli.Command{Name: "leap-x", Usage: "x", Commands: []*cli.Command{
		{Name: "volume", Usage: "volumes", Commands: []*cli.Command{
			{Name: "create", Usage: "make", Args: "NAME", Run: run, Flags: []cli.Flag{
				{Name: "size", Short: "s", Arg: "SIZE", Usage: "size", Value: cli.String(&size)},
			}},
			{Name: "list", Usage: "list", Run: run},
		}},
		{Name: "wait", Usage: "wait", Run: run, Flags: []cli.Flag{
			{Name: "count", Arg: "N", Env: "LEAP_X_COUNT", Usage: "n", Value: cli.Int(&n, 0, 9)},
		}},
	}}
}

func TestRun(t *testing.T) {
	want := Result{Code: 0, Stdout: "/r [\"d1\"] \"\"\n"}
	if d := cmp.Diff(want, Run(t, tree(), []string{"LEAP_RUN_DIR=/r"}, "volume", "create", "d1")); d != "" {
		t.Error(d)
	}
	if got := Run(t, tree(), nil, "nosuch"); got.Code != 64 || got.Stdout != "" || got.Stderr == "" {
		t.Errorf("got %+v", got)
	}
}

const goodPage = `.\" a page
.Dd $Mdocdate$
.Dt LEAP-X 8
.Sh NAME
.Nm leap-x
.Sh SYNOPSIS
.Nm leap-x
.Op Fl o Ar format
.Ar verb
.Sh COMMANDS
.Bl -tag -width Ds
.It Cm volume create Oo Fl s , Fl -size Ar SIZE Oc Ar NAME
Make a volume.
.Bl -tag -width Ds
.It Cm adaptive
not a verb
.El
.It Cm volume list
Or
.Cm ls .
.It Cm wait
Wait
.Fl -count
times, or
.Ev LEAP_X_COUNT .
.El
.Sh OPTIONS
.Bl -tag -width Ds
.It Fl o , Fl -output Ar format
.It Fl -run-dir Ar dir
.It Fl -log Ar levels
.It Fl v , Fl -verbose
.It Fl h , Fl -help
.It Fl -version
.El
.Sh ENVIRONMENT
.Ev LEAP_OUTPUT , LEAP_RUN_DIR , LEAP_LOG
`

func TestCompare(t *testing.T) {
	m := cli.Describe(tree())
	for _, tt := range []struct {
		old, new string
		want     []string
	}{
		{"", "", nil},
		{".It Cm volume list\n", "", []string{`no entry for the verb "volume list"`}},
		{"Cm wait", "Cm wait for", []string{`no entry for the verb "wait"`, `there is an entry for "wait for", which is no verb`}},
		{" , Fl -size", "", []string{`the entry of "volume create" lacks the flag --size`}},
		{".Fl -count\n", ".Fl -count\n.Fl -size\n", []string{`the entry of "wait" has the flag --size, the command has not`}},
		{".It Fl -run-dir Ar dir\n", "", []string{"no mention of the flag --run-dir"}},
		{".It Fl -version", ".It Fl -version\n.It Fl -nosuch", []string{"the flag --nosuch is no flag of the command"}},
		{".Cm ls .\n", "", []string{`no mention of ls, an alias of "volume list"`}},
		{"LEAP_RUN_DIR ,", "", []string{"no mention of the variable LEAP_RUN_DIR"}},
		{".Ev LEAP_X_COUNT", ".Ev X", []string{"no mention of the variable LEAP_X_COUNT"}},
	} {
		text := strings.Replace(goodPage, tt.old, tt.new, 1)
		if tt.old != "" && text == goodPage {
			t.Fatalf("%q is not on the page", tt.old)
		}
		if d := cmp.Diff(tt.want, compare(m, parsePage(text))); d != "" {
			t.Errorf("%q -> %q: %s", tt.old, tt.new, d)
		}
	}
}

// A command without verbs has its flags anywhere on the page.
func TestCompareNoVerbs(t *testing.T) {
	root := &cli.Command{Name: "leap-y", Usage: "y", Run: func(context.Context, *cli.Call) error { return nil }}
	var s string
	root.Flags = []cli.Flag{{Name: "size", Arg: "SIZE", Usage: "size", Value: cli.String(&s)}}
	page := goodPage[:strings.Index(goodPage, ".Sh COMMANDS")] + goodPage[strings.Index(goodPage, ".Sh OPTIONS"):]
	want := []string{"the page lacks the flag --size"}
	if d := cmp.Diff(want, compare(cli.Describe(root), parsePage(page))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string(nil), compare(cli.Describe(root), parsePage(page+".Fl -size\n"))); d != "" {
		t.Error(d)
	}
}

func TestManPage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "leap-x.8")
	if err := os.WriteFile(file, []byte(goodPage), 0o644); err != nil {
		t.Fatal(err)
	}
	ManPage(t, tree(), file)
}
