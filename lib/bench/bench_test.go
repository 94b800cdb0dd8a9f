// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
)

// TestOrder: an order has each number once, and another key is another order.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 5000).Draw(t, "n")
		o := newOrder(n, true)
		o.key = rapid.Uint64().Draw(t, "key") | 1<<63
		var all []uint64
		for i := range n {
			all = append(all, o.at(i))
		}
		before := slices.Clone(all)
		slices.Sort(all)
		for i, x := range all {
			if x != uint64(i) {
				t.Fatalf("%d of %d is %d", i, n, x)
			}
		}
		o.key = ^o.key | 1<<63
		moved := 0
		for i := range n {
			if o.at(i) != before[i] {
				moved++
			}
		}
		if n > 100 && moved < int(n/2) {
			t.Fatalf("another order has %d of %d numbers elsewhere", moved, n)
		}
	})
}

// TestStamp: a stamp is what was put, and no bit of a block can change unseen.
func TestStamp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := stamp{rapid.Uint64().Draw(t, "address"), rapid.Uint32Min(1).Draw(t, "seed"), rapid.Uint32Min(1).Draw(t, "pass")}
		block := make([]byte, rapid.SampledFrom([]int{512, 4096}).Draw(t, "block"))
		s.put(block)
		if !s.check(block) || !(stamp{address: s.address}).check(block) {
			t.Fatalf("%v is not what it is", s)
		}
		for _, other := range []stamp{{s.address + 1, s.seed, s.pass}, {s.address, s.seed ^ 1<<31, s.pass}, {s.address, s.seed, s.pass ^ 1<<30}} {
			if other.check(block) {
				t.Fatalf("%v is taken for %v", s, other)
			}
		}
		bit := rapid.IntRange(0, 8*len(block)-1).Draw(t, "bit")
		block[bit/8] ^= 1 << (bit % 8)
		if s.check(block) {
			t.Fatalf("bit %d is another one, unseen", bit)
		}
	})
}

const testBlock = 512

// medium carries out I/Os in memory, when and in the order that the test says.
type medium struct {
	t       testing.TB
	data    []byte
	seen    [][]uint64 // by I/O: LBAs, in the order they were begun
	writes  []bool
	flight  []*IO
	deepest int
	clock   time.Duration
	step    time.Duration // of the clock at each look
	broken  bool
	spoil   func(*IO) bool        // what becomes of a write instead, if true
	status  func(*IO) nvme.Status // nil: success
}

func (m *medium) Now() time.Duration { m.clock += m.step; return m.clock }

func (m *medium) Start(io *IO) bool {
	if m.broken {
		return false
	}
	m.seen = append(m.seen, []uint64{io.LBA, io.LBA + uint64(len(io.Data)/testBlock)})
	m.writes = append(m.writes, io.Write)
	m.flight = append(m.flight, io)
	m.deepest = max(m.deepest, len(m.flight))
	return true
}

// end carries out an I/O in flight and ends it.
func (m *medium) end(i int) {
	io := m.flight[i]
	m.flight = slices.Delete(m.flight, i, i+1)
	if m.status != nil {
		if st := m.status(io); st != nvme.StatusSuccess {
			io.End(st)
			return
		}
	}
	at := m.data[io.LBA*testBlock:][:len(io.Data)]
	switch {
	case io.Write && m.spoil != nil && m.spoil(io):
	case io.Write:
		copy(at, io.Data)
	default:
		copy(io.Data, at)
	}
	io.End(nvme.StatusSuccess)
}

