// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/uring"
)

// newDoctor examines folders that are there and empty.
func newDoctor(t *testing.T) *Doctor {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	paths, err := api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{paths.Run, paths.State} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &Doctor{Paths: paths, Version: "v1"}
}

// find returns the finding of a check.
func find(t *testing.T, findings []Finding, check string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding of %s in %v", check, findings)
	return Finding{}
}

// want holds a finding against its state and a word of what was found.
func want(t *testing.T, findings []Finding, check string, state State, words string) {
	t.Helper()
	if f := find(t, findings, check); f.State != state || !strings.Contains(f.Found, words) {
		t.Errorf("%s is %s, %q, want %s, %q", check, f.State, f.Found, state, words)
	}
}

// TestHang: a check that hangs is a finding, and keeps none of the others.
func TestHang(t *testing.T) {
	hung := make(chan struct{})
	defer close(hung)
	findings := newDoctor(t).examine(context.Background(), []check{
		{"first", func(*Doctor, context.Context) []Finding { return one("first", OK, "fine", "") }},
		{"hangs", func(*Doctor, context.Context) []Finding { <-hung; return nil }},
		{"last", func(*Doctor, context.Context) []Finding { return one("last", Warn, "well", "") }},
	}, 20*time.Millisecond)
	if len(findings) != 3 || findings[0].Check != "first" || findings[1].Check != "hangs" || findings[2].Check != "last" {
		t.Fatalf("found %v", findings)
	}
	want(t, findings, "hangs", Fail, "no answer within 20ms")
}

// TestFailure: what may not be seen is no failure.
func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		err   error
		state State
	}{
		{&fs.PathError{Op: "open", Path: "x", Err: unix.EACCES}, Skip},
		{fault.Errorf(fault.Permission, "", "", "no"), Skip},
		{fault.Errorf(fault.Peer, "", "", "gone"), Fail},
		{unix.EIO, Fail},
	} {
		if f := failure("x", tt.err, ""); f.State != tt.state {
			t.Errorf("%v is %v", tt.err, f)
		}
	}
	if f := failure("x", fault.Errorf(fault.Failure, "", "", "bad").Hint("do that"), "do this"); f.Fix != "do that" {
		t.Errorf("got %v", f)
	}
}

func TestURing(t *testing.T) {
	for _, tt := range []struct {
		err   error
		state State
		fix   string
	}{
		{nil, OK, ""},
		{&uring.UnavailableError{Missing: "disabled by sysctl kernel.io_uring_disabled=2", Err: unix.EPERM}, Warn, "sysctl kernel.io_uring_disabled=0"},
		{&uring.UnavailableError{Missing: "forbidden by a seccomp filter or a security module", Err: unix.EPERM}, Warn, "threads"},
		{unix.ENOMEM, Fail, ""},
	} {
		if f := uringFinding(tt.err); f.State != tt.state || !strings.Contains(f.Fix, tt.fix) {
			t.Errorf("%v is %v", tt.err, f)
		}
	}
}

func TestMemlock(t *testing.T) {
	for release, counts := range map[string]bool{
		"5.11.0-generic": true, "4.19.0": true, "5.12.0": false, "6.1.0-1-amd64": false, "10.0": false, "": false, "odd": false,
	} {
		if countsMemlock(release) != counts {
			t.Errorf("%q: %v", release, !counts)
		}
	}
}

func TestShm(t *testing.T) {
	want(t, shmAt(filepath.Join(t.TempDir(), "none")), "shm", Warn, "no such file")
	want(t, shmAt("/proc"), "shm", Warn, "is no tmpfs")
	if mountOptions("/proc") == "" || mountOptions("/nosuch") != "" {
		t.Error("options of /proc or /nosuch")
	}
}

