// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/mem"
	"github.com/leapio/leapio/lib/volume/null"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

const (
	testNQN      = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef"
	hostNQN      = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
	otherNQN     = "nqn.2014-08.org.nvmexpress:uuid:66666666-2222-3333-4444-555555555555"
	discoveryNQN = "nqn.2014-08.org.nvmexpress:uuid:dddddddd-2222-3333-4444-555555555555"
	busyNQN      = "nqn.2020-01.com.example:busy"
	memSize      = 64 << 20
	patience     = 20 * time.Second // of tests; nothing is measured by it
)

// fixture is a target with one listener and a subsystem: namespace 1 is memory, 2 is null, 3 holds on to its requests.
type fixture struct {
	target   *Target
	listener *Listener
	addr     netip.AddrPort
	sub      *controller.Subsystem
	holder   *holder
	log      lines
	changes  atomic.Uint64 // of the discovery log, for whomever
	more     atomic.Bool   // the log has one entry more
}

// lines counts lines of a log.
type lines struct{ n atomic.Int64 }

func (l *lines) Write(p []byte) (int, error) {
	l.n.Add(int64(bytes.Count(p, []byte{'\n'})))
	return len(p), nil
}

func start(t testing.TB, limits Limits) *fixture {
	t.Helper()
	f := &fixture{sub: controller.NewSubsystem(testNQN, "0123456789abcdef0123"), holder: new(holder)}
	before := fabricstest.Descriptors(t)
	goroutines := runtime.NumGoroutine()
	var pollers []*poller.Poller
	for _, name := range []string{"0", "1"} {
		p, err := poller.Start(poller.Config{Name: name, CPU: -1, Fence: -1})
		if err != nil {
			t.Fatal(err)
		}
		pollers = append(pollers, p)
	}
	env := volumetest.NewEnv(t, t.TempDir())
	var volumes []volume.Volume
	for i, kind := range []volume.Kind{mem.Kind, null.Kind} {
		spec := &volume.Spec{Name: kind.Name, Options: map[string]string{"size": "64M"}}
		v, err := kind.Make(t.Context(), env, spec)
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, v)
		if err := f.sub.Add(&controller.Namespace{NSID: uint32(i + 1), Volume: v, Name: kind.Name, UUID: nvme.NewUUID()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.sub.Add(&controller.Namespace{NSID: 3, Volume: f.holder, Name: "holder", UUID: nvme.NewUUID()}); err != nil {
		t.Fatal(err)
	}
	f.target = New(Config{
		Pollers: pollers, Limits: limits, Log: slog.New(slog.NewTextHandler(&f.log, nil)),
		Subsystem: func(_ int, subNQN, host string) (*controller.Subsystem, error) {
			switch {
			case subNQN == busyNQN:
				return nil, context.DeadlineExceeded
			case subNQN != testNQN:
				return nil, ErrNoSubsystem
			case host != hostNQN:
				return nil, ErrHostNotAllowed
			}
			return f.sub, nil
		},
		DiscoveryNQN: discoveryNQN,
		Discovery: func(id int, host string, at netip.AddrPort) ([]fabrics.DiscoveryEntry, uint64) {
			e := fabrics.DiscoveryEntry{TRTYPE: fabrics.TransportTCP, ADRFAM: fabrics.FamilyIPv4, SUBTYPE: fabrics.SubsystemNVM, CNTLID: fabrics.CNTLIDDynamic, PORTID: uint16(id)}
			e.Set(testNQN, at.Addr().String(), strconv.Itoa(int(at.Port())))
			entries := []fabrics.DiscoveryEntry{e, e}
			if f.more.Load() {
				entries = append(entries, e)
			}
			return entries, 7 + f.changes.Load()
		},
	})
	var err error
	if f.listener, err = f.target.Listen(5, netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	f.addr = f.listener.Addr()
	t.Cleanup(func() {
		f.target.Close()
		for _, p := range pollers {
			p.Stop()
		}
		for _, v := range volumes {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, fuzzing := t.(*testing.F); fuzzing {
			return // which has goroutines and descriptors of its own
		}
		fabricstest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		// The environment of the volumes keeps two for mem.
		fabricstest.WaitFor(t, "descriptors to be closed", func() bool { return fabricstest.Descriptors(t) <= before+2 })
	})
	return f
}

// holder is a volume whose reads and writes do not end before they are cancelled or released.
type holder struct {
	count    atomic.Int32
	stubborn atomic.Bool // requests end only some time after Cancel
	stuck    atomic.Bool // requests do not end by Cancel

	mu     sync.Mutex
	queues map[*holderQueue]bool
	landed []uint64 // offsets of the writes that have taken effect, in their order
}

func (h *holder) Info() *volume.Info {
	return &volume.Info{Size: 1 << 20, Block: 512, WriteGranularity: 512, DiscardGranularity: 512, AtomicUnit: 512}
}

func (h *holder) Open(p *poller.Poller) (volume.Queue, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := &holderQueue{h: h, p: p}
	if h.queues == nil {
		h.queues = make(map[*holderQueue]bool)
	}
	h.queues[q] = true
	return q, nil
}

func (h *holder) Close() error { return nil }

// release ends all requests with success.
func (h *holder) release(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	queues := slices.Collect(maps.Keys(h.queues))
	h.mu.Unlock()
	for _, q := range queues {
		if err := q.p.Do(func() {
			for len(q.held) > 0 {
				q.end(q.held[0], nvme.StatusSuccess)
			}
		}); err != nil {
			t.Error(err)
		}
	}
}

type holderQueue struct {
	h    *holder
	p    *poller.Poller
	held []*volume.Request
}

func (q *holderQueue) Submit(r *volume.Request) {
	r.Begin(q.p)
	if r.Op == volume.Flush {
		r.Complete(nvme.StatusSuccess)
		return
	}
	q.h.count.Add(1)
	q.held = append(q.held, r)
}

func (q *holderQueue) Cancel(r *volume.Request) {
	switch {
	case q.h.stuck.Load():
	case !q.h.stubborn.Load():
		q.end(r, nvme.StatusAbortRequested)
	default:
		time.AfterFunc(2*abortPatience, func() {
			_ = q.p.Post(func() { q.end(r, nvme.StatusSuccess) })
		})
	}
}

func (q *holderQueue) end(r *volume.Request, st nvme.Status) {
	i := slices.Index(q.held, r)
	if i < 0 {
		return
	}
	q.held = slices.Delete(q.held, i, i+1)
	q.h.count.Add(-1)
	if r.Op == volume.Write && st == nvme.StatusSuccess {
		q.h.mu.Lock()
		q.h.landed = append(q.h.landed, r.Offset)
		q.h.mu.Unlock()
	}
	r.Complete(st)
}

func (q *holderQueue) Close() {
	q.h.mu.Lock()
	defer q.h.mu.Unlock()
	delete(q.h.queues, q)
}

// admin connects an admin queue to the test's subsystem.
func (f *fixture) admin(t testing.TB, o fabricstest.Options, kato uint32) *fabricstest.Queue {
	t.Helper()
	return fabricstest.Join(t, f.addr, o, fabrics.ConnectCommand{SQSIZE: 31, KATO: kato}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
}

// enabled connects an admin queue and enables the controller.
func (f *fixture) enabled(t testing.TB, o fabricstest.Options) *fabricstest.Queue {
	t.Helper()
	q := f.admin(t, o, 0)
	q.Enable()
	return q
}

// io connects I/O queue qid.
func (f *fixture) io(t testing.TB, admin *fabricstest.Queue, o fabricstest.Options, qid uint16, cattr uint8) *fabricstest.Queue {
	t.Helper()
	cmd := fabrics.ConnectCommand{QID: qid, SQSIZE: 127, CATTR: cattr}
	q := fabricstest.Join(t, f.addr, o, cmd, fabricstest.ConnectData(hostNQN, testNQN, admin.CNTLID))
	if q.CNTLID != admin.CNTLID {
		t.Fatalf("queue %d: CNTLID %d, want %d", qid, q.CNTLID, admin.CNTLID)
	}
	return q
}

// rw is a read or write of n bytes at off of namespace nsid.
func rw(op nvme.IOOpcode, nsid uint32, off, n int) nvme.SQE {
	var e nvme.SQE
	e.Opcode, e.NSID = uint8(op), nsid
	e.CDW10, e.CDW12 = uint32(off/512), uint32(n/512-1)
	return e
}

// pattern is n bytes that no other call gives.
func pattern(seed uint64, n int) []byte {
	r, p := rand.New(rand.NewPCG(seed, uint64(n))), make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
