// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/units"
)

// seen is what a verb of testTree was called with.
type seen struct {
	Op, Nqn, Poll string
	Args, Ns      []string
	Size          units.Size
	Count         int
	Timeout       time.Duration
	ExistOK       bool
	Format        Format
	RunDir        string
}

// testTree is a command whose verbs write what they saw to *got. run replaces
// what the verb volume create does after that.
func testTree(got *seen, run func(context.Context, *Call) error) *Command {
	v := seen{Size: 10 * units.GiB, Poll: "adaptive"}
	record := func(ctx context.Context, call *Call) error {
		v.Op, v.Args, v.Format, v.RunDir = call.Op, call.Args, call.Format, call.RunDir
		*got = v
		if run != nil && call.Op == "volume create" {
			return run(ctx, call)
		}
		return nil
	}
	exist := Flag{Name: "exist-ok", Usage: "no error if it is there", Value: Bool(&v.ExistOK)}
	return &Command{
		Name: "leap-test", Usage: "test the house",
		Commands: []*Command{
			{Name: "volume", Usage: "volumes", Commands: []*Command{
				{
					Name: "create", Usage: "make a volume", Args: "NAME KIND [KEY=VALUE...]",
					Flags: []Flag{
						exist,
						{Name: "size", Short: "s", Arg: "SIZE", Usage: "its size", Value: &v.Size},
						{Name: "ns", Arg: "SPEC", Usage: "a namespace", Value: Strings(&v.Ns)},
						{Name: "count", Arg: "N", Usage: "how many", Value: Int(&v.Count, 0, 16)},
						{Name: "nqn", Arg: "NQN", Usage: "its name", Value: String(&v.Nqn)},
					},
					Run: record,
				},
				{Name: "list", Usage: "list volumes", Args: "[VOLUME...]", Run: record},
				{Name: "delete", Usage: "remove a volume", Args: "VOLUME", Run: record},
			}},
			{Name: "wait", Usage: "wait", Args: "WHAT [STATE]", Run: record, Flags: []Flag{
				{Name: "timeout", Short: "t", Arg: "TIME", Usage: "how long", Value: Duration(&v.Timeout), Required: true},
				{Name: "poll", Arg: "MODE", Env: "LEAP_TEST_POLL", Usage: "how to look", Value: Enum(&v.Poll, "adaptive", "busy")},
			}},
			{Name: "run", Usage: "be a daemon", Daemon: true, Run: record},
			{Name: "dump", Usage: "raw data", Binary: true, Run: record},
		},
	}
}

// result is what a run left behind.
type result struct {
	code     int
	out, err string
	got      seen
}

// runTest runs testTree with a command line split at blanks; ” stands for an
// empty word.
func runTest(line string, env ...string) result { return runWith(nil, line, env...) }

func runWith(run func(context.Context, *Call) error, line string, env ...string) result {
	var r result
	var out, errs strings.Builder
	words := append([]string{"leap-test"}, strings.Fields(line)...)
	for i, w := range words {
		if w == "''" {
			words[i] = ""
		}
	}
	getenv := func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	r.code = Run(context.Background(), testTree(&r.got, run), words, IO{strings.NewReader(""), &out, &errs, getenv})
	r.out, r.err = out.String(), errs.String()
	return r
}

