// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
)

// adminCapsule is the data that a capsule on an admin queue, or before Connect, may always have (NVMe/TCP Transport Specification,
// "In-Capsule Data").
const adminCapsule = 8 << 10

// maxH2CData is the most data of an H2CData PDU (MAXH2CDATA).
const maxH2CData = 128 << 10

// segmentOf is for memory that a record keeps.
var segmentOf = dma.SegmentOf

// progress is how far a connection has come.
type progress uint8

const (
	fresh       progress = iota // ICReq is to come
	initialized                 // Connect is to come
	joining                     // Connect is being answered
	live
)

// queue is a connection: the admin queue of an association or one of its I/O queues.
type queue struct {
	t     *Target
	l     *Listener
	on    *shard
	peer  netip.AddrPort
	local netip.AddrPort // that the host has come to
	conn  *tcp.Conn

	progress  progress
	a         *association
	owner     uint64 // whose the data in its buffers is
	id        uint16
	entries   int    // records there may be
	capsule   int    // bytes of data a capsule may have
	noFlow    bool   // SQ flow control is disabled
	head      uint16 // SQHD
	worker    *controller.Worker
	all       []*command // by index
	free      []*command
	memory    []byte   // for data in capsules
	running   int      // records in use
	first     *command // half of a fused pair
	receiving *command
	into      []dma.Segment // where its data goes
	asked     int           // commands whose data the host has been asked for
	account   *account      // of buffers: that of the association, or of strangers
	stats     *stats.Set    // nil before Connect
	since     time.Duration // when it began, as poller.Now
	unwanted  bool          // it has to make room
	known     bool          // Connect has succeeded; with Target.mu
	dead      bool
	ended     bool

	// Of the admin queue.
	line      []*command // admin commands whose turn has not come
	executing int
	deferred  bool
}

// newQueue returns the queue of a connection, which has no poller yet (Target.admit).
func newQueue(l *Listener, peer, local netip.AddrPort) *queue {
	return &queue{t: l.t, l: l, peer: peer, local: local, entries: 1, capsule: adminCapsule, owner: l.t.number()}
}

// begin serves the connection. It is called on the poller.
func (q *queue) begin(fd int) {
	in := fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: uint32(q.capsule), MaxData: maxH2CData}
	out := fabrics.Framing{From: fabrics.FromController, Align: 4}
	q.account, q.since = &q.on.strangers, q.on.p.Now()
	conn, err := q.on.set.Add(fd, in, out, q)
	if err != nil {
		q.l.seldom("connection cannot be served", "peer", q.peer, "err", err)
		q.t.forget(q)
		q.l.live.Done()
		return
	}
	q.conn = conn
	conn.Share = q.account.on(q.on.p)
	q.on.queues[q] = true
	if q.unwanted {
		conn.Close(errNoRoom)
	}
}

// evict makes the connection go, so that another can come.
func (q *queue) evict() {
	q.unwanted = true
	if q.conn != nil {
		q.conn.Close(errNoRoom)
	}
}

// take returns an unused record, or nil: the host has more commands outstanding than the queue has entries.
func (q *queue) take() *command {
	var c *command
	switch n := len(q.free); {
	case n > 0:
		c, q.free = q.free[n-1], q.free[:n-1]
	case len(q.all) < q.entries:
		c = q.record()
	default:
		return nil
	}
	q.running++
	c.stage, c.icd, c.n, c.damaged, c.muted = arriving, 0, 0, false, false
	c.Stats = q.stats
	c.dir = controller.FromHost
	return c
}

// record makes a record.
func (q *queue) record() *command {
	c := &command{q: q, index: uint16(len(q.all)), buffers: make([]*buffer, 0, maxBuffers)}
	c.front, c.inline = q.inline(c.index)
	c.Init(c)
	c.Segments = make([]dma.Segment, 0, maxBuffers)
	c.data.Sent, c.resp.Sent = c, c
	q.all = append(q.all, c)
	return c
}

// frontSize is the memory of a record before that for data: room for the header of a C2HData, and the data begins where files like it.
const frontSize = 512

// inline returns the memory of a record for data in its capsule, or for the header and small data of its response.
func (q *queue) inline(index uint16) (front, data []byte) {
	size := frontSize + q.capsule
	var p []byte
	if q.memory != nil {
		p = q.memory[int(index)*size:]
	} else {
		p = make([]byte, size) // before Connect there is one record
	}
	return p[:frontSize:frontSize], p[frontSize:size:size]
}

