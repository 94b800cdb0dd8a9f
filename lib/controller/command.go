// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// Direction is the way of a command's data.
type Direction uint8

// Directions of data.
const (
	ToHost   Direction = iota // controller to host: reads, Identify, log pages
	FromHost                  // host to controller: writes, Set Features data
)

// Carrier is what a transport is to one of its commands.
type Carrier interface {
	// Data makes n bytes of the command's data reachable as Command.Segments,
	// n being 1 to dma.MaxTransfer. If ready is true the outcome is st.
	// Otherwise the data is on its way, and the transport calls Command.Ready
	// on the same poller later. A second call for the same command is an error
	// of the caller.
	Data(n uint32, dir Direction) (ready bool, st nvme.Status)
	// Complete sends the result (Command.DW0, DW1, Status) and, for ToHost,
	// the data. The command may be reused from then on.
	Complete()
}

// Command is one command in execution. It is part of a transport's own record
// of the command, which is reused: nothing is allocated per command.
type Command struct {
	SQE nvme.SQE
	// SQID is the submission queue the command came from: the halves of a fused
	// pair come from the same one. A transport with one queue per worker may
	// leave it 0.
	SQID uint16
	// Kept is a word of the transport's that a process after this one, which
	// executes the command again, finds as it was left; 0 when the command is
	// new. nil: no process comes after this one. See pairs.
	Kept     *uint64
	Segments []dma.Segment // set by Carrier.Data
	DW0, DW1 uint32        // of the completion
	Status   nvme.Status
	Carrier  Carrier
	Stats    *stats.Set // counts the command for the transport; nil: nothing does

	admin  *Controller // of an admin command
	worker *Worker     // of an I/O command
	ns     *nsQueue
	next   func(*Command) // goes on when what is waited for is there
	// then is told the end of a request; nil: that is the end of the command.
	then        func(*Command, nvme.Status)
	off, length uint64        // range of the command in bytes
	discarded   uint64        // bytes of the ranges before it
	began       time.Duration // as poller.Now; 0: the command is not counted
	kind        stats.Kind
	step        uint64   // progress of commands that need several requests
	at          *nsQueue // has the request, or holds it back
	pair        *Command // the other half of a fused pair
	cancelled   bool
	fenced      bool // a pair that holds the namespace's fence
	listed      bool // among the writes of at
	seq         uint64
	before      *Command // neighbours there
	after       *Command
	req         volume.Request
}

// Init prepares a record for its first command. carrier is the record itself.
func (c *Command) Init(carrier Carrier) {
	c.Carrier = carrier
	c.req.Owner = c
}

// begin prepares the record for a new command.
func (c *Command) begin() {
	c.Segments = c.Segments[:0]
	c.DW0, c.DW1, c.Status = 0, 0, nvme.StatusSuccess
	c.admin, c.worker, c.ns, c.next, c.then, c.at, c.pair = nil, nil, nil, nil, nil, nil, nil
	c.off, c.length, c.step, c.discarded, c.kind = 0, 0, 0, 0, stats.Others
	c.cancelled, c.fenced = false, false
}

// data asks for n bytes of data and goes on with next when they are there. An
// n of 0 goes on at once.
func (c *Command) data(n uint32, dir Direction, next func(*Command)) {
	if n == 0 {
		next(c)
		return
	}
	c.next = next
	if ready, st := c.Carrier.Data(n, dir); ready {
		c.Ready(st)
	}
}

// Ready goes on with a command whose data is there, or is known not to come.
func (c *Command) Ready(st nvme.Status) {
	if st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	if !c.stopped() {
		c.next(c)
	}
}

// finish ends the command, and the other half of its pair.
func (c *Command) finish(st nvme.Status) {
	if c.pair != nil {
		c.finishPair(st)
		return
	}
	c.Status = st
	if w := c.worker; w != nil && w.scratch.user == c {
		w.scratch.release()
	}
	c.count(c.Stats, st)
	if ns := c.ns; ns != nil {
		c.ns = nil
		ns.release()
	}
	if c.admin != nil && st != nvme.StatusSuccess {
		c.admin.failed(c)
	}
	c.Carrier.Complete()
}

// Cancel wishes that the command ends soon: with Abort Requested, unless its end
// was near. It is called on the command's poller, before its end, and the
// Carrier is told the end as ever, possibly before Cancel returns. What a
// command has done by then stays done.
func (c *Command) Cancel() {
	if c.cancelled {
		return
	}
	c.cancelled = true
	if c.admin != nil {
		c.admin.cancel(c)
	}
	if w := c.worker; w != nil && (w.pairs.drop(c) || w.scratch.drop(c) || c.pair != nil && w.scratch.drop(c.pair)) {
		c.finish(nvme.StatusAbortRequested)
		return
	}
	for _, half := range [...]*Command{c, c.pair} {
		if half == nil || half.at == nil {
			continue
		}
		if half.at.drop(half) {
			half.requestEnded(nvme.StatusAbortRequested)
		} else {
			half.at.queue.Cancel(&half.req)
		}
		return
	}
}

// stopped ends a command that was cancelled, between two steps, and reports
// whether it did.
func (c *Command) stopped() bool {
	for _, half := range [...]*Command{c, c.pair} {
		if half != nil && half.cancelled {
			half.finish(nvme.StatusAbortRequested)
			return true
		}
	}
	return false
}

// Faulted implements poller.Toucher: the host took away memory that was being
// accessed for this command.
func (c *Command) Faulted() { c.finish(nvme.StatusDataTransferError) }

// copyIn copies data of the command, from offset off, to p. It reports whether
// there was enough.
func (c *Command) copyIn(p []byte, off uint64) bool {
	for _, s := range c.Segments {
		if off >= s.Len {
			off -= s.Len
			continue
		}
		n := copy(p, s.Bytes()[off:])
		if p, off = p[n:], 0; len(p) == 0 {
			return true
		}
	}
	return len(p) == 0
}

// matches compares data of the command, from offset off, with p. Data that is
// too short does not match.
func (c *Command) matches(p []byte, off uint64) bool {
	for _, s := range c.Segments {
		if off >= s.Len {
			off -= s.Len
			continue
		}
		data := s.Bytes()[off:]
		n := min(len(p), len(data))
		if !bytes.Equal(p[:n], data[:n]) {
			return false
		}
		if p, off = p[n:], 0; len(p) == 0 {
			return true
		}
	}
	return len(p) == 0
}

// copyOut copies p to the start of the command's data, as much as fits.
func (c *Command) copyOut(p []byte) {
	for _, s := range c.Segments {
		p = p[copy(s.Bytes(), p):]
	}
}