func TestOrder(t *testing.T) {
	create := func(f func(*seen)) seen {
		v := seen{Op: "volume create", Args: []string{"d1", "file"}, Size: 10 * units.GiB, Poll: "adaptive", Format: Text, RunDir: DefaultRunDir}
		f(&v)
		return v
	}
	same := func(*seen) {}
	size := func(v *seen) { v.Size = units.GiB }
	json := func(v *seen) { v.Format = JSON }
	for _, tt := range []struct {
		line string
		want seen
	}{
		{"volume create d1 file", create(same)},
		// before, between and after positionals, and in front of the verb
		{"volume create --size 1G d1 file", create(size)},
		{"volume create d1 --size 1G file", create(size)},
		{"volume create d1 file --size 1G", create(size)},
		{"volume --size 1G create d1 file", create(size)},
		{"--size 1G volume create d1 file", create(size)},
		{"--size=1G volume create d1 file", create(size)},
		{"volume create d1 file --size=1G", create(size)},
		// short flags: apart, glued, in a cluster
		{"volume create d1 file -s 1G", create(size)},
		{"volume create d1 file -s1G", create(size)},
		{"volume create d1 -ojson file", create(json)},
		{"volume create d1 -o json file", create(json)},
		{"-o json volume create d1 file", create(json)},
		{"volume create d1 -vojson file", create(json)},
		{"volume create d1 -vs1G file -o json", create(func(v *seen) { size(v); json(v) })},
		{"volume create --output=json d1 file", create(json)},
		// the last one counts
		{"volume create d1 file -o json -o text", create(same)},
		{"volume create d1 file -o json --output normal", create(same)},
		// a flag without a value does not swallow the next word
		{"volume create --exist-ok d1 file", create(func(v *seen) { v.ExistOK = true })},
		{"volume --exist-ok create d1 file", create(func(v *seen) { v.ExistOK = true })},
		// repeated flags keep their commas and their order
		{"volume create --ns driver=x,level=5 d1 --ns=b file --ns ,", create(func(v *seen) { v.Ns = []string{"driver=x,level=5", "b", ","} })},
		// a value may look like a flag, be empty or contain anything
		{"volume create --nqn --size d1 file", create(func(v *seen) { v.Nqn = "--size" })},
		{"volume create --nqn -- d1 file", create(func(v *seen) { v.Nqn = "--" })},
		{"volume create --nqn=a=b d1 file", create(func(v *seen) { v.Nqn = "a=b" })},
		// decimal only
		{"volume create --count 010 d1 file", create(func(v *seen) { v.Count = 10 })},
		// -- ends flags
		{"volume create -- d1 file", create(same)},
		{"-- volume create d1 file", create(same)},
		{"volume create d1 --size 1G -- --nqn -x", create(func(v *seen) { size(v); v.Args = []string{"d1", "--nqn", "-x"} })},
		{"volume create -- d1 -- --", create(func(v *seen) { v.Args = []string{"d1", "--", "--"} })},
		{"volume create d1 - file", create(func(v *seen) { v.Args = []string{"d1", "-", "file"} })},
		{"volume create d1 '' file", create(func(v *seen) { v.Args = []string{"d1", "", "file"} })},
		// positionals named like verbs and flags
		{"volume create help h", create(func(v *seen) { v.Args = []string{"help", "h"} })},
		{"volume create output size", create(func(v *seen) { v.Args = []string{"output", "size"} })},
		{"volume create volume create", create(func(v *seen) { v.Args = []string{"volume", "create"} })},
		{"--run-dir /tmp/x volume create d1 file", create(func(v *seen) { v.RunDir = "/tmp/x" })},
	} {
		r := runTest(tt.line)
		if r.code != 0 || r.out != "" || r.err != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tt.line, r.code, r.out, r.err)
			continue
		}
		if d := cmp.Diff(tt.want, r.got); d != "" {
			t.Errorf("%s: %s", tt.line, d)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"", "missing verb\nhint: the verbs are volume, wait, run, dump\n"},
		{"volume", "volume: missing verb\nhint: the verbs are create, list, delete\n"},
		{"nosuch", "unknown verb \"nosuch\"\nhint: the verbs are volume, wait, run, dump\n"},
		{"volume nosuch", "volume: unknown verb \"nosuch\"\nhint: the verbs are create, list, delete\n"},
		{"volume nosuch --help", "volume: unknown verb \"nosuch\"\nhint: the verbs are create, list, delete\n"},
		{"volume help", "volume: unknown verb \"help\"\nhint: the verbs are create, list, delete\n"},
		{"help nosuch", "unknown verb \"nosuch\"\nhint: the verbs are volume, wait, run, dump\n"},
		{"--nosuch volume list", "volume list: unknown option --nosuch\nhint: leap-test --help shows what it takes\n"},
		{"volume list --nosuch", "volume list: unknown option --nosuch\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list --nosuch=3", "volume list: unknown option --nosuch\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list -z", "volume list: unknown option -z\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list -vz", "volume list: unknown option -z\nhint: leap-test volume list --help shows what it takes\n"},
		// no single-dash long flags: this is -o utput
		{"volume list -output json", "volume list: -o: bad value \"utput\": none of text, json, tsv\nhint: leap-test volume list --help shows what it takes\n"},
		// a flag of another verb, wherever it stands
		{"volume list --size 1G", "volume list: unknown option --size\nhint: leap-test volume list --help shows what it takes\n"},
		{"--size 1G volume list", "volume list: unknown option --size\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list --state-dir /x", "volume list: unknown option --state-dir\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume create d1 file --size", "volume create: option --size needs a value\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file -s", "volume create: option -s needs a value\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --exist-ok=yes", "volume create: option --exist-ok takes no value\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --size 1.3B", "volume create: --size: bad size \"1.3B\": it is not a whole number of bytes\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file -s ''", "volume create: -s: bad size \"\": it is empty\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create --nqn '' d1 file", "volume create: --nqn: bad value \"\": it is empty\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --nqn=", "volume create: --nqn: bad value \"\": it is empty\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --count x", "volume create: --count: bad value \"x\": not a number\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --count 17", "volume create: --count: bad value \"17\": not in 0 to 16\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --count 99999999999999999999", "volume create: --count: bad value \"99999999999999999999\": not in 0 to 16\nhint: leap-test volume create --help shows what it takes\n"},
		{"volume create d1 file --count 0x10", "volume create: --count: bad value \"0x10\": not a number\nhint: leap-test volume create --help shows what it takes\n"},
		{"wait x --timeout 5", "wait: --timeout: bad value \"5\": not a duration such as 500ms, 30s or 1m30s\nhint: leap-test wait --help shows what it takes\n"},
		{"wait x --timeout -5s", "wait: --timeout: bad value \"-5s\": negative\nhint: leap-test wait --help shows what it takes\n"},
		{"wait x -t 1s --poll fast", "wait: --poll: bad value \"fast\": none of adaptive, busy\nhint: leap-test wait --help shows what it takes\n"},
		{"wait x", "wait: missing option --timeout\nhint: leap-test wait --help shows what it takes\n"},
		{"volume create", "volume create: missing NAME\nhint: usage: leap-test volume create [OPTION...] NAME KIND [KEY=VALUE...]\n"},
		{"volume create d1", "volume create: missing KIND\nhint: usage: leap-test volume create [OPTION...] NAME KIND [KEY=VALUE...]\n"},
		{"volume rm", "volume delete: missing VOLUME\nhint: usage: leap-test volume delete [OPTION...] VOLUME\n"},
		{"volume rm a b", "volume delete: unexpected argument \"b\"\nhint: usage: leap-test volume delete [OPTION...] VOLUME\n"},
		{"wait a b c -t 1s", "wait: unexpected argument \"c\"\nhint: usage: leap-test wait [OPTION...] WHAT [STATE]\n"},
		{"volume list -o binary", "volume list: -o: bad value \"binary\": this command has no raw data\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list --log loud", "volume list: --log: bad level \"loud\": none of debug, info, warn, error\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list \xff\x1b[2J --\x1b", "volume list: unknown option --\\x1b\nhint: leap-test volume list --help shows what it takes\n"},
		{"volume list -é", "volume list: unknown option -?\nhint: leap-test volume list --help shows what it takes\n"},
	} {
		r := runTest(tt.line)
		if want := "leap-test: " + tt.want; r.code != 64 || r.out != "" || r.err != want {
			t.Errorf("%s: exit %d, stdout %q, stderr\n%swant\n%s", tt.line, r.code, r.out, r.err, want)
		}
		if r.got.Op != "" {
			t.Errorf("%s: the verb ran", tt.line)
		}
	}
}

