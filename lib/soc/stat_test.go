// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// stat asks what was counted, by name.
func (r *rig) stat(by string) map[string]api.ThingStat {
	r.t.Helper()
	s := call[api.Stat](r, r.client(), "GET", "/v1/stat/"+by, nil)
	things := make(map[string]api.ThingStat)
	for _, t := range s.Things {
		things[t.Name] = t
	}
	return things
}

// ops is what a class of commands has: their number, bytes and errors.
type ops [3]uint64

func opsOf(o api.OpStat) ops { return ops{o.Commands, o.Bytes, o.Errors} }

// checkStat holds what was counted of a thing against what it is to be. Nothing
// is in flight.
func checkStat(t *testing.T, when string, things map[string]api.ThingStat, name string, reads, writes, others ops) {
	t.Helper()
	x, ok := things[name]
	if !ok {
		t.Errorf("%s: there is no %s", when, name)
		return
	}
	if opsOf(x.Read) != reads || opsOf(x.Write) != writes || opsOf(x.Other) != others || x.InFlight != 0 {
		t.Errorf("%s: %s has reads %v, writes %v, others %v and %d in flight, want %v, %v, %v", when, name,
			opsOf(x.Read), opsOf(x.Write), opsOf(x.Other), x.InFlight, reads, writes, others)
	}
}

// TestStat: what machines do is counted exactly, for their queues, for
// namespaces and for volumes, also those shown twice; what was counted stays
// through resets and the end of namespaces, and goes with the thing.
func TestStat(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "mem", "size", "1M")
	r.volume("d2", "file", "size", "1M")
	for _, s := range []string{"s1", "s2"} {
		call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: s, Volumes: []string{"d1"}, Shared: true})
	}
	call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s1/namespaces", api.NamespaceSpec{Volume: "d2", NSID: 7})
	use := func(n *vfiousertest.NVMe) []*vfiousertest.Pair {
		t.Helper()
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
		var pairs []*vfiousertest.Pair
		for id := range 3 { // on both pollers
			q, err := n.CreatePair(uint16(id+1), 16, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			pairs = append(pairs, q)
		}
		return pairs
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 8192)
	first, second := r.bound("vm1", "s1"), r.bound("vm2", "s2")
	p1, p2 := use(first), use(second)
	for i, q := range p1 {
		for range i + 1 { // 1 + 2 + 3
			do(q.Write(1, 8, data, 512))
			do(q.Read(1, 8, data[:512], 512))
			do(q.Write(7, 8, data[:4096], 512))
		}
		do(q.Flush(1))
	}
	do(p2[0].Read(1, 0, data, 512))
	if st := statusOf(nvme.CQE{}, p2[0].Read(1, 1<<30, data, 512)); st.Code() != nvme.StatusLBAOutOfRange {
		t.Fatal(st)
	}
	volumes, namespaces, queues := r.stat(api.ByVolume), r.stat(api.ByNamespace), r.stat(api.ByQueue)
	checkStat(t, "at first", volumes, "d1", ops{8, 6*512 + 8192, 1}, ops{6, 6 * 8192, 0}, ops{3, 0, 0})
	checkStat(t, "at first", volumes, "d2", ops{}, ops{6, 6 * 4096, 0}, ops{})
	checkStat(t, "at first", namespaces, "s1/1", ops{6, 6 * 512, 0}, ops{6, 6 * 8192, 0}, ops{3, 0, 0})
	checkStat(t, "at first", namespaces, "s1/7", ops{}, ops{6, 6 * 4096, 0}, ops{})
	checkStat(t, "at first", namespaces, "s2/1", ops{2, 8192, 1}, ops{}, ops{})
	checkStat(t, "at first", queues, "vm1/3", ops{3, 3 * 512, 0}, ops{6, 3 * (8192 + 4096), 0}, ops{1, 0, 0})
	checkStat(t, "at first", queues, "vm2/2", ops{}, ops{}, ops{})
	if len(queues) != 8 || namespaces["s1/7"].Volume != "d2" {
		t.Errorf("%d queues, s1/7 shows %s", len(queues), namespaces["s1/7"].Volume)
	}

	p1 = use(first) // resets it
	do(p1[2].Read(1, 0, data, 512))
	checkStat(t, "after a reset", r.stat(api.ByVolume), "d1", ops{9, 6*512 + 2*8192, 1}, ops{6, 6 * 8192, 0}, ops{3, 0, 0})
	checkStat(t, "after a reset", r.stat(api.ByNamespace), "s1/1", ops{7, 6*512 + 8192, 0}, ops{6, 6 * 8192, 0}, ops{3, 0, 0})
	again := r.stat(api.ByQueue)
	checkStat(t, "after a reset", again, "vm1/3", ops{1, 8192, 0}, ops{}, ops{})
	if again["vm1/3"].Since.Equal(queues["vm1/3"].Since) || !again["vm2/3"].Since.Equal(queues["vm2/3"].Since) {
		t.Error("a queue that is another one does not say so, or one that is not does")
	}

	call[api.None](r, r.client(), "DELETE", "/v1/subsystems/s1/namespaces/7", nil)
	checkStat(t, "without its namespace", r.stat(api.ByVolume), "d2", ops{}, ops{6, 6 * 4096, 0}, ops{})
	call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s1/namespaces", api.NamespaceSpec{Volume: "d2", NSID: 7})
	checkStat(t, "as another namespace", r.stat(api.ByNamespace), "s1/7", ops{}, ops{}, ops{})
	do(p1[0].Read(7, 0, data, 512))
	checkStat(t, "as another namespace", r.stat(api.ByNamespace), "s1/7", ops{1, 8192, 0}, ops{}, ops{})
	checkStat(t, "as another namespace", r.stat(api.ByVolume), "d2", ops{1, 8192, 0}, ops{6, 6 * 4096, 0}, ops{})
	call[api.None](r, r.client(), "DELETE", "/v1/subsystems/s1/namespaces/7", nil)
	call[api.None](r, r.client(), "DELETE", "/v1/volumes/d2", nil)
	if things := r.stat(api.ByVolume); len(things) != 1 {
		t.Errorf("a volume that is gone is still there: %d things", len(things))
	}
	if err := r.client().Get(context.Background(), "/v1/stat/port", nil); fault.KindOf(err) != fault.Usage {
		t.Errorf("by port: %v, want a usage fault", err)
	}
}

