// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/units"
)

// measurement is what bench is asked for.
type measurement struct {
	self
	job       bench.Job
	nsid      uint32
	ioSize    units.Size
	offset    units.Size
	size      units.Size // 0: up to the end
	overwrite bool
}

// Limits of what can be asked for; the controller has its own.
const (
	maxQueues = 1024
	maxDepth  = 1024
)

func benchVerb() *cli.Command {
	m := measurement{
		ioSize: 4 * units.KiB, nsid: 1,
		job: bench.Job{Pattern: bench.RandRead, ReadPercent: 70, Workers: 1, Depth: 32, Time: 10 * time.Second},
	}
	return &cli.Command{
		Name:  "bench",
		Usage: "measure, and verify, a namespace as a host sees it",
		Help: "The patterns write, randwrite and mixed destroy data and need --overwrite. With\n" +
			"--verify, blocks that are written get stamps and are read back, and reads are held\n" +
			"against stamps that are there.",
		Args: "URL",
		Flags: append(append(m.flags(), m.digestFlags()...), []cli.Flag{
			{Name: "pattern", Arg: "read|write|randread|randwrite|mixed", Usage: "what to do; without it, randread", Value: cli.Enum(&m.job.Pattern, bench.Read, bench.Write, bench.RandRead, bench.RandWrite, bench.Mixed)},
			{Name: "read-percent", Arg: "N", Usage: "how many of the I/Os of mixed are reads; without it, 70", Value: cli.Int(&m.job.ReadPercent, 0, 100)},
			{Name: "bs", Arg: "SIZE", Usage: "of each I/O; without it, 4K", Value: &m.ioSize},
			{Name: "depth", Arg: "N", Usage: "I/Os in flight on each queue; without it, 32", Value: cli.Int(&m.job.Depth, 1, maxDepth)},
			{Name: "queues", Arg: "N", Usage: "I/O queues, each with a part of the region; without it, 1", Value: cli.Int(&m.job.Workers, 1, maxQueues)},
			{Name: "time", Arg: "DURATION", Usage: "how long; without it, 10s, or without limit with --passes", Value: cli.Duration(&m.job.Time)},
			{Name: "passes", Arg: "N", Usage: "end when everything in the region had its turn so often", Value: cli.Int(&m.job.Passes, 1, math.MaxUint32)},
			{Name: "nsid", Arg: "N", Usage: "the namespace; without it, that of the URL, or 1", Value: cli.Int(&m.nsid, 1, nvme.NSIDBroadcast-1)},
			{Name: "offset", Arg: "SIZE", Usage: "where the region begins; without it, at 0", Value: &m.offset},
			{Name: "size", Arg: "SIZE", Usage: "of the region; without it, up to the end", Value: &m.size},
			{Name: "verify", Usage: "stamp what is written, and verify what is read", Value: cli.Bool(&m.job.Verify)},
			{Name: "seed", Arg: "N", Usage: "of stamps, and of what is random; without it, one of its own", Value: cli.Int(&m.job.Seed, 1, math.MaxUint32)},
			{Name: "overwrite", Usage: "the data in the region may be destroyed", Value: cli.Bool(&m.overwrite)},
		}...),
		Run: func(ctx context.Context, call *cli.Call) error {
			x, err := m.open(ctx, call)
			if err != nil {
				return command.About(call, call.Arg(0), err)
			}
			defer x.Close()
			return m.measure(ctx, call, x)
		},
	}
}

