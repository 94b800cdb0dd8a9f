// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// askedFor starts a write of n bytes on q and returns the R2T.
func askedFor(t *testing.T, q *fabricstest.Queue, n int) fabrics.R2T {
	t.Helper()
	q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, n), To: make([]byte, n)})
	pdu, err := q.Receive()
	if err != nil || pdu.Type != fabrics.TypeR2T {
		t.Fatalf("%+v, %v", pdu, err)
	}
	var r2t fabrics.R2T
	copy(fabrics.Bytes(&r2t), pdu.Header)
	return r2t
}

// raw is a PDU of these bytes, filled up with zeroes to n.
func raw(n int, head ...byte) []byte { return append(head, make([]byte, n-len(head))...) }

// icReq is an ICReq with one byte changed.
func icReq(at int, v byte) []byte {
	p := raw(128, 0, 0, 128, 0, 128)
	p[at] = v
	return p
}

// TestViolations: what is wrong costs the connection, and the host is told what it was.
func TestViolations(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	header := func(fei uint32) fabrics.Violation {
		return fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: fei}
	}
	sequence := fabrics.Violation{FES: fabrics.FESSequence}
	fresh := func(p []byte) func(*testing.T) *fabricstest.Queue {
		return func(t *testing.T) *fabricstest.Queue {
			q := fabricstest.Dial(t, f.addr)
			q.Write(p)
			return q
		}
	}
	qid := uint16(0)
	connected := func(o fabricstest.Options, say func(*testing.T, *fabricstest.Queue)) func(*testing.T) *fabricstest.Queue {
		return func(t *testing.T) *fabricstest.Queue {
			qid++
			q := f.io(t, admin, o, qid, 0)
			say(t, q)
			return q
		}
	}
	bytesOn := func(o fabricstest.Options, p []byte) func(*testing.T) *fabricstest.Queue {
		return connected(o, func(_ *testing.T, q *fabricstest.Queue) { q.Write(p) })
	}
	// data answers an R2T for 8192 bytes, n of them, after f has changed the header.
	data := func(flags uint8, n int, change func(*fabrics.Data)) func(*testing.T) *fabricstest.Queue {
		return connected(fabricstest.Options{InCapsule: 512}, func(t *testing.T, q *fabricstest.Queue) {
			r2t := askedFor(t, q, 8192)
			d := fabrics.Data{CCCID: r2t.CCCID, TTAG: r2t.TTAG, DATAL: uint32(n)}
			change(&d)
			q.Write(q.Encode(fabrics.TypeH2CData, flags, fabrics.Bytes(&d), make([]byte, n)))
		})
	}
	none := fabricstest.Options{}
	for _, tt := range []struct {
		name string
		say  func(*testing.T) *fabricstest.Queue
		want fabrics.Violation
	}{
		{"capsule before ICReq", fresh(raw(72, 4, 0, 72, 0, 72)), sequence},
		{"H2CData before ICReq", fresh(raw(28, 6, 4, 24, 24, 28)), sequence},
		{"garbage", fresh([]byte("GET / HTTP/1.1\r\n\r\n")), header(0)},
		{"ICReq, PFV", fresh(icReq(8, 1)), fabrics.Violation{FES: fabrics.FESUnsupportedParam, FEI: 8}},
		{"ICReq, HPDA", fresh(icReq(10, 32)), header(10)},
		{"ICReq, HLEN", fresh(icReq(2, 127)), header(2)},
		{"ICReq, PLEN", fresh(icReq(5, 1)), header(4)},
		{"ICReq, flags", fresh(icReq(1, 1)), header(1)},
		{"ICReq twice", bytesOn(none, icReq(9, 0)), sequence},
		{"ICResp", bytesOn(none, raw(128, 1, 0, 128, 0, 128)), header(0)},
		{"R2T", bytesOn(none, raw(24, 9, 0, 24, 0, 24)), header(0)},
		{"unknown type", bytesOn(none, raw(24, 8, 0, 24, 0, 24)), header(0)},
		{"capsule, PDO", bytesOn(none, raw(584, 4, 0, 72, 71, 0x48, 2)), header(3)},
		{"capsule, too much data", bytesOn(none, raw(200, 4, 0, 72, 72, 0x49, 0x20)), header(4)},
		{"capsule, digest that was not agreed", bytesOn(none, raw(76, 4, 1, 72, 0, 76)), header(1)},
		{"capsule, header digest", bytesOn(fabricstest.Options{HeaderDigest: true}, raw(76, 4, 1, 72, 0, 76, 0, 0, 0, 2)), fabrics.Violation{FES: fabrics.FESHeaderDigest}},
		{"H2CData for nothing", bytesOn(none, raw(28, 6, 4, 24, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4)), header(10)},
		{"H2CData for a tag that does not exist", data(4, 8192, func(d *fabrics.Data) { d.TTAG = 0xffff }), header(10)},
		{"H2CData for another command", data(4, 8192, func(d *fabrics.Data) { d.CCCID++ }), header(8)},
		{"H2CData, DATAL", data(4, 8192, func(d *fabrics.Data) { d.DATAL-- }), header(16)},
		{"H2CData, DATAO", data(0, 512, func(d *fabrics.Data) { d.DATAO = 512 }), fabrics.Violation{FES: fabrics.FESDataOutOfRange}},
		{"H2CData beyond the end", data(4, 8196, func(*fabrics.Data) {}), fabrics.Violation{FES: fabrics.FESDataOutOfRange}},
		{"H2CData, last too early", data(4, 512, func(*fabrics.Data) {}), header(1)},
		{"H2CData, not the last", data(0, 8192, func(*fabrics.Data) {}), header(1)},
		{"H2CData beyond MAXH2CDATA", data(4, maxH2CData+4, func(*fabrics.Data) {}), fabrics.Violation{FES: fabrics.FESLimitExceeded}},
		{"more commands than entries", connected(none, func(_ *testing.T, q *fabricstest.Queue) {
			q.Corked = true
			for range 129 {
				q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 512), From: make([]byte, 512)})
			}
			q.Flush()
		}), sequence},
		{"H2CTermReq", bytesOn(none, raw(30, 2, 0, 24, 0, 30, 0, 0, 0, 1)), fabrics.Violation{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.say(t).Violation(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	f.identify(t, admin) // and nothing else
}

// TestDataDigest: data that does not match its digest costs the command, not the connection.
func TestDataDigest(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{DataDigest: true, InCapsule: 512}, 1, 0)
	f.verify(t, q, 0, 512, false)
	transient := nvme.StatusTransientTransportError
	// In the capsule.
	e := rw(nvme.IOWrite, 1, 0, 512)
	e.CID = 77
	e.SetPSDT(nvme.PSDTSGL)
	e.SetSGL1(fabrics.InCapsule(512))
	c := fabrics.CapsuleCmd{SQE: e}
	p := q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), pattern(1, 512))
	p[100] ^= 1
	q.Write(p)
	if got := response(t, q); got.CID != 77 || got.StatusField() != transient {
		t.Errorf("in the capsule: %+v", got)
	}
	// In the first of two H2CData.
	r2t := askedFor(t, q, 8192)
	for i, flags := range []uint8{0, fabrics.FlagLast} {
		d := fabrics.Data{CCCID: r2t.CCCID, TTAG: r2t.TTAG, DATAO: uint32(i) * 4096, DATAL: 4096}
		p := q.Encode(fabrics.TypeH2CData, flags, fabrics.Bytes(&d), pattern(2, 4096))
		if i == 0 {
			p[len(p)-1] ^= 0x80
		}
		q.Write(p)
	}
	if got := response(t, q); got.CID != r2t.CCCID || got.StatusField() != transient {
		t.Errorf("H2CData: %+v", got)
	}
	// Nothing of it was written.
	r := fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, 8192), From: make([]byte, 8192)}
	want := append(pattern(0, 512), make([]byte, 8192-512)...)
	if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, want) {
		t.Errorf("then: %v; what is there is as before: %v", st, bytes.Equal(r.From, want))
	}
}

