// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestAPI goes through the life of a port as commands see it.
func TestAPI(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	client, ctx := b.paths.Wpt(), t.Context()
	kind := func(what string, err error, want fault.Kind) {
		t.Helper()
		if got := fault.KindOf(err); got != want {
			t.Errorf("%s: got %v (%v), want %v", what, err, got, want)
		}
	}
	watch, stop := context.WithCancel(ctx)
	defer stop()
	events := b.events.Subscribe(watch)

	var port api.Port
	if err := client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "vm1"}, &port); err != nil {
		t.Fatal(err)
	}
	want := api.Port{
		Name: "vm1", State: api.PortWaiting, Socket: b.paths.PortSocket("vm1"), Owner: "root",
		Doorbells: api.DoorbellsTrap, Runtime: api.DefaultRuntime,
	}
	if diff := cmp.Diff(want, port, cmpopts.IgnoreFields(api.Port{}, "Since", "Owner")); diff != "" {
		t.Errorf("port made (-want +got):\n%s", diff)
	}
	for _, state := range []string{api.PortWaiting, "created"} {
		if e := <-events; e.Kind != api.KindPort || e.Name != "vm1" || e.State != state {
			t.Errorf("event %+v, want %s", e, state)
		}
	}
	kind("again", client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "vm1"}, &port), fault.Exists)
	if err := client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "vm1", ExistOK: true}, &port); err != nil {
		t.Errorf("again, if it may exist: %v", err)
	}
	kind("another", client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "vm1", Doorbells: api.DoorbellsMap, ExistOK: true}, &port), fault.Exists)
	kind("bad name", client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "../x"}, &port), fault.Usage)
	kind("no such owner", client.Post(ctx, api.Path("ports"), api.PortSpec{Name: "vm2", Owner: "no-such-user"}, &port), fault.NotFound)
	kind("no such port", client.Get(ctx, api.Path("ports", "vm9"), &port), fault.NotFound)
	kind("no such port", client.Delete(ctx, api.Path("ports", "vm9"), nil, nil), fault.NotFound)

	const nqn = "nqn.2014-08.org.nvmexpress:uuid:a2b11d0e-4a8c-4b52-a3b0-0f2d2b1a4a11"
	if err := client.Put(ctx, api.Path("ports", "vm1"), api.PortBinding{Subsystem: nqn, Poll: api.PollBusy}, &port); err != nil {
		t.Fatal(err)
	}
	rt := startRuntime(t, b, api.DefaultRuntime)
	if f := rt.attached(t, "vm1"); f.subsystem != nqn {
		t.Errorf("attached as %q", f.subsystem)
	}
	for key, value := range map[string]string{
		"subsystem": nqn, "runtime": "soc", "doorbells": "trap", "state": "waiting",
		"qemu": `-device {"driver":"vfio-user-pci","id":"leap-vm1","socket":{"type":"unix","path":"` + port.Socket + `"}}`,
	} {
		if got := fact(b, "vm1", key); got != value {
			t.Errorf("fact %s: got %q, want %q", key, got, value)
		}
	}
	if since, err := time.Parse(time.RFC3339, fact(b, "vm1", "since")); err != nil || time.Since(since) > time.Minute {
		t.Errorf("fact since: %v, %v", since, err)
	}

	// A guest that uses the drive keeps its subsystem, and moves to another
	// runtime.
	c := dial(t, mustPort(t, b, "vm1"), newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	enable(t, c)
	kind("another subsystem", client.Put(ctx, api.Path("ports", "vm1"), api.PortBinding{Subsystem: "s2"}, &port), fault.Exists)
	kind("no subsystem", client.Put(ctx, api.Path("ports", "vm1"), api.PortBinding{}, &port), fault.Exists)
	kind("remove", client.Delete(ctx, api.Path("ports", "vm1"), nil, nil), fault.Exists)
	other := startRuntime(t, b, "other")
	if err := client.Put(ctx, api.Path("ports", "vm1"), api.PortBinding{Subsystem: nqn, Runtime: "other"}, &port); err != nil {
		t.Fatal(err)
	}
	if f := other.caughtUp(t, mustPort(t, b, "vm1")); len(f.regions) != 2 || rt.port("vm1") != nil {
		t.Errorf("%d regions at the new runtime; the old one has let go: %v", len(f.regions), rt.port("vm1") == nil)
	}
	eventually(t, "enabled", func() bool { return fact(b, "vm1", "state") == api.PortEnabled })

	var show api.WptShow
	if err := client.Get(ctx, api.Path("show"), &show); err != nil {
		t.Fatal(err)
	}
	if len(show.Ports) != 1 || len(show.Runtimes) != 2 || show.PID != os.Getpid() || show.Version != "test" {
		t.Errorf("show: %+v", show)
	}
	if r := show.Runtimes[0]; r.Name != "other" || len(r.Ports) != 1 || r.Ports[0] != "vm1" || r.Epoch != other.epoch || r.PID != os.Getpid() {
		t.Errorf("runtime: %+v", r)
	}

	// A runtime that does not let go is not waited for by a removal for ever.
	if err := client.Delete(ctx, api.Path("ports", "vm1"), PortRemove{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if _, err := os.Stat(b.paths.PortDir("vm1")); !os.IsNotExist(err) {
		t.Errorf("folder of the removed port: %v", err)
	}
	if other.port("vm1") != nil {
		t.Error("the runtime still has the removed port")
	}
}

func mustPort(t testing.TB, b *Broker, name string) *port {
	t.Helper()
	p, err := b.port("test", name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRestart: ports are there again, others' sockets are respected.
func TestRestart(t *testing.T) {
	checkLeaks(t)
	paths := testPaths(t)
	start := func() *Broker {
		t.Helper()
		b, err := open(Config{Paths: paths, Version: "test", Logger: testLogger(t)}, quick)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	stop := func(b *Broker) {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := start()
	if _, err := open(Config{Paths: paths, Logger: testLogger(t)}, quick); fault.KindOf(err) != fault.Exists {
		t.Errorf("a second broker: %v, want exists", err)
	}
	if got := strings.TrimSpace(readFile(t, paths.PidFile("wpt"))); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("pid file has %q", got)
	}
	owner := strconv.Itoa(os.Getuid()) + ":" + strconv.Itoa(os.Getgid())
	addPort(t, b, api.PortSpec{Name: "vm1", Owner: owner, Doorbells: api.DoorbellsMap})
	addPort(t, b, api.PortSpec{Name: "vm2", Subsystem: "s1"})
	addPort(t, b, api.PortSpec{Name: "vm3"})
	if err := b.removePort("vm3", false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.bindPort("vm1", api.PortBinding{Subsystem: "s2", Runtime: "r2", Poll: api.PollInterrupt}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"vm1": 0o660, "vm2": 0o600} {
		if st, err := os.Stat(paths.PortSocket(name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v", name, st.Mode(), mode)
		}
	}
	stop(b)
	for _, left := range []string{paths.PortDir("vm1"), paths.LinkSocket(), paths.WptSocket(), paths.PidFile("wpt")} {
		if _, err := os.Lstat(left); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", left, err)
		}
	}

	// As after a crash: a dead socket in the way; and one port cannot be had,
	// since somebody else's folder is in its place.
	dead, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(dead, &unix.SockaddrUnix{Name: paths.LinkSocket()}); err != nil {
		t.Fatal(err)
	}
	unix.Close(dead)
	if err := os.MkdirAll(filepath.Join(paths.PortDir("vm2"), "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths.PortDir("vm2"), ".owner"), []byte("else\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b = start()
	got := b.listPorts()
	want := []api.Port{{
		Name: "vm1", State: api.PortWaiting, Socket: paths.PortSocket("vm1"), Owner: owner,
		Doorbells: api.DoorbellsMap, Subsystem: "s2", Runtime: "r2", Poll: api.PollInterrupt,
	}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(api.Port{}, "Since")); diff != "" {
		t.Errorf("ports after a restart (-want +got):\n%s", diff)
	}
	addPort(t, b, api.PortSpec{Name: "vm4"})
	stop(b)
	if err := os.RemoveAll(paths.PortDir("vm2")); err != nil {
		t.Fatal(err)
	}
	b = start()
	defer stop(b)
	if got := b.listPorts(); len(got) != 3 || got[1].Name != "vm2" || got[1].Subsystem != "s1" {
		t.Errorf("the port that could not be opened is lost: %+v", got)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFailedPort: what could not be opened can be removed and added anew.
func TestFailedPort(t *testing.T) {
	paths := testPaths(t)
	file := api.NewStateFile[state](paths.StateFile("wpt"), stateVersion, nil)
	err := file.Save(state{Ports: []record{{Name: "a", Owner: "no-such-user", Doorbells: "trap"}, {Name: "b", Doorbells: "none"}}})
	if err != nil {
		t.Fatal(err)
	}
	b := startBroker(t, paths, quick)
	if got := b.listPorts(); len(got) != 0 {
		t.Fatalf("ports: %+v", got)
	}
	addPort(t, b, api.PortSpec{Name: "a"})
	if err := b.removePort("b", false); err != nil {
		t.Fatal(err)
	}
	s, err := file.Load()
	if err != nil || len(s.Ports) != 1 || s.Ports[0].Name != "a" || s.Ports[0].Doorbells != "trap" {
		t.Errorf("state: %+v, %v", s, err)
	}
}

// TestSignals: guests are worth a second thought.
func TestSignals(t *testing.T) {
	b := startBroker(t, testPaths(t), quick)
	p := addPort(t, b, api.PortSpec{Name: "vm1"})
	if s := (Stopper{Broker: b}); !s.Stop(unix.SIGTERM) {
		t.Error("TERM without a guest is refused")
	}
	dial(t, p, newMemory(t, vfiousertest.MemoryOptions{Low: 8 * mib}), vfiousertest.Options{})
	if got := b.Attached(); len(got) != 1 || got[0] != "vm1" {
		t.Errorf("attached: %v", got)
	}
	s := Stopper{Broker: b}
	for i, step := range []struct {
		sig  os.Signal
		want bool
	}{{unix.SIGHUP, false}, {unix.SIGTERM, false}, {unix.SIGHUP, false}, {unix.SIGINT, true}} {
		if got := s.Stop(step.sig); got != step.want {
			t.Errorf("step %d, %v: got %v, want %v", i, step.sig, got, step.want)
		}
	}
}

// TestRun: the daemon serves until its context ends.
func TestRun(t *testing.T) {
	paths := testPaths(t)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() {
		done <- Run(ctx, Config{Paths: paths, Logger: testLogger(t), Ready: func() { close(ready) }})
	}()
	<-ready
	var info api.Info
	if err := paths.Wpt().Get(ctx, "/v1/", &info); err != nil || info.Daemon != "leap-wpt" {
		t.Errorf("info: %+v, %v", info, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
