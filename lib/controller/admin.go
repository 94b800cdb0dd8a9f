// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// adminCommand is one row of the table of admin commands. The Commands
// Supported and Effects log derives from it.
type adminCommand struct {
	execute func(*Controller, *Command)
	effects uint32                 // of the effects log, without EffectSupported
	oacs    uint16                 // bit of OACS that announces it
	offered func(*Controller) bool // nil: by every controller
}

// adminCommands is the admin command set (NVMe Base 5), by opcode. It is filled
// in by init because the handler of Get Log Page shows it (log page 05h).
var adminCommands [256]adminCommand

func init() {
	adminCommands = [256]adminCommand{
		nvme.AdminDeleteIOSQ:           {execute: (*Controller).deleteSQ, effects: nvme.ScopeController, offered: (*Controller).hasQueues},
		nvme.AdminCreateIOSQ:           {execute: (*Controller).createSQ, effects: nvme.ScopeController, offered: (*Controller).hasQueues},
		nvme.AdminGetLogPage:           {execute: (*Controller).getLogPage, effects: nvme.ScopeController},
		nvme.AdminDeleteIOCQ:           {execute: (*Controller).deleteCQ, effects: nvme.ScopeController, offered: (*Controller).hasQueues},
		nvme.AdminCreateIOCQ:           {execute: (*Controller).createCQ, effects: nvme.ScopeController, offered: (*Controller).hasQueues},
		nvme.AdminIdentify:             {execute: (*Controller).identify, effects: nvme.ScopeController},
		nvme.AdminAbort:                {execute: (*Controller).abort, effects: nvme.ScopeController},
		nvme.AdminSetFeatures:          {execute: (*Controller).setFeatures, effects: nvme.ScopeController | nvme.ScopeNamespace},
		nvme.AdminGetFeatures:          {execute: (*Controller).getFeatures, effects: nvme.ScopeController | nvme.ScopeNamespace},
		nvme.AdminAsyncEventRequest:    {execute: (*Controller).asyncEventRequest, effects: nvme.ScopeController},
		nvme.AdminKeepAlive:            {execute: (*Controller).keepAliveCommand, effects: nvme.ScopeController, offered: (*Controller).hasKeepAlive},
		nvme.AdminDoorbellBufferConfig: {execute: (*Controller).doorbellBuffer, effects: nvme.ScopeController, oacs: nvme.OACSDoorbellBuffer, offered: (*Controller).canShadow},
		nvme.AdminFormatNVM: {
			execute: (*Controller).formatNVM, oacs: nvme.OACSFormatNVM,
			effects: nvme.ScopeNamespace | nvme.EffectContentChange | nvme.EffectNamespaceCapability | nvme.EffectNoOthersSameNamespace,
		},
	}
}

// has reports whether controller c has the command.
func (op *adminCommand) has(c *Controller) bool {
	return op.execute != nil && (op.offered == nil || op.offered(c))
}

// hasQueues reports whether queues are made by admin commands.
func (c *Controller) hasQueues() bool { return c.cfg.Queues != nil }

// canShadow reports whether Doorbell Buffer Config is offered.
func (c *Controller) canShadow() bool { return c.cfg.Queues != nil && c.cfg.Queues.CanShadow() }

// Admin runs an admin command. It is called on the admin poller, and not again
// before the command has ended or is among the Parked ones. The command's
// Carrier is told the end, possibly before Admin returns.
func (c *Controller) Admin(cmd *Command) {
	cmd.begin()
	cmd.admin = c
	if cmd.began = 0; nvme.AdminOpcode(cmd.SQE.Opcode) != nvme.AdminAsyncEventRequest {
		cmd.began = c.p.Now() // an event request waits for something to happen
	}
	op := &adminCommands[cmd.SQE.Opcode]
	switch {
	case c.events.request(cmd.SQE.CID) != nil:
		// Of the commands that have not ended, those are the only ones.
		cmd.finish(dnr(nvme.StatusCIDConflict))
	case !op.has(c):
		cmd.finish(dnr(nvme.StatusInvalidOpcode))
	case cmd.SQE.Fuse() != nvme.FuseNone, !knownPSDT(&cmd.SQE):
		cmd.finish(dnr(nvme.StatusInvalidField))
	default:
		op.execute(c, cmd)
	}
}

// reply ends a command with p as its data. len(p) is at most dma.MaxTransfer.
func (c *Controller) reply(cmd *Command, p []byte) {
	cmd.data(uint32(len(p)), ToHost, func(cmd *Command) {
		c.send(cmd, p)
		cmd.finish(nvme.StatusSuccess)
	})
}

