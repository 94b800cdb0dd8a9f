// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"slices"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// formatStep is the most bytes that Format NVM erases with one request: it
// shares the poller with others.
const formatStep = maxWriteZeroes

// formatting is how much of a namespace Format NVM has yet to erase, in percent
// and at least 1; 0 while it is not being formatted.
type formatting struct{ atomic.Uint32 }

// progress returns the Format Progress Indicator (FPI).
func (f *formatting) progress() uint8 { return nvme.FPISupported | uint8(f.Load()) }

// lbaFormats are the blocks in bytes that a namespace can have, by LBA format.
var lbaFormats = [...]uint32{512, 4096}

// lbaFormat is the format of a block.
func lbaFormat(block uint32) uint8 { return uint8(slices.Index(lbaFormats[:], block)) }

// offers reports whether the namespace, whose volume is as info says, has
// blocks of this size or can be given them.
func (ns *Namespace) offers(info *volume.Info, block uint32) bool {
	return block == info.Block || ns.Reblock != nil && info.Size%uint64(block) == 0
}

// formatNVM erases a namespace (NVMe Base 5.14) and gives it another block, if
// the host wants one that it offers. Whether the host wants a secure erase or
// not, all that it wrote is gone when the command succeeds, and reads as zero.
// Until then other commands end with Format in Progress; if it fails or is
// cancelled, part of the data has been erased, the block is what it was, and
// the namespace works as before.
//
// Executed again after a restart it gives the same answer: if the block had
// changed by then, it is the format that the namespace has, and the erase is
// all that is left to do.
func (c *Controller) formatNVM(cmd *Command) {
	f := cmd.SQE.FormatNVM()
	w := c.here()
	if w == nil {
		cmd.finish(nvme.StatusNamespaceNotReady) // about to end
		return
	}
	if cmd.SQE.NSID == nvme.NSIDBroadcast || f.SES > nvme.SESUserData {
		cmd.invalid() // FNA: one namespace at a time, no cryptographic erase
		return
	}
	if int(f.LBAF) >= len(lbaFormats) || f.MSET || f.PI != 0 || f.PIL {
		cmd.finish(dnr(nvme.StatusInvalidFormat))
		return
	}
	cmd.worker = w
	if st := w.use(cmd, cmd.SQE.NSID); st != nvme.StatusSuccess {
		cmd.finish(st)
		return
	}
	if cmd.ns.readOnly {
		cmd.finish(dnr(nvme.StatusNamespaceWriteProtected))
		return
	}
	if !cmd.ns.ns.offers(cmd.ns.info, lbaFormats[f.LBAF]) {
		cmd.finish(dnr(nvme.StatusInvalidFormat))
		return
	}
	if !cmd.ns.ns.formatting.CompareAndSwap(0, 100) {
		cmd.finish(nvme.StatusFormatInProgress) // by another controller
		return
	}
	cmd.then = (*Command).erased
	cmd.eraseStep()
}

// here returns the worker on the admin poller, or nil.
func (c *Controller) here() *Worker {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workers {
		if w.p == c.p {
			return w
		}
	}
	return nil
}

// eraseStep erases what follows step, or makes it last if nothing does.
func (c *Command) eraseStep() {
	size := c.ns.info.Size
	left := size - c.step
	c.ns.ns.formatting.Store(max(1, uint32(left/max(1, size/100))))
	if left == 0 {
		c.submitTo(c.ns, volume.Flush, 0, 0, 0, nil)
		return
	}
	c.submitTo(c.ns, volume.WriteZeroes, volume.Deallocate, c.step, min(left, formatStep), nil)
}

// erased follows a step.
func (c *Command) erased(st nvme.Status) {
	done := c.req.Op == volume.Flush
	switch {
	case st != nvme.StatusSuccess:
	case c.cancelled && !done:
		st = nvme.StatusAbortRequested
	case c.admin.sub.Namespace(c.SQE.NSID) != c.ns.ns && !done:
		st = c.worker.missing(c.SQE.NSID) // who removed it waits
	case !done:
		c.step += c.req.Length
		c.eraseStep()
		return
	default:
		if block := lbaFormats[c.SQE.FormatNVM().LBAF]; block != c.ns.info.Block {
			c.reblock(block)
			return
		}
	}
	c.ns.ns.formatting.Store(0)
	c.finish(st)
}

// reblock gives the namespace, which has been erased, another block. It waits
// for all commands on the namespace, and so gives up its own hold first.
func (c *Command) reblock(block uint32) {
	n, p := c.ns, c.worker.p
	c.count(nil, nvme.StatusSuccess) // on the namespace as it was, it has ended
	c.ns = nil
	n.release()
	n.ns.Reblock(block, func(st nvme.Status) {
		_ = p.Post(func() { // which runs as long as a command is in execution
			n.ns.formatting.Store(0)
			c.finish(st)
		})
	})
}
