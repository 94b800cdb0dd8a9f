// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"sync"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// follow has the subsystem follow a change of namespace 1's volume; what it
// returns receives once when the commands of before have ended.
func (h *host) follow() chan bool {
	h.t.Helper()
	drained := make(chan bool, 9)
	if !h.sub.Follow(1, func() { drained <- true }) {
		h.t.Fatal("there is no such namespace")
	}
	return drained
}

// last begins a read of block n of namespace 1.
func (h *host) last(n uint64) *hostCommand {
	h.t.Helper()
	return h.start(false, newCommand(h.t, h.p, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: n})))
}

const outOfRange = nvme.StatusLBAOutOfRange | nvme.StatusDNR

// Every controller that shows a volume that has grown says so, in Identify and
// by an event, and takes commands for what came: also before its workers have
// heard of it.
func TestGrow(t *testing.T) {
	m := newMemory(1<<20, 512)
	sub := newSubsystem(t, m, newMemory(1<<20, 512))
	h := connect(t, sub, nil)
	o := h.second()
	other := connect(t, sub, nil)
	h.admin(enableNotices, 0)
	other.admin(enableNotices, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatErrorRecovery, Value: 5}, 1)
	if !h.sub.Follow(2, func() {}) || h.sub.Follow(3, func() { t.Error("drained") }) {
		t.Error("namespaces 2 and 3: the one is there, the other is not")
	}
	parked := h.park()
	settle(h, o, other)
	if !parked.running() {
		t.Fatal("an event for nothing")
	}

	ended(t, "read beyond the end", outOfRange, h.last(4095))
	m.reshape(2<<20, 512)
	ended(t, "read of what came, early", 0, h.last(4095))
	ended(t, "read beyond that", outOfRange, h.last(4096))
	if n := len(h.follow()); n > 1 {
		t.Errorf("drained %d times", n)
	}
	settle(h, o, other)
	for _, x := range []*host{h, o, other} {
		ended(t, "read of what came", 0, x.last(4095))
		ended(t, "read beyond that", outOfRange, x.last(4096))
	}
	told(t, parked, nvme.EventNamespaceAttribute)
	told(t, other.park(), nvme.EventNamespaceAttribute)
	for _, x := range []*host{h, other} {
		if got := x.changed(false); len(got) != 1 || got[0] != 1 {
			t.Errorf("changed namespaces %v, want 1", got)
		}
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), x.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
		if id.NSZE != 4096 || id.NCAP != 4096 || id.NUSE != 4096 || id.NVMCAP.Lo != 2<<20 {
			t.Errorf("%d, %d, %d blocks, %d bytes", id.NSZE, id.NCAP, id.NUSE, id.NVMCAP.Lo)
		}
		var c nvme.IdentifyController
		copy(nvme.Bytes(&c), x.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
		if c.TNVMCAP.Lo != 3<<20 {
			t.Errorf("TNVMCAP %d", c.TNVMCAP.Lo)
		}
	}
	if got := h.admin(nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, 1).DW0; got != 5 {
		t.Errorf("a feature of the namespace is %d, want 5 still", got)
	}
	// Nothing has changed since.
	parked = h.park()
	h.follow()
	settle(h, o, other)
	if !parked.running() {
		t.Error("an event for nothing")
	}
	if m.open != 3 {
		t.Errorf("%d queues are open, want 3", m.open)
	}
}

// What a volume gives up is used no more once every worker has ended the
// commands that were in flight there, of whichever change.
func TestShrink(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	m.hold = true
	reads := []*hostCommand{h.last(2047), o.last(2047)}
	m.reshape(512<<10, 512)
	first := h.follow()
	settle(h, o)
	for _, x := range []*host{h, o} {
		ended(t, "read of what went", outOfRange, x.last(1024))
	}
	// Back, and away again: what was in flight the first time still counts.
	m.reshape(1<<20, 512)
	back := h.follow()
	settle(h, o)
	m.reshape(256<<10, 512)
	second := h.follow()
	settle(h, o)
	if len(first)+len(back)+len(second) != 0 {
		t.Fatal("drained with commands in flight")
	}
	held := m.held
	h.do(func() { m.held = held[1:]; m.execute(held[0]) })
	ended(t, "read in flight", 0, reads[0])
	settle(h, o)
	if len(first)+len(back)+len(second) != 0 {
		t.Fatal("drained with a command in flight on the other worker")
	}
	o.do(m.release)
	ended(t, "read in flight", 0, reads[1])
	settle(h, o)
	if len(first) != 1 || len(back) != 1 || len(second) != 1 {
		t.Errorf("drained %d, %d, %d times, want once each", len(first), len(back), len(second))
	}
	ended(t, "read of what is left", 0, o.last(511))
	h.idle()
}

