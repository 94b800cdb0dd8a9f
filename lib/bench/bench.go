// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package bench is a load on blocks: it chooses what to read and write, keeps a
// number of I/Os in flight, stamps and verifies data, and records how long it
// took. Who carries the I/Os out is for the user to say, by a [Queue].
//
//	bench.go   a Job: what is to be done, and whether that makes sense
//	worker.go  a Worker: the loop of one queue
//	order.go   the order in which a Worker visits its part of the region
//	stamp.go   what is written into blocks, and what is found there
//
// Each queue has a Worker, and each Worker a part of the region of its own, so
// that no two ever touch the same block. A Worker visits each place of its part
// once, in order or at random, which is a pass, and then begins the next.
//
// With Job.Verify, every block that is written has a stamp: its address, the
// seed of the run, the pass, and a checksum of it all. A Worker writes one pass,
// waits until everything has ended, reads back what it has written, and begins
// the next. Since it knows the order of a pass, it knows which pass to expect
// where and keeps no note of any block.
//
// The loop allocates nothing, takes no lock and logs nothing, but for what has
// failed.
package bench

import (
	"math/bits"
	"time"

	"github.com/leapio/leapio/lib/fault"
)

// Pattern is what is done where.
type Pattern string

// Patterns.
const (
	Read      Pattern = "read"      // reads in order
	Write     Pattern = "write"     // writes in order
	RandRead  Pattern = "randread"  // reads at random
	RandWrite Pattern = "randwrite" // writes at random
	Mixed     Pattern = "mixed"     // reads and writes at random
)

// Writes reports whether the pattern destroys what is there.
func (p Pattern) Writes() bool { return p == Write || p == RandWrite || p == Mixed }

// random reports whether places are visited in another order than theirs.
func (p Pattern) random() bool { return p == RandRead || p == RandWrite || p == Mixed }

// Job is what the Workers of a run do.
type Job struct {
	Pattern     Pattern
	ReadPercent int    // of the I/Os of Mixed, 0 to 100
	Block       uint32 // bytes of a block of the medium: a power of two, at least MinBlock
	IOSize      uint32 // bytes of each I/O: blocks
	First       uint64 // block of the region
	Blocks      uint64 // of the region; what is less than an I/O at its end is left alone
	Workers     int
	Depth       int           // I/Os of each Worker that are in flight
	Time        time.Duration // after this long nothing new is begun, but what was written is still verified; 0: no limit
	Passes      uint32        // of each Worker, after which it ends; 0: no limit
	Verify      bool          // stamp what is written, and hold what is read against stamps
	// Seed is of the stamps, and decides what is done at random. With 0, Verify of
	// a pattern that only reads takes the stamps of any run.
	Seed uint32
}

// MinBlock is the smallest block of a medium, in bytes.
const MinBlock = 512

// Check tells whether the job makes sense. Errors are usage faults.
func (j *Job) Check() error {
	switch {
	case j.Block < MinBlock || bits.OnesCount32(j.Block) != 1:
		return usage("blocks of %d bytes are no power of two of at least %d", j.Block, MinBlock)
	case j.IOSize == 0 || j.IOSize%j.Block != 0:
		return usage("%d bytes are not a number of blocks of %d bytes", j.IOSize, j.Block)
	case j.Workers < 1 || j.Depth < 1:
		return usage("nothing is in flight with %d queues of depth %d", j.Workers, j.Depth)
	case j.First+j.Blocks < j.First:
		return usage("the region ends beyond block 2^64-1")
	case j.places() < uint64(j.Workers):
		return usage("the region of %d blocks has no place for an I/O of %d bytes of each of %d queues", j.Blocks, j.IOSize, j.Workers)
	case j.ReadPercent < 0 || j.ReadPercent > 100:
		return usage("%d %% are no part of the I/Os", j.ReadPercent)
	case j.Time < 0 || j.Time == 0 && j.Passes == 0:
		return usage("neither a time nor a number of passes ends it")
	case j.Verify && j.Pattern.Writes() && j.Seed == 0:
		return usage("stamps have no seed 0")
	}
	return nil
}

func usage(format string, args ...any) error {
	return fault.Errorf(fault.Usage, "", "", format, args...)
}

// perIO is how many blocks an I/O has.
func (j *Job) perIO() uint64 { return uint64(j.IOSize / j.Block) }

// places is how many I/Os the region has room for.
func (j *Job) places() uint64 { return j.Blocks / j.perIO() }

// part returns the places of a worker.
func (j *Job) part(worker int) (first, n uint64) {
	at := func(i int) uint64 {
		hi, lo := bits.Mul64(j.places(), uint64(i))
		q, _ := bits.Div64(hi, lo, uint64(j.Workers))
		return q
	}
	return at(worker), at(worker+1) - at(worker)
}
