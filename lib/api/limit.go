// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// What a daemon bounds.

package api

import (
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/metrics"
	"github.com/leapio/leapio/lib/units"
)

// Units of a limit.
const (
	UnitCount       = "count"
	UnitBytes       = "bytes"
	UnitNanoseconds = "nanoseconds"
)

// Limit is a bound that a daemon keeps.
type Limit struct {
	Name   string `json:"name"`
	Daemon string `json:"daemon"` // leap-wpt or leap-soc
	Value  int64  `json:"value"`
	Unit   string `json:"unit"` // UnitCount, ...
	// Used is how much of it is taken; nil where each of many things has its own.
	Used *int64 `json:"used"`
	Per  string `json:"per"`  // what has it: "daemon", "port", "poller", ...
	From string `json:"from"` // the flag of run that sets it, or the kernel's name of it; empty: it is built in
}

// CountLimit is a limit of a number of things.
func CountLimit(name, per, from string, value int) Limit {
	return Limit{Name: name, Value: int64(value), Unit: UnitCount, Per: per, From: from}
}

// BytesLimit is a limit of a size.
func BytesLimit(name, per, from string, value units.Size) Limit {
	return Limit{Name: name, Value: int64(value), Unit: UnitBytes, Per: per, From: from}
}

// TimeLimit is a limit of a time.
func TimeLimit(name, per, from string, value time.Duration) Limit {
	return Limit{Name: name, Value: int64(value), Unit: UnitNanoseconds, Per: per, From: from}
}

// Using returns the limit with how much of it is taken.
func (l Limit) Using(used int) Limit {
	n := int64(used)
	l.Used = &n
	return l
}

// PerDaemon is the Per of what a daemon has once.
const PerDaemon = "daemon"

// CommonLimits are those that both daemons have, each for itself.
func CommonLimits(stateFile string) ([]Limit, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	fds, err := metrics.OpenFiles()
	if err != nil {
		return nil, err
	}
	return []Limit{
		CountLimit("open-files", PerDaemon, "RLIMIT_NOFILE", int(min(files.Cur, math.MaxInt))).Using(fds),
		BytesLimit("state-file", PerDaemon, "", maxState).Using(sizeOf(stateFile)),
		BytesLimit("api-request", "call", "", MaxRequest),
	}, nil
}
