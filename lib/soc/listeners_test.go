// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/wpt/link"
)

// frontDesk is a runtime that consists of what is kept and of its listeners.
type frontDesk struct {
	*Runtime
	t    *testing.T
	stop func()
}

// newFrontDesk makes one in folders that may have been used before.
func newFrontDesk(t *testing.T, paths api.Paths) *frontDesk {
	t.Helper()
	r := newRuntime(Config{Paths: paths, Name: api.DefaultRuntime, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	p, err := poller.Start(poller.Config{Name: "p", CPU: -1, Fence: -1})
	if err != nil {
		t.Fatal(err)
	}
	r.pollers = []*poller.Poller{p}
	r.ports = link.NewPorts(r.pollers, r.resolve)
	if err := errors.Join(r.openRecords(), r.load(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.target = r.newTarget()
	f := &frontDesk{Runtime: r, t: t}
	ctx, cancel := context.WithCancel(t.Context())
	go r.keepListeners(ctx)
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-r.listenersKept
		r.refreshes.Wait()
		r.stopPollers()
	})
	t.Cleanup(f.stop)
	return f
}

func newPaths(t *testing.T) api.Paths {
	t.Helper()
	dir, err := os.MkdirTemp("", "leap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	paths, err := api.NewPaths(dir, filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// listenTo makes a listener.
func (f *frontDesk) listenTo(in api.ListenerSpec) api.Listener {
	f.t.Helper()
	l, err := f.createListener(f.t.Context(), in)
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

func (f *frontDesk) volumes(names ...string) {
	f.t.Helper()
	for _, name := range names {
		if _, err := f.createVolume(f.t.Context(), api.VolumeSpec{Name: name, Kind: "null", Options: api.Options{"size": "1M"}}); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *frontDesk) subsystem(name string, in api.SubsystemSpec) api.Subsystem {
	f.t.Helper()
	in.Name = name
	s, err := f.createSubsystem(in)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// wait waits until a listener is in a state.
func (f *frontDesk) wait(number int, state string) api.Listener {
	f.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for _, l := range f.listListeners() {
			if l.Number == number && l.State == state {
				return l
			}
		}
		if time.Now().After(end) {
			f.t.Fatalf("listener %d is not %s: %+v", number, state, f.listListeners())
		}
	}
}

const anyPort = "tcp://127.0.0.1:0"

const (
	hostA = "nqn.2014-08.org.nvmexpress:uuid:2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10"
	hostB = "nqn.2014-08.org.nvmexpress:uuid:0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5"
)

// TestListenerLife: a listener for a volume is opened once leap-wpt has let the
// runtime in, is there again after a restart at the same address, and takes its
// subsystem with it.
func TestListenerLife(t *testing.T) {
	paths := newPaths(t)
	f := newFrontDesk(t, paths)
	f.volumes("d1", "d2")
	l := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"d1", "d2"}, Allow: []string{hostB, hostA}})
	if l.Number != 1 || l.State != api.ListenerRetrying || !strings.Contains(l.Error, "leap-wpt") || strings.HasSuffix(l.URL, ":0") {
		t.Errorf("before leap-wpt: %+v", l)
	}
	close(f.admitted)
	f.wait(1, api.ListenerListening)
	for fact, want := range map[string]string{"url": l.URL, "state": "listening", "error": "", "hosts": ""} {
		b, err := os.ReadFile(filepath.Join(paths.ListenerDir(1), fact))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("fact %s: %q, %v, want %q", fact, got, err, want)
		}
	}
	generation := f.generation
	f.stop()

	f = newFrontDesk(t, paths)
	close(f.admitted)
	again := f.wait(1, api.ListenerListening)
	l.State, l.Error = again.State, again.Error
	if d := cmp.Diff(l, again); d != "" {
		t.Error(d)
	}
	if f.generation <= generation || generation == 0 {
		t.Errorf("generation %d after %d", f.generation, generation)
	}
	generation = f.generation
	s := f.subsystems["listener-1"]
	if s == nil || !s.rec.Implicit || s.rec.AllowAny || !slices.Equal(s.rec.Hosts, []string{hostB, hostA}) || len(s.rec.Namespaces) != 2 {
		t.Errorf("subsystem %+v", s)
	}
	if err := f.deleteSubsystem(t.Context(), "listener-1"); fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "listener 1") {
		t.Errorf("deleting what it shows: %v", err)
	}
	if err := f.unlisten(t.Context(), l.URL+"/"+l.Subsystems[0]); err != nil {
		t.Error(err)
	}
	if len(f.subsystems) != 0 || len(f.listListeners()) != 0 || f.generation == generation {
		t.Errorf("left: %v, %v, generation %d", f.subsystems, f.listListeners(), f.generation)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(l.URL, "tcp://")); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
	if _, err := os.Stat(paths.ListenerDir(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("facts: %v", err)
	}
	if err := f.deleteVolume("d1", false); err != nil {
		t.Error(err)
	}
}

// TestListenerRetries: a port that is taken is waited for.
func TestListenerRetries(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	close(f.admitted)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l := f.listenTo(api.ListenerSpec{URL: "tcp://" + taken.Addr().String()})
	if l.State != api.ListenerRetrying || !strings.Contains(l.Error, "in use") {
		t.Errorf("%+v", l)
	}
	if b, err := os.ReadFile(filepath.Join(f.cfg.Paths.ListenerDir(1), "error")); err != nil || !strings.Contains(string(b), "in use") {
		t.Errorf("fact: %q, %v", b, err)
	}
	taken.Close()
	f.wait(1, api.ListenerListening)
}

// TestBackoff: pauses grow, up to a limit.
func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Unix(0, 0)
	var got []time.Duration
	for range 8 {
		b.failed(now)
		got = append(got, b.at.Sub(now))
		now = b.at
	}
	const ms = time.Millisecond
	if want := []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, lastPause, lastPause}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestListenSame: the same command again changes nothing, another one is
// refused.
func TestListenSame(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	close(f.admitted)
	f.volumes("d1", "d2")
	s := f.subsystem("s1", api.SubsystemSpec{})
	f.subsystem("s2", api.SubsystemSpec{})
	one := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"d1"}, Allow: []string{hostA}})
	two := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"s1"}, Advertise: "192.0.2.1:4444"})
	all := f.listenTo(api.ListenerSpec{URL: anyPort})
	find := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{fabrics.DiscoveryNQN}, Referrals: []string{"tcp://b", "tcp://a"}})
	generation := f.generation
	for _, tt := range []struct {
		in   api.ListenerSpec
		kind fault.Kind // 0: the listener that is there
	}{
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, Allow: []string{hostA}}, 0},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, Allow: []string{hostA, hostA}}, 0},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}}, 0},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"listener-1"}}, 0},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, Allow: []string{hostB}}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, Allow: []string{api.HostAny}}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, Shared: true}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1"}, ReadOnly: true}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d1", "d2"}}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"d2"}, Allow: []string{hostA}}, fault.Exists},
		{api.ListenerSpec{URL: one.URL, Targets: []string{"s1"}}, fault.Exists},
		{api.ListenerSpec{URL: one.URL}, fault.Exists},
		{api.ListenerSpec{URL: two.URL, Targets: []string{"s1"}, Advertise: "192.0.2.1:4444"}, 0},
		{api.ListenerSpec{URL: two.URL + "/" + s.NQN, Advertise: "192.0.2.1:4444"}, 0},
		{api.ListenerSpec{URL: two.URL, Targets: []string{"s1"}}, fault.Exists},
		{api.ListenerSpec{URL: two.URL, Targets: []string{"s1", "s2"}, Advertise: "192.0.2.1:4444"}, fault.Exists},
		{api.ListenerSpec{URL: all.URL}, 0},
		{api.ListenerSpec{URL: all.URL, Referrals: []string{"tcp://192.0.2.1"}}, fault.Exists},
		{api.ListenerSpec{URL: find.URL, Targets: []string{fabrics.DiscoveryNQN}, Referrals: []string{"tcp://b", "tcp://a:8009/" + fabrics.DiscoveryNQN, "tcp://b"}}, 0},
		{api.ListenerSpec{URL: find.URL + "/" + fabrics.DiscoveryNQN, Referrals: []string{"tcp://a", "tcp://b"}}, 0},
		{api.ListenerSpec{URL: find.URL, Targets: []string{fabrics.DiscoveryNQN}, Referrals: []string{"tcp://b"}}, fault.Exists},
		{api.ListenerSpec{URL: find.URL}, fault.Exists},
		{api.ListenerSpec{URL: all.URL, Targets: []string{"s1"}}, fault.Exists},
	} {
		_, err := f.createListener(t.Context(), tt.in)
		if got := fault.KindOf(err); got != tt.kind {
			t.Errorf("%+v: %v", tt.in, err)
		}
	}
	if len(f.listListeners()) != 4 || len(f.subsystems) != 3 || f.generation != generation {
		t.Errorf("something has changed: %v, generation %d after %d", f.listListeners(), f.generation, generation)
	}
}

