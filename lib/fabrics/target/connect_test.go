// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

func TestConnectRefused(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	f.io(t, admin, fabricstest.Options{}, 2, 0)
	disabled := f.admin(t, fabricstest.Options{}, 0)
	const dnr = nvme.StatusDNR
	invalid := fabrics.StatusInvalidParameters | dnr
	inSQE := func(off uint16) fabrics.InvalidParameter { return fabrics.MakeInvalidParameter(off, false) }
	inData := func(off uint16) fabrics.InvalidParameter { return fabrics.MakeInvalidParameter(off, true) }
	const any = fabrics.CNTLIDDynamic
	for _, tt := range []struct {
		name   string
		cmd    fabrics.ConnectCommand
		host   string
		sub    string
		cntlid uint16
		spoil  func(*fabrics.ConnectData)
		want   nvme.Status
		where  fabrics.InvalidParameter
	}{
		{"format", fabrics.ConnectCommand{RECFMT: 1, SQSIZE: 31}, hostNQN, testNQN, any, nil, fabrics.StatusIncompatibleFormat | dnr, 0},
		{"SQSIZE 0", fabrics.ConnectCommand{}, hostNQN, testNQN, any, nil, invalid, inSQE(44)},
		{"SQSIZE too large", fabrics.ConnectCommand{SQSIZE: 128}, hostNQN, testNQN, any, nil, invalid, inSQE(44)},
		{"static controller", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, testNQN, 1, nil, invalid, inData(16)},
		{"any static controller", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, testNQN, fabrics.CNTLIDStatic, nil, invalid, inData(16)},
		{"no such subsystem", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, otherNQN, any, nil, invalid, inData(256)},
		{"no subsystem", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, "", any, nil, invalid, inData(256)},
		{"no host", fabrics.ConnectCommand{SQSIZE: 31}, "", testNQN, any, nil, invalid, inData(512)},
		{"endless subsystem", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, testNQN, any, func(d *fabrics.ConnectData) {
			copy(d.SUBNQN[:], strings.Repeat("n", 256))
		}, invalid, inData(256)},
		{"host with escapes", fabrics.ConnectCommand{SQSIZE: 31}, "nqn.\x1b[2J", testNQN, any, nil, invalid, inData(512)},
		{"host not allowed", fabrics.ConnectCommand{SQSIZE: 31}, otherNQN, testNQN, any, nil, fabrics.StatusInvalidHost | dnr, 0},
		{"subsystem not ready", fabrics.ConnectCommand{SQSIZE: 31}, hostNQN, busyNQN, any, nil, fabrics.StatusControllerBusy, 0},
		{"I/O queue of no controller", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, hostNQN, testNQN, 0xfff0, nil, invalid, inData(16)},
		{"I/O queue of another subsystem", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, hostNQN, otherNQN, admin.CNTLID, nil, invalid, inData(16)},
		{"I/O queue of another host", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, otherNQN, testNQN, admin.CNTLID, nil, invalid, inData(512)},
		{"I/O queue of another host id", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, hostNQN, testNQN, admin.CNTLID, func(d *fabrics.ConnectData) {
			d.HOSTID[15]++
		}, invalid, inData(0)},
		{"I/O queue too many", fabrics.ConnectCommand{QID: 65, SQSIZE: 31}, hostNQN, testNQN, admin.CNTLID, nil, invalid, inSQE(42)},
		{"I/O queue twice", fabrics.ConnectCommand{QID: 2, SQSIZE: 31}, hostNQN, testNQN, admin.CNTLID, nil, nvme.StatusCommandSequenceError | dnr, 0},
		{"I/O queue before enable", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, hostNQN, testNQN, disabled.CNTLID, nil, nvme.StatusCommandSequenceError | dnr, 0},
		{"I/O queue of a discovery controller", fabrics.ConnectCommand{QID: 1, SQSIZE: 31}, hostNQN, fabrics.DiscoveryNQN, 1, nil, invalid, inSQE(42)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := fabricstest.Initialize(t, f.addr, fabricstest.Options{})
			d := fabricstest.ConnectData(tt.host, tt.sub, tt.cntlid)
			if tt.spoil != nil {
				tt.spoil(d)
			}
			cqe := q.Connect(tt.cmd, d)
			if cqe.StatusField() != tt.want || fabrics.InvalidParameter(cqe.DW0) != tt.where {
				t.Fatalf("%s, %v; want %s, %v", fabrics.StatusText(cqe.StatusField()), fabrics.InvalidParameter(cqe.DW0), fabrics.StatusText(tt.want), tt.where)
			}
			// The connection is as good as before.
			cqe = q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, any))
			if cqe.StatusField() != 0 {
				t.Errorf("then: %s", fabrics.StatusText(cqe.StatusField()))
			}
		})
	}
}

