// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// census is what hosts take of a target.
type census struct {
	descriptors, goroutines, associations, connections, controllers, seats, guests int
	floors, buffers                                                                int // those that are taken
}

func (f *fixture) census(t *testing.T) census {
	t.Helper()
	c := census{descriptors: fabricstest.Descriptors(t), goroutines: runtime.NumGoroutine()}
	c.controllers, _ = f.sub.Controllers()
	f.target.mu.Lock()
	c.associations, c.connections, c.seats, c.guests = len(f.target.associations), f.target.connections, f.target.seats, len(f.target.guests)
	f.target.mu.Unlock()
	for _, a := range f.target.present() {
		for i, s := range f.target.shards {
			if err := s.p.Do(func() {
				if a.accounts[i].floored {
					c.floors++
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range f.target.shards {
		if err := s.p.Do(func() {
			c.buffers += len(s.pool.memory) - len(s.pool.large)*largeBuffer - len(s.pool.small)*smallBuffer
		}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// resident returns the memory of this process in bytes.
func resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// TestHostile has another process attack the target in every way it knows, while a host goes on and verifies what it has written, and others
// come and go. Afterwards all is as before. LEAP_HOSTILE is how hard, 1 by default.
func TestHostile(t *testing.T) {
	force := 1
	if words := os.Getenv("LEAP_HOSTILE"); words != "" {
		var err error
		if force, err = strconv.Atoi(words); err != nil || force < 1 {
			t.Fatalf("LEAP_HOSTILE=%s is not a number from 1 on", words)
		}
	}
	limits := DefaultLimits()
	limits.Memory, limits.Share, limits.Patience = 16<<20, 4<<20, 2*time.Second
	f := start(t, limits)
	const me = 200
	good := f.enabled(t, fabricstest.Options{Host: me})
	queues := []*fabricstest.Queue{f.io(t, good, fabricstest.Options{Host: me}, 1, 0), f.io(t, good, fabricstest.Options{Host: me, DataDigest: true, HeaderDigest: true}, 2, 0)}
	round := func(n int) {
		good.For(t)
		f.identify(t, good)
		for i, q := range queues {
			q.For(t)
			size := []int{512, 4096, 16384, 65536, 256 << 10, dma.MaxTransfer}[n%6]
			off := (48 + 4*i + n%4) << 20
			data := pattern(uint64(n), size)
			w := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, off, size), To: data}
			r := fabricstest.Request{SQE: rw(nvme.IORead, 1, off, size), From: make([]byte, size)}
			if st := q.Do(&w); st != 0 {
				t.Fatalf("round %d: write of %d bytes: %v", n, size, st)
			}
			if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, data) {
				t.Fatalf("round %d: read of %d bytes: %v, as written: %v", n, size, st, bytes.Equal(r.From, data))
			}
		}
	}
	for n := range 24 {
		round(n)
	}
	runtime.GC()
	debug.FreeOSMemory()
	before, memory := f.census(t), resident(t)

	n, most, newcomers, refused := 24, memory, 0, 0
	lines, end := f.attack(t, fmt.Sprintf("%d all", force), func() {
		round(n)
		most = max(most, resident(t))
		if n++; n%8 == 0 {
			if f.visitor(t) {
				newcomers++
			} else {
				refused++
			}
		}
	})
	at := f.census(t) // hosts that hang are still there
	end()
	t.Log(strings.Join(lines, "\n"))
	t.Logf("%d rounds, %d newcomers, %d of them let in at once; resident %d MiB before, at most %d MiB; %d lines logged; at the end %+v",
		n, newcomers+refused, newcomers, memory>>20, most>>20, f.log.n.Load(), at)
	round(n)
	if newcomers == 0 {
		t.Error("nobody was let in")
	}
	f.restored(t, before)
	if n := f.holder.count.Load(); n != 0 {
		t.Errorf("%d requests are held", n)
	}
	// Each message is logged the first time, the second, the fourth, and so on.
	if n := f.log.n.Load(); n > 300 {
		t.Errorf("%d lines were logged", n)
	}
	runtime.GC()
	debug.FreeOSMemory()
	now := resident(t)
	t.Logf("resident %d MiB afterwards", now>>20)
	if raceDetector {
		return // which has memory of its own
	}
	l := &f.target.limits
	bound := l.Connections*(64<<10+l.QueueEntries*(max(l.InCapsule, adminCapsule)+2<<10)) + len(f.target.shards)*(l.Memory+l.Associations*dma.MaxTransfer)
	if most > memory+bound {
		t.Errorf("%d MiB were resident, %d before: more than %d MiB for hosts", most>>20, memory>>20, bound>>20)
	}
	// What was used of the buffers stays.
	if kept := len(f.target.shards) * l.Memory; now > memory+kept+32<<20 {
		t.Errorf("%d MiB are resident afterwards, %d before", now>>20, memory>>20)
	}
}

// attack has another process attack the target, and calls meanwhile again and again until that is done. What that process has opened last
// is open until end is called.
func (f *fixture) attack(t *testing.T, words string, meanwhile func()) (lines []string, end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s", attackEnv, f.addr, words))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	over := make(chan struct{})
	go func() {
		defer close(over)
		for in := bufio.NewScanner(stdout); in.Scan() && in.Text() != "done"; {
			lines = append(lines, in.Text())
		}
		done.Store(true)
	}()
	ended := false
	end = func() {
		if !ended {
			ended = true
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("the attack: %v", err)
			}
		}
	}
	t.Cleanup(end)
	for !done.Load() {
		meanwhile()
	}
	<-over
	return lines, end
}

// restored waits until hosts take what they took before.
func (f *fixture) restored(t *testing.T, before census) {
	t.Helper()
	fabricstest.WaitFor(t, fmt.Sprintf("all to be as before, %+v", before), func() bool {
		after := f.census(t)
		// Goroutines and descriptors of the test itself may have gone, too.
		after.descriptors, after.goroutines = max(after.descriptors, before.descriptors), max(after.goroutines, before.goroutines)
		return after == before
	})
}

// TestManyConnections has 10,000 connections at once, which may all be there, and few more.
func TestManyConnections(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max < 2*manyConnections {
		t.Skipf("not run: this process may have %d descriptors", files.Max) // Go has raised the soft limit to it
	}
	f := start(t, Limits{Connections: manyConnections + 2})
	good := f.enabled(t, fabricstest.Options{})
	q := f.io(t, good, fabricstest.Options{}, 1, 0)
	runtime.GC()
	debug.FreeOSMemory()
	before, memory := f.census(t), resident(t)
	lines, end := f.attack(t, "1 connections", func() {
		q.For(t)
		f.verify(t, q, 0, dma.MaxTransfer, false)
	})
	if want := fmt.Sprintf("%d connections", manyConnections); len(lines) == 0 || lines[0] != want {
		t.Fatalf("%q, want %s", lines, want)
	}
	fabricstest.WaitFor(t, "the connections", func() bool { return f.census(t).connections == manyConnections+2 })
	now := resident(t)
	t.Logf("%s; resident %d MiB before, %d MiB with the connections", strings.Join(lines, ", "), memory>>20, now>>20)
	if most := manyConnections * 12 << 10; !raceDetector && now > memory+most {
		t.Errorf("%d MiB more are resident, want at most %d", (now-memory)>>20, most>>20)
	}
	for range 3 {
		if !f.visitor(t) {
			t.Error("a host is kept out")
		}
	}
	f.verify(t, q, 1<<20, dma.MaxTransfer, false)
	end()
	f.restored(t, before)
}

// visitor is a host that comes, reads, and goes; it reports whether it was let in at once.
func (f *fixture) visitor(t *testing.T) (ok bool) {
	t.Helper()
	defer func() {
		if e := recover(); e != nil && e != (abandoned{}) {
			panic(e)
		}
	}()
	const me = 201
	a := fabricstest.Initialize(reporter{}, f.addr, fabricstest.Options{Host: me})
	defer a.Conn.Close()
	cqe := a.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
	if cqe.StatusField() != 0 {
		return false
	}
	a.For(t)
	a.Configure(fabricstest.Enabled)
	a.WaitStatus(nvme.CSTS.RDY)
	f.identify(t, a)
	return true
}
