// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childKey makes the test binary play a part that cannot be played in the
// process of the tests: see child.
const childKey = "LEAP_API_TEST_CHILD"

func TestMain(m *testing.M) {
	if part := os.Getenv(childKey); part != "" {
		childMain(part, os.Getenv(childKey+"_FILE"))
	}
	os.Exit(m.Run())
}

// child runs this binary in a part and gives its exit code and output.
func child(t *testing.T, part, file string) (int, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childKey+"="+part, childKey+"_FILE="+file)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// childMain plays a part.
func childMain(part, file string) {
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	switch part {
	case "panic": // serve a handler that panics, and call it
		mux := NewMux(Info{})
		Handle(mux, "GET /v1/panic", func(context.Context, None) (None, error) { panic("the handler's own words") })
		l, err := Listen(file, "unix", 0o600)
		check(err)
		go NewServer(mux).Serve(l)
		check(Dial(file, "").Get(context.Background(), "/v1/panic", nil))
	case "full": // save a state that does not fit any more
		signal.Ignore(unix.SIGXFSZ)
		check(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: 4096}))
		check(NewStateFile[string](file, 1, nil).Save(strings.Repeat("x", 100_000)))
	case "pid": // try to be a second daemon
		p, err := LockPidFile(file)
		check(err)
		check(p.Close())
	}
	os.Exit(0)
}

// goroutinesEnd fails the test if at its end there are more goroutines than now.
func goroutinesEnd(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		// There is nothing to wait for: a connection's goroutine ends a moment
		// after its peer has seen the end.
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
	})
}

// serve serves mux until the test ends, and gives a client and the server.
func serve(t *testing.T, mux *http.ServeMux) (*Client, *Server) {
	t.Helper()
	goroutinesEnd(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(mux)
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); err == nil {
			t.Errorf("%s is still there after Shutdown", socket)
		}
	})
	return Dial(socket, "leap-test run"), s
}
