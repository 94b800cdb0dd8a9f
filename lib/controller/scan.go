// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// scratchSize is the size in bytes of a worker's buffer: the piece by which
// commands read that do not read for the host.
const scratchSize = 256 << 10

// scratch is a worker's memory for what Compare, Verify and Copy read: one
// buffer, page-aligned for direct I/O, that commands use one after the other in
// the order they asked for it. It is made when it is first wanted. A command
// gives it back when it ends.
type scratch struct {
	w       *Worker
	buf     []byte
	segment [1]dma.Segment
	user    *Command
	waiting []*Command
	ranges  []source // of the Copy that is the user
}

// scratch goes on with next when the command has the worker's buffer.
func (c *Command) withScratch(next func(*Command)) {
	s := &c.worker.scratch
	if err := s.make(); err != nil {
		c.worker.c.log.Error("command cannot be executed", "err", err)
		c.finish(nvme.StatusInternalError)
		return
	}
	c.next = next
	if s.user != nil || len(s.waiting) > 0 {
		s.waiting = append(s.waiting, c)
		return
	}
	s.user = c
	next(c)
}

// make makes the buffer, if there is none yet.
func (s *scratch) make() (err error) {
	if s.buf != nil {
		return nil
	}
	s.buf, err = unix.Mmap(-1, 0, scratchSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("making a buffer of %d bytes: %w", scratchSize, err)
	}
	return nil
}

// unmap gives the buffer up; nobody uses it.
func (s *scratch) unmap() {
	if s.buf != nil {
		_ = unix.Munmap(s.buf)
		s.buf = nil
	}
}

// piece returns the first n bytes of the buffer.
func (s *scratch) piece(n uint64) []dma.Segment {
	s.segment[0] = dma.SegmentOf(s.buf[:n])
	return s.segment[:]
}

// release takes the buffer from its user. The next one goes on later, so that
// many that end at once do not run within one another.
func (s *scratch) release() {
	s.user = nil
	for _, r := range s.ranges {
		r.ns.release()
	}
	s.ranges = s.ranges[:0]
	if len(s.waiting) > 0 {
		s.w.p.Defer(s)
	}
}

// Run implements poller.Runnable: the next in line gets the buffer.
func (s *scratch) Run() {
	if s.user != nil || len(s.waiting) == 0 {
		return
	}
	c := s.waiting[0]
	s.waiting = slices.Delete(s.waiting, 0, 1)
	s.user = c
	c.next(c)
}

// drop takes a command out of those that wait, and reports whether it was there.
func (s *scratch) drop(c *Command) bool {
	i := slices.Index(s.waiting, c)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	return i >= 0
}

// compare compares the range with the host's data.
func (w *Worker) compare(c *Command) {
	c.transfer(FromHost, (*Command).scan)
}

// verify reads the range and gives the data to nobody.
func (w *Worker) verify(c *Command) {
	if c.extent(maxVerify) {
		c.scan()
	}
}

// scan reads the command's range piece by piece. The pieces of a Compare are
// compared with the host's data.
func (c *Command) scan() {
	c.withScratch(func(c *Command) {
		c.fencePair(func(c *Command) { c.settled(scanFirst) })
	})
}

func scanFirst(c *Command) {
	c.then = scanned
	c.scanPiece()
}

// scanPiece reads the piece at step, if there is one.
func (c *Command) scanPiece() {
	n := min(c.length-c.step, scratchSize)
	if n == 0 {
		if c.pair != nil {
			c.writePair()
		} else {
			c.finish(nvme.StatusSuccess)
		}
		return
	}
	c.submitTo(c.ns, volume.Read, 0, c.off+c.step, n, c.worker.scratch.piece(n))
	c.worker.p.Tick() // it may have taken all of a turn
}

// scanned follows the reading of a piece.
func scanned(c *Command, st nvme.Status) {
	if st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	if nvme.IOOpcode(c.SQE.Opcode) == nvme.IOCompare {
		before := c.worker.p.Touch(c)
		same := c.expects(c.worker.scratch.buf[:c.req.Length])
		c.worker.p.Touch(before)
		if !same {
			c.finish(nvme.StatusCompareFailure)
			return
		}
	}
	c.step += c.req.Length
	if !c.stopped() {
		c.scanPiece()
	}
}

// expects reports whether the piece p of what was read is what the host expects.
// A pair that had begun to write also expects that, block by block: the first
// time may not have come to its end, and so it writes once more.
func (c *Command) expects(p []byte) bool {
	if c.pair == nil || c.kept() != keptCompared {
		return c.matches(p, c.step)
	}
	for off := uint64(0); off < uint64(len(p)); off += uint64(c.ns.info.Block) {
		block := p[off:][:c.ns.info.Block]
		if !c.matches(block, c.step+off) && !c.pair.matches(block, c.step+off) {
			return false
		}
	}
	return true
}
