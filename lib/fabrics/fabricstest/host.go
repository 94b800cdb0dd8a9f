// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package fabricstest plays an NVMe/TCP host for tests: it speaks the protocol right, and lets a test say anything else instead.
package fabricstest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
)

// deadline ends a test that hangs. Nothing is measured by it.
const deadline = 20 * time.Second

// Options of a connection.
type Options struct {
	HeaderDigest, DataDigest bool
	HPDA                     uint8
	InCapsule                int  // most data put into a capsule; 0: 8192
	Chunk                    int  // most data of an H2CData; 0: MAXH2CDATA
	Host                     byte // tells hosts of the same name apart, by their identifiers
}

// Queue is a connection. Its methods are for one goroutine.
type Queue struct {
	Conn    net.Conn
	Options Options
	In, Out fabrics.Framing // of what is received and sent
	ICResp  fabrics.ICResp
	CNTLID  uint16

	t       testing.TB
	r       *bufio.Reader
	nextCID uint16
	pending map[uint16]*Request
	buf     []byte
	scratch []byte
	held    []byte // what is to be written
	Corked  bool   // Start only gathers; Flush writes
}

// Request is a command in flight.
type Request struct {
	SQE     nvme.SQE
	To      []byte // data for the controller
	From    []byte // room for data from it
	CQE     nvme.CQE
	Got     int  // bytes of From received
	Success bool // ended by the SUCCESS flag, without a response
	R2Ts    int
}

// PDU is what was received.
type PDU struct {
	fabrics.CommonHeader
	Header []byte // without the digest
	Data   []byte
}

// Dial connects and does nothing more. The connection is closed at the end of the test.
func Dial(t testing.TB, addr netip.AddrPort) *Queue {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(deadline))
	return &Queue{
		Conn: conn, t: t, r: bufio.NewReaderSize(conn, 64<<10), pending: make(map[uint16]*Request),
		In:  fabrics.Framing{From: fabrics.FromController, Align: 4, MaxData: 1 << 24},
		Out: fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: 1 << 20, MaxData: 1 << 20},
	}
}

// For has the queue report to another test, such as one of many inputs of a fuzz target, and gives it its time.
func (q *Queue) For(t testing.TB) {
	q.t = t
	_ = q.Conn.SetDeadline(time.Now().Add(deadline))
}

// Initialize exchanges ICReq and ICResp.
func Initialize(t testing.TB, addr netip.AddrPort, o Options) *Queue {
	t.Helper()
	q := Dial(t, addr)
	req := fabrics.ICReq{HPDA: o.HPDA, MAXR2T: 15}
	if o.HeaderDigest {
		req.DGST |= fabrics.DGSTHeader
	}
	if o.DataDigest {
		req.DGST |= fabrics.DGSTData
	}
	q.Out.Make(&req.CommonHeader, fabrics.TypeICReq, 0, 0)
	q.Write(fabrics.Bytes(&req))
	pdu, err := q.Receive()
	if err != nil || pdu.Type != fabrics.TypeICResp {
		t.Fatalf("no ICResp: %+v, %v", pdu, err)
	}
	copy(fabrics.Bytes(&q.ICResp), pdu.Header)
	if q.ICResp.DGST != req.DGST {
		t.Fatalf("digests %#x, asked for %#x", q.ICResp.DGST, req.DGST)
	}
	for _, f := range []*fabrics.Framing{&q.In, &q.Out} {
		f.HeaderDigest, f.DataDigest = o.HeaderDigest, o.DataDigest
	}
	q.In.Align, q.Out.Align = fabrics.Align(o.HPDA), fabrics.Align(q.ICResp.CPDA)
	if o.InCapsule == 0 {
		o.InCapsule = 8192
	}
	if o.Chunk == 0 {
		o.Chunk = int(q.ICResp.MAXH2CDATA)
	}
	q.Options = o
	return q
}