// response reads a CapsuleResp.
func response(t *testing.T, q *fabricstest.Queue) *nvme.CQE {
	t.Helper()
	pdu, err := q.Receive()
	if err != nil || pdu.Type != fabrics.TypeCapsuleResp {
		t.Fatalf("%+v, %v", pdu, err)
	}
	var resp fabrics.CapsuleResp
	copy(fabrics.Bytes(&resp), pdu.Header)
	return &resp.CQE
}

// TestDescriptors: how data is described, right and wrong.
func TestDescriptors(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	send := func(e nvme.SQE, psdt nvme.PSDT, sgl nvme.SGLDescriptor, data []byte) nvme.Status {
		t.Helper()
		e.CID = 5
		e.SetPSDT(psdt)
		e.SetSGL1(sgl)
		c := fabrics.CapsuleCmd{SQE: e}
		q.Write(q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), data))
		return response(t, q).StatusField()
	}
	const sgl, dnr = nvme.PSDTSGL, nvme.StatusDNR
	block := func(at uint64, n uint32) nvme.SGLDescriptor {
		return nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLOffset, at, n)
	}
	write, read, two := rw(nvme.IOWrite, 1, 0, 512), rw(nvme.IORead, 1, 0, 512), pattern(3, 1024)
	for _, tt := range []struct {
		name string
		e    nvme.SQE
		psdt nvme.PSDT
		sgl  nvme.SGLDescriptor
		data []byte
		want nvme.Status
	}{
		{"PRPs", write, nvme.PSDTPRP, block(0, 512), two, nvme.StatusInvalidField | dnr},
		{"second half of the capsule", write, sgl, block(512, 512), two, 0},
		{"longer than the data", write, sgl, block(0, 1024), two, 0},
		{"shorter than the data", write, sgl, block(0, 511), two, nvme.StatusInvalidDataSGLLength | dnr},
		{"beyond the capsule", write, sgl, block(513, 512), two, nvme.StatusInvalidSGLOffset | dnr},
		{"far beyond the capsule", write, sgl, block(1<<63, 512), two, nvme.StatusInvalidSGLOffset | dnr},
		{"no data in the capsule", write, sgl, block(0, 512), nil, nvme.StatusInvalidSGLOffset | dnr},
		{"read into the capsule", read, sgl, block(0, 512), nil, nvme.StatusInvalidSGLDescriptorType | dnr},
		{"by address", read, sgl, nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLAddress, 4096, 512), nil, nvme.StatusInvalidSGLDescriptorType | dnr},
		{"bit bucket", read, sgl, nvme.MakeSGL(nvme.SGLBitBucket, 0, 0, 512), nil, nvme.StatusInvalidSGLDescriptorType | dnr},
		{"transport, too short", read, sgl, fabrics.InTransport(511), nil, nvme.StatusInvalidDataSGLLength | dnr},
		{"data for a command without", nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1}, sgl, block(0, 512), two, 0},
		{"unknown command with data", nvme.SQE{Opcode: 0xff, NSID: 1}, sgl, block(0, 512), two, nvme.StatusInvalidOpcode | dnr},
	} {
		if st := send(tt.e, tt.psdt, tt.sgl, tt.data); st != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, st, tt.want)
		}
	}
	r := fabricstest.Request{SQE: read, From: make([]byte, 512)}
	if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, two[:512]) {
		t.Errorf("the last write is not there: %v", st)
	}
}

