// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"slices"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// heldWrite has a write at off be held by the volume.
func (f *fixture) heldWrite(t *testing.T, q *fabricstest.Queue, off int) {
	t.Helper()
	before := f.holder.count.Load()
	q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 3, off, 512), To: make([]byte, 512)})
	fabricstest.WaitFor(t, "the write", func() bool { return f.holder.count.Load() == before+1 })
}

// connecting sends Connect of an admin queue, whose answer is yet to come.
func (f *fixture) connecting(t *testing.T, d *fabrics.ConnectData) (*fabricstest.Queue, *fabricstest.Request) {
	t.Helper()
	q := fabricstest.Initialize(t, f.addr, fabricstest.Options{})
	r := &fabricstest.Request{To: fabrics.Bytes(d)}
	fabrics.ConnectCommand{SQSIZE: 31}.Put(&r.SQE)
	q.Start(r)
	return q, r
}

// TestFence: what a host has under way when it goes takes effect before anything that it does when it is back.
func TestFence(t *testing.T) {
	f := start(t, Limits{})
	f.holder.stuck.Store(true)
	admin := f.enabled(t, fabricstest.Options{})
	f.heldWrite(t, f.io(t, admin, fabricstest.Options{}, 1, 0), 512)
	admin.Conn.Close()

	// Another host, of the same name or not, need not wait; nor does who discovers.
	other := fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic)
	other.HOSTID[15]++
	if cqe := fabricstest.Initialize(t, f.addr, fabricstest.Options{}).Connect(fabrics.ConnectCommand{SQSIZE: 31}, other); cqe.StatusField() != 0 {
		t.Errorf("another host: %v", fabrics.StatusText(cqe.StatusField()))
	}
	f.discover(t, 0)

	back, connect := f.connecting(t, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
	answered := make(chan error, 1)
	go func() {
		_, err := back.Next()
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("the host is let in beside its own write: %v, %v", connect.CQE.StatusField(), err)
	case <-time.After(200 * time.Millisecond):
	}
	f.holder.release(t)
	if err := <-answered; err != nil || connect.CQE.StatusField() != 0 {
		t.Fatalf("Connect: %v, %v", connect.CQE.StatusField(), err)
	}
	back.CNTLID = fabrics.ConnectResult(connect.CQE.DW0).CNTLID()
	back.Configure(fabricstest.Enabled)
	f.heldWrite(t, f.io(t, back, fabricstest.Options{}, 1, 0), 1024)
	f.holder.release(t)
	f.holder.mu.Lock()
	defer f.holder.mu.Unlock()
	if want := []uint64{512, 1024}; !slices.Equal(f.holder.landed, want) {
		t.Errorf("writes at %d have taken effect, want %d", f.holder.landed, want)
	}
}

// TestFenceLimit: a host whose write does not end gets Controller Busy after a while, and one that does not wait leaves nothing behind.
func TestFenceLimit(t *testing.T) {
	f := start(t, Limits{Patience: 2 * time.Second})
	f.holder.stuck.Store(true)
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	f.heldWrite(t, q, 512)
	q.Conn.Close()
	admin.Conn.Close()
	d := fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic)
	gone, _ := f.connecting(t, d)
	gone.Conn.Close()
	q, connect := f.connecting(t, d)
	if _, err := q.Next(); err != nil || connect.CQE.StatusField() != fabrics.StatusControllerBusy {
		t.Errorf("%s, %v", fabrics.StatusText(connect.CQE.StatusField()), err)
	}
	f.holder.release(t)
	if cqe := q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, d); cqe.StatusField() != 0 {
		t.Errorf("then: %s", fabrics.StatusText(cqe.StatusField()))
	}
}

// TestFenceAlive: a host may have several associations.
func TestFenceAlive(t *testing.T) {
	f := start(t, Limits{})
	a := f.enabled(t, fabricstest.Options{})
	f.heldWrite(t, f.io(t, a, fabricstest.Options{}, 1, 0), 512)
	f.identify(t, f.enabled(t, fabricstest.Options{}))
	f.identify(t, a)
}