// Write sends bytes as they are.
func (q *Queue) Write(p []byte) {
	q.t.Helper()
	if _, err := q.Conn.Write(p); err != nil {
		q.t.Fatalf("sending: %v", err)
	}
}

// Encode returns a PDU with the header h, whose common part it fills in, and data.
func (q *Queue) Encode(t fabrics.PDUType, flags uint8, h, data []byte) []byte {
	return appendPDU(nil, &q.Out, t, flags, h, data)
}

// appendPDU encodes a PDU with the header h.
func appendPDU(p []byte, f *fabrics.Framing, t fabrics.PDUType, flags uint8, h, data []byte) []byte {
	var common fabrics.CommonHeader
	frame := f.Make(&common, t, flags, uint32(len(data)))
	copy(h, fabrics.Bytes(&common))
	start := len(p)
	p = append(p, h...)
	if int(frame.Header) > len(h) {
		p = binary.LittleEndian.AppendUint32(p, fabrics.Digest(h))
	}
	for len(p)-start < int(frame.DataOffset) {
		p = append(p, 0)
	}
	p = append(p, data...)
	if frame.HasDigest {
		p = binary.LittleEndian.AppendUint32(p, fabrics.Digest(data))
	}
	return p
}

// Receive reads a PDU and checks its framing and digests. Header and Data are valid until the next.
func (q *Queue) Receive() (PDU, error) {
	var pdu PDU
	if cap(q.buf) == 0 {
		q.buf = make([]byte, 0, 2<<20)
	}
	head := q.buf[:fabrics.CommonHeaderSize]
	if _, err := io.ReadFull(q.r, head); err != nil {
		return pdu, err
	}
	copy(fabrics.Bytes(&pdu.CommonHeader), head)
	frame, v := q.In.Check(&pdu.CommonHeader)
	if v.Bad() || int(frame.Length) > cap(q.buf) {
		return pdu, fmt.Errorf("PDU %+v: %v", pdu.CommonHeader, v)
	}
	p := q.buf[:frame.Length]
	if _, err := io.ReadFull(q.r, p[len(head):]); err != nil {
		return pdu, err
	}
	pdu.Header = p[:pdu.HLEN]
	if frame.Header > uint32(pdu.HLEN) && binary.LittleEndian.Uint32(p[pdu.HLEN:]) != fabrics.Digest(pdu.Header) {
		return pdu, fmt.Errorf("%v: header digest is wrong", pdu.Type)
	}
	pdu.Data = p[frame.DataOffset:][:frame.DataLength]
	if frame.HasDigest && binary.LittleEndian.Uint32(p[frame.DataOffset+frame.DataLength:]) != fabrics.Digest(pdu.Data) {
		return pdu, fmt.Errorf("%v: data digest is wrong", pdu.Type)
	}
	return pdu, nil
}

// Start sends a command, its data with it if that is short enough. The CID is chosen here.
func (q *Queue) Start(r *Request) {
	q.t.Helper()
	r.CQE, r.Got, r.Success, r.R2Ts = nvme.CQE{}, 0, false, 0
	for q.pending[q.nextCID] != nil {
		q.nextCID++
	}
	r.SQE.CID = q.nextCID
	q.nextCID++
	r.SQE.SetPSDT(nvme.PSDTSGL)
	var inline []byte
	switch {
	case len(r.From) > 0:
		r.SQE.SetSGL1(fabrics.InTransport(uint32(len(r.From))))
	case len(r.To) > 0 && len(r.To) <= q.Options.InCapsule:
		r.SQE.SetSGL1(fabrics.InCapsule(uint32(len(r.To))))
		inline = r.To
	default:
		r.SQE.SetSGL1(fabrics.InTransport(uint32(len(r.To))))
	}
	q.pending[r.SQE.CID] = r
	c := fabrics.CapsuleCmd{SQE: r.SQE}
	q.held = appendPDU(q.held, &q.Out, fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), inline)
	if !q.Corked {
		q.Flush()
	}
}

