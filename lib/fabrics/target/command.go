// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
)

// stage is where a command is.
type stage uint8

const (
	unused    stage = iota
	arriving        // data of its capsule is
	pending         // an admin command whose turn has not come, or half of a fused pair
	executing       // the controller has it, or the volume
	waiting         // for buffers
	asked           // the host for its data
	done            // its result is being sent
)

// command is one command. A queue reuses them.
type command struct {
	controller.Command
	q       *queue
	index   uint16 // TTAG of its R2T
	stage   stage
	inline  []byte // memory for data in the capsule, or small data
	front   []byte // what is before it
	icd     uint32 // bytes of it
	damaged bool   // data did not match its digest

	n       uint32 // bytes of data that come or go outside of the capsule
	dir     controller.Direction
	got     uint32 // of them received
	last    bool   // the H2CData being received says it is the last
	buffers []*buffer
	floored bool     // it has the floor of its account instead
	account *account // of buffers, and while it waits
	before  *command // neighbours among those that wait
	after   *command

	// next goes on when data is there, in place of the controller.
	next  func(nvme.Status)
	admin bool   // among the admin commands in execution
	muted bool   // its result is not for the host
	abort *abort // an Abort command waits for the end

	data tcp.Out // R2T or C2HData
	resp tcp.Out
}

// Data implements controller.Carrier.
func (c *command) Data(n uint32, dir controller.Direction) (ready bool, st nvme.Status) {
	if c.SQE.PSDT() != nvme.PSDTSGL {
		return true, nvme.StatusInvalidField | nvme.StatusDNR
	}
	sgl := c.SQE.SGL1()
	switch {
	case sgl.Type() == nvme.SGLDataBlock && sgl.Subtype() == nvme.SGLOffset && dir == controller.FromHost:
		return true, c.capsuleData(&sgl, n)
	case sgl.Type() != nvme.SGLTransportDataBlock || sgl.Subtype() != nvme.SGLTransport:
		return true, nvme.StatusInvalidSGLDescriptorType | nvme.StatusDNR
	case sgl.Length < n:
		return true, nvme.StatusInvalidDataSGLLength | nvme.StatusDNR
	}
	c.dir, c.n = dir, n
	if int(n) <= len(c.inline) {
		c.Segments = append(c.Segments[:0], segmentOf(c.inline[:n])) // the record's own: nobody waits for it
	} else if !c.q.on.pool.get(c) {
		c.stage = waiting
		return false, 0
	}
	if dir == controller.ToHost {
		return true, nvme.StatusSuccess
	}
	if !c.ask() {
		return true, nvme.StatusAbortedSQDeletion
	}
	return false, 0
}

// capsuleData makes the first n bytes that the descriptor speaks of the command's data.
func (c *command) capsuleData(sgl *nvme.SGLDescriptor, n uint32) nvme.Status {
	switch {
	case sgl.Length < n:
		return nvme.StatusInvalidDataSGLLength | nvme.StatusDNR
	case sgl.Address > uint64(c.icd) || uint64(n) > uint64(c.icd)-sgl.Address:
		return nvme.StatusInvalidSGLOffset | nvme.StatusDNR
	}
	c.Segments = append(c.Segments[:0], segmentOf(c.inline[sgl.Address:][:n]))
	return nvme.StatusSuccess
}

// granted goes on with a command that has waited for buffers.
func (c *command) granted() {
	c.stage = executing
	switch {
	case c.dir == controller.ToHost:
		c.ready(nvme.StatusSuccess)
	case !c.ask():
		c.ready(nvme.StatusAbortedSQDeletion)
	}
}

// ask sends the R2T: one for all of the data, which the host cuts as it likes. False: the connection has ended.
func (c *command) ask() bool {
	var r2t fabrics.R2T
	frame := c.q.conn.Out.Make(&r2t.CommonHeader, fabrics.TypeR2T, 0, 0)
	r2t.CCCID, r2t.TTAG, r2t.R2TL = c.SQE.CID, c.index, c.n
	c.data.Set(fabrics.Bytes(&r2t), frame, nil)
	if !c.q.conn.Send(&c.data) {
		return false
	}
	c.stage, c.got = asked, 0
	c.q.asked++
	return true
}

