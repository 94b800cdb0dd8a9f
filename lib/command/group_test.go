// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// Members of the group of --group may look and change nothing; everybody else
// may not even do that.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be others")
	}
	const user, group = 65534, 54321
	dir, err := os.MkdirTemp("/tmp", "leap-group")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "LEAP_RUN_DIR="+filepath.Join(dir, "run"), "LEAP_STATE_DIR="+filepath.Join(dir, "state"))
	// The commands lie in a folder of root's.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"leap-wpt", "leap-soc", "leap-qmap"} {
		if err := os.WriteFile(filepath.Join(dir, name), program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command := func(as *syscall.Credential, words ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(dir, words[0]), words[1:]...)
		cmd.Args[0], cmd.Env, cmd.Dir = words[0], env, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return cmd
	}
	for _, daemon := range []string{"leap-wpt", "leap-soc"} {
		cmd := command(nil, daemon, "run", "--group", "54321")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait()
		})
		pid := filepath.Join(dir, "run", strings.TrimPrefix(daemon, "leap-")+".pid")
		for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if b, err := os.ReadFile(pid); err == nil && len(b) > 0 {
				break
			}
			if time.Since(begin) > limit {
				t.Fatalf("%s is not ready", daemon)
			}
		}
	}
	member := &syscall.Credential{Uid: user, Gid: user, Groups: []uint32{group}}
	stranger := &syscall.Credential{Uid: user, Gid: user}
	for _, tt := range []struct {
		as   *syscall.Credential
		line string
		want int
	}{
		{nil, "leap-soc volume create d1 mem size=1M", 0},
		{nil, "leap-wpt port add vm1", 0},
		{member, "leap-soc volume list", 0},
		{member, "leap-soc stat", 0},
		{member, "leap-soc wait volume d1 ready --timeout 5s", 0},
		{member, "leap-soc export", 0},
		{member, "leap-wpt show", 0},
		{member, "leap-soc volume delete d1", fault.ExitPermission},
		{member, "leap-soc volume create d2 mem size=1M", fault.ExitPermission},
		{member, "leap-wpt port remove vm1", fault.ExitPermission},
		{member, "leap-wpt upgrade /bin/true", fault.ExitPermission},
		{member, "leap-qmap map vm1 d1", fault.ExitPermission},
		{stranger, "leap-soc volume list", fault.ExitPermission},
		{stranger, "leap-wpt port list", fault.ExitPermission},
		{nil, "leap-soc volume show d1", 0},
	} {
		out, err := command(tt.as, strings.Fields(tt.line)...).CombinedOutput()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tt.want {
			t.Errorf("%s: exit code %d, want %d\n%s", tt.line, code, tt.want, out)
		}
	}
}