// TestConnectData: the data of Connect may also be asked for, and has to be whole.
func TestConnectData(t *testing.T) {
	f := start(t, Limits{})
	q := fabricstest.Initialize(t, f.addr, fabricstest.Options{InCapsule: 1})
	cqe := q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
	if cqe.StatusField() != 0 {
		t.Errorf("by R2T: %v", fabrics.StatusText(cqe.StatusField()))
	}
	q = fabricstest.Initialize(t, f.addr, fabricstest.Options{})
	r := fabricstest.Request{To: make([]byte, 1020)}
	fabrics.ConnectCommand{SQSIZE: 31}.Put(&r.SQE)
	if st := q.Do(&r); st != nvme.StatusInvalidDataSGLLength|nvme.StatusDNR {
		t.Errorf("short: %v", st)
	}
}

// TestSequence: commands at the wrong time.
func TestSequence(t *testing.T) {
	f := start(t, Limits{})
	q := fabricstest.Initialize(t, f.addr, fabricstest.Options{})
	sequence := nvme.StatusCommandSequenceError | nvme.StatusDNR
	var identify, get nvme.SQE
	nvme.Identify{CNS: nvme.CNSController}.Put(&identify)
	fabrics.Property{OFST: nvme.RegVS}.PutGet(&get)
	for name, e := range map[string]nvme.SQE{"Identify": identify, "Property Get": get, "Read": rw(nvme.IORead, 1, 0, 512)} {
		if st := q.Do(&fabricstest.Request{SQE: e}); st != sequence {
			t.Errorf("%s before Connect: %v", name, st)
		}
	}
	q = f.admin(t, fabricstest.Options{}, 0)
	if st := q.Do(&fabricstest.Request{SQE: identify, From: make([]byte, 4096)}); st != sequence {
		t.Errorf("Identify before enable: %v", st)
	}
	cqe := q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
	if cqe.StatusField() != sequence {
		t.Errorf("Connect twice: %v", cqe.StatusField())
	}
}

func TestProperties(t *testing.T) {
	f := start(t, Limits{})
	q := f.admin(t, fabricstest.Options{}, 0)
	refused := nvme.StatusInvalidField | nvme.StatusDNR
	for _, tt := range []struct {
		offset uint32
		wide   bool
		want   uint64
		st     nvme.Status
	}{
		{nvme.RegCAP, true, uint64(nvme.CAP(0).WithMQES(127).WithCQR(true).WithTO(255).WithCSS(1).WithCRMS(1)), 0},
		{nvme.RegCAP, false, 0, refused},
		{nvme.RegVS, false, 0x20000, 0},
		{nvme.RegVS, true, 0, refused},
		{nvme.RegCC, false, 0, 0},
		{nvme.RegCSTS, false, 0, 0},
		{nvme.RegCRTO, false, 255, 0},
		{nvme.RegNSSR, false, 0, refused},
		{0x1000, false, 0, refused},
	} {
		if v, st := q.Property(tt.offset, tt.wide); v != tt.want || st != tt.st {
			t.Errorf("property %#x: %#x, %v; want %#x, %v", tt.offset, v, st, tt.want, tt.st)
		}
	}
	for _, p := range []fabrics.Property{{OFST: nvme.RegCSTS}, {OFST: nvme.RegCC, Wide: true}, {OFST: nvme.RegCAP, Wide: true}} {
		var r fabricstest.Request
		p.PutSet(&r.SQE)
		if st := q.Do(&r); st != refused {
			t.Errorf("setting %+v: %v", p, st)
		}
	}
	for _, tt := range []struct {
		cmd  fabrics.CommandType
		want nvme.Status
	}{
		{fabrics.AuthenticationSend, nvme.StatusInvalidOpcode}, {fabrics.AuthenticationReceive, nvme.StatusInvalidOpcode}, {0x33, nvme.StatusInvalidOpcode},
		{fabrics.Disconnect, fabrics.StatusInvalidQueueType},
	} {
		r := fabricstest.Request{SQE: nvme.SQE{Opcode: fabrics.Opcode, NSID: uint32(tt.cmd)}}
		if st := q.Do(&r); st != tt.want|nvme.StatusDNR {
			t.Errorf("%v: %s", tt.cmd, fabrics.StatusText(st))
		}
	}
	for _, cc := range []nvme.CC{1, fabricstest.Enabled.WithMPS(1), fabricstest.Enabled.WithAMS(1), fabricstest.Enabled.WithCSS(7), fabricstest.Enabled.WithIOCQES(5)} {
		q := f.admin(t, fabricstest.Options{}, 0)
		q.Configure(cc)
		if v, _ := q.Property(nvme.RegCSTS, false); !nvme.CSTS(v).CFS() || nvme.CSTS(v).RDY() {
			t.Errorf("CC %#x: CSTS %#x", cc, v)
		}
	}
}