// resize makes room for the entries that Connect has asked for; only the record of Connect is there, and its data was read.
func (q *queue) resize(entries int) error {
	if q.id != 0 {
		q.capsule = q.t.limits.InCapsule
		q.conn.In.MaxCapsule = uint32(q.capsule)
	}
	memory, err := dma.Reserve(entries * (frontSize + q.capsule))
	if err != nil {
		return err
	}
	q.memory, q.entries = memory, entries
	q.all[0].front, q.all[0].inline = q.inline(0)
	return nil
}

// Header implements tcp.Handler.
func (q *queue) Header(h []byte, f fabrics.Frame) ([]dma.Segment, fabrics.Violation) {
	sequence := fabrics.Violation{FES: fabrics.FESSequence}
	switch t := fabrics.PDUType(h[0]); {
	case t == fabrics.TypeH2CTermReq:
		q.terminated(h)
	case (t == fabrics.TypeICReq) != (q.progress == fresh):
		return nil, sequence
	case t == fabrics.TypeICReq:
		return nil, q.initialize(h)
	case t == fabrics.TypeCapsuleCmd:
		c := q.take()
		if c == nil {
			return nil, sequence
		}
		copy(nvme.Bytes(&c.SQE), h[fabrics.CommonHeaderSize:])
		if f.DataLength > 0 {
			c.icd, q.receiving = f.DataLength, c
			c.Segments = append(c.Segments[:0], segmentOf(c.inline[:f.DataLength]))
			return c.Segments, fabrics.Violation{}
		}
		q.execute(c)
	case t == fabrics.TypeH2CData:
		return q.hostData(h, f)
	}
	return nil, fabrics.Violation{}
}

// terminated ends a connection that the host has given up.
func (q *queue) terminated(h []byte) {
	var req fabrics.TermReq
	copy(fabrics.Bytes(&req), h)
	q.conn.Close(fmt.Errorf("terminated by the host: %v", req.Violation()))
}

// initialize answers ICReq: NVMe/TCP Transport Specification, "Initialize Connection Request PDU".
func (q *queue) initialize(h []byte) fabrics.Violation {
	var req fabrics.ICReq
	copy(fabrics.Bytes(&req), h)
	switch {
	case req.PFV != 0:
		return fabrics.Violation{FES: fabrics.FESUnsupportedParam, FEI: fabrics.OffsetPFV}
	case req.HPDA > fabrics.MaxPDA:
		return fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: fabrics.OffsetPDA}
	}
	resp := fabrics.ICResp{DGST: req.DGST & (fabrics.DGSTHeader | fabrics.DGSTData), MAXH2CDATA: maxH2CData}
	frame := q.conn.Out.Make(&resp.CommonHeader, fabrics.TypeICResp, 0, 0)
	out := new(tcp.Out)
	out.Set(fabrics.Bytes(&resp), frame, nil)
	_ = q.conn.Send(out)
	for _, f := range []*fabrics.Framing{&q.conn.In, &q.conn.Out} {
		f.HeaderDigest, f.DataDigest = resp.DGST&fabrics.DGSTHeader != 0, resp.DGST&fabrics.DGSTData != 0
	}
	q.conn.Out.Align = fabrics.Align(req.HPDA)
	q.progress = initialized
	return fabrics.Violation{}
}

// hostData says where the data of an H2CData goes.
func (q *queue) hostData(h []byte, f fabrics.Frame) ([]dma.Segment, fabrics.Violation) {
	var d fabrics.Data
	copy(fabrics.Bytes(&d), h)
	if v := d.Check(f); v.Bad() {
		return nil, v
	}
	if int(d.TTAG) >= len(q.all) || q.all[d.TTAG].stage != asked {
		return nil, fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: fabrics.OffsetTTAG}
	}
	c := q.all[d.TTAG]
	last := d.Flags&fabrics.FlagLast != 0
	switch {
	case d.CCCID != c.SQE.CID:
		return nil, fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: fabrics.OffsetCCCID}
	case d.DATAO != c.got, d.DATAL > c.n-c.got:
		return nil, fabrics.Violation{FES: fabrics.FESDataOutOfRange}
	case last != (d.DATAO+d.DATAL == c.n):
		return nil, fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: 1}
	}
	c.got += d.DATAL
	c.last = last
	q.receiving = c
	return q.window(c, d.DATAO, d.DATAL), fabrics.Violation{}
}

// window returns the n bytes of a command's buffers at off.
func (q *queue) window(c *command, off, n uint32) []dma.Segment {
	into := q.into[:0]
	for i := range c.Segments {
		p := c.Segments[i].Bytes()
		if uint64(off) >= uint64(len(p)) {
			off -= uint32(len(p))
			continue
		}
		p = p[off:min(uint64(len(p)), uint64(off)+uint64(n))]
		off, n = 0, n-uint32(len(p))
		if into = append(into, segmentOf(p)); n == 0 {
			break
		}
	}
	q.into = into
	return into
}