// Flush writes what Start has gathered.
func (q *Queue) Flush() {
	q.t.Helper()
	if len(q.held) > 0 {
		q.Write(q.held)
		q.held = q.held[:0]
	}
}

// Next handles PDUs until a command has ended.
func (q *Queue) Next() (*Request, error) {
	for {
		pdu, err := q.Receive()
		if err != nil {
			return nil, err
		}
		if r, err := q.handle(&pdu); r != nil || err != nil {
			return r, err
		}
	}
}

// handle follows a PDU; it returns a request that has ended.
func (q *Queue) handle(pdu *PDU) (*Request, error) {
	switch pdu.Type {
	case fabrics.TypeCapsuleResp:
		var resp fabrics.CapsuleResp
		copy(fabrics.Bytes(&resp), pdu.Header)
		r := q.pending[resp.CQE.CID]
		if r == nil {
			return nil, fmt.Errorf("response for command %d, which is not there", resp.CQE.CID)
		}
		r.CQE = resp.CQE
		delete(q.pending, resp.CQE.CID)
		return r, nil
	case fabrics.TypeC2HData:
		return q.data(pdu)
	case fabrics.TypeR2T:
		return nil, q.transfer(pdu)
	case fabrics.TypeC2HTermReq:
		return nil, &Terminated{Violation: termination(pdu)}
	}
	return nil, fmt.Errorf("unexpected %v", pdu.Type)
}

// Terminated is that the controller has ended the connection.
type Terminated struct{ fabrics.Violation }

func (e *Terminated) Error() string { return "terminated: " + e.String() }

func termination(pdu *PDU) fabrics.Violation {
	var req fabrics.TermReq
	copy(fabrics.Bytes(&req), pdu.Header)
	return req.Violation()
}

// data takes a C2HData.
func (q *Queue) data(pdu *PDU) (*Request, error) {
	var d fabrics.Data
	copy(fabrics.Bytes(&d), pdu.Header)
	r := q.pending[d.CCCID]
	switch {
	case r == nil:
		return nil, fmt.Errorf("data for command %d, which is not there", d.CCCID)
	case int(d.DATAO) != r.Got || int(d.DATAL) != len(pdu.Data) || r.Got+len(pdu.Data) > len(r.From):
		return nil, fmt.Errorf("data at %d+%d of command %d after %d of %d bytes", d.DATAO, d.DATAL, d.CCCID, r.Got, len(r.From))
	}
	r.Got += copy(r.From[r.Got:], pdu.Data)
	if d.Flags&fabrics.FlagSuccess == 0 {
		return nil, nil
	}
	r.Success = true
	delete(q.pending, d.CCCID)
	return r, nil
}

// transfer answers an R2T.
func (q *Queue) transfer(pdu *PDU) error {
	var r2t fabrics.R2T
	copy(fabrics.Bytes(&r2t), pdu.Header)
	r := q.pending[r2t.CCCID]
	if r == nil || uint64(r2t.R2TO)+uint64(r2t.R2TL) > uint64(len(r.To)) || r2t.R2TL == 0 {
		return fmt.Errorf("R2T %+v for a command that has no such data", r2t)
	}
	r.R2Ts++
	out := q.scratch[:0]
	for off, end := r2t.R2TO, r2t.R2TO+r2t.R2TL; off < end; {
		n := min(end-off, uint32(q.Options.Chunk))
		d := fabrics.Data{CCCID: r2t.CCCID, TTAG: r2t.TTAG, DATAO: off, DATAL: n}
		flags := uint8(0)
		if off+n == end {
			flags = fabrics.FlagLast
		}
		out = appendPDU(out, &q.Out, fabrics.TypeH2CData, flags, fabrics.Bytes(&d), r.To[off:off+n])
		off += n
	}
	q.scratch = out
	q.Write(out)
	return nil
}

