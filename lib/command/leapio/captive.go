// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package leapio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/wpt"
)

// captive is a leap-wpt and a leap-soc with folders of their own. They are
// children of this process and end with it, however it ends.
type captive struct {
	call  *cli.Call
	port  string
	dir   string // has the run and the state folder
	paths api.Paths
	wpt   *daemon // nil: not started
	soc   *daemon
}

// errDaemon: a daemon has ended before it was told to.
var errDaemon = errors.New("ended by itself")

const (
	// startLimit is how long a daemon may take to be ready.
	startLimit = 30 * time.Second
	// endLimit is how long a daemon may take to end before it is killed.
	endLimit = 15 * time.Second
	// again is when leap-wpt, which refuses to end once while guests are
	// attached, is asked a second time.
	again = 200 * time.Millisecond
)

// newCaptive makes the folders, below TMPDIR if the path of the port's socket
// can be one, else in /tmp.
func newCaptive(call *cli.Call, port string) (*captive, error) {
	parent := call.Getenv("TMPDIR")
	// As long as a name that MkdirTemp makes.
	sample, err := api.NewPaths(filepath.Join(parent, "leap-0123456789", "run"), "/")
	if parent == "" || err != nil || api.CheckSocketPath(sample.PortSocket(port)) != nil {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "leap-") // of mode 0700
	if err != nil {
		return nil, err
	}
	c := &captive{call: call, port: port, dir: dir}
	if c.paths, err = api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state")); err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

// start starts both daemons and waits until they are ready. If one of them ends
// later, died is told.
func (c *captive) start(ctx context.Context, died context.CancelCauseFunc) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var err error
	if c.wpt, err = c.run(ctx, "wpt", died); err != nil {
		return err
	}
	c.soc, err = c.run(ctx, api.DefaultRuntime, died)
	return err
}

// removeLimit is how long removing the port may take.
const removeLimit = 5 * time.Second

// end takes the port away, ends the daemons, the runtime first, and removes the
// folders.
func (c *captive) end() error {
	if c.soc != nil {
		// Without a port the end of a runtime is nothing to warn about. If the
		// port is not there, or stays, nothing is lost.
		ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
		_ = c.paths.Wpt().Delete(ctx, api.Path("ports", c.port), wpt.PortRemove{Force: true}, nil)
		cancel()
		c.soc.end()
	}
	if c.wpt != nil {
		c.wpt.end(again)
	}
	return os.RemoveAll(c.dir)
}

// daemon is a child process.
type daemon struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has ended
	ending chan struct{} // closed when it is told to
}

// run starts the daemon of this name, "wpt" or "soc", and waits until it is
// ready. A daemon that was started is returned even with an error.
func (c *captive) run(ctx context.Context, name string, died context.CancelCauseFunc) (*daemon, error) {
	program := "leap-" + name
	d := &daemon{
		cmd:   exec.Command("/proc/self/exe", "run", "--log", c.logLevel(name), "--run-dir", c.paths.Run, "--state-dir", c.paths.State),
		ended: make(chan struct{}), ending: make(chan struct{}),
	}
	d.cmd.Args[0] = program
	d.cmd.Env = os.Environ()
	d.cmd.Stderr = c.call.Stderr
	d.cmd.SysProcAttr = &unix.SysProcAttr{
		Setpgid:   true, // a ^C is for the command; the daemons end after it
		Pdeathsig: unix.SIGKILL,
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fault.New(0, "", program, err)
	}
	go func() {
		err := d.cmd.Wait()
		close(d.ended)
		select {
		case <-d.ending:
		default:
			died(fault.Errorf(fault.Failure, "", program, "%w: %v", errDaemon, err))
		}
	}()
	return d, c.ready(ctx, d, c.paths.PidFile(name), program)
}

// ready waits until the daemon has written its pid file.
func (c *captive) ready(ctx context.Context, d *daemon, pidFile, program string) error {
	for {
		if info, err := os.Stat(pidFile); err == nil && info.Size() > 0 {
			return nil
		}
		select {
		case <-d.ended:
			return fault.Errorf(fault.Failure, "", program, "%w before it was ready", errDaemon)
		case <-ctx.Done():
			return fault.New(0, "", program, fmt.Errorf("waiting until it is ready: %w", context.Cause(ctx)))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// end sends TERM, once more after each of these delays, and in the end KILL,
// and waits for the process.
func (d *daemon) end(delays ...time.Duration) {
	close(d.ending)
	for _, delay := range append(delays, endLimit) {
		_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended
		select {
		case <-d.ended:
			return
		case <-time.After(delay):
		}
	}
	_ = d.cmd.Process.Kill()
	<-d.ended
}

// logLevel is the level for a daemon's log: that of --log, or else warn, since
// the terminal is the command's.
func (c *captive) logLevel(component string) string {
	if !c.call.IsSet("log") && !c.call.IsSet("verbose") {
		return "warn"
	}
	log := c.call.Logger(component)
	for _, level := range []struct {
		slog.Level
		name string
	}{{slog.LevelDebug, "debug"}, {slog.LevelInfo, "info"}, {slog.LevelWarn, "warn"}} {
		if log.Enabled(context.Background(), level.Level) {
			return level.name
		}
	}
	return "error"
}
