// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
	"github.com/leapio/leapio/lib/wpt"
)

// Environment of a test binary that is to be leap-soc, or the daemon that is
// named.
const (
	envDaemon  = "LEAPIO_TEST_DAEMON"
	envRun     = "LEAPIO_TEST_RUN"
	envState   = "LEAPIO_TEST_STATE"
	envPollers = "LEAPIO_TEST_POLLERS"
	envPoll    = "LEAPIO_TEST_POLL"
)

func TestMain(m *testing.M) {
	if os.Getenv(envRun) != "" {
		if err := runChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild is a daemon until SIGTERM.
func runChild() error {
	paths, err := api.NewPaths(os.Getenv(envRun), os.Getenv(envState))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if os.Getenv(envDaemon) == "leap-wpt" {
		return wpt.Run(context.Background(), wpt.Config{Paths: paths, Logger: log})
	}
	pollers, err := strconv.Atoi(os.Getenv(envPollers))
	if err != nil {
		return err
	}
	mode, err := poller.ParseMode(os.Getenv(envPoll))
	if err != nil {
		return err
	}
	config := soc.Config{Paths: paths, Poll: mode, CPUs: slices.Repeat([]int{-1}, pollers), Log: log}
	if slices.Contains(os.Args, "--check") {
		program, err := soc.Check(config)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(program)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return soc.Run(ctx, config)
}

// startChild starts a daemon as a process of its own, and does not wait for it.
func (r *rig) startChild(name string) *daemon {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envDaemon+"="+name, envRun+"="+r.paths.Run, envState+"="+r.paths.State, envPollers+"="+strconv.Itoa(r.pollers), envPoll+"="+r.poll.String())
	cmd.Stderr = os.Stderr // a pipe to us would be held by its successors
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{cancel: cancel, done: make(chan error, 1), pid: cmd.Process.Pid}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	killed := false
	d.kill = func() {
		killed = true
		stop()
		_ = cmd.Process.Kill()
		<-d.done
	}
	go func() {
		err := cmd.Wait()
		if killed {
			err = nil
		}
		d.done <- err
	}()
	return d
}

// killSoc ends leap-soc by SIGKILL.
func (r *rig) killSoc() {
	r.soc.kill()
	r.soc = nil
}

// TestKill ends leap-soc by SIGKILL at any moment under a guest that writes,
// verifies, and creates and deletes queues: it sees pauses, never an error or a
// wrong byte.
func TestKill(t *testing.T) {
	kills := 20
	if testing.Short() {
		kills = 3
	}
	for i, kind := range []string{"mem", "file"} {
		for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap, "shadow"} {
			t.Run(kind+"/"+doorbells, func(t *testing.T) {
				t.Parallel()
				underLoad(t, 1+i, kind, doorbells, kills, func(r *rig) {
					r.killSoc()
					r.startSoc()
				})
			})
		}
	}
}

// underLoad takes a step a number of times, at any moment under a guest that
// writes, verifies, and creates and deletes queues. leap-soc is a process of its
// own, with that many pollers.
func underLoad(t *testing.T, pollers int, kind, doorbells string, times int, step func(*rig)) {
	t.Helper()
	r := newRigOf(t, pollers)
	r.stopSoc()
	r.child = true
	r.startSoc()
	r.volume("d1", kind, "size", "64M")
	n := r.drive("vm1", doorbells, small, "d1")
	load := newLoad(t, n, 2)
	load.Go(func() { churnQueues(t, n, load.stop) })
	for i := range times {
		time.Sleep(time.Duration(i*7%31) * time.Millisecond)
		step(r)
	}
	load.end()
}

// upgradeSoc has leap-soc be replaced by another process, and returns how long
// guests had to wait.
func (r *rig) upgradeSoc() time.Duration {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	var before, after api.RuntimeInfo
	if err := r.client().Get(r.t.Context(), "/v1/runtime", &before); err != nil {
		r.t.Fatal(err)
	}
	if err := r.client().Post(r.t.Context(), "/v1/upgrade", api.Upgrade{Binary: self}, nil); err != nil {
		r.t.Fatal("upgrade:", err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for after.PID == before.PID || after.Pause == 0 {
		if err := r.client().Get(r.t.Context(), "/v1/runtime", &after); err != nil {
			after.PID = before.PID
		}
		if after.UpgradeError != "" || time.Now().After(deadline) {
			r.t.Fatalf("upgrade: process %d after %d: %s", after.PID, before.PID, after.UpgradeError)
		}
		time.Sleep(time.Millisecond)
	}
	if err := <-r.soc.done; err != nil {
		r.t.Error("the runtime that was replaced:", err)
	}
	next, err := os.FindProcess(after.PID)
	if err != nil {
		r.t.Fatal(err)
	}
	end := func(sig os.Signal) func() {
		return func() {
			if err := next.Signal(sig); err != nil {
				r.t.Error(err)
			}
		}
	}
	r.soc = &daemon{cancel: end(syscall.SIGTERM), done: make(chan error, 1)}
	done := r.soc.done
	r.soc.kill = func() {
		end(syscall.SIGKILL)()
		<-done
	}
	go func() { done <- awaitEnd(next.Pid) }()
	return after.Pause
}

// awaitEnd waits for the end of a process that is no child of ours.
func awaitEnd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
			return err
		}
	}
}

