// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// BenchmarkPause is how long a guest's I/O takes over what may happen to the
// daemons: one write of 4 KiB after another, with interrupts and shadow doorbells,
// to a volume of kind file. The daemons are the commands as they are shipped. An
// operation is one kill or upgrade, and its pause the longest write meanwhile; while
// nothing happens, there is what the machine itself does to a write.
func BenchmarkPause(b *testing.B) {
	programs := buildPrograms(b)
	kill := func(r *installed, pid int) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
	}
	upgrade := func(daemon string) func(*installed) func() {
		return func(r *installed) func() {
			return func() { r.run(daemon + " upgrade " + filepath.Join(r.programs, daemon)) }
		}
	}
	for _, tt := range []struct {
		name    string
		prepare func(*installed) (step func())
	}{
		{"nothing", func(r *installed) func() { return func() { r.run("leap-soc show") } }},
		{"killed", func(r *installed) func() {
			return func() {
				kill(r, r.pid("soc"))
				<-r.daemons["soc"].done // as a service manager waits
				r.serves("soc", r.launch("soc", r.command("leap-soc", "run")))
			}
		}},
		{"killed-with-standby", func(r *installed) func() {
			serving := r.pid("soc")
			next := r.launch("soc", r.command("leap-soc", "run", "--standby"))
			r.wait("it is on standby", func() bool { return strings.Contains(next.read(), "on standby") }, next)
			return func() {
				kill(r, serving)
				r.serves("soc", next)
			}
		}},
		{"leap-soc-upgrade", upgrade("leap-soc")},
		{"leap-wpt-upgrade", upgrade("leap-wpt")},
	} {
		b.Run(tt.name, func(b *testing.B) { benchPause(b, programs, tt.prepare) })
	}
}

func benchPause(b *testing.B, programs string, prepare func(*installed) (step func())) {
	r := newInstalled(b, programs)
	r.serves("wpt", r.launch("wpt", r.command("leap-wpt", "run")))
	r.serves("soc", r.launch("soc", r.command("leap-soc", "run")))
	r.run("leap-soc volume create d1 file size=16M")
	r.run("leap-qmap map vm1 d1")
	g := r.guest("vm1", vfiousertest.MemoryOptions{}, true)

	var (
		writes, longest atomic.Int64 // the longest, in nanoseconds
		stop            atomic.Bool
	)
	ended := make(chan error, 1)
	go func() {
		data := bytes.Repeat([]byte("leapio: "), 512)
		for at := uint64(0); !stop.Load(); at = (at + 8) % (16 << 20 / 512) {
			begin := time.Now()
			if err := g.pair.Write(1, at, data, 512); err != nil {
				ended <- err
				return
			}
			if took := int64(time.Since(begin)); took > longest.Load() {
				longest.Store(took)
			}
			writes.Add(1)
		}
		ended <- nil
	}()
	goOn := func() {
		b.Helper()
		const enough = 100 // the one that had to wait is among them
		seen := writes.Load()
		r.wait("the guest goes on", func() bool {
			select {
			case err := <-ended:
				b.Fatal("the guest: ", err)
			default:
			}
			return writes.Load() >= seen+enough
		}, nil)
	}
	pauses := make([]time.Duration, 0, b.N)
	for range b.N {
		step := prepare(r)
		goOn()
		longest.Store(0)
		step()
		goOn()
		pauses = append(pauses, time.Duration(longest.Load()))
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		b.Fatal("the guest: ", err)
	}
	slices.Sort(pauses)
	for name, share := range map[string]int{"p50-ms": 50, "p99-ms": 99, "max-ms": 100} {
		pause := pauses[(len(pauses)*share+99)/100-1]
		b.ReportMetric(float64(pause)/float64(time.Millisecond), name)
	}
	b.ReportMetric(0, "ns/op") // that of the commands says nothing
}
