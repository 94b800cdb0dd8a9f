// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package metrics_test

import (
	"math"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/leapio/leapio/lib/metrics"
	"github.com/leapio/leapio/lib/metrics/metricstest"
	"github.com/leapio/leapio/lib/stats"
)

// TestPage: what is written is what Prometheus reads, whatever is in labels.
func TestPage(t *testing.T) {
	var page metrics.Page
	page.Family(metrics.Gauge, "empty_bytes", "Not there.", "x")
	nasty := []string{`"`, `\`, "\n", `a="b",c="d"} 1`, "ünïcode", "", "\xff"}
	g := page.Family(metrics.Gauge, "nasty_bytes", "Back\\slash,\nand a line.", "text")
	for i, text := range nasty {
		g.Add(float64(i), text)
	}
	page.Family(metrics.Counter, "large_total", "Large.").Add(1 << 53)
	var lat stats.Distribution
	set := stats.NewSet()
	took := []time.Duration{0, 1023, 1024, time.Millisecond, time.Hour}
	for _, d := range took {
		set.Record(stats.Read, stats.LatencyOf(d), 1, false)
	}
	total := set.Total()
	lat = total.Latency(stats.Reads)
	page.Family(metrics.Histogram, "took_seconds", "Took.", "op").Latency(lat, "read")
	page.Family(metrics.Summary, "paused_seconds", "Paused.").Quantiles([]metrics.Quantile{{0, 1}, {0.5, time.Second}, {1, time.Minute}}, time.Hour, 7)

	b := page.Bytes()
	families := metricstest.Read(t, b).Families
	if len(families) != 4 {
		t.Errorf("%d families in:\n%s", len(families), b)
	}
	nasty[len(nasty)-1] = "\ufffd"
	f := families["nasty_bytes"]
	if f.GetHelp() != "Back\\slash,\nand a line." || f.GetType() != dto.MetricType_GAUGE || len(f.Metric) != len(nasty) {
		t.Fatalf("read %v", f)
	}
	for i, m := range f.Metric {
		if got := m.Label[0].GetValue(); got != nasty[i] || m.Gauge.GetValue() != float64(i) {
			t.Errorf("%q is read as %q with %v", nasty[i], got, m.Gauge.GetValue())
		}
	}
	if got := families["large_total"].Metric[0].Counter.GetValue(); got != 1<<53 {
		t.Errorf("%v", got)
	}
	h := families["took_seconds"].Metric[0].Histogram
	if h.GetSampleCount() != uint64(len(took)) || h.GetSampleSum() != lat.Sum().Seconds() {
		t.Errorf("count %d, sum %v", h.GetSampleCount(), h.GetSampleSum())
	}
	before, ended := uint64(0), false
	for i, bucket := range h.Bucket {
		n, le := uint64(0), bucket.GetUpperBound()
		for _, d := range took {
			// A bound is where the next bucket begins.
			if d.Seconds() < le {
				n++
			}
		}
		if n != bucket.GetCumulativeCount() || n < before {
			t.Errorf("%d at most %v, want %d", bucket.GetCumulativeCount(), le, n)
		}
		before, ended = n, math.IsInf(le, 1)
		if i == 0 && le != 1.024e-6 {
			t.Errorf("the first bound is %v", le)
		}
	}
	if !ended || len(h.Bucket) != 26 {
		t.Errorf("%d buckets, the last is +Inf: %v", len(h.Bucket), ended)
	}
	s := families["paused_seconds"].Metric[0].Summary
	if s.GetSampleCount() != 7 || s.GetSampleSum() != 3600 || len(s.Quantile) != 3 || s.Quantile[2].GetValue() != 60 || s.Quantile[1].GetQuantile() != 0.5 {
		t.Errorf("read %v", s)
	}
}

func BenchmarkPage(b *testing.B) {
	var d stats.Distribution
	for i := range 200 {
		d = d.Add(stats.Distribution{{To: time.Duration(i) * time.Microsecond, N: 5}})
	}
	b.ReportAllocs()
	for range b.N {
		var page metrics.Page
		f := page.Family(metrics.Histogram, "took_seconds", "Took.", "volume", "op")
		for range 600 {
			f.Latency(d, "v1", "read")
		}
		b.SetBytes(int64(len(page.Bytes())))
	}
}
