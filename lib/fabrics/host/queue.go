// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"errors"
	"fmt"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
)

// The life of a command on a Queue:
//
//  1. Start gives it a CID and sends its capsule, with the data of a short write.
//  2. The controller asks for the data of a long write by R2Ts, several at a
//     time and in any order, which are answered one after the other, in H2CData
//     of at most MAXH2CDATA; or it sends the data of a read, in order, which goes
//     straight to where it belongs.
//  3. A response ends it, or the last C2HData where that says so. The owner is
//     told when nothing of the command is queued for sending any more.
//
// A connection that breaks ends every command as lost: whether it has had an
// effect, or will have, is not known.

// Command is a command on a Queue. Its memory is the owner's, who reuses it.
type Command struct {
	// SQE is the command. Its CID, data pointer and flags are the queue's to set.
	SQE nvme.SQE
	// Data goes to the controller or comes from there, as the opcode says, at
	// most MaxTransfer bytes. From Start to the end it is the queue's, and
	// neither changes nor goes away.
	Data  []byte
	Owner Owner

	// The end: the status, unless the command is Lost.
	Status nvme.Status
	Lost   bool

	q        *Queue
	cid      uint16
	moved    uint32 // bytes of Data that have come
	ended    bool   // Status is set
	damaged  bool   // data did not match its digest
	transfer transfer
	capsule  tcp.Out
	h2c      tcp.Out
	segments [1]dma.Segment
}

// Owner is told the end of its commands.
type Owner interface {
	// Ended is called once per Start, on the poller, from where PDUs are
	// handled: it touches no guest memory.
	Ended(*Command)
}

// cidSlots is how many bits of a CID are the slot; the rest counts its uses,
// so that a late PDU for the command before is known for one.
const (
	cidBits  = 7
	cidSlots = 1<<cidBits - 1
)

var _ [1 << cidBits]byte = [MaxEntries]byte{}

// Queue is an I/O queue on a poller. All methods are for that poller.
type Queue struct {
	conn     *tcp.Conn
	socket   *Socket
	closed   func(error)
	commands []*Command // by slot; nil: free
	uses     []uint16
	free     []uint16
	current  *Command // whose data is being received
	last     bool     // and then it has ended
	running  int
}

// NewQueue serves the queue of a socket, which stays the caller's: a connection
// that breaks is closed, and then closed is called, after every command has
// ended. Close and Detach do not call it.
func NewQueue(set *tcp.Set, s *Socket, closed func(error)) (*Queue, error) {
	fd, err := s.duplicate()
	if err != nil {
		return nil, err
	}
	q := &Queue{socket: s, closed: closed, commands: make([]*Command, s.entries), uses: make([]uint16, s.entries)}
	// A submission queue is full with one entry less than it has. What has been
	// answered has left it, so that SQHD need not be looked at, whether the
	// controller has given up flow control or not.
	for i := range s.entries - 1 {
		q.free = append(q.free, uint16(i))
	}
	if q.conn, err = set.Add(fd, s.in, s.out, q); err != nil {
		return nil, err
	}
	q.conn.Widen()
	return q, nil
}

// Room returns how many commands can be started.
func (q *Queue) Room() int { return len(q.free) }

// Idle reports whether no command is in flight.
func (q *Queue) Idle() bool { return q.running == 0 }

// Close breaks the connection with its commands.
func (q *Queue) Close(err error) {
	q.conn.Close(err)
	q.socket.Close()
}

// Detach lets go of the socket, on which no command is in flight. False: the
// connection has broken.
func (q *Queue) Detach() bool {
	alive := !q.conn.Ended() && q.running == 0
	q.closed = func(error) {}
	if !alive {
		q.Close(errDetached)
		return false
	}
	q.conn.Close(errDetached)
	return true
}

var errDetached = errors.New("the queue is not served any more")

