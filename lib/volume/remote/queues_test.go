// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"bytes"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// connections returns how many connections the lane of each client has.
func connections(r *remote, clients []*volumetest.Client) (n []int) {
	for _, c := range clients {
		r.mu.Lock()
		l := r.lanes[c.Poller]
		r.mu.Unlock()
		c.On(func() { n = append(n, len(l.wires)) })
	}
	return n
}

// TestQueues: requests are spread over the connections of a lane, so that each
// has as many as the others.
func TestQueues(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, patientSpec(s.addr, "queues", "4"))
	c := volumetest.Connect(t, r, cfg)
	clients := []*volumetest.Client{c}
	fabricstest.WaitFor(t, "all connections", func() bool { return connections(r, clients)[0] == 4 })
	mem := volumetest.NewMemory(t, 64<<10)
	reqs := make([]volume.Request, 12)
	o := &counter{done: make(chan struct{}), left: len(reqs)}
	c.On(func() {
		for i := range reqs {
			reqs[i] = volume.Request{Op: volume.Read, Length: 4096, Segments: mem.Segments(uint64(i)*4096, 4096), Owner: o}
			c.Queue.Submit(&reqs[i])
		}
		l := r.lanes[c.Poller]
		l.Run()
		for _, w := range l.wires {
			if busy := 127 - w.queue.Room(); busy != 3 {
				t.Errorf("%d commands are in flight on a connection, want 3", busy)
			}
		}
	})
	<-o.done
	load(t, clients, 20, 15)()
}

// counter waits for the end of several requests.
type counter struct {
	left int
	done chan struct{}
}

func (c *counter) Completed(*volume.Request) {
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// log is what has been logged.
type log struct {
	mu   sync.Mutex
	text []byte
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *log) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text, []byte(words))
}

// TestFewQueues: where the controller grants fewer connections than are wanted,
// every lane has one, also one that comes later, for which another gives one
// back, under verified load.
func TestFewQueues(t *testing.T) {
	s := newLimitedServer(t, shape, target.Limits{Queues: 3})
	var lines log
	r := openIn(t, &volumetest.Env{Log: slog.New(slog.NewTextHandler(&lines, nil))}, patientSpec(s.addr, "queues", "4"))
	var clients []*volumetest.Client
	for _, want := range [][]int{{3}, {2, 1}, {1, 1, 1}} {
		clients = append(clients, volumetest.Connect(t, r, cfg))
		wait := load(t, clients, 5, 10)
		fabricstest.WaitFor(t, "a connection for each", func() bool {
			n := connections(r, clients)
			for i := range n {
				if n[i] != want[i] {
					return false
				}
			}
			return true
		})
		wait()
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
	if n := lines.count("grants fewer connections"); n != 1 {
		t.Errorf("that there are few is logged %d times, want once", n)
	}
	// What a lane leaves behind is used by others only when they have none.
	clients[1].Close()
	clients[1] = volumetest.Connect(t, r, cfg)
	load(t, clients, 5, 10)()
	if r.Err() != nil {
		t.Error(r.Err())
	}
}

// TestResubmit: what becomes of a write that was in flight when the connection
// was lost, and that the target has never seen.
func TestResubmit(t *testing.T) {
	before, after := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	for _, tt := range []struct {
		resubmit, keepAlive string
		status              nvme.Status
		want                []byte
		early               bool // it ends before the old controller has had its time
	}{
		{"safe", "500ms", nvme.StatusSuccess, after, false},
		{"reconnect", "1h", nvme.StatusSuccess, after, true},
		{"never", "500ms", nvme.StatusHostPathingError | nvme.StatusDNR, before, false},
	} {
		t.Run(tt.resubmit, func(t *testing.T) {
			s := newServer(t, shape)
			p := newProxy(t, s.addr)
			r := open(t, spec(p.addr, "resubmit", tt.resubmit, "keep-alive", tt.keepAlive, "reconnect-delay", "20ms"))
			c := volumetest.Connect(t, r, cfg)
			mem := volumetest.NewMemory(t, 8192)
			do := func(op volume.Op) nvme.Status {
				req := volume.Request{Op: op, Length: 4096, Segments: mem.Segments(0, 4096)}
				return c.Do(t.Context(), &req)
			}
			copy(mem.Bytes(0, 4096), before)
			if st := do(volume.Write); st != nvme.StatusSuccess {
				t.Fatal(st)
			}
			var old *association
			c.On(func() { old = r.lanes[c.Poller].a })
			p.hold()
			o := &counter{done: make(chan struct{}), left: 1}
			copy(mem.Bytes(4096, 4096), after)
			write := volume.Request{Op: volume.Write, Length: 4096, Segments: mem.Segments(4096, 4096), Owner: o}
			c.On(func() {
				c.Queue.Submit(&write)
				r.lanes[c.Poller].Run()
			})
			p.cut()
			<-o.done
			now, safe := r.now(), old.safe.Load()
			if write.Status != tt.status || safe == 0 || (now < safe) != tt.early {
				t.Errorf("the write ends with %v at %d, where %d is safe", write.Status, now, safe)
			}
			if st := do(volume.Read); st != nvme.StatusSuccess || !bytes.Equal(mem.Bytes(0, 4096), tt.want) {
				t.Errorf("reading: %v, byte %d, want %d", st, mem.Bytes(0, 1), tt.want[0])
			}
		})
	}
}

// pump runs writes of one size one after the other, without allocating.
type pump struct {
	c      *volumetest.Client
	req    volume.Request
	left   int
	done   chan struct{}
	submit func()
}

func (p *pump) Completed(*volume.Request) {
	if p.left--; p.left == 0 {
		p.done <- struct{}{}
		return
	}
	p.submit()
}

// TestAllocations: neither side allocates for writes whose data R2Ts ask for, and
// for reads, with digests, over several connections.
func TestAllocations(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, patientSpec(s.addr, "queues", "2", "hdr-digest", "on", "data-digest", "on"))
	c := volumetest.Connect(t, r, cfg)
	mem := volumetest.NewMemory(t, 512<<10)
	for _, op := range []volume.Op{volume.Write, volume.Read} {
		p := &pump{c: c, done: make(chan struct{}, 1)}
		p.submit = func() { c.Queue.Submit(&p.req) }
		p.req = volume.Request{Op: op, Length: 512 << 10, Segments: mem.Segments(0, 512<<10), Owner: p}
		run := func() {
			p.left = 20
			if err := c.Poller.Post(p.submit); err != nil {
				t.Error(err)
			}
			<-p.done
		}
		run()
		least := testing.AllocsPerRun(1, run) // what the runtime allocates for its own ends comes and goes
		for tries := 0; tries < 20 && least > 0; tries++ {
			least = min(least, testing.AllocsPerRun(1, run))
		}
		if least > 0 || p.req.Status != nvme.StatusSuccess {
			t.Errorf("%v: %v allocations in 20 requests, want 0; status %v", op, least, p.req.Status)
		}
	}
}

