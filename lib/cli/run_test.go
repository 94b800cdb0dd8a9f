// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/leapio/leapio/lib/fault"
)

// mainEnv makes the test binary behave as a command whose verb is its value.
const mainEnv = "LEAP_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) == "" {
		os.Exit(m.Run())
	}
	wait := func(ctx context.Context, call *Call) error {
		fmt.Fprintln(call.Stdout, "ready")
		<-ctx.Done()
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
	chatter := func(ctx context.Context, call *Call) error {
		for {
			if _, err := fmt.Fprintln(call.Stdout, "line"); err != nil {
				return fmt.Errorf("talking: %w", err)
			}
		}
	}
	daemon := func(ctx context.Context, call *Call) error {
		fmt.Fprintln(call.Stdout, "ready")
		io.Copy(io.Discard, call.Stdin)
		return ctx.Err()
	}
	root := &Command{Name: "leap-main", Usage: "test Main", Commands: []*Command{
		{Name: "wait", Usage: "wait for a signal", Run: wait},
		{Name: "chatter", Usage: "write until it fails", Run: chatter},
		{Name: "daemon", Usage: "wait for the end of stdin", Run: daemon, Daemon: true},
	}}
	os.Exit(Main(root, []string{"leap-main", os.Getenv(mainEnv)}))
}

// start runs a verb of TestMain's command in a process of its own and reads its
// first line.
func start(t *testing.T, verb string, stdin io.Reader) (cmd *exec.Cmd, out *os.File, errs *strings.Builder) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mainEnv+"="+verb, "GOCOVERDIR="+t.TempDir())
	errs = new(strings.Builder)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, w, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("%v, stderr %q", err, errs)
	}
	return cmd, r, errs
}

func TestSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, _, errs := start(t, "wait", nil)
		cmd.Process.Signal(sig)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 || errs.Len() != 0 {
			t.Errorf("%v: exit %d, stderr %q, want 130 and nothing", sig, code, errs)
		}
	}
}

// A daemon does with signals what it wants: here it wants nothing, and the
// default of TERM applies.
func TestDaemonSignals(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd, _, _ := start(t, "daemon", r)
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGTERM {
		t.Errorf("got %v, want death by SIGTERM", cmd.ProcessState)
	}
}

func TestReaderGoesAway(t *testing.T) {
	cmd, out, errs := start(t, "chatter", nil)
	out.Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 || errs.Len() != 0 {
		t.Errorf("%v, stderr %q, want a quiet exit 0", cmd.ProcessState, errs)
	}
}

func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	var errs strings.Builder
	stdio := IO{strings.NewReader(""), full, &errs, func(string) string { return "" }}
	// The verb ignores the error, as fmt.Println invites to.
	var got seen
	root := testTree(&got, func(_ context.Context, call *Call) error {
		fmt.Fprintln(call.Stdout, "d1")
		return nil
	})
	code := Run(context.Background(), root, []string{"leap-test", "volume", "create", "d1", "file"}, stdio)
	if want := "leap-test: volume create: writing to stdout: write /dev/full: no space left on device\n"; code != 1 || errs.String() != want {
		t.Errorf("exit %d, stderr %q, want 1, %q", code, errs.String(), want)
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("it is in use")
	for _, tt := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{cause, 1, "leap-test: volume create: it is in use\n"},
		{fault.New(fault.Exists, "", "d1", cause, "unmap it first", "or wait"), 5,
			"leap-test: volume create d1: it is in use\nhint: unmap it first\nhint: or wait\n"},
		{fault.New(fault.Peer, "connect", "tcp://b", cause), 9, "leap-test: volume create tcp://b: it is in use\n"},
		{fmt.Errorf("asking: %w", os.ErrNotExist), 4, "leap-test: volume create: asking: file does not exist\n"},
		{fault.Several(3, fault.New(fault.NotFound, "", "a", cause, "h"), fault.New(fault.Exists, "x y", "b", cause, "h")), 3,
			"leap-test: volume create a: it is in use\nleap-test: volume create b: it is in use\nhint: h\n"},
		{errors.New("evil\n\x1b[2Jleap-test: all is well\u202e"), 1,
			"leap-test: volume create: evil\\n\\x1b[2Jleap-test: all is well\\u202e\n"},
	} {
		r := runWith(func(context.Context, *Call) error { return tt.err }, "volume create d1 file")
		if r.code != tt.code || r.err != tt.text || r.out != "" {
			t.Errorf("%v: exit %d, stdout %q, stderr\n%swant %d,\n%s", tt.err, r.code, r.out, r.err, tt.code, tt.text)
		}
	}
	r := runWith(func(context.Context, *Call) error { return fault.New(fault.Exists, "", "d1", cause, "h") }, "volume create d1 file -o json")
	want := `{"error":{"op":"volume create","name":"d1","kind":"exists","code":5,"message":"it is in use","hints":["h"]}}` + "\n"
	if r.code != 5 || r.err != want || r.out != "" {
		t.Errorf("exit %d, stdout %q, stderr\n%swant\n%s", r.code, r.out, r.err, want)
	}
}