// session is what a host sends, without waiting for anything, from ICReq to a command on an enabled controller; digests are as asked.
func session(digests bool) []byte {
	req := fabrics.ICReq{}
	q := fabricstest.Queue{Out: fabrics.Framing{From: fabrics.FromHost, Align: 4}}
	q.Out.Make(&req.CommonHeader, fabrics.TypeICReq, 0, 0)
	if digests {
		req.DGST = 3
		q.Out.HeaderDigest, q.Out.DataDigest = true, true
	}
	return append([]byte(nil), fabrics.Bytes(&req)...)
}

// steps are the PDUs after session, each to be sent when the one before has been answered.
func steps(digests bool) [][]byte {
	q := fabricstest.Queue{Out: fabrics.Framing{From: fabrics.FromHost, Align: 4, HeaderDigest: digests, DataDigest: digests}}
	capsule := func(e nvme.SQE, data []byte) []byte {
		e.SetPSDT(nvme.PSDTSGL)
		c := fabrics.CapsuleCmd{SQE: e}
		return q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), data)
	}
	var connect, enable, identify, features nvme.SQE
	fabrics.ConnectCommand{SQSIZE: 31}.Put(&connect)
	connect.SetSGL1(fabrics.InCapsule(1024))
	fabrics.Property{OFST: nvme.RegCC, Value: uint64(fabricstest.Enabled)}.PutSet(&enable)
	nvme.Identify{CNS: nvme.CNSController}.Put(&identify)
	identify.SetSGL1(fabrics.InTransport(4096))
	nvme.SetFeatures{FID: nvme.FeatHostBehavior}.Put(&features)
	features.SetSGL1(fabrics.InCapsule(512))
	return [][]byte{
		capsule(connect, fabrics.Bytes(fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))),
		capsule(enable, nil), capsule(identify, nil), capsule(features, make([]byte, 512)),
	}
}

