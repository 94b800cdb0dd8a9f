// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

func TestLimits(t *testing.T) {
	if err := DefaultLimits().Check(); err != nil {
		t.Error(err)
	}
	if got := (Limits{Share: 3 << 20}).withDefaults(); got.Share != 3<<20 || got.Memory != DefaultLimits().Memory || got.Patience == 0 {
		t.Errorf("%+v", got)
	}
	for want, change := range map[string]func(*Limits){
		"0 connections":                                 func(l *Limits) { l.Connections = 0 },
		"32769 connections":                             func(l *Limits) { l.Connections = 32769 },
		"-1 associations":                               func(l *Limits) { l.Associations = -1 },
		"1025 queues":                                   func(l *Limits) { l.Queues = 1025 },
		"31 queue entries: not between 32 and":          func(l *Limits) { l.QueueEntries = 31 },
		"511 bytes in a capsule":                        func(l *Limits) { l.InCapsule = 511 },
		"1000 bytes in a capsule: not a multiple of 16": func(l *Limits) { l.InCapsule = 1000 },
		"1 bytes of buffers":                            func(l *Limits) { l.Memory = 1 },
		"1 bytes of buffers for an association":         func(l *Limits) { l.Share = 1 },
		"999 patience in milliseconds":                  func(l *Limits) { l.Patience = 999 * time.Millisecond },
	} {
		l := DefaultLimits()
		change(&l)
		if err := l.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// dry reports whether no poller has large buffers left.
func (f *fixture) dry(t *testing.T) bool {
	t.Helper()
	dry := true
	for _, s := range f.target.shards {
		if err := s.p.Do(func() { dry = dry && len(s.pool.large) == 0 }); err != nil {
			t.Fatal(err)
		}
	}
	return dry
}

// TestFloor: hosts that hang, in the middle of what they send or with what they are sent, hold all buffers there are. Others go on.
func TestFloor(t *testing.T) {
	f := start(t, Limits{Memory: 4 << 20, Share: 4 << 20})
	good := f.enabled(t, fabricstest.Options{Host: 100})
	var queues []*fabricstest.Queue
	for qid := uint16(1); qid <= 2; qid++ { // one of them on each poller
		queues = append(queues, f.io(t, good, fabricstest.Options{Host: 100}, qid, 0))
	}
	for host := range byte(6) {
		o := fabricstest.Options{Host: host}
		admin := f.enabled(t, o)
		for qid := uint16(1); qid <= 4; qid++ {
			q := f.io(t, admin, o, qid, 0)
			for range 4 {
				if host%2 == 0 {
					q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, dma.MaxTransfer), To: make([]byte, dma.MaxTransfer)})
				} else {
					q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, dma.MaxTransfer), From: make([]byte, dma.MaxTransfer)})
				}
			}
		}
	}
	fabricstest.WaitFor(t, "the buffers to be taken", func() bool { return f.dry(t) })
	for round := range 3 {
		for i, q := range queues {
			for _, n := range []int{dma.MaxTransfer, 512, 128 << 10, 8192, 65536} {
				f.verify(t, q, (8+8*i+round)<<20, n, false)
			}
		}
	}
	// Many at once: one after the other has the memory.
	q, want := queues[0], make([][]byte, 24)
	requests := make([]fabricstest.Request, len(want))
	for i := range want {
		want[i] = pattern(uint64(i), 256<<10)
		requests[i] = fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 32<<20+i*(256<<10), len(want[i])), To: want[i]}
		q.Start(&requests[i])
	}
	for range requests {
		if r, err := q.Next(); err != nil || r.CQE.StatusField() != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	for i := range want {
		r := fabricstest.Request{SQE: rw(nvme.IORead, 1, 32<<20+i*(256<<10), len(want[i])), From: make([]byte, len(want[i]))}
		if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, want[i]) {
			t.Fatalf("read %d: %v", i, st)
		}
	}
	if !f.dry(t) {
		t.Error("somebody has let go of its buffers")
	}
	// Who discovers, too.
	if _, st := readLog(f.discover(t, 0), nvme.GetLogPage{LID: nvme.LogDiscovery}, 4096); st != 0 {
		t.Error(st)
	}
}

