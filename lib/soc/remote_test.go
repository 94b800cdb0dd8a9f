// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
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

// waitVolume waits until a volume is in a state.
func (r *rig) waitVolume(name, want string) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/"+name, nil)
		if v.State == want {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("volume %s is %s (%s), want %s", name, v.State, v.Error, want)
		}
	}
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
	time.Sleep(50 * time.Millisecond)
	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	r.waitVolume("d1", "failed")
	r.stopSoc()
	r.startSoc()
	r.waitVolume("d1", "failed")
	r.listen(l.URL)
	r.waitVolume("d1", "ready")
	load.end()
}

// TestRemoteAwayReset: while the remote is away, with I/O of a guest in flight,
// the guest resets its controller, and then is gone and the runtime stops. Nobody
// waits for the remote.
func TestRemoteAwayReset(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	l := r.remote()
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	r.waitVolume("d1", "failed")
	buf, err := n.Client().Memory().NewBuffer(4096, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		q, err := n.CreatePair(1, 32, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			e := nvme.SQE{Opcode: uint8([]nvme.IOOpcode{nvme.IOWrite, nvme.IORead}[i%2]), NSID: 1}
			buf.Set(&e)
			nvme.RW{SLBA: uint64(i) * 8, NLB: 7}.Put(&e)
			if err := q.Submit(e, func(nvme.CQE) {}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond) // for them to be fetched
		if round == 0 {
			within(t, "the reset", func() error { return errors.Join(n.Disable(), n.Enable(32)) })
		}
	}
	if err := n.Client().Close(); err != nil {
		t.Error(err)
	}
	within(t, "the end of the guest", func() error {
		for r.wptPort("vm1").State != api.PortWaiting {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	r.stopSoc()
}