// open reads the words and connects. The session is the caller's.
func (m *measurement) open(ctx context.Context, call *cli.Call) (*session, error) {
	addr, err := subsystemAddress(call.Arg(0))
	if err != nil {
		return nil, err
	}
	if m.job.Pattern.Writes() && !m.overwrite {
		return nil, fault.Errorf(fault.Usage, "", "", "the pattern %s destroys data", m.job.Pattern).
			Hint("with --overwrite it does")
	}
	switch {
	case addr.NSID == 0:
	case call.IsSet("nsid") && m.nsid != addr.NSID:
		return nil, fault.Errorf(fault.Usage, "", "", "--nsid %d is not the namespace of the URL", m.nsid)
	default:
		m.nsid = addr.NSID
	}
	if m.job.Passes > 0 && !call.IsSet("time") {
		m.job.Time = 0
	}
	if m.job.Seed == 0 && (m.job.Pattern.Writes() || !m.job.Verify) {
		m.job.Seed = rand.Uint32() | 1
	}
	p, err := m.connect(ctx, addr, keepAlive, nil)
	if err != nil {
		return nil, err
	}
	x, err := newSession(ctx, p, m.nsid, m.job.Workers)
	if err != nil {
		return nil, err
	}
	if err := m.fit(x); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

// fit makes the job one for the namespace.
func (m *measurement) fit(x *session) error {
	block, bytes := units.Size(x.ns.block), units.Size(x.ns.block)*units.Size(x.ns.blocks)
	if m.size == 0 && m.offset < bytes {
		m.size = bytes - m.offset
	}
	switch room := x.room(); {
	case m.ioSize == 0 || m.ioSize%block != 0:
		return fault.Errorf(fault.Usage, "", "", "--bs %v: the namespace has blocks of %v", m.ioSize, block)
	case uint64(m.ioSize) > x.ns.maxSize:
		return fault.Errorf(fault.Usage, "", "", "--bs %v: a command can carry %v here", m.ioSize, units.Size(x.ns.maxSize))
	case m.offset%block != 0 || m.size%block != 0:
		return fault.Errorf(fault.Usage, "", "", "--offset %v, --size %v: the namespace has blocks of %v", m.offset, m.size, block)
	case m.offset >= bytes || m.size > bytes-m.offset:
		return fault.Errorf(fault.Usage, "", "", "--offset %v, --size %v: the namespace ends at %v", m.offset, m.size, bytes)
	case m.job.Depth > room:
		return fault.Errorf(fault.Usage, "", "", "--depth %d: a queue has room for %d commands here", m.job.Depth, room).
			Hint("--queues N makes several queues")
	}
	m.job.Block, m.job.IOSize = x.ns.block, uint32(m.ioSize)
	m.job.First, m.job.Blocks = uint64(m.offset/block), uint64(m.size/block)
	return m.job.Check()
}

// measure runs the job and prints what has come of it, even if it ends early.
func (m *measurement) measure(ctx context.Context, call *cli.Call, x *session) error {
	group := stats.NewGroup()
	workers := make([]*bench.Worker, len(x.lanes))
	finished := make(chan struct{}, len(x.lanes))
	for i, l := range x.lanes {
		l.take(m.job.Depth)
		workers[i] = bench.NewWorker(&m.job, i, l, make([]byte, m.job.Depth*int(m.job.IOSize)), group, func() { finished <- struct{}{} })
	}
	start, before := time.Now(), cpuTime()
	for i, l := range x.lanes {
		_ = l.t.p.Post(workers[i].Begin)
	}
	err := x.wait(ctx, workers, finished, newProgress(call, group, start))
	took, cpu := time.Since(start), cpuTime()-before

	r := m.report(x, workers, group.Total(), took, cpu)
	r.URL = call.Arg(0)
	if printed := r.print(call); printed != nil {
		return printed
	}
	return cmp.Or(r.err(call), command.About(call, r.URL, err))
}

// wait waits until every worker has finished. When ctx ends, or a connection has
// broken, it has them finish, and returns why.
func (x *session) wait(ctx context.Context, workers []*bench.Worker, finished <-chan struct{}, p *progress) (err error) {
	defer p.close()
	stop, broken := ctx.Done(), x.broken
	for left := len(workers); left > 0; {
		select {
		case <-finished:
			left--
			continue
		case <-p.tick:
			p.show()
			continue
		case <-stop:
			err = context.Cause(ctx)
		case err = <-broken:
		}
		stop, broken = nil, nil
		for i, l := range x.lanes {
			_ = l.t.p.Post(workers[i].Stop)
		}
	}
	if err == nil && x.lost() {
		err = <-x.broken // which may come a moment later
	}
	return err
}

// cpuTime is what this process has used of processors.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report is what bench prints.
type report struct {
	URL          string        `json:"url"`
	NSID         uint32        `json:"nsid"`
	Pattern      bench.Pattern `json:"pattern"`
	ReadPercent  int           `json:"read_percent"`
	Block        uint32        `json:"block"` // bytes
	IOSize       units.Size    `json:"bs"`
	Queues       int           `json:"queues"`
	Depth        int           `json:"depth"`
	Offset       units.Size    `json:"offset"`
	Size         units.Size    `json:"size"`
	HeaderDigest bool          `json:"header_digest"`
	DataDigest   bool          `json:"data_digest"`
	Seed         uint32        `json:"seed"` // 0: any

	Time  time.Duration `json:"time"`       // measured
	CPU   time.Duration `json:"cpu"`        // of this process
	PerIO time.Duration `json:"cpu_per_io"` // of that

	Read   opReport               `json:"read"`
	Write  opReport               `json:"write"`
	Errors api.List[statusReport] `json:"errors"`
	Verify verifyReport           `json:"verify"`
}

// opReport is what was measured of reads or of writes.
type opReport struct {
	api.OpStat
	P9999     time.Duration `json:"p99_99"`
	IOPS      uint64        `json:"iops"`
	Bandwidth uint64        `json:"bandwidth"` // bytes per second
}

// statusReport is how many I/Os have ended with a status.
type statusReport struct {
	Status uint16 `json:"status"` // status code type in bits 10:8, status code in 7:0
	Name   string `json:"name"`
	Count  uint64 `json:"count"`
}

// verifyReport is what verification has found.
type verifyReport struct {
	Enabled    bool                     `json:"enabled"`
	Passes     uint32                   `json:"passes"` // begun by some queue
	Blocks     uint64                   `json:"blocks"` // that were verified
	Mismatches uint64                   `json:"mismatches"`
	First      api.List[bench.Mismatch] `json:"first"` // some of them
}

// report sums up.
func (m *measurement) report(x *session, workers []*bench.Worker, total stats.Total, took, cpu time.Duration) *report {
	header, data := x.Digests()
	r := &report{
		NSID: m.nsid, Pattern: m.job.Pattern, ReadPercent: m.job.ReadPercent, Block: m.job.Block, IOSize: m.ioSize,
		Queues: m.job.Workers, Depth: m.job.Depth, Offset: m.offset, Size: m.size, HeaderDigest: header, DataDigest: data,
		Time: took, CPU: cpu, Read: newOpReport(total, stats.Reads, took), Write: newOpReport(total, stats.Writes, took),
		Seed: m.job.Seed, Verify: verifyReport{Enabled: m.job.Verify},
	}
	if n := r.Read.Commands + r.Write.Commands; n > 0 {
		r.PerIO = cpu / time.Duration(n)
	}
	errors := make(map[nvme.Status]uint64)
	for _, w := range workers {
		found := w.Result()
		for st, n := range found.Errors {
			errors[st] += n
		}
		v := &r.Verify
		v.Passes = max(v.Passes, found.Passes)
		v.Blocks += found.Checked
		v.Mismatches += found.Mismatches
		v.First = append(v.First, found.Shown...)
	}
	for _, st := range slices.Sorted(maps.Keys(errors)) {
		r.Errors = append(r.Errors, statusReport{uint16(st), st.String(), errors[st]})
	}
	return r
}

func newOpReport(total stats.Total, class stats.Class, took time.Duration) opReport {
	d := total.Latency(class)
	o := opReport{OpStat: api.NewOpStat(total.ClassBytes(class), total.Errors(class), d), P9999: d.Percentile(0.9999)}
	o.IOPS, o.Bandwidth = perSecond(o.Commands, took), perSecond(o.Bytes, took)
	return o
}

// perSecond is n in a time as a number in a second.
func perSecond(n uint64, during time.Duration) uint64 {
	if during <= 0 {
		return 0
	}
	return uint64(math.Round(float64(n) / during.Seconds()))
}

// benchRow is a line of the table.
type benchRow struct {
	op string
	opReport
	perIO time.Duration
}

// benchColumns are those of bench.
func benchColumns(format cli.Format) []cli.Column[benchRow] {
	latency := func(f func(benchRow) time.Duration) func(benchRow) any {
		return func(r benchRow) any { return command.Latency(format, r.OpStat, f(r)) }
	}
	return []cli.Column[benchRow]{
		{Name: "OP", Value: func(r benchRow) any { return r.op }},
		{Name: "COMMANDS", Value: func(r benchRow) any { return r.Commands }},
		{Name: "BYTES", Value: func(r benchRow) any { return units.Size(r.Bytes) }},
		{Name: "ERRORS", Value: func(r benchRow) any { return r.Errors }},
		{Name: "IOPS", Value: func(r benchRow) any { return r.IOPS }},
		{Name: "BYTES/S", Value: func(r benchRow) any { return units.Size(r.Bandwidth) }},
		{Name: "P50", Value: latency(func(r benchRow) time.Duration { return r.P50 })},
		{Name: "P90", Value: latency(func(r benchRow) time.Duration { return r.P90 })},
		{Name: "P99", Value: latency(func(r benchRow) time.Duration { return r.P99 })},
		{Name: "P99.9", Value: latency(func(r benchRow) time.Duration { return r.P999 })},
		{Name: "P99.99", Value: latency(func(r benchRow) time.Duration { return r.P9999 })},
		{Name: "MAX", Value: latency(func(r benchRow) time.Duration { return r.Max })},
		{Name: "CPU/IO", Value: latency(func(r benchRow) time.Duration { return r.perIO })},
	}
}

// print prints the report.
func (r *report) print(call *cli.Call) error {
	if call.Format == cli.JSON {
		return cli.Show[*report](call, nil, r)
	}
	if call.Format == cli.Text {
		if _, err := fmt.Fprintf(call.Stdout, "%s\n\n", r.header()); err != nil {
			return err
		}
	}
	return cli.List(call, benchColumns(call.Format), []benchRow{{"read", r.Read, r.PerIO}, {"write", r.Write, r.PerIO}})
}

// header says in a line what was measured.
func (r *report) header() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", r.Pattern)
	if r.Pattern == bench.Mixed {
		fmt.Fprintf(&b, " with %d %% reads", r.ReadPercent)
	}
	fmt.Fprintf(&b, " of %s, %d at a time", r.IOSize.Human(), r.Depth)
	if r.Queues > 1 {
		fmt.Fprintf(&b, " on each of %d queues", r.Queues)
	}
	fmt.Fprintf(&b, ", for %v", r.Time.Round(time.Millisecond))
	if v := r.Verify; v.Enabled {
		fmt.Fprintf(&b, "; %d blocks verified", v.Blocks)
		if r.Seed != 0 {
			fmt.Fprintf(&b, ", seed %d", r.Seed)
		}
	}
	return b.String()
}

