// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// actor is a guest in which one thing goes on. step is called all the time, by
// the one goroutine that plays all guests: they compete for the poller, not for
// the test's processor.
type actor interface{ step(testing.TB) }

// reader is a guest that keeps a number of reads in flight on each of its queues.
type reader struct {
	queues []*flow
	done   int
	times  []time.Duration // of each read; nil: not wanted
	timed  bool
}

// flow is one queue pair of a reader.
type flow struct {
	sq    *vfiousertest.SQ
	cq    *vfiousertest.CQ
	again []uint16 // commands to send
	all   []nvme.SQE
	sent  []time.Time
	more  func(nvme.CQE)
}

// newReader makes a guest with a drive of its own.
func (r *rig) newReader(name, doorbells string, size, queues, depth int) *reader {
	r.t.Helper()
	r.volume(name, "mem", "size", "64M")
	r.wire(name, doorbells, name)
	n := r.guest(name, vfiousertest.MemoryOptions{Low: 256 << 20, Sealed: true})
	if err := n.Enable(32); err != nil {
		r.t.Fatal(err)
	}
	p := new(reader)
	for id := range queues {
		q, err := n.CreatePair(uint16(id+1), depth+1, vfiousertest.Polled)
		if err != nil {
			r.t.Fatal(err)
		}
		f := &flow{sq: q.SQ, cq: q.CQ, all: make([]nvme.SQE, depth), sent: make([]time.Time, depth)}
		buf, err := n.Client().Memory().NewBuffer(size, vfiousertest.Shape{})
		if err != nil {
			r.t.Fatal(err)
		}
		for i := range f.all {
			f.all[i] = nvme.SQE{Opcode: uint8(nvme.IORead), CID: uint16(i), NSID: 1}
			buf.Set(&f.all[i])
			nvme.RW{NLB: uint16(size/512 - 1)}.Put(&f.all[i])
			f.again = append(f.again, uint16(i))
		}
		f.more = func(e nvme.CQE) {
			if st := e.StatusField(); st != nvme.StatusSuccess {
				r.t.Fatal(st)
			}
			p.done++
			if p.timed {
				p.times = append(p.times, time.Since(f.sent[e.CID]))
			}
			f.again = append(f.again, e.CID)
		}
		p.queues = append(p.queues, f)
	}
	return p
}

func (p *reader) step(t testing.TB) {
	for _, f := range p.queues {
		if _, err := f.cq.Poll(f.more); err != nil {
			t.Fatal(err)
		}
		if len(f.again) == 0 {
			continue
		}
		for _, cid := range f.again {
			if p.timed {
				f.sent[cid] = time.Now()
			}
			f.sq.Push(&f.all[cid])
		}
		f.again = f.again[:0]
		if err := f.sq.Ring(); err != nil {
			t.Fatal(err)
		}
	}
}

// play has guests go on for a while, and returns how many reads of the first
// have ended in a second.
func play(t testing.TB, d time.Duration, first *reader, others ...actor) float64 {
	before, start := first.done, time.Now()
	for time.Since(start) < d {
		for range 16 {
			first.step(t)
			for _, o := range others {
				o.step(t)
			}
		}
	}
	return float64(first.done-before) / time.Since(start).Seconds()
}

// storm is a guest that rings doorbells for nothing.
type storm struct{ *reader }

func (s storm) step(t testing.TB) {
	if err := s.queues[0].sq.Ring(); err != nil {
		t.Fatal(err)
	}
}

// flood is a guest that floods its admin queue with one command.
type flood struct {
	admin *vfiousertest.Pair
	e     nvme.SQE
}

func (f *flood) step(t testing.TB) {
	if err := f.admin.Poll(); err != nil {
		t.Fatal(err)
	}
	if f.admin.Outstanding() < f.admin.SQ.Depth()-1 {
		if err := f.admin.Submit(f.e, func(nvme.CQE) {}); err != nil {
			t.Fatal(err)
		}
	}
}

// newFlood makes a guest that floods its admin queue.
func (r *rig) newFlood(name, doorbells string, e nvme.SQE) *flood {
	r.volume(name, "null", "size", "1M")
	r.wire(name, doorbells, name)
	n := r.guest(name, vfiousertest.MemoryOptions{Low: 16 << 20, Sealed: true})
	if err := n.Enable(32); err != nil {
		r.t.Fatal(err)
	}
	address, _, err := n.Client().Memory().Alloc(vfiousertest.PageSize)
	if err != nil {
		r.t.Fatal(err)
	}
	e.PRP1 = address
	return &flood{n.Admin(), e}
}

