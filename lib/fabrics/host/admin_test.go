// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// fake is a discovery controller of one connection, with faults.
type fake struct {
	digests      uint8 // DGST that it agrees to
	badDigest    bool  // of headers
	badData      bool  // digests of data
	status       nvme.Status
	parameter    fabrics.InvalidParameter // of Connect
	auth         bool
	fails        bool // CSTS.CFS
	terminates   bool // instead of answering the first command
	entries      int
	changes      int // how often the log changes while it is read
	success      bool
	short        bool // less data than asked for
	wrongCommand bool // another CID
	cpda         uint8
	event        nvme.AsyncEvent // that it tells with each Keep Alive

	mu   sync.Mutex
	host string
}

// serve serves the first connection of l.
func (f *fake) serve(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	in := fabrics.Framing{From: fabrics.FromHost, Align: 4, MaxCapsule: 8 << 10}
	out := fabrics.Framing{From: fabrics.FromController, Align: 4}
	var ready bool
	var parked []uint16 // event requests
	for generation := uint64(7); ; {
		var h fabrics.CommonHeader
		if _, err := io.ReadFull(conn, fabrics.Bytes(&h)); err != nil {
			return nil
		}
		frame, v := in.Check(&h)
		if v.Bad() {
			return errors.New(v.String())
		}
		pdu := make([]byte, frame.Length)
		copy(pdu, fabrics.Bytes(&h))
		if _, err := io.ReadFull(conn, pdu[8:]); err != nil {
			return err
		}
		if in.HeaderDigest && h.Type == fabrics.TypeCapsuleCmd && binary.LittleEndian.Uint32(pdu[h.HLEN:]) != fabrics.Digest(pdu[:h.HLEN]) {
			return errors.New("wrong header digest")
		}
		if h.Type == fabrics.TypeICReq {
			var req fabrics.ICReq
			copy(fabrics.Bytes(&req), pdu)
			resp := fabrics.ICResp{DGST: req.DGST & f.digests, MAXH2CDATA: fabrics.MinMaxH2CData, CPDA: f.cpda}
			out.Make(&resp.CommonHeader, fabrics.TypeICResp, 0, 0)
			if _, err := conn.Write(fabrics.Bytes(&resp)); err != nil {
				return err
			}
			in.Align = fabrics.Align(f.cpda)
			for _, framing := range []*fabrics.Framing{&in, &out} {
				framing.HeaderDigest = resp.DGST&fabrics.DGSTHeader != 0
				framing.DataDigest = resp.DGST&fabrics.DGSTData != 0
			}
			continue
		}
		var c fabrics.CapsuleCmd
		copy(fabrics.Bytes(&c), pdu)
		if f.terminates {
			t := fabrics.MakeTermReq(fabrics.TypeC2HTermReq, fabrics.Violation{FES: fabrics.FESSequence}, 0)
			if _, err := conn.Write(fabrics.Bytes(&t)); err != nil {
				return err
			}
			continue
		}
		cqe := nvme.CQE{CID: c.SQE.CID}
		if f.wrongCommand {
			cqe.CID++
		}
		var data []byte
		switch {
		case c.SQE.Opcode == fabrics.Opcode && fabrics.TypeOf(&c.SQE) == fabrics.Connect:
			var d fabrics.ConnectData
			payload := pdu[frame.DataOffset : frame.DataOffset+frame.DataLength]
			copy(fabrics.Bytes(&d), payload)
			if frame.HasDigest && binary.LittleEndian.Uint32(pdu[frame.DataOffset+frame.DataLength:]) != fabrics.Digest(payload) {
				return errors.New("wrong data digest")
			}
			f.mu.Lock()
			f.host, _ = fabrics.Name(&d.HOSTNQN)
			f.mu.Unlock()
			cqe.DW0 = 5
			if f.auth {
				cqe.DW0 |= uint32(fabrics.AuthRequired)
			}
			if f.status != 0 {
				cqe.DW0 = uint32(f.parameter)
				cqe.SetStatus(f.status|nvme.StatusDNR, false)
			}
		case c.SQE.Opcode == fabrics.Opcode:
			p, _ := fabrics.PropertyOf(&c.SQE)
			switch {
			case fabrics.TypeOf(&c.SQE) == fabrics.PropertySet:
				ready = nvme.CC(p.Value).EN()
			case p.OFST == nvme.RegCAP:
				cqe.DW0 = uint32(nvme.CAP(0).WithTO(1))
			case p.OFST == nvme.RegCSTS:
				cqe.DW0 = uint32(nvme.CSTS(0).WithRDY(ready).WithCFS(f.fails))
			}
		case nvme.AdminOpcode(c.SQE.Opcode) == nvme.AdminGetLogPage:
			log := c.SQE.GetLogPage()
			size := 4 * (int(log.NUMD) + 1)
			page := make([]byte, 1024*(f.entries+1))
			binary.LittleEndian.PutUint64(page, generation)
			binary.LittleEndian.PutUint64(page[8:], uint64(f.entries))
			for i := range f.entries {
				var e fabrics.DiscoveryEntry
				e.TRTYPE = fabrics.TransportTCP
				e.Set("nqn.2026-01.org.example:one", "192.0.2.1", "4420")
				copy(page[1024*(i+1):], fabrics.Bytes(&e))
			}
			data = page[log.LPO:][:size]
			if f.short {
				data = data[:size/2]
			}
			if f.changes > 0 {
				f.changes--
				generation++
			}
		case nvme.AdminOpcode(c.SQE.Opcode) == nvme.AdminAsyncEventRequest:
			parked = append(parked, c.SQE.CID)
			continue
		case nvme.AdminOpcode(c.SQE.Opcode) == nvme.AdminKeepAlive:
			for _, cid := range parked {
				if err := f.answer(conn, &out, nvme.CQE{CID: cid, DW0: uint32(f.event)}, nil); err != nil {
					return err
				}
			}
			parked = nil
		default:
			cqe.SetStatus(nvme.StatusInvalidOpcode, false)
		}
		if err := f.answer(conn, &out, cqe, data); err != nil {
			return err
		}
	}
}

