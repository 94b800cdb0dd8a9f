// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
)

func TestLatency(t *testing.T) {
	some := api.OpStat{Commands: 1}
	for _, tt := range []struct {
		format cli.Format
		ops    api.OpStat
		d      time.Duration
		want   any
	}{
		{cli.Text, some, 999, 999 * time.Nanosecond},
		{cli.Text, some, 1047551, 1050 * time.Microsecond},
		{cli.Text, some, 61 * time.Second, 61 * time.Second},
		{cli.Text, some, 0, time.Duration(0)},
		{cli.TSV, some, 1047551, time.Duration(1047551)},
		{cli.Text, api.OpStat{}, 0, nil},
		{cli.TSV, api.OpStat{}, 0, nil},
	} {
		if got := command.Latency(tt.format, tt.ops, tt.d); got != tt.want {
			t.Errorf("%s, %v of %d commands: %v, want %v", tt.format, tt.d, tt.ops.Commands, got, tt.want)
		}
	}
}
