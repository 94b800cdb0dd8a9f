// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package soak_test has guests and hosts use both daemons for a long time while
// anything may happen to them, as make soak does:
//
//	SOAKTIME=2h SOAKENDS=1000 SEED=7 go test -count=1 -timeout 0 -v ./test/soak
//
// The daemons are processes, built from cmd/. Guests are fake vfio-user clients,
// hosts are lib/fabrics/host. Whatever they read is held against what they wrote.
// Meanwhile one driver takes random steps from a seed: guests and hosts come, go,
// reset and vanish, volumes change their size, namespaces come and go, and the
// daemons are killed, replaced, stopped for a while and cut off from each other.
// Steps on different things go on at the same time, so that a seed gives the same
// steps but not the same moments.
//
// Every now and then all guests and hosts leave, and what the daemons have then
// (goroutines, file descriptors, mappings, memory) must be what they had before.
//
//	main_test.go    the test, its length, its end
//	disk_test.go    what volumes must hold
//	guest_test.go   a guest: its drive, its queues, its resets
//	lane_test.go    I/O on a queue of a guest
//	host_test.go    a host over NVMe/TCP
//	daemon_test.go  the daemons as processes: kill, upgrade, standby
//	driver_test.go  what there is, and the order of things
//	step_test.go    the steps
//	counts_test.go  what was done
//	volume_test.go  steps on volumes and namespaces
//	leak_test.go    what a daemon has when nobody uses it
package soak_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
)

// soak is a run. Its first failure ends it.
type soak struct {
	t     *testing.T
	bin   string
	paths api.Paths
	rng   *rand.Rand // of the driver
	ctx   context.Context
	end   context.CancelCauseFunc

	wpt    *daemon
	socs   []*daemon // soc, and far, whose volumes soc uses as remote ones
	disks  map[string]*disk
	guests []*guest
	hosts  []*hostSide
	drives []*drive
	counts counts
	ending sync.Mutex    // held by a step that ends a process
	ends   atomic.Uint64 // rises when such a step begins, and when it has ended

	traceMu sync.Mutex
	trace   []string // the latest steps
	began   time.Time
}

// traceMax is how many lines of the trace are kept.
const traceMax = 400

// TestSoak: see the package.
func TestSoak(t *testing.T) {
	length, ends := 30*time.Second, 0
	given := os.Getenv("SOAKTIME")
	switch {
	case given != "":
		var err error
		if length, err = time.ParseDuration(given); err != nil {
			t.Fatal("SOAKTIME:", err)
		}
	case raceDetector:
		t.Skip("not run: the daemons are the same; SOAKTIME= has them built with the race detector, too")
	case testing.Short():
		length = 10 * time.Second
	}
	if text := os.Getenv("SOAKENDS"); text != "" {
		var err error
		if ends, err = strconv.Atoi(text); err != nil {
			t.Fatal("SOAKENDS:", err)
		}
	}
	seed := uint64(1) // among other tests, the same steps each time
	if text := os.Getenv("SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatal("SEED:", err)
		}
	} else if given != "" {
		seed = rand.Uint64N(1 << 32)
	}
	s := newSoak(t, seed)
	defer func() {
		if t.Failed() {
			s.report(seed)
		}
	}()
	s.run(length, ends)
}

// newSoak builds the commands and makes folders.
func newSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	// A process whose parent has ended becomes our child, as a runtime that has
	// taken over.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "leap-soak-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &soak{t: t, bin: filepath.Join(dir, "bin"), rng: rand.New(rand.NewPCG(seed, 0)), disks: make(map[string]*disk), began: time.Now()}
	args := []string{"build", "-o", s.bin + "/", "./cmd/leap-wpt", "./cmd/leap-soc"}
	cgo := "CGO_ENABLED=0"
	if raceDetector {
		args, cgo = append([]string{"build", "-race"}, args[1:]...), "CGO_ENABLED=1"
	}
	if err := os.Mkdir(s.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", args...)
	build.Dir = "../.."
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the commands: %v\n%s", err, out)
	}
	if s.paths, err = api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	t.Cleanup(func() { s.end(nil) })
	s.log("seed %d", seed)
	return s
}

// fail ends the run.
func (s *soak) fail(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if s.ctx.Err() == nil {
		s.log("FAILED: %v", err)
	}
	s.end(err)
}

// log adds a line to the trace.
func (s *soak) log(format string, args ...any) {
	line := fmt.Sprintf("%8.3f ", time.Since(s.began).Seconds()) + fmt.Sprintf(format, args...)
	s.traceMu.Lock()
	defer s.traceMu.Unlock()
	if s.trace = append(s.trace, line); len(s.trace) > 2*traceMax {
		s.trace = append([]string(nil), s.trace[traceMax:]...)
	}
}

// patience is how long anything may take that must come: far longer than it does.
const patience = 2 * time.Minute

// await waits until something is so, which is not after the end of the run.
func (s *soak) await(what string, is func() bool) error {
	for end := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		switch {
		case s.ctx.Err() != nil:
			return context.Cause(s.ctx)
		case time.Now().After(end):
			return fmt.Errorf("not after %v: %s", patience, what)
		}
	}
	return nil
}

// call makes a call to a daemon, which must not take for ever.
func (s *soak) call(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	err := f(ctx)
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil && s.ctx.Err() == nil {
		s.fail("a call has no answer after %v: %v", patience, err)
	}
	return err
}

// report prints what is needed to find out why the run has failed.
func (s *soak) report(seed uint64) {
	s.traceMu.Lock()
	defer s.traceMu.Unlock()
	for _, line := range s.trace[max(0, len(s.trace)-traceMax):] {
		fmt.Fprintln(os.Stderr, line)
	}
	for _, d := range append([]*daemon{s.wpt}, s.socs...) {
		if d != nil {
			fmt.Fprintf(os.Stderr, "--- %s has logged:\n%s", d.name, d.lastLines(60))
		}
	}
	fmt.Fprintf(os.Stderr, "--- again by: SEED=%d SOAKTIME=%v go test -count=1 -v ./test/soak\n", seed, time.Since(s.began).Round(time.Second))
}
