// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// quick are limits for tests in which a runtime is slow on purpose.
var quick = limits{
	unmap: 200 * time.Millisecond, reset: 300 * time.Millisecond, room: 200 * time.Millisecond,
	patience: 50 * time.Millisecond, alive: time.Minute,
}

// testPaths makes folders whose sockets have short names.
func testPaths(t testing.TB) api.Paths {
	t.Helper()
	dir, err := os.MkdirTemp("", "wpt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	paths, err := api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// startBroker runs a broker until the test ends, and then looks for what it
// left behind.
func startBroker(t testing.TB, paths api.Paths, limits limits) *Broker {
	t.Helper()
	if _, fuzzing := t.(*testing.F); !fuzzing { // the fuzzer has goroutines of its own
		checkLeaks(t)
	}
	b, err := open(Config{Paths: paths, Version: "test", Logger: testLogger(t)}, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the broker: %v", err)
		}
	})
	return b
}

// testLogger logs to the test's output when it is verbose.
func testLogger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// checkLeaks compares goroutines and file descriptors at the end of the test
// with those of now.
func checkLeaks(t testing.TB) {
	// The first use of the network makes descriptors that stay.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	goroutines, fds := goruntime.NumGoroutine(), countFDs(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		deadline := time.Now().Add(5 * time.Second)
		for goruntime.NumGoroutine() > goroutines || countFDs(t) > fds {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:goruntime.Stack(stacks, true)]
				t.Fatalf("left behind: %d goroutines (%d before), %d descriptors (%d before): %v\n%s",
					goruntime.NumGoroutine(), goroutines, countFDs(t), fds, fdNames(t), stacks)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func countFDs(t testing.TB) int { return len(fdNames(t)) }

func fdNames(t testing.TB) []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			names = append(names, e.Name()+" "+name)
		}
	}
	return names
}

// addPort makes a port.
func addPort(t testing.TB, b *Broker, spec api.PortSpec) *port {
	t.Helper()
	if _, err := b.addPort(spec, nil); err != nil {
		t.Fatal(err)
	}
	p, err := b.port("test", spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newMemory makes a guest's memory.
func newMemory(t testing.TB, options vfiousertest.MemoryOptions) *vfiousertest.Memory {
	t.Helper()
	mem, err := vfiousertest.NewMemory(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return mem
}

// dial connects a client as QEMU does.
func dial(t testing.TB, p *port, mem *vfiousertest.Memory, options vfiousertest.Options) *vfiousertest.Client {
	t.Helper()
	c, err := vfiousertest.Dial(p.socket, mem, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// fact reads a fact of a port, empty if there is none.
func fact(b *Broker, name, key string) string {
	v, err := os.ReadFile(filepath.Join(b.paths.PortDir(name), key))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(v), "\n")
}
