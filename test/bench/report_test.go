// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/leapio/leapio/lib/command"
)

// report prints the table, a row as soon as it is measured, and keeps every run.
type report struct {
	table io.Writer
	kept  *os.File // nil: nothing is kept
}

// newReport begins a table; runs are added to the file of that name, if there is
// one. The header is lines that benchstat leaves alone, or runs of two days would not be compared.
func newReport(table io.Writer, name, header string) (*report, error) {
	r := &report{table: table}
	if name != "" {
		var err error
		if r.kept, err = os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			return nil, err
		}
		if _, err := r.kept.WriteString(header); err != nil {
			return nil, errors.Join(err, r.kept.Close())
		}
	}
	_, err := fmt.Fprintf(table, "%s\n"+layout, header, "ROW", "OURS", "OTHER", "RATIO", "(SPREAD)", "NEED", "", "P50", "P99", "P99.9", "CPU/IO", "BUSY/IO", "GC")
	return r, err
}

const layout = "%-40s %9s %9s %6s %-13s %6s %-4s %-15s %-15s %-15s %-15s %-15s %s\n"

func (r *report) close() error {
	if r.kept == nil {
		return nil
	}
	return r.kept.Close()
}

// add prints a row and keeps its runs.
func (r *report) add(row *row, a, b []sample) error {
	ratio, spread, need, verdict := "-", "", comparison(row), ""
	if len(b) > 0 {
		all := ratios(row, a, b)
		m := median(all)
		ratio, spread = fmt.Sprintf("%.2f", m), fmt.Sprintf("(%.2f-%.2f)", slices.Min(all), slices.Max(all))
		if verdict = "ok"; !row.good(m) {
			verdict = "LESS"
			if row.atMost {
				verdict = "MORE"
			}
		}
	}
	pair := func(f func(sample) time.Duration) string {
		x, y := medianOf(a, f), medianOf(b, f)
		if x == 0 && y == 0 {
			return "-"
		}
		return command.Short(x).String() + "/" + command.Short(y).String()
	}
	_, err := fmt.Fprintf(r.table, layout, row.name, amount(row.of, median(values(a))), amount(row.of, median(values(b))), ratio, spread, need, verdict,
		pair(func(s sample) time.Duration { return s.P50 }), pair(func(s sample) time.Duration { return s.P99 }),
		pair(func(s sample) time.Duration { return s.P999 }), pair(func(s sample) time.Duration { return s.CPU }),
		pair(func(s sample) time.Duration { return s.Busy }), collections(a))
	if r.kept != nil {
		err = errors.Join(err, keep(r.kept, row, &row.a, a), keep(r.kept, row, &row.b, b))
	}
	return err
}

// comparison says what the ratio has to be.
func comparison(row *row) string {
	if row.atMost {
		return fmt.Sprintf("<=%.4g", row.need)
	}
	return fmt.Sprintf(">=%.4g", row.need)
}

// collections is how many garbage collections there were in all runs.
func collections(a []sample) string {
	var n uint64
	for _, s := range a {
		n += s.GC
	}
	return strconv.FormatUint(n, 10)
}

// amount prints a quantity.
func amount(of quantity, v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case of == latency || of == startUp:
		return command.Short(time.Duration(v)).String()
	case of == memory:
		return fmt.Sprintf("%.1fM", v)
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	}
	return fmt.Sprintf("%.3gk", v/1e3)
}

// keep adds the runs of a side in the format of benchstat: one group of rows is a
// benchmark, the side is its last part.
func keep(w io.Writer, row *row, s *side, all []sample) error {
	for _, one := range all {
		name := fmt.Sprintf("BenchmarkTable/row=%s/side=%s", identifier(row.name), s)
		value, unit := one.Value, "IO/s"
		switch row.of {
		case memory:
			value, unit = one.Value, "MiB"
		case startUp:
			unit = "ns/start"
		case latency:
			value = one.IOPS
		}
		line := fmt.Sprintf("%s 1 %.6g %s", name, value, unit)
		if one.IOPS > 0 && row.of != memory {
			line += fmt.Sprintf(" %d avg-ns %d p50-ns %d p99-ns %d p99.9-ns %d cpu-ns/op %d busy-ns/op %d gc",
				one.Mean, one.P50, one.P99, one.P999, one.CPU, one.Busy, one.GC)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// identifier is a name as benchmarks have them: without blanks, and no parts.
func identifier(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c == ' ' || c == '/' || c == ',' {
			b[i] = '_'
		}
	}
	return string(b)
}

// ratios holds each run of one side against that run of the other which came next.
func ratios(row *row, a, b []sample) []float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		x, y := a[i].Value, b[i].Value
		if row.inverted() {
			x, y = y, x
		}
		all = append(all, x/y)
	}
	return all
}

func values(all []sample) []float64 {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = s.Value
	}
	return v
}

// median returns the middle one, NaN if there is none.
func median(all []float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(all))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// medianOf is the median of a latency; 0 without samples.
func medianOf(all []sample, f func(sample) time.Duration) time.Duration {
	var v []float64
	for _, s := range all {
		v = append(v, float64(f(s)))
	}
	if len(v) == 0 {
		return 0
	}
	return time.Duration(median(v))
}