// run runs a job to its end, one worker after the other, with I/Os ending in an
// order that looks random. each is called before every end.
func run(t testing.TB, job Job, m *medium, each func(*Worker)) (Result, stats.Total) {
	t.Helper()
	if err := job.Check(); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	group := stats.NewGroup()
	all := Result{Errors: map[nvme.Status]uint64{}}
	for i := range job.Workers {
		finished := 0
		w := NewWorker(&job, i, m, make([]byte, job.Depth*int(job.IOSize)), group, func() { finished++ })
		w.Begin()
		for len(m.flight) > 0 {
			if each != nil {
				each(w)
			}
			if m.broken {
				io := m.flight[0]
				m.flight = m.flight[1:]
				io.Lose()
				continue
			}
			m.end(rnd.IntN(len(m.flight)))
		}
		if finished != 1 {
			t.Fatalf("worker %d has finished %d times", i, finished)
		}
		r := w.Result()
		all.Passes = max(all.Passes, r.Passes)
		all.Checked += r.Checked
		all.Mismatches += r.Mismatches
		all.Shown = append(all.Shown, r.Shown...)
		for st, n := range r.Errors {
			all.Errors[st] += n
		}
	}
	return all, group.Total()
}

func newMedium(t testing.TB, blocks int) *medium {
	return &medium{t: t, data: make([]byte, blocks*testBlock), step: 100}
}

// TestPlaces: every pattern visits each place of the region once a pass, and
// nothing else, with as much in flight as asked for.
func TestPlaces(t *testing.T) {
	for _, pattern := range []Pattern{Read, Write, RandRead, RandWrite, Mixed} {
		for _, workers := range []int{1, 3} {
			m := newMedium(t, 1000)
			job := Job{Pattern: pattern, ReadPercent: 30, Block: testBlock, IOSize: 4 * testBlock, First: 10, Blocks: 503, Workers: workers, Depth: 7, Passes: 3, Seed: 5}
			_, total := run(t, job, m, nil)
			visits, writes := map[uint64]int{}, 0
			for i, at := range m.seen {
				for lba := at[0]; lba < at[1]; lba++ {
					visits[lba]++
				}
				if m.writes[i] {
					writes++
				}
			}
			for lba := range uint64(1000) {
				want := 3
				if lba < 10 || lba >= 10+500 {
					want = 0
				}
				if visits[lba] != want {
					t.Errorf("%s, %d workers: block %d was visited %d times, want %d", pattern, workers, lba, visits[lba], want)
				}
			}
			if m.deepest != 7 {
				t.Errorf("%s: depth %d", pattern, m.deepest)
			}
			got := [2]int{int(total.Commands(stats.Read)), int(total.Commands(stats.Write))}
			if want := [2]int{len(m.seen) - writes, writes}; got != want || len(m.seen) != 375 || total.Bytes(stats.Read)+total.Bytes(stats.Write) != 375*4*testBlock {
				t.Errorf("%s: %d reads and writes were recorded of %d", pattern, got, want)
			}
			switch {
			case pattern == Mixed && (writes < 200 || writes > 320), pattern != Mixed && pattern.Writes() != (writes == 375):
				t.Errorf("%s: %d writes of 375", pattern, writes)
			}
			inOrder := slices.IsSortedFunc(m.seen[:125/workers], func(a, b []uint64) int { return int(a[0]) - int(b[0]) })
			if inOrder == pattern.random() {
				t.Errorf("%s: in order: %v", pattern, inOrder)
			}
		}
	}
}

