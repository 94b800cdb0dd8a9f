// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package metricstest reads pages of metrics with Prometheus' own parser, and
// holds them against the rules for names, types and units that promtool checks.
package metricstest

import (
	"bytes"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Page is a page as Prometheus reads it.
type Page struct {
	t        testing.TB
	Families map[string]*dto.MetricFamily
}

// Read reads a page. What is wrong with it fails the test.
func Read(t testing.TB, page []byte) Page {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, page)
	}
	if problems, err := promlint.New(bytes.NewReader(page)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v in:\n%s", problems, err, page)
	}
	return Page{t, families}
}

// Find returns the one metric of a family that has these labels, names and values
// in turn, among others.
func (p Page) Find(family string, labels ...string) *dto.Metric {
	p.t.Helper()
	var found *dto.Metric
	for _, m := range p.Families[family].GetMetric() {
		has := make(map[string]string)
		for _, l := range m.Label {
			has[l.GetName()] = l.GetValue()
		}
		fits := true
		for i := 0; i < len(labels); i += 2 {
			fits = fits && has[labels[i]] == labels[i+1]
		}
		if !fits {
			continue
		}
		if found != nil {
			p.t.Fatalf("%s has more than one %q", family, labels)
		}
		found = m
	}
	if found == nil {
		p.t.Fatalf("%s has no %q", family, labels)
	}
	return found
}

// Value is the value of a counter or gauge.
func (p Page) Value(family string, labels ...string) float64 {
	p.t.Helper()
	switch m := p.Find(family, labels...); {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	p.t.Fatalf("%s is neither counter nor gauge", family)
	return 0
}
