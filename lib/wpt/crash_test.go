// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	notify "github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/command/commandtest"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// Environment of a test binary that is to be leap-wpt: its folder, and at which
// step it is to be killed.
const (
	envDir  = "LEAPIO_TEST_DIR"
	envStep = "LEAPIO_TEST_STEP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		if err := runChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// countedStore is a store that is a step before and after each of its calls.
type countedStore struct{ *notify.FileStore }

func (s countedStore) Put(name string, fd int) error {
	step()
	defer step()
	return s.FileStore.Put(name, fd)
}

func (s countedStore) Remove(name string) error {
	step()
	defer step()
	return s.FileStore.Remove(name)
}

// runChild is leap-wpt, killed at a step that the environment names.
func runChild(dir string) error {
	paths, err := api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	last, err := strconv.ParseInt(os.Getenv(envStep), 10, 64)
	if err != nil {
		return err
	}
	var ready atomic.Bool
	var steps atomic.Int64
	step = func() {
		if ready.Load() && steps.Add(1) == last {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	config := Config{Paths: paths, Logger: log, Ready: func() {
		ready.Store(true)
		notify.NotifyReady(log)
	}}
	if config.Stored, err = notify.StoredFiles(); err != nil {
		return err
	}
	store, err := notify.NewFileStore()
	if err != nil {
		return err
	}
	config.Store = countedStore{store}
	return Run(context.Background(), config)
}

// crasher is a leap-wpt that is killed at one of its steps, and brought back.
type crasher struct {
	t       *testing.T
	dir     string
	paths   api.Paths
	log     *os.File
	manager *commandtest.Manager

	mu      sync.Mutex
	process *commandtest.Process
	ready   int
	crashed bool // it was killed, and brought back
	over    bool // it is to stay dead
	wg      sync.WaitGroup
}

func newCrasher(t *testing.T, at int) *crasher {
	t.Helper()
	dir, err := os.MkdirTemp("", "wpt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &crasher{t: t, dir: dir}
	if c.paths, err = api.NewPaths(filepath.Join(dir, "run"), filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if c.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(c.log.Name()); t.Failed() {
			t.Logf("killed at step %d: %v\n%s", at, err, text)
		}
		c.log.Close()
	})
	if c.manager, err = commandtest.NewManager(dir); err != nil {
		t.Fatal(err)
	}
	c.start(at)
	c.wg.Go(c.watch)
	t.Cleanup(func() {
		c.mu.Lock()
		c.over = true
		_ = c.process.Signal(syscall.SIGKILL)
		c.mu.Unlock()
		c.wg.Wait()
		if err := c.manager.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// start starts leap-wpt, to be killed at a step; 0: never.
func (c *crasher) start(at int) {
	env := append(os.Environ(), envDir+"="+c.dir, envStep+"="+strconv.Itoa(at), "GORACE=atexit_sleep_ms=0")
	p, err := c.manager.Start("/proc/"+strconv.Itoa(os.Getpid())+"/exe", nil, env, c.log)
	if err == nil {
		c.ready, err = c.manager.AwaitReady(c.ready, p, time.Minute)
	}
	if err != nil {
		c.t.Error(err)
	}
	c.process = p
}

// watch brings leap-wpt back when it was killed.
func (c *crasher) watch() {
	for {
		c.mu.Lock()
		p := c.process
		c.mu.Unlock()
		_ = p.Wait()
		c.mu.Lock()
		if c.over {
			c.mu.Unlock()
			return
		}
		c.crashed = true
		c.start(0)
		c.mu.Unlock()
	}
}

// hasCrashed reports whether the step was come to.
func (c *crasher) hasCrashed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.crashed
}

// errConnecting is a machine that has no connection.
var errConnecting = errors.New("connecting")

// life is what one machine does, from its first message to its last. It has an
// error where something is not as it would be without a crash.
func (c *crasher) life(mem *vfiousertest.Memory) error {
	client, err := vfiousertest.Dial(c.paths.PortSocket("vm1"), mem, vfiousertest.Options{Timeout: time.Minute})
	if err != nil {
		return fmt.Errorf("%w: %w", errConnecting, err)
	}
	defer client.Close()
	first, err := c.port()
	if err != nil {
		return err
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(event)
	set := vfiouser.IRQSet{Flags: vfiouser.IRQDataEventFD | vfiouser.IRQActionTrigger, Index: vfiouser.IRQMSIX, Count: 1}
	register := func(off uint64, v uint32) func() error {
		return func() error { return client.Write32(off, v) }
	}
	for _, do := range []struct {
		what string
		do   func() error
	}{
		{"a vector", func() error { return client.SetIRQs(set, []int{event}) }},
		{"the same vector", func() error { return client.SetIRQs(set, []int{event}) }},
		{"AQA", register(nvme.RegAQA, 0x1f001f)},
		{"ASQ", register(nvme.RegASQ, 0x1000)},
		{"ACQ", register(nvme.RegACQ, 0x2000)},
		{"enable", register(nvme.RegCC, 0x460001)},
		{"unmap and map", client.ChurnPAM},
		{"interrupt line", func() error { return client.WriteConfig(0x3c, 1, 5) }},
		{"fire", func() error {
			return client.SetIRQs(vfiouser.IRQSet{Flags: vfiouser.IRQDataNone | vfiouser.IRQActionTrigger, Index: vfiouser.IRQMSIX, Count: 1}, nil)
		}},
		{"doorbell", register(nvme.RegDoorbells, 3)},
	} {
		if err := do.do(); err != nil {
			return fmt.Errorf("%s: %w", do.what, err)
		}
	}
	var b [8]byte
	if n, err := unix.Read(event, b[:]); err != nil || n != 8 {
		return fmt.Errorf("the vector was not fired: %w", err)
	}
	for off, want := range map[uint64]uint32{nvme.RegAQA: 0x1f001f, nvme.RegASQ: 0x1000, nvme.RegACQ: 0x2000, nvme.RegCC: 0x460001} {
		if got, err := client.Read32(off); err != nil || got != want {
			return fmt.Errorf("register %#x is %#x, %w, want %#x", off, got, err, want)
		}
	}
	if line, err := client.ReadConfig(0x3c, 1); err != nil || line != 5 {
		return fmt.Errorf("interrupt line %d, %w", line, err)
	}
	before, err := c.port()
	if err != nil {
		return err
	}
	if err := client.Write32(nvme.RegCC, 0x460000); err != nil {
		return fmt.Errorf("disable: %w", err)
	}
	if got, err := client.Read32(nvme.RegCC); err != nil || got != 0x460000 {
		return fmt.Errorf("CC is %#x, %w", got, err)
	}
	after, err := c.port()
	if err != nil {
		return err
	}
	if after.ResetGen <= before.ResetGen || after.Regions != first.Regions || after.Memory != first.Memory {
		return fmt.Errorf("%d regions of %v, want %d of %v; %d resets, %d before", after.Regions, after.Memory, first.Regions, first.Memory, after.ResetGen, before.ResetGen)
	}
	if err := client.Reset(); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	for off, want := range map[uint64]uint32{nvme.RegAQA: 0, nvme.RegCC: 0, nvme.RegCSTS: 0} {
		if got, err := client.Read32(off); err != nil || got != want {
			return fmt.Errorf("after a reset: register %#x is %#x, %w, want %#x", off, got, err, want)
		}
	}
	return client.Close()
}

func (c *crasher) port() (p api.Port, err error) {
	return p, c.paths.Wpt().Get(context.Background(), api.Path("ports", "vm1"), &p)
}

// Leap-wpt is killed at each of its steps, one after the other, while a machine
// does all that machines do. Nothing is lost, nothing is left over.
func TestCrashSteps(t *testing.T) {
	// All together they take minutes where the race detector is on.
	stride := 5
	if testing.Short() {
		stride = 15
	}
	killed := 0
	for at := 1 + rand.IntN(stride); ; at += stride {
		c := newCrasher(t, at)
		// Who asks may be cut off: the port is there, or is made now.
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			err := c.paths.Wpt().Post(context.Background(), api.Path("ports"), api.PortSpec{Name: "vm1", ExistOK: true}, nil)
			if err == nil {
				break
			}
			if time.Since(begin) > time.Minute {
				t.Fatalf("step %d: %v", at, err)
			}
		}
		before := c.manager.Stored()
		early := c.hasCrashed()
		mem := newMemory(t, vfiousertest.MemoryOptions{Low: 4 << 20, High: 4 << 20})
		err := c.life(mem)
		if errors.Is(err, errConnecting) && strings.Contains(err.Error(), "negotiating") && !errors.Is(err, unix.EINVAL) && !early {
			// Until the connection has been noted, a machine may be lost.
			eventually(t, "the end of leap-wpt is seen", c.hasCrashed)
			t.Logf("step %d: %v", at, err)
			err = c.life(mem)
		}
		if err != nil {
			t.Fatalf("step %d: %v", at, err)
		}
		eventually(t, "the machine has gone", func() bool {
			p, err := c.port()
			return err == nil && p.State == api.PortWaiting && len(c.manager.Stored()) == len(before)
		})
		if !c.hasCrashed() {
			t.Logf("killed at %d of %d steps", killed, at-1)
			break
		}
		killed++
	}
	if killed < 10 {
		t.Errorf("killed %d times only", killed)
	}
}

// crash kills leap-wpt, and waits until it is back.
func (c *crasher) crash() {
	c.t.Helper()
	c.mu.Lock()
	before := c.process
	_ = before.Signal(syscall.SIGKILL)
	c.mu.Unlock()
	eventually(c.t, "leap-wpt is back", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.process != before
	})
}

// hello connects a runtime, and says so.
func (c *crasher) hello() *qpair.Link {
	c.t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.paths.LinkSocket(), Net: "unixpacket"})
	if err != nil {
		c.t.Fatal(err)
	}
	link := qpair.NewLink(conn)
	c.t.Cleanup(func() { link.Close() })
	m := qpair.Message{Kind: qpair.MsgHello, Version: qpair.LinkVersion}
	if err := errors.Join(qpair.SetName(&m.Name, "soc"), link.Send(&m, nil)); err != nil {
		c.t.Fatal(err)
	}
	return link
}

// receive takes a message with its first file, noFD if there is none.
func receive(t *testing.T, link *qpair.Link, kind qpair.MessageKind) (qpair.Message, int) {
	t.Helper()
	m, _, fds, err := link.Recv()
	if err != nil || m.Kind != kind || m.Status != 0 {
		t.Fatalf("got %+v with %d files, %v", m, len(fds), err)
	}
	if len(fds) == 0 {
		return m, noFD
	}
	qpair.CloseFDs(fds[1:])
	return m, fds[0]
}

// A runtime that is not gone is waited for after a crash as before it, and what it
// has left in our care is there.
func TestCrashKeepsFence(t *testing.T) {
	c := newCrasher(t, 0)
	link := c.hello()
	welcome, fence := receive(t, link, qpair.MsgWelcome)
	file, err := unix.MemfdCreate("d1", unix.MFD_CLOEXEC)
	if err == nil {
		_, err = unix.Pwrite(file, []byte("content"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	kept := qpair.Message{Kind: qpair.MsgKeep, ID: 1}
	if err := errors.Join(qpair.SetName(&kept.Name, "mem/d1"), link.Send(&kept, nil, file)); err != nil {
		t.Fatal(err)
	}
	receive(t, link, qpair.MsgKept)
	unix.Close(file)
	for range 2 {
		c.crash()
		link = c.hello()
		admitted := make(chan error, 1)
		go func() {
			m, _, fds, err := link.Recv()
			if err == nil {
				err = fmt.Errorf("it got %+v and %d files", m, len(fds))
			}
			admitted <- err
		}()
		select {
		case err := <-admitted:
			t.Fatalf("a runtime was let in, or refused, while the one before is not gone: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		c.crash() // the one that waits has to come again
		<-admitted
	}
	unix.Close(fence)
	link = c.hello()
	again, fence := receive(t, link, qpair.MsgWelcome)
	defer unix.Close(fence)
	if again.Gen <= welcome.Gen {
		t.Errorf("epoch %d after %d", again.Gen, welcome.Gen)
	}
	kept.Kind = qpair.MsgFetch
	if err := link.Send(&kept, nil); err != nil {
		t.Fatal(err)
	}
	_, file = receive(t, link, qpair.MsgKept)
	defer unix.Close(file)
	b := make([]byte, 7)
	if _, err := unix.Pread(file, b, 0); err != nil || string(b) != "content" {
		t.Errorf("what was kept has %q, %v", b, err)
	}
}

// A reset is not acknowledged after a crash while the runtime that held the port
// is not gone: its I/O may be in flight.
func TestCrashKeepsHolder(t *testing.T) {
	c := newCrasher(t, 0)
	if err := c.paths.Wpt().Post(t.Context(), api.Path("ports"), api.PortSpec{Name: "vm1", Subsystem: "s1"}, nil); err != nil {
		t.Fatal(err)
	}
	link := c.hello()
	_, fence := receive(t, link, qpair.MsgWelcome)
	_, registers := receive(t, link, qpair.MsgAttach)
	unix.Close(registers)
	client, err := vfiousertest.Dial(c.paths.PortSocket("vm1"), newMemory(t, vfiousertest.MemoryOptions{Low: 4 << 20}), vfiousertest.Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c.crash()
	if err := client.Reset(); err != nil {
		t.Fatal(err)
	}
	csts := func() nvme.CSTS {
		t.Helper()
		v, err := client.Read32(nvme.RegCSTS)
		if err != nil {
			t.Fatal(err)
		}
		return nvme.CSTS(v)
	}
	if got := csts(); !got.CFS() {
		t.Errorf("CSTS is %#x: a reset is acknowledged while I/O may be in flight", got)
	}
	unix.Close(fence)
	eventually(t, "the reset is acknowledged", func() bool { return csts() == 0 })
}