// TestVerify: what was written is found, pass after pass and at an end in the
// middle of one, and read-only runs find it later.
func TestVerify(t *testing.T) {
	for _, pattern := range []Pattern{Write, RandWrite, Mixed} {
		for _, limit := range []time.Duration{0, 3 * time.Microsecond, 60 * time.Microsecond, 91 * time.Microsecond} {
			m := newMedium(t, 600)
			job := Job{Pattern: pattern, ReadPercent: 50, Block: testBlock, IOSize: 2 * testBlock, Blocks: 600, Workers: 2, Depth: 5, Time: limit, Passes: 3, Verify: true, Seed: 9}
			r, total := run(t, job, m, nil)
			wrote := total.Commands(stats.Write)
			if r.Mismatches != 0 || r.Checked == 0 || wrote == 0 || limit == 0 && (wrote != 900 || r.Passes != 3 || r.Checked < 1800) {
				t.Errorf("%s until %v: %+v after %d writes", pattern, limit, r, wrote)
			}
			if limit != 0 {
				continue
			}
			for _, seed := range []uint32{0, 9} {
				again := Job{Pattern: RandRead, Block: testBlock, IOSize: 4 * testBlock, Blocks: 600, Workers: 1, Depth: 3, Passes: 1, Verify: true, Seed: seed}
				if r, _ := run(t, again, m, nil); r.Mismatches != 0 || r.Checked != 600 {
					t.Errorf("%s, read again: %+v", pattern, r)
				}
			}
			if r, _ := run(t, Job{Pattern: Read, Block: testBlock, IOSize: testBlock, Blocks: 600, Workers: 1, Depth: 3, Passes: 1, Verify: true, Seed: 8}, m, nil); r.Mismatches != 600 || len(r.Shown) != maxShown {
				t.Errorf("%s, of another seed: %+v", pattern, r)
			}
		}
	}
}

// TestMismatches: whatever a medium does wrong is found and described.
func TestMismatches(t *testing.T) {
	const bad = 77 // the block it happens to
	at := func(m *medium, lba uint64) []byte { return m.data[lba*testBlock:][:testBlock] }
	for _, tt := range []struct {
		name      string
		passes    uint32
		spoil     func(m *medium, io *IO) bool
		mismatch  uint64
		want      Mismatch
		foundPart string
	}{
		{"a flipped bit", 1, func(m *medium, io *IO) bool { copy(at(m, io.LBA), io.Data); at(m, bad)[300] ^= 4; return true }, 1,
			Mismatch{LBA: bad, Expected: "LBA 77, seed 9, pass 1"}, "LBA 77, seed 9, pass 1, and the checksum "},
		{"a lost write", 2, func(m *medium, io *IO) bool { return bad == io.LBA && !(stamp{bad, 9, 1}).check(io.Data) }, 1,
			Mismatch{LBA: bad, Expected: "LBA 77, seed 9, pass 2"}, "LBA 77, seed 9, pass 1"},
		{"a write that went astray", 1, func(m *medium, io *IO) bool { copy(at(m, bad+1), io.Data); return true }, 2,
			Mismatch{LBA: bad, Expected: "LBA 77, seed 9, pass 1"}, "no stamp, but 00 00 "},
		{"a write to two places", 1, func(m *medium, io *IO) bool { copy(at(m, bad), io.Data); copy(at(m, bad-20), io.Data); return true }, 1,
			Mismatch{LBA: bad - 20, Expected: "LBA 57, seed 9, pass 1"}, "LBA 77, seed 9, pass 1"},
		{"nothing at all", 1, func(m *medium, io *IO) bool { return true }, 1,
			Mismatch{LBA: bad, Expected: "LBA 77, seed 9, pass 1"}, "no stamp, but 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 ..."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMedium(t, 200)
			m.spoil = func(io *IO) bool { return io.LBA == bad && tt.spoil(m, io) }
			job := Job{Pattern: Write, Block: testBlock, IOSize: testBlock, Blocks: 200, Workers: 1, Depth: 1, Passes: tt.passes, Verify: true, Seed: 9}
			if tt.name == "a write that went astray" {
				job.Pattern = RandWrite // the right one may come before
			}
			if tt.name == "a write to two places" {
				job.Depth = 4
			}
			r, _ := run(t, job, m, nil)
			if r.Mismatches < 1 || r.Mismatches > tt.mismatch || uint64(len(r.Shown)) != r.Mismatches {
				t.Fatalf("%+v, want %d", r, tt.mismatch)
			}
			got := r.Shown[slices.IndexFunc(r.Shown, func(x Mismatch) bool { return x.LBA == tt.want.LBA })]
			if got.Expected != tt.want.Expected || !strings.HasPrefix(got.Found, tt.foundPart) {
				t.Errorf("got %+v, want %+v, %s", got, tt.want, tt.foundPart)
			}
		})
	}
}