// TestListenRefused: what is asked wrongly, and that nothing is left of it.
func TestListenRefused(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	f.volumes("d1", "d2", "both")
	f.subsystem("s1", api.SubsystemSpec{})
	f.subsystem("both", api.SubsystemSpec{})
	f.subsystem("owner", api.SubsystemSpec{Volumes: []string{"d2"}})
	for _, tt := range []struct {
		in   api.ListenerSpec
		kind fault.Kind
		want string
	}{
		{api.ListenerSpec{URL: "127.0.0.1"}, fault.Usage, "tcp://HOST"},
		{api.ListenerSpec{URL: "rdma://127.0.0.1"}, fault.Unsupported, "rdma"},
		{api.ListenerSpec{URL: anyPort + "?nsid=1"}, fault.Usage, "single namespace"},
		{api.ListenerSpec{URL: anyPort + "/" + hostA, Targets: []string{"s1"}}, fault.Usage, "only target"},
		{api.ListenerSpec{URL: anyPort + "/" + hostA}, fault.NotFound, hostA},
		{api.ListenerSpec{URL: anyPort, Advertise: "a/b"}, fault.Usage, "a/b"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"d9"}}, fault.NotFound, "d9"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"s1", "d1"}}, fault.Usage, "a listener is for the ones or the others"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"both"}}, fault.Usage, "a subsystem and a volume"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"d1"}}, fault.Usage, "no host may use volume d1"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"s1"}, Allow: []string{hostA}}, fault.Usage, "--allow is for volumes"},
		{api.ListenerSpec{URL: anyPort, Allow: []string{hostA}}, fault.Usage, "--allow is for volumes"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"s1"}, Shared: true}, fault.Usage, "--shared is for volumes"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"s1"}, ReadOnly: true}, fault.Usage, "--read-only is for volumes"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"s1", fabrics.DiscoveryNQN}}, fault.Usage, "only target"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{fabrics.DiscoveryNQN}, Allow: []string{hostA}}, fault.Usage, "every host may discover"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{fabrics.DiscoveryNQN}, Shared: true}, fault.Usage, "--shared is for volumes"},
		{api.ListenerSpec{URL: anyPort, Referrals: []string{"tcp://b:0"}}, fault.Usage, "port 0"},
		{api.ListenerSpec{URL: anyPort, Referrals: []string{"tcp://b?nsid=1"}}, fault.Usage, "no namespace"},
		{api.ListenerSpec{URL: anyPort, Referrals: []string{"b"}}, fault.Usage, "tcp://HOST"},
		{api.ListenerSpec{URL: anyPort, Targets: []string{"d1", "d2"}, Allow: []string{hostA}}, fault.Exists, "volume d2 is in use"},
	} {
		_, err := f.createListener(t.Context(), tt.in)
		if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v (%v), want %v, %q", tt.in, err, fault.KindOf(err), tt.kind, tt.want)
		}
	}
	left, err := os.ReadDir(f.cfg.Paths.Facts(api.KindListener))
	if err != nil || len(left) != 0 || len(f.listListeners()) != 0 || len(f.subsystems) != 3 {
		t.Errorf("left: %v, %v, %v", left, f.listListeners(), f.subsystems)
	}
}

