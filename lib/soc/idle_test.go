// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build !race

// The race detector takes time and memory of its own.

package soc_test

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// The promises of a machine that is idle.
const (
	keepAliveTime        = 2500 * time.Millisecond // how often a host sends one by default
	idlePorts, idleHosts = 50, 50
	idleCPU              = 0.01      // of one core, both daemons together
	idleMemory           = 150 << 20 // both daemons, all drives
	pairMemory           = 100 << 10 // a further queue pair of depth pairDepth
	slotMemory           = 128       // a further slot
	pairDepth            = 128
)

// fleet is many drives whose guests and hosts do nothing.
type fleet struct {
	*rig
	guests []*vfiousertest.NVMe
	hosts  []*host.Admin
}

// newFleet starts both daemons as processes and connects guests and hosts, each
// to a drive of its own, with one I/O queue pair of depth pairDepth.
func newFleet(t testing.TB, doorbells string, ports, hosts int) *fleet {
	t.Helper()
	f := &fleet{rig: newProcesses(t, 2)}
	for i := range ports {
		name := fmt.Sprintf("vm%d", i)
		f.volume(name, "mem", "size", "16M")
		f.wire(name, doorbells, name)
		n := f.guest(name, vfiousertest.MemoryOptions{Low: 32 << 20, Sealed: true})
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
		f.guests = append(f.guests, n)
	}
	f.pairs(1, pairDepth)
	if hosts == 0 {
		return f
	}
	l := call[api.Listener](f.rig, f.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0"})
	for i := range hosts {
		name := fmt.Sprintf("remote%d", i)
		f.volume(name, "mem", "size", "16M")
		s := call[api.Subsystem](f.rig, f.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: name, Volumes: []string{name}, AllowAny: true})
		f.host(l, s.NQN)
	}
	return f
}

// host connects a host with one I/O queue. It has a Keep Alive Timeout, and does
// not send a Keep Alive by itself.
func (f *fleet) host(l api.Listener, nqn string) {
	f.t.Helper()
	addr, err := fabrics.ParseAddress(l.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	addr.NQN = nqn
	ctx := f.t.Context()
	o := host.Options{HostNQN: hostOne, HostID: nvme.NewUUID(), KeepAlive: 10 * time.Minute, Timeout: 30 * time.Second}
	a, err := host.Connect(ctx, addr, o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { a.Close() })
	if err := a.Enable(ctx); err != nil {
		f.t.Fatal(err)
	}
	id, err := a.IdentifyController(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := a.ConnectQueue(ctx, addr, o, id, 1)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(s.Close)
	f.hosts = append(f.hosts, a)
}

// pairs gives every guest a further queue pair, and has each slot of it used.
func (f *fleet) pairs(id uint16, depth int) {
	f.t.Helper()
	for _, n := range f.guests {
		q, err := n.CreatePair(id, depth, vfiousertest.Polled)
		if err != nil {
			f.t.Fatal(err)
		}
		// Flushes have no data: what takes memory is the queue.
		for range depth - 1 {
			if err := q.Submit(nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1}, func(nvme.CQE) {}); err != nil {
				f.t.Fatal(err)
			}
		}
		for q.Outstanding() > 0 {
			if err := q.Poll(); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// keepAlive sends a Keep Alive of every host, as often as Linux does.
func (f *fleet) keepAlive() {
	f.t.Helper()
	for _, a := range f.hosts {
		time.Sleep(keepAliveTime / time.Duration(len(f.hosts)))
		if _, err := a.Do(f.t.Context(), "keep alive", nvme.SQE{Opcode: uint8(nvme.AdminKeepAlive)}, nil, nil); err != nil {
			f.t.Fatal(err)
		}
	}
}

// usage is what processes have used of processors.
type usage struct {
	cpu   time.Duration
	wakes int // voluntary context switches: how often a thread went to sleep
	at    time.Time
}

// usage returns that of both daemons.
func (f *fleet) usage() usage {
	f.t.Helper()
	u := usage{at: time.Now()}
	for _, d := range []*daemon{f.wpt, f.soc} {
		// The clock of another process, clock_getcpuclockid(3): ^pid, and 2 for
		// the time that the scheduler has counted.
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^d.pid<<3|2), &ts); err != nil {
			f.t.Fatal(err)
		}
		u.cpu += time.Duration(ts.Nano())
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.pid))
		if err != nil {
			f.t.Fatal(err)
		}
		for _, path := range tasks {
			u.wakes += field(f.t, path, "voluntary_ctxt_switches")
		}
	}
	return u
}

// since returns the part of a core, and the wakeups per second, from a on.
func (u usage) since(a usage) (core, wakes float64) {
	d := u.at.Sub(a.at)
	return float64(u.cpu-a.cpu) / float64(d), float64(u.wakes-a.wakes) / d.Seconds()
}