// window is how long guests play before others do: less than what a kernel gives
// a thread at a time.
const window = 5 * time.Millisecond

// newBusyRig starts both daemons, leap-soc with a poller that does not sleep: it
// would give way to other processes of this machine at other times when a guest
// is alone.
func newBusyRig(b *testing.B) *rig {
	r := newFolders(b, 1)
	r.poll = poller.Busy
	r.start()
	return r
}

// BenchmarkNeighbour has a guest read 4 KiB at a time, one at a time, beside one
// that misbehaves on the same poller, and alone, by turns. kept is its rate in
// parts of that alone. Rates are those that one window in ten exceeds: in those
// nobody else wanted the processors.
func BenchmarkNeighbour(b *testing.B) {
	identify := nvme.SQE{Opcode: uint8(nvme.AdminIdentify), CDW10: uint32(nvme.CNSController)}
	event := nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}
	for _, doorbells := range []string{api.DoorbellsMap, api.DoorbellsTrap} {
		for _, a := range []struct {
			name string
			make func(*rig) actor
		}{
			{"doorbells", func(r *rig) actor { return storm{r.newReader("bad", doorbells, 4<<10, 1, 1)} }},
			{"admin", func(r *rig) actor { return r.newFlood("bad", doorbells, identify) }},
			{"events", func(r *rig) actor { return r.newFlood("bad", doorbells, event) }},
			{"deep", func(r *rig) actor { return r.newReader("bad", doorbells, 4<<10, 1, 1023) }},
			{"queues", func(r *rig) actor { return r.newReader("bad", doorbells, 4<<10, 16, 127) }},
			{"large", func(r *rig) actor { return r.newReader("bad", doorbells, 128<<10, 1, 127) }},
		} {
			b.Run(doorbells+"/"+a.name, func(b *testing.B) {
				r := newBusyRig(b)
				good := r.newReader("good", doorbells, 4<<10, 1, 1)
				bad := a.make(r)
				good.timed = true
				play(b, 100*time.Millisecond, good, bad)
				var windows [2][]float64
				var times [2][]time.Duration
				for range b.N * 40 {
					for i, others := range [][]actor{nil, {bad}} {
						play(b, time.Millisecond, good, others...) // what is in flight ends first
						good.times = good.times[:0]
						windows[i] = append(windows[i], play(b, window, good, others...))
						times[i] = append(times[i], good.times...)
					}
				}
				var rates [2]float64
				for i := range rates {
					slices.Sort(windows[i])
					rates[i] = windows[i][len(windows[i])*9/10]
				}
				b.ReportMetric(rates[1]/rates[0], "kept")
				for i, name := range []string{"alone-p99-us", "p99-us"} {
					slices.Sort(times[i])
					b.ReportMetric(float64(times[i][len(times[i])*99/100].Nanoseconds())/1e3, name)
				}
				b.ReportMetric(rates[0], "alone/s")
			})
		}
	}
}

// BenchmarkShares has eight guests read as fast as they can on one poller. share
// is the least that one gets, in parts of the most.
func BenchmarkShares(b *testing.B) {
	for _, doorbells := range []string{api.DoorbellsMap, api.DoorbellsTrap} {
		b.Run(doorbells, func(b *testing.B) {
			r := newBusyRig(b)
			var all []*reader
			var others []actor
			for i := range 8 {
				// Some have more in flight, and more queues, than others.
				p := r.newReader(fmt.Sprintf("vm%d", i), doorbells, 4<<10, 1+i%2, 64<<(i%3))
				if all = append(all, p); i > 0 {
					others = append(others, p)
				}
			}
			before := make([]int, len(all))
			play(b, 100*time.Millisecond, all[0], others...)
			for i, p := range all {
				before[i] = p.done
			}
			for range b.N {
				play(b, 500*time.Millisecond, all[0], others...)
			}
			total := 0
			for i, p := range all {
				before[i] = p.done - before[i]
				total += before[i]
			}
			b.ReportMetric(float64(slices.Min(before))/float64(slices.Max(before)), "share")
			b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "reads/s")
		})
	}
}
