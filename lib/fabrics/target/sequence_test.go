// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// The blocks of a sequence, and those of its neighbour.
const (
	slotSize   = 4096
	slots      = 64
	neighbour  = 32 << 20
	mostSlots  = 48 // of one command, more than a capsule or small buffers take
	sequencers = 2  // queues
)

// sequence is a host that does what a fuzz input says, and knows what it has written. No two of its commands that are under way concern the
// same slot, so that what a slot has is known: what was written last or, where a connection was cut under a write, that or what was before.
type sequence struct {
	f       *fixture
	t       *testing.T
	o       fabricstest.Options
	admin   *fabricstest.Queue
	queues  [sequencers]*fabricstest.Queue
	under   [sequencers][]*transfer
	has     [slots][]uint32 // versions that a slot may have; the first is what was read or completed last
	version uint32
}

// transfer is a command under way.
type transfer struct {
	fabricstest.Request
	write    bool
	at, n    int // slots
	versions []uint32
}

// content is what version v of a slot is.
func content(slot int, v uint32) []byte {
	if v == 0 {
		return make([]byte, slotSize)
	}
	return bytes.Repeat(fmt.Appendf(nil, "%08x%08x", slot, v), slotSize/16)
}

// connect makes the association and its queues, if they are not there.
func (s *sequence) connect() {
	if s.admin == nil {
		s.admin = s.f.enabled(s.t, s.o)
	}
	for i := range s.queues {
		if s.queues[i] == nil {
			s.queues[i] = s.f.io(s.t, s.admin, s.o, uint16(i+1), uint8(i)*fabrics.CATTRNoFlowControl)
		}
	}
}

// cut ends the association.
func (s *sequence) cut() {
	for i, q := range s.queues {
		if q != nil {
			q.Conn.Close()
		}
		s.queues[i], s.under[i] = nil, nil
	}
	if s.admin != nil {
		s.admin.Conn.Close()
		s.admin = nil
	}
}

// busy reports whether a command is under way on one of the slots.
func (s *sequence) busy(at, n int) bool {
	for i := range s.under {
		for _, x := range s.under[i] {
			if at < x.at+x.n && x.at < at+n {
				return true
			}
		}
	}
	return false
}

// start begins a transfer on queue i.
func (s *sequence) start(i int, write bool, at, n int) *transfer {
	at, n = at%slots, 1+n%mostSlots
	n = min(n, slots-at)
	for s.busy(at, n) || len(s.under[i]) > 100 {
		s.drain()
	}
	x := &transfer{write: write, at: at, n: n}
	if !write {
		x.Request = fabricstest.Request{SQE: rw(nvme.IORead, 1, at*slotSize, n*slotSize), From: make([]byte, n*slotSize)}
	} else {
		for slot := at; slot < at+n; slot++ {
			s.version++
			x.versions = append(x.versions, s.version)
			x.To = append(x.To, content(slot, s.version)...)
			s.has[slot] = append(s.has[slot], s.version)
		}
		x.SQE = rw(nvme.IOWrite, 1, at*slotSize, n*slotSize)
	}
	s.queues[i].Start(&x.Request)
	s.under[i] = append(s.under[i], x)
	return x
}

// wait waits for the end of a transfer of queue i.
func (s *sequence) wait(i int) {
	if len(s.under[i]) == 0 {
		return
	}
	r, err := s.queues[i].Next() // an error if it has ended before
	if err != nil {
		s.t.Fatal(err)
	}
	for k, x := range s.under[i] {
		if &x.Request == r {
			s.under[i] = append(s.under[i][:k], s.under[i][k+1:]...)
			s.ended(x)
			return
		}
	}
	s.t.Fatalf("the end of a command that is not there: %+v", r)
}

// ended holds a transfer against what is known.
func (s *sequence) ended(x *transfer) {
	switch st := x.CQE.StatusField(); {
	case st.Code() == nvme.StatusAbortRequested:
		return // a write may have been done
	case st != 0:
		s.t.Fatalf("%+v: %v", x.SQE, st)
	}
	for k := range x.n {
		slot := x.at + k
		if x.write {
			s.has[slot] = []uint32{x.versions[k]}
			continue
		}
		got, found := x.From[k*slotSize:][:slotSize], false
		for _, v := range s.has[slot] {
			if bytes.Equal(got, content(slot, v)) {
				s.has[slot], found = []uint32{v}, true // and that it stays
				break
			}
		}
		if !found {
			s.t.Fatalf("slot %d has %q, none of %d", slot, got[:32], s.has[slot])
		}
	}
}

// drain waits for all transfers.
func (s *sequence) drain() {
	for i := range s.under {
		for len(s.under[i]) > 0 {
			s.wait(i)
		}
	}
}

// reset switches the controller off and on: the queues are gone.
func (s *sequence) reset() {
	if st := s.admin.Configure(0); st != 0 {
		s.t.Fatal(st)
	}
	s.admin.WaitStatus(func(c nvme.CSTS) bool { return c == 0 })
	for i, q := range s.queues {
		q.Conn.Close()
		s.queues[i], s.under[i] = nil, nil
	}
	s.admin.Configure(fabricstest.Enabled)
	s.admin.WaitStatus(nvme.CSTS.RDY)
}

