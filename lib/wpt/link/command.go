// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
)

// inlineSegments is the room for segments in a command itself: enough for
// small transfers. Larger ones borrow a list from the lane.
const inlineSegments = 4

// command is one command in execution. Lanes reuse them.
type command struct {
	controller.Command
	lane   *lane
	sq     *queue
	slot   uint16
	leased bool
	lease  dma.Lease
	inline [inlineSegments]dma.Segment
	long   []dma.Segment // borrowed from the lane

	// What is being waited for while parked.
	n   uint32
	dir controller.Direction

	// Data of memory that is not shared: copied here, and back on Complete.
	bounce []byte
	ranges []dma.Range

	abandoned bool   // not executed and not published: left to a successor
	left      bool   // cancelled because this runtime stops: if that aborts it, it is left to a successor
	abort     *abort // an Abort command waits for the end
}

// Data implements controller.Carrier: it translates the command's PRPs or SGL.
// Admin commands have PRPs only (NVMe over PCIe Transport, "SGL Support"), and
// there is no metadata that an SGL could describe.
func (c *command) Data(n uint32, dir controller.Direction) (ready bool, st nvme.Status) {
	if psdt := c.SQE.PSDT(); psdt != nvme.PSDTPRP && (psdt != nvme.PSDTSGL || c.sq.ID == 0) {
		return true, nvme.StatusInvalidField | nvme.StatusDNR
	}
	err := c.translate(n, dir)
	if err == nil {
		return true, nvme.StatusSuccess
	}
	if errors.Is(err, dma.ErrFault) && c.lane.behind() && !c.lane.stopping {
		// The doorbell has overtaken the news of a mapping.
		c.n, c.dir = n, dir
		c.lane.parked = append(c.lane.parked, c)
		return false, 0
	}
	c.unreached(err)
	return true, dataStatus(err)
}

// unreached leaves the command to a successor if its data could not be reached
// because the link has ended: the guest is not to notice.
func (c *command) unreached(err error) {
	if errors.Is(err, errLinkDown) {
		c.abandoned = true
	}
}

// dataStatus is the NVMe status for an error of translation.
func dataStatus(err error) nvme.Status {
	switch {
	case err == nil:
		return nvme.StatusSuccess
	case errors.Is(err, dma.ErrOffset):
		return nvme.StatusInvalidPRPOffset | nvme.StatusDNR
	case errors.Is(err, dma.ErrTooLong):
		return nvme.StatusInvalidField | nvme.StatusDNR
	case errors.Is(err, dma.ErrSGLType):
		return nvme.StatusInvalidSGLDescriptorType | nvme.StatusDNR
	case errors.Is(err, dma.ErrSGLSegment):
		return nvme.StatusInvalidSGLSegmentDescriptor | nvme.StatusDNR
	case errors.Is(err, dma.ErrSGLCount):
		return nvme.StatusInvalidNumberOfSGLDescriptors | nvme.StatusDNR
	case errors.Is(err, dma.ErrSGLLength):
		return nvme.StatusInvalidDataSGLLength | nvme.StatusDNR
	}
	return nvme.StatusDataTransferError
}

// translate finds the command's data and leases its memory.
func (c *command) translate(n uint32, dir controller.Direction) error {
	view := c.lane.view
	prot := dma.ProtWrite
	if dir == controller.FromHost {
		prot = dma.ProtRead
	}
	if c.direct(uint64(n), prot) {
		return nil
	}
	ranges, err := c.guestRanges(uint64(n), prot)
	if err != nil {
		return err
	}
	if c.lane.port.relayed {
		return c.copyData(ranges, n, dir)
	}
	c.lane.moved += int(n)
	segs, err := view.Translate(c.inline[:0], ranges, prot)
	if err == dma.ErrTooLong {
		c.long = c.lane.borrow()
		segs, err = view.Translate(c.long[:0], ranges, prot)
	}
	if err != nil {
		return err
	}
	c.lease, c.leased = view.Acquire(), true
	c.Segments = segs
	return nil
}

// direct is translate for data within one page of shared memory, which is most of
// it. Where it reports false, translate finds out what the matter is.
func (c *command) direct(n uint64, prot dma.Prot) bool {
	l, prp1 := c.lane, c.SQE.PRP1
	if c.SQE.PSDT() != nvme.PSDTPRP || prp1&3 != 0 || n > dma.PageSize-prp1%dma.PageSize || l.port.relayed {
		return false
	}
	p, ok := l.view.Pointer(prp1, n, prot)
	if !ok {
		return false
	}
	l.moved += int(n)
	c.Segments = append(c.inline[:0], dma.Segment{Base: p, Len: n})
	c.lease, c.leased = l.view.Acquire(), true
	return true
}

