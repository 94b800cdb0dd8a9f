// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// IO is what a command reads from and writes to. Stdout carries data only,
// Stderr words.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
}

// Call is one run of a verb.
type Call struct {
	IO
	Op       string   // the verb with its groups: "volume create"
	Args     []string // the positional arguments; their number fits Command.Args
	Format   Format
	RunDir   string // the folder of sockets and facts
	StateDir string // the folder of kept state; Daemon and State only

	set  map[string]bool
	logs *logs
}

// Attach gives a child process the streams of this run themselves, so that one
// that runs in a terminal has the terminal. Stdout of IO stands in front of the
// real one to notice errors; os/exec would connect a child to it by a pipe.
func (c *Call) Attach(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	if out, ok := c.Stdout.(*stdout); ok {
		cmd.Stdout = out.w
	}
}

// Terminal returns the terminal that Stdout is, or nil.
func (c *Call) Terminal() *os.File {
	if out, ok := c.Stdout.(*stdout); ok {
		return terminal(out.w)
	}
	return terminal(c.Stdout)
}

// StderrTerminal returns the terminal that Stderr is, or nil.
func (c *Call) StderrTerminal() *os.File { return terminal(c.Stderr) }

// terminal returns the terminal that w is, or nil.
func terminal(w io.Writer) *os.File {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return f
}

// IsSet reports whether the flag of this long name was given, on the command
// line or by the environment.
func (c *Call) IsSet(name string) bool { return c.set[name] }

// Arg is positional argument i, or "" if there are not that many.
func (c *Call) Arg(i int) string {
	if i < len(c.Args) {
		return c.Args[i]
	}
	return ""
}

// Logger is the log of one component, such as "vfiouser", which LEAP_LOG and
// --log give a level. It writes to Stderr.
func (c *Call) Logger(component string) *slog.Logger { return c.logs.logger(component) }

// Each calls f for every name and goes on after an error, except when ctx has
// ended. The result is that of fault.Several, each error with the name it is
// about.
func (c *Call) Each(ctx context.Context, names []string, f func(name string) error) error {
	var errs []error
	for _, name := range names {
		err := f(name)
		if err == nil {
			continue
		}
		if fault.From(err).Name == "" {
			err = fault.New(0, c.Op, name, err)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return fault.Several(len(names), errs...)
}

// Main runs the command for a process and returns its exit code. args is
// os.Args. Unless the verb is a daemon, INT and TERM cancel its context and the
// exit code is then 130; a second one kills.
func Main(root *Command, args []string) int {
	// Without a handler a reader that goes away kills the process, a daemon
	// whose log reader went away included. A handler rather than SIG_IGN: the
	// children we start must not inherit it.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	std := IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	return run(context.Background(), root, args, std, true)
}

// Run runs the command with args (args[0] is the program, as in os.Args) inside
// this process and returns the exit code. It handles no signals.
func Run(ctx context.Context, root *Command, args []string, stdio IO) int {
	return run(ctx, root, args, stdio, false)
}

func run(ctx context.Context, root *Command, args []string, stdio IO, signals bool) int {
	if err := check(root); err != nil {
		fmt.Fprintf(stdio.Stderr, "%s: %v\n", root.Name, err)
		return fault.ExitFailure
	}
	out := &stdout{w: stdio.Stdout}
	stdio.Stdout = out
	if n := len(args); n > 1 && args[n-1] == completionFlag {
		complete(root, args[1:n-1], stdio)
		return fault.ExitOK
	}
	var words []string
	if len(args) > 1 {
		words = args[1:]
	}
	s := sortArgs(root, words)
	s.fromEnv(stdio.Getenv)

	if signals && !s.node().Daemon {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop)
	}
	err := execute(ctx, s, stdio)
	if out.err != nil && (err == nil || errors.Is(err, out.err)) {
		if errors.Is(out.err, unix.EPIPE) {
			return fault.ExitOK // the reader has what it wanted
		}
		err = fault.New(fault.Failure, s.op(), "", fmt.Errorf("writing to stdout: %w", out.err))
	}
	if err == nil {
		return fault.ExitOK
	}
	code := fault.KindOf(err).ExitCode()
	if signals && ctx.Err() != nil {
		if code == fault.ExitInterrupted {
			return code // the user knows
		}
		code = fault.ExitInterrupted
	}
	report(stdio.Stderr, s, err)
	return code
}

// execute does what the sorted arguments ask for: one of the flags that print
// something about the command, or the verb.
func execute(ctx context.Context, s *sorted, stdio IO) error {
	if s.err != nil {
		return s.err
	}
	switch {
	case s.is(helpFlag):
		return help(stdio.Stdout, s.path)
	case s.is(versionFlag):
		_, err := fmt.Fprintf(stdio.Stdout, "%s %s\n", s.path[0].Name, Version())
		return err
	case s.is(metadataFlag):
		return dumpMetadata(stdio.Stdout, s.path[0])
	case s.is(completionName):
		shell, _ := s.last(completionName)
		return script(stdio.Stdout, s.path[0].Name, shell)
	}
	if err := s.complete(); err != nil {
		return err
	}
	return dispatch(ctx, s, stdio)
}

// dispatch lets urfave/cli parse the canonical argv and call the verb. Each
// level has its help, version, suggestions, output and exits switched off; all
// of those are ours.
func dispatch(ctx context.Context, s *sorted, stdio IO) error {
	values := newCommon()
	p := &parser{sorted: s}
	node := s.node()
	action := func(uc *urfave.Context) error {
		call := &Call{
			IO: stdio, Op: s.op(), Args: uc.Args().Slice(), Format: values.format, RunDir: values.runDir, StateDir: values.stateDir,
			set: make(map[string]bool), logs: newLogs(stdio, values.levels, values.verbose),
		}
		for _, t := range s.flags {
			call.set[t.flag.Name] = true
		}
		return node.Run(ctx, call)
	}
	app := &urfave.App{
		Name: s.path[0].Name, Compiled: time.Unix(0, 0),
		HideHelp: true, HideHelpCommand: true, HideVersion: true, DisableSliceFlagSeparator: true,
		Reader: stdio.Stdin, Writer: io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*urfave.Context, error) {},
		OnUsageError:   p.usageError,
	}
	// Only the path to the verb is needed: sortArgs has found it already.
	if len(s.path) == 1 {
		app.Flags, app.Action = p.flags(node, values), action
	} else {
		verb := &urfave.Command{
			Name: node.Name, Flags: p.flags(node, values), Action: action,
			HideHelp: true, HideHelpCommand: true, OnUsageError: p.usageError,
		}
		for i := len(s.path) - 2; i > 0; i-- {
			verb = &urfave.Command{Name: s.path[i].Name, Subcommands: []*urfave.Command{verb}, HideHelp: true, HideHelpCommand: true, OnUsageError: p.usageError}
		}
		app.Commands = []*urfave.Command{verb}
	}
	return app.RunContext(ctx, s.argv())
}