// TestFolders: who may write where, what is a socket, and what fits.
func TestFolders(t *testing.T) {
	d, ctx := newDoctor(t), context.Background()
	want(t, d.runFolder(ctx), "run-folder", OK, "mode 0700")
	want(t, d.runFolder(ctx), "socket-paths", OK, "bytes with the longest name")
	want(t, d.stateFolder(ctx), "state-folder", OK, "mode 0700")
	for dir, look := range map[string]func(context.Context) []Finding{d.Paths.Run: d.runFolder, d.Paths.State: d.stateFolder} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		want(t, look(ctx), filepath.Base(dir)+"-folder", Fail, "mode 0777")
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := api.Listen(d.Paths.WptSocket(), "unix", 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(d.Paths.Run, "two.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, d.runFolder(ctx), "socket wpt.sock", Fail, "mode 0660")
	want(t, d.runFolder(ctx), "socket two.sock", Fail, "is no socket")

	long := &Doctor{Paths: api.Paths{Run: "/tmp/" + strings.Repeat("x", 80), State: d.Paths.State}}
	want(t, long.runFolder(ctx), "socket-paths", Warn, "room for 10 characters")
	want(t, long.runFolder(ctx), "run-folder", OK, "is not there")
	file := &Doctor{Paths: api.Paths{Run: filepath.Join(d.Paths.Run, "two.sock"), State: d.Paths.State}}
	want(t, file.runFolder(ctx), "run-folder", Fail, "is no folder")
}

func TestStateFiles(t *testing.T) {
	d, ctx := newDoctor(t), context.Background()
	for name, text := range map[string]string{
		"wpt": `{"version":1,"state":{"ports":[]}}`, "soc": `{"version":1000,"state":{}}`, "two": "", "Not-A-Name": "",
	} {
		if err := os.WriteFile(d.Paths.StateFile(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	findings := d.stateFiles(ctx)
	want(t, findings, "state-file wpt", OK, "can be read")
	want(t, findings, "state-file soc", Fail, "version 1000")
	want(t, findings, "state-file two", Fail, "it is empty")
	if len(findings) != 3 {
		t.Errorf("found %v", findings)
	}
}

// TestPidFile: a pid file is looked at without its lock being touched.
func TestPidFile(t *testing.T) {
	d := newDoctor(t)
	path := d.Paths.PidFile("soc")
	look := func(want pidFile) {
		t.Helper()
		if got, err := readPidFile(path); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	look(pidFile{})
	p, err := api.LockPidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	look(pidFile{there: true, locked: true})
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	look(pidFile{there: true, pid: os.Getpid(), locked: true})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	look(pidFile{})
	if err := os.WriteFile(path, []byte("12345\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	look(pidFile{there: true, pid: 12345})
	if isLocked("1: POSIX  ADVISORY  WRITE 1 08:01:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 1 08:01:177 0 EOF\n", 77) {
		t.Error("another lock counts")
	}
}

// TestDaemon: what a daemon's files say when it does not answer, and when it does.
func TestDaemon(t *testing.T) {
	d, ctx := newDoctor(t), context.Background()
	client, err := d.Paths.Runtime("")
	if err != nil {
		t.Fatal(err)
	}
	look := func(state State, words string, answers bool) {
		t.Helper()
		findings, got := d.daemon(ctx, "soc", "soc", "leap-soc run", client)
		want(t, findings, "soc", state, words)
		if got != answers {
			t.Errorf("%v: answers: %v", findings, got)
		}
	}
	look(Skip, "not running", false)
	p, err := api.LockPidFile(d.Paths.PidFile("soc"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	look(Warn, "it is starting", false)
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	look(Fail, "does not answer", false)
	socket, err := d.Paths.RuntimeSocket("")
	if err != nil {
		t.Fatal(err)
	}
	l, err := api.Listen(socket, "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(api.NewMux(api.Info{Daemon: "leap-soc", Version: "v0", PID: 7}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	look(Warn, "process 7 runs v0, and this is v1", true)
	d.Version = "v0"
	look(OK, "process 7 runs v0", true)
	if findings := limits(ctx, "soc", client); findings != nil {
		t.Errorf("a daemon that knows no limits: %v", findings)
	}
	if err := errors.Join(server.Shutdown(ctx), <-served); err != nil {
		t.Fatal(err)
	}
}

// TestStaleSockets: a socket that nobody listens on is found without connecting to
// it.
func TestStaleSockets(t *testing.T) {
	d := newDoctor(t)
	if findings := d.staleSockets(); findings != nil {
		t.Errorf("found %v", findings)
	}
	for _, name := range []string{"dead", "live"} {
		if err := os.MkdirAll(d.Paths.PortDir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Paths.PortSocket(name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if name == "dead" {
			l.SetUnlinkOnClose(false)
			l.Close()
		}
	}
	want(t, d.staleSockets(), "port-sockets", Warn, "those of dead")
	if f := d.staleSockets()[0]; strings.Contains(f.Found, "live") {
		t.Errorf("found %v", f)
	}
}

// TestPrograms: programs are asked, and one that fails or says nothing of use is a
// finding.
func TestPrograms(t *testing.T) {
	d, ctx, dir := newDoctor(t), context.Background(), t.TempDir()
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script("leap-soc", "echo leap-soc v1")
	script("leap-wpt", "echo leap-wpt v2")
	script("leap-qmap", "echo broken >&2; exit 3")
	findings := d.programs(ctx)
	want(t, findings, "command leap-soc", OK, "is v1")
	want(t, findings, "command leap-wpt", Warn, "is v2, and this is v1")
	want(t, findings, "command leap-qmap", Fail, "exit status 3: broken")
	want(t, findings, "command leap-rdma", Skip, "not in PATH")
	for _, machine := range machines {
		script("qemu-system-"+machine, "echo of no use")
	}
	want(t, d.qemu(ctx), "qemu", Warn, "cannot be told")
	for _, machine := range machines {
		script("qemu-system-"+machine, "echo QEMU emulator version 9.2.0")
	}
	want(t, d.qemu(ctx), "qemu", Fail, "too old")
}