// received goes on with a command whose data has been received.
func (c *command) received() {
	c.stage = executing
	c.q.asked--
	if c.damaged {
		c.ready(nvme.StatusTransientTransportError)
		return
	}
	c.ready(nvme.StatusSuccess)
}

// ready tells whoever has asked for the data.
func (c *command) ready(st nvme.Status) {
	if next := c.next; next != nil {
		c.next = nil
		next(st)
		return
	}
	c.Command.Ready(st)
}

// want is Data for the target's own commands.
func (c *command) want(n uint32, dir controller.Direction, next func(nvme.Status)) {
	c.next = next
	if ready, st := c.Data(n, dir); ready {
		c.ready(st)
	}
}

// finish ends one of the target's own commands.
func (c *command) finish(st nvme.Status) {
	c.Status = st
	c.Complete()
}

// Complete implements controller.Carrier.
func (c *command) Complete() {
	q := c.q
	c.stage, c.next = done, nil
	if c.admin {
		c.admin = false
		q.adminEnded()
	}
	if !c.muted && !q.dead {
		c.respond()
	}
	if c.abort != nil {
		c.abort.ended(c)
	}
	c.recycle()
}

// respond queues the command's data and its response.
func (c *command) respond() {
	conn := c.q.conn
	if c.dir == controller.ToHost && c.n > 0 && c.Status == nvme.StatusSuccess {
		var h fabrics.Data
		flags := fabrics.FlagLast
		alone := c.q.noFlow && c.DW0 == 0 && c.DW1 == 0
		if alone {
			flags |= fabrics.FlagSuccess
		}
		frame := conn.Out.Make(&h.CommonHeader, fabrics.TypeC2HData, flags, c.n)
		h.CCCID, h.DATAL = c.SQE.CID, c.n
		c.data.Front = nil
		if int(c.n) <= len(c.inline) {
			c.data.Front = c.front
		}
		c.data.Set(fabrics.Bytes(&h), frame, c.Segments)
		if conn.Send(&c.data) && alone {
			return
		}
	}
	var r fabrics.CapsuleResp
	frame := conn.Out.Make(&r.CommonHeader, fabrics.TypeCapsuleResp, 0, 0)
	r.CQE = nvme.CQE{DW0: c.DW0, DW1: c.DW1, SQHead: c.q.head, CID: c.SQE.CID}
	r.CQE.SetStatus(c.Status, false)
	c.resp.Set(fabrics.Bytes(&r), frame, nil)
	_ = conn.Send(&c.resp)
}

// PDUSent implements tcp.Sender.
func (c *command) PDUSent(*tcp.Out) { c.recycle() }

// recycle gives buffers and record back when nothing of the command is used any more.
func (c *command) recycle() {
	if c.stage != done || c.data.Busy() || c.resp.Busy() {
		return
	}
	c.stage = unused
	q := c.q
	q.on.pool.give(c)
	q.free = append(q.free, c)
	q.running--
	q.settle()
}

// drop ends a command of a connection that has ended, as soon as it can be.
func (c *command) drop() {
	switch c.stage {
	case arriving, pending:
		c.stage = done
		c.recycle()
	case waiting:
		c.q.on.pool.leave(c)
		c.stage = executing
		c.ready(nvme.StatusAbortedSQDeletion)
	case asked:
		c.stage = executing
		c.q.asked--
		c.ready(nvme.StatusAbortedSQDeletion)
	case executing:
		if c.SQE.Opcode != fabrics.Opcode && c.next == nil && (c.q.a == nil || c.q.a.discovery == nil) {
			c.Cancel()
		}
	}
}
