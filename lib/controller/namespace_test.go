// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// settle waits until what was posted has run, on every poller.
func settle(hosts ...*host) {
	for range 3 {
		for _, h := range hosts {
			h.do(func() {})
		}
	}
}

// second makes a worker of the same controller on another poller.
func (h *host) second() *host {
	h.t.Helper()
	o := &host{t: h.t, p: startPoller(h.t, "io"), sub: h.sub, c: h.c}
	o.do(func() {
		var err error
		if o.w, err = h.c.Worker(o.p); err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(func() { o.do(o.w.Close) })
	return o
}

// A removed namespace is drained once, when its last command has ended on
// every poller, and takes no new ones.
func TestRemoveUnderIO(t *testing.T) {
	m := newMemory(1<<20, 512)
	m.hold = true
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	reads := []*hostCommand{
		h.start(false, newCommand(t, h.p, rwSQE(nvme.IORead, 1, nvme.RW{}))),
		h.start(false, newCommand(t, h.p, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 1}))),
	}
	drained := make(chan int, 9)
	if !h.sub.Remove(1, func() {
		// The subsystem can be used from here.
		drained <- len(h.sub.cntlids())
	}) {
		t.Fatal("there was no such namespace")
	}
	if h.sub.Remove(1, func() { t.Error("drained") }) {
		t.Error("it was removed twice")
	}
	settle(h, o)
	if len(drained) != 0 {
		t.Fatal("drained with commands in flight")
	}
	for _, x := range []*host{h, o} {
		if cmd := x.run(false, rwSQE(nvme.IORead, 1, nvme.RW{})); cmd.Status != nvme.StatusInvalidField|nvme.StatusDNR {
			t.Errorf("read of a removed namespace: %v", cmd.Status)
		}
	}
	// Another volume may take its place meanwhile.
	next := newMemory(1<<20, 512)
	if err := h.sub.Add(testNamespace(1, next)); err != nil {
		t.Fatal(err)
	}
	settle(h, o)
	if cmd := h.run(false, rwSQE(nvme.IORead, 1, nvme.RW{})); cmd.Status != 0 || len(next.log) != 1 {
		t.Errorf("read of the new namespace: %v, %d requests", cmd.Status, len(next.log))
	}
	if len(drained) != 0 {
		t.Fatal("drained with commands in flight")
	}
	h.do(m.release)
	for _, r := range reads {
		if r.wait(); r.Status != 0 {
			t.Errorf("read in flight: %v", r.Status)
		}
	}
	settle(h, o)
	if len(drained) != 1 || <-drained != 1 {
		t.Errorf("drained %d times, want once", len(drained))
	}
	if m.open != 0 || next.open != 2 {
		t.Errorf("%d queues of the old volume, %d of the new are open; want 0 and 2", m.open, next.open)
	}
}

// Volumes come and go under I/O on two pollers; each is closed once, when
// nobody uses it any more.
func TestNamespaceChurn(t *testing.T) {
	const rounds = 100
	h := connect(t, newSubsystem(t), nil)
	o := h.second()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for _, x := range []*host{h, o} {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				cmd := newCommand(t, x.p, rwSQE(nvme.IORead, 1, nvme.RW{}))
				cmd.late = true
				if err := x.p.Do(func() { x.w.Execute(&cmd.Command) }); err != nil {
					t.Error(err)
				}
				<-cmd.done
				switch cmd.Status.Code() {
				case nvme.StatusSuccess, nvme.StatusInvalidField, nvme.StatusNamespaceNotReady:
				default:
					t.Errorf("read: %v", cmd.Status)
				}
			}
		})
	}
	reads := 0
	for range rounds {
		m := newMemory(4096, 512)
		if err := h.sub.Add(testNamespace(1, m)); err != nil {
			t.Fatal(err)
		}
		settle(h, o)
		drained := make(chan error, 2)
		h.sub.Remove(1, func() { drained <- m.Close() })
		<-drained
		settle(h, o)
		m.mu.Lock()
		if m.misuse != 0 || len(drained) != 0 {
			t.Errorf("misused %d times, drained %d times more", m.misuse, len(drained))
		}
		reads += len(m.log)
		m.mu.Unlock()
	}
	close(stop)
	readers.Wait()
	if reads == 0 {
		t.Error("no volume was ever read")
	}
}

func TestRemoveIdle(t *testing.T) {
	sub := newSubsystem(t, newMemory(4096, 512), newMemory(4096, 512))
	n := 0
	sub.Remove(1, func() { n += 1 + len(sub.cntlids()) }) // which takes the subsystem's lock
	if n != 1 {
		t.Errorf("without controllers: drained %d times", n)
	}
	h := connect(t, sub, nil)
	drained := make(chan bool, 2)
	sub.Remove(2, func() { drained <- true })
	settle(h)
	if len(drained) != 1 {
		t.Errorf("idle: drained %d times", len(drained))
	}
}

