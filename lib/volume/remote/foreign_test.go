// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// foreign is a controller that shares no code with our target, and chooses other
// values: as other targets do, or as they must not.
type foreign struct {
	cpda      uint8
	maxH2C    uint32 // 0: 4096
	noDigests bool   // agrees to none
	mdts      uint8
	maxCmd    uint16
	mqes      uint16 // 0: 127
	ioccsz    uint32 // 0: 4, no data in capsules
	kas       uint16 // 0: 1; FFFFh: 0
	oldest    bool   // knows no CNS but 00h and 01h, and no events
	nsid      uint32 // 0: 1
	identity  func(*nvme.IdentifyNamespace)
	ids       []byte // of CNS 03h
	success   bool   // ends reads without a response
	pieces    bool   // C2HData and R2Ts of any size, R2Ts in any order
	queues    uint16 // it grants; 0: 4

	silent   nvme.AdminOpcode                               // is not answered; FFh: nothing is
	mute     atomic.Bool                                    // reads and writes are not answered any more
	mischief func(q *foreignQueue, e *nvme.SQE) (done bool) // instead of executing a command

	t      testing.TB
	addr   netip.AddrPort
	l      net.Listener
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]bool
	medium []byte
	closed bool
}

const foreignSize = 4 << 20

// start serves connections until the test ends; then no goroutine is left.
func (f *foreign) start(t testing.TB) *foreign {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), fabricstest.Descriptors(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.t, f.l, f.addr, f.medium, f.conns = t, l, netip.MustParseAddrPort(l.Addr().String()), make([]byte, foreignSize), make(map[net.Conn]bool)
	set := func(p *uint32, v uint32) {
		if *p == 0 {
			*p = v
		}
	}
	set(&f.maxH2C, fabrics.MinMaxH2CData)
	set(&f.ioccsz, 4)
	set(&f.nsid, 1)
	if f.mqes == 0 {
		f.mqes = 127
	}
	if f.queues == 0 {
		f.queues = 4
	}
	switch f.kas {
	case 0:
		f.kas = 1
	case 0xffff:
		f.kas = 0
	}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[conn] = true
			if f.closed {
				conn.Close()
			}
			f.mu.Unlock()
			f.wg.Go(func() {
				(&foreignQueue{f: f, conn: conn, rnd: rand.New(rand.NewPCG(1, 2))}).serve()
				conn.Close()
				f.mu.Lock()
				delete(f.conns, conn)
				f.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		f.closed = true
		for c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
		fabricstest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		fabricstest.WaitFor(t, "descriptors to be closed", func() bool { return fabricstest.Descriptors(t) <= fds })
	})
	return f
}

// foreignQueue is a connection of it.
type foreignQueue struct {
	f       *foreign
	conn    net.Conn
	in, out fabrics.Framing
	rnd     *rand.Rand
	enabled bool      // it is an admin queue
	waiting []capsule // that have come while data was awaited
}

// capsule is a command and what of its data came with it.
type capsule struct {
	sqe  nvme.SQE
	data []byte
}

// receive returns the next PDU.
func (q *foreignQueue) receive() (h fabrics.CommonHeader, header, data []byte, ok bool) {
	if _, err := io.ReadFull(q.conn, fabrics.Bytes(&h)); err != nil {
		return h, nil, nil, false
	}
	frame, v := q.in.Check(&h)
	if v.Bad() {
		q.f.t.Errorf("the host sends %v: %v", h.Type, v)
		return h, nil, nil, false
	}
	b := make([]byte, frame.Length)
	copy(b, fabrics.Bytes(&h))
	if _, err := io.ReadFull(q.conn, b[fabrics.CommonHeaderSize:]); err != nil {
		return h, nil, nil, false
	}
	return h, b[:h.HLEN], b[frame.DataOffset:][:frame.DataLength], true
}

// send sends a PDU with the header h, whose common part it fills in.
func (q *foreignQueue) send(t fabrics.PDUType, flags uint8, h, data []byte) bool {
	var common fabrics.CommonHeader
	frame := q.out.Make(&common, t, flags, uint32(len(data)))
	copy(h, fabrics.Bytes(&common))
	b := make([]byte, frame.Length)
	n := copy(b, h)
	if int(frame.Header) > n {
		binary.LittleEndian.PutUint32(b[n:], fabrics.Digest(h))
	}
	copy(b[frame.DataOffset:], data)
	if frame.HasDigest {
		binary.LittleEndian.PutUint32(b[int(frame.DataOffset)+len(data):], fabrics.Digest(data))
	}
	_, err := q.conn.Write(b)
	return err == nil
}

