// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildPrograms builds the commands as they are shipped: with the race detector,
// or cgo, this binary makes other system calls, and it is larger.
func buildPrograms(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", dir)
	for _, name := range []string{"leap-wpt", "leap-soc", "leap-qmap", "leap-rdma"} {
		build.Args = append(build.Args, "github.com/leapio/leapio/cmd/"+name)
	}
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the commands: %v\n%s", err, out)
	}
	return dir
}

// installed are the commands as they are shipped, and folders for their daemons.
type installed struct {
	t        testing.TB
	programs string // the folder of the commands
	dir      string // short, with the folders run and state
	daemons  map[string]*process
	next     int // number of the log
}

func newInstalled(t testing.TB, programs string) *installed {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "leap-installed")
	if err != nil {
		t.Fatal(err)
	}
	r := &installed{t: t, programs: programs, dir: dir, daemons: make(map[string]*process)}
	for _, name := range []string{"run", "state"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		(&world{run: filepath.Join(dir, "run"), daemons: r.daemons}).end()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, log := range logs {
				b, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", filepath.Base(log), b)
			}
		}
		os.RemoveAll(dir)
	})
	return r
}

// command makes a command of one of the programs, for who runs the test.
func (r *installed) command(words ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(r.programs, words[0]), words[1:]...)
	cmd.Env = append(os.Environ(), r.folders()...)
	return cmd
}

// run runs a command, and returns what it prints.
func (r *installed) run(line string) string {
	r.t.Helper()
	cmd := r.command(strings.Fields(line)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s%s", line, err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// folders are the environment of commands and daemons.
func (r *installed) folders() []string {
	return []string{"LEAP_RUN_DIR=" + filepath.Join(r.dir, "run"), "LEAP_STATE_DIR=" + filepath.Join(r.dir, "state")}
}

// launch starts a daemon. It is the daemon of its name from now on.
func (r *installed) launch(name string, cmd *exec.Cmd) *process {
	r.t.Helper()
	r.next++
	log, err := os.Create(filepath.Join(r.dir, fmt.Sprintf("%s-%d.log", name, r.next)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Dir, cmd.Stderr = "/", log
	p := &process{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	r.daemons[name] = p
	return p
}

// serves waits until a daemon serves.
func (r *installed) serves(name string, p *process) {
	r.t.Helper()
	r.wait(name+" serves", func() bool { return r.pid(name) == p.cmd.Process.Pid }, p)
}

// pid is who a pid file names, 0 for nobody.
func (r *installed) pid(name string) int {
	b, _ := os.ReadFile(filepath.Join(r.dir, "run", name+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// wait waits for something. The end of a process that it depends on is the end of
// the test.
func (r *installed) wait(what string, ok func() bool, on *process) {
	r.t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if on != nil {
			select {
			case <-on.done:
				r.t.Fatalf("waiting until %s: %v", what, on.cmd.ProcessState)
			default:
			}
		}
		if time.Since(begin) > limit {
			r.t.Fatalf("waiting until %s", what)
		}
	}
}

// ends sends a signal to a daemon, and waits for its end.
func (r *installed) ends(name string, sig unix.Signal, code int) {
	r.t.Helper()
	p := r.daemons[name]
	if err := p.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
	r.gone(name, code)
}

func (r *installed) gone(name string, code int) {
	r.t.Helper()
	p := r.daemons[name]
	select {
	case <-p.done:
	case <-time.After(limit):
		r.t.Fatalf("%s does not end", name)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		r.t.Fatalf("%s: %v, want exit code %d", name, p.cmd.ProcessState, code)
	}
	delete(r.daemons, name)
}

// manager is who daemons tell what they do, as to systemd; nobody listens.
func (r *installed) manager() {
	r.t.Helper()
	address := filepath.Join(r.dir, "run", "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := os.Chmod(address, 0o666); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		for b := make([]byte, 4096); ; {
			if _, err := conn.Read(b); err != nil {
				return
			}
		}
	}()
}