// TestCuts: a host that goes at any byte of a session leaves nothing behind; one that sends byte by byte is served.
func TestCuts(t *testing.T) {
	f := start(t, Limits{})
	for _, digests := range []bool{false, true} {
		whole := session(digests)
		for _, s := range steps(digests) {
			whole = append(whole, s...)
		}
		for cut := range len(whole) {
			q := fabricstest.Dial(t, f.addr)
			q.Write(whole[:cut])
			q.Conn.Close()
		}
		q := fabricstest.Dial(t, f.addr)
		for _, b := range session(digests) {
			q.Write([]byte{b})
		}
		if pdu, err := q.Receive(); err != nil || pdu.Type != fabrics.TypeICResp {
			t.Fatalf("%+v, %v", pdu, err)
		}
		q.In.HeaderDigest, q.In.DataDigest = digests, digests
		for i, s := range steps(digests) {
			for _, b := range s {
				q.Write([]byte{b})
			}
			if i == 2 {
				if pdu, err := q.Receive(); err != nil || pdu.Type != fabrics.TypeC2HData || len(pdu.Data) != 4096 {
					t.Fatalf("%+v, %v", pdu, err)
				}
			}
			if cqe := response(t, q); cqe.StatusField() != 0 {
				t.Errorf("step %d: %v", i, cqe.StatusField())
			}
		}
		q.Conn.Close()
	}
	fabricstest.WaitFor(t, "the associations to leave", func() bool { return len(f.listener.Associations()) == 0 })
}

// TestChangedBytes: whatever a byte of a session is changed to, the target goes on for others.
func TestChangedBytes(t *testing.T) {
	f := start(t, Limits{Patience: time.Second})
	admin := f.enabled(t, fabricstest.Options{})
	whole := session(false)
	for _, s := range steps(false) {
		whole = append(whole, s...)
	}
	for at := range whole {
		p := append([]byte(nil), whole...)
		p[at] ^= 0xff
		q := fabricstest.Dial(t, f.addr)
		_, _ = q.Conn.Write(p)
		q.Conn.Close()
	}
	f.identify(t, admin)
}

// FuzzReceive gives the target bytes after a good beginning; it has to survive and to serve another host.
func FuzzReceive(f *testing.F) {
	for _, s := range steps(false) {
		f.Add(uint8(1), s)
	}
	f.Add(uint8(0), session(true))
	data := fabrics.Data{TTAG: 0, DATAL: 4}
	data.CommonHeader = fabrics.CommonHeader{Type: fabrics.TypeH2CData, Flags: 4, HLEN: 24, PDO: 24, PLEN: 28}
	f.Add(uint8(4), append(append([]byte(nil), fabrics.Bytes(&data)...), 1, 2, 3, 4))
	x := start(f, Limits{Patience: time.Second, Connections: 64})
	admin := x.enabled(f, fabricstest.Options{})
	f.Fuzz(func(t *testing.T, begin uint8, p []byte) {
		q := fabricstest.Dial(t, x.addr)
		for i, s := range append([][]byte{session(false)}, steps(false)...) {
			if i >= int(begin%5) {
				break
			}
			q.Write(s)
			if _, err := q.Receive(); err != nil {
				t.Fatal(err)
			}
			if i == 3 { // Identify: data came first
				_, _ = q.Receive()
			}
		}
		_, _ = q.Conn.Write(p)
		q.Conn.Close()
		admin.For(t)
		if v, st := admin.Property(nvme.RegCSTS, false); st != 0 || !nvme.CSTS(v).RDY() {
			t.Fatalf("another host: CSTS %#x, %v", v, st)
		}
	})
}