// TestReset: clearing CC.EN ends the I/O queues and parked event requests; the controller can be enabled again, with the same identifier.
func TestReset(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	for range 3 {
		q := f.io(t, admin, fabricstest.Options{}, 1, 0)
		q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 512), From: make([]byte, 512)})
		fabricstest.WaitFor(t, "the read", func() bool { return f.holder.count.Load() == 1 })
		var event fabricstest.Request
		event.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
		admin.Start(&event)
		if st := admin.Configure(0); st != 0 {
			t.Fatal(st)
		}
		admin.WaitStatus(func(c nvme.CSTS) bool { return c == 0 })
		if _, err := q.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("the I/O queue: %v", err)
		}
		if n := f.holder.count.Load(); n != 0 {
			t.Errorf("%d requests in flight", n)
		}
		admin.Configure(fabricstest.Enabled)
		admin.WaitStatus(nvme.CSTS.RDY)
		f.identify(t, admin)
	}
}

func TestShutdown(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	admin.Configure(fabricstest.Enabled.WithSHN(nvme.SHNNormal))
	admin.WaitStatus(func(c nvme.CSTS) bool { return c.SHST() == nvme.SHSTComplete && c.RDY() })
	admin.Configure(0)
	admin.WaitStatus(func(c nvme.CSTS) bool { return c == 0 })
}

// TestDisconnect: the response comes, then the end; the queue can be made again.
func TestDisconnect(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	for range 3 {
		q := f.io(t, admin, fabricstest.Options{}, 1, 0)
		bad := fabricstest.Request{}
		fabrics.PutDisconnect(&bad.SQE)
		bad.SQE.CDW10 = 1
		if st := q.Do(&bad); st != fabrics.StatusIncompatibleFormat|nvme.StatusDNR {
			t.Errorf("unknown format: %v", st)
		}
		var r fabricstest.Request
		fabrics.PutDisconnect(&r.SQE)
		if st := q.Do(&r); st != 0 {
			t.Fatal(st)
		}
		if _, err := q.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("then: %v", err)
		}
		q.Conn.Close()
		fabricstest.WaitFor(t, "the end of the queue", func() bool { return f.listener.Associations()[0].Queues == 0 })
	}
}

// TestKeepAlive: an association without keep alive ends, with its queues, and one that is kept alive does not.
func TestKeepAlive(t *testing.T) {
	f := start(t, Limits{})
	kept := f.admin(t, fabricstest.Options{}, 1000)
	kept.Configure(fabricstest.Enabled)
	before := f.census(t)
	silent := f.admin(t, fabricstest.Options{}, 1000)
	silent.Configure(fabricstest.Enabled)
	q := f.io(t, silent, fabricstest.Options{}, 1, 0)
	q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 512), From: make([]byte, 512)})
	q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 1<<20), From: make([]byte, 1<<20)})
	q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 3, 0, 1<<20), To: make([]byte, 1<<20)})
	end := make(chan error)
	go func() {
		_, err := silent.Next()
		end <- err
	}()
	for alive := true; alive; {
		select {
		case err := <-end:
			if alive = false; !errors.Is(err, io.EOF) {
				t.Errorf("the end: %v", err)
			}
		case <-time.After(50 * time.Millisecond):
			var r fabricstest.Request
			r.SQE.Opcode = uint8(nvme.AdminKeepAlive)
			if st := kept.Do(&r); st != 0 {
				t.Fatal(st)
			}
		}
	}
	for {
		if _, err := q.Receive(); err != nil { // an R2T came first
			if !errors.Is(err, io.EOF) {
				t.Errorf("the I/O queue: %v", err)
			}
			break
		}
	}
	silent.Conn.Close()
	q.Conn.Close()
	f.restored(t, before)
	if n := f.holder.count.Load(); n != 0 {
		t.Errorf("%d requests in flight", n)
	}
}

