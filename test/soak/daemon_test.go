// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
)

// daemon is leap-wpt, or the runtime of a name.
type daemon struct {
	s    *soak
	name string // wpt, or that of the runtime
	pid  int    // changed by who has soak.ending
}

func (d *daemon) command() string {
	if d.name == "wpt" {
		return filepath.Join(d.s.bin, "leap-wpt")
	}
	return filepath.Join(d.s.bin, "leap-soc")
}

func (d *daemon) logFile() string { return filepath.Join(filepath.Dir(d.s.bin), d.name+".log") }

func (d *daemon) client() *api.Client {
	if d.name == "wpt" {
		return d.s.paths.Wpt()
	}
	c, err := d.s.paths.Runtime(d.name)
	if err != nil {
		panic(err) // the names are ours
	}
	return c
}

// launch starts a process of the daemon.
func (d *daemon) launch(args ...string) (*exec.Cmd, error) {
	words := []string{"run"}
	if d.name != "wpt" {
		words = append(words, "--name", d.name, "--pollers", "0,1")
		if d.s.cpus() < 2 {
			words = words[:3]
		}
	}
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(d.command(), append(words, args...)...)
	cmd.Env = append(os.Environ(), "LEAP_RUN_DIR="+d.s.paths.Run, "LEAP_STATE_DIR="+d.s.paths.State)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, cmd.Start()
}

// who answers, with its pid and since when it serves; whole is whether it does all
// that it does: a runtime is attached.
func (d *daemon) who() (pid int, since time.Time, pause time.Duration, upgradeError string, whole bool) {
	ctx, cancel := context.WithTimeout(d.s.ctx, 10*time.Second)
	defer cancel()
	if d.name == "wpt" {
		var w api.WptShow
		err := d.client().Get(ctx, api.Path("show"), &w)
		return w.PID, w.Since, w.Pause, w.UpgradeError, err == nil
	}
	var r api.RuntimeInfo
	err := d.client().Get(ctx, api.Path("runtime"), &r)
	return r.PID, r.Since, r.Pause, r.UpgradeError, err == nil && r.Epoch > 0
}

// start starts the daemon and waits until it serves.
func (d *daemon) start() error {
	cmd, err := d.launch()
	if err != nil {
		return err
	}
	return d.serves(cmd)
}

// serves waits until a process that was started is the daemon.
func (d *daemon) serves(cmd *exec.Cmd) error {
	d.pid = cmd.Process.Pid
	ended := false
	err := d.s.await(fmt.Sprintf("%s serves", d.name), func() bool {
		pid, _, _, _, whole := d.who()
		ended = gone(d.pid)
		return ended || whole && pid == d.pid
	})
	if ended {
		return fmt.Errorf("%s has ended, and should serve", d.name)
	}
	return err
}

// signal sends a signal to the process.
func (d *daemon) signal(sig unix.Signal) error {
	if err := unix.Kill(d.pid, sig); err != nil {
		return fmt.Errorf("%s, process %d: %w", d.name, d.pid, err)
	}
	return nil
}

// reap waits for the end of a process. All are our children, or become that.
func (d *daemon) reap(pid int) error {
	return d.s.await(fmt.Sprintf("the end of %s, process %d", d.name, pid), func() bool { return gone(pid) })
}

