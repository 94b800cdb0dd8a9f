// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package metrics_test

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/metrics"
	"github.com/leapio/leapio/lib/metrics/metricstest"
)

// TestProcess: what the page says of this process is what the process has.
func TestProcess(t *testing.T) {
	read := func() metricstest.Page {
		t.Helper()
		var page metrics.Page
		if err := page.Process(); err != nil {
			t.Fatal(err)
		}
		return metricstest.Read(t, page.Bytes())
	}
	runtime.GC()
	before := read()
	for _, family := range []string{
		"go_gc_heap_live_bytes", "go_goroutines", "go_threads", "process_cpu_seconds_total", "process_max_fds", "process_memory_mappings",
		"process_open_fds", "process_resident_memory_bytes", "process_virtual_memory_bytes",
	} {
		if v := before.Value(family); v <= 0 {
			t.Errorf("%s is %v", family, v)
		}
	}
	if n := before.Find("go_gc_duration_seconds").GetSummary().GetSampleCount(); n == 0 {
		t.Error("no garbage collection")
	}

	const more, size = 100, 1 << 18 // many, so that what the Go runtime does meanwhile does not matter
	stop := make(chan struct{})
	defer close(stop)
	for range more {
		go func() { <-stop }()
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// Shared, so that neighbours are not merged.
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(b)
	}
	held := make([]byte, 8<<20)
	runtime.GC()
	after := read()
	runtime.KeepAlive(held)
	for _, tt := range []struct {
		family string
		rise   float64
	}{
		{"go_goroutines", more},
		{"process_open_fds", more},
		{"process_memory_mappings", more},
		{"process_virtual_memory_bytes", more * size},
		{"process_resident_memory_bytes", more * size / 2},
		{"go_gc_heap_live_bytes", float64(len(held))},
	} {
		if rise := after.Value(tt.family) - before.Value(tt.family); rise < tt.rise*0.9 {
			t.Errorf("%s rises by %v, want at least %v", tt.family, rise, tt.rise)
		}
	}
}