func (q *foreignQueue) respond(cid uint16, st nvme.Status, dw0, dw1 uint32) bool {
	r := fabrics.CapsuleResp{CQE: nvme.CQE{CID: cid, DW0: dw0, DW1: dw1}}
	r.CQE.SetStatus(st, false)
	return q.send(fabrics.TypeCapsuleResp, 0, fabrics.Bytes(&r), nil)
}

// read ends a command with data for the host.
func (q *foreignQueue) read(cid uint16, data []byte) bool {
	for off := 0; off < len(data); {
		n := len(data) - off
		if q.f.pieces {
			n = min(n, 4*(1+q.rnd.IntN(4096)))
		}
		d := fabrics.Data{CCCID: cid, DATAO: uint32(off), DATAL: uint32(n)}
		flags := uint8(0)
		if off+n == len(data) {
			if flags = fabrics.FlagLast; q.f.success {
				flags |= fabrics.FlagSuccess
			}
		}
		if !q.send(fabrics.TypeC2HData, flags, fabrics.Bytes(&d), data[off:][:n]) {
			return false
		}
		off += n
	}
	return q.f.success && len(data) > 0 || q.respond(cid, nvme.StatusSuccess, 0, 0)
}

// ask fetches n bytes of a command's data by R2Ts.
func (q *foreignQueue) ask(cid uint16, n int) ([]byte, bool) {
	type part struct{ from, to uint32 }
	parts := []part{{0, uint32(n)}}
	if q.f.pieces {
		parts = nil
		for at := uint32(0); at < uint32(n); {
			to := min(at+4*uint32(1+q.rnd.IntN(n/8)), uint32(n))
			parts = append(parts, part{at, to})
			at = to
		}
		q.rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	}
	all := make([]byte, n)
	for len(parts) > 0 {
		some := parts[:min(len(parts), 16)] // MAXR2T
		for i, p := range some {
			r := fabrics.R2T{CCCID: cid, TTAG: uint16(i), R2TO: p.from, R2TL: p.to - p.from}
			if !q.send(fabrics.TypeR2T, 0, fabrics.Bytes(&r), nil) {
				return nil, false
			}
		}
		for i, p := range some {
			for at := p.from; at < p.to; {
				h, header, data, ok := q.receive()
				if !ok {
					return nil, false
				}
				if h.Type == fabrics.TypeCapsuleCmd {
					q.waiting = append(q.waiting, takeCapsule(header, data))
					continue
				}
				if h.Type != fabrics.TypeH2CData {
					return nil, false
				}
				var d fabrics.Data
				copy(fabrics.Bytes(&d), header)
				if d.CCCID != cid || int(d.TTAG) != i || d.DATAO != at || h.Flags&fabrics.FlagLast != 0 != (at+d.DATAL == p.to) {
					q.f.t.Errorf("H2CData %+v, at %d of %d to %d", d, at, p.from, p.to)
					return nil, false
				}
				at += uint32(copy(all[at:], data))
			}
		}
		parts = parts[len(some):]
	}
	return all, true
}

// serve serves a connection until it ends.
func (q *foreignQueue) serve() {
	f := q.f
	q.in = fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: 64 << 10, MaxData: f.maxH2C}
	q.out = fabrics.Framing{From: fabrics.FromController, Align: 4}
	for {
		h, header, data, ok := q.receive()
		if !ok || h.Type == fabrics.TypeH2CTermReq {
			return
		}
		if h.Type == fabrics.TypeICReq {
			var req fabrics.ICReq
			copy(fabrics.Bytes(&req), header)
			resp := fabrics.ICResp{MAXH2CDATA: f.maxH2C, CPDA: f.cpda}
			if !f.noDigests {
				resp.DGST = req.DGST
			}
			if f.silent == 0xff || !q.send(fabrics.TypeICResp, 0, fabrics.Bytes(&resp), nil) {
				_, _ = io.Copy(io.Discard, q.conn)
				return
			}
			q.in.Align = fabrics.Align(f.cpda)
			for _, framing := range []*fabrics.Framing{&q.in, &q.out} {
				framing.HeaderDigest, framing.DataDigest = resp.DGST&fabrics.DGSTHeader != 0, resp.DGST&fabrics.DGSTData != 0
			}
			continue
		}
		q.waiting = append(q.waiting, takeCapsule(header, data))
		for len(q.waiting) > 0 {
			c := q.waiting[0]
			q.waiting = q.waiting[1:]
			if !q.execute(&c.sqe, c.data) {
				return
			}
		}
	}
}