// gone reports whether a process has ended, and buries it.
func gone(pid int) bool {
	got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	if got == pid {
		return true
	}
	// It may be the child of one that has not ended yet.
	return errors.Is(err, unix.ECHILD) && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// kill ends the daemon by SIGKILL, and another begins.
func (d *daemon) kill() error {
	if err := d.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := d.reap(d.pid); err != nil {
		return err
	}
	return d.start()
}

// restart ends the daemon by SIGTERM, and another begins.
func (d *daemon) restart() error {
	if err := d.signal(unix.SIGTERM); err != nil {
		return err
	}
	if err := d.reap(d.pid); err != nil {
		return err
	}
	return d.start()
}

func (d *daemon) askUpgrade() error {
	return d.s.call(func(ctx context.Context) error {
		return d.client().Post(ctx, api.Path("upgrade"), api.Upgrade{Binary: d.command()}, nil)
	})
}

// upgrade has the program be replaced by itself, and returns the pause it tells.
func (d *daemon) upgrade() (time.Duration, error) {
	before, since, _, _, _ := d.who()
	if err := d.askUpgrade(); err != nil {
		return 0, fmt.Errorf("upgrade of %s: %w", d.name, err)
	}
	var pause time.Duration
	var failed string
	err := d.s.await(fmt.Sprintf("%s has been replaced", d.name), func() bool {
		pid, now, p, e, whole := d.who()
		if !whole || now.Equal(since) {
			return false
		}
		d.pid, pause, failed = pid, p, e
		return e != "" || p > 0
	})
	switch {
	case err != nil:
		return 0, err
	case failed != "":
		return 0, fmt.Errorf("upgrade of %s: %s", d.name, failed)
	case d.pid != before:
		err = d.reap(before)
	}
	return pause, err
}

// disturb has the program be replaced by itself, and kills one of the two a moment
// later. Whatever comes of that, there is one that serves in the end.
func (d *daemon) disturb(wait time.Duration, which int) error {
	_, since, _, _, _ := d.who()
	asked := make(chan error, 1)
	go func() { asked <- d.askUpgrade() }()
	time.Sleep(wait)
	all, err := d.processes()
	if err != nil || len(all) == 0 {
		return fmt.Errorf("%s has no process: %w", d.name, err)
	}
	victim := all[which%len(all)]
	d.s.log("of the processes %d of %s, %d is killed", all, d.name, victim)
	if err := unix.Kill(victim, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if err := d.reap(victim); err != nil {
		return err
	}
	// An error is that of a runtime that has been killed, or of an upgrade that was
	// not begun. One that was begun ends in another process, or in the same one that
	// serves again: it must not be taken for over before it has stopped.
	begun := <-asked == nil
	none := false
	err = d.s.await("one process of "+d.name+" serves", func() bool {
		pid, now, _, _, whole := d.who()
		left, err := d.processes()
		if none = err == nil && len(left) == 0; none {
			return true
		}
		d.pid = pid
		return whole && len(left) == 1 && left[0] == pid && !(begun && now.Equal(since))
	})
	if err != nil {
		return err
	}
	for _, pid := range all {
		if pid != victim && (none || pid != d.pid) {
			if err := d.reap(pid); err != nil {
				return err
			}
		}
	}
	if none {
		return d.start()
	}
	return nil
}

// processes returns the processes that are the daemon, or wait to be.
func (d *daemon) processes() (all []int, err error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		// What fails has ended meanwhile.
		exe, _ := os.Readlink("/proc/" + p.Name() + "/exe")
		words, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		mine := d.name == "wpt" || bytes.Contains(words, []byte("--name\x00"+d.name+"\x00"))
		if exe == d.command() && mine && !gone(pid) {
			all = append(all, pid)
		}
	}
	return all, nil
}

// standby has another process wait, and kills the one that serves.
func (d *daemon) standby(wait time.Duration) error {
	cmd, err := d.launch("--standby")
	if err != nil {
		return err
	}
	time.Sleep(wait) // whether it waits already makes no difference
	before := d.pid
	if err := d.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := d.reap(before); err != nil {
		return err
	}
	return d.serves(cmd)
}

// hang stops the process for a while. leap-wpt may have killed a runtime then.
func (d *daemon) hang(wait time.Duration) error {
	d.s.log("%s hangs for %v", d.name, wait)
	if err := d.signal(unix.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(wait)
	if err := d.signal(unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	ended := false
	err := d.s.await(d.name+" serves, or has ended", func() bool {
		pid, _, _, _, whole := d.who()
		ended = gone(d.pid)
		return ended || whole && pid == d.pid
	})
	if err != nil || !ended {
		return err
	}
	d.s.log("%s was killed", d.name)
	return d.start()
}

// cut shuts the link between leap-wpt and a runtime: a connection of its that has
// the name of the link's socket. Where that is not allowed, nothing happens.
func (s *soak) cut() (bool, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false, err
	}
	links := make(map[string]bool) // inodes
	for in := bufio.NewScanner(bytes.NewReader(table)); in.Scan(); {
		const connected = "03"
		if f := strings.Fields(in.Text()); len(f) == 8 && f[5] == connected && f[7] == s.paths.LinkSocket() {
			links["socket:["+f[6]+"]"] = true
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.wpt.pid))
	if err != nil {
		return false, err
	}
	process, err := unix.PidfdOpen(s.wpt.pid, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(process)
	for _, i := range s.rng.Perm(len(fds)) {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", s.wpt.pid, fds[i].Name()))
		if err != nil || !links[name] {
			continue
		}
		number, err := strconv.Atoi(fds[i].Name())
		if err != nil {
			return false, err
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer unix.Close(fd)
		return true, unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	return false, nil
}

// lastLines returns the end of the log.
func (d *daemon) lastLines(n int) string {
	b, err := os.ReadFile(d.logFile())
	if err != nil {
		return err.Error() + "\n"
	}
	lines := strings.SplitAfter(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// checkLog shows what the daemon's processes have complained of, and fails for
// what must not be.
func (d *daemon) checkLog() {
	d.s.t.Helper()
	b, err := os.ReadFile(d.logFile())
	if err != nil {
		d.s.t.Error(err)
	}
	seen := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "DATA RACE") {
			d.s.t.Errorf("%s: %s", d.name, line)
		}
		if _, text, ok := strings.Cut(line, "level=ERROR msg="); ok {
			if !seen[text] {
				d.s.t.Logf("%s has logged: %s", d.name, text)
			}
			seen[text] = true
		}
	}
}

// end ends the daemon for good, with those that wait to be it.
func (d *daemon) end() {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		all, err := d.processes()
		if err != nil {
			d.s.t.Error(err)
		}
		for _, pid := range all {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if len(all) == 0 {
			return
		}
	}
	d.s.t.Errorf("%s does not end", d.name)
}
