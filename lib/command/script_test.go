// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
)

// TestScripts runs testdata/script with real daemons. Each script has folders of
// its own, RUN and STATE; the commands are on its PATH. Beside those of
// testscript it has the commands of the table below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"start":  start,
			"signal": sendSignal,
			"ended":  ended,
			"exits":  exits,
			"mask":   mask,
			"guest":  guest,
			"post":   post,
		},
	})
}

// setup makes a short run folder: sockets have no room for the one of the
// script.
func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("/tmp", "leap-script")
	if err != nil {
		return err
	}
	w := &world{run: filepath.Join(dir, "run"), daemons: make(map[string]*process), guests: make(map[string]*machine)}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		w.end()
		os.RemoveAll(dir)
	})
	env.Setenv("GORACE", os.Getenv("GORACE"))
	for name, value := range map[string]string{"RUN": filepath.Join(dir, "run"), "STATE": filepath.Join(dir, "state")} {
		env.Setenv(name, value)
		env.Setenv("LEAP_"+name+"_DIR", value)
	}
	return nil
}

// world is what runs beside a script. Only the script's goroutine uses it.
type world struct {
	run     string              // the folder RUN
	daemons map[string]*process // by name
	guests  map[string]*machine // by port
}

type worldKey struct{}

// of gives the world of a script.
func of(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// process is a daemon and its log.
type process struct {
	cmd  *exec.Cmd
	log  string // a file
	done chan struct{}
}

// read gives what the daemon, and those that took its place, have logged.
func (p *process) read() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// find gives a daemon that the script has started.
func find(ts *testscript.TestScript, name string) *process {
	p := of(ts).daemons[name]
	if p == nil {
		ts.Fatalf("daemon %s was not started", name)
	}
	return p
}

// end ends what is left.
func (w *world) end() {
	for _, m := range w.guests {
		m.close()
	}
	for _, p := range w.daemons {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	// Those that took their place are not our children.
	files, _ := filepath.Glob(filepath.Join(w.run, "*.pid"))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(line, []byte("leap-")) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// limit is how long anything in a script may take: far longer than it does.
const limit = 60 * time.Second

// start NAME [ARG...] starts leap-wpt (NAME is wpt) or the runtime NAME, and
// waits until it is ready.
func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: start NAME [ARG...]")
	}
	name := args[0]
	words := append([]string{"leap-soc", "run", "--name", name}, args[1:]...)
	if name == "wpt" {
		words = append([]string{"leap-wpt", "run"}, args[1:]...)
	}
	path, err := exec.LookPath(words[0])
	ts.Check(err)
	p := &process{cmd: exec.Command(path, words[1:]...), log: ts.MkAbs(name + ".log"), done: make(chan struct{})}
	logFile, err := os.Create(p.log)
	ts.Check(err)
	defer logFile.Close()
	p.cmd.Args[0] = words[0]
	p.cmd.Dir = ts.Getenv("WORK")
	p.cmd.Env = append(os.Environ(), "LEAP_RUN_DIR="+ts.Getenv("LEAP_RUN_DIR"), "LEAP_STATE_DIR="+ts.Getenv("LEAP_STATE_DIR"))
	p.cmd.Stderr = logFile
	ts.Check(p.cmd.Start())
	of(ts).daemons[name] = p
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	pidFile := filepath.Join(ts.Getenv("LEAP_RUN_DIR"), name+".pid")
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(pidFile)
		if err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(p.cmd.Process.Pid) {
			return
		}
		select {
		case <-p.done:
			ts.Fatalf("%s ended before it was ready:\n%s", name, p.read())
		default:
		}
		if time.Now().After(end) {
			ts.Fatalf("%s is not ready after %v", name, limit)
		}
	}
}

// signal NAME SIGNAL sends a signal to a daemon.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME SIGNAL")
	}
	sig := unix.SignalNum("SIG" + args[1])
	if sig == 0 {
		ts.Fatalf("no signal %s", args[1])
	}
	ts.Check(find(ts, args[0]).cmd.Process.Signal(sig))
}

// ended NAME CODE waits until a daemon has ended with this exit code (-1: by a
// signal). Its log is the file NAME.log.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ended NAME CODE")
	}
	p := find(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(limit):
		ts.Fatalf("%s has not ended after %v", args[0], limit)
	}
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with exit code %s, want %s:\n%s", args[0], got, args[1], p.read())
	}
}

// exits CODE PROGRAM [ARG...] is exec of a program that ends with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG...]")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("%s ended with exit code %d, want %s", strings.Join(args[1:], " "), code, want)
	}
}

// post RUNTIME COLLECTION JSON makes a call that no command makes.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: post RUNTIME COLLECTION JSON")
	}
	paths, err := api.NewPaths(ts.Getenv("RUN"), ts.Getenv("STATE"))
	ts.Check(err)
	client, err := paths.Runtime(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ts.Check(client.Post(ctx, api.Path(args[1]), json.RawMessage(args[2]), nil))
}

// masks are what differs from run to run, beside names and folders.
var masks = []struct {
	pattern *regexp.Regexp
	word    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b[0-9a-f]{20}\b`), "SERIAL"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`("(?:pid|uptime|client_pid)": )[1-9]\d*`), "${1}NUMBER"},
	{regexp.MustCompile(`("owner": )"[^"]+"`), `${1}"USER"`},
	{regexp.MustCompile(`("io_uring": )(true|false)`), "${1}BOOL"},
}

// mask FILE RESULT makes a copy of FILE, or of stdout or stderr, in which what
// differs from run to run is replaced by words.
func mask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mask FILE RESULT")
	}
	text := ts.ReadFile(args[0])
	for _, dir := range []string{"RUN", "STATE", "WORK"} {
		text = strings.ReplaceAll(text, ts.Getenv(dir), dir)
	}
	for _, m := range masks {
		text = m.pattern.ReplaceAllString(text, m.word)
	}
	for _, p := range of(ts).daemons {
		text = regexp.MustCompile(fmt.Sprintf(`\b%d\b`, p.cmd.Process.Pid)).ReplaceAllString(text, "PID")
	}
	if u, err := user.Current(); err == nil {
		text = regexp.MustCompile(`\t`+regexp.QuoteMeta(u.Username)+`\t`).ReplaceAllString(text, "\tUSER\t")
	}
	text = strings.ReplaceAll(text, cli.Version(), "VERSION")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
}
