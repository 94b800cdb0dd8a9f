// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"encoding/binary"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// The Scratch of a request: [0] is how many bytes of it have been begun, 1 for
// a Flush that has; [1] counts its ops in the low half, and has the first
// status that is not success, and whether the request is in lane.waiting.
const (
	opsMask     = 1<<32 - 1
	statusShift = 32
	queued      = 1 << 63
)

// begun reports whether there is nothing more to begin of r.
func begun(r *volume.Request) bool {
	if status(r) != nvme.StatusSuccess {
		return true
	}
	if r.Op == volume.Flush {
		return r.Scratch[0] != 0
	}
	return r.Scratch[0] == r.Length
}

// status returns the first status of r that is not success.
func status(r *volume.Request) nvme.Status { return nvme.Status(r.Scratch[1] >> statusShift & 0x7fff) }

// fail notes a status of r.
func fail(r *volume.Request, st nvme.Status) {
	if status(r) == nvme.StatusSuccess {
		r.Scratch[1] |= uint64(st&0x7fff) << statusShift
	}
}

// unqueue notes that r is not in waiting any more.
func (l *lane) unqueue(r *volume.Request) {
	r.Scratch[1] &^= queued
	complete(r)
}

// complete ends r if all of it has ended.
func complete(r *volume.Request) {
	if r.Scratch[1]&(queued|opsMask) == 0 {
		r.Complete(status(r))
	}
}

// op is one command of a request.
type op struct {
	l       *lane
	buffer  []byte
	command host.Command
	request *volume.Request
	at      uint64       // where it begins in the request, in bytes
	a       *association // it was sent on last; nil: nothing of it is in execution
	wire    *wire        // it is in flight on; nil: on none
	began   time.Duration
	tries   int // that the transport has spoiled

	// As remote.now: since when it has waited because the controller cannot get
	// at the namespace, 0: it has not; and when it is sent again.
	held, again int64
}

// maxTries is how often the transport may spoil a command that is then sent
// again.
const maxTries = 3

// begin begins the next part of r. There is an op, and room for it on w.
func (l *lane) begin(r *volume.Request, w *wire) {
	left, most := r.Length-r.Scratch[0], uint64(0)
	switch r.Op {
	case volume.Read, volume.Write:
		most = l.a.ns.data
	case volume.WriteZeroes:
		if most = l.a.ns.zeroes; most == 0 {
			most = l.a.ns.data
		}
	case volume.Discard:
		if most = l.a.ns.discard; most == 0 {
			r.Scratch[0] = r.Length // a hint that the controller cannot take
			return
		}
	case volume.Flush:
	default:
		fail(r, nvme.StatusInternalError)
		return
	}
	o := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	n := min(left, most)
	o.request, o.at, o.a, o.tries, o.held, o.again = r, r.Scratch[0], nil, 0, 0, 0
	r.Scratch[0] += max(n, 1)
	r.Scratch[1]++
	o.compose(n)
	if !o.send(w) {
		l.lost = append(l.lost, o)
	}
}

// compose makes the command for n bytes; the data of a write is copied.
func (o *op) compose(n uint64) {
	l, r, block := o.l, o.request, uint64(o.l.r.info.Load().Block)
	e := &o.command.SQE
	*e = nvme.SQE{NSID: l.r.addr.NSID}
	rw := nvme.RW{SLBA: (r.Offset + o.at) / block, NLB: uint16(n/block - 1), FUA: r.Flags&volume.FUA != 0}
	o.command.Data = nil
	switch r.Op {
	case volume.Read:
		rw.Put(e)
		e.Opcode, o.command.Data = uint8(nvme.IORead), o.buffer[:n]
	case volume.Write:
		rw.Put(e)
		e.Opcode, o.command.Data = uint8(nvme.IOWrite), o.buffer[:n]
		o.access(true)
	case volume.WriteZeroes:
		if l.a.ns.zeroes == 0 {
			rw.Put(e)
			e.Opcode, o.command.Data = uint8(nvme.IOWrite), o.buffer[:n]
			clear(o.command.Data)
			return
		}
		rw.DEAC = r.Flags&volume.Deallocate != 0
		rw.Put(e)
		e.Opcode = uint8(nvme.IOWriteZeroes)
	case volume.Discard:
		nvme.DatasetManagement{AD: true}.Put(e)
		o.command.Data = o.buffer[:nvme.DSMRangeSize]
		clear(o.command.Data)
		binary.LittleEndian.PutUint32(o.buffer[4:], uint32(n/block))
		binary.LittleEndian.PutUint64(o.buffer[8:], rw.SLBA)
	case volume.Flush:
		e.Opcode = uint8(nvme.IOFlush)
	}
}

