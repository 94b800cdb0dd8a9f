// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"fmt"
	"regexp"
	"time"

	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/units"
)

// server is who serves a load.
type server string

const (
	ours   server = "leapio"
	theirs server = "spdk"
	nobody server = "raw" // the client reads and writes the file itself
)

// Paths from a client to a volume.
const (
	vfioUser = "vfio-user"
	tcp      = "tcp"
)

// load is what a client does.
type load struct {
	path    string
	volume  string // null, mem or file
	pattern bench.Pattern
	size    units.Size
	depth   int  // commands in flight, on each drive
	digests bool // of headers and data
	drives  int  // how many at once, from 1
	idle    int  // drives beside them that have a queue pair and nothing to do
}

// String is the name of the load in results.
func (l load) String() string {
	s := fmt.Sprintf("%s/%s/%s/%dk/qd%d", l.path, l.volume, l.pattern, l.size/units.KiB, l.depth)
	if l.digests {
		s += "/digests"
	}
	return s
}

// side is one of the two that a row compares.
type side struct {
	server  server
	backend string // of the peer's file volume: aio or uring
	load
}

// String is who serves, and what else tells the sides of a row apart.
func (s side) String() string {
	name := string(s.server)
	if s.backend != "" {
		name += "-" + s.backend
	}
	if s.drives > 1 {
		name += fmt.Sprintf("-%dx%d", s.drives, s.depth)
	}
	if s.idle > 0 {
		name += fmt.Sprintf("-%d-idle", s.idle)
	}
	return name
}

// quantity is what a row compares.
type quantity string

const (
	rate    quantity = "IOPS"
	latency quantity = "avg"
	memory  quantity = "MiB" // resident and huge pages, without the data of memory volumes
	startUp quantity = "start"
)

// row is a line of the table: two sides, and what their ratio has to be. That is
// a/b where more is better, and where less is, too, but for latency, which is b/a.
type row struct {
	name   string
	of     quantity
	a, b   side
	need   float64
	atMost bool
}

// inverted reports whether the ratio is b/a.
func (r *row) inverted() bool { return r.of == latency }

// good reports whether a ratio is what it has to be.
func (r *row) good(ratio float64) bool {
	if r.atMost {
		return ratio <= r.need
	}
	return ratio >= r.need
}

// versus is a row that holds ours against the peer.
func versus(of quantity, need float64, l load) row {
	l.drives = 1
	return row{name: l.String(), of: of, a: side{server: ours, load: l}, b: side{server: theirs, load: l}, need: need}
}

// backend is the row against another back end of the peer.
func (r row) backend(name string) row {
	r.b.backend = name
	r.name += "/" + name
	return r
}

// itself is a row that holds ours against something of the same client.
func itself(name string, need float64, a, b side) row {
	return row{name: name, of: rate, a: a, b: b, need: need}
}

// table is what is measured.
func table() []row {
	const k = units.KiB
	virtual := func(p bench.Pattern, need float64) row {
		l := load{path: vfioUser, volume: "file", pattern: p, size: 4 * k, depth: 64, drives: 1}
		return itself(fmt.Sprintf("virtual/raw/%s/4k/qd%d", p, l.depth), need, side{server: ours, load: l}, side{server: nobody, load: l})
	}
	null := load{path: vfioUser, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 32, drives: 1}
	many, one, busy := null, null, null
	many.drives = 8
	one.depth = 256
	busy.idle = 64
	usual := load{path: vfioUser, volume: "mem", pattern: bench.RandRead, size: 4 * k, depth: 32, drives: 1}
	saved := usual
	saved.volume = "file"

	return []row{
		versus(rate, 1.3, load{path: vfioUser, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 128}),
		versus(rate, 1.3, load{path: vfioUser, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 32}),
		versus(rate, 1.1, load{path: vfioUser, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 1}),
		versus(rate, 1.5, load{path: vfioUser, volume: "mem", pattern: bench.RandRead, size: 4 * k, depth: 32}),
		versus(rate, 1.5, load{path: vfioUser, volume: "mem", pattern: bench.RandWrite, size: 4 * k, depth: 32}),
		versus(rate, 1.0, load{path: vfioUser, volume: "mem", pattern: bench.Read, size: 128 * k, depth: 16}),
		versus(rate, 1.0, load{path: vfioUser, volume: "mem", pattern: bench.Write, size: 128 * k, depth: 16}),

		versus(rate, 1.05, load{path: tcp, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 32}),
		versus(rate, 1.05, load{path: tcp, volume: "null", pattern: bench.RandWrite, size: 4 * k, depth: 32}),
		versus(rate, 1.1, load{path: tcp, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 128}),
		versus(rate, 1.1, load{path: tcp, volume: "null", pattern: bench.RandWrite, size: 4 * k, depth: 128}),
		versus(rate, 1.05, load{path: tcp, volume: "mem", pattern: bench.RandRead, size: 4 * k, depth: 32}),
		versus(rate, 1.05, load{path: tcp, volume: "mem", pattern: bench.RandWrite, size: 4 * k, depth: 32}),
		versus(rate, 1.1, load{path: tcp, volume: "mem", pattern: bench.RandRead, size: 4 * k, depth: 128}),
		versus(rate, 1.1, load{path: tcp, volume: "mem", pattern: bench.RandWrite, size: 4 * k, depth: 128}),
		versus(latency, 1.4, load{path: tcp, volume: "null", pattern: bench.RandRead, size: 4 * k, depth: 1}),
		versus(rate, 1.05, load{path: tcp, volume: "mem", pattern: bench.Read, size: 128 * k, depth: 16}),
		versus(rate, 1.05, load{path: tcp, volume: "mem", pattern: bench.Write, size: 128 * k, depth: 16}),
		versus(rate, 1.0, load{path: tcp, volume: "mem", pattern: bench.RandRead, size: 4 * k, depth: 32, digests: true}),
		versus(rate, 1.0, load{path: tcp, volume: "mem", pattern: bench.RandWrite, size: 4 * k, depth: 32, digests: true}),

		versus(rate, 1.0, load{path: vfioUser, volume: "file", pattern: bench.RandRead, size: 4 * k, depth: 32}).backend("uring"),
		versus(rate, 1.0, load{path: vfioUser, volume: "file", pattern: bench.RandRead, size: 4 * k, depth: 32}).backend("aio"),
		virtual(bench.RandRead, 0.98),
		virtual(bench.Mixed, 0.95),

		itself("null, 8 drives x QD 32/1 drive x QD 256", 0.97, side{server: ours, load: many}, side{server: ours, load: one}),
		itself("null, beside 64 idle drives/alone", 0.97, side{server: ours, load: busy}, side{server: ours, load: null}),

		{name: "memory", of: memory, a: side{server: ours, load: usual}, b: side{server: theirs, load: usual}, need: 0.1, atMost: true},
		{name: "start-up to the first completion", of: startUp, a: side{server: ours, load: saved}, b: side{server: theirs, load: saved, backend: "uring"}, need: 0.2, atMost: true},
	}
}

// selected returns the rows whose names match.
func selected(rows []row, want *regexp.Regexp) []row {
	var found []row
	for _, r := range rows {
		if want.MatchString(r.name) {
			found = append(found, r)
		}
	}
	return found
}

// sample is one measurement of one side. What does not apply is 0.
type sample struct {
	Value                float64 // of the row's quantity: I/Os per second, ns or MiB
	IOPS                 float64
	Mean, P50, P99, P999 time.Duration
	CPU                  time.Duration // of all that serve, for each I/O
	Busy                 time.Duration // of that, as they count it
	GC                   uint64        // collections of the runtime meanwhile
}
