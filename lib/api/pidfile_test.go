// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

func TestPidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "wpt.pid")
	refused := func(want string) {
		t.Helper()
		if _, err := LockPidFile(path); fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), want) {
			t.Errorf("a second one: %v, want an exists fault with %q", err, want)
		}
		if code, out := child(t, "pid", path); code != 1 || !strings.Contains(out, want) {
			t.Errorf("a second process: exit code %d, %s, want 1 and %q", code, out, want)
		}
	}
	content := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("got %q, %v, want %q", b, err, want)
		}
	}
	pid := fmt.Sprintf("%d\n", os.Getpid())

	p, err := LockPidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content("")
	refused("another process is starting")
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	content(pid)
	refused("already running as pid " + strings.TrimSpace(pid))
	content(pid)

	// The lock goes where the descriptor goes.
	fd, err := unix.Dup(int(p.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	p.File().Close()
	p = AdoptPidFile(os.NewFile(uintptr(fd), path))
	refused("already running as pid")
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	content(pid)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Close: %v, want no file", err)
	}
	if code, out := child(t, "pid", path); code != 0 {
		t.Errorf("after Close: exit code %d, %s", code, out)
	}
}

// After a crash the file is there with a pid that may be anybody's by now.
func TestPidFileStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.pid")
	must(t, os.WriteFile(path, []byte("1234567890\n"), 0o600))
	p, err := LockPidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if b, err := os.ReadFile(path); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v, want nothing before Ready", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("got %v, %v, want mode 644", info.Mode(), err)
	}
}

// A file that its daemon removed after we opened it locks nothing.
func TestPidFileRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.pid")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	must(t, os.Remove(path))
	if current, err := lockPid(f); current || err != nil {
		t.Errorf("no file: got %v, %v, want false", current, err)
	}
	must(t, os.WriteFile(path, nil, 0o644))
	if current, err := lockPid(f); current || err != nil {
		t.Errorf("another file: got %v, %v, want false", current, err)
	}
}

// WaitPidFile waits for whoever has it, however that ends.
func TestWaitPidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pid")
	first, err := LockPidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*pidFileTick)
	defer cancel()
	if p, err := WaitPidFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, %v while another process has it", p, err)
	}
	go func() {
		time.Sleep(2 * pidFileTick)
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}()
	second, err := WaitPidFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := WaitPidFile(t.Context(), t.TempDir()); err == nil {
		t.Error("a folder is a pid file")
	}
}
