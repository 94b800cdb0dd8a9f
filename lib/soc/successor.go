// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/qpair"
)

// An upgrade is a restart in which the next runtime waits already. The one that
// ends starts it, and lets go of everything as at any end; then it waits until
// the other serves, and takes its own place again if that dies. They talk by
// lines over a pair of sockets:
//
//	successor: "standby"  everything that can be done before is done
//	before:    "go NANOS" it stops; when that began, Unix time
//	successor: "ready"    it serves

const (
	daemon = "leap-soc"
	// successorEnv names the descriptor of the socket.
	successorEnv = "LEAP_SUCCESSOR"
	// standbyLimit is how long a program may take to be on standby.
	standbyLimit = 10 * time.Second
	// takeoverLimit is how long it may take until it serves.
	takeoverLimit = 60 * time.Second
)

// layouts are the versions of what is shared with leap-wpt, and of what a runtime
// leaves there to the next one.
var layouts = map[string]int{
	"link": qpair.LinkVersion, "registers": qpair.RegistersVersion, "state": qpair.StateVersion, "controller": controller.StateVersion,
}

// Check reports what this program is, or why it could not be the runtime of cfg.
// It changes nothing.
func Check(cfg Config) (api.Program, error) {
	if err := stateFile(cfg).Check(); err != nil {
		return api.Program{}, err
	}
	return api.Program{Daemon: daemon, Version: cfg.Version, Layouts: layouts}, nil
}

// successor is a program that waits to take over.
type successor struct {
	cmd    *exec.Cmd
	socket *os.File
	lines  chan string   // what it says; closed at its end
	exited chan struct{} // closed when it has ended
}

// startSuccessor starts the program at path with the arguments of this one, and
// waits until it is on standby.
func startSuccessor(ctx context.Context, path string) (*successor, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket for the next runtime: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "successor")
	// So that Close ends a read, whoever still holds the other end.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("making a socket for the next runtime: %w", err), theirs.Close(), unix.Close(pair[0]))
	}
	s := &successor{
		socket: os.NewFile(uintptr(pair[0]), "successor"), lines: make(chan string, 4), exited: make(chan struct{}),
		cmd: exec.Command(path),
	}
	s.cmd.Args = slices.Clone(os.Args)
	s.cmd.Stdout, s.cmd.Stderr = os.Stdout, os.Stderr
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.Env = append(os.Environ(), successorEnv+"=3")
	err = s.cmd.Start()
	theirs.Close() // only its own is left, so that its end is seen
	if err != nil {
		s.socket.Close()
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.exited)
	}()
	go func() {
		defer close(s.lines)
		for in := bufio.NewScanner(s.socket); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	if err := s.expect(ctx, "standby", standbyLimit); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// expect waits for a line.
func (s *successor) expect(ctx context.Context, want string, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case line, ok := <-s.lines:
		switch {
		case !ok:
			return fault.Errorf(fault.Failure, "", "", "it has ended before it said %q; its log tells why", want)
		case line != want:
			return fault.Errorf(fault.Peer, "", "", "it says %q instead of %q", line, want)
		}
		return nil
	case <-timer.C:
		return fault.Errorf(fault.Timeout, "", "", "it has not said %q within %v", want, limit)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopping tells it that this runtime stops.
func (s *successor) stopping() {
	// If it has died, that is found out when it is waited for.
	_, _ = fmt.Fprintf(s.socket, "go %d\n", time.Now().UnixNano())
}

// takeOver waits until it serves. Everything this runtime had is free. On an
// error it has ended. If ctx ends, so does the other.
func (s *successor) takeOver(ctx context.Context) error {
	switch err := s.expect(ctx, "ready", takeoverLimit); {
	case err == nil:
		s.socket.Close()
	case ctx.Err() != nil:
		_ = s.cmd.Process.Signal(unix.SIGTERM) // os.ErrProcessDone, at most
		<-s.exited
	default:
		s.end()
		return err
	}
	return nil
}

// end kills it, if it has not ended.
func (s *successor) end() {
	_ = s.cmd.Process.Kill() // os.ErrProcessDone, at most
	<-s.exited
	s.socket.Close()
	for range s.lines {
	}
}

// before is the runtime that this one succeeds, from which it was started.
type before struct{ socket *os.File }

// startedBy returns the runtime that has started this one, nil if none has.
func startedBy() (*before, error) {
	text := os.Getenv(successorEnv)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(successorEnv); err != nil { // it is not for our children
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 0 {
		return nil, fault.Errorf(fault.Usage, "", "", "%s=%s: not the number of a file", successorEnv, text)
	}
	unix.CloseOnExec(fd)
	return &before{os.NewFile(uintptr(fd), "before")}, nil
}

// say tells it something. It may be gone: then this runtime goes on by itself.
func (b *before) say(line string) {
	if b != nil {
		_, _ = fmt.Fprintln(b.socket, line)
	}
}

// serving tells it that this runtime serves, and returns when the other began to
// stop; the zero time: it has died before.
func (b *before) serving() (stopped time.Time) {
	if b == nil {
		return stopped
	}
	defer b.socket.Close()
	b.say("ready")
	line, err := bufio.NewReader(b.socket).ReadString('\n')
	if err != nil {
		return stopped
	}
	nanos, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(line, "go ")), 10, 64)
	if err != nil {
		return stopped
	}
	return time.Unix(0, nanos)
}

// upgrade has the program at a path take over, if it says that it can. When it
// returns, it is on standby, and this runtime is about to stop.
func (r *Runtime) upgrade(ctx context.Context, to api.Upgrade) (api.Program, error) {
	about := func(err error) error { return fault.New(0, "upgrade", to.Binary, err) }
	var shared map[string]int // nothing, while there is no link
	if r.linkNow() != nil {
		shared = layouts
	}
	program, err := api.AskProgram(ctx, to.Binary, daemon, shared)
	if err != nil {
		return program, about(err)
	}
	r.upgradeMu.Lock()
	defer r.upgradeMu.Unlock()
	if r.successor != nil {
		return program, about(fault.Errorf(fault.Exists, "", "", "another upgrade is under way"))
	}
	s, err := startSuccessor(ctx, to.Binary)
	if err != nil {
		return program, about(err)
	}
	r.log.Info("upgrade", "binary", to.Binary, "version", program.Version, "pid", s.cmd.Process.Pid)
	r.successor = s
	r.stop()
	return program, nil
}

// next returns the successor that is to take over, nil if this is just the end.
func (r *Runtime) next() *successor {
	r.upgradeMu.Lock()
	defer r.upgradeMu.Unlock()
	return r.successor
}
