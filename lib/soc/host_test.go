// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
)

const (
	hostOne = "nqn.2014-08.org.nvmexpress:uuid:2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10"
	hostTwo = "nqn.2014-08.org.nvmexpress:uuid:0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5"
)

// connect connects a host to the only subsystem of a listener, or to discovery.
func (r *rig) connect(l api.Listener, nqn, hostNQN string) (*host.Admin, error) {
	r.t.Helper()
	addr, err := fabrics.ParseAddress(l.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	addr.NQN = nqn
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	a, err := host.Connect(ctx, addr, host.Options{HostNQN: hostNQN, Timeout: 30 * time.Second})
	if err == nil {
		r.t.Cleanup(func() { a.Close() })
		err = a.Enable(ctx)
	}
	return a, err
}

// eventually waits until something is so.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not after 30 s: %s", what)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHostAndPort: a subsystem that is not shared is a host's or a machine's. A
// port that comes second is served when the host has gone; a host is refused.
func TestHostAndPort(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{
		URL: "tcp://127.0.0.1:0", Targets: []string{"d1"}, Allow: []string{api.HostAny},
	})
	nqn := l.Subsystems[0]
	a, err := r.connect(l, nqn, hostOne)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.connect(l, nqn, hostTwo); fault.KindOf(err) != fault.Exists {
		t.Errorf("a second host: %v", err)
	}
	call[api.Port](r, r.paths.Wpt(), "POST", "/v1/ports", api.PortSpec{Name: "vm1"})
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/vm1", api.PortBinding{Subsystem: "listener-1"})
	r.eventually("the port waits", func() bool { return r.lines.complained() > 0 })
	a.Close()
	n := r.guest("vm1", small)
	if err := n.Enable(64); err != nil {
		t.Fatal(err)
	}
	if _, err := r.connect(l, nqn, hostOne); fault.KindOf(err) != fault.Exists {
		t.Errorf("a host beside a machine: %v", err)
	}
	// The implicit subsystem stays for the port.
	call[api.None](r, r.client(), "DELETE", "/v1/listeners/1", nil)
	if s := call[api.Subsystem](r, r.client(), "GET", "/v1/subsystems/listener-1", nil); len(s.Ports) != 1 || len(s.Listeners) != 0 {
		t.Errorf("subsystem %+v", s)
	}
}

// TestHostDenied: a host that is denied is cut off, others stay; what they are
// connected to is in use.
func TestHostDenied(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	sub := call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s1", Volumes: []string{"d1"}, Shared: true})
	for _, h := range []string{hostOne, hostTwo} {
		call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems/s1/hosts", api.HostSpec{Host: h})
	}
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0"})
	one, err := r.connect(l, sub.NQN, hostOne)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.connect(l, sub.NQN, hostTwo)
	if err != nil {
		t.Fatal(err)
	}
	r.volume("d2", "mem", "size", "16M")
	err = r.client().Post(t.Context(), "/v1/subsystems/s1/namespaces", api.NamespaceSpec{Volume: "d2"}, nil)
	if fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "several hosts") {
		t.Errorf("a namespace of its own for each of two hosts: %v", err)
	}
	err = r.client().Delete(t.Context(), "/v1/subsystems/s1", nil, nil)
	if fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), hostOne) || !strings.Contains(err.Error(), "listener 1") {
		t.Errorf("deleting what hosts use: %v", err)
	}
	call[api.Subsystem](r, r.client(), "DELETE", "/v1/subsystems/s1/hosts/"+hostOne, nil)
	r.eventually("the host is cut off", func() bool {
		_, err := one.KeepAlive(t.Context())
		return err != nil
	})
	if _, err := two.KeepAlive(t.Context()); err != nil {
		t.Errorf("the other host: %v", err)
	}
	if _, err := r.connect(l, sub.NQN, hostOne); fault.KindOf(err) != fault.Permission {
		t.Errorf("it comes again: %v", err)
	}
	hosts := filepath.Join(r.paths.ListenerDir(1), "hosts")
	r.eventually("the fact has one host", func() bool { return readFile(t, hosts) == hostTwo+"\n" })
	two.Close()
	r.eventually("the fact has none", func() bool { return readFile(t, hosts) == "" })
	call[api.None](r, r.client(), "DELETE", "/v1/subsystems/s1", nil)
}

// TestHostStop: a runtime that is stopped ends its hosts' associations, and the
// next one lets them in again.
func TestHostStop(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{
		URL: "tcp://127.0.0.1:0", Targets: []string{"d1"}, Allow: []string{hostOne},
	})
	a, err := r.connect(l, l.Subsystems[0], hostOne)
	if err != nil {
		t.Fatal(err)
	}
	r.stopSoc()
	if _, err := a.KeepAlive(t.Context()); err == nil {
		t.Error("it is still connected")
	}
	r.startSoc()
	r.eventually("it listens again", func() bool {
		return call[api.Listener](r, r.client(), "GET", "/v1/listeners/1", nil).State == api.ListenerListening
	})
	if _, err := r.connect(l, l.Subsystems[0], hostOne); err != nil {
		t.Error(err)
	}
}

// TestHostStat: the queues of a host are counted, and its poller has them.
func TestHostStat(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{
		URL: "tcp://127.0.0.1:0", Targets: []string{"d1"}, Allow: []string{hostOne},
	})
	a, err := r.connect(l, l.Subsystems[0], hostOne)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := a.KeepAlive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stat := call[api.Stat](r, r.client(), "GET", "/v1/stat/queue", nil)
	if want := fmt.Sprintf("listener-1/%d/0", a.CNTLID()); len(stat.Things) != 1 || stat.Things[0].Name != want || stat.Things[0].Other.Commands != 3 {
		t.Errorf("%+v, want 3 commands of %s", stat.Things, want)
	}
	if info := call[api.RuntimeInfo](r, r.client(), "GET", "/v1/runtime", nil); len(info.Pollers) != 1 || info.Pollers[0].Queues != 1 {
		t.Errorf("%+v", info)
	}
	a.Close()
	r.eventually("the queue goes", func() bool {
		return len(call[api.Stat](r, r.client(), "GET", "/v1/stat/queue", nil).Things) == 0
	})
}

// TestHostIPv6: a host comes by IPv6, and is told addresses of that family.
func TestHostIPv6(t *testing.T) {
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skipf("not run: %v", err)
	} else {
		l.Close()
	}
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{
		URL: "tcp://[::]:0", Targets: []string{"d1"}, Allow: []string{hostOne},
	})
	find := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://[::1]:0", Targets: []string{fabrics.DiscoveryNQN}})
	a, err := r.connect(find, fabrics.DiscoveryNQN, hostOne)
	if err != nil {
		t.Fatal(err)
	}
	_, entries, err := a.DiscoveryLog(t.Context())
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d records, %v", len(entries), err)
	}
	at := &entries[0]
	if at.ADRFAM != fabrics.FamilyIPv6 || at.Address() != "::1" || !strings.HasSuffix(l.URL, ":"+at.Service()) {
		t.Errorf("%v %s %s, want that of %s", at.ADRFAM, at.Address(), at.Service(), l.URL)
	}
	l.URL = "tcp://[" + at.Address() + "]:" + at.Service()
	if _, err := r.connect(l, at.Subsystem(), hostOne); err != nil {
		t.Error(err)
	}
}