// TestUpgrade replaces leap-soc at any moment under the guest of TestKill.
func TestUpgrade(t *testing.T) {
	upgrades := 10
	if testing.Short() {
		upgrades = 2
	}
	for i, kind := range []string{"mem", "file"} {
		for _, doorbells := range []string{api.DoorbellsTrap, "shadow"} {
			t.Run(kind+"/"+doorbells, func(t *testing.T) {
				t.Parallel()
				var pauses []time.Duration
				underLoad(t, 1+i, kind, doorbells, upgrades, func(r *rig) { pauses = append(pauses, r.upgradeSoc()) })
				slices.Sort(pauses)
				t.Logf("guests waited %v to %v", pauses[0], pauses[len(pauses)-1])
			})
		}
	}
}

// drive wires volumes to a port and enables its controller.
func (r *rig) drive(port, doorbells string, mem vfiousertest.MemoryOptions, volumes ...string) *vfiousertest.NVMe {
	r.t.Helper()
	mode := doorbells
	if mode == "shadow" {
		mode = api.DoorbellsTrap
	}
	r.wire(port, mode, volumes...)
	n := r.guest(port, mem)
	if err := n.UseMSIX(); err != nil {
		r.t.Fatal(err)
	}
	if err := n.Enable(32); err != nil {
		r.t.Fatal(err)
	}
	if doorbells == "shadow" {
		if err := n.EnableShadowDoorbells(); err != nil {
			r.t.Fatal("shadow doorbells:", err)
		}
	}
	return n
}

// load is verified I/O by several workers.
type load struct {
	sync.WaitGroup
	stop chan struct{}
}

// newLoad begins verified I/O on queue pairs 1 to queues of a drive of 64 MiB:
// every other one is polled, and used by several workers at a time.
func newLoad(t *testing.T, n *vfiousertest.NVMe, queues int) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for id := range queues {
		vector, workers := id+1, 1
		if id%2 == 1 {
			vector, workers = vfiousertest.Polled, 4
		}
		q, err := n.CreatePair(uint16(id+1), 32, vector)
		if err != nil {
			t.Fatal(err)
		}
		for worker := range workers {
			l.Go(func() { verify(t, q, uint64(id*4+worker), l.stop) })
		}
	}
	return l
}

// end waits for the end of all.
func (l *load) end() {
	close(l.stop)
	l.Wait()
}

// churnQueues creates, uses and deletes queue pair 9, and has features and
// events on the way, until stop.
func churnQueues(t *testing.T, n *vfiousertest.NVMe, stop <-chan struct{}) {
	event := func(nvme.CQE) {}
	if err := n.Admin().Submit(nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, event); err != nil {
		t.Error(err)
		return
	}
	for round := uint32(0); ; round++ {
		select {
		case <-stop:
			return
		default:
		}
		q, err := n.CreatePair(9, 16, vfiousertest.Polled)
		if err != nil {
			t.Errorf("round %d: %v", round, err)
			return
		}
		if err := q.Read(1, 0, make([]byte, 4096), 512); err != nil {
			t.Errorf("round %d: %v", round, err)
			return
		}
		value := round & 0xff
		if _, err := n.SetFeatures(nvme.FeatArbitration, value&7); err != nil {
			t.Errorf("round %d: set features: %v", round, err)
			return
		}
		if got, err := n.GetFeatures(nvme.FeatArbitration); err != nil || got&7 != value&7 {
			t.Errorf("round %d: feature is %#x, %v; want %#x", round, got, err, value&7)
			return
		}
		if err := n.DeletePair(q); err != nil {
			t.Errorf("round %d: %v", round, err)
			return
		}
	}
}