// toController and toHost tell the direction of a command's data (bits 1:0 of
// the opcode).
func (c *Command) toController() bool { return c.SQE.Opcode&3 == 1 && len(c.Data) > 0 }
func (c *Command) toHost() bool       { return c.SQE.Opcode&3 == 2 && len(c.Data) > 0 }

// Start starts a command; there is room for it. False: the connection has
// broken, nothing has been sent, and the owner is not told.
func (q *Queue) Start(c *Command) bool {
	if q.conn.Ended() {
		return false
	}
	slot := q.free[len(q.free)-1]
	c.q, c.cid = q, slot|q.uses[slot]<<cidBits
	c.moved, c.ended, c.damaged, c.Lost = 0, false, false, false
	c.capsule.Sent, c.h2c.Sent = c, c

	p := fabrics.CapsuleCmd{SQE: c.SQE}
	p.SQE.CID = c.cid
	p.SQE.SetPSDT(nvme.PSDTSGL)
	p.SQE.SetSGL1(fabrics.InTransport(uint32(len(c.Data))))
	n := uint32(0)
	if size := uint32(len(c.Data)); c.toController() && size <= q.socket.inCapsule {
		n = size
		p.SQE.SetSGL1(fabrics.InCapsule(size))
		c.segments[0] = dma.SegmentOf(c.Data)
	}
	c.transfer.reset(n)
	f := q.conn.Out.Make(&p.CommonHeader, fabrics.TypeCapsuleCmd, 0, n)
	c.capsule.Set(fabrics.Bytes(&p), f, c.segments[:])
	if !q.conn.Send(&c.capsule) {
		return false
	}
	q.free = q.free[:len(q.free)-1]
	q.uses[slot]++
	q.commands[slot] = c
	q.running++
	return true
}

// PDUSent implements tcp.Sender.
func (c *Command) PDUSent(o *tcp.Out) {
	if o == &c.h2c && c.transfer.count > 0 && !c.ended {
		c.transmit()
	}
	c.finish()
}

// transmit sends the next H2CData of what R2Ts have asked for.
func (c *Command) transmit() {
	s, ttag, last := c.transfer.next(c.q.socket.maxH2C)
	n := s.to - s.from
	d := fabrics.Data{CCCID: c.cid, TTAG: ttag, DATAO: s.from, DATAL: n}
	flags := uint8(0)
	if last {
		flags = fabrics.FlagLast
	}
	f := c.q.conn.Out.Make(&d.CommonHeader, fabrics.TypeH2CData, flags, n)
	c.segments[0] = dma.SegmentOf(c.Data[s.from:s.to])
	c.h2c.Set(fabrics.Bytes(&d), f, c.segments[:])
	c.q.conn.Send(&c.h2c) // a connection that has broken ends the command
}

// end notes the end of a command.
func (c *Command) end(st nvme.Status) {
	c.ended = true
	if c.Status = st; c.damaged {
		c.Status = nvme.StatusTransientTransportError
	}
	c.finish()
}

// finish tells the owner, if the command has ended and nothing of it is to be
// sent any more.
func (c *Command) finish() {
	if !c.ended || c.capsule.Busy() || c.h2c.Busy() || c.q == nil {
		return
	}
	q := c.q
	c.q = nil
	slot := c.cid & cidSlots
	q.commands[slot] = nil
	q.free = append(q.free, slot)
	q.running--
	c.Owner.Ended(c)
}

// find returns the command with a CID that is in flight, or nil.
func (q *Queue) find(cid uint16) *Command {
	if slot := int(cid & cidSlots); slot < len(q.commands) {
		if c := q.commands[slot]; c != nil && c.cid == cid && !c.ended {
			return c
		}
	}
	return nil
}

// Violations of the controller.
var (
	noCommand   = fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: fabrics.OffsetCCCID}
	outOfRange  = fabrics.Violation{FES: fabrics.FESDataOutOfRange}
	outOfOrder  = fabrics.Violation{FES: fabrics.FESSequence}
	tooManyR2Ts = fabrics.Violation{FES: fabrics.FESLimitExceeded}
)