func TestEach(t *testing.T) {
	each := func(ctx context.Context, names ...string) error {
		call := &Call{Op: "volume delete"}
		return call.Each(ctx, names, func(name string) error {
			switch name[0] {
			case 'x':
				return fault.New(fault.NotFound, "", "", errors.New("gone"))
			case 'y':
				return fault.New(fault.Exists, "op", name, errors.New("busy"))
			}
			return nil
		})
	}
	for _, tt := range []struct {
		names []string
		kind  fault.Kind
		text  string
	}{
		{[]string{"a", "b"}, 0, "<nil>"},
		{[]string{"x"}, fault.NotFound, "volume delete x: gone"},
		{[]string{"x", "a", "y"}, fault.Partial, "volume delete x: gone\nop y: busy"},
		{[]string{"x1", "x2"}, fault.NotFound, "volume delete x1: gone\nvolume delete x2: gone"},
	} {
		err := each(context.Background(), tt.names...)
		if fault.KindOf(err) != tt.kind || fmt.Sprint(err) != tt.text {
			t.Errorf("%q: %v, %q, want %v, %q", tt.names, fault.KindOf(err), fmt.Sprint(err), tt.kind, tt.text)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := each(ended, "x1", "x2", "x3"); !strings.HasSuffix(err.Error(), "x1: gone") {
		t.Errorf("went on after the context had ended: %v", err)
	}
}

func TestCall(t *testing.T) {
	r := runWith(func(_ context.Context, call *Call) error {
		if !call.IsSet("size") || !call.IsSet("run-dir") || call.IsSet("nqn") {
			return errors.New("IsSet is wrong")
		}
		if call.Arg(0) != "d1" || call.Arg(1) != "file" || call.Arg(2) != "" {
			return errors.New("Arg is wrong")
		}
		return nil
	}, "volume create d1 file --size 10G", "LEAP_RUN_DIR=/r")
	if r.code != 0 {
		t.Error(r.err)
	}
}

func TestAttach(t *testing.T) {
	var got seen
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	root := testTree(&got, func(_ context.Context, call *Call) error {
		cmd := exec.Command("/nonexistent")
		call.Attach(cmd)
		if cmd.Stdout != io.Writer(file) || cmd.Stdin != call.Stdin || cmd.Stderr != call.Stderr {
			return errors.New("the child does not have the streams of the run")
		}
		return nil
	})
	var errs strings.Builder
	stdio := IO{strings.NewReader(""), file, &errs, func(string) string { return "" }}
	if code := Run(context.Background(), root, []string{"leap-test", "volume", "create", "a", "b"}, stdio); code != 0 {
		t.Error(errs.String())
	}
}

func TestHelp(t *testing.T) {
	for _, line := range []string{
		"volume create --help", "volume create -h", "--help volume create", "help volume create",
		"volume create --size 1G -h", "volume create d1 -ojson --help",
	} {
		r := runTest(line)
		if r.code != 0 || r.err != "" || r.got.Op != "" {
			t.Errorf("%s: exit %d, stderr %q, ran %q", line, r.code, r.err, r.got.Op)
		}
		for _, want := range []string{
			"usage: leap-test volume create [OPTION...] NAME KIND [KEY=VALUE...]\n\nmake a volume\n",
			"\noptions:\n      --exist-ok   no error if it is there\n",
			"\n  -s, --size SIZE  its size (default: 10G)\n",
			"\n      --ns SPEC    a namespace (repeatable)\n",
			"(default: /run/leapio; environment: LEAP_RUN_DIR)\n",
			"\nmanual: man leap-test\n",
		} {
			if !strings.Contains(r.out, want) {
				t.Errorf("%s: no %q in\n%s", line, want, r.out)
			}
		}
		for _, hidden := range []string{"dump-metadata", "--completion", "generate-bash"} {
			if strings.Contains(r.out, hidden) {
				t.Errorf("%s: shows %s", line, hidden)
			}
		}
	}
	r := runTest("help")
	for _, want := range []string{"usage: leap-test [OPTION...] VERB\n", "\nverbs:\n  volume  volumes\n  wait    wait\n"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("help: exit %d, no %q in\n%s", r.code, want, r.out)
		}
	}
	if r := runTest("volume --help"); r.code != 0 || !strings.Contains(r.out, "  list, ls    list volumes\n") {
		t.Errorf("volume --help: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if r := runTest("wait --help"); !strings.Contains(r.out, "how long (required)\n") || !strings.Contains(r.out, "how to look (default: adaptive; environment: LEAP_TEST_POLL)\n") {
		t.Errorf("wait --help:\n%s", r.out)
	}
}

func TestVersion(t *testing.T) {
	version = "1.2.3"
	defer func() { version = "" }()
	for _, line := range []string{"--version", "volume create --version"} {
		if r := runTest(line); r.code != 0 || r.out != "leap-test 1.2.3\n" || r.err != "" {
			t.Errorf("%s: %+v", line, r)
		}
	}
	version = ""
	if Version() == "" {
		t.Error("no version without the Makefile")
	}
}

// Mistakes in a tree are found by any run of it.
func TestCheck(t *testing.T) {
	ok := func(context.Context, *Call) error { return nil }
	var s string
	var b bool
	leaf := func(name string, flags ...Flag) *Command {
		return &Command{Name: name, Usage: "u", Run: ok, Flags: flags}
	}
	root := func(subs ...*Command) *Command { return &Command{Name: "r", Usage: "u", Commands: subs} }
	args := func(text string) *Command { return &Command{Name: "v", Usage: "u", Run: ok, Args: text} }
	for _, tt := range []struct {
		root *Command
		want string
	}{
		{&Command{Name: "r", Run: ok}, "no usage"},
		{&Command{Name: "r", Usage: "u"}, "either a Run"},
		{&Command{Name: "r", Usage: "u", Run: ok, Commands: []*Command{leaf("a")}}, "either a Run"},
		{root(leaf("list"), leaf("ls")), `two verbs "ls"`},
		{root(leaf("delete"), leaf("remove")), `two verbs "rm"`},
		{root(leaf("a", Flag{Name: "x", Usage: "u", Arg: "X", Value: String(&s)}, Flag{Name: "x", Usage: "u", Arg: "X", Value: String(&s)})), "two flags --x"},
		{root(leaf("a", Flag{Name: "out", Short: "o", Usage: "u", Arg: "X", Value: String(&s)})), "two flags -o"},
		{root(leaf("a", Flag{Name: "help", Usage: "u", Value: Bool(&b)})), "two flags --help"},
		{root(leaf("a", Flag{Name: "x", Usage: "u", Value: String(&s)})), "do not fit"},
		{root(leaf("a", Flag{Name: "x", Usage: "u", Arg: "X", Value: Bool(&b)})), "do not fit"},
		{root(leaf("a", Flag{Name: "x", Usage: "u", Arg: "X", Value: String(&s)}), leaf("b", Flag{Name: "x", Usage: "u", Value: Bool(&b)})), "takes a value in one verb"},
		{root(leaf("a", Flag{Name: "x", Value: Bool(&b)})), "no name, usage or value"},
		{root(args("A... B")), "only the last"},
		{root(args("[A] B")), "required one after"},
		{root(args("[A [B]]")), "bad word"},
	} {
		if err := check(tt.root); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		var out, errs strings.Builder
		stdio := IO{strings.NewReader(""), &out, &errs, func(string) string { return "" }}
		if code := Run(context.Background(), tt.root, []string{"r"}, stdio); code != 1 || errs.Len() == 0 {
			t.Errorf("Run: exit %d, stderr %q", code, errs.String())
		}
	}
}
