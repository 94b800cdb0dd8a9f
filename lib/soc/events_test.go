// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// listening connects a host that wants to know of events, and has asked for n.
func listening(t *testing.T, l api.Listener, nqn, host string, notice uint32, n int) *fabricstest.Queue {
	t.Helper()
	addr := netip.MustParseAddrPort(strings.TrimPrefix(l.URL, "tcp://"))
	cmd := fabrics.ConnectCommand{SQSIZE: 31, KATO: 30000}
	q := fabricstest.Join(t, addr, fabricstest.Options{}, cmd, fabricstest.ConnectData(host, nqn, fabrics.CNTLIDDynamic))
	q.Enable()
	var set fabricstest.Request
	nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: notice}.Put(&set.SQE)
	if st := q.Do(&set); st != 0 {
		t.Fatal(st)
	}
	for range n {
		q.Start(&fabricstest.Request{SQE: nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}})
	}
	return q
}

// event waits for one.
func event(t *testing.T, q *fabricstest.Queue, what string, want nvme.AsyncEvent) {
	t.Helper()
	r, err := q.Next()
	if err != nil || r.SQE.Opcode != uint8(nvme.AdminAsyncEventRequest) || nvme.AsyncEvent(r.CQE.DW0) != want {
		t.Fatalf("%s: %+v, %v", what, r, err)
	}
}

// read reads a log page, so that the next event can come. It fails if an event
// came that nobody waits for.
func read(t *testing.T, q *fabricstest.Queue, lid nvme.LogPageID) {
	t.Helper()
	r := fabricstest.Request{From: make([]byte, 4096)}
	nvme.GetLogPage{LID: lid, NUMD: 4096/4 - 1}.Put(&r.SQE)
	if st := q.Do(&r); st != 0 {
		t.Fatal(st)
	}
}

// TestHostEvents: a host is told of what changes for it, and of nothing else.
func TestHostEvents(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "16M")
	r.volume("d2", "mem", "size", "16M")
	sub := call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s1", Volumes: []string{"d1"}, Shared: true})
	allow := func(host string) {
		call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems/s1/hosts", api.HostSpec{Host: host})
	}
	allow(hostOne)
	l := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0"})
	find := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0", Targets: []string{fabrics.DiscoveryNQN}})

	one := listening(t, find, fabrics.DiscoveryNQN, hostOne, nvme.NoticeDiscoveryLog, 4)
	here := listening(t, l, fabrics.DiscoveryNQN, hostOne, nvme.NoticeDiscoveryLog, 4)
	drive := listening(t, l, sub.NQN, hostOne, nvme.NoticeNamespaceAttribute, 4)
	changed := func(what string, seekers ...*fabricstest.Queue) {
		t.Helper()
		for _, q := range seekers {
			event(t, q, what, nvme.EventDiscoveryLog)
			read(t, q, nvme.LogDiscovery)
		}
	}
	// What concerns others only.
	allow(hostTwo)
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s2"})
	for _, q := range []*fabricstest.Queue{one, here} {
		read(t, q, nvme.LogDiscovery)
	}
	// Namespaces come and go, which discovery has nothing to do with.
	call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s1/namespaces", api.NamespaceSpec{Volume: "d2", NSID: 7, Shared: true})
	event(t, drive, "a namespace comes", nvme.EventNamespaceAttribute)
	read(t, drive, nvme.LogChangedNamespaces)
	call[api.None](r, r.client(), "DELETE", "/v1/subsystems/s1/namespaces/7", nil)
	event(t, drive, "a namespace goes", nvme.EventNamespaceAttribute)
	// Listeners come and go.
	more := call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0", Targets: []string{"s1"}})
	changed("a listener comes", one)
	call[api.None](r, r.client(), "DELETE", "/v1/listeners/3", nil)
	changed("a listener goes", one)
	if more.Number != 3 {
		t.Errorf("listener %d", more.Number)
	}
	// Hosts are let in and denied.
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems/s2/hosts", api.HostSpec{Host: hostOne})
	changed("host allow", one, here)
	call[api.Subsystem](r, r.client(), "DELETE", "/v1/subsystems/s1/hosts/"+hostOne, nil)
	changed("host deny", one, here)
	if _, err := drive.Next(); err == nil {
		t.Error("the host that is denied goes on")
	}
}