func TestUsageErrorJSON(t *testing.T) {
	want := `{"error":{"op":"volume list","name":"","kind":"usage","code":64,"message":"unknown option --nosuch","hints":["leap-test volume list --help shows what it takes"]}}` + "\n"
	for _, line := range []string{"volume list --nosuch -o json", "volume list -ojson --nosuch", "-o json volume list --nosuch"} {
		if r := runTest(line); r.code != 64 || r.out != "" || r.err != want {
			t.Errorf("%s: exit %d, stdout %q, stderr\n%swant\n%s", line, r.code, r.out, r.err, want)
		}
	}
	if r := runTest("volume list --nosuch", "LEAP_OUTPUT=json"); r.err != want {
		t.Errorf("LEAP_OUTPUT=json: stderr\n%swant\n%s", r.err, want)
	}
}

func TestEnvironment(t *testing.T) {
	r := runTest("volume list", "LEAP_OUTPUT=tsv", "LEAP_RUN_DIR=/tmp/r", "LEAP_LOG=tcp=debug")
	if r.code != 0 || r.got.Format != TSV || r.got.RunDir != "/tmp/r" {
		t.Errorf("got %+v, want tsv and /tmp/r", r)
	}
	r = runTest("volume list -o json --run-dir /tmp/s", "LEAP_OUTPUT=tsv", "LEAP_RUN_DIR=/tmp/r")
	if r.got.Format != JSON || r.got.RunDir != "/tmp/s" {
		t.Errorf("got %+v, want the flags to win", r.got)
	}
	if r = runTest("volume list", "LEAP_OUTPUT="); r.got.Format != Text {
		t.Errorf("got %+v, want an empty variable to count as unset", r.got)
	}
	if r = runTest("wait x -t 1s", "LEAP_TEST_POLL=busy"); r.got.Poll != "busy" {
		t.Errorf("got %+v, want poll busy", r.got)
	}
	r = runTest("volume list", "LEAP_OUTPUT=yaml")
	if want := "leap-test: volume list: LEAP_OUTPUT: bad value \"yaml\": none of text, json, tsv\n"; r.code != 64 || !strings.HasPrefix(r.err, want) {
		t.Errorf("exit %d, stderr %q, want %q", r.code, r.err, want)
	}
}

