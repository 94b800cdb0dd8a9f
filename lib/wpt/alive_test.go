// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// pings returns how often the runtime was asked whether it is alive.
func (rt *fakeRuntime) pings() (n int) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, kind := range rt.log {
		if kind == qpair.MsgPing {
			n++
		}
	}
	return n
}

// A runtime that is waited for is asked whether it is alive: a slow one stays,
// however slow it is, and one that nobody waits for is left alone.
func TestSlowRuntime(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	mem := newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib})
	c := dial(t, p, mem, vfiousertest.Options{})
	enable(t, c)
	time.Sleep(4 * quick.patience)
	if n := rt.pings(); n != 0 {
		t.Errorf("%d pings while nobody waits", n)
	}
	rt.holdResets.Store(true)
	setCC(t, c, 0)
	eventually(t, "pings for a reset", func() bool { return rt.pings() >= 3 })
	rt.holdResets.Store(false)
	writeRegister(t, p, 0xc, 4, 1) // a kick, which the runtime follows
	waitCSTS(t, c, 0)
	time.Sleep(2 * quick.patience)
	n := rt.pings()
	time.Sleep(4 * quick.patience)
	if rt.pings() != n {
		t.Error("pings after the reset has ended")
	}
	rt.deaf.Store(true)
	if err := c.Unmap(0, 8*mib); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pings for an unmapping", func() bool { return rt.pings() >= n+2 })
	if err := rt.linkError(); err != nil || len(b.listRuntimes()) != 1 {
		t.Errorf("the runtime was given up: %v", err)
	}
}

// One that does not answer is killed, and the next one is let in.
func TestHungRuntime(t *testing.T) {
	limits := quick
	limits.alive = 100 * time.Millisecond
	b := startBroker(t, testPaths(t), limits)
	p := addPort(t, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	rt := startRuntime(t, b, api.DefaultRuntime)
	// The process to kill must not be this one.
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- victim.Wait() }()
	broker := b.runtime(api.DefaultRuntime)
	broker.closeProcess()
	broker.pid = victim.Process.Pid
	var err error
	if broker.process, err = unix.PidfdOpen(victim.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	c := dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	rt.hung.Store(true)
	time.Sleep(2 * (limits.patience + limits.alive))
	if len(b.listRuntimes()) != 1 {
		t.Fatal("a runtime is killed that nobody waits for")
	}
	rt.holdResets.Store(true)
	setCC(t, c, 0)
	var exit *exec.ExitError
	if err := <-ended; !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the runtime ended with %v, want SIGKILL", err)
	}
	if n := b.counts.latePings.Load(); n != 1 {
		t.Errorf("%d pings were late, want 1", n)
	}
	if got := csts(t, c); !got.RDY() {
		t.Error("the reset is acknowledged before the runtime is gone")
	}
	rt.kill() // the fence
	waitCSTS(t, c, 0)
	startRuntime(t, b, api.DefaultRuntime)
	eventually(t, "the next runtime", func() bool { return slices.Equal(b.Attached(), []string{"vm1"}) && p.show().Epoch == 2 })
}