// TestStatLatency: no command takes longer than its machine has seen, none is
// shorter than its volume takes, and so it is with percentiles.
func TestStatLatency(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.volume("d1", "slow")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	q, err := n.CreatePair(1, 2*soc.SlowBlocks, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	buf, err := n.Client().Memory().NewBuffer(512, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	var seen, least []time.Duration
	for i := range soc.SlowBlocks {
		e := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1}
		nvme.RW{SLBA: uint64(i)}.Put(&e)
		buf.Set(&e)
		least = append(least, time.Duration(i)*time.Millisecond)
		began := time.Now()
		if err := q.Submit(e, func(nvme.CQE) { seen = append(seen, time.Since(began)) }); err != nil {
			t.Fatal(err)
		}
	}
	inFlight := r.stat(api.ByVolume)["d1"].InFlight
	for deadline := time.Now().Add(10 * time.Second); q.Outstanding() > 0; {
		if err := q.Poll(); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d commands have not ended: %v", q.Outstanding(), err)
		}
		time.Sleep(100 * time.Microsecond)
	}
	if inFlight > soc.SlowBlocks {
		t.Errorf("%d commands in flight of %d", inFlight, soc.SlowBlocks)
	}
	slices.Sort(seen)
	for by, name := range map[string]string{api.ByVolume: "d1", api.ByNamespace: "vm1/1", api.ByQueue: "vm1/1"} {
		got := r.stat(by)[name].Read
		if got.Commands != soc.SlowBlocks {
			t.Errorf("by %s: %d commands, want %d", by, got.Commands, soc.SlowBlocks)
		}
		for p, x := range map[float64]time.Duration{0.5: got.P50, 0.9: got.P90, 0.99: got.P99, 0.999: got.P999, 1: got.Max} {
			rank := int(math.Ceil(p*soc.SlowBlocks)) - 1
			if low, high := least[rank], seen[rank]+seen[rank]/16; x < low || x > high {
				t.Errorf("by %s: p%v is %v, the volume took %v at least and the machine saw %v", by, 100*p, x, low, seen[rank])
			}
		}
	}
}

// TestStatLoad: whoever looks while machines work sees totals that only grow,
// over resets, and which are exact in the end.
func TestStatLoad(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "mem", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	wrote, stop := make(chan uint64), make(chan struct{})
	go func() {
		commands, data := uint64(0), make([]byte, 4096)
		defer func() { wrote <- commands }()
		for round := 0; ; round++ {
			for id := range 2 {
				q, err := n.CreatePair(uint16(id+1), 16, vfiousertest.Polled)
				if err != nil {
					t.Error(err)
					return
				}
				for range 50 {
					if err := q.Write(1, uint64(id)*8, data, 512); err != nil {
						t.Error(err)
						return
					}
					commands++
				}
			}
			select {
			case <-stop:
				return
			default:
			}
			if err := n.Enable(32); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	last := call[api.Stat](r, r.client(), "GET", "/v1/stat/volume", nil)
	total := uint64(0)
	for range 50 {
		now := call[api.Stat](r, r.client(), "GET", "/v1/stat/volume", nil)
		before, x := last.Things[0].Write, now.Things[0].Write
		if x.Commands < before.Commands || x.Bytes < before.Bytes || now.Uptime <= last.Uptime {
			t.Fatalf("%d commands and %d bytes after %d and %d", x.Commands, x.Bytes, before.Commands, before.Bytes)
		}
		d := now.Sub(last)
		total += d.Things[0].Write.Commands
		if want := x.Commands - before.Commands; d.Things[0].Write.Commands != want || d.Uptime != now.Uptime-last.Uptime {
			t.Fatalf("the difference is %d commands in %v, want %d", d.Things[0].Write.Commands, d.Uptime, want)
		}
		last = now
		r.stat(api.ByNamespace)
		r.stat(api.ByQueue)
	}
	close(stop)
	want := <-wrote
	checkStat(t, "in the end", r.stat(api.ByVolume), "d1", ops{}, ops{want, want * 4096, 0}, ops{})
	if total == 0 || total > want {
		t.Errorf("the differences are %d commands, of %d", total, want)
	}
	s := call[api.Stat](r, r.client(), "GET", "/v1/stat/volume", nil)
	turns := uint64(0)
	for _, p := range s.Pollers {
		turns += p.Turns
		if p.Busy > s.Uptime {
			t.Errorf("%s was busy for %v within %v", p.Name, p.Busy, s.Uptime)
		}
	}
	if turns == 0 || len(s.Pollers) != 2 {
		t.Errorf("%d pollers with %d turns", len(s.Pollers), turns)
	}
}