// answer sends the data in two PDUs, and the completion.
func (f *fake) answer(conn net.Conn, out *fabrics.Framing, cqe nvme.CQE, data []byte) error {
	send := func(header []byte, frame fabrics.Frame, data []byte) error {
		b := make([]byte, frame.Length)
		n := copy(b, header)
		if out.HeaderDigest {
			sum := fabrics.Digest(header)
			if f.badDigest {
				sum++
			}
			binary.LittleEndian.PutUint32(b[n:], sum)
		}
		copy(b[frame.DataOffset:], data)
		if frame.HasDigest {
			sum := fabrics.Digest(data)
			if f.badData {
				sum++
			}
			binary.LittleEndian.PutUint32(b[frame.DataOffset+frame.DataLength:], sum)
		}
		_, err := conn.Write(b)
		return err
	}
	half := len(data) / 2
	for i, part := range [][]byte{data[:half], data[half:]} {
		if len(part) == 0 {
			continue
		}
		d := fabrics.Data{CCCID: cqe.CID, DATAO: uint32(i * half), DATAL: uint32(len(part))}
		flags := uint8(0)
		if i == 1 {
			flags = fabrics.FlagLast
			if f.success {
				flags |= fabrics.FlagSuccess
			}
		}
		frame := out.Make(&d.CommonHeader, fabrics.TypeC2HData, flags, uint32(len(part)))
		if err := send(fabrics.Bytes(&d), frame, part); err != nil {
			return err
		}
	}
	if f.success && len(data) > 0 {
		return nil
	}
	r := fabrics.CapsuleResp{CQE: cqe}
	frame := out.Make(&r.CommonHeader, fabrics.TypeCapsuleResp, 0, 0)
	return send(fabrics.Bytes(&r), frame, nil)
}

