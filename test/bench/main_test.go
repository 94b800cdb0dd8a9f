// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package bench_test measures the data path from outside: the daemons as they are
// built, and a client on a core of its own. With -peer it holds them against
// SPDK's nvmf_tgt, which gets the same load from the same client, in turns.
//
//	table_test.go   the rows: what is held against what, and what the ratio has to be
//	main_test.go    runs the rows; load_test.go  has a client load one side
//	leapio_test.go  our daemons; spdk_test.go    the peer, and its client
//	client_test.go  our own client, a process that polls; drive_test.go  its queues
//	report_test.go  medians, ratios, the table, and lines for benchstat
//
// `make bench` runs the table; docs/performance.md tells how to read what it prints.
// Without -table only the logic is tested, and that rows of each kind can be measured.
package bench_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/units"
)

// runner runs rows.
type runner struct {
	bin, peer string // folders
	dir       string // for what is made
	file      string // of file volumes
	size      int    // of other volumes, in MiB
	runs      int
	warm      time.Duration // before a run counts
	time      time.Duration // of each run
	peerMiB   int
}

// Options of the table, behind -args.
var (
	options   = runner{size: 512, warm: time.Second}
	tabulated = flag.Bool("table", false, "measure the table")
	match     = flag.String("rows", ".", "rows whose names match this regular expression")
	kept      = flag.String("keep", "", "file to which runs are added, for benchstat")
	commit    = flag.String("commit", "", "what is measured, for that file")
)

func init() {
	flag.StringVar(&options.bin, "bin", "bin", "folder of the commands")
	flag.StringVar(&options.peer, "peer", "", "built tree of SPDK; without it, only we are measured, by our own client")
	flag.StringVar(&options.file, "file", "", "data file of at least 1 GiB, without holes, that may be overwritten; without it, one is made")
	flag.IntVar(&options.runs, "runs", 5, "of each side of a row")
	flag.DurationVar(&options.time, "time", 3*time.Second, "of a run, in whole seconds")
	flag.IntVar(&options.peerMiB, "peer-memory", 64, "huge pages the peer begins with, in MiB; it takes as many more as it needs")
}

// TestMain is our client, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "client" {
		if err := client(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// TestBench measures the table and prints it. No ratio fails it: see what it says.
func TestBench(t *testing.T) {
	if !*tabulated {
		t.Skip("only with -table, as make bench runs it")
	}
	want, err := regexp.Compile(*match)
	if err != nil {
		t.Fatal(err)
	}
	r := options
	r.dir = t.TempDir()
	if r.file == "" {
		r.file = filepath.Join(r.dir, "data")
		if err := makeFile(r.file, units.GiB); err != nil {
			t.Fatal(err)
		}
	}
	header := fmt.Sprintf("# date: %s\n# commit: %s\n# machine: %s\n", time.Now().UTC().Format(time.RFC3339), *commit, machine())
	report, err := newReport(os.Stdout, *kept, header)
	if err != nil {
		t.Fatal(err)
	}
	err = r.all(selected(table(), want), report)
	if err := errors.Join(err, report.close()); err != nil {
		t.Error(err)
	}
}

// all measures rows. One that cannot be measured does not keep the others from it.
func (r *runner) all(rows []row, report *report) error {
	var failed []error
	for i := range rows {
		a, b, err := r.measure(&rows[i])
		if err == nil {
			err = report.add(&rows[i], a, b)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", rows[i].name, err))
		}
	}
	return errors.Join(failed...)
}

// makeFile makes a data file without holes.
func makeFile(path string, size units.Size) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, units.MiB)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for range size / units.MiB {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Sync()
}

// measure measures both sides of a row in turns. The peer has no samples where it is not there.
func (r *runner) measure(row *row) (a, b []sample, err error) {
	for range r.runs {
		one, err := r.turn(row, &row.a)
		if err != nil {
			return nil, nil, err
		}
		a = append(a, one)
		if row.b.server == theirs && r.peer == "" {
			continue
		}
		if one, err = r.turn(row, &row.b); err != nil {
			return nil, nil, err
		}
		b = append(b, one)
	}
	return a, b, nil
}

// turn measures a side once, with daemons of its own.
func (r *runner) turn(row *row, s *side) (got sample, err error) {
	var d daemons
	switch s.server {
	case ours:
		d = &leapio{bin: r.bin, dir: filepath.Join(r.dir, "leapio"), file: r.file, size: r.size, side: s}
	case theirs:
		d = &spdk{tree: r.peer, dir: filepath.Join(r.dir, "spdk"), file: r.file, size: r.size, memoryMiB: r.peerMiB, side: s}
	default:
		return r.load(row, s, nil)
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(); err != nil {
		return got, err
	}
	if row.of == startUp {
		if err := d.stop(); err != nil {
			return got, err
		}
		start := time.Now()
		if err := d.launch(); err != nil {
			return got, err
		}
		err := firstCompletion(d.where().dirs[0])
		return sample{Value: float64(time.Since(start))}, err
	}
	if got, err = r.load(row, s, d); err == nil && row.of == memory {
		got.Value, err = d.memory()
	}
	return got, err
}