// TestMixedMismatch: the reads of a mixed load find what is wrong before the
// pass is read back.
func TestMixedMismatch(t *testing.T) {
	m := newMedium(t, 4000)
	m.spoil = func(io *IO) bool { return io.LBA%2 == 0 }
	job := Job{Pattern: Mixed, ReadPercent: 50, Block: testBlock, IOSize: testBlock, Blocks: 4000, Workers: 1, Depth: 8, Passes: 1, Verify: true, Seed: 9}
	early := uint64(0)
	r, _ := run(t, job, m, func(w *Worker) {
		if w.stage == loading {
			early = w.mismatches
		}
	})
	if early == 0 || r.Mismatches < early+2000 {
		t.Errorf("%d mismatches, %d of them early", r.Mismatches, early)
	}
}

// TestFailures: I/Os that fail are counted by status; a block whose write has
// failed is not verified.
func TestFailures(t *testing.T) {
	m := newMedium(t, 300)
	m.status = func(io *IO) nvme.Status {
		switch {
		case io.Write && io.LBA%3 == 0:
			return nvme.StatusWriteFault | nvme.StatusDNR
		case !io.Write && io.LBA == 100:
			return nvme.StatusUnrecoveredReadError
		}
		return nvme.StatusSuccess
	}
	job := Job{Pattern: RandWrite, Block: testBlock, IOSize: testBlock, Blocks: 300, Workers: 2, Depth: 4, Passes: 2, Verify: true, Seed: 9}
	r, total := run(t, job, m, nil)
	want := map[nvme.Status]uint64{nvme.StatusWriteFault: 200, nvme.StatusUnrecoveredReadError: 2}
	if !maps.Equal(r.Errors, want) || r.Mismatches != 0 || r.Checked != 2*(200-1) || total.Errors(stats.Writes) != 200 || total.Errors(stats.Reads) != 2 {
		t.Errorf("%+v, %d and %d errors", r, total.Errors(stats.Writes), total.Errors(stats.Reads))
	}
}

// TestEnds: the load ends when it is told to, and when the queue breaks, without
// beginning anything more.
func TestEnds(t *testing.T) {
	for _, verify := range []bool{false, true} {
		job := Job{Pattern: RandWrite, Block: testBlock, IOSize: testBlock, Blocks: 300, Workers: 1, Depth: 8, Time: time.Hour, Verify: verify, Seed: 9}
		for name, end := range map[string]func(*medium, *Worker){
			"stop":  func(_ *medium, w *Worker) { w.Stop() },
			"break": func(m *medium, _ *Worker) { m.broken = true },
		} {
			m := newMedium(t, 300)
			begun := 0
			run(t, job, m, func(w *Worker) {
				if len(m.seen) > 1000 && begun == 0 {
					end(m, w)
					begun = len(m.seen)
				}
			})
			if begun == 0 || len(m.seen) != begun {
				t.Errorf("%s, verify %v: %d I/Os, %d when it was told", name, verify, len(m.seen), begun)
			}
		}
	}
}

// TestTime: nothing is begun when the time is up.
func TestTime(t *testing.T) {
	m := newMedium(t, 300)
	m.step = time.Millisecond
	job := Job{Pattern: RandRead, Block: testBlock, IOSize: testBlock, Blocks: 300, Workers: 1, Depth: 4, Time: time.Second, Seed: 9}
	_, total := run(t, job, m, nil)
	// The clock is read twice for each I/O.
	if n := total.Commands(stats.Read); n < 490 || n > 510 {
		t.Errorf("%d I/Os", n)
	}
	if max := total.Latency(stats.Reads).Max(); max == 0 {
		t.Error("nothing took any time")
	}
}

