// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

func TestListen(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a", "b", "s")
			l, err := Listen(path, network, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial(network, path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			for _, again := range []string{"unix", "unixpacket"} {
				_, err := Listen(path, again, 0o600)
				if fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), path) {
					t.Errorf("%s on a live socket: %v, want an exists fault with its path", again, err)
				}
			}
			// As after a crash: the file stays, nobody listens.
			l.SetUnlinkOnClose(false)
			l.Close()
			l, err = Listen(path, network, 0o600)
			if err != nil {
				t.Fatalf("on a stale socket: %v", err)
			}
			l.Close()
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("after Close: %v, want no file", err)
			}
		})
	}
}

func TestListenMode(t *testing.T) {
	mode := func(path string) os.FileMode {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	defer unix.Umask(unix.Umask(0))
	// What bind makes has the mode from the first moment on, without Chmod.
	path := filepath.Join(t.TempDir(), "s")
	l, err := bind(path, "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := mode(path); got != 0o600 {
		t.Errorf("umask 0: got mode %o, want 600", got)
	}
	unix.Umask(0o077)
	path = filepath.Join(t.TempDir(), "d", "s")
	l, err = Listen(path, "unix", 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := mode(path); got != 0o660 {
		t.Errorf("umask 077: got mode %o, want 660", got)
	}
	if got := mode(filepath.Dir(path)); got != 0o755 {
		t.Errorf("umask 077: got a folder of mode %o, want 755", got)
	}
}

func TestListenBad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, network, want string
		kind                fault.Kind
	}{
		{file, "unix", "no socket", fault.Exists},
		{file + "/s", "unix", "no folder", fault.Exists},
		{"/" + strings.Repeat("x", 107), "unix", "the limit is 107", fault.Usage},
		{filepath.Join(dir, "s"), "tcp", "", fault.Failure},
	} {
		l, err := Listen(tt.path, tt.network, 0o600)
		if err == nil {
			l.Close()
			t.Errorf("Listen(%s, %s) worked", tt.path, tt.network)
			continue
		}
		if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Listen(%s, %s): %v (%v), want %q (%v)", tt.path, tt.network, err, fault.KindOf(err), tt.want, tt.kind)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file has now %q, %v", b, err)
	}
}