// start serves one connection with f, and returns where.
func start(t *testing.T, serve func(net.Listener) error) fabrics.Address {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serve(l) }()
	t.Cleanup(func() {
		l.Close()
		err := <-done
		for _, hungUp := range []error{net.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
			if errors.Is(err, hungUp) {
				return
			}
		}
		if err != nil && !t.Failed() {
			t.Error("the controller:", err)
		}
	})
	addr, err := fabrics.ParseAddress("tcp://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

const testHost = "nqn.2014-08.org.nvmexpress:uuid:2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10"

// look connects, enables, sends a Keep Alive and reads the discovery log.
func look(t *testing.T, addr fabrics.Address, o Options) (steps []string, entries []fabrics.DiscoveryEntry, err error) {
	o.HostNQN = testHost
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	o.Step = func(step string, took time.Duration) {
		if took <= 0 {
			t.Errorf("step %s took %v", step, took)
		}
		steps = append(steps, step)
	}
	a, err := Connect(t.Context(), addr, o)
	if err != nil {
		return steps, nil, err
	}
	defer a.Close()
	if a.CNTLID() != 5 {
		t.Errorf("CNTLID %d", a.CNTLID())
	}
	if err := a.Enable(t.Context()); err != nil {
		return steps, nil, err
	}
	if _, err := a.KeepAlive(t.Context()); err != nil {
		return steps, nil, err
	}
	_, entries, err = a.DiscoveryLog(t.Context())
	return steps, entries, err
}

// TestLook: every way of speaking the protocol that a controller may choose.
func TestLook(t *testing.T) {
	const both = fabrics.DGSTHeader | fabrics.DGSTData
	for _, f := range []*fake{
		{entries: 3, cpda: 3}, {entries: 3, success: true}, {entries: 2, digests: fabrics.DGSTHeader, cpda: 31}, {entries: 2, digests: fabrics.DGSTData},
		{entries: 2, digests: both, success: true}, {}, {entries: 1, changes: 3, cpda: fabrics.MaxPDA},
	} {
		steps, entries, err := look(t, start(t, f.serve), Options{HeaderDigest: true, DataDigest: true})
		if err != nil {
			t.Errorf("%+v: %v", f.entries, err)
			continue
		}
		if got := strings.Join(steps, " "); got != "tcp initialize connect enable" {
			t.Errorf("steps %s", got)
		}
		if len(entries) != f.entries || f.entries > 0 && entries[f.entries-1].Subsystem() != "nqn.2026-01.org.example:one" {
			t.Errorf("entries %v", entries)
		}
		f.mu.Lock()
		if f.host != testHost {
			t.Errorf("host %q", f.host)
		}
		f.mu.Unlock()
	}
}

// TestFaults: at which step it went wrong and why, and the kind.
func TestFaults(t *testing.T) {
	subNQN := fabrics.MakeInvalidParameter(fabrics.OffsetSUBNQN, true)
	for _, tt := range []struct {
		name  string
		serve func(net.Listener) error
		kind  fault.Kind
		want  string // in the error
	}{
		{"http", talk("HTTP/1.1 400 Bad Request\r\n\r\n"), fault.Peer, "initializing the connection: who answers does not speak NVMe/TCP"},
		{"hangs up", talk(""), fault.Peer, "does not speak NVMe/TCP"},
		{"host", (&fake{status: fabrics.StatusInvalidHost}).serve, fault.Permission, "Connect: " + fabrics.DiscoveryNQN + " does not allow host " + testHost},
		{"subsystem", (&fake{status: fabrics.StatusInvalidParameters, parameter: subNQN}).serve, fault.NotFound, "Connect: there is no " + fabrics.DiscoveryNQN},
		{"parameter", (&fake{status: fabrics.StatusInvalidParameters, parameter: fabrics.MakeInvalidParameter(fabrics.OffsetKATO, false)}).serve, fault.Peer, "KATO"},
		{"busy", (&fake{status: fabrics.StatusControllerBusy}).serve, fault.Exists, "busy"},
		{"status", (&fake{status: nvme.StatusInternalError}).serve, fault.Peer, "Connect: Internal Error"},
		{"auth", (&fake{auth: true}).serve, fault.Unsupported, "authenticate"},
		{"fatal", (&fake{fails: true}).serve, fault.Peer, "enabling: the controller has failed"},
		{"header digest", (&fake{digests: fabrics.DGSTHeader, badDigest: true}).serve, fault.Peer, "Connect: waiting for the answer: the header digest of CapsuleResp is wrong"},
		{"data digest", (&fake{digests: fabrics.DGSTData, badData: true, entries: 1}).serve, fault.Peer, "discovery log: waiting for the answer: the data digest of C2HData is wrong"},
		{"termination", (&fake{terminates: true}).serve, fault.Peer, "the controller ends the connection: PDU Sequence Error"},
		{"too little", (&fake{entries: 1, short: true}).serve, fault.Peer, "discovery log: waiting for the answer: the command ended well with 512 of 1024 bytes"},
		{"too many", (&fake{entries: maxEntries + 1}).serve, fault.Peer, "4097 records"},
		{"restless", (&fake{entries: 1, changes: 1000}).serve, fault.Peer, "it has changed 8 times"},
		{"another command", (&fake{wrongCommand: true}).serve, fault.Peer, "which is none in execution"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := look(t, start(t, tt.serve), Options{HeaderDigest: true, DataDigest: true})
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%v), want %v, %q", err, fault.KindOf(err), tt.kind, tt.want)
			}
		})
	}
}

