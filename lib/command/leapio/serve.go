// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package leapio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/command/qmap"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/wpt"
)

// served is what a command needs to use the drive.
type served struct {
	QEMU     string `json:"leap_qemu"`   // arguments, as port qemu prints them
	Socket   string `json:"leap_socket"` // the port's vfio-user socket
	RunDir   string `json:"leap_run_dir"`
	StateDir string `json:"leap_state_dir"`
}

var servedColumns = []cli.Column[served]{
	{Name: "QEMU", Value: func(s served) any { return s.QEMU }},
	{Name: "SOCKET", Value: func(s served) any { return s.Socket }},
	{Name: "RUN-DIR", Value: func(s served) any { return s.RunDir }},
	{Name: "STATE-DIR", Value: func(s served) any { return s.StateDir }},
}

// variables are the environment of the command, NAME=value.
func (s served) variables() []string {
	return []string{
		"leap_qemu=" + s.QEMU, "leap_socket=" + s.Socket, "LEAP_RUN_DIR=" + s.RunDir, "LEAP_STATE_DIR=" + s.StateDir,
	}
}

// serving holds the flags of serve.
type serving struct {
	name, doorbells string
	mem             units.Size
	run             string
	status          *int // where the exit status of run goes
}

func serve(status *int) *cli.Command {
	s := &serving{name: "vm1", mem: 2 * units.GiB, status: status}
	return &cli.Command{
		Name:  "serve",
		Usage: "have private daemons serve one volume, for the time of a command",
		Help: "The command, run by sh, finds in its environment leap_qemu (QEMU's arguments),\n" +
			"leap_socket, LEAP_RUN_DIR and LEAP_STATE_DIR. When it ends, so do the daemons,\n" +
			"and their folders are removed; the exit status is the command's. Without --run\n" +
			"the variables are printed for a shell to read, until INT or TERM.",
		Args: "KIND [KEY=VALUE...]",
		Flags: []cli.Flag{
			{Name: "run", Arg: "COMMAND", Usage: "the command", Value: cli.String(&s.run)},
			{Name: "mem", Arg: "SIZE", Usage: "the memory of the machine, as in its -m", Value: &s.mem},
			{Name: "name", Arg: "NAME", Usage: "of the port and of the volume", Value: cli.String(&s.name)},
			{Name: "doorbells", Arg: "trap|map", Usage: "how doorbell writes reach the runtime; without it, trap", Value: cli.Enum(&s.doorbells, api.DoorbellsTrap, api.DoorbellsMap)},
		},
		Run: s.serve,
	}
}

// serve is the verb.
func (s *serving) serve(ctx context.Context, call *cli.Call) (err error) {
	if call.IsSet("run") && strings.TrimSpace(s.run) == "" {
		return fault.Errorf(fault.Usage, "", "", "--run: there is no command in it")
	}
	spec, err := command.ParseVolume(append([]string{s.name}, call.Args...))
	if err != nil {
		return err
	}
	// The kernel kills the daemons when the thread that started them ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := newCaptive(call, s.name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	ctx, cancel := context.WithCancelCause(untilHangup(ctx))
	defer cancel(nil)
	if err := c.start(ctx, cancel); err != nil {
		return ended(ctx, err)
	}
	out, err := s.wire(ctx, c.paths, spec)
	if err != nil {
		return ended(ctx, err)
	}
	if s.run != "" {
		return s.command(ctx, call, out)
	}
	if err := print(call, out); err != nil {
		return err
	}
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), errDaemon) {
		return context.Cause(ctx)
	}
	return nil
}

// untilHangup gives a context that ends with HUP as well: when the terminal goes
// away, nothing may stay behind. Under nohup(1) that is no reason to end.
func untilHangup(ctx context.Context) context.Context {
	if signal.Ignored(unix.SIGHUP) {
		return ctx
	}
	ctx, _ = signal.NotifyContext(ctx, unix.SIGHUP) // as long as the process
	return ctx
}

// ended prefers, as the error, that a daemon has ended to what came of it.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errDaemon) {
		return cause
	}
	return err
}

// wire makes the volume and the port that shows it.
func (s *serving) wire(ctx context.Context, paths api.Paths, spec api.VolumeSpec) (served, error) {
	out := served{RunDir: paths.Run, StateDir: paths.State}
	client, err := paths.Runtime("")
	if err != nil {
		return out, err
	}
	if _, err := command.CreateVolume(ctx, client, spec); err != nil {
		return out, err
	}
	if err := qmap.Map(ctx, paths, qmap.Request{Port: s.name, Targets: []string{s.name}, Doorbells: s.doorbells}); err != nil {
		return out, err
	}
	var port api.Port
	if err := paths.Wpt().Get(ctx, api.Path("ports", s.name), &port); err != nil {
		return out, err
	}
	out.Socket = port.Socket
	out.QEMU, err = wpt.QEMUArgs([]api.Port{port}, s.mem, false)
	return out, err
}

// print writes the variables as assignments that sh reads, or as data.
func print(call *cli.Call, out served) error {
	if call.Format != cli.Text {
		return cli.Show(call, servedColumns, out)
	}
	for _, v := range out.variables() {
		name, value, _ := strings.Cut(v, "=")
		if _, err := fmt.Fprintf(call.Stdout, "%s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`)); err != nil {
			return err
		}
	}
	return nil
}

// killDelay is how long a command may take to end when it is told to.
const killDelay = 10 * time.Second

// command runs the command and notes its exit status.
func (s *serving) command(ctx context.Context, call *cli.Call, out served) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.run)
	call.Attach(cmd)
	cmd.Env = append(os.Environ(), out.variables()...)
	cmd.WaitDelay = killDelay
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	if !isTerminal(cmd.Stdin) {
		// All that the shell started can then be told to end. In a terminal it
		// must stay in our group, or it could not read.
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err := cmd.Wait()
	if cmd.SysProcAttr != nil {
		// What it left behind would lose its drive.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}
	if ctx.Err() != nil {
		return ended(ctx, fault.New(fault.Interrupted, "", "", context.Cause(ctx)))
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		*s.status = exitStatus(exit)
		return nil
	default:
		return err
	}
}

// exitStatus is the status as sh has it.
func exitStatus(exit *exec.ExitError) int {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// isTerminal reports whether a stream of a command is a terminal.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