// TestRoom: connections that come to nothing make room, those of discovery controllers after all others, and those of hosts never.
func TestRoom(t *testing.T) {
	f := start(t, Limits{Connections: 8})
	host := f.enabled(t, fabricstest.Options{})
	var seekers, silent []*fabricstest.Queue
	for range 3 {
		seekers = append(seekers, f.discover(t, 0))
	}
	for range 8 {
		silent = append(silent, fabricstest.Dial(t, f.addr))
	}
	gone := func(q *fabricstest.Queue) bool {
		_, err := q.Receive()
		return err != nil
	}
	for _, q := range silent[:4] {
		if !gone(q) {
			t.Error("a connection that is too many says something")
		}
	}
	queues := []*fabricstest.Queue{f.io(t, host, fabricstest.Options{}, 1, 0)}
	for qid := uint16(2); qid <= 7; qid++ {
		queues = append(queues, f.io(t, host, fabricstest.Options{}, qid, 0))
	}
	for _, q := range append(seekers, silent[4:]...) {
		if !gone(q) {
			t.Error("a connection that is too many says something")
		}
	}
	if !gone(fabricstest.Dial(t, f.addr)) {
		t.Error("there is room for one more")
	}
	for i, q := range queues {
		f.verify(t, q, i<<20, 4096, false)
	}
	queues[0].Conn.Close()
	fabricstest.WaitFor(t, "its end", func() bool { return f.listener.Associations()[0].Queues == 6 })
	f.discover(t, 0)
}

// TestAssociationLimit: one too many is told to come again.
func TestAssociationLimit(t *testing.T) {
	f := start(t, Limits{Associations: 2})
	f.enabled(t, fabricstest.Options{Host: 1})
	second := f.enabled(t, fabricstest.Options{Host: 2})
	for range 4 {
		f.discover(t, 0) // do not count
	}
	third := fabricstest.Initialize(t, f.addr, fabricstest.Options{Host: 3})
	connect := func() nvme.Status {
		cqe := third.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
		return cqe.StatusField()
	}
	if st := connect(); st != fabrics.StatusControllerBusy {
		t.Errorf("one too many: %s", fabrics.StatusText(st))
	}
	second.Conn.Close()
	fabricstest.WaitFor(t, "the end of one", func() bool { return connect() == 0 })
}

// TestDrip: who sends a byte now and then does not go on, wherever it is.
func TestDrip(t *testing.T) {
	f := start(t, Limits{Patience: 500 * time.Millisecond})
	admin := f.enabled(t, fabricstest.Options{})
	icReq := icReq(9, 0)
	capsule := raw(8192+72, 4, 0, 72, 72, 72, 0x20)
	fresh := func(t *testing.T) *fabricstest.Queue { return fabricstest.Initialize(t, f.addr, fabricstest.Options{}) }
	again := make([]byte, 0, 1<<20)
	for range 1000 {
		again = append(again, raw(72, 4, 0, 72, 0, 72)...) // commands before Connect, each answered
	}
	for name, tt := range map[string]struct {
		q    func(*testing.T) *fabricstest.Queue
		p    []byte
		size int
	}{
		"ICReq":             {func(t *testing.T) *fabricstest.Queue { return fabricstest.Dial(t, f.addr) }, icReq, 1},
		"Connect":           {fresh, capsule, 1},
		"anything else":     {fresh, again, 72},
		"header of capsule": {func(t *testing.T) *fabricstest.Queue { return f.io(t, admin, fabricstest.Options{}, 1, 0) }, capsule, 1},
		"data of capsule":   {func(t *testing.T) *fabricstest.Queue { return f.io(t, admin, fabricstest.Options{}, 2, 0) }, capsule, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := tt.q(t)
			for p := tt.p; ; p = p[tt.size:] {
				if len(p) < tt.size {
					t.Fatal("it has had all the time it wanted")
				}
				if _, err := q.Conn.Write(p[:tt.size]); err != nil {
					return // closed
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}