// TestCheck: what makes no sense is refused.
func TestCheck(t *testing.T) {
	good := Job{Pattern: Write, Block: 512, IOSize: 4096, Blocks: 64, Workers: 8, Depth: 1, Passes: 1, Verify: true, Seed: 1}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Job){
		"block":      func(j *Job) { j.Block = 520 },
		"size":       func(j *Job) { j.IOSize = 1000 },
		"no size":    func(j *Job) { j.IOSize = 0 },
		"no depth":   func(j *Job) { j.Depth = 0 },
		"no workers": func(j *Job) { j.Workers = 0 },
		"no room":    func(j *Job) { j.Blocks = 63 },
		"no end":     func(j *Job) { j.Passes = 0 },
		"percent":    func(j *Job) { j.ReadPercent = 101 },
		"beyond":     func(j *Job) { j.First = ^uint64(0) - 3 },
		"no seed":    func(j *Job) { j.Seed = 0 },
	} {
		j := good
		change(&j)
		if err := j.Check(); fault.KindOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAllocations: an I/O allocates nothing, whatever the pattern.
func TestAllocations(t *testing.T) {
	for _, pattern := range []Pattern{Read, RandWrite, Mixed} {
		for _, verify := range []bool{false, true} {
			job := Job{Pattern: pattern, ReadPercent: 50, Block: testBlock, IOSize: 8 * testBlock, Blocks: 800, Workers: 1, Depth: 4, Time: time.Hour, Verify: verify, Seed: 9}
			m := &instant{data: make([]byte, 800*testBlock)}
			w := NewWorker(&job, 0, m, make([]byte, 4*8*testBlock), nil, func() {})
			w.Begin()
			all := func() {
				for range 1000 {
					m.end()
				}
			}
			all()
			if verify && pattern == Read {
				w.mismatches, w.shown = 0, w.shown[:maxShown] // nothing was written
			}
			if n := testing.AllocsPerRun(10, all); n != 0 {
				t.Errorf("%s, verify %v: %v allocations for 1000 I/Os", pattern, verify, n)
			}
			if verify && pattern != Read && (w.checked == 0 || w.mismatches != 0) {
				t.Errorf("%s: %+v", pattern, w.Result())
			}
		}
	}
}

// instant is a queue without faults that ends I/Os in the order they came.
type instant struct {
	data  []byte
	queue [8]*IO
	n     int
	clock time.Duration
}

func (m *instant) Now() time.Duration { m.clock++; return m.clock }
func (m *instant) Start(io *IO) bool  { m.queue[m.n] = io; m.n++; return true }

func (m *instant) end() {
	io := m.queue[0]
	copy(m.queue[:], m.queue[1:m.n])
	m.n--
	at := m.data[io.LBA*testBlock:][:len(io.Data)]
	if io.Write {
		copy(at, io.Data)
	} else {
		copy(io.Data, at)
	}
	io.End(nvme.StatusSuccess)
}

// Benchmark is what an I/O costs that takes no time.
func Benchmark(b *testing.B) {
	for _, pattern := range []Pattern{Read, RandRead, Write, Mixed} {
		for _, verify := range []bool{false, true} {
			name := string(pattern)
			if verify {
				if pattern == RandRead {
					continue
				}
				name += "/verify"
			}
			b.Run(name, func(b *testing.B) {
				const blocks = 64 << 10
				job := Job{Pattern: pattern, ReadPercent: 50, Block: testBlock, IOSize: 4096, Blocks: blocks, Workers: 1, Depth: 4, Time: time.Hour, Verify: verify, Seed: 9}
				m := &instant{data: make([]byte, blocks*testBlock)}
				w := NewWorker(&job, 0, m, make([]byte, 4*4096), nil, func() {})
				w.shown = make([]Mismatch, maxShown)
				w.Begin()
				b.SetBytes(4096)
				for b.Loop() {
					m.end()
				}
			})
		}
	}
}
