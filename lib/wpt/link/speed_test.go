// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/mem"
	"github.com/leapio/leapio/lib/volume/null"
)

// Where a driver's queue pair is, its size, and where its buffers begin.
const (
	driverSQ, driverCQ, driverBuffers = 0x10000, 0x20000, 1 << 20
	driverEntries                     = 256
)

// driver is a guest's driver that keeps a number of commands in flight on one
// queue pair.
type driver struct {
	m            *machine
	all          []nvme.SQE // by CID
	tail, head   uint32
	phase        uint32
	places, rate uint64 // where a command may be; its blocks
	place        uint64 // of the last one; a random number unless inTurn
	inTurn       bool   // one place after the other
	sent, done   int
	want         int           // commands to send
	end          chan struct{} // when want have ended
	bad          int           // commands that have failed
}

// newDriver has a machine drive its queue pair at some depth.
func newDriver(m *machine, l load) *driver {
	m.t.Helper()
	m.createQueues(driverSQ, driverCQ, driverEntries)
	d := &driver{
		m: m, phase: 1, places: uint64(l.volume / l.bytes), rate: uint64(l.bytes / 512), end: make(chan struct{}, 1),
	}
	for i := range l.depth {
		e := nvme.SQE{Opcode: uint8(l.op), CID: uint16(i), NSID: 1}
		// A page for the list, then the data.
		list := driverBuffers + uint64(i)*uint64(l.bytes+qpair.PageSize)
		e.PRP1 = list + qpair.PageSize
		if l.bytes == 2*qpair.PageSize {
			e.PRP2 = e.PRP1 + qpair.PageSize
		} else if l.bytes > qpair.PageSize {
			e.PRP2 = list
			for page := 1; page < l.bytes/qpair.PageSize; page++ {
				binary.LittleEndian.PutUint64(m.mem[list+uint64(page-1)*8:], e.PRP1+uint64(page)*qpair.PageSize)
			}
		}
		d.all = append(d.all, e)
	}
	return d
}

// send puts a command into the ring.
func (d *driver) send(cid uint16) {
	e := &d.all[cid]
	place := d.place >> 33
	if d.place = d.place*6364136223846793005 + 1442695040888963407; d.inTurn {
		place = uint64(d.sent)
	}
	nvme.RW{SLBA: place % d.places * d.rate, NLB: uint16(d.rate - 1)}.Put(e)
	copy(d.m.mem[driverSQ+d.tail*qpair.SQESize:], nvme.Bytes(e))
	if d.tail++; d.tail == driverEntries {
		d.tail = 0
	}
	d.sent++
}

// begin sends the first commands of n.
func (d *driver) begin(n int) {
	d.want, d.sent, d.done = n, 0, 0
	for i := range min(n, len(d.all)) {
		d.send(uint16(i))
	}
	atomic.StoreUint32(d.m.bells.SQTail(1), d.tail)
}

// look takes what has ended and sends the next.
func (d *driver) look() int {
	n := 0
	for ; ; n++ {
		dword3 := atomic.LoadUint32(word32(d.m.mem, driverCQ+d.head*qpair.CQESize+12))
		if dword3>>16&1 != d.phase {
			break
		}
		if dword3>>17 != 0 {
			d.bad++
		}
		if d.head++; d.head == driverEntries {
			d.head, d.phase = 0, d.phase^1
		}
		if d.done++; d.sent < d.want {
			d.send(uint16(dword3))
		}
	}
	if n > 0 {
		atomic.StoreUint32(d.m.bells.SQTail(1), d.tail)
		atomic.StoreUint32(d.m.bells.CQHead(1), d.head)
		if d.done == d.want {
			d.end <- struct{}{}
		}
	}
	return n
}

// Poll and the others implement poller.Source, for a driver on the poller that
// serves it.
func (d *driver) Poll() int          { return d.look() }
func (d *driver) Arm() poller.Wake   { return poller.WakeLook }
func (d *driver) Holds(uintptr) bool { return false }
func (d *driver) Fault()             {}

// runThere runs n commands with the driver on the poller that serves it, and
// returns what time the poller's thread took.
func (d *driver) runThere(n int) (took time.Duration) {
	p := d.m.port.home
	post(p, func() {
		took = -threadTime()
		p.House().Add(d)
		d.begin(n)
	})
	<-d.end
	_ = p.Do(func() {
		took += threadTime()
		p.Remove(d)
	})
	return took
}

