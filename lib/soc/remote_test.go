// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/units"
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

// isState waits until volume d1 is in a state.
func (r *rig) isState(want string) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil)
		if v.State == want {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("volume d1 is %s (%s), want %s", v.State, v.Error, want)
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
	r.isState("failed")
	r.stopSoc()
	r.startSoc()
	r.isState("failed")
	r.listen(l.URL)
	r.isState("ready")
	load.end()
}

// TestRemoteGrows: the namespace of a remote volume grows, under verified I/O of
// a guest and while it is away: the guest is told, and reaches what came. A
// restart knows the new size while the remote is away.
func TestRemoteGrows(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	l := r.remote()
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	load := newLoad(t, n, 2)
	grow := func(size uint64) {
		t.Helper()
		call[api.Volume](r, r.client(), "PUT", "/v1/volumes/m", api.VolumeResize{Size: units.Size(size)})
	}
	write := func(size uint64) {
		t.Helper()
		q, err := n.CreatePair(9, 16, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Write(1, size/512-1, bytes.Repeat([]byte{7}, 512), 512); err != nil {
			t.Errorf("writing the last block of %d: %v", size, err)
		}
		if err := n.DeletePair(q); err != nil {
			t.Fatal(err)
		}
	}
	told := attributeEvents(t, n)
	grow(96 * mib)
	told()
	isNamespace(t, n, 96*mib, 512)
	r.isVolume(96*mib, 512)
	write(96 * mib)

	told = attributeEvents(t, n)
	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	r.isState("failed")
	grow(128 * mib)
	l = r.listen(l.URL)
	told()
	r.isState("ready")
	isNamespace(t, n, 128*mib, 512)
	r.isVolume(128*mib, 512)
	write(128 * mib)
	load.end()

	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	r.isState("failed")
	r.stopSoc()
	r.startSoc()
	if v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil); v.Size != 128*mib {
		t.Errorf("after a restart without the remote the volume has %d bytes", v.Size)
	}
}

// line is a connection to a listener that can go silent.
type line struct {
	net.Listener
	silent atomic.Bool
}

// newLine makes one to where.
func newLine(t *testing.T, where string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &line{Listener: l}
	over, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pass := func(to, from net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if x.silent.Load() {
				<-over.Done()
				return
			}
			if _, werr := to.Write(b[:n]); err != nil || werr != nil {
				to.Close()
				return
			}
		}
	}
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", where)
			if err != nil {
				near.Close()
				continue
			}
			context.AfterFunc(over, func() { near.Close(); far.Close() })
			wg.Go(func() { pass(near, far) })
			wg.Go(func() { pass(far, near) })
		}
	})
	t.Cleanup(func() { l.Close(); stop(); wg.Wait() })
	return x
}

// TestRemoteSilent: while a remote says nothing and I/O is in flight, the runtime
// stops and starts, the machine goes, and all is taken apart; nothing waits for
// the remote.
func TestRemoteSilent(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("m", "mem", "size", "64M")
	s := call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s", AllowAny: true})
	call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s/namespaces", api.NamespaceSpec{Volume: "m"})
	addr, err := fabrics.ParseAddress(r.listen("tcp://127.0.0.1:0").URL)
	if err != nil {
		t.Fatal(err)
	}
	x := newLine(t, addr.HostPort())
	r.volume("d1", "remote", "addr", fmt.Sprintf("tcp://%s/%s", x.Addr(), s.NQN), "keep-alive", "500ms", "reconnect-delay", "20ms", "ctrl-loss-timeout", "off")
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	q, err := n.CreatePair(1, 32, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Write(1, 0, make([]byte, 4096), 512); err != nil {
		t.Fatal(err)
	}
	x.silent.Store(true)
	for i := range uint64(4) {
		e := nvme.SQE{Opcode: uint8(nvme.IORead) - uint8(i%2), NSID: 1, PRP1: 1 << 20}
		nvme.RW{SLBA: 8 * i, NLB: 7}.Put(&e)
		if err := q.Submit(e, func(nvme.CQE) {}); err != nil {
			t.Fatal(err)
		}
	}
	r.isState("failed")
	within(t, "the runtime to stop and start", func() error {
		r.stopSoc()
		r.startSoc()
		return nil
	})
	r.isState("failed")
	within(t, "the machine to go", n.Client().Close)
	r.eventually("the port can be removed", func() bool {
		return r.paths.Wpt().Delete(t.Context(), "/v1/ports/vm1", nil, nil) == nil
	})
	r.eventually("the subsystem can be deleted", func() bool {
		return r.client().Delete(t.Context(), "/v1/subsystems/vm1", nil, nil) == nil
	})
	within(t, "the volume to be deleted", func() error { return r.client().Delete(t.Context(), "/v1/volumes/d1", nil, nil) })
	within(t, "the runtime to stop", func() error { r.stopSoc(); return nil })
	r.startSoc()
}