// TestComeAndGo: hosts that come and go leave nothing behind.
func TestComeAndGo(t *testing.T) {
	f := start(t, Limits{Connections: 8})
	f.enabled(t, fabricstest.Options{}).Conn.Close()
	fabricstest.WaitFor(t, "the association to leave", func() bool { return len(f.listener.Associations()) == 0 })
	fds, goroutines := fabricstest.Descriptors(t), runtime.NumGoroutine()
	for i := range 64 {
		admin := f.enabled(t, fabricstest.Options{})
		q := f.io(t, admin, fabricstest.Options{}, 1, 0)
		f.verify(t, q, 0, 4096, false)
		for _, c := range []*fabricstest.Queue{admin, q}[i%2:] {
			c.Conn.Close()
		}
		admin.Conn.Close()
		fabricstest.WaitFor(t, "the association to leave", func() bool { return len(f.listener.Associations()) == 0 })
		q.Conn.Close()
		fabricstest.WaitFor(t, "the connections to leave", func() bool { f.target.mu.Lock(); defer f.target.mu.Unlock(); return f.target.connections == 0 })
	}
	fabricstest.WaitFor(t, "descriptors to be closed", func() bool { return fabricstest.Descriptors(t) <= fds })
	fabricstest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestConnectionLimit(t *testing.T) {
	f := start(t, Limits{Connections: 2})
	a, b := f.enabled(t, fabricstest.Options{}), f.enabled(t, fabricstest.Options{})
	c := fabricstest.Dial(t, f.addr)
	if _, err := c.Receive(); err == nil {
		t.Error("a third connection is served")
	}
	f.identify(t, a)
	b.Conn.Close()
	fabricstest.WaitFor(t, "the association to leave", func() bool { return len(f.listener.Associations()) == 1 })
	f.enabled(t, fabricstest.Options{})
}

// TestStall: a peer that does not go on is dropped, wherever it stops; one that has nothing to do is not.
func TestStall(t *testing.T) {
	f := start(t, Limits{Patience: 200 * time.Millisecond})
	idle := f.enabled(t, fabricstest.Options{})
	stalled := map[string]*fabricstest.Queue{
		"before ICReq":   fabricstest.Dial(t, f.addr),
		"in ICReq":       fabricstest.Dial(t, f.addr),
		"before Connect": fabricstest.Initialize(t, f.addr, fabricstest.Options{}),
		"in a capsule":   f.enabled(t, fabricstest.Options{}),
	}
	stalled["in ICReq"].Write([]byte{0, 0, 128})
	stalled["in a capsule"].Write([]byte{4, 0, 72, 0, 72})
	asked := f.io(t, idle, fabricstest.Options{}, 1, 0)
	w := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 65536), To: make([]byte, 65536)}
	asked.Start(&w)
	if pdu, err := asked.Receive(); err != nil || pdu.Type != fabrics.TypeR2T {
		t.Fatalf("%+v, %v", pdu, err)
	}
	stalled["before H2CData"] = asked
	for name, q := range stalled {
		if _, err := q.Receive(); err == nil {
			t.Errorf("%s: something was sent", name)
		}
	}
	f.identify(t, idle)
}

// TestQuiet: connections on which nothing is under way wake no poller, and are watched again once something is.
func TestQuiet(t *testing.T) {
	f := start(t, Limits{Patience: 200 * time.Millisecond})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	sleeps := func() (n uint64) {
		for _, p := range f.target.cfg.Pollers {
			n += p.Load().Sleeps
		}
		return n
	}
	for range 2 {
		fabricstest.WaitFor(t, "pollers that sleep", func() bool {
			before := sleeps()
			time.Sleep(200 * time.Millisecond) // sweeps would come four times
			return sleeps() == before
		})
		f.identify(t, admin)
	}
	w := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 65536), To: make([]byte, 65536)}
	q.Start(&w)
	if pdu, err := q.Receive(); err != nil || pdu.Type != fabrics.TypeR2T {
		t.Fatalf("%+v, %v", pdu, err)
	}
	if _, err := q.Receive(); err == nil {
		t.Error("something was sent")
	}
}

