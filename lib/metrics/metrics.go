// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package metrics writes a page of metrics in the text format of Prometheus,
// version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
//
// A Page is made for every look at the counters, which are elsewhere: nothing is
// registered, and nothing is kept between two looks.
package metrics

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/stats"
)

// ContentType is the media type of a page.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Type is what a family of samples is.
type Type string

// Types of families.
const (
	Counter   Type = "counter" // only rises; its name ends in _total
	Gauge     Type = "gauge"
	Histogram Type = "histogram"
	Summary   Type = "summary"
)

// Page is a page of families, in the order in which they were made. It has one
// writer.
type Page struct{ families []*Family }

// Family is the samples of one name.
type Family struct {
	name, help string
	kind       Type
	labels     []string
	lines      bytes.Buffer
}

// Family makes a family whose samples have these labels. Its name is in base
// units: seconds, bytes.
func (p *Page) Family(kind Type, name, help string, labels ...string) *Family {
	f := &Family{name: name, help: help, kind: kind, labels: labels}
	p.families = append(p.families, f)
	return f
}

// Bytes returns the page. A family without samples is not in it.
func (p *Page) Bytes() []byte {
	var b bytes.Buffer
	for _, f := range p.families {
		if f.lines.Len() == 0 {
			continue
		}
		b.WriteString("# HELP " + f.name + " " + helpEscape.Replace(f.help) + "\n")
		b.WriteString("# TYPE " + f.name + " " + string(f.kind) + "\n")
		b.Write(f.lines.Bytes())
	}
	return b.Bytes()
}

// Add adds a sample of a counter or gauge. There is a value for each label.
func (f *Family) Add(v float64, values ...string) { f.sample("", v, values, "", "") }

// Latency adds a histogram of latencies, in seconds.
func (f *Family) Latency(d stats.Distribution, values ...string) {
	for e := firstBound; e <= lastBound; e++ {
		bound := time.Duration(1) << e
		f.sample("_bucket", float64(d.AtMost(bound)), values, "le", number(bound.Seconds()))
	}
	count := float64(d.Count())
	f.sample("_bucket", count, values, "le", "+Inf")
	f.sample("_sum", d.Sum().Seconds(), values, "", "")
	f.sample("_count", count, values, "", "")
}

// The bounds of a histogram are the powers of two of a nanosecond from 1.024 us to
// 17 s: each is the end of a bucket of stats.Distribution.
const (
	firstBound = 10
	lastBound  = 34
)

// Quantile is a latency that a share of all did not exceed.
type Quantile struct {
	Share float64 // 0 to 1
	Value time.Duration
}

// Quantiles adds a summary of latencies, in seconds.
func (f *Family) Quantiles(all []Quantile, sum time.Duration, count uint64, values ...string) {
	for _, q := range all {
		f.sample("", q.Value.Seconds(), values, "quantile", number(q.Share))
	}
	f.sample("_sum", sum.Seconds(), values, "", "")
	f.sample("_count", float64(count), values, "", "")
}

// sample writes a line. A label more is given by its name.
func (f *Family) sample(suffix string, v float64, values []string, more, value string) {
	f.lines.WriteString(f.name + suffix)
	separator := "{"
	label := func(name, value string) {
		f.lines.WriteString(separator + name + `="` + labelEscape.Replace(strings.ToValidUTF8(value, "\ufffd")) + `"`)
		separator = ","
	}
	for i, name := range f.labels {
		label(name, values[i])
	}
	if more != "" {
		label(more, value)
	}
	if separator == "," {
		f.lines.WriteByte('}')
	}
	f.lines.WriteString(" " + number(v) + "\n")
}

// number is a value as Go reads it, too.
func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

var (
	helpEscape  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