// talk says something that is not NVMe/TCP, and hangs up.
func talk(words string) func(net.Listener) error {
	return func(l net.Listener) error {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.ReadFull(conn, make([]byte, fabrics.ICSize)); err != nil {
			return err
		}
		_, err = io.WriteString(conn, words)
		return err
	}
}

// TestNobody: nobody listens, or whoever does says nothing.
func TestNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr, err := fabrics.ParseAddress("tcp://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	steps, _, err := look(t, addr, Options{Timeout: 50 * time.Millisecond})
	if fault.KindOf(err) != fault.Timeout || len(steps) != 1 || !strings.Contains(err.Error(), "initializing the connection") {
		t.Errorf("silence: %v after %v", err, steps)
	}
	l.Close()
	steps, _, err = look(t, addr, Options{})
	if fault.KindOf(err) != fault.Peer || len(steps) != 0 || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody: %v after %v", err, steps)
	}
	addr.Transport = fabrics.TransportRDMA
	if _, _, err = look(t, addr, Options{}); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("rdma: %v", err)
	}
}

// TestEvents: events are waited for while other commands run, from several
// goroutines; what waits when the queue is closed ends, and so do its
// goroutines.
func TestEvents(t *testing.T) {
	before := runtime.NumGoroutine()
	f := &fake{event: nvme.EventNamespaceAttribute, entries: 3}
	addr := start(t, f.serve)
	a, err := Connect(t.Context(), addr, Options{HostNQN: testHost, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := make(chan error)
	go func() {
		for {
			e, err := a.Event(t.Context())
			if err == nil && e != f.event {
				err = errors.New(e.String())
			}
			events <- err
			if err != nil {
				return
			}
		}
	}()
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for range 20 {
				if _, all, err := a.DiscoveryLog(t.Context()); err != nil || len(all) != f.entries {
					t.Errorf("discovery log: %d entries, %v", len(all), err)
				}
			}
		})
	}
	for told := 0; told < 5; {
		if _, err := a.KeepAlive(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-events:
			if err != nil {
				t.Fatal(err)
			}
			told++
		default:
		}
	}
	others.Wait()
	a.Close()
	for err = range events {
		if err != nil {
			break
		}
	}
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("an event that is waited for ends with %v", err)
	}
	if _, err := a.KeepAlive(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a command afterwards: %v", err)
	}
	for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left, there were %d", runtime.NumGoroutine(), before)
		}
	}
}

