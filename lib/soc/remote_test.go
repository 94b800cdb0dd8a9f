// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
)

// remote makes volume d1, which is volume m over NVMe/TCP, by a listener of the
// runtime's own, and returns the listener.
func (r *rig) remote() api.Listener {
	r.t.Helper()
	r.volume("m", "mem", "size", "64M")
	s := call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s", AllowAny: true})
	call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s/namespaces", api.NamespaceSpec{Volume: "m"})
	l := r.listen("tcp://127.0.0.1:0")
	r.volume("d1", "remote", "addr", l.URL+"/"+s.NQN, "keep-alive", "500ms", "reconnect-delay", "20ms", "data-digest", "on")
	return l
}

// listen makes a listener for hosts of s.
func (r *rig) listen(url string) api.Listener {
	r.t.Helper()
	return call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: url, Targets: []string{"s"}})
}

// TestRemoteRestart stops and starts the runtime that has both the remote volume
// and the listener it is reached at, while a guest writes and verifies.
func TestRemoteRestart(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.remote()
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	load := newLoad(t, n, 2)
	for range 2 {
		time.Sleep(100 * time.Millisecond)
		r.stopSoc()
		r.startSoc()
	}
	time.Sleep(100 * time.Millisecond)
	load.end()
}

// TestRemoteAway: while its remote is away, a volume fails nothing, the runtime
// stops and starts, and a guest's I/O goes on when the remote is there again.
func TestRemoteAway(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	l := r.remote()
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	load := newLoad(t, n, 2)
	state := func(want string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil)
			if v.State == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("volume d1 is %s (%s), want %s", v.State, v.Error, want)
			}
		}
	}
	time.Sleep(50 * time.Millisecond)
	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	state("failed")
	r.stopSoc()
	r.startSoc()
	state("failed")
	r.listen(l.URL)
	state("ready")
	load.end()
}