// TestAdmission: who sees what at which listener, and that the discovery log
// goes with it.
func TestAdmission(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	close(f.admitted)
	f.volumes("d1")
	one := f.subsystem("one", api.SubsystemSpec{})
	open := f.subsystem("open", api.SubsystemSpec{AllowAny: true})
	if _, err := f.allow("one", hostA, false); err != nil {
		t.Fatal(err)
	}
	f.listenTo(api.ListenerSpec{URL: anyPort})
	f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"one"}, Advertise: "192.0.2.7"})
	port := strings.TrimPrefix(f.listListeners()[1].URL, "tcp://127.0.0.1:")
	for _, tt := range []struct {
		listener  int
		nqn, host string
		want      error
	}{
		{1, one.NQN, hostA, nil},
		{1, one.NQN, hostB, target.ErrHostNotAllowed},
		{1, open.NQN, hostB, nil},
		{2, one.NQN, hostA, nil},
		{2, open.NQN, hostA, target.ErrNoSubsystem},
		{3, one.NQN, hostA, target.ErrNoSubsystem},
		{1, hostA, hostA, target.ErrNoSubsystem},
	} {
		model, err := f.subsystemFor(tt.listener, tt.nqn, tt.host)
		if err != tt.want || err == nil && model.NQN != tt.nqn {
			t.Errorf("listener %d, %s for %s: %v, %v", tt.listener, tt.nqn, tt.host, model, err)
		}
	}
	log := func(listener int, host string) (lines []string, generation uint64) {
		entries, generation := f.discoveryFor(listener, host, netip.MustParseAddrPort("192.0.2.1:1"))
		for _, e := range entries {
			if e.SUBTYPE == fabrics.SubsystemNVM {
				lines = append(lines, e.Subsystem()+" "+e.Address()+" "+e.Service())
			}
		}
		slices.Sort(lines)
		return lines, generation
	}
	both := []string{one.NQN + " 192.0.2.1 1", open.NQN + " 192.0.2.1 1"}
	slices.Sort(both)
	for _, tt := range []struct {
		listener int
		host     string
		want     []string
	}{
		{1, hostA, both},
		{1, hostB, both[slices.IndexFunc(both, func(s string) bool { return strings.HasPrefix(s, open.NQN) }):][:1]},
		{2, hostA, []string{one.NQN + " 192.0.2.7 " + port}},
		{2, hostB, nil},
		{3, hostA, nil},
	} {
		if got, _ := log(tt.listener, tt.host); !slices.Equal(got, tt.want) {
			t.Errorf("listener %d, host %s: %q, want %q", tt.listener, tt.host, got, tt.want)
		}
	}
	_, before := log(1, hostB)
	if _, err := f.allow("one", hostB, false); err != nil {
		t.Fatal(err)
	}
	if got, now := log(1, hostB); len(got) != 2 || now <= before {
		t.Errorf("after host allow: %q, generation %d after %d", got, now, before)
	}
	_, before = log(1, hostB)
	if err := f.deleteSubsystem(t.Context(), "open"); err != nil {
		t.Fatal(err)
	}
	if got, now := log(1, hostB); len(got) != 1 || now <= before {
		t.Errorf("after subsystem delete: %q, generation %d after %d", got, now, before)
	}
}