// guestRanges returns where in guest memory the command's n bytes of data are.
func (c *command) guestRanges(n uint64, prot dma.Prot) (ranges []dma.Range, err error) {
	// A PRP list is guest memory, as is an SGL segment: it may be taken away
	// while it is read. Not deferred: after a fault the poller must find what
	// was touched.
	before := c.lane.p.Touch(&c.Command)
	if c.SQE.PSDT() == nvme.PSDTPRP {
		ranges, err = c.lane.view.PRP(c.SQE.PRP1, c.SQE.PRP2, n)
	} else {
		ranges, err = c.lane.view.SGL(c.SQE.SGL1(), n, prot)
	}
	c.lane.p.Touch(before)
	return ranges, err
}

// copyData is translate for memory that is not shared: the data goes through a
// buffer. This path is slow whatever it does, so it allocates.
func (c *command) copyData(ranges []dma.Range, n uint32, dir controller.Direction) error {
	c.bounce = make([]byte, n)
	if dir == controller.FromHost {
		p := c.bounce
		for _, r := range ranges {
			if err := c.lane.view.Read(p[:r.Len], r.Addr); err != nil {
				return err
			}
			p = p[r.Len:]
		}
	} else {
		c.ranges = append(c.ranges[:0], ranges...)
	}
	c.Segments = append(c.inline[:0], dma.SegmentOf(c.bounce))
	return nil
}

// copyBack stores the data of a read where it belongs.
func (c *command) copyBack() nvme.Status {
	p := c.bounce
	for _, r := range c.ranges {
		if r.Addr != dma.Nowhere {
			if err := c.lane.view.Write(p[:r.Len], r.Addr); err != nil {
				c.unreached(err)
				return nvme.StatusDataTransferError
			}
		}
		p = p[r.Len:]
	}
	return nvme.StatusSuccess
}

// Complete implements controller.Carrier.
func (c *command) Complete() {
	l := c.lane
	if c.leased {
		c.leased = false
		c.lease.Release()
	}
	if c.long != nil {
		l.lists = append(l.lists, c.long)
		c.long = nil
	}
	if c.left && c.abort == nil && c.Status.Code() == nvme.StatusAbortRequested {
		c.abandoned = true
	}
	if len(c.ranges) > 0 && c.Status == nvme.StatusSuccess && !l.dead && !c.abandoned {
		c.Status = c.copyBack()
	}
	c.bounce, c.ranges = nil, c.ranges[:0]
	if !l.dead && !c.abandoned {
		if c.sq.ID == 0 {
			l.commit(c)
		}
		c.sq.cq.complete(c)
	}
	if c.abort != nil {
		c.abort.ended(c)
	}
	c.abandoned, c.left = false, false
	q := c.sq
	c.sq = nil
	l.free = append(l.free, c)
	l.running--
	q.executing--
	if q.drained != nil && q.executing == 0 {
		l.post(q.drained)
		q.drained = nil
	}
	if l.idle != nil {
		l.settle()
	}
}

// commit stores the controller's state if the admin command c has changed it,
// before its result is published.
func (l *lane) commit(c *command) {
	model, changed := l.ctrl.State()
	if !changed && !l.shadowChanged {
		return
	}
	l.shadowChanged = false
	slot := c.sq.Slot(c.slot)
	cqe := nvme.CQE{DW0: c.DW0, DW1: c.DW1, CID: slot.SQE.CID}
	cqe.SetStatus(c.Status, false)
	payload := binary.LittleEndian.AppendUint64(nil, l.shadow)
	payload = binary.LittleEndian.AppendUint64(payload, l.events)
	l.port.state.Page.CommitController(l.gen, slot.N, cqe, append(payload, model...))
}

// committed returns the result that commit stored with the state of the admin
// command in a slot, if that was the last to change it: its effect is there, and
// executing it once more could have another.
func (l *lane) committed(q *queue, slot uint16) (nvme.CQE, bool) {
	page, _ := l.port.state.Page.LoadController(l.gen)
	if q.ID != 0 || page == nil || page.N != q.Slot(slot).N {
		return nvme.CQE{}, false
	}
	return page.CQE, true
}

// restore brings back what commit stored for the lane's generation.
func (l *lane) restore() error {
	_, payload := l.port.state.Page.LoadController(l.gen)
	if payload == nil {
		return nil // no admin command has changed anything
	}
	if len(payload) < shadowState {
		return fmt.Errorf("controller state of %d bytes is too short", len(payload))
	}
	l.shadow = binary.LittleEndian.Uint64(payload)
	l.events = binary.LittleEndian.Uint64(payload[8:])
	return l.ctrl.Restore(payload[shadowState:])
}

// shadowState is the size of the lane's own part of the controller's state.
const shadowState = 16