// Data implements tcp.Handler.
func (q *queue) Data(intact bool) fabrics.Violation {
	c := q.receiving
	q.receiving = nil
	if c == nil {
		return fabrics.Violation{} // what a termination request cites
	}
	c.damaged = c.damaged || !intact
	switch {
	case c.stage == arriving:
		q.execute(c)
	case c.last && c.stage == asked:
		c.received()
	}
	return fabrics.Violation{}
}

// Waiting implements tcp.Handler.
func (q *queue) Waiting() bool { return q.asked > 0 }

// execute runs a command that has arrived.
func (q *queue) execute(c *command) {
	c.stage = executing
	if q.progress == live && !q.noFlow {
		q.head = uint16((int(q.head) + 1) % q.entries)
	}
	switch {
	case c.damaged:
		q.refuse(c, nvme.StatusTransientTransportError)
	case c.SQE.Opcode == fabrics.Opcode:
		q.fabricsCommand(c)
	case q.progress != live:
		q.refuse(c, nvme.StatusCommandSequenceError|nvme.StatusDNR)
	case q.id == 0:
		q.adminCommand(c)
	default:
		q.ioCommand(c)
	}
}

// ioCommand executes an I/O command. The first half of a fused pair waits for what comes next in the queue: the controller wants both in
// one turn, and capsules may arrive apart.
func (q *queue) ioCommand(c *command) {
	c.SQID = q.id
	if first := q.first; first != nil {
		q.first, first.stage = nil, executing
		q.worker.Execute(&first.Command)
	}
	if c.SQE.Fuse() == nvme.FuseFirst {
		q.first, c.stage = c, pending
		return
	}
	q.worker.Execute(&c.Command)
}

// refuse ends a command that is not executed.
func (q *queue) refuse(c *command, st nvme.Status) {
	c.own()
	c.finish(st)
}

// own makes a record that of a command which the controller does not see.
func (c *command) own() { c.DW0, c.DW1 = 0, 0 }

// adminCommand puts an admin command in line: the controller executes one at a time.
func (q *queue) adminCommand(c *command) {
	switch {
	case !q.a.csts.RDY():
		q.refuse(c, nvme.StatusCommandSequenceError|nvme.StatusDNR)
	case q.a.discovery != nil:
		c.own()
		q.a.discovery.execute(c)
	default:
		c.stage = pending
		q.line = append(q.line, c)
		q.advance()
	}
}

// advance executes admin commands whose turn has come. Parked event requests do not count.
func (q *queue) advance() {
	for len(q.line) > 0 && !q.dead && q.executing <= q.a.ctrl.Parked() {
		c := q.line[0]
		q.line = slices.Delete(q.line, 0, 1)
		c.stage, c.admin = executing, true
		q.executing++
		q.a.ctrl.Admin(&c.Command)
	}
}

// adminEnded has the next admin command executed when what runs now has returned.
func (q *queue) adminEnded() {
	q.executing--
	if !q.deferred {
		q.deferred = true
		q.on.p.Defer(q)
	}
}

// Run implements poller.Runnable.
func (q *queue) Run() {
	q.deferred = false
	if !q.dead {
		q.advance()
	}
	if q.a != nil {
		q.a.settle()
	}
}

// Closed implements tcp.Handler.
func (q *queue) Closed(err error) {
	q.dead = true
	q.report(err)
	q.line, q.first = nil, nil
	for _, c := range q.all {
		c.drop()
	}
	if q.a != nil && q.id == 0 {
		q.a.end(err)
	}
	q.settle()
}

// report logs why a connection has ended, if that is not the host's wish.
func (q *queue) report(err error) {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errDisconnect), errors.Is(err, errListenerClosed), errors.Is(err, errDisconnected), errors.Is(err, errAssociationEnded), errors.Is(err, errReset):
	case errors.Is(err, unix.ECONNRESET) && q.running == 0: // some hosts end so
	default:
		q.l.seldom("connection ended", "peer", q.peer, "queue", q.id, "err", err)
	}
}

// settle ends a dead queue when no command is in flight.
func (q *queue) settle() {
	if !q.dead || q.running > 0 || q.ended || q.progress == joining {
		return
	}
	q.ended = true
	if q.worker != nil {
		q.worker.Close()
	}
	if q.memory != nil {
		_ = unix.Munmap(q.memory)
	}
	delete(q.on.queues, q)
	q.t.forget(q)
	switch {
	case q.a == nil:
	case q.id == 0:
		q.a.settle()
	default:
		a := q.a
		a.post(func() { a.left(q) })
	}
	q.l.live.Done()
}
