// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// This file is our own client, a process of its own, so that it can have a core of
// its own: it polls, as SPDK's does.

// clientJob is what the client is told to do.
type clientJob struct {
	Drives []string // folders of vfio-user ports that are loaded
	Idle   []string // that have a queue pair and nothing to do
	File   string   // instead of drives
	Job    bench.Job
	Warm   time.Duration // first, and not counted
}

// clientResult is what it has found.
type clientResult struct {
	IOs                  uint64
	Time                 time.Duration
	Mean, P50, P99, P999 time.Duration
}

// begun is the line that the client prints when it begins to count.
const begun = "begun"

// block is the bytes of a block of every volume.
const block = 512

// port is a drive, or the file: queues that the client polls.
type port interface {
	bench.Queue
	// poll ends what has ended, and has begin what was started.
	poll() error
	memory() []byte
	blocks() uint64
}

// client runs the job and prints the result.
func client(spec string) error {
	var j clientJob
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	runtime.LockOSThread()
	ports, err := open(&j)
	if err != nil {
		return err
	}
	if j.Warm > 0 {
		warm := j.Job
		warm.Time = j.Warm
		if _, err := j.run(ports, warm); err != nil {
			return err
		}
	}
	fmt.Println(begun)
	r, err := j.run(ports, j.Job)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// open makes the ports.
func open(j *clientJob) ([]port, error) {
	c := &clock{start: time.Now()}
	c.read()
	if j.File != "" {
		f, err := openFile(c, j.File, &j.Job)
		return []port{f}, err
	}
	mem, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 256 << 20, Sealed: true})
	if err != nil {
		return nil, err
	}
	for _, dir := range j.Idle {
		if _, err := openDrive(c, dir, mem, &bench.Job{Depth: 31, IOSize: block}); err != nil {
			return nil, err
		}
	}
	var ports []port
	for _, dir := range j.Drives {
		d, err := openDrive(c, dir, mem, &j.Job)
		if err != nil {
			return nil, err
		}
		ports = append(ports, d)
	}
	return ports, nil
}

// run runs a job on all ports to its end.
func (j *clientJob) run(ports []port, job bench.Job) (clientResult, error) {
	group := stats.NewGroup()
	left := len(ports)
	var workers []*bench.Worker
	for _, p := range ports {
		job := job
		job.Blocks = p.blocks()
		if err := job.Check(); err != nil {
			return clientResult{}, err
		}
		workers = append(workers, bench.NewWorker(&job, 0, p, p.memory(), group, func() { left-- }))
	}
	start := time.Now()
	for _, w := range workers {
		w.Begin()
	}
	for left > 0 {
		for _, p := range ports {
			if err := p.poll(); err != nil {
				return clientResult{}, err
			}
		}
	}
	r := clientResult{Time: time.Since(start)}
	for _, w := range workers {
		for st, n := range w.Result().Errors {
			return r, fmt.Errorf("%d I/Os have failed: %v", n, st)
		}
	}
	total := group.Total()
	d := total.Latency(stats.Reads).Add(total.Latency(stats.Writes))
	if r.IOs = d.Count(); r.IOs == 0 {
		return r, errors.New("no I/O has ended")
	}
	r.Mean, r.P50, r.P99, r.P999 = d.Sum()/time.Duration(r.IOs), d.Percentile(0.5), d.Percentile(0.99), d.Percentile(0.999)
	return r, nil
}

// clock is read once for all that a poll finds.
type clock struct {
	start time.Time
	now   time.Duration
}

func (c *clock) read()              { c.now = time.Since(c.start) }
func (c *clock) Now() time.Duration { return c.now }