// TestTurns: pollers without a connection of their own take turns, and each gets
// on, whatever the others want.
func TestTurns(t *testing.T) {
	for _, granted := range []int{1, 2} {
		s := newLimitedServer(t, shape, target.Limits{Queues: granted})
		var lines log
		r := openIn(t, &volumetest.Env{Log: slog.New(slog.NewTextHandler(&lines, nil))}, patientSpec(s.addr, "queues", "2"))
		var clients []*volumetest.Client
		for range 3 {
			clients = append(clients, volumetest.Connect(t, r, cfg))
		}
		load(t, clients, 10, 15)()
		if r.Err() != nil {
			t.Error(r.Err())
		}
		if n := lines.count("take turns"); n != 1 {
			t.Errorf("%d connections: that pollers take turns is logged %d times, want once", granted, n)
		}
		total := 0
		for _, n := range connections(r, clients) {
			total += n
		}
		if total > granted {
			t.Errorf("lanes have %d connections, %d are granted", total, granted)
		}
	}
}

// TestNoAccess: commands wait while the controller cannot get at the namespace,
// as long as fast-io-fail lets them, and not at all where it never will.
func TestNoAccess(t *testing.T) {
	for _, tt := range []struct {
		fastIOFail string
		status     nvme.Status
		want       nvme.Status
		times      int32 // that the status is given
	}{
		{"off", nvme.StatusANATransition, nvme.StatusSuccess, 5},
		{"1h", nvme.StatusANAInaccessible, nvme.StatusSuccess, 2},
		{"off", nvme.StatusInternalPathError, nvme.StatusSuccess, 1},
		{"10ms", nvme.StatusANATransition, nvme.StatusANATransition, 1 << 30},
		{"off", nvme.StatusANATransition | nvme.StatusDNR, nvme.StatusANATransition | nvme.StatusDNR, 1 << 30},
		{"off", nvme.StatusANAPersistentLoss, nvme.StatusANAPersistentLoss, 1 << 30},
	} {
		t.Run(tt.fastIOFail+" "+tt.status.String(), func(t *testing.T) {
			var given, seen atomic.Int32
			f := &foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
				if q.enabled || e.Opcode != uint8(nvme.IOWrite) {
					return false
				}
				seen.Add(1)
				return given.Add(1) <= tt.times && q.respond(e.CID, tt.status, 0, 0)
			}}
			f.start(t)
			var lines log
			r := openIn(t, &volumetest.Env{Log: slog.New(slog.NewTextHandler(&lines, nil))}, spec(f.addr, "fast-io-fail", tt.fastIOFail, "keep-alive", "1m"))
			c := volumetest.Connect(t, r, cfg)
			mem := volumetest.NewMemory(t, 4096)
			req := volume.Request{Op: volume.Write, Length: 4096, Segments: mem.Segments(0, 4096)}
			if st := c.Do(t.Context(), &req); st != tt.want {
				t.Errorf("the write ends with %v, want %v", st, tt.want)
			}
			waits := tt.status != tt.want || tt.fastIOFail == "10ms"
			if n := lines.count("cannot get at the namespace"); n > 1 || n == 1 != waits {
				t.Errorf("it is logged %d times", n)
			}
			if tt.want == nvme.StatusSuccess && seen.Load() != tt.times+1 {
				t.Errorf("the write was sent %d times, want %d", seen.Load(), tt.times+1)
			}
		})
	}
}