// send copies p to the command's data, which is there. The host may have taken
// that memory away: then this call does not return, and the command ends by
// Faulted.
func (c *Controller) send(cmd *Command, p []byte) {
	before := c.p.Touch(cmd)
	cmd.copyOut(p)
	c.p.Touch(before)
}

// receive copies the command's data, which is there, to p, as send does. It
// reports whether there was enough.
func (c *Controller) receive(cmd *Command, p []byte) bool {
	before := c.p.Touch(cmd)
	ok := cmd.copyIn(p, 0)
	c.p.Touch(before)
	return ok
}

// prpOnly reports whether a command of the queues' transport uses PRPs, as the
// address of a queue must; otherwise it has ended the command.
func prpOnly(cmd *Command) bool {
	if cmd.SQE.PSDT() != nvme.PSDTPRP {
		cmd.finish(dnr(nvme.StatusInvalidField))
		return false
	}
	return true
}

func (c *Controller) createCQ(cmd *Command) {
	create := cmd.SQE.CreateCQ()
	if !prpOnly(cmd) {
		return
	}
	if create.QID > c.features.queues().NCQ()+1 {
		cmd.finish(dnr(nvme.StatusInvalidQueueIdentifier))
		return
	}
	c.cfg.Queues.CreateCQ(create, cmd.SQE.PRP1, func(st nvme.Status) { c.created(cmd, st) })
}

func (c *Controller) createSQ(cmd *Command) {
	create := cmd.SQE.CreateSQ()
	if !prpOnly(cmd) {
		return
	}
	if create.QID > c.features.queues().NSQ()+1 {
		cmd.finish(dnr(nvme.StatusInvalidQueueIdentifier))
		return
	}
	c.cfg.Queues.CreateSQ(create, cmd.SQE.PRP1, func(st nvme.Status) { c.created(cmd, st) })
}

// created ends the creation of a queue.
func (c *Controller) created(cmd *Command, st nvme.Status) {
	if st == nvme.StatusSuccess {
		c.queueMade = true
	}
	cmd.finish(st)
}

// ConnectQueue says whether I/O queue qid may be made by Connect, which is the
// transport's: it has been granted (Number of Queues). It is called on the
// admin poller.
func (c *Controller) ConnectQueue(qid uint16) bool {
	if qid == 0 || int(qid) > int(c.features.queues().NSQ())+1 {
		return false
	}
	c.queueMade = true
	return true
}

func (c *Controller) deleteCQ(cmd *Command) { c.cfg.Queues.DeleteCQ(cmd.SQE.DeleteQID(), cmd.finish) }

func (c *Controller) deleteSQ(cmd *Command) { c.cfg.Queues.DeleteSQ(cmd.SQE.DeleteQID(), cmd.finish) }

func (c *Controller) doorbellBuffer(cmd *Command) {
	if !prpOnly(cmd) {
		return
	}
	pages := cmd.SQE.DoorbellBuffer()
	c.cfg.Queues.Shadow(pages.Shadow, pages.EventIndex, cmd.finish)
}

// acl is the Abort Command Limit, minus one. Admin commands are executed one at
// a time, so that it is never exceeded.
const acl = 3

// Aborter is a transport that can find a command in execution.
type Aborter interface {
	// Abort calls Command.Cancel for the command cid of I/O submission queue
	// sqid, on its poller, and reports on the admin poller whether it ended
	// with Abort Requested; false where there is no such command, or where it
	// does not end soon: no other admin command is executed meanwhile. done is
	// called after the command's result has been published.
	Abort(sqid, cid uint16, done func(aborted bool))
}

// abort aborts a command, if it can be found (NVMe Base 5.1): Asynchronous
// Event Requests, since no other admin command is in execution at the same
// time, and I/O commands where the transport helps.
func (c *Controller) abort(cmd *Command) {
	target := cmd.SQE.Abort()
	answer := func(aborted bool) {
		if !aborted {
			cmd.DW0 = nvme.AbortNotDone
		}
		cmd.finish(nvme.StatusSuccess)
	}
	if target.SQID == 0 {
		request := c.events.request(target.CID)
		if request != nil {
			request.Cancel()
		}
		answer(request != nil)
		return
	}
	if c.cfg.Aborter != nil {
		c.cfg.Aborter.Abort(target.SQID, target.CID, answer)
		return
	}
	answer(false)
}

// cancel follows Command.Cancel of an admin command.
func (c *Controller) cancel(cmd *Command) {
	if i := slices.Index(c.events.parked, cmd); i >= 0 {
		c.events.parked = slices.Delete(c.events.parked, i, i+1)
		cmd.finish(nvme.StatusAbortRequested)
	}
}