// A volume may be closed only when the last worker has let go, in whatever
// order a transport ends controller and workers.
func TestRemoveWhileClosing(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	m.hold = true
	read := o.start(false, newCommand(t, o.p, rwSQE(nvme.IORead, 1, nvme.RW{})))
	h.do(func() { h.c.Close(); h.w.Close() })
	drained := make(chan bool, 2)
	h.sub.Remove(1, func() { drained <- true })
	settle(h, o)
	if len(drained) != 0 {
		t.Fatal("drained with a command in flight")
	}
	o.do(m.release)
	read.wait()
	settle(o)
	if len(drained) != 1 || read.Status != 0 {
		t.Errorf("drained %d times, read %v", len(drained), read.Status)
	}
	o.do(o.w.Close)
	if ids := h.sub.cntlids(); len(ids) != 0 {
		t.Errorf("controllers %v are left", ids)
	}
}

// A worker that ends with a flush of the controller's own in flight waits for
// it with its volume, not with its transport.
func TestCloseUnderFlush(t *testing.T) {
	a, b := newMemory(4096, 512), newMemory(4096, 512)
	h := connect(t, newSubsystem(t, a, b), nil)
	a.hold = true
	done, drained := make(chan bool, 1), make(chan bool, 2)
	h.do(func() {
		h.c.Shutdown(h.w, func() { done <- true })
		h.w.Close()
	})
	if a.open != 1 || b.open != 0 {
		t.Errorf("%d and %d queues are open, want 1 and 0", a.open, b.open)
	}
	// Nothing new reaches a volume that is about to be let go.
	h.do(func() { h.c.Shutdown(h.w, func() { done <- true }) })
	if len(done) != 1 || len(a.log) != 1 {
		t.Errorf("a second shutdown: done %d times, %d flushes", len(done), len(a.log))
	} else {
		<-done
	}
	h.sub.Remove(1, func() { drained <- true })
	settle(h)
	if len(drained)+len(done) != 0 {
		t.Error("drained, or done, with a flush in flight")
	}
	// Nothing is opened by a worker that has ended.
	late := newMemory(4096, 512)
	if err := h.sub.Add(testNamespace(7, late)); err != nil {
		t.Fatal(err)
	}
	h.do(a.release)
	settle(h)
	if len(drained) != 1 || len(done) != 1 || a.open+b.open+late.open != 0 {
		t.Errorf("drained %d, done %d, open %d, %d, %d", len(drained), len(done), a.open, b.open, late.open)
	}
}

func TestVolumeCannotOpen(t *testing.T) {
	m := newMemory(4096, 512)
	sub := newSubsystem(t, m)
	h := connect(t, sub, nil)
	broken := newMemory(4096, 512)
	broken.noOpen = errors.New("no such thing")
	if err := sub.Add(testNamespace(2, broken)); err != nil {
		t.Fatal(err)
	}
	if cmd := h.run(false, rwSQE(nvme.IORead, 2, nvme.RW{})); cmd.Status != nvme.StatusNamespaceNotReady {
		t.Errorf("read: %v, want %v", cmd.Status, nvme.StatusNamespaceNotReady)
	}
	h.do(func() {
		open := m.open
		if w, err := h.c.Worker(h.p); err == nil || w != nil || m.open != open {
			t.Errorf("a worker without a namespace: %v, %d queues open, want %d", err, m.open, open)
		}
	})
}

func TestSubsystemErrors(t *testing.T) {
	sub := newSubsystem(t, newMemory(4096, 512))
	for nsid, want := range map[uint32]string{
		0: "namespace 0: not between 1 and 1024", 1025: "namespace 1025: not between 1 and 1024", 1: "namespace 1: in use by volume v",
	} {
		if err := sub.Add(testNamespace(nsid, newMemory(4096, 512))); err == nil || err.Error() != want {
			t.Errorf("Add of %d: %v, want %s", nsid, err, want)
		}
	}
	if sub.Remove(2, func() { t.Error("drained") }) {
		t.Error("a namespace that is not there was removed")
	}
	if len(sub.Namespaces()) != 1 || sub.Namespace(1) == nil || sub.Namespace(2) != nil {
		t.Errorf("namespaces %v", sub.Namespaces())
	}
}

// guestMemory is memory that a client may take away.
type guestMemory struct {
	fd     int
	data   []byte
	faults int
}

func (*guestMemory) Poll() int        { return 0 }
func (*guestMemory) Arm() poller.Wake { return poller.WakeEvent }
func (g *guestMemory) Fault()         { g.faults++ }
func (g *guestMemory) Holds(addr uintptr) bool {
	base := uintptr(dma.SegmentOf(g.data).Base)
	return addr >= base && addr-base < uintptr(len(g.data))
}

// guestCommand has its data in such memory.
type guestCommand struct {
	Command
	g    *guestMemory
	done chan struct{}
}

