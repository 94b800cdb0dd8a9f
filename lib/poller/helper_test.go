// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var modes = []Mode{Adaptive, Busy, Interrupt}

// eachMode runs f on a poller of every mode, with io_uring and without.
func eachMode(t *testing.T, f func(*testing.T, *Poller)) {
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) { f(t, start(t, Config{Mode: m})) })
		t.Run(m.String()+"/no ring", func(t *testing.T) { f(t, start(t, Config{Mode: m, NoRing: true})) })
	}
}

// start starts a poller that runs anywhere and has no fence; the test's end
// stops it.
func start(t testing.TB, cfg Config) *Poller {
	t.Helper()
	cfg.Name, cfg.CPU, cfg.Fence = "test", -1, -1
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// do runs f on p.
func do(t testing.TB, p *Poller, f func()) {
	t.Helper()
	if err := p.Do(f); err != nil {
		t.Fatal(err)
	}
}

// requireRing skips where the poller has no io_uring, unless
// LEAP_REQUIRE_URING=1 forbids that.
func requireRing(t testing.TB, p *Poller) {
	t.Helper()
	var why error
	do(t, p, func() { _, why = p.Ring() })
	if why != nil && os.Getenv("LEAP_REQUIRE_URING") == "1" {
		t.Fatal(why)
	}
	if why != nil {
		t.Skipf("not run: %v", why)
	}
}

// patience is how long something is waited for that happens at once. It only
// ends a test that has failed.
const patience = 20 * time.Second

// wait receives from c.
func wait[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
	}
	return v
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// asleep waits until the loop is inside its sleep.
func asleep(t testing.TB, p *Poller) {
	t.Helper()
	eventually(t, "sleep", func() bool {
		for range 10 { // it stays there, rather than passes through
			if !p.sleeping.Load() {
				return false
			}
			time.Sleep(time.Millisecond)
		}
		return true
	})
}

// source is a Source whose work is a number that other goroutines raise.
type source struct {
	work  atomic.Int64 // offered
	seen  int64        // done
	told  chan int64   // what was seen
	wake  Wake
	polls atomic.Int64
	arms  atomic.Int64
}

func newSource(wake Wake) *source { return &source{told: make(chan int64, 100), wake: wake} }

func (s *source) Poll() int {
	s.polls.Add(1)
	n := s.work.Load()
	if n == s.seen {
		return 0
	}
	s.seen = n
	s.told <- n
	return 1
}

func (s *source) Arm() Wake {
	s.arms.Add(1)
	if s.work.Load() != s.seen {
		return WakeNow
	}
	return s.wake
}

func (s *source) Holds(uintptr) bool { return false }
func (s *source) Fault()             {}

// eventfd makes one that the test closes.
func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func signal(t testing.TB, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, one); err != nil {
		t.Fatal(err)
	}
}

// descriptors returns what every open descriptor refers to.
func descriptors(t testing.TB) []string {
	t.Helper()
	const folder = "/proc/self/fd"
	list, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range list {
		if to, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil {
			open = append(open, to)
		}
	}
	slices.Sort(open)
	return open
}

// noLeaks runs f and checks that it leaves no descriptor and no goroutine.
func noLeaks(t *testing.T, f func()) {
	t.Helper()
	f() // the runtime's own descriptors are made
	runtime.GC()
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	for range 5 {
		f()
	}
	if now := descriptors(t); !slices.Equal(now, fds) {
		t.Errorf("open now: %v\nbefore: %v", now, fds)
	}
	eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
}