// idle returns what both daemons use while f runs. It tries again where that is
// more than a bound, up to some tries, and returns the least: the collection of
// garbage may fall into one.
func (f *fleet) idle(core, wakes float64, during func()) (leastCore, leastWakes float64) {
	f.t.Helper()
	for try := range 8 {
		before := f.usage()
		during()
		c, w := f.usage().since(before)
		if try == 0 || c < leastCore {
			leastCore, leastWakes = c, w
		}
		if c <= core && w <= wakes {
			return c, w
		}
	}
	return leastCore, leastWakes
}

// resident returns the memory that both daemons hold, in bytes. What they share
// with each other counts for each; guest memory does not count: the rings of its
// queues are the guest's.
func (f *fleet) resident() int {
	f.t.Helper()
	n := 0
	for _, d := range []*daemon{f.wpt, f.soc} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/smaps", d.pid))
		if err != nil {
			f.t.Fatal(err)
		}
		guest := false
		for s := bufio.NewScanner(file); s.Scan(); {
			key, value, _ := strings.Cut(s.Text(), ":")
			switch {
			case strings.Contains(key, "-"): // ADDRESS-ADDRESS: a mapping begins
				guest = strings.Contains(value, "/memfd:memory-backend")
			case key == "Rss" && !guest:
				n += number(f.t, value) << 10
			}
		}
		file.Close()
	}
	return n
}

// field returns a number of a status file of a process.
func field(t testing.TB, path, name string) int {
	t.Helper()
	file, err := os.Open(path)
	if os.IsNotExist(err) {
		return 0 // the thread has ended
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		if key, value, _ := strings.Cut(s.Text(), ":"); key == name {
			return number(t, value)
		}
	}
	t.Fatalf("%s has no %s", path, name)
	return 0
}

// number returns the first word of s as a number.
func number(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Fields(s)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// further returns what a further queue pair takes, and of it a further slot, in
// bytes.
func (f *fleet) further() (pair, slot float64) {
	f.t.Helper()
	const pairs = 4
	at := []int{f.resident()}
	for i, depth := range []int{pairDepth, 8 * pairDepth} {
		for j := range pairs {
			f.pairs(uint16(2+i*pairs+j), depth)
		}
		at = append(at, f.resident())
	}
	count := float64(pairs * len(f.guests))
	pair, deep := float64(at[1]-at[0])/count, float64(at[2]-at[1])/count
	return pair, (deep - pair) / (7 * pairDepth)
}

// silence is nothing from guests and hosts.
func silence() { time.Sleep(time.Second) }

// TestIdle: what an idle machine is promised.
func TestIdle(t *testing.T) {
	t.Parallel()
	f := newFleet(t, api.DoorbellsTrap, idlePorts, idleHosts)
	if n := f.resident(); n > idleMemory {
		t.Errorf("%d drives take %d MiB", idlePorts+idleHosts, n>>20)
	}
	const few = 5 // wakeups a second: the scheduler's own
	core, wakes := f.idle(idleCPU, few, silence)
	if core > idleCPU || wakes > few {
		t.Errorf("silent drives take %.2f %% of a core and wake threads %.0f times a second", core*100, wakes)
	}
	if core, _ = f.idle(idleCPU, math.Inf(1), f.keepAlive); core > idleCPU {
		t.Errorf("with keep alives drives take %.2f %% of a core", core*100)
	}
	// The index of a slot takes two bytes more, and the heap grows in pages.
	const slack = 8
	if pair, slot := f.further(); pair > pairMemory || slot > slotMemory+slack {
		t.Errorf("a further queue pair takes %.0f bytes, a further slot %.0f", pair, slot)
	}
}

// BenchmarkIdle shows what idle drives take: cores in percent of one, wakeups of
// threads, and memory of both daemons. An operation is a second or so of it.
func BenchmarkIdle(b *testing.B) {
	const ports, hosts = idlePorts, idleHosts
	b.Run("trap+tcp", func(b *testing.B) {
		f := newFleet(b, api.DoorbellsTrap, ports, hosts)
		b.ReportMetric(float64(f.resident())/(1<<20), "MiB")
		f.report(b, "silent", silence)
		f.report(b, "keepalive", f.keepAlive)
		pair, slot := f.further()
		b.ReportMetric(pair/1024, "KiB/pair")
		b.ReportMetric(slot, "B/slot")
	})
	for _, n := range []int{1, ports} {
		b.Run(fmt.Sprintf("map%d", n), func(b *testing.B) {
			f := newFleet(b, api.DoorbellsMap, n, 0)
			core := f.report(b, "silent", silence)
			b.ReportMetric(core*100/float64(n), "core-%/port")
		})
	}
}

// report reports what both daemons use while f runs.
func (f *fleet) report(b *testing.B, name string, during func()) float64 {
	core, wakes := 0.0, 0.0
	during() // what the beginning has left is over then
	for range b.N {
		c, w := f.idle(math.Inf(1), math.Inf(1), during)
		core, wakes = core+c/float64(b.N), wakes+w/float64(b.N)
	}
	b.ReportMetric(core*100, name+"-core-%")
	b.ReportMetric(wakes, name+"-wakes/s")
	return core
}