// Header implements tcp.Handler.
func (q *Queue) Header(h []byte, f fabrics.Frame) ([]dma.Segment, fabrics.Violation) {
	switch fabrics.PDUType(h[0]) {
	case fabrics.TypeCapsuleResp:
		var r fabrics.CapsuleResp
		copy(fabrics.Bytes(&r), h)
		return nil, q.response(&r)
	case fabrics.TypeC2HData:
		var d fabrics.Data
		copy(fabrics.Bytes(&d), h)
		return q.data(&d, f)
	case fabrics.TypeR2T:
		var r fabrics.R2T
		copy(fabrics.Bytes(&r), h)
		return nil, q.ready(&r)
	case fabrics.TypeC2HTermReq:
		var t fabrics.TermReq
		copy(fabrics.Bytes(&t), h)
		q.conn.Close(fmt.Errorf("the controller ends the connection: %v", t.Violation()))
		return nil, fabrics.Violation{}
	}
	return nil, outOfOrder
}

// response is the end of a command.
func (q *Queue) response(r *fabrics.CapsuleResp) fabrics.Violation {
	c := q.find(r.CQE.CID)
	if c == nil {
		return noCommand
	}
	st := r.CQE.StatusField()
	if st.Code() == nvme.StatusSuccess && !c.moves() {
		return outOfOrder // it has succeeded without its data
	}
	c.end(st)
	return fabrics.Violation{}
}

// moves reports whether all data of the command has been moved.
func (c *Command) moves() bool {
	if c.toController() {
		return !c.h2c.Busy() && c.transfer.done(len(c.Data))
	}
	return !c.toHost() || int(c.moved) == len(c.Data)
}

// data is data of a read, in order.
func (q *Queue) data(d *fabrics.Data, f fabrics.Frame) ([]dma.Segment, fabrics.Violation) {
	c := q.find(d.CCCID)
	switch v := d.Check(f); {
	case v.Bad():
		return nil, v
	case c == nil || !c.toHost():
		return nil, noCommand
	case f.DataLength == 0 || d.DATAO != c.moved || uint64(d.DATAO)+uint64(d.DATAL) > uint64(len(c.Data)):
		return nil, outOfRange
	}
	q.current, q.last = c, d.Flags&fabrics.FlagSuccess != 0
	c.segments[0] = dma.SegmentOf(c.Data[c.moved:][:d.DATAL])
	c.moved += d.DATAL
	return c.segments[:], fabrics.Violation{}
}

// Data implements tcp.Handler.
func (q *Queue) Data(intact bool) fabrics.Violation {
	c := q.current
	if c == nil {
		return fabrics.Violation{} // of a termination request
	}
	q.current = nil
	if !intact {
		c.damaged = true
	}
	if q.last {
		if int(c.moved) != len(c.Data) {
			return outOfOrder
		}
		c.end(nvme.StatusSuccess)
	}
	return fabrics.Violation{}
}

// ready is an R2T.
func (q *Queue) ready(r *fabrics.R2T) fabrics.Violation {
	c := q.find(r.CCCID)
	if c == nil || !c.toController() {
		return noCommand
	}
	if v := c.transfer.take(r, len(c.Data)); v.Bad() {
		return v
	}
	if !c.h2c.Busy() {
		c.transmit()
	}
	return fabrics.Violation{}
}

// Waiting implements tcp.Handler.
func (q *Queue) Waiting() bool { return q.running > 0 }

// Closed implements tcp.Handler.
func (q *Queue) Closed(err error) {
	q.current = nil
	for _, c := range q.commands {
		if c == nil {
			continue
		}
		// What has been answered has ended, whatever became of the connection.
		if !c.ended {
			c.Lost, c.damaged = true, false
			c.end(nvme.StatusHostPathingError)
		}
	}
	if err == nil {
		err = errDetached
	}
	q.closed(err)
}
