// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/command/commandtest"
	"github.com/leapio/leapio/lib/guest"
)

// rig is a leap-wpt and a leap-soc in folders of their own, and the guests that
// have their drives. When the test fails it shows what all of them said.
type rig struct {
	t     *testing.T
	paths api.Paths
	wpt   *daemon
	soc   *daemon
}

// twoPollers are arguments of leap-soc run, where the machine has two processors.
func twoPollers() []string {
	if runtime.NumCPU() < 2 {
		return nil
	}
	return []string{"--pollers", "0-1"}
}

// newRig starts both daemons, leap-soc with these arguments.
func newRig(t *testing.T, args ...string) *rig {
	t.Helper()
	return startRig(t, false, args...)
}

// newManagedRig is newRig with a service manager for leap-wpt, which keeps its
// open files.
func newManagedRig(t *testing.T, args ...string) *rig {
	t.Helper()
	return startRig(t, true, args...)
}

func startRig(t *testing.T, managed bool, args ...string) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "leap") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	paths, err := api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, paths: paths}
	t.Cleanup(r.showLogs)
	var manager *commandtest.Manager
	if managed {
		if manager, err = commandtest.NewManager(dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if left := manager.Stored(); len(left) > 0 && !t.Failed() {
				t.Errorf("after its stop leap-wpt has left files with its service manager: %v", left)
			}
			if err := manager.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	r.wpt = r.newDaemon("leap-wpt", paths.PidFile("wpt"))
	r.wpt.manager = manager
	r.soc = r.newDaemon("leap-soc", paths.PidFile(api.DefaultRuntime), args...)
	r.wpt.start()
	r.soc.start()
	return r
}

// env is what tells the commands their folders.
func (r *rig) env() []string {
	return append(os.Environ(), "LEAP_RUN_DIR="+r.paths.Run, "LEAP_STATE_DIR="+r.paths.State)
}

// run runs a program that must succeed within a minute, and returns what it
// printed.
func (r *rig) run(program string, args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = r.env()
	cmd.WaitDelay = time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		r.t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), errors.Join(ctx.Err(), err), out.String(), said.String())
	}
	return out.String()
}

// leap runs one of our command lines, taken apart at blanks.
func (r *rig) leap(line string) string {
	r.t.Helper()
	words := strings.Fields(line)
	return r.run(filepath.Join(bin, words[0]), words[1:]...)
}

// refused runs one of our command lines, which must fail with that exit code and
// say why.
func (r *rig) refused(code int, why, line string) {
	r.t.Helper()
	words := strings.Fields(line)
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(bin, words[0]), words[1:]...)
	cmd.Env = r.env()
	said, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code || !strings.Contains(string(said), why) {
		r.t.Errorf("%s: got %v, %q, want exit code %d, %q", line, err, said, code, why)
	}
}

// leapJSON is leap for a command that prints JSON, which is read into out.
func (r *rig) leapJSON(out any, line string) {
	r.t.Helper()
	text := r.leap(line + " -o json")
	if err := json.Unmarshal([]byte(text), out); err != nil {
		r.t.Fatalf("%s -o json: %v in\n%s", line, err, text)
	}
}

// port is what leap-wpt knows of a port.
func (r *rig) port(name string) (p api.Port) {
	r.t.Helper()
	r.leapJSON(&p, "leap-wpt port show "+name)
	return p
}

// fact is the content of a file below the run folder, without its newline.
func (r *rig) fact(path string) string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.paths.Run, path))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// image is the data file of a volume of the kind file.
func (r *rig) image(volume string) string { return r.paths.VolumeData(volume) }

