// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/leapio/leapio/lib/fault"
)

func TestNotRunning(t *testing.T) {
	p, err := NewPaths(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	check := func(c *Client, start string) {
		t.Helper()
		err := c.Get(context.Background(), "/v1/", nil)
		if fault.KindOf(err) != fault.Failure || !strings.Contains(err.Error(), "is not running") {
			t.Errorf("got %v (%v), want a failure that says so", err, fault.KindOf(err))
		}
		if hints := strings.Join(fault.Hints(err), "\n"); !strings.Contains(hints, "`"+start+"`") {
			t.Errorf("got hints %q, want `%s` in it", hints, start)
		}
	}
	check(p.Wpt(), "leap-wpt run")
	for name, start := range map[string]string{"": "leap-soc run", "b": "leap-soc run --name b"} {
		c, err := p.Runtime(name)
		if err != nil {
			t.Fatal(err)
		}
		check(c, start)
	}
	// A socket without a daemon, too.
	l, err := Listen(p.WptSocket(), "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	check(p.Wpt(), "leap-wpt run")
}

func TestPermission(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "unix", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if os.Geteuid() == 0 {
		// The temporary folders of tests are readable to all.
		if err := syscall.Seteuid(65534); err != nil {
			t.Skip(err)
		}
		defer syscall.Seteuid(0)
	}
	err = Dial(socket, "leap-wpt run").Get(context.Background(), "/v1/", nil)
	if fault.KindOf(err) != fault.Permission || !strings.Contains(err.Error(), socket) {
		t.Errorf("got %v (%v), want a permission fault with the path", err, fault.KindOf(err))
	}
}

// A peer that is no daemon of ours costs an error and nothing else.
func TestStrangePeers(t *testing.T) {
	for _, answer := range []string{
		"",
		"\x00\x01",
		"SSH-2.0-x\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 301 Away\r\nLocation: /v1/\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run("", func(t *testing.T) {
			goroutinesEnd(t)
			socket := filepath.Join(t.TempDir(), "s")
			l, err := Listen(socket, "unix", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c := Dial(socket, "leap-wpt run")
			var out Port
			for name, call := range map[string]func() error{
				"call":   func() error { return c.Get(context.Background(), "/v1/", &out) },
				"stream": func() error { return c.Stream(context.Background(), "/v1/", nil) },
			} {
				go answerOnce(l, answer)
				if err := call(); fault.KindOf(err) != fault.Peer || !strings.Contains(err.Error(), "leap-wpt") {
					t.Errorf("%s, %q: got %v (%v), want a peer fault with the daemon", name, answer, err, fault.KindOf(err))
				}
			}
		})
	}
}

// answerOnce reads a request and sends answer, whatever the request was.
func answerOnce(l net.Listener, answer string) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	var request []byte
	for b := make([]byte, 512); !strings.Contains(string(request), "\r\n\r\n"); {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		request = append(request, b[:n]...)
	}
	_, _ = io.WriteString(c, answer)
}

// A daemon that dies in the middle of a stream is not the end of the stream.
func TestStreamCut(t *testing.T) {
	goroutinesEnd(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go answerOnce(l, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
	s, err := Dial(socket, "leap-wpt run").Open(context.Background(), "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if item, err := s.Next(); err != nil || string(item) != "{}" {
		t.Fatalf("got %s, %v, want {}", item, err)
	}
	if _, err := s.Next(); fault.KindOf(err) != fault.Peer || errors.Is(err, io.EOF) {
		t.Errorf("got %v (%v), want a peer fault", err, fault.KindOf(err))
	}
}

func TestRequestTooLarge(t *testing.T) {
	spec := VolumeSpec{Options: Options{"path": strings.Repeat("x", MaxRequest)}}
	err := Dial("/nowhere", "x").Post(context.Background(), "/v1/volumes", spec, nil)
	if fault.KindOf(err) != fault.Usage {
		t.Errorf("got %v (%v), want a usage fault", err, fault.KindOf(err))
	}
}
