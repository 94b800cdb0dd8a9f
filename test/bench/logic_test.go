// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/units"
)

// TestRows measures rows of every kind, for a moment, without a peer.
func TestRows(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("servers and client need a CPU each")
	}
	for _, name := range []string{"taskset", "stdbuf"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	r := runner{bin: filepath.Join(dir, "bin"), dir: dir, file: filepath.Join(dir, "data"), size: 8, runs: 1, time: 200 * time.Millisecond}
	build := exec.Command("go", "build", "-o", r.bin+"/", "github.com/leapio/leapio/cmd/leap-wpt", "github.com/leapio/leapio/cmd/leap-soc", "github.com/leapio/leapio/cmd/leap-rdma")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := makeFile(r.file, 16*units.MiB); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"vfio-user/null/randread/4k/qd32", "vfio-user/mem/write/128k/qd16", "tcp/null/randread/4k/qd1", "tcp/mem/randwrite/4k/qd32/digests",
		"virtual/raw/mixed/4k/qd64", "null, 8 drives x QD 32/1 drive x QD 256", "memory", "start-up to the first completion",
	} {
		rows := selected(table(), regexp.MustCompile("^"+want+"$"))
		if len(rows) != 1 {
			t.Fatalf("%d rows %s", len(rows), want)
		}
		row := &rows[0]
		t.Run(want, func(t *testing.T) {
			a, b, err := r.measure(row)
			if err != nil {
				t.Fatal(err)
			}
			all := a
			if row.b.server != theirs {
				all = append(all, b...)
			}
			if len(a) != 1 || row.b.server != theirs && len(b) != 1 || row.b.server == theirs && len(b) != 0 {
				t.Fatalf("%d and %d runs", len(a), len(b))
			}
			for _, s := range all {
				if !(s.Value > 0) || row.of != startUp && !(s.IOPS > 0 && s.Mean > 0 && s.P50 > 0 && s.P50 <= s.P99 && s.P99 <= s.P999) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// TestProcessors: what a process uses is counted.
func TestProcessors(t *testing.T) {
	for deadline := time.Now().Add(time.Minute); ; {
		used, err := processors([]int{os.Getpid(), os.Getpid()})
		if err != nil {
			t.Fatal(err)
		}
		if used >= 100*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v after a minute of work", used)
		}
	}
	if _, err := processors([]int{-1}); err == nil {
		t.Error("no error for a process that is not there")
	}
	if n, err := status(os.Getpid(), "RssAnon"); err != nil || !(n > 0) {
		t.Errorf("%v MiB resident, %v", n, err)
	}
}

// TestTable: names tell rows apart, also where benchstat cannot have every character.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range table() {
		id := identifier(r.name)
		if seen[id] || strings.ContainsAny(id, " /,") {
			t.Errorf("%s: not unique, or not an identifier", id)
		}
		seen[id] = true
		if r.a == r.b {
			t.Errorf("%s: both sides are the same", r.name)
		}
	}
}

func TestRatios(t *testing.T) {
	of := func(v ...float64) (all []sample) {
		for _, v := range v {
			all = append(all, sample{Value: v})
		}
		return all
	}
	a, b := of(2, 9, 6), of(4, 3, 3)
	for _, tt := range []struct {
		row   row
		want  float64
		good  bool
		print string
	}{
		{row{of: rate, need: 2}, 2, true, ">=2"},
		{row{of: rate, need: 2.5}, 2, false, ">=2.5"},
		{row{of: latency, need: 0.6}, 0.5, false, ">=0.6"},
		{row{of: memory, need: 2, atMost: true}, 2, true, "<=2"},
		{row{of: startUp, need: 0.2, atMost: true}, 2, false, "<=0.2"},
	} {
		got := median(ratios(&tt.row, a, b))
		if got != tt.want || tt.row.good(got) != tt.good || comparison(&tt.row) != tt.print {
			t.Errorf("%+v: %v, good %v, %s", tt.row, got, tt.row.good(got), comparison(&tt.row))
		}
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median %v", m)
	}
	if m := median(nil); !math.IsNaN(m) {
		t.Errorf("median of nothing %v", m)
	}
}

const perfOut = `Initializing NVMe Controllers
Attached to NVMeoF Controller at TCP (addr:127.0.0.1 subnqn:nqn.2026-11.io.x:mem)
Initialization complete. Launching workers.
========================================================
                                                                       Latency(us)
Device Information                          :       IOPS      MiB/s    Average        min        max
TCP (addr:127.0.0.1 subnqn:x) NSID 1 from core  1:  459049.33    1793.16     278.91     138.70    5882.11
========================================================
Total                                       :  459049.33    1793.16     278.91     138.70    5882.11

Summary latency data for TCP (addr:127.0.0.1 subnqn:nqn.2026-11.io.o from core 1:
=================================================================================
  1.00000% :   179.864us
 50.00000% :   250.862us
 99.00000% :   574.301us
 99.90000% :  4316.727us
 99.99000% :  5881.857us
`

func TestParsePerf(t *testing.T) {
	got, err := parsePerf(perfOut)
	want := sample{IOPS: 459049.33, Mean: 278910, P50: 250862, P99: 574301, P999: 4316727}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, cut := range []string{"Total", "99.90000%"} {
		if _, err := parsePerf(strings.ReplaceAll(perfOut, cut, "x")); err == nil {
			t.Errorf("without %s: no error", cut)
		}
	}
}

// TestConfig: the peer's configuration is a document, for each row.
func TestConfig(t *testing.T) {
	for _, r := range table() {
		if r.b.server != theirs {
			continue
		}
		p := spdk{size: 512, dir: "/d", file: "/f", port: "4420", side: &r.b}
		b, err := p.config()
		if err != nil || !json.Valid(b) {
			t.Fatalf("%s: %v", r.name, err)
		}
		want := fmt.Sprintf("bdev_%s_create", map[string]string{"null": "null", "mem": "malloc", "file": r.b.backend}[r.b.volume])
		if !strings.Contains(string(b), want) {
			t.Errorf("%s: no %s in %s", r.name, want, b)
		}
	}
}

// TestKeep: benchstat reads what is kept.
func TestKeep(t *testing.T) {
	var b strings.Builder
	rows := table()
	if err := keep(&b, &rows[0], &rows[0].a, []sample{{Value: 1e6, IOPS: 1e6, Mean: 5, P50: 4, P99: 9, P999: 11, CPU: 3, Busy: 2, GC: 1}}); err != nil {
		t.Fatal(err)
	}
	want := "BenchmarkTable/row=vfio-user_null_randread_4k_qd128/side=leapio 1 1e+06 IO/s 5 avg-ns 4 p50-ns 9 p99-ns 11 p99.9-ns 3 cpu-ns/op 2 busy-ns/op 1 gc\n"
	if b.String() != want {
		t.Errorf("%q", b.String())
	}
}
