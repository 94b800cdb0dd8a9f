// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// ioCommand is one row of the table of I/O commands. Identify, the Commands
// Supported and Effects log and the documentation derive from it.
type ioCommand struct {
	execute   func(*Worker, *Command)
	effects   uint32 // of the effects log, without EffectSupported
	oncs      uint16 // bit of ONCS that announces it
	broadcast bool   // takes NSID FFFFFFFFh
}

// ioCommands is the NVM command set (NVM Command Set Specification 3), by opcode.
var ioCommands = [256]ioCommand{
	nvme.IOFlush:             {execute: (*Worker).flush, broadcast: true},
	nvme.IOWrite:             {execute: (*Worker).write, effects: nvme.EffectContentChange},
	nvme.IORead:              {execute: (*Worker).read},
	nvme.IOWriteZeroes:       {execute: (*Worker).writeZeroes, effects: nvme.EffectContentChange, oncs: nvme.ONCSWriteZeroes},
	nvme.IODatasetManagement: {execute: (*Worker).datasetManagement, effects: nvme.EffectContentChange, oncs: nvme.ONCSDatasetManagement},
}

// maxWriteZeroes is the longest Write Zeroes in bytes (Identify WZSL).
const maxWriteZeroes = 8 << 20

// dnr is a status that the same command would get again.
func dnr(st nvme.Status) nvme.Status { return st | nvme.StatusDNR }

// setRange checks a range of blocks against the namespace and stores it in the
// request.
func (c *Command) setRange(slba, blocks uint64) nvme.Status {
	n := c.ns
	if slba > n.blocks || blocks > n.blocks-slba {
		return dnr(nvme.StatusLBAOutOfRange)
	}
	c.req.Offset, c.req.Length = slba<<n.shift, blocks<<n.shift
	return nvme.StatusSuccess
}

// submit gives the request to the volume.
func (c *Command) submit(op volume.Op, flags volume.Flags) {
	c.req.Op, c.req.Flags, c.req.Segments = op, flags, c.Segments
	c.ns.queue.Submit(&c.req)
}

// Completed implements volume.Owner: it is called once per request.
func (c *Command) Completed(r *volume.Request) {
	if r.Status != nvme.StatusSuccess {
		c.worker.failed(r)
	}
	switch {
	case r.Op == volume.Flush && c.SQE.NSID == nvme.NSIDBroadcast:
		if c.Status == nvme.StatusSuccess {
			c.Status = r.Status // the first error is the command's
		}
		c.nextFlush()
	case r.Op == volume.Discard && r.Status == nvme.StatusSuccess:
		c.step++
		c.nextRange()
	default:
		c.finish(r.Status)
	}
}

// failed counts media errors.
func (w *Worker) failed(r *volume.Request) {
	if r.Status.Code()>>8 == nvme.Status(nvme.SCTMedia) {
		w.counts.MediaErrors++
	}
}

// transfer begins a command that moves data between host and volume.
func (c *Command) transfer(dir Direction, next func(*Command)) {
	rw := c.SQE.RW()
	if st := c.setRange(rw.SLBA, uint64(rw.Blocks())); st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	if rw.PRINFO != 0 || c.req.Length > dma.MaxTransfer {
		c.finish(dnr(nvme.StatusInvalidField))
		return
	}
	c.data(uint32(c.req.Length), dir, next)
}

func (w *Worker) read(c *Command) {
	c.transfer(ToHost, submitRead)
}

func submitRead(c *Command) {
	c.worker.counts.ReadCommands++
	c.worker.counts.ReadBytes += c.req.Length
	c.submit(volume.Read, 0)
}

func (w *Worker) write(c *Command) {
	if c.ns.info.ReadOnly {
		c.finish(dnr(nvme.StatusNamespaceWriteProtected))
		return
	}
	if c.SQE.RW().DTYPE != 0 {
		c.finish(dnr(nvme.StatusInvalidField)) // directives are not supported
		return
	}
	c.transfer(FromHost, submitWrite)
}

func submitWrite(c *Command) {
	c.worker.counts.WriteCommands++
	c.worker.counts.WrittenBytes += c.req.Length
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
	rw := c.SQE.RW()
	if c.ns.info.ReadOnly {
		c.finish(dnr(nvme.StatusNamespaceWriteProtected))
		return
	}
	if st := c.setRange(rw.SLBA, uint64(rw.Blocks())); st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	if rw.PRINFO != 0 || c.req.Length > maxWriteZeroes {
		c.finish(dnr(nvme.StatusInvalidField))
		return
	}
	flags := c.fua()
	if rw.DEAC {
		flags |= volume.Deallocate
	}
	c.submit(volume.WriteZeroes, flags)
}

func (w *Worker) flush(c *Command) {
	if c.SQE.NSID == nvme.NSIDBroadcast {
		c.nextFlush()
		return
	}
	c.submit(volume.Flush, 0)
}

// nextFlush flushes one namespace after the other, whatever becomes of the ones
// before; step is the last NSID done.
func (c *Command) nextFlush() {
	if c.ns != nil {
		ns := c.ns
		c.ns = nil
		ns.release()
	}
	for c.step++; c.step < uint32(len(c.worker.ns)); c.step++ {
		if c.worker.use(c, c.step) {
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
	if c.ns.info.ReadOnly {
		c.finish(dnr(nvme.StatusNamespaceWriteProtected))
		return
	}
	if !dsm.AD {
		c.finish(nvme.StatusSuccess)
		return
	}
	c.data(uint32(dsm.Ranges()*nvme.DSMRangeSize), FromHost, (*Command).nextRange)
}

// nextRange discards range number step. A range is read from the host's memory
// once.
func (c *Command) nextRange() {
	var r nvme.DSMRange
	for ; c.step < uint32(c.SQE.DatasetManagement().Ranges()); c.step++ {
		before := c.worker.p.Touch(c)
		ok := c.copyIn(nvme.Bytes(&r), uint64(c.step)*nvme.DSMRangeSize)
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
