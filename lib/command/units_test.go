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
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where the units and their companions are.
const unitDir = "../../systemd"

// The units are ones that systemd takes, and nobody gets more than is stated
// here. They are read without a service manager.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	// Their commands and manual pages are not installed: those of a folder of
	// our own stand in.
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(unitDir, "*.[st]*"))
	if err != nil {
		t.Fatal(err)
	}
	var units []string
	for _, file := range files {
		if filepath.Ext(file) == ".conf" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/usr/local/bin/", dir+"/")
		text = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")
		unit := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
		if command := strings.TrimSuffix(unit, ".service"); command != unit {
			if err := os.WriteFile(command, nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(units) != 3 {
		t.Fatalf("units: %v", units)
	}
	out, err := exec.Command(analyze, append([]string{"verify"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	for unit, limit := range map[string]float64{"leap-wpt": 1.6, "leap-soc": 2.8} {
		out, err := exec.Command(analyze, "security", "--offline=yes", filepath.Join(dir, unit+".service")).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`).FindStringSubmatch(string(out))
		if err != nil || m == nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
			continue
		}
		if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > limit {
			t.Errorf("%s: exposure level %s, at most %.1f is stated", unit, m[1], limit)
		}
	}
}

// A service manager is told when a daemon serves, and which process has taken
// its place.
func TestNotify(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "leap-notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	address := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	expect := func(want string) (match []string) {
		t.Helper()
		b := make([]byte, 1024)
		if err := manager.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(b)
		for err == nil && bytes.HasPrefix(b[:n], []byte("FDSTORE")) {
			n, err = manager.Read(b) // files are for TestStoreKills
		}
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if match = regexp.MustCompile("^" + want + "$").FindStringSubmatch(string(b[:n])); match == nil {
			t.Fatalf("got %q, want %s", b[:n], want)
		}
		return match
	}
	env := append(os.Environ(), "NOTIFY_SOCKET="+address, "LEAP_RUN_DIR="+filepath.Join(dir, "run"), "LEAP_STATE_DIR="+filepath.Join(dir, "state"))
	start := func(words ...string) *exec.Cmd {
		t.Helper()
		path, err := exec.LookPath(words[0])
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, words[1:]...)
		cmd.Args[0], cmd.Env, cmd.Stderr = words[0], env, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	run := func(words ...string) {
		t.Helper()
		if err := start(words...).Wait(); err != nil {
			t.Fatalf("%v: %v", words, err)
		}
	}
	upgrade := func(command string) {
		t.Helper()
		path, err := exec.LookPath(command)
		if err != nil {
			t.Fatal(err)
		}
		run(command, "upgrade", path)
	}
	wpt := start("leap-wpt", "run")
	defer wpt.Wait()
	defer wpt.Process.Signal(unix.SIGTERM)
	expect("READY=1")
	soc := start("leap-soc", "run")
	defer soc.Wait()
	expect("READY=1")
	upgrade("leap-wpt")
	expect("READY=1")
	upgrade("leap-soc")
	expect("READY=1")
	pid, err := strconv.Atoi(expect(`MAINPID=([0-9]+)`)[1])
	if err != nil {
		t.Fatal(err)
	}
	if pid == soc.Process.Pid {
		t.Error("the main process is the one that has ended")
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	for begin := time.Now(); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(state), ") Z ") {
			break // nobody waits for it
		}
		if time.Since(begin) > limit {
			t.Fatal("the runtime does not end")
		}
	}
}
