// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/bench"
)

// load has a client load a side.
func (r *runner) load(row *row, s *side, d daemons) (got sample, err error) {
	var w where
	if d != nil {
		w = d.where()
	}
	var args []string
	var parse func(out string) (sample, error)
	begins, delay := begun, time.Duration(0)
	switch {
	case row.b.server == theirs && r.peer != "":
		args, parse = perf(r.peer, s, w, r.warm, r.time), parsePerf
		begins, delay = perfBegins, r.warm
	case s.path == tcp:
		parse = parseLeapRDMA
		begins = "" // it does not say so; connecting takes a few milliseconds
	default:
		parse = parseClient
	}
	if args == nil {
		if args, err = r.ourClient(s, w); err != nil {
			return got, err
		}
	}
	// Without stdbuf, what SPDK prints would come at its end.
	cmd := exec.Command("stdbuf", append([]string{"-oL"}, args...)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return got, err
	}
	var messages strings.Builder
	cmd.Stderr = &messages
	if err := cmd.Start(); err != nil {
		return got, err
	}
	u := usage{d: d, during: r.time * 9 / 10}
	defer func() { _, _ = u.end() }() // also where the client has failed
	if begins == "" {
		u.begin(0)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		if begins != "" && strings.Contains(lines.Text(), begins) {
			u.begin(delay)
			continue
		}
		out.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		return got, fmt.Errorf("%s: %w\n%s%s", filepath.Base(args[0]), err, out.String(), messages.String())
	}
	if got, err = parse(out.String()); err != nil {
		return got, err
	}
	used, err := u.end()
	perIO := func(d time.Duration) time.Duration {
		return time.Duration(float64(d) / float64(u.took) * float64(time.Second) / got.IOPS)
	}
	got.CPU, got.Busy, got.GC = perIO(used.cpu), perIO(used.busy), used.gc
	got.Value = got.IOPS
	if row.of == latency {
		got.Value = float64(got.Mean)
	}
	return got, err
}

// usage is what daemons use while a load runs.
type usage struct {
	d      daemons // nil: there are none
	during time.Duration
	done   chan struct{} // nil until it begins
	used   counters
	took   time.Duration
	err    error
}

// begin measures, beside the load, after a delay.
func (u *usage) begin(delay time.Duration) {
	u.done = make(chan struct{})
	go func() {
		defer close(u.done)
		time.Sleep(delay)
		start := time.Now()
		if u.d == nil {
			u.took = u.during
			return
		}
		before, err := u.d.counted()
		time.Sleep(u.during)
		after, err2 := u.d.counted()
		u.took, u.err = time.Since(start), errors.Join(err, err2)
		u.used = counters{cpu: after.cpu - before.cpu, busy: after.busy - before.busy, gc: after.gc - before.gc}
	}()
}

// end waits and returns what was found.
func (u *usage) end() (counters, error) {
	if u.done == nil {
		return counters{}, errors.New("the client has not said when it began")
	}
	<-u.done
	return u.used, u.err
}

// tcpDepth is how many commands a queue of an NVMe/TCP target has room for by
// default, SPDK's or ours. What its client has beyond that waits in the client.
const tcpDepth = 127

// ourClient is the command of our client for a side, on its CPU: leap-rdma where
// hosts connect, this program elsewhere.
func (r *runner) ourClient(s *side, w where) ([]string, error) {
	if s.path == tcp {
		args := []string{
			"taskset", "-c", clientCPU, filepath.Join(r.bin, "leap-rdma"), "bench", "tcp://" + w.addr + "/" + w.nqn, "-o", "json", "--overwrite",
			"--pattern", string(s.pattern), "--bs", strconv.FormatInt(int64(s.size), 10), "--depth", strconv.Itoa(min(s.depth, tcpDepth)),
		}
		if s.digests {
			args = append(args, "--header-digest", "--data-digest")
		}
		return append(args, "--time", r.time.String()), nil
	}
	j := clientJob{Warm: r.warm, Job: bench.Job{
		Pattern: s.pattern, ReadPercent: 50, Block: block, IOSize: uint32(s.size), Workers: 1, Depth: s.depth, Time: r.time, Seed: 1,
	}}
	if s.server == nobody {
		j.File = r.file
	} else {
		j.Drives, j.Idle = w.dirs[:s.drives], w.dirs[s.drives:]
	}
	spec, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	return []string{"taskset", "-c", clientCPU, self, "client", string(spec)}, err
}

// parseClient reads what the client prints.
func parseClient(out string) (sample, error) {
	var r clientResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return sample{}, err
	}
	return sample{IOPS: float64(r.IOs) / r.Time.Seconds(), Mean: r.Mean, P50: r.P50, P99: r.P99, P999: r.P999}, nil
}

// parseLeapRDMA reads what `leap-rdma bench` prints.
func parseLeapRDMA(out string) (sample, error) {
	type op struct {
		Commands uint64        `json:"commands"`
		Mean     time.Duration `json:"mean"`
		P50      time.Duration `json:"p50"`
		P99      time.Duration `json:"p99"`
		P999     time.Duration `json:"p99_9"`
	}
	var r struct {
		Time        time.Duration `json:"time"`
		Read, Write op
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return sample{}, err
	}
	o := r.Read
	if o.Commands == 0 {
		o = r.Write
	}
	if o.Commands == 0 || r.Time == 0 {
		return sample{}, fmt.Errorf("leap-rdma bench:\n%s", out)
	}
	mean := cmp.Or(o.Mean, o.P50)
	return sample{IOPS: float64(o.Commands) / r.Time.Seconds(), Mean: mean, P50: o.P50, P99: o.P99, P999: o.P999}, nil
}