// parser connects flags to urfave/cli and keeps the error of the value that was
// refused, which the flag package would turn into text of its own.
type parser struct {
	sorted *sorted
	err    error
}

// flags are the flags of c for urfave/cli.
func (p *parser) flags(c *Command, values *common) []urfave.Flag {
	var flags []urfave.Flag
	for _, f := range allFlags(c, values) {
		flags = append(flags, &urfave.GenericFlag{Name: f.Name, Value: &parsed{Value: f.Value, flag: f, parser: p}})
	}
	return flags
}

// usageError turns what urfave/cli found wrong into a usage fault.
func (p *parser) usageError(_ *urfave.Context, err error, _ bool) error {
	if p.err != nil {
		return p.err
	}
	return fault.New(fault.Usage, p.sorted.op(), "", err, p.sorted.seeHelp())
}

// parsed is a flag's value on its way through urfave/cli.
type parsed struct {
	Value
	flag   Flag
	parser *parser
}

// IsBoolFlag tells the flag package that no value follows.
func (v *parsed) IsBoolFlag() bool { return !v.flag.takesValue() }

// Set passes the text on and, if it is refused, says where it came from.
func (v *parsed) Set(text string) error {
	err := v.Value.Set(text)
	if err != nil && v.parser.err == nil {
		name := "--" + v.flag.Name
		for _, t := range v.parser.sorted.flags {
			if t.flag.Name == v.flag.Name && t.value == text {
				name = t.name
			}
		}
		cause := err.Error()
		if !strings.Contains(cause, strconv.Quote(text)) {
			cause = fmt.Sprintf("bad value %q: %s", text, cause)
		}
		v.parser.err = fault.Errorf(fault.Usage, v.parser.sorted.op(), "", "%s: %s", name, cause).Hint(v.parser.sorted.seeHelp())
	}
	return err
}

// stdout remembers the first error of writing, so that a full disk behind a
// redirection is an error and a reader that went away is none.
type stdout struct {
	w   io.Writer
	err error
}

func (o *stdout) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(b)
	o.err = err
	return n, err
}