// A namespace that is removed after a change waits for what began before it,
// and its queue is closed once.
func TestRemoveAfterChange(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	m.hold = true
	before := h.last(2047)
	m.reshape(512<<10, 512)
	followed := h.follow()
	settle(h)
	after := h.last(0)
	drained := make(chan bool, 9)
	h.sub.Remove(1, func() { drained <- true })
	settle(h)
	held := m.held
	h.do(func() { m.held = held[:1]; m.execute(held[1]) })
	ended(t, "read begun after the change", 0, after)
	settle(h)
	if len(drained)+len(followed) != 0 || m.open != 1 {
		t.Fatalf("drained %d, followed %d, %d queues open; a command is in flight", len(drained), len(followed), m.open)
	}
	h.do(m.release)
	ended(t, "read begun before the change", 0, before)
	settle(h)
	if len(drained) != 1 || len(followed) != 1 || m.open != 0 {
		t.Errorf("drained %d, followed %d times, %d queues open; want 1, 1, 0", len(drained), len(followed), m.open)
	}
}

// The fence of a fused pair holds for writes on both sides of a change.
func TestFenceOverChange(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	m.hold = true
	write := o.start(false, newCommand(t, o.p, rwSQE(nvme.IOWrite, 1, nvme.RW{})))
	m.reshape(2<<20, 512)
	drained := h.follow()
	settle(h, o)
	a, b := h.pair(nvme.RW{}, make([]byte, 512), pattern(512, 7))
	h.together(a, b)
	settle(h, o)
	if m.mu.Lock(); len(m.held) != 1 || len(drained) != 0 {
		t.Errorf("%d requests in flight, want the write of before alone; drained %d times", len(m.held), len(drained))
	}
	m.mu.Unlock()
	o.do(m.release)
	ended(t, "write of before", 0, write)
	ended(t, "compare", 0, a)
	ended(t, "write", 0, b)
	settle(h, o)
	if len(drained) != 1 {
		t.Errorf("drained %d times", len(drained))
	}
	h.idle()
}

// Sizes change under I/O on two pollers: commands end with success or as out of
// range, and none reaches what has been given up.
func TestReshapeChurn(t *testing.T) {
	const most, least = 1 << 20, 512 << 10
	m := newMemory(most, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for _, x := range []*host{h, o} {
		readers.Go(func() {
			for n := uint64(0); ; n = (n + 7) % 2048 {
				select {
				case <-stop:
					return
				default:
				}
				cmd := newCommand(t, x.p, rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: n}))
				cmd.late = true
				if err := x.p.Do(func() { x.w.Execute(&cmd.Command) }); err != nil {
					t.Error(err)
				}
				<-cmd.done
				if cmd.Status != 0 && (cmd.Status != outOfRange || n < least/512) {
					t.Errorf("write of block %d: %v", n, cmd.Status)
				}
			}
		})
	}
	beyond := 0
	for range 100 {
		m.reshape(least, 512)
		<-h.follow()
		m.mu.Lock()
		m.log = nil
		m.mu.Unlock()
		settle(h, o)
		m.mu.Lock()
		for _, r := range m.log {
			if r.Offset >= least {
				t.Errorf("request at %d after the end of the drain", r.Offset)
			}
		}
		m.log = nil
		m.mu.Unlock()
		m.reshape(most, 512)
		<-h.follow()
		settle(h, o)
		m.mu.Lock()
		for _, r := range m.log {
			if r.Offset >= least {
				beyond++
			}
		}
		m.mu.Unlock()
	}
	close(stop)
	readers.Wait()
	if beyond == 0 {
		t.Error("what came and went was never written")
	}
}

// A successor tells the host of a change that happened while there was nobody.
func TestReshapedMeanwhile(t *testing.T) {
	for name, change := range map[string]func(*memory){
		"nothing": func(*memory) {},
		"size":    func(m *memory) { m.reshape(2<<20, 512) },
		"block":   func(m *memory) { m.reshape(1<<20, 4096) },
	} {
		m := newMemory(1<<20, 512)
		h := connect(t, newSubsystem(t, m), nil)
		h.admin(enableNotices, 0)
		payload, _ := h.state()
		change(m)
		next := connect(t, newSubsystem(t, m), nil)
		if err := next.restore(payload); err != nil {
			t.Fatal(err)
		}
		if parked := next.park(); name == "nothing" && !parked.running() {
			t.Error("an event for nothing")
		} else if name != "nothing" {
			told(t, parked, nvme.EventNamespaceAttribute)
			if got := next.changed(false); len(got) != 1 || got[0] != 1 {
				t.Errorf("%s: changed namespaces %v, want 1", name, got)
			}
		}
	}
}