func TestDaemonAndBinary(t *testing.T) {
	if r := runTest("run --state-dir /x"); r.code != 0 {
		t.Errorf("run --state-dir: %+v", r)
	}
	if r := runTest("dump -o binary"); r.code != 0 || r.got.Format != Binary {
		t.Errorf("dump -o binary: %+v", r)
	}
}

func TestAliases(t *testing.T) {
	for line, op := range map[string]string{"volume ls": "volume list", "volume rm d1": "volume delete"} {
		if r := runTest(line); r.code != 0 || r.got.Op != op {
			t.Errorf("%s: %+v, want %s", line, r, op)
		}
	}
}

// A verb at the root, as in a command without verbs.
func TestNoVerbs(t *testing.T) {
	var args []string
	var out, errs strings.Builder
	root := &Command{Name: "leap-one", Usage: "one thing", Args: "[WORD...]", Run: func(_ context.Context, call *Call) error {
		args = call.Args
		return nil
	}}
	stdio := IO{strings.NewReader(""), &out, &errs, func(string) string { return "" }}
	code := Run(context.Background(), root, []string{"leap-one", "help", "-o", "json", "b"}, stdio)
	if code != 0 || !slices.Equal(args, []string{"help", "b"}) || out.String()+errs.String() != "" {
		t.Errorf("exit %d, args %q, stdout %q, stderr %q", code, args, out.String(), errs.String())
	}
}

func FuzzSort(f *testing.F) {
	for _, s := range []string{"volume create d1 file --size 1G", "-ojson\nvolume\nls", "--", "-", "--=", "-s", "volume\n--size", "help\nvolume"} {
		f.Add(strings.ReplaceAll(s, " ", "\n"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Split(text, "\n")
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix("--"+completionName, w) && len(w) > 2 }) {
			return // may print a script
		}
		var got seen
		var out, errs strings.Builder
		stdio := IO{strings.NewReader(""), &out, &errs, func(string) string { return "" }}
		code := Run(context.Background(), testTree(&got, nil), append([]string{"leap-test"}, words...), stdio)
		switch {
		case code == 0 && errs.Len() == 0:
		case code == 64 && out.Len() == 0 && strings.HasPrefix(errs.String(), "leap-test: "):
		case code == 64 && out.Len() == 0 && strings.HasPrefix(errs.String(), `{"error":`):
		default:
			t.Errorf("%q: exit %d, stdout %q, stderr %q", words, code, out.String(), errs.String())
		}
		// The canonical argv means the same.
		s := sortArgs(testTree(&got, nil), words)
		if s.err != nil {
			return
		}
		again := sortArgs(testTree(&got, nil), s.argv()[1:])
		if again.err != nil || again.op() != s.op() || !slices.Equal(again.args, s.args) || !slices.Equal(again.argv(), s.argv()) {
			t.Errorf("%q: sorted %q, sorted again %q, %v", words, s.argv(), again.argv(), again.err)
		}
	})
}
