// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
)

// Latency is a latency in a table: of three digits for people, and none where
// there were no commands.
func Latency(format cli.Format, o api.OpStat, d time.Duration) any {
	switch {
	case o.Commands == 0:
		return nil
	case format == cli.Text:
		return Short(d)
	}
	return d
}

// Short is a duration of about three digits.
func Short(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}
