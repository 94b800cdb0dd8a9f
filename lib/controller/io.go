// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// ioCommand is one row of the table of I/O commands. Identify, the Commands
// Supported and Effects log and the documentation derive from it.
type ioCommand struct {
	execute   func(*Worker, *Command)
	effects   uint32 // of the effects log, without EffectSupported
	oncs      uint16 // bit of ONCS that announces it
	fuses     uint16 // bit of FUSES: it may be the first of such a pair
	changes   bool   // it changes the namespace: not one that is write protected
	broadcast bool   // takes NSID FFFFFFFFh
	kind      stats.Kind
}

// ioCommands is the NVM command set (NVM Command Set Specification 3), by opcode.
var ioCommands = [256]ioCommand{
	nvme.IOFlush:             {execute: (*Worker).flush, kind: stats.Flush, broadcast: true},
	nvme.IOWrite:             {execute: (*Worker).write, kind: stats.Write, changes: true, effects: nvme.EffectContentChange},
	nvme.IORead:              {execute: (*Worker).read, kind: stats.Read},
	nvme.IOCompare:           {execute: (*Worker).compare, kind: stats.Compare, oncs: nvme.ONCSCompare, fuses: nvme.FUSESCompareAndWrite},
	nvme.IOWriteZeroes:       {execute: (*Worker).writeZeroes, kind: stats.WriteZeroes, changes: true, effects: nvme.EffectContentChange, oncs: nvme.ONCSWriteZeroes},
	nvme.IODatasetManagement: {execute: (*Worker).datasetManagement, kind: stats.Discard, changes: true, effects: nvme.EffectContentChange, oncs: nvme.ONCSDatasetManagement},
	nvme.IOVerify:            {execute: (*Worker).verify, kind: stats.Verify, oncs: nvme.ONCSVerify},
	nvme.IOCopy:              {execute: (*Worker).copyBlocks, kind: stats.Copy, changes: true, effects: nvme.EffectContentChange, oncs: nvme.ONCSCopy},
}

// maxWriteZeroes and maxVerify are the longest Write Zeroes and Verify in bytes
// (Identify WZSL and VSL).
const (
	maxWriteZeroes = 8 << 20
	maxVerify      = 8 << 20
)

// dnr is a status that the same command would get again.
func dnr(st nvme.Status) nvme.Status { return st | nvme.StatusDNR }

// setRange checks a range of blocks against the namespace and makes it the
// command's.
func (c *Command) setRange(slba, blocks uint64) nvme.Status {
	var ok bool
	if c.off, c.length, ok = c.ns.bytes(slba, blocks); !ok {
		return dnr(nvme.StatusLBAOutOfRange)
	}
	return nvme.StatusSuccess
}

// bytes converts a range of blocks; ok is false where it is not all within the
// namespace.
func (n *nsQueue) bytes(slba, blocks uint64) (off, length uint64, ok bool) {
	if size := n.blocks; slba > size || blocks > size-slba {
		// Its host may know that the volume has grown before this worker does.
		now := n.ns.Volume.Info()
		size = now.Size >> n.shift
		if now.Block != n.info.Block || slba > size || blocks > size-slba {
			return 0, 0, false
		}
	}
	return slba << n.shift, blocks << n.shift, true
}

// submit gives a request for the command's range and data to its volume.
func (c *Command) submit(op volume.Op, flags volume.Flags) {
	c.submitTo(c.ns, op, flags, c.off, c.length, c.Segments)
}

// submitTo gives a request to the volume of n.
func (c *Command) submitTo(n *nsQueue, op volume.Op, flags volume.Flags, off, length uint64, segs []dma.Segment) {
	r := &c.req
	r.Op, r.Flags, r.Offset, r.Length, r.Segments = op, flags, off, length, segs
	c.at = n
	if changes := op != volume.Read && op != volume.Flush; !changes || n.admit(c) {
		n.queue.Submit(r)
	}
}

// Completed implements volume.Owner: it is called once per request.
func (c *Command) Completed(r *volume.Request) {
	if c.listed {
		c.at.writes.remove(c)
	}
	if r.Status.Code()>>8 == nvme.Status(nvme.SCTMedia) {
		c.at.stats.MediaError()
	}
	c.at = nil
	if c.pair != nil && r.Status.Code() == nvme.StatusAbortRequested && c.stopped() {
		return
	}
	c.requestEnded(r.Status)
}

// requestEnded goes on after a request, or ends the command with it.
func (c *Command) requestEnded(st nvme.Status) {
	if c.then != nil {
		c.then(c, st)
	} else {
		c.finish(st)
	}
}

// transfer begins a command that moves data between host and volume.
func (c *Command) transfer(dir Direction, next func(*Command)) {
	rw := c.SQE.RW()
	if st := c.setRange(rw.SLBA, uint64(rw.Blocks())); st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	if rw.PRINFO != 0 || c.length > dma.MaxTransfer {
		c.finish(dnr(nvme.StatusInvalidField))
		return
	}
	c.data(uint32(c.length), dir, next)
}