// threadTime is how long this thread has had a processor.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// load is what a driver does.
type load struct {
	kind   volume.Kind
	volume int // bytes
	op     nvme.IOOpcode
	bytes  int // of a command
	depth  int
}

// speeds calls f for kinds of load.
func speeds(f func(name string, l load)) {
	for _, l := range []struct {
		kind  volume.Kind
		op    nvme.IOOpcode
		bytes int
		depth []int
	}{
		{null.Kind, nvme.IORead, 4 << 10, []int{1, 32, 128}},
		{mem.Kind, nvme.IORead, 4 << 10, []int{1, 32, 128}},
		{mem.Kind, nvme.IOWrite, 4 << 10, []int{1, 32, 128}},
		{mem.Kind, nvme.IORead, 128 << 10, []int{16}},
		{mem.Kind, nvme.IOWrite, 128 << 10, []int{16}},
	} {
		for _, depth := range l.depth {
			name := fmt.Sprintf("%s/%s/size=%dK/qd=%d", l.kind.Name, l.op, l.bytes>>10, depth)
			f(name, load{l.kind, 512 << 20, l.op, l.bytes, depth})
		}
	}
}

// BenchmarkAlone is what a command costs the poller: the driver runs on the same
// thread, so that no cache line moves between processors and no other process is
// in the way. cpu-ns/op is the time of the thread, the driver's part included.
func BenchmarkAlone(b *testing.B) {
	speeds(func(name string, l load) {
		b.Run(name, func(b *testing.B) {
			d := l.start(b, poller.Config{CPU: -1, Mode: poller.Busy})
			b.SetBytes(int64(l.bytes))
			b.ReportAllocs()
			b.ResetTimer()
			took := d.runThere(b.N)
			b.StopTimer()
			b.ReportMetric(float64(took)/float64(b.N), "cpu-ns/op")
			d.check()
		})
	})
}

// BenchmarkApart is what a driver on another processor sees.
func BenchmarkApart(b *testing.B) {
	if runtime.NumCPU() < 2 {
		b.Skip("one processor")
	}
	speeds(func(name string, l load) {
		b.Run(name, func(b *testing.B) {
			d := l.start(b, poller.Config{CPU: 0, Mode: poller.Busy})
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var before, set unix.CPUSet
			set.Set(1)
			if err := unix.SchedGetaffinity(0, &before); err != nil {
				b.Fatal(err)
			}
			_ = unix.SchedSetaffinity(0, &set)
			defer func() { _ = unix.SchedSetaffinity(0, &before) }()
			b.SetBytes(int64(l.bytes))
			b.ReportAllocs()
			b.ResetTimer()
			for d.begin(b.N); d.done < b.N; {
				d.look()
			}
			b.StopTimer()
			<-d.end
			d.check()
		})
	})
}

// start makes a driver on a machine of its own, whose volume has been written.
func (l load) start(t testing.TB, cfg poller.Config) *driver {
	t.Helper()
	m := newMachineOf(t, driverBuffers+l.depth*(l.bytes+qpair.PageSize), newDriveOf(t, l.kind, strconv.Itoa(l.volume)), cfg)
	d := newDriver(m, l)
	if l.kind.Name != null.Kind.Name {
		d.inTurn = true
		for i := range d.all {
			d.all[i].Opcode = uint8(nvme.IOWrite)
		}
		d.runThere(l.volume / l.bytes)
		for i := range d.all {
			d.all[i].Opcode = uint8(l.op)
		}
		d.inTurn = false
	}
	return d
}

// TestNoAllocations: once there has been as much to do before, a command allocates
// nothing on its way from the doorbell to its completion.
func TestNoAllocations(t *testing.T) {
	for _, l := range []load{
		{null.Kind, 1 << 20, nvme.IORead, 4 << 10, 32},
		{mem.Kind, 1 << 20, nvme.IORead, 4 << 10, 32},
		{mem.Kind, 1 << 20, nvme.IOWrite, 128 << 10, 4},
	} {
		d := l.start(t, poller.Config{CPU: -1})
		const commands = 2000
		run := func() { d.runThere(commands) }
		least := testing.AllocsPerRun(1, run)
		for range 4 { // what the runtime allocates for its own ends comes and goes
			least = min(least, testing.AllocsPerRun(1, run))
		}
		if least > commands/100 {
			t.Errorf("%s of %s: %v allocations for %d commands", l.op, l.kind.Name, least, commands)
		}
		d.check()
	}
}

// check fails the test if a command has failed.
func (d *driver) check() {
	if d.bad > 0 {
		d.m.t.Errorf("%d commands have failed", d.bad)
	}
}