func takeCapsule(header, data []byte) capsule {
	var c fabrics.CapsuleCmd
	copy(fabrics.Bytes(&c), header)
	return capsule{c.SQE, data}
}

// execute executes a command; false: the connection has ended.
func (q *foreignQueue) execute(e *nvme.SQE, data []byte) bool {
	f := q.f
	if f.mischief != nil && f.mischief(q, e) {
		return true
	}
	if !q.enabled && e.Opcode != fabrics.Opcode { // an I/O queue
		return q.io(e, data)
	}
	op := nvme.AdminOpcode(e.Opcode)
	switch {
	case f.silent != 0 && op == f.silent:
		return true
	case e.Opcode == fabrics.Opcode:
		return q.fabrics(e)
	case op == nvme.AdminAsyncEventRequest:
		return true
	case op == nvme.AdminKeepAlive:
		return q.respond(e.CID, 0, 0, 0)
	case op == nvme.AdminSetFeatures && nvme.FeatureID(e.CDW10) == nvme.FeatNumberOfQueues:
		n := uint32(f.queues - 1)
		return q.respond(e.CID, 0, n|n<<16, 0)
	case op == nvme.AdminIdentify:
		return q.identify(e)
	}
	return q.respond(e.CID, nvme.StatusInvalidOpcode|nvme.StatusDNR, 0, 0)
}

func (q *foreignQueue) fabrics(e *nvme.SQE) bool {
	switch fabrics.TypeOf(e) {
	case fabrics.Connect:
		c := fabrics.ConnectOf(e)
		q.enabled = c.QID == 0
		if c.SQSIZE == 0 || c.QID != 0 && c.SQSIZE > q.f.mqes {
			return q.respond(e.CID, fabrics.StatusInvalidParameters, uint32(fabrics.MakeInvalidParameter(fabrics.OffsetSQSIZE, false)), 0)
		}
		return q.respond(e.CID, 0, 1, 0) // SQHD 0: flow control is not given up
	case fabrics.PropertyGet:
		p, _ := fabrics.PropertyOf(e)
		value := uint64(1) // CSTS.RDY
		if p.OFST == nvme.RegCAP {
			value = uint64(nvme.CAP(0).WithMQES(q.f.mqes).WithTO(1))
		}
		return q.respond(e.CID, 0, uint32(value), uint32(value>>32))
	}
	return q.respond(e.CID, 0, 0, 0)
}

func (q *foreignQueue) identify(e *nvme.SQE) bool {
	f := q.f
	switch id := e.Identify(); {
	case id.CNS == nvme.CNSController:
		ctrl := nvme.IdentifyController{
			MDTS: f.mdts, KAS: f.kas, MAXCMD: f.maxCmd, IOCCSZ: f.ioccsz, IORCSZ: 1, VWC: nvme.VWCPresent,
			ONCS: nvme.ONCSWriteZeroes | nvme.ONCSDatasetManagement, NN: 1024,
		}
		return q.read(e.CID, nvme.Bytes(&ctrl))
	case id.CNS == nvme.CNSNamespace:
		var ns nvme.IdentifyNamespace
		if e.NSID == f.nsid {
			ns.NSZE, ns.NCAP = foreignSize/512, foreignSize/512
			ns.LBAF[0].LBADS = 9
			if f.identity != nil {
				f.identity(&ns)
			}
		}
		return q.read(e.CID, nvme.Bytes(&ns))
	case id.CNS == nvme.CNSNamespaceDescriptors && !f.oldest:
		list := make([]byte, nvme.IdentifySize)
		copy(list, f.ids)
		return q.read(e.CID, list)
	}
	return q.respond(e.CID, nvme.StatusInvalidField|nvme.StatusDNR, 0, 0)
}

// io executes an I/O command, all of it before the next is looked at.
func (q *foreignQueue) io(e *nvme.SQE, data []byte) bool {
	f, rw := q.f, e.RW()
	if f.mute.Load() {
		return true
	}
	if e.NSID != f.nsid {
		f.t.Errorf("NSID %d", e.NSID)
	}
	if e.Opcode == uint8(nvme.IOFlush) {
		return q.respond(e.CID, 0, 0, 0)
	}
	off, n := int(rw.SLBA)*512, (int(rw.NLB)+1)*512
	switch nvme.IOOpcode(e.Opcode) {
	case nvme.IORead:
		f.mu.Lock()
		out := append([]byte(nil), f.medium[off:][:n]...)
		f.mu.Unlock()
		return q.read(e.CID, out)
	case nvme.IOWrite:
		if len(data) == 0 {
			var ok bool
			if data, ok = q.ask(e.CID, n); !ok {
				return false
			}
		}
		f.mu.Lock()
		copy(f.medium[off:], data)
		f.mu.Unlock()
	case nvme.IOWriteZeroes:
		f.mu.Lock()
		clear(f.medium[off:][:n])
		f.mu.Unlock()
	}
	return q.respond(e.CID, 0, 0, 0)
}

