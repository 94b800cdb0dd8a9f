// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
)

// echo is a line of ping.
type echo struct {
	Seq     int           `json:"seq"` // of a keep alive, from 1 on; 0: another step
	Step    string        `json:"step"`
	Time    time.Duration `json:"time"`
	Detail  string        `json:"detail"`
	Summary *summary      `json:"summary,omitempty"` // of the step summary
}

var echoColumns = []cli.Column[echo]{
	{Name: "SEQ", Value: func(e echo) any { return e.Seq }},
	{Name: "STEP", Value: func(e echo) any { return e.Step }},
	{Name: "TIME", Value: func(e echo) any { return e.Time }},
	{Name: "DETAIL", Value: func(e echo) any { return e.Detail }},
}

// Steps after those of lib/fabrics/host.
const (
	stepIdentify  = "identify" // the first data that comes
	stepKeepAlive = "keep-alive"
	stepSummary   = "summary" // of the round trips
)

// summary is how long round trips took.
type summary struct {
	Count uint64 `json:"count"`
	percentiles
}

// newSummary is the last line of a ping.
func newSummary(d stats.Distribution) echo {
	s := &summary{Count: d.Count(), percentiles: percentilesOf(d)}
	return echo{
		Step: stepSummary, Time: s.P50, Summary: s,
		Detail: fmt.Sprintf("count=%d p50=%v p90=%v p99=%v p99.9=%v max=%v", s.Count, s.P50, s.P90, s.P99, s.P999, s.Max),
	}
}

// percentiles are those of api.Percentiles and one more, for those who have more
// commands.
type percentiles struct {
	api.Percentiles
	P9999 time.Duration `json:"p99_99"`
}

func percentilesOf(d stats.Distribution) percentiles {
	return percentiles{api.PercentilesOf(d), d.Percentile(0.9999)}
}

// keepAliveLimit is the Keep Alive Timeout of ping, beyond its interval.
const keepAliveLimit = 30 * time.Second

func ping() *cli.Command {
	t := trips{count: 4, interval: time.Second}
	return &cli.Command{
		Name:  "ping",
		Usage: "connect as a host does, step by step, and measure round trips",
		Args:  "URL",
		Flags: append(append(t.flags(), t.digestFlags()...),
			cli.Flag{Name: "count", Arg: "N", Usage: "how many round trips", Value: cli.Int(&t.count, 1, math.MaxInt32)},
			cli.Flag{Name: "interval", Arg: "DURATION", Usage: "the time between them", Value: cli.Duration(&t.interval)},
		),
		Run: func(ctx context.Context, call *cli.Call) error {
			return command.About(call, call.Arg(0), t.run(ctx, call))
		},
	}
}

// trips is what ping does.
type trips struct {
	self
	count    int
	interval time.Duration
}

// run connects, prints each step as it is done, then round trips, and, even if
// they end early, a summary of those.
func (t *trips) run(ctx context.Context, call *cli.Call) error {
	addr, err := peerAddress(call.Arg(0))
	if err != nil {
		return err
	}
	print := cli.Stream(call, echoColumns)
	var failed error
	p, err := t.connect(ctx, addr, t.interval+keepAliveLimit, func(step string, took time.Duration) {
		if failed == nil {
			failed = print(echo{Step: step, Time: took})
		}
	})
	if err != nil {
		return err
	}
	defer p.Close()
	if failed != nil {
		return failed
	}
	start := time.Now()
	id, err := p.IdentifyController(ctx)
	if err != nil {
		return err
	}
	if err := print(echo{Step: stepIdentify, Time: time.Since(start), Detail: fmt.Sprintf("model=%q serial=%q firmware=%q", nvme.ASCII(id.MN[:]), nvme.ASCII(id.SN[:]), nvme.ASCII(id.FR[:]))}); err != nil {
		return err
	}
	took := stats.NewSet()
	err = t.measure(ctx, p, took, print)
	total := took.Total()
	if d := total.Latency(stats.Rest); d.Count() > 0 {
		if failed := print(newSummary(d)); err == nil {
			err = failed
		}
	}
	return err
}

// measure makes the round trips.
func (t *trips) measure(ctx context.Context, p *peer, all *stats.Set, print func(echo) error) error {
	detail := fmt.Sprintf("cntlid=%d", p.CNTLID())
	if header, data := p.Digests(); header || data {
		detail += fmt.Sprintf(" header-digest=%v data-digest=%v", header, data)
	}
	for i := range t.count {
		if i > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(t.interval):
			}
		}
		took, err := p.KeepAlive(ctx)
		if err != nil {
			return err
		}
		all.Record(stats.Others, stats.LatencyOf(took), 0, false)
		if err := print(echo{Seq: i + 1, Step: stepKeepAlive, Time: took, Detail: detail}); err != nil {
			return err
		}
	}
	return nil
}
