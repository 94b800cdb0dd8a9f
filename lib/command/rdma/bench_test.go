// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/cli/clitest"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/stats"
)

// runBench runs bench and reads what it prints.
func runBench(t *testing.T, url string, args ...string) (report, clitest.Result) {
	t.Helper()
	words := append([]string{"bench", url, "-o", "json", "--hostnqn", hostNQN}, args...)
	result := clitest.Run(t, Command(), nil, words...)
	var r report
	if result.Stdout != "" {
		if err := json.Unmarshal([]byte(result.Stdout), &r); err != nil {
			t.Fatalf("%q: %v", result.Stdout, err)
		}
	}
	return r, result
}

// TestBench: every pattern does what it says, and what it has written is there.
func TestBench(t *testing.T) {
	s := serve(t)
	for _, pattern := range []string{"write", "randwrite", "mixed", "read", "randread"} { // the last read what was written
		for _, more := range [][]string{
			{"--bs", "4K", "--depth", "16", "--queues", "3"},
			{"--bs", "128K", "--depth", "4", "--header-digest", "--data-digest", "--passes", "3"},
			{"--bs", "512", "--offset", "1M", "--size", "130560", "--depth", "1"},
		} {
			r, result := runBench(t, s.url(testNQN), append([]string{"--pattern", pattern, "--overwrite", "--verify", "--passes", "2", "--seed", "7"}, more...)...)
			if result.Code != 0 {
				t.Errorf("%s %q: %d: %s", pattern, more, result.Code, result.Stderr)
				continue
			}
			passes := uint64(r.Verify.Passes)
			ios, blocks := passes*uint64(r.Size)/uint64(r.IOSize), passes*uint64(r.Size)/512
			writes := map[string]bool{"write": true, "randwrite": true, "mixed": true}[pattern]
			switch {
			case passes != 2 && passes != 3, r.Verify.Mismatches != 0, r.Verify.Blocks < blocks, r.Time <= 0, r.HeaderDigest != (passes == 3), r.Read.Max == 0, r.PerIO <= 0 && r.CPU > 0,
				writes && pattern != "mixed" && (r.Write.Commands != ios || r.Read.Commands != ios || r.Write.Bytes != passes*uint64(r.Size)),
				!writes && (r.Write.Commands != 0 || r.Read.Commands != ios),
				pattern == "mixed" && (r.Write.Commands != ios || r.Read.Commands <= ios):
				t.Errorf("%s %q: %+v", pattern, more, r)
			}
		}
	}
	// Without verification, until the time is up.
	r, result := runBench(t, s.url(testNQN), "--pattern", "mixed", "--read-percent", "50", "--overwrite", "--time", "100ms", "--queues", "2")
	if result.Code != 0 || r.Time < 100*time.Millisecond || r.Read.Commands == 0 || r.Write.Commands == 0 || r.Read.IOPS == 0 || r.Verify.Blocks != 0 || r.Seed == 0 {
		t.Errorf("%d: %+v, %s", result.Code, r, result.Stderr)
	}
}