// TestUnsharedHost: one controller at a time; another host gets in when the one
// before has gone, or has not come after it was let in.
func TestUnsharedHost(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	f.volumes("d1")
	s := f.subsystem("s1", api.SubsystemSpec{AllowAny: true, Volumes: []string{"d1"}})
	l := f.listenTo(api.ListenerSpec{URL: anyPort})
	in := func() error {
		_, err := f.subsystemFor(l.Number, s.NQN, hostA)
		return err
	}
	if err := in(); err != nil {
		t.Fatal(err)
	}
	if err := in(); err == nil {
		t.Error("two were let in at once")
	}
	p := f.pollers[0]
	var c *controller.Controller
	connect := func() {
		var err error
		if derr := p.Do(func() {
			c, err = f.subsystems["s1"].model.New(controller.Config{Poller: p, CNTLID: -1, MaxQueues: 1, Log: f.log})
		}); derr != nil || err != nil {
			t.Fatal(derr, err)
		}
	}
	connect()
	if err := in(); err == nil {
		t.Error("let in beside a controller")
	}
	if err := p.Do(c.Close); err != nil {
		t.Fatal(err)
	}
	if err := in(); err != nil {
		t.Errorf("after the one before has gone: %v", err)
	}
	u := &f.subsystems["s1"].use
	u.mu.Lock()
	u.granted = u.granted.Add(-grantLimit)
	u.mu.Unlock()
	if err := in(); err != nil {
		t.Errorf("the one before never came: %v", err)
	}
}