// Do runs a command to its end, which has to be the next one.
func (q *Queue) Do(r *Request) nvme.Status {
	q.t.Helper()
	q.Start(r)
	got, err := q.Next()
	if err != nil {
		q.t.Fatalf("%s: %v", nvme.FormatSQE(false, &r.SQE), err)
	}
	if got != r {
		q.t.Fatalf("command %d ended before %d", got.SQE.CID, r.SQE.CID)
	}
	return r.CQE.StatusField()
}

// ConnectData is what a host says of itself at Connect.
func ConnectData(hostNQN, subNQN string, cntlid uint16) *fabrics.ConnectData {
	d := &fabrics.ConnectData{CNTLID: cntlid, HOSTID: [16]byte{1, 2, 3}}
	copy(d.SUBNQN[:], subNQN)
	copy(d.HOSTNQN[:], hostNQN)
	return d
}

// Connect sends Connect.
func (q *Queue) Connect(cmd fabrics.ConnectCommand, d *fabrics.ConnectData) nvme.CQE {
	q.t.Helper()
	d.HOSTID[0] += q.Options.Host
	r := Request{To: fabrics.Bytes(d)}
	cmd.Put(&r.SQE)
	if q.Do(&r) == nvme.StatusSuccess {
		q.CNTLID = fabrics.ConnectResult(r.CQE.DW0).CNTLID()
	}
	return r.CQE
}

// Join connects, and makes the connection the queue of cmd. Any status but success ends the test.
func Join(t testing.TB, addr netip.AddrPort, o Options, cmd fabrics.ConnectCommand, d *fabrics.ConnectData) *Queue {
	t.Helper()
	q := Initialize(t, addr, o)
	cqe := q.Connect(cmd, d)
	if st := cqe.StatusField(); st != nvme.StatusSuccess {
		t.Fatalf("Connect of queue %d: %s, %v", cmd.QID, fabrics.StatusText(st), fabrics.InvalidParameter(cqe.DW0))
	}
	return q
}

// Enable enables the controller and waits until it is ready.
func (q *Queue) Enable() {
	q.t.Helper()
	if st := q.Configure(Enabled); st != nvme.StatusSuccess {
		q.t.Fatalf("CC: %v", st)
	}
	q.WaitStatus(nvme.CSTS.RDY)
}

// Property gets a property.
func (q *Queue) Property(offset uint32, wide bool) (uint64, nvme.Status) {
	q.t.Helper()
	var r Request
	fabrics.Property{OFST: offset, Wide: wide}.PutGet(&r.SQE)
	st := q.Do(&r)
	return uint64(r.CQE.DW0) | uint64(r.CQE.DW1)<<32, st
}

// Configure sets CC.
func (q *Queue) Configure(cc nvme.CC) nvme.Status {
	q.t.Helper()
	var r Request
	fabrics.Property{OFST: nvme.RegCC, Value: uint64(cc)}.PutSet(&r.SQE)
	return q.Do(&r)
}

// Enabled is the CC that enables a controller.
const Enabled = nvme.CC(1 | nvme.SQEShift<<16 | nvme.CQEShift<<20)

// WaitStatus asks for CSTS until f likes it.
func (q *Queue) WaitStatus(f func(nvme.CSTS) bool) {
	q.t.Helper()
	for range 2000 {
		v, st := q.Property(nvme.RegCSTS, false)
		if st != nvme.StatusSuccess {
			q.t.Fatalf("CSTS: %v", st)
		}
		if f(nvme.CSTS(v)) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	q.t.Fatal("CSTS is not as expected")
}

// Violation reads until the controller ends the connection, and returns why; the zero value if it says nothing.
func (q *Queue) Violation() fabrics.Violation {
	q.t.Helper()
	for {
		pdu, err := q.Receive()
		if err != nil {
			return fabrics.Violation{}
		}
		if pdu.Type == fabrics.TypeC2HTermReq {
			return termination(&pdu)
		}
	}
}