// TestForeign: controllers that choose other values than ours serve verified
// load, over two connections.
func TestForeign(t *testing.T) {
	guid := func(ns *nvme.IdentifyNamespace) { ns.NGUID[0] = 1 }
	for _, tt := range []struct {
		name string
		f    *foreign
		id   string // that is noted
	}{
		{"the least", &foreign{oldest: true}, noID},
		{"in the capsule", &foreign{ioccsz: (64 + 8192) / 16, success: true, identity: guid}, "01" + zeros(30)},
		{"aligned", &foreign{cpda: fabrics.MaxPDA, ioccsz: (64 + 4096) / 16, pieces: true}, noID},
		{"in pieces", &foreign{pieces: true, maxH2C: 1 << 20, ids: nvme.AppendIDDescriptor(nil, nvme.NIDTUUID, []byte("0123456789abcdef"))},
			"30313233-3435-3637-3839-616263646566"},
		{"small queues", &foreign{mqes: 1, mdts: 1, success: true}, noID},
		{"one command", &foreign{maxCmd: 1, mdts: 3}, noID},
		{"odd numbers", &foreign{maxCmd: 0xffff, mqes: 0xffff, mdts: 0xff, maxH2C: 4099, kas: 100, nsid: 1000}, noID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.f.start(t)
			s := patientSpec(f.addr, "queues", "2", "hdr-digest", "on", "data-digest", "on")
			if f.nsid != 1 {
				s.Options["addr"] += "?nsid=1000"
			}
			r := open(t, s)
			if got := s.Options[noteID]; got != tt.id {
				t.Errorf("the identifier noted is %s, want %s", got, tt.id)
			}
			load(t, []*volumetest.Client{volumetest.Connect(t, r, cfg)}, 10, 5)()
			if r.Err() != nil {
				t.Error(r.Err())
			}
		})
	}
}

func zeros(n int) string { return strings.Repeat("0", n) }

// TestNoDigests: digests that were asked for and are not agreed to are an error:
// nothing is sent unprotected.
func TestNoDigests(t *testing.T) {
	f := (&foreign{noDigests: true}).start(t)
	for _, key := range []string{"hdr-digest", "data-digest"} {
		if _, err := Kind.Make(t.Context(), new(volumetest.Env), spec(f.addr, key, "on")); fault.KindOf(err) != fault.Unsupported {
			t.Errorf("%s: %v (%v)", key, err, fault.KindOf(err))
		}
	}
}