// err is what was wrong with the namespace, a line for each thing.
func (r *report) err(call *cli.Call) error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fault.Errorf(fault.Failure, call.Op, r.URL, format, args...))
	}
	if v := r.Verify; v.Mismatches > 0 {
		add("%d of %d blocks are not what was written", v.Mismatches, v.Blocks)
		const shown = 8
		for _, m := range v.First[:min(shown, len(v.First))] {
			add("expected %s, found %s", m.Expected, m.Found)
		}
	}
	for _, e := range r.Errors {
		add("%d commands have failed: %s", e.Count, e.Name)
	}
	return fault.Several(len(errs), errs...)
}

// progress shows how it goes while it does.
type progress struct {
	line   *command.StatusLine
	group  *stats.Group
	start  time.Time
	ticker *time.Ticker
	tick   <-chan time.Time // never, where nobody sees it
	last   stats.Total
	at     time.Time
}

// progressPause is how often.
const progressPause = 500 * time.Millisecond

func newProgress(call *cli.Call, group *stats.Group, start time.Time) *progress {
	p := &progress{line: command.NewStatusLine(call), group: group, start: start, at: start}
	if p.line != nil {
		p.ticker = time.NewTicker(progressPause)
		p.tick = p.ticker.C
	}
	return p
}

// show shows what has happened since the last time.
func (p *progress) show() {
	now, total := time.Now(), p.group.Total()
	during := now.Sub(p.at)
	text := now.Sub(p.start).Round(100 * time.Millisecond).String()
	for _, c := range []struct {
		name  string
		class stats.Class
	}{{"read", stats.Reads}, {"write", stats.Writes}} {
		d := total.Latency(c.class).Sub(p.last.Latency(c.class))
		if d.Count() == 0 {
			continue
		}
		bytes := perSecond(total.ClassBytes(c.class)-p.last.ClassBytes(c.class), during)
		text += fmt.Sprintf("  %s %d IOPS %s/s p50 %v p99 %v", c.name, perSecond(d.Count(), during), units.Size(bytes).Human(),
			command.Short(d.Percentile(0.5)), command.Short(d.Percentile(0.99)))
		if n := total.Errors(c.class); n > 0 {
			text += fmt.Sprintf(" %d errors", n)
		}
	}
	p.line.Show(text)
	p.last, p.at = total, now
}

func (p *progress) close() {
	if p.ticker != nil {
		p.ticker.Stop()
	}
	p.line.Close()
}
