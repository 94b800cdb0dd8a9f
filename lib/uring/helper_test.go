// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// requireRing ends the test where New failed: with a skip that says why, if
// the system has no io_uring, unless LEAP_REQUIRE_URING=1 forbids that.
func requireRing(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if errors.Is(err, ErrUnavailable) && os.Getenv("LEAP_REQUIRE_URING") != "1" {
		t.Skipf("not run: %v", err)
	}
	t.Fatal(err)
}

// testRing makes a ring on a thread of the test's own. The test must leave
// nothing in flight.
func testRing(t testing.TB, cfg Config, s setup) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := newRing(cfg, s)
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("not run: the kernel does not have the flags of %s: %v", s.name, err)
	}
	requireRing(t, err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// eachSetup runs f on a ring of every set of flags that the kernel has.
func eachSetup(t *testing.T, cfg Config, f func(t *testing.T, r *Ring)) {
	for _, s := range setups {
		t.Run(s.name, func(t *testing.T) { f(t, testRing(t, cfg, s)) })
	}
}

// result keeps what one completion said.
type result struct {
	res   int32
	calls int
}

func (c *result) Done(res int32, _ uint32) {
	c.res = res
	c.calls++
}

// counter counts completions, and those with another result than want.
type counter struct {
	want   int32
	calls  int
	others int
}

func (c *counter) Done(res int32, _ uint32) {
	c.calls++
	if res != c.want {
		c.others++
	}
}

// must fails the test on an error of queueing.
func must(t testing.TB, op Op, err error) Op {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return op
}

// finish submits and reaps, asleep in poll on the ring's descriptor, until
// nothing is in flight.
func finish(t testing.TB, r *Ring) {
	t.Helper()
	finishTo(t, r, 0)
}

func finishTo(t testing.TB, r *Ring, inFlight int) {
	t.Helper()
	if _, err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	for r.InFlight() > inFlight {
		n, err := r.Reap(r.Cap())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			waitReadable(t, r.FD())
		}
	}
}

// waitReadable fails the test where fd stays silent for far longer than any
// operation takes.
func waitReadable(t testing.TB, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 20_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("poll: %d ready, %v", n, err)
		}
		return
	}
}

// do runs one queued operation to its end.
func do(t testing.TB, r *Ring, queue func(Completion) (Op, error)) int32 {
	t.Helper()
	var c result
	op, err := queue(&c)
	must(t, op, err)
	finish(t, r)
	if c.calls != 1 {
		t.Fatalf("Done called %d times, want once", c.calls)
	}
	return c.res
}

func iov(bufs ...[]byte) []unix.Iovec {
	v := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		v[i].Base = &b[0]
		v[i].SetLen(len(b))
	}
	return v
}

func tempFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// pipe returns both ends; the test closes what it wants to close early.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// fd returns the descriptor of f, which it leaves to f.
func fd(f *os.File) int { return int(f.Fd()) }