// TestHostile: a volume on a controller that does not answer, or answers what it
// must not, is not made, with an error that says at which step, in the time that
// was given; and nothing is left behind.
func TestHostile(t *testing.T) {
	respond := func(st nvme.Status) func(*foreignQueue, *nvme.SQE) bool {
		return func(q *foreignQueue, e *nvme.SQE) bool { return q.respond(e.CID, st, 0, 0) }
	}
	identify := func(change func(*nvme.IdentifyNamespace)) *foreign { return &foreign{identity: change} }
	for _, tt := range []struct {
		name string
		f    *foreign
		kind fault.Kind
		want string
	}{
		{"no ICResp", &foreign{silent: 0xff}, fault.Timeout, "initializing the connection"},
		{"no Connect", &foreign{silent: nvme.AdminFabrics}, fault.Timeout, "Connect: waiting for the answer"},
		{"no Identify", &foreign{silent: nvme.AdminIdentify}, fault.Timeout, "Identify: waiting for the answer"},
		{"no features", &foreign{silent: nvme.AdminSetFeatures}, fault.Timeout, "Set Features Number of Queues: waiting for the answer"},
		{"no success", &foreign{mischief: respond(nvme.StatusInternalError)}, fault.Peer, "Connect: Internal Error"},
		{"success without data", &foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
			return nvme.AdminOpcode(e.Opcode) == nvme.AdminIdentify && q.respond(e.CID, 0, 0, 0)
		}}, fault.Peer, "Identify: waiting for the answer: the command ended well with 0 of 4096 bytes"},
		{"data of another command", &foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
			return nvme.AdminOpcode(e.Opcode) == nvme.AdminIdentify && q.read(e.CID+1, make([]byte, 4096))
		}}, fault.Peer, "none in execution"},
		{"too much data", &foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
			return nvme.AdminOpcode(e.Opcode) == nvme.AdminIdentify && q.read(e.CID, make([]byte, 8192))
		}}, fault.Peer, "it is at byte 0 of 4096"},
		{"garbage", &foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
			_, err := q.conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			return err == nil
		}}, fault.Peer, "breaks the protocol"},
		{"no Keep Alive", &foreign{kas: 0xffff}, fault.Unsupported, "no Keep Alive"},
		{"no namespace", &foreign{nsid: 2}, fault.NotFound, "there is no namespace 1"},
		{"blocks of 8 KiB", identify(func(ns *nvme.IdentifyNamespace) { ns.LBAF[0].LBADS = 13 }), fault.Unsupported, "blocks of 8192 bytes"},
		{"blocks of nothing", identify(func(ns *nvme.IdentifyNamespace) { ns.LBAF[0].LBADS = 0 }), fault.Unsupported, "blocks of 0 bytes"},
		{"metadata", identify(func(ns *nvme.IdentifyNamespace) { ns.LBAF[0].MS = 8 }), fault.Unsupported, "8 bytes of metadata"},
		{"too many blocks", identify(func(ns *nvme.IdentifyNamespace) { ns.NSZE = 1 << 60 }), fault.Peer, "blocks of 512 bytes"},
		{"identifiers without end", &foreign{ids: bytes.Repeat([]byte{9, 255, 0, 0}, 1024)}, fault.Peer, "reach past the end"},
		{"zones", &foreign{ids: nvme.AppendIDDescriptor(nil, nvme.NIDTCSI, []byte{2})}, fault.Unsupported, "command set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.f.start(t)
			s := spec(f.addr, "keep-alive", "500ms")
			v, err := Kind.Make(t.Context(), new(volumetest.Env), s)
			if err == nil {
				v.Close()
			}
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), f.addr.String()) {
				t.Errorf("%v (%v), want %v, %q", err, fault.KindOf(err), tt.kind, tt.want)
			}
		})
	}
}

// TestSlow: a controller that answers everything at the last moment makes a
// volume, or there is an error when that has taken too long, and the maker may
// give up at any time.
func TestSlow(t *testing.T) {
	f := &foreign{mischief: func(*foreignQueue, *nvme.SQE) bool { time.Sleep(20 * time.Millisecond); return false }}
	open(t, spec(f.start(t).addr, "keep-alive", "500ms")).Close()

	never := (&foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
		return e.Opcode == fabrics.Opcode && fabrics.TypeOf(e) == fabrics.PropertyGet && q.respond(e.CID, 0, 255<<24, 0)
	}}).start(t) // CSTS.RDY stays 0, CAP.TO is 127.5 s
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Kind.Make(ctx, new(volumetest.Env), spec(never.addr)); fault.KindOf(err) != fault.Timeout {
		t.Errorf("%v (%v)", err, fault.KindOf(err))
	}
}

// TestMute: commands that are not answered are the end of the connection, also
// where the controller goes on otherwise.
func TestMute(t *testing.T) {
	f := (&foreign{}).start(t)
	r := open(t, quickSpec(f.addr))
	r.stalled, r.unanswered = time.Hour, 50*time.Millisecond
	c := volumetest.Connect(t, r, cfg)
	req := volume.Request{Op: volume.Flush}
	if st := c.Do(t.Context(), &req); st != nvme.StatusSuccess {
		t.Fatal(st)
	}
	f.mute.Store(true)
	o := &counter{done: make(chan struct{}), left: 1}
	req.Owner = o
	c.On(func() { c.Queue.Submit(&req) })
	fabricstest.WaitFor(t, "the loss", func() bool { return r.Err() != nil })
	f.mute.Store(false)
	<-o.done
	if req.Status != nvme.StatusSuccess {
		t.Errorf("over the next connection: %v", req.Status)
	}
}

// TestRestless: a controller that always has an event to tell is served, and I/O
// goes on.
func TestRestless(t *testing.T) {
	f := (&foreign{mischief: func(q *foreignQueue, e *nvme.SQE) bool {
		return q.enabled && nvme.AdminOpcode(e.Opcode) == nvme.AdminAsyncEventRequest && q.respond(e.CID, 0, uint32(nvme.EventNamespaceAttribute), 0)
	}}).start(t)
	r := open(t, patientSpec(f.addr))
	load(t, []*volumetest.Client{volumetest.Connect(t, r, cfg)}, 10, 5)()
	if r.Err() != nil {
		t.Error(r.Err())
	}
}