// TestGiveUp: a command that is not answered in time, or is not waited for any
// longer, is the end of the queue: its memory is the caller's again.
func TestGiveUp(t *testing.T) {
	for _, tt := range []struct {
		timeout time.Duration
		kind    fault.Kind
	}{{30 * time.Second, fault.Interrupted}, {50 * time.Millisecond, fault.Timeout}} {
		f := &fake{}
		a, err := Connect(t.Context(), start(t, f.serve), Options{HostNQN: testHost, Timeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		a.timeout = tt.timeout
		ctx, cancel := context.WithCancel(t.Context())
		if tt.kind == fault.Interrupted {
			time.AfterFunc(10*time.Millisecond, cancel)
		}
		_, err = a.Do(ctx, "Asynchronous Event Request", nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, nil, nil)
		if fault.KindOf(err) != tt.kind {
			t.Errorf("it ends with %v (%v), want %v", err, fault.KindOf(err), tt.kind)
		}
		if _, again := a.KeepAlive(t.Context()); again == nil {
			t.Error("the queue still works")
		}
		cancel()
		a.Close()
	}
}

// TestDigestsRequired: a controller that does not agree to digests that are
// required is named as one.
func TestDigestsRequired(t *testing.T) {
	for digests, ok := range map[uint8]bool{0: false, fabrics.DGSTHeader: false, fabrics.DGSTHeader | fabrics.DGSTData: true} {
		_, _, err := look(t, start(t, (&fake{digests: digests}).serve), Options{HeaderDigest: true, DataDigest: true, DigestsRequired: true})
		if ok != (err == nil) || !ok && (fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "digests")) {
			t.Errorf("DGST %d: %v", digests, err)
		}
	}
}

// TestICResp: what a controller must not answer to ICReq.
func TestICResp(t *testing.T) {
	good := fabrics.ICResp{MAXH2CDATA: fabrics.MinMaxH2CData}
	good.CommonHeader = fabrics.CommonHeader{Type: fabrics.TypeICResp, HLEN: fabrics.ICSize, PLEN: fabrics.ICSize}
	for _, tt := range []struct {
		name   string
		change func(*fabrics.ICResp)
		want   string
	}{
		{"PFV", func(r *fabrics.ICResp) { r.PFV = 1 }, "ICResp with PFV 1"},
		{"CPDA", func(r *fabrics.ICResp) { r.CPDA = fabrics.MaxPDA + 1 }, "CPDA 32"},
		{"a digest nobody asked for", func(r *fabrics.ICResp) { r.DGST = fabrics.DGSTData }, "DGST 2"},
		{"a digest that does not exist", func(r *fabrics.ICResp) { r.DGST = 4 }, "DGST 4"},
		{"MAXH2CDATA", func(r *fabrics.ICResp) { r.MAXH2CDATA-- }, "MAXH2CDATA 4095"},
		{"PLEN", func(r *fabrics.ICResp) { r.PLEN++ }, "Invalid PDU Header Field at byte 4"},
		{"HLEN", func(r *fabrics.ICResp) { r.HLEN-- }, "Invalid PDU Header Field at byte 2"},
		{"flags", func(r *fabrics.ICResp) { r.Flags = fabrics.FlagHDGST }, "Invalid PDU Header Field at byte 1"},
		{"another PDU", func(r *fabrics.ICResp) { r.Type, r.HLEN, r.PLEN = fabrics.TypeR2T, 24, 24 }, "R2T came, not ICResp"},
		{"a PDU of a host", func(r *fabrics.ICResp) { r.Type = fabrics.TypeICReq }, "Invalid PDU Header Field at byte 0"},
	} {
		r := good
		tt.change(&r)
		_, _, err := look(t, start(t, talk(string(fabrics.Bytes(&r)))), Options{HeaderDigest: true})
		if fault.KindOf(err) != fault.Peer || !strings.Contains(err.Error(), "initializing the connection") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v (%v), want %q", tt.name, err, fault.KindOf(err), tt.want)
		}
	}
}
