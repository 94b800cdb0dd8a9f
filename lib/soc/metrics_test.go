// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/metrics/metricstest"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestMetrics: what a machine does is on the page exactly, by volume, namespace
// and queue, and the page is what Prometheus wants.
func TestMetrics(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "mem", "size", "1M")
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s1", Volumes: []string{"d1"}})
	call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0"})
	n := r.bound("vm1", "s1")
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	q, err := n.CreatePair(1, 16, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4096)
	const reads = 5
	for range reads {
		if err := q.Read(1, 0, data, 512); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Write(1, 8, data[:512], 512); err != nil {
		t.Fatal(err)
	}
	if err := q.Read(1, 1<<30, data, 512); err == nil {
		t.Fatal("a read past the end succeeds")
	}
	page, err := r.client().GetText(context.Background(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	s := metricstest.Read(t, page)
	for _, tt := range []struct {
		want   float64
		family string
		labels string
	}{
		{1, "leapio_attached", ""},
		{1, "leapio_build_info", "runtime soc"},
		{1, "leapio_volume_ready", "volume d1 kind mem"},
		{1 << 20, "leapio_volume_size_bytes", "volume d1"},
		{reads + 1, "leapio_volume_commands_total", "volume d1 op read"},
		{1, "leapio_volume_errors_total", "volume d1 op read"},
		{reads * 4096, "leapio_volume_bytes_total", "volume d1 op read"},
		{512, "leapio_namespace_bytes_total", "subsystem s1 nsid 1 volume d1 op write"},
		{1, "leapio_namespace_commands_total", "subsystem s1 nsid 1 op write"},
		{0, "leapio_namespace_errors_total", "subsystem s1 nsid 1 op write"},
		{0, "leapio_namespace_commands_in_flight", "subsystem s1"},
		{reads + 2, "leapio_queue_commands_total", "port vm1 queue 1"},
		{1, "leapio_queue_errors_total", "port vm1 queue 1"},
		{2, "leapio_port_queues", "port vm1 subsystem s1"},
		{0, "leapio_listener_associations", "listener 1"},
		{0, "leapio_host_connections", ""},
		{1024, "leapio_host_connections_limit", ""},
	} {
		if got := s.Value(tt.family, strings.Fields(tt.labels)...); got != tt.want {
			t.Errorf("%s{%s} is %v, want %v", tt.family, tt.labels, got, tt.want)
		}
	}
	h := s.Find("leapio_namespace_latency_seconds", "subsystem", "s1", "op", "read").Histogram
	last := h.Bucket[len(h.Bucket)-1]
	if h.GetSampleCount() != reads+1 || last.GetCumulativeCount() != reads+1 || !math.IsInf(last.GetUpperBound(), 1) || h.GetSampleSum() <= 0 {
		t.Errorf("read latencies are %v", h)
	}
	for _, family := range []string{"process_open_fds", "process_max_fds", "process_resident_memory_bytes", "go_goroutines", "process_cpu_seconds_total"} {
		if s.Value(family) <= 0 {
			t.Errorf("%s is %v", family, s.Value(family))
		}
	}
	if len(s.Families["leapio_poller_turns_total"].GetMetric()) != 2 || s.Find("go_gc_duration_seconds").Summary == nil {
		t.Error("pollers or pauses are missing")
	}
}