// some sends only some of the data that a write is asked for, and then what does not belong there; the end of the connection is next.
func (s *sequence) some(i, at int, rest []byte) {
	s.drain()
	q := s.queues[i]
	q.Options.InCapsule = 1
	s.start(i, true, at, mostSlots-1)
	pdu, err := q.Receive()
	if err != nil || pdu.Type != fabrics.TypeR2T {
		s.t.Fatalf("%+v, %v", pdu, err)
	}
	var r2t fabrics.R2T
	copy(fabrics.Bytes(&r2t), pdu.Header)
	n := min(uint32(len(rest))*97&^3, r2t.R2TL-4)
	if n > 0 {
		d := fabrics.Data{CCCID: r2t.CCCID, TTAG: r2t.TTAG, DATAL: n}
		q.Write(q.Encode(fabrics.TypeH2CData, 0, fabrics.Bytes(&d), s.under[i][0].To[:n]))
	}
	_, _ = q.Conn.Write(rest)
}

// do does one step, and returns what is left of the input.
func (s *sequence) do(p []byte) []byte {
	arg := func(i int) int {
		if i < len(p) {
			return int(p[i])
		}
		return 0
	}
	s.connect()
	i := arg(1) % sequencers
	switch arg(0) % 12 {
	case 0, 1:
		s.start(i, true, arg(2), arg(0)/12%2) // in the capsule
	case 2:
		s.start(i, true, arg(2), arg(3))
	case 3, 4:
		s.start(i, false, arg(2), arg(3))
	case 5:
		s.wait(i)
	case 6:
		var r fabricstest.Request
		nvme.Abort{SQID: uint16(i + 1), CID: uint16(arg(2))}.Put(&r.SQE)
		if st := s.admin.Do(&r); st != 0 {
			s.t.Fatal(st)
		}
	case 7:
		s.cut()
	case 8:
		s.reset()
	case 9:
		rest := p[min(len(p), 3):]
		rest = rest[:min(len(rest), 200)]
		s.some(i, arg(2), rest)
		s.cut()
		return p[min(len(p), 3+len(rest)):]
	case 10: // anything, anywhere in the stream
		rest := p[min(len(p), 2):]
		rest = rest[:min(len(rest), 200)]
		s.drain()
		q := s.admin
		if arg(1)%3 < sequencers {
			q = s.queues[arg(1)%3]
		}
		if mayWrite(rest) {
			rest = nil
		}
		_, _ = q.Conn.Write(rest)
		s.cut()
		return p[min(len(p), 2+len(rest)):]
	case 11:
		s.f.identify(s.t, s.admin)
	}
	return p[min(len(p), 4):]
}

// mayWrite reports whether bytes have a capsule in them whose opcode is not harmless: the oracle would not know what it writes.
func mayWrite(p []byte) bool {
	for i := range p {
		if fabrics.PDUType(p[i]) == fabrics.TypeCapsuleCmd && i+8 < len(p) {
			switch nvme.IOOpcode(p[i+8]) {
			case nvme.IORead, nvme.IOFlush, nvme.IOCompare:
			default:
				return true
			}
		}
	}
	return false
}

// FuzzSequence has a host write, read, abort, reset, break off and say anything at any time. It never reads anything but what it has written,
// every command is answered once at most, and another host that is connected all the time keeps its data.
func FuzzSequence(f *testing.F) {
	f.Add([]byte{2, 0, 3, 20, 5, 0, 0, 0, 3, 0, 3, 20})
	f.Add([]byte{2, 0, 3, 20, 2, 1, 30, 40, 7, 0, 0, 0, 3, 0, 0, 47})
	f.Add([]byte{0, 0, 1, 0, 0, 1, 2, 0, 8, 0, 0, 0, 3, 1, 0, 47, 6, 1, 4, 0})
	f.Add(append([]byte{9, 1, 5}, raw(24, 6, 4, 24, 24, 28)...))
	f.Add(append([]byte{10, 2}, steps(false)[2]...))
	x := start(f, Limits{Connections: 64})
	other := x.enabled(f, fabricstest.Options{Host: 1})
	q := x.io(f, other, fabricstest.Options{Host: 1}, 1, 0)
	theirs := pattern(1, 64<<10)
	if st := q.Do(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, neighbour, len(theirs)), To: theirs}); st != 0 {
		f.Fatal(st)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 {
			return
		}
		s := &sequence{f: x, t: t, o: fabricstest.Options{
			HeaderDigest: p[0]&1 != 0, DataDigest: p[0]&2 != 0, Chunk: min(4096<<(p[0]>>2&7), maxH2CData), HPDA: p[0] >> 5,
		}}
		defer s.cut()
		// What the blocks have is known.
		s.connect()
		for slot := range s.has {
			s.has[slot] = []uint32{0}
		}
		zero := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, slots*slotSize), To: make([]byte, slots*slotSize)}
		if st := s.queues[0].Do(&zero); st != 0 {
			t.Fatal(st)
		}
		p = p[1:]
		for range 20 {
			if len(p) == 0 {
				break
			}
			p = s.do(p)
		}
		s.connect()
		s.drain()
		for range 2 { // the second time nothing is left open
			for at := 0; at < slots; at += mostSlots {
				s.start(0, false, at, mostSlots-1)
			}
			s.drain()
		}
		other.For(t)
		q.For(t)
		r := fabricstest.Request{SQE: rw(nvme.IORead, 1, neighbour, len(theirs)), From: make([]byte, len(theirs))}
		if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, theirs) {
			t.Fatalf("another host: %v, its data: %v", st, bytes.Equal(r.From, theirs))
		}
		x.identify(t, other)
	})
}