// access is copy, on behalf of whom the request is for: what serves the lane
// serves nobody in particular.
func (o *op) access(fromGuest bool) {
	visit := o.request.Enter()
	before := o.l.p.Touch(o)
	o.copy(fromGuest) // it may fault
	o.l.p.Touch(before)
	visit.Leave()
}

// copy copies between the op's data and the request's memory.
func (o *op) copy(fromGuest bool) {
	data, skip := o.command.Data, o.at
	for _, s := range o.request.Segments {
		if skip >= s.Len {
			skip -= s.Len
			continue
		}
		data = data[move(data, s, skip, fromGuest):]
		if skip = 0; len(data) == 0 {
			return
		}
	}
}

// move copies between data and a segment from its byte skip on.
func move(data []byte, s dma.Segment, skip uint64, fromGuest bool) int {
	if fromGuest {
		return copy(data, s.Bytes()[skip:])
	}
	return copy(s.Bytes()[skip:], data)
}

// send sends the command on w, which has room for it. False: the connection has
// broken, and nothing was sent.
func (o *op) send(w *wire) bool {
	l := o.l
	if !w.queue.Start(&o.command) {
		l.drop(w)
		w.queue.Close(errBroken)
		o.a = nil
		return false
	}
	o.a, o.wire, o.began = l.a, w, l.p.Now()
	return true
}

// Ended implements host.Owner.
func (o *op) Ended(*host.Command) { o.l.p.Defer(o) }

// Run implements poller.Runnable: the command has ended.
func (o *op) Run() {
	l, c := o.l, &o.command
	o.wire = nil
	l.give()
	switch {
	case c.Lost:
		l.lost = append(l.lost, o)
	case c.Status.Code() == nvme.StatusTransientTransportError && o.tries < maxTries:
		o.tries++
		o.a = nil // it has ended
		l.lost = append(l.lost, o)
	case noAccess(c.Status) && o.hold():
		o.a = nil
		l.lost = append(l.lost, o)
	case c.Status.Code() == nvme.StatusSuccess && o.request.Op == volume.Read:
		o.access(false)
		o.end(nvme.StatusSuccess)
	case c.Status.Code() == nvme.StatusSuccess:
		o.end(nvme.StatusSuccess)
	default:
		o.end(c.Status)
	}
	if len(l.lost) > 0 || l.head < len(l.waiting) {
		l.look()
	}
}

// noAccess reports whether a command has failed because the controller could not
// get at the namespace now: statuses of the path, but for the one that says that
// it never will (NVMe Base, "Path Related Status").
func noAccess(st nvme.Status) bool {
	return st.SCT() == nvme.StatusInternalPathError.SCT() && st.Code() != nvme.StatusANAPersistentLoss && !st.DNR()
}

// hold has the command sent again in a while; false: it has waited as long as it
// may.
func (o *op) hold() bool {
	r := o.l.r
	now := r.now()
	if o.held == 0 {
		o.held = now
		if o.l.a != nil && !o.l.a.noAccess.Swap(true) {
			r.log.Warn("the remote cannot get at the namespace now: commands wait", "remote", r.addr, "status", o.command.Status)
		}
	}
	o.again = now + int64(accessPause)
	return r.fastIOFail < 0 || now-o.held < int64(r.fastIOFail)
}

// Faulted implements poller.Toucher: the guest has taken its memory away.
func (o *op) Faulted() {
	o.end(nvme.StatusDataTransferError)
	o.l.look()
}

// changes reports whether the command changes the volume.
func (o *op) changes() bool { return o.request.Op != volume.Read && o.request.Op != volume.Flush }

// safe reports whether the command may be sent again or be told to have ended:
// it changes nothing, or it is in execution no more. That is when the old
// controller has had its time, or, where resubmit=reconnect says that it can be
// relied upon, when there is a new one.
func (o *op) safe(now int64) bool {
	if o.a == nil || !o.changes() {
		return true
	}
	if l := o.l; l.r.resubmit == resubmitReconnect && l.a != o.a && len(l.wires) > 0 {
		return true
	}
	at := o.a.safe.Load()
	return at != 0 && now >= at
}

// end ends the op.
func (o *op) end(st nvme.Status) {
	r := o.request
	if st != nvme.StatusSuccess {
		fail(r, st)
	}
	o.request, o.a = nil, nil
	o.l.free = append(o.l.free, o)
	r.Scratch[1]--
	complete(r)
}
