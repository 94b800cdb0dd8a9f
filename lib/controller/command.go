// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
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
	SQE      nvme.SQE
	Segments []dma.Segment // set by Carrier.Data
	DW0, DW1 uint32        // of the completion
	Status   nvme.Status
	Carrier  Carrier

	admin  *Controller // of an admin command
	worker *Worker     // of an I/O command
	ns     *nsQueue
	next   func(*Command) // goes on when the data is there
	step   uint32         // progress of commands that need several requests
	req    volume.Request
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
	c.admin, c.worker, c.ns, c.next, c.step = nil, nil, nil, nil, 0
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
	c.next(c)
}

// finish ends the command.
func (c *Command) finish(st nvme.Status) {
	c.Status = st
	if ns := c.ns; ns != nil {
		c.ns = nil
		ns.release()
	}
	if c.admin != nil && st != nvme.StatusSuccess {
		c.admin.failed(c)
	}
	c.Carrier.Complete()
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

// copyOut copies p to the start of the command's data, as much as fits.
func (c *Command) copyOut(p []byte) {
	for _, s := range c.Segments {
		p = p[copy(s.Bytes(), p):]
	}
}