// tool runs a program of the guests' packages on this machine.
func (r *rig) tool(name string, args ...string) string {
	r.t.Helper()
	script, err := guest.Wrapper(r.t.Context(), os.Stderr, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.run(script, args...)
}

// fsck has the file system on a volume's file checked, which must be clean: the
// file is not changed.
func (r *rig) fsck(volume string) {
	r.t.Helper()
	r.tool("e2fsck", "-f", "-n", r.image(volume))
}

// readFile returns a file of the file system on a volume's file, as it is there
// without its journal being replayed.
func (r *rig) readFile(volume, path string) string {
	r.t.Helper()
	copied := filepath.Join(r.t.TempDir(), "file")
	said := r.tool("debugfs", "-R", "dump "+path+" "+copied, r.image(volume))
	text, err := os.ReadFile(copied)
	if err != nil {
		r.t.Fatalf("%s on volume %s: %v\n%s", path, volume, err, said)
	}
	return string(text)
}

// daemon is leap-wpt or leap-soc, which may be started more than once. Its log
// goes on over restarts.
type daemon struct {
	r    *rig
	name string
	pid  string // its pid file
	args []string
	log  *os.File // to which its successors write as well

	manager *commandtest.Manager // nil: the test starts it

	process *os.Process // nil while it does not run
	exited  <-chan error
}

// newDaemon has the daemon stopped when the test ends.
func (r *rig) newDaemon(name, pid string, args ...string) *daemon {
	log, err := os.Create(filepath.Join(filepath.Dir(r.paths.Run), name+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { log.Close() })
	d := &daemon{r: r, name: name, pid: pid, args: args, log: log}
	r.t.Cleanup(d.stop)
	return d
}

// logged is all that the daemon has logged.
func (d *daemon) logged() string {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.r.t.Error(err)
	}
	return string(text)
}

// showLogs shows the logs of both daemons if the test failed. No test here has
// a daemon meet an error.
func (r *rig) showLogs() {
	for _, d := range []*daemon{r.wpt, r.soc} {
		if d != nil && strings.Contains(d.logged(), "level=ERROR") {
			r.t.Errorf("%s logged an error", d.name)
		}
	}
	for _, d := range []*daemon{r.wpt, r.soc} {
		if d != nil && r.t.Failed() {
			r.t.Logf("log of %s:\n%s", d.name, tail(d.logged()))
		}
	}
}

// start starts the daemon and waits until its pid file says that it serves.
func (d *daemon) start() {
	d.r.t.Helper()
	exited := d.launch()
	deadline := time.After(20 * time.Second)
	for d.serving() != d.process.Pid {
		select {
		case err := <-exited:
			d.process = nil
			d.r.t.Fatalf("%s ended at its start: %v", d.name, err)
		case <-deadline:
			d.r.t.Fatalf("%s is not ready after 20 s", d.name)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// launch starts the process.
func (d *daemon) launch() <-chan error {
	d.r.t.Helper()
	if d.manager != nil {
		p, err := d.manager.Start(filepath.Join(bin, d.name), append([]string{"run"}, d.args...), d.r.env(), d.log)
		if err != nil {
			d.r.t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- p.Wait() }()
		if d.process, err = os.FindProcess(p.Pid); err != nil {
			d.r.t.Fatal(err)
		}
		d.exited = exited
		return exited
	}
	cmd := exec.Command(filepath.Join(bin, d.name), append([]string{"run"}, d.args...)...)
	cmd.Env = d.r.env()
	cmd.Stdout, cmd.Stderr = d.log, d.log
	// A test that is killed takes it along. The kernel watches the thread that
	// started it, which stays for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until the goroutine ends
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		d.r.t.Fatal(err)
	}
	d.process, d.exited = cmd.Process, exited
	return exited
}

// serving is the process that the pid file names, 0 if there is none.
func (d *daemon) serving() int {
	text, err := os.ReadFile(d.pid)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return 0
	}
	return pid
}

// upgrade has the daemon replaced by its own program: leap-wpt in its process,
// leap-soc by another one, which becomes a child of the test when the one that
// started it has ended. A test that is killed leaves either behind.
func (d *daemon) upgrade() {
	d.r.t.Helper()
	said := d.r.leap(d.name + " upgrade " + filepath.Join(bin, d.name) + " -o tsv")
	pid := d.serving()
	if pid == d.process.Pid {
		if d.name == "leap-soc" {
			d.r.t.Errorf("leap-soc is still process %d after its upgrade: %s", pid, said)
		}
		return
	}
	if err := <-d.exited; err != nil || pid == 0 {
		d.r.t.Fatalf("%s: process %d ended with %v, and %d took over", d.name, d.process.Pid, err, pid)
	}
	next, err := os.FindProcess(pid)
	if err != nil {
		d.r.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() {
		state, err := next.Wait()
		if err == nil && !state.Success() {
			err = errors.New(state.String())
		}
		exited <- err
	}()
	d.process, d.exited = next, exited
}

// stop ends the daemon as its service manager does; it must exit with 0.
func (d *daemon) stop() {
	d.r.t.Helper()
	if d.process == nil {
		return
	}
	process := d.process
	d.process = nil
	if err := process.Signal(syscall.SIGTERM); err != nil {
		d.r.t.Errorf("%s had ended: %v", d.name, <-d.exited)
		return
	}
	select {
	case err := <-d.exited:
		if err != nil {
			d.r.t.Errorf("%s: got %v when it was stopped, want exit status 0", d.name, err)
		}
	case <-time.After(30 * time.Second):
		d.r.t.Errorf("%s does not stop; it is killed", d.name)
		_ = process.Signal(syscall.SIGQUIT) // its goroutines, into the log
		time.Sleep(time.Second)
		_ = process.Kill()
		<-d.exited
	}
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	d.r.t.Helper()
	process := d.process
	d.process = nil
	if err := process.Kill(); err != nil {
		d.r.t.Errorf("%s had ended: %v", d.name, err)
	}
	<-d.exited
}

// lockedBuffer takes what a process says while others read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tail returns the last lines of a text.
func tail(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if n := len(lines) - 300; n > 0 {
		lines = append([]string{fmt.Sprintf("(%d lines before)", n)}, lines[n:]...)
	}
	return strings.Join(lines, "\n")
}

// sharing is how a machine's memory is given to QEMU.
type sharing string

const (
	shared   sharing = "shared"   // as leap-wpt port qemu prints it
	shareOff sharing = "shareoff" // a file, but share=off: the guest writes to a copy of it
	noFile   sharing = "nofile"   // as QEMU has it by itself
)

// machine describes a guest with drives.
type machine struct {
	guest.Config
	ports     []string
	sharing   sharing // "" is shared
	unplugged bool    // has memory for drives and no drive
}

// memory is the RAM of every guest, MiB.
const memory = 512

// qemuArgs are the arguments that give a machine its drives, taken apart as sh
// does with an unquoted $(...).
func (r *rig) qemuArgs(m machine) []string {
	r.t.Helper()
	if len(m.ports) == 0 {
		return nil
	}
	args := strings.Fields(r.leap(fmt.Sprintf("leap-wpt port qemu %s --mem %dM", strings.Join(m.ports, " "), memory)))
	devices := slices.Index(args, "-device")
	if devices < 1 || !strings.Contains(args[1], "share=on") {
		r.t.Fatalf("arguments %q: want memory with share=on, then devices", args)
	}
	switch m.sharing {
	case shareOff:
		args[1] = strings.Replace(args[1], "share=on", "share=off", 1)
	case noFile:
		args, devices = args[devices:], 0
	}
	if m.unplugged {
		args = args[:devices]
	}
	return args
}

// start boots a guest. If the test fails its console is shown.
func (r *rig) start(m machine) *guest.VM {
	r.t.Helper()
	cfg := m.Config
	cfg.Memory = memory
	cfg.Job = functions + cfg.Job
	cfg.QEMUArgs = append(r.qemuArgs(m), cfg.QEMUArgs...)
	vm, err := guest.Start(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		vm.Kill()
		result, _ := vm.Wait()
		for _, port := range m.ports {
			r.waitPort(port, api.PortWaiting) // or leap-wpt would refuse to stop
		}
		r.t.Logf("guest with %s: status %d, %d boots, %.1f s", strings.Join(m.ports, ", "), result.ExitCode, result.Boots, result.Elapsed.Seconds())
		if r.t.Failed() {
			r.t.Logf("console:\n%s", tail(result.Console))
		}
	})
	return vm
}

// boot runs a guest to its end; its job must succeed, in one boot.
func (r *rig) boot(m machine) *guest.Result {
	r.t.Helper()
	return r.wait(r.start(m), 1)
}

// wait waits for a guest's end; its job must succeed.
func (r *rig) wait(vm *guest.VM, boots int) *guest.Result {
	r.t.Helper()
	result, err := vm.Wait()
	if err != nil || result.ExitCode != 0 || result.Boots != boots {
		r.t.Fatalf("guest: got status %d, %d boots, %v, want 0, %d", result.ExitCode, result.Boots, err, boots)
	}
	return result
}

// line waits for a line the guest prints or gives to notify.
func (r *rig) line(vm *guest.VM, re string) []string {
	r.t.Helper()
	match, err := vm.WaitLine(r.t.Context(), regexp.MustCompile(re))
	if err != nil {
		r.t.Fatal(err)
	}
	return match
}

// send gives the guest a line for await.
func (r *rig) send(vm *guest.VM, line string) {
	r.t.Helper()
	if err := vm.Send(r.t.Context(), line); err != nil {
		r.t.Fatal(err)
	}
}

// waitPort waits until a port is in a state; the command that scripts use for it
// does the waiting.
func (r *rig) waitPort(name, state string) {
	r.t.Helper()
	r.leap(fmt.Sprintf("leap-soc wait port %s %s --timeout 30s", name, state))
}

// checkPattern holds the file of a volume against what fill has made of it.
func (r *rig) checkPattern(volume, line string) {
	r.t.Helper()
	r.checkImage(r.image(volume), line)
}

// checkImage is checkPattern for any file.
func (r *rig) checkImage(path, line string) {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	want := bytes.Repeat(fmt.Appendf(nil, "%-31s\n", line), len(data)/32)
	if len(data) == 0 || !bytes.Equal(data, want) {
		r.t.Errorf("%s: its %d bytes are not lines of %q", filepath.Base(path), len(data), line)
	}
}