func (w *Worker) read(c *Command) {
	c.transfer(ToHost, submitRead)
}

func submitRead(c *Command) {
	c.settled(func(c *Command) { c.submit(volume.Read, 0) })
}

// settled goes on with next when what the command is to read is on the medium:
// with Force Unit Access, what the volume's cache holds must get there first
// (NVM Command Set 3.2.4).
func (c *Command) settled(next func(*Command)) {
	if !c.SQE.RW().FUA || !c.ns.info.VolatileCache {
		next(c)
		return
	}
	c.next = next
	c.then = func(c *Command, st nvme.Status) {
		c.then = nil
		if st != nvme.StatusSuccess {
			c.finish(st)
		} else if !c.stopped() {
			c.next(c)
		}
	}
	c.submitTo(c.ns, volume.Flush, 0, 0, 0, nil)
}

func (w *Worker) write(c *Command) {
	if c.SQE.RW().DTYPE != 0 {
		c.finish(dnr(nvme.StatusInvalidField)) // directives are not supported
		return
	}
	c.transfer(FromHost, submitWrite)
}

func submitWrite(c *Command) {
	c.submit(volume.Write, c.fua())
}

// fua returns the flag for a command with Force Unit Access, or for every
// write while the host has disabled the volatile write cache.
func (c *Command) fua() volume.Flags {
	if c.SQE.RW().FUA || c.worker.c.writeThrough.Load() {
		return volume.FUA
	}
	return 0
}

func (w *Worker) writeZeroes(c *Command) {
	if !c.extent(maxWriteZeroes) {
		return
	}
	flags := c.fua()
	if c.SQE.RW().DEAC {
		flags |= volume.Deallocate
	}
	c.submit(volume.WriteZeroes, flags)
}

// extent sets the range of a command that moves no data, of at most limit
// bytes; otherwise it has ended the command.
func (c *Command) extent(limit uint64) bool {
	rw := c.SQE.RW()
	if st := c.setRange(rw.SLBA, uint64(rw.Blocks())); st != nvme.StatusSuccess {
		c.finish(st)
		return false
	}
	if rw.PRINFO != 0 || c.length > limit {
		c.finish(dnr(nvme.StatusInvalidField))
		return false
	}
	return true
}

func (w *Worker) flush(c *Command) {
	if c.SQE.NSID == nvme.NSIDBroadcast {
		c.then = flushed
		c.nextFlush()
		return
	}
	c.submit(volume.Flush, 0)
}

// flushed follows one flush of several: the first error is the command's.
func flushed(c *Command, st nvme.Status) {
	if c.Status == nvme.StatusSuccess {
		c.Status = st
	}
	ns := c.ns
	c.count(nil, st)
	c.ns = nil
	ns.release()
	if !c.stopped() {
		c.nextFlush()
	}
}

// nextFlush flushes one namespace after the other, whatever becomes of the ones
// before; step is the last NSID done.
func (c *Command) nextFlush() {
	for c.step++; c.step < uint64(len(c.worker.ns)); c.step++ {
		if c.worker.use(c, uint32(c.step)) == nvme.StatusSuccess {
			c.submit(volume.Flush, 0)
			return
		}
	}
	c.finish(c.Status)
}

// datasetManagement deallocates ranges, one after the other. Without AD the
// command is a hint that needs no action.
func (w *Worker) datasetManagement(c *Command) {
	dsm := c.SQE.DatasetManagement()
	if !dsm.AD {
		c.finish(nvme.StatusSuccess)
		return
	}
	c.then = discarded
	c.data(uint32(dsm.Ranges()*nvme.DSMRangeSize), FromHost, (*Command).nextRange)
}

func discarded(c *Command, st nvme.Status) {
	if st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	c.discarded += c.length
	if c.step++; !c.stopped() {
		c.nextRange()
	}
}

// nextRange discards range number step. A range is read from the host's memory
// once.
func (c *Command) nextRange() {
	var r nvme.DSMRange
	for ; c.step < uint64(c.SQE.DatasetManagement().Ranges()); c.step++ {
		before := c.worker.p.Touch(c)
		ok := c.copyIn(nvme.Bytes(&r), c.step*nvme.DSMRangeSize)
		c.worker.p.Touch(before)
		if !ok {
			c.finish(dnr(nvme.StatusInvalidField))
			return
		}
		if st := c.setRange(r.SLBA, uint64(r.NLB)); st != nvme.StatusSuccess {
			c.finish(st)
			return
		}
		if r.NLB > 0 {
			c.submit(volume.Discard, 0)
			return
		}
	}
	c.finish(nvme.StatusSuccess)
}
