// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestPollers spreads the queues of a drive over several pollers: resets,
// restarts, deletes, and namespaces that come and go under load.
func TestPollers(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	for _, tt := range []struct {
		pollers         int
		kind, doorbells string
	}{
		{2, "mem", api.DoorbellsTrap}, {2, "file", "shadow"}, {3, "file", api.DoorbellsTrap},
		{3, "file", api.DoorbellsMap}, {3, "mem", "shadow"},
	} {
		t.Run(fmt.Sprintf("%d/%s/%s", tt.pollers, tt.kind, tt.doorbells), func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, tt.pollers)
			r.volume("d1", tt.kind, "size", "64M")
			r.volume("d2", "mem", "size", "1M")
			n := r.drive("vm1", tt.doorbells, small, "d1")
			load := newLoad(t, n, 4)
			used := make(map[string]bool)
			for _, q := range call[api.List[api.QueuePair]](r, r.client(), "GET", "/v1/ports/vm1/queues", nil) {
				used[q.Poller] = true
				if q.Shadow != (tt.doorbells == "shadow" && q.QID != 0) {
					t.Errorf("queue %d: shadow doorbells %t", q.QID, q.Shadow)
				}
			}
			if len(used) != tt.pollers {
				t.Errorf("queues on %d of %d pollers", len(used), tt.pollers)
			}
			load.Go(func() { churnQueues(t, n, load.stop) })
			for range rounds {
				call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/vm1/namespaces", api.NamespaceSpec{Volume: "d2"})
				time.Sleep(5 * time.Millisecond)
				call[api.None](r, r.client(), "DELETE", "/v1/subsystems/vm1/namespaces/2", nil)
				r.stopSoc()
				r.startSoc()
			}
			load.end()
			for round := range rounds {
				if err := n.Enable(8 + round); err != nil {
					t.Fatal(err)
				}
				if tt.doorbells == "shadow" {
					if err := n.EnableShadowDoorbells(); err != nil {
						t.Fatal(err)
					}
				}
				interrupted(t, n, round)
			}
		})
	}
}

// interrupted disables the controller with commands in flight on queues of
// several pollers.
func interrupted(t *testing.T, n *vfiousertest.NVMe, round int) {
	t.Helper()
	buf, err := n.Client().Memory().NewBuffer(64<<10, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	for id := range 4 {
		sq := queue(t, n, 1+id)
		for i := range 20 {
			e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, CID: uint16(i % 3)}
			nvme.RW{SLBA: uint64(id*1000 + i), NLB: 127}.Put(&e)
			buf.Set(&e)
			sq.Push(&e)
		}
		if err := sq.Ring(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Duration(round*100) * time.Microsecond)
	if err := n.Disable(); err != nil {
		t.Fatal(err)
	}
}

// TestNamespaceUnderLoad removes the namespace that is being used and adds
// another in its place, again and again: commands succeed or say that it is not
// there, and none is lost.
func TestNamespaceUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 3)
	r.volume("d1", "file", "size", "64M")
	r.volume("d2", "file", "size", "8M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	load := newLoad(t, n, 2)
	pairs := make([]*vfiousertest.Pair, 3)
	for i := range pairs {
		var err error
		if pairs[i], err = n.CreatePair(uint16(5+i), 16, 1+i); err != nil {
			t.Fatal(err)
		}
	}
	for i, q := range pairs {
		load.Go(func() {
			data, got := pattern(8192, uint64(i)), make([]byte, 8192)
			for {
				select {
				case <-load.stop:
					return
				default:
				}
				e := nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 2}
				if st := statusOf(q.Do(e)); st != nvme.StatusSuccess && !gone(st) {
					t.Errorf("flush: %v", st)
					return
				}
				if q.Write(2, uint64(i)*16, data, 512) != nil || q.Read(2, uint64(i)*16, got, 512) != nil {
					continue
				}
				if !bytes.Equal(got, data) {
					t.Error("read back is not what was written")
					return
				}
			}
		})
	}
	for range 10 {
		call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/vm1/namespaces", api.NamespaceSpec{Volume: "d2", NSID: 2})
		time.Sleep(5 * time.Millisecond)
		call[api.None](r, r.client(), "DELETE", "/v1/subsystems/vm1/namespaces/2", nil)
	}
	call[api.None](r, r.client(), "DELETE", "/v1/volumes/d2", nil) // it is free
	load.end()
}

// gone reports whether a status says that there is no such namespace.
func gone(st nvme.Status) bool {
	switch st.Code() {
	case nvme.StatusInvalidNamespaceOrFormat, nvme.StatusInvalidField, nvme.StatusNamespaceNotReady:
		return true
	}
	return false
}

// TestShared: two machines use a subsystem whose namespaces are shared, over
// restarts.
func TestShared(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "file", "size", "64M")
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s", Volumes: []string{"d1"}, Shared: true})
	var drives []*vfiousertest.NVMe
	var pairs []*vfiousertest.Pair
	for _, name := range []string{"vm1", "vm2"} {
		n := r.bound(name, "s")
		if err := n.Enable(16); err != nil {
			t.Fatal(err)
		}
		q, err := n.CreatePair(1, 16, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		drives, pairs = append(drives, n), append(pairs, q)
	}
	for round := range 5 {
		for i := range pairs {
			data, got := pattern(4096, uint64(round*2+i)), make([]byte, 4096)
			if err := pairs[i].Write(1, 8, data, 512); err != nil {
				t.Fatal(err)
			}
			if err := pairs[1-i].Read(1, 8, got, 512); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("the other machine reads: %v, equal %t", err, bytes.Equal(got, data))
			}
		}
		r.stopSoc()
		r.startSoc()
	}
	if err := drives[0].Disable(); err != nil {
		t.Fatal(err)
	}
	if err := pairs[1].Flush(1); err != nil {
		t.Error(err)
	}
}

// bound makes a port that shows a subsystem, and a machine at it.
func (r *rig) bound(port, subsystem string) *vfiousertest.NVMe {
	r.t.Helper()
	call[api.Port](r, r.paths.Wpt(), "POST", "/v1/ports", api.PortSpec{Name: port})
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/"+port, api.PortBinding{Subsystem: subsystem})
	return r.guest(port, small)
}

// TestUnsharedFirstCome: of two ports of a subsystem that is not shared the one
// that came first has it, whichever was made first; the other gets it when that
// has gone.
func TestUnsharedFirstCome(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "mem", "size", "32M")
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s", Volumes: []string{"d1"}})
	call[api.Port](r, r.paths.Wpt(), "POST", "/v1/ports", api.PortSpec{Name: "vm1"})
	second := r.bound("vm2", "s")
	if err := second.Enable(16); err != nil {
		t.Fatal(err)
	}
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/vm1", api.PortBinding{Subsystem: "s"})
	first := r.guest("vm1", small)
	enabled := make(chan error, 1)
	go func() { enabled <- first.Enable(16) }()
	select {
	case err := <-enabled:
		t.Fatalf("two machines have the drive: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	second.Client().Close()
	r.waitState("vm2", api.PortWaiting)
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/vm2", api.PortBinding{})
	within(t, "the other machine", func() error { return <-enabled })
	exercise(t, first, vfiousertest.Polled)
}
