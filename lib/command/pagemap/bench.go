// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// speed is how fast something goes.
type speed struct {
	What     string        `json:"what"`
	Pages    uint64        `json:"pages"`
	Duration time.Duration `json:"duration"`
	Rate     uint64        `json:"rate"` // pages in a second
}

var speedColumns = []cli.Column[speed]{
	{Name: "WHAT", Value: func(s speed) any { return s.What }},
	{Name: "PAGES", Value: func(s speed) any { return s.Pages }},
	{Name: "DURATION", Value: func(s speed) any { return s.Duration }},
	{Name: "RATE", Value: func(s speed) any { return s.Rate }},
}

func benchmark() *cli.Command {
	bytes, limit := 256*units.MiB, time.Second
	return &cli.Command{
		Name:  "bench",
		Usage: "measure how fast addresses are looked up on this machine",
		Flags: []cli.Flag{
			{Name: "size", Arg: "SIZE", Usage: "how much memory to look at; without it, 256M", Value: &bytes},
			{Name: "time", Arg: "DURATION", Usage: "how long for each row; without it, 1s", Value: cli.Duration(&limit)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			b, err := pagemap.NewBuffer(uint64(bytes), pagemap.PageSize())
			if err != nil {
				return explainBuffer(err)
			}
			return errors.Join(measure(ctx, call, b, limit), b.Close())
		},
	}
}

// measure prints a row for each way to look at the buffer.
func measure(ctx context.Context, call *cli.Call, b *pagemap.Buffer, limit time.Duration) error {
	p, err := pagemap.Open(os.Getpid())
	if err != nil {
		return explain(err)
	}
	defer p.Close()
	frames, err := openFrames()
	if err != nil {
		return err
	}
	if frames != nil {
		defer frames.Close()
	}
	at, start := uint64(0), b.Addr()
	print := cli.Stream(call, speedColumns)
	for _, way := range []struct {
		what string
		once func() (pages uint64, err error)
	}{
		{"va", func() (uint64, error) {
			_, err := p.Lookup(start+at, frames)
			at = (at + pagemap.PageSize()) % uint64(len(b.Bytes))
			return 1, err
		}},
		{"ranges", func() (uint64, error) {
			u, err := p.Usage(start, start+uint64(len(b.Bytes)), nil)
			return u.Present / pagemap.PageSize(), err
		}},
	} {
		s := speed{What: way.what}
		for began := time.Now(); s.Duration < limit; s.Duration = time.Since(began) {
			n, err := way.once()
			if err = errors.Join(err, context.Cause(ctx)); err != nil {
				return explain(err)
			}
			s.Pages += n
		}
		s.Rate = uint64(float64(s.Pages) / s.Duration.Seconds())
		if err := print(s); err != nil {
			return err
		}
	}
	return nil
}