// TestAbort: commands that the volume holds, and that it does not let go.
func TestAbort(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	abort := func(sqid, cid uint16) bool {
		t.Helper()
		var r fabricstest.Request
		nvme.Abort{SQID: sqid, CID: cid}.Put(&r.SQE)
		if st := admin.Do(&r); st != 0 {
			t.Fatal(st)
		}
		return r.CQE.DW0 == 0
	}
	first, second := fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 512), From: make([]byte, 512)}, fabricstest.Request{SQE: rw(nvme.IOWrite, 3, 0, 512), To: make([]byte, 512)}
	q.Start(&first)
	q.Start(&second)
	fabricstest.WaitFor(t, "the commands", func() bool { return f.holder.count.Load() == 2 })
	if abort(1, second.SQE.CID+9) || abort(2, second.SQE.CID) {
		t.Error("a command that is not there was aborted")
	}
	if !abort(1, second.SQE.CID) {
		t.Error("the command was not aborted")
	}
	if r, err := q.Next(); r != &second || second.CQE.StatusField() != nvme.StatusAbortRequested {
		t.Errorf("%+v, %v", r, err)
	}
	f.holder.stubborn.Store(true)
	if abort(1, first.SQE.CID) {
		t.Error("a command that goes on was aborted")
	}
	if r, err := q.Next(); r != &first || first.CQE.StatusField() != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	var event fabricstest.Request
	event.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
	admin.Start(&event)
	var r fabricstest.Request
	nvme.Abort{CID: event.SQE.CID}.Put(&r.SQE)
	admin.Start(&r)
	for range 2 {
		if _, err := admin.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if event.CQE.StatusField() != nvme.StatusAbortRequested || r.CQE.DW0 != 0 {
		t.Errorf("event request: %v, DW0 %d", event.CQE.StatusField(), r.CQE.DW0)
	}
}

// TestEvents: hosts are told of namespaces.
func TestEvents(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	var config, event fabricstest.Request
	nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: nvme.NoticeNamespaceAttribute}.Put(&config.SQE)
	if st := admin.Do(&config); st != 0 {
		t.Fatal(st)
	}
	event.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
	admin.Start(&event)
	f.identify(t, admin)
	if err := f.sub.Add(&controller.Namespace{NSID: 9, Volume: f.holder, Name: "more", UUID: nvme.NewUUID()}); err != nil {
		t.Fatal(err)
	}
	if r, err := admin.Next(); r != &event || nvme.AsyncEvent(event.CQE.DW0) != nvme.EventNamespaceAttribute {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestClose: the end of a listener ends what is in flight, and nothing of it is used afterwards.
func TestClose(t *testing.T) {
	f := start(t, Limits{Patience: 10 * time.Second})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	for range 16 {
		q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 4096), From: make([]byte, 4096)})
	}
	var event fabricstest.Request
	event.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
	admin.Start(&event)
	fabricstest.WaitFor(t, "the commands", func() bool { return f.holder.count.Load() == 16 })
	f.listener.Close()
	f.listener.Close()
	if n := f.holder.count.Load(); n != 0 || len(f.listener.Associations()) != 0 {
		t.Errorf("%d commands in flight, %d associations", n, len(f.listener.Associations()))
	}
	if _, err := admin.Next(); err == nil {
		t.Error("the admin queue goes on")
	}
	again, err := f.target.Listen(6, f.addr)
	if err != nil {
		t.Fatal(err)
	}
	if again.Addr() != f.addr {
		t.Errorf("listening on %s, want %s", again.Addr(), f.addr)
	}
	admin = f.enabled(t, fabricstest.Options{})
	if n := f.target.Disconnect(func(a Association) bool { return a.HostNQN == hostNQN }); n != 1 {
		t.Errorf("%d associations disconnected", n)
	}
	if _, err := admin.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("disconnected: %v", err)
	}
	f.target.Close()
	f.target.Close()
	if _, err := f.target.Listen(7, f.addr); err == nil {
		t.Error("a closed target listens")
	}
}