// TestBenchFinds: what is wrong with a namespace is said, and is an error.
func TestBenchFinds(t *testing.T) {
	s := serve(t)
	url := s.url(testNQN)
	// What a null volume gives back is what was in the target's buffers before:
	// chance may have it be right.
	r, result := runBench(t, url+"?nsid=2", "--pattern", "randwrite", "--overwrite", "--verify", "--passes", "1", "--bs", "64K")
	if result.Code != fault.ExitFailure || r.Verify.Mismatches < 4096 || r.Verify.Blocks != 8192 || len(r.Verify.First) == 0 {
		t.Errorf("a volume that forgets: %d, %+v", result.Code, r.Verify)
	}
	text := clitest.Run(t, Command(), nil, "bench", url, "--nsid", "2", "--hostnqn", hostNQN, "--pattern", "write", "--overwrite", "--verify", "--passes", "1", "--seed", "7", "--size", "1K", "--bs", "512", "--depth", "1")
	// Here that is the write before: both go through the memory of the same entry.
	want := regexp.MustCompile(`^leap-rdma: bench (\S+): 1 of 2 blocks are not what was written\n` +
		`leap-rdma: bench (\S+): expected LBA 0, seed 7, pass 1, found LBA 1, seed 7, pass 1\n$`)
	if text.Code != fault.ExitFailure || !want.MatchString(text.Stderr) || !strings.HasPrefix(text.Stdout, "write of 512 B, 1 at a time, for ") {
		t.Errorf("%d: %s%s", text.Code, text.Stdout, text.Stderr)
	}
	r, result = runBench(t, url, "--nsid", "3", "--pattern", "mixed", "--overwrite", "--passes", "1", "--bs", "128K")
	if result.Code != fault.ExitFailure || len(r.Errors) != 1 || r.Errors[0].Name != "Namespace is Write Protected" || r.Errors[0].Count == 0 ||
		r.Errors[0].Count != r.Write.Errors || r.Write.Commands != r.Write.Errors || r.Read.Errors != 0 || !strings.Contains(result.Stderr, "commands have failed: Namespace is Write Protected") {
		t.Errorf("a volume that is protected: %d: %+v, %s", result.Code, r, result.Stderr)
	}
}

// TestBenchUsage: what cannot be done is refused before anything is done.
func TestBenchUsage(t *testing.T) {
	s := serve(t)
	for _, tt := range []struct {
		args string // URL is the subsystem's
		code int
		want string
	}{
		{"URL --pattern write", fault.ExitUsage, "--overwrite"},
		{"URL --pattern mixed --verify", fault.ExitUsage, "destroys data"},
		{"URL --pattern backwards", fault.ExitUsage, "randread"},
		{"URL?nsid=1 --nsid 2", fault.ExitUsage, "--nsid 2 is not the namespace of the URL"},
		{"URL --nsid 9", fault.ExitNotFound, "there is no namespace 9"},
		{"URL --bs 1000", fault.ExitUsage, "blocks of 512"},
		{"URL --bs 256K", fault.ExitUsage, "a command can carry 128K"},
		{"URL --bs 0", fault.ExitUsage, "--bs 0"},
		{"URL --depth 128", fault.ExitUsage, "room for 127 commands"},
		{"URL --queues 65", fault.ExitUnsupported, "64 I/O queues"},
		{"URL --offset 4M", fault.ExitUsage, "ends at 4M"},
		{"URL --offset 1M --size 4M", fault.ExitUsage, "ends at 4M"},
		{"URL --size 1000", fault.ExitUsage, "blocks of 512"},
		{"URL --size 4K --queues 2", fault.ExitUsage, "no place"},
		{"URL --time 0s", fault.ExitUsage, "neither a time"},
		{"URLx", fault.ExitNotFound, "there is no " + testNQN + "x"},
		{"URL --hostnqn " + testNQN, fault.ExitPermission, "does not allow host"},
		{"tcp://127.0.0.1", fault.ExitUsage, "leap-rdma discover"},
		{"rdma://127.0.0.1/" + testNQN, fault.ExitUnsupported, "rdma"},
		{"tcp://127.0.0.1:1/" + testNQN, fault.ExitPeer, "refused"},
	} {
		words := strings.Fields(strings.ReplaceAll(tt.args, "URL", s.url(testNQN)))
		r := clitest.Run(t, Command(), nil, append([]string{"bench", "--hostnqn", hostNQN}, words...)...)
		if r.Code != tt.code || !strings.Contains(r.Stderr, tt.want) || r.Stdout != "" {
			t.Errorf("%s: %d, %s%s, want %d, %s", tt.args, r.Code, r.Stdout, r.Stderr, tt.code, tt.want)
		}
	}
}