func (c *guestCommand) Data(n uint32, _ Direction) (bool, nvme.Status) {
	c.Segments = append(c.Segments[:0], dma.SegmentOf(c.g.data[:n]))
	return true, nvme.StatusSuccess
}

func (c *guestCommand) Complete() { close(c.done) }

// guestPages returns pages of guest memory that poller h.p serves, and a
// function that takes all but the first keep bytes away.
func (h *host) guestPages(size int) (*guestMemory, func(keep int64)) {
	t := h.t
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	g := &guestMemory{fd: fd, data: data}
	h.do(func() { h.p.Add(g) })
	t.Cleanup(func() {
		h.do(func() { h.p.Remove(g) })
		_ = unix.Munmap(data)
		_ = unix.Close(fd)
	})
	return g, func(keep int64) {
		if err := unix.Ftruncate(fd, keep); err != nil {
			t.Fatal(err)
		}
	}
}

// Memory taken away under a command costs that command, once.
func TestDataTruncated(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4<<20, 512)), nil)
	g, truncate := h.guestPages(1 << 20)
	truncate(0)
	dsm, cp := nvme.SQE{NSID: 1}, nvme.SQE{NSID: 1}
	nvme.DatasetManagement{AD: true}.Put(&dsm)
	nvme.Copy{}.Put(&cp)
	for i, tt := range []struct {
		admin bool
		sqe   nvme.SQE
	}{
		{true, sqe(nvme.Identify{CNS: nvme.CNSController}, 0)},
		{true, sqe(nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, 0)},
		{true, sqe(nvme.SetFeatures{FID: nvme.FeatTimestamp}, 0)},
		{false, dsm},
		{false, cp},
		{false, rwSQE(nvme.IOCompare, 1, nvme.RW{})},
		{false, rwSQE(nvme.IOCompare, 1, nvme.RW{NLB: 2047})},
	} {
		c := newGuestCommand(g, tt.sqe)
		h.do(func() {
			if tt.admin {
				h.c.Admin(&c.Command)
			} else {
				h.w.Execute(&c.Command)
			}
		})
		<-c.done
		h.do(func() {
			if c.Status != nvme.StatusDataTransferError || g.faults != i+1 {
				t.Errorf("%s: %v, %d faults, want %d", nvme.FormatSQE(tt.admin, &tt.sqe), c.Status, g.faults, i+1)
			}
		})
		h.idle()
	}
	h.admin(nvme.Identify{CNS: nvme.CNSController}, 0) // others go on
	if st := h.run(false, rwSQE(nvme.IOVerify, 1, nvme.RW{})).Status; st != 0 {
		t.Errorf("verify: %v", st)
	}
}

func newGuestCommand(g *guestMemory, e nvme.SQE) *guestCommand {
	c := &guestCommand{g: g, done: make(chan struct{})}
	c.Init(c)
	c.SQE = e
	return c
}

// idle checks that no command of namespace 1 has left anything behind.
func (h *host) idle() {
	h.t.Helper()
	h.do(func() {
		n := h.w.ns[1]
		if h.w.scratch.user != nil || len(h.w.scratch.waiting) != 0 || len(h.w.scratch.ranges) != 0 || n.inflight != 0 ||
			n.ns.fence.raised.Load() || n.writes.first != nil || len(n.writes.held) != 0 || len(h.w.pairs.first) != 0 {
			h.t.Errorf("something is still held: %+v, %+v", h.w.scratch.user, n)
		}
	})
}

// Memory taken away in the middle of a Compare or a fused pair ends it, gives
// back what it held, and writes nothing.
func TestDataTruncatedMidway(t *testing.T) {
	m := newMemory(4<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	g, truncate := h.guestPages(1 << 20)
	truncate(scratchSize) // the first piece is there
	whole := rwSQE(nvme.IOCompare, 1, nvme.RW{NLB: 2047})
	c := newGuestCommand(g, whole)
	h.do(func() { h.w.Execute(&c.Command) })
	<-c.done
	if c.Status != nvme.StatusDataTransferError || len(m.log) != 2 {
		t.Errorf("compare: %v after %d reads", c.Status, len(m.log))
	}
	h.idle()
	m.log = nil
	first, second := newGuestCommand(g, whole), newGuestCommand(g, rwSQE(nvme.IOWrite, 1, nvme.RW{NLB: 2047}))
	first.SQE.SetFuse(nvme.FuseFirst)
	second.SQE.SetFuse(nvme.FuseSecond)
	h.do(func() { h.w.Execute(&first.Command); h.w.Execute(&second.Command) })
	<-first.done
	<-second.done
	if first.Status != nvme.StatusDataTransferError || second.Status != nvme.StatusAbortedFailedFused || len(m.log) != 2 {
		t.Errorf("pair: %v, %v after %d requests", first.Status, second.Status, len(m.log))
	}
	h.idle()
}

var _ volume.Queue = (*bareQueue)(nil)
