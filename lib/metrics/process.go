// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Process adds what the kernel and the Go runtime say of this process, under the
// names that Prometheus' own clients have for the same, where they have it.
func (p *Page) Process() error {
	p.goRuntime()
	if err := p.cpu(); err != nil {
		return err
	}
	if err := p.files(); err != nil {
		return err
	}
	return p.memory()
}

func (p *Page) goRuntime() {
	gc := debug.GCStats{PauseQuantiles: make([]time.Duration, 5)}
	debug.ReadGCStats(&gc)
	var quantiles []Quantile
	for i, pause := range gc.PauseQuantiles {
		quantiles = append(quantiles, Quantile{Share: float64(i) / float64(len(gc.PauseQuantiles)-1), Value: pause})
	}
	p.Family(Summary, "go_gc_duration_seconds", "Pauses of the garbage collector, during which pollers pause, too; quantiles of the latest 256.").
		Quantiles(quantiles, gc.PauseTotal, uint64(gc.NumGC))
	live := []gometrics.Sample{{Name: "/gc/heap/live:bytes"}}
	gometrics.Read(live)
	if live[0].Value.Kind() == gometrics.KindUint64 {
		p.Family(Gauge, "go_gc_heap_live_bytes", "Heap in use, as the last garbage collection found it.").Add(float64(live[0].Value.Uint64()))
	}
	p.Family(Gauge, "go_goroutines", "Goroutines.").Add(float64(runtime.NumGoroutine()))
	p.Family(Gauge, "go_info", "The Go release; always 1.", "version").Add(1, runtime.Version())
	threads, _ := runtime.ThreadCreateProfile(nil)
	p.Family(Gauge, "go_threads", "Threads that the Go runtime has made.").Add(float64(threads))
}

// cpu asks getrusage(2).
func (p *Page) cpu() error {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return fmt.Errorf("getrusage: %w", err)
	}
	p.Family(Counter, "process_cpu_seconds_total", "CPU time, of the process and the kernel for it.").
		Add(time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds())
	return nil
}

func (p *Page) files() error {
	fds, err := OpenFiles()
	if err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	p.Family(Gauge, "process_open_fds", "Open file descriptors.").Add(float64(fds))
	p.Family(Gauge, "process_max_fds", "File descriptors that may be open, RLIMIT_NOFILE.").Add(float64(limit.Cur))
	return nil
}

// OpenFiles counts the open file descriptors of this process.
func OpenFiles() (int, error) {
	all, err := os.ReadDir("/proc/self/fd")
	return max(len(all)-1, 0), err // without that of the folder
}

// memory asks proc_pid_statm(5) and proc_pid_maps(5).
func (p *Page) memory() error {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	fields := bytes.Fields(statm)
	if len(fields) < 2 {
		return fmt.Errorf("/proc/self/statm: %q", statm)
	}
	virtual, verr := strconv.ParseUint(string(fields[0]), 10, 64)
	resident, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err := errors.Join(verr, err); err != nil {
		return fmt.Errorf("/proc/self/statm: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	page := float64(os.Getpagesize())
	p.Family(Gauge, "process_resident_memory_bytes", "Resident memory, that of guests which was used among it.").Add(float64(resident) * page)
	p.Family(Gauge, "process_virtual_memory_bytes", "Address space.").Add(float64(virtual) * page)
	p.Family(Gauge, "process_memory_mappings", "Mappings of memory, of which vm.max_map_count allows so many.").Add(float64(bytes.Count(maps, []byte{'\n'})))
	return nil
}