// TestBenchEnds: what was measured is printed also when it ends before its time,
// and why is said.
func TestBenchEnds(t *testing.T) {
	for _, tt := range []struct {
		name, nsid string
		end        func(*server, context.CancelFunc) // once it is under way
		code       int
		want       string
	}{
		{"interrupted", "1", func(_ *server, cancel context.CancelFunc) { cancel() }, fault.ExitInterrupted, "context canceled"},
		{"target ends", "1", func(s *server, _ context.CancelFunc) { s.target.Close() }, fault.ExitPeer, "the con"},
		{"no answer", "4", func(*server, context.CancelFunc) {}, fault.ExitTimeout, "a command was not answered within 200ms"},
		{"interrupted without an answer", "4", func(_ *server, cancel context.CancelFunc) { cancel() }, fault.ExitInterrupted, "context canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out, errs bytes.Buffer
			code := make(chan int)
			go func() {
				stdio := cli.IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }}
				code <- cli.Run(ctx, Command(), []string{"leap-rdma", "bench", s.url(testNQN), "--nsid", tt.nsid, "--hostnqn", hostNQN,
					"--time", "1h", "--timeout", "200ms", "--queues", "2", "-o", "json"}, stdio)
			}()
			waitFor(t, "both queues", func() bool {
				n := 0
				for _, a := range s.listener.Associations() {
					n += a.Queues
				}
				return n == 2
			})
			time.Sleep(20 * time.Millisecond)
			tt.end(s, cancel)
			got := <-code
			var r report
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Errorf("%q: %v", out.String(), err)
			}
			if got != tt.code || !strings.Contains(errs.String(), tt.want) || (tt.nsid == "1") != (r.Read.Commands > 0) || r.Time <= 0 {
				t.Errorf("%d: %s%+v", got, errs.String(), r)
			}
		})
	}
}

// counted counts the I/Os of a lane.
type counted struct {
	*lane
	begun atomic.Int64
}

func (c *counted) Start(io *bench.IO) bool {
	c.begun.Add(1)
	return c.lane.Start(io)
}

// TestBenchAllocations: an I/O allocates nothing, on the way out and back.
func TestBenchAllocations(t *testing.T) {
	s := serve(t)
	for _, ioSize := range []uint32{4096, 128 << 10} {
		for _, pattern := range []bench.Pattern{bench.RandRead, bench.RandWrite} {
			me := self{nqn: hostNQN, timeout: patience, headerDigest: true, dataDigest: true}
			addr, err := subsystemAddress(s.url(testNQN))
			if err != nil {
				t.Fatal(err)
			}
			p, err := me.connect(t.Context(), addr, keepAlive, nil)
			if err != nil {
				t.Fatal(err)
			}
			x, err := newSession(t.Context(), p, nsMem, 1)
			if err != nil {
				t.Fatal(err)
			}
			job := bench.Job{Pattern: pattern, Block: x.ns.block, IOSize: ioSize, Blocks: x.ns.blocks, Workers: 1, Depth: 8, Time: time.Hour, Verify: pattern == bench.RandWrite, Seed: 7}
			c := &counted{lane: x.lanes[0]}
			c.take(job.Depth)
			done := make(chan struct{})
			w := bench.NewWorker(&job, 0, c, make([]byte, job.Depth*int(ioSize)), stats.NewGroup(), func() { close(done) })
			_ = c.t.p.Post(w.Begin)
			some := func() {
				for end := c.begun.Load() + 300; c.begun.Load() < end; {
					time.Sleep(100 * time.Microsecond)
				}
			}
			// Now and then both sides look for peers that have stalled, which does
			// allocate: the best of several runs shows what I/Os cost.
			least := testing.AllocsPerRun(1, some)
			for tries := 1; least > 0 && tries < 20; tries++ {
				least = min(least, testing.AllocsPerRun(1, some))
			}
			if least != 0 {
				t.Errorf("%s of %d: %v allocations for 300 I/Os", pattern, ioSize, least)
			}
			_ = c.t.p.Post(w.Stop)
			<-done
			if r := w.Result(); r.Mismatches != 0 || len(r.Errors) != 0 {
				t.Errorf("%s of %d: %+v", pattern, ioSize, r)
			}
			x.Close()
		}
	}
}
