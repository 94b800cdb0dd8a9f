// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// lane is I/O on a queue pair of a guest, by one goroutine.
type lane struct {
	g       *guest
	n       *vfiousertest.NVMe
	pair    *vfiousertest.Pair
	strict  bool // completions are looked for after an interrupt only, as a driver does
	depth   int
	rng     *rand.Rand
	halted  *atomic.Bool
	largest int // bytes

	// Of the goroutine, and of who has waited for its end.
	flights map[*flight]bool
	last    time.Time // of the latest completion
	looked  time.Time // for commands that are not completed
	done    int       // completions since then
}

// flight is a command that is under way.
type flight struct {
	*access
	lane *lane
	buf  *vfiousertest.Buffer
}

// run keeps commands in flight until the lane is halted, and leaves them.
func (l *lane) run() {
	for spins := 0; !l.halted.Load(); {
		for len(l.flights) < l.depth {
			begun, err := l.begin()
			if err != nil {
				l.g.fail("queue %d: %v", l.pair.SQ.ID, err)
				return
			}
			if !begun {
				break
			}
		}
		if time.Since(l.looked) > time.Second {
			l.looked = time.Now()
			if f := l.oldest(); f != nil && time.Since(f.begun) > patience {
				l.g.fail("queue %d: %v has not ended after %v, and others have", l.pair.SQ.ID, f.access, time.Since(f.begun))
				return
			}
		}
		l.done = 0
		if err := l.pair.Poll(); err != nil {
			l.g.fail("%v", err)
			return
		}
		if l.done > 0 || len(l.flights) == 0 {
			l.last = time.Now()
			spins = 0
			if l.done == 0 {
				time.Sleep(time.Millisecond) // nothing to be had
			}
			continue
		}
		spins++
		if err := l.wait(spins); err != nil {
			l.g.fail("queue %d, %d commands in flight, of which the first is %v: %v", l.pair.SQ.ID, len(l.flights), l.oldest(), err)
			return
		}
	}
}

// wait waits a little for completions.
func (l *lane) wait(spins int) error {
	if late := time.Since(l.last); late > patience {
		return fmt.Errorf("no completion for %v; one is there: %t", late, l.pair.CQ.Pending())
	}
	i := l.pair.CQ.Interrupt
	switch {
	case i == nil && spins < 100:
		runtime.Gosched()
		return nil
	case i == nil:
		time.Sleep(100 * time.Microsecond)
		return nil
	}
	for !l.halted.Load() {
		_, err := i.Wait(20 * time.Millisecond)
		if err == nil && i == l.n.Client().INTx() {
			return l.n.Client().EndINTx()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !l.strict {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
			return err
		}
		if late := time.Since(l.last); late > patience {
			return fmt.Errorf("no interrupt for %v; a completion is there: %t", late, l.pair.CQ.Pending())
		}
	}
	return nil
}

func (l *lane) oldest() *flight {
	var first *flight
	for f := range l.flights {
		if first == nil || f.begun.Before(first.begun) {
			first = f
		}
	}
	return first
}

// begin begins a command, if one is to be had.
func (l *lane) begin() (bool, error) {
	slot := l.rng.IntN(len(l.g.disks))
	d := l.g.disks[slot]
	a := d.choose(l.rng, l.largest)
	if a == nil {
		return false, nil
	}
	f := &flight{access: a, lane: l}
	e := nvme.SQE{NSID: uint32(slot + 1)}
	if err := f.fill(&e); err != nil {
		a.lost()
		if len(l.flights) > 0 {
			err = nil // memory comes back
		}
		return false, err
	}
	l.flights[f] = true
	if err := l.pair.Submit(e, f.completed); err != nil {
		return false, err
	}
	return true, nil
}

// fill makes the command.
func (f *flight) fill(e *nvme.SQE) (err error) {
	mem := f.lane.n.Client().Memory()
	put := func(op nvme.IOOpcode, rw nvme.RW) {
		e.Opcode = uint8(op)
		rw.Put(e)
	}
	rw := nvme.RW{SLBA: f.lba, NLB: uint16(f.blocks - 1), FUA: f.fua}
	switch f.kind {
	case read:
		put(nvme.IORead, rw)
	case write:
		put(nvme.IOWrite, rw)
	case compare:
		put(nvme.IOCompare, rw)
	case writeZeroes:
		rw.DEAC = f.lane.rng.IntN(2) == 0
		put(nvme.IOWriteZeroes, rw)
	case flush:
		e.Opcode = uint8(nvme.IOFlush)
	case deallocate:
		nvme.DatasetManagement{AD: true}.Put(e)
		if f.buf, err = mem.NewBuffer(nvme.DSMRangeSize, vfiousertest.Shape{}); err != nil {
			return err
		}
		r := []nvme.DSMRange{{SLBA: f.lba, NLB: uint32(f.blocks)}}
		f.buf.Write(nvme.SliceBytes(r))
		f.buf.Set(e)
	}
	if f.data == nil {
		return nil
	}
	if f.buf, err = mem.NewBuffer(len(f.data), f.lane.shape()); err != nil {
		return err
	}
	if f.kind != read {
		f.buf.Write(f.data)
	} else {
		f.buf.Write(bytes.Repeat([]byte{0xa5}, len(f.data)))
	}
	f.buf.Set(e)
	return nil
}

// shape is one of the ways in which a buffer may lie.
func (l *lane) shape() vfiousertest.Shape {
	switch l.rng.IntN(6) {
	case 0:
		return vfiousertest.Shape{Scatter: true, Offset: 4 * l.rng.IntN(1024)}
	case 1:
		return vfiousertest.Shape{Scatter: true, SGL: 2 + l.rng.IntN(30), Offset: l.rng.IntN(4096)}
	case 2:
		return vfiousertest.Shape{Split: l.g.spec.high, ListOffset: 8 * l.rng.IntN(512)}
	}
	return vfiousertest.Shape{}
}

// completed is the end of the command. It is called while its lane polls.
func (f *flight) completed(c nvme.CQE) {
	l := f.lane
	delete(l.flights, f)
	now := time.Now()
	l.g.s.counts.ended(f.kind, now.Sub(f.begun), !l.g.spec.slow)
	l.done++
	switch st := c.StatusField(); {
	case st.Code() == nvme.StatusSuccess:
		if f.kind == read {
			f.buf.Read(f.data)
		}
		if err := f.access.done(); err != nil {
			l.g.fail("queue %d: %v", l.pair.SQ.ID, err)
		}
	case f.excuses(st):
		f.access.lost()
	default:
		l.g.fail("queue %d: %v: %v", l.pair.SQ.ID, f.access, st)
	}
	if f.buf != nil {
		f.buf.Free()
	}
}
