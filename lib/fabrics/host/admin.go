// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package host is NVMe over Fabrics from the host's side.
//
//	admin.go     an admin queue
//	exchange.go  its commands, and the goroutine that receives their answers
//	pdu.go       the PDUs below
//	socket.go    connects I/O queues, blocking
//	queue.go     an I/O queue on a poller
//	transfer.go  the data of a command that R2Ts ask for
//
// An [Admin] is for looking: whether a controller answers, what it is, what it
// has in its discovery log, what it tells of its own accord. It blocks. The I/O
// queues of its association are connected by blocking calls, too, and then
// served by pollers: a [Queue].
package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// Options say who a host is, and how it wants to speak.
type Options struct {
	HostNQN      string
	HostID       nvme.UUID
	HeaderDigest bool // asked for; whether there is one is for the controller to say
	DataDigest   bool
	// DigestsRequired: a controller that does not agree to them is an error.
	DigestsRequired bool
	KeepAlive       time.Duration // Keep Alive Timeout, in whole milliseconds; 0: none
	// Timeout is how long each step may take: connecting, and every command.
	Timeout time.Duration
	// Step is told of each step of Connect and Enable when it is done; nil:
	// nobody is.
	Step func(step string, took time.Duration)
}

// The steps.
const (
	StepTCP        = "tcp"        // a TCP connection
	StepInitialize = "initialize" // ICReq and ICResp
	StepConnect    = "connect"    // the admin queue
	StepEnable     = "enable"     // the controller
)

// Admin is the admin queue of an association. Its methods may be called from
// any goroutine, so that a command is executed while an event is waited for; the
// steps up to Enable come first, one after the other. At most 31 commands are in
// execution at once. It has a goroutine, which ends with Close.
//
// Errors are faults that begin with the step that went wrong. Kinds: Peer where
// nobody answers or who answers breaks the protocol, Timeout, NotFound for a
// host name or an NQN that does not exist, Permission for a host that is not
// allowed, Exists for a controller that is busy. After an error other than a
// *StatusError the queue is of no use.
type Admin struct {
	exchange
	timeout time.Duration
	step    func(string, time.Duration)
	cntlid  uint16
	cap     nvme.CAP // since Enable
}

// queueSize is the number of entries of the admin queue: the fewest there may be.
const queueSize = fabrics.MinAdminQueue

// StatusError is a command that the controller ended with an error.
type StatusError struct {
	Status nvme.Status
	Text   string // the specification's words for it
}

// Error returns the text.
func (e *StatusError) Error() string { return e.Text }

// Connect connects to the controller at addr, or to the discovery controller if
// that names no subsystem, by TCP, and makes its admin queue.
func Connect(ctx context.Context, addr fabrics.Address, o Options) (*Admin, error) {
	if addr.Transport != fabrics.TransportTCP {
		return nil, fault.Errorf(fault.Unsupported, "", "", "transport %v is not supported here", addr.Transport)
	}
	if addr.NQN == "" {
		addr.NQN = fabrics.DiscoveryNQN
	}
	c := fabrics.ConnectCommand{SQSIZE: queueSize - 1, KATO: uint32(o.KeepAlive.Milliseconds())}
	return dial(ctx, addr, o, c, fabrics.CNTLIDDynamic)
}

// dial connects to the controller and makes the queue that c asks for.
func dial(ctx context.Context, addr fabrics.Address, o Options, c fabrics.ConnectCommand, cntlid uint16) (*Admin, error) {
	if o.Step == nil {
		o.Step = func(string, time.Duration) {}
	}
	dialer, start := net.Dialer{Timeout: o.Timeout}, time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", addr.HostPort())
	if err != nil {
		var dns *net.DNSError
		kind := fault.Kind(0)
		if errors.As(err, &dns) && dns.IsNotFound {
			kind = fault.NotFound
		}
		return nil, fault.New(kind, "", "", fmt.Errorf("TCP connection: %w", err))
	}
	a := &Admin{exchange: exchange{pdus: pdus{conn: conn}}, timeout: o.Timeout, step: o.Step}
	a.step(StepTCP, time.Since(start))
	start = time.Now()
	r2ts := uint32(1)
	if c.QID != 0 {
		r2ts = maxR2Ts
	}
	if err := within(ctx, o.Timeout, conn.SetDeadline, func() error { return a.initialize(&o, r2ts) }); err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	a.start()
	a.step(StepInitialize, time.Since(start))
	start = time.Now()
	if err := a.connect(ctx, addr.NQN, o, c, cntlid); err != nil {
		a.Close()
		return nil, err
	}
	a.step(StepConnect, time.Since(start))
	return a, nil
}

// Close ends the connection, and with it the association. Commands in execution
// end with an error. It may be called twice.
func (a *Admin) Close() error {
	a.stop()
	return nil
}

// CNTLID returns the identifier of the controller.
func (a *Admin) CNTLID() uint16 { return a.cntlid }

// Digests reports which digests were agreed on.
func (a *Admin) Digests() (header, data bool) { return a.in.HeaderDigest, a.in.DataDigest }

// connect is the Fabrics command Connect.
func (a *Admin) connect(ctx context.Context, subNQN string, o Options, cmd fabrics.ConnectCommand, cntlid uint16) error {
	var e nvme.SQE
	cmd.Put(&e)
	data := fabrics.ConnectData{HOSTID: o.HostID, CNTLID: cntlid}
	nvme.SetNQN(&data.SUBNQN, subNQN)
	nvme.SetNQN(&data.HOSTNQN, o.HostNQN)
	c, err := a.Do(ctx, "Connect", e, fabrics.Bytes(&data), nil)
	var status *StatusError
	if errors.As(err, &status) {
		return refused(status, subNQN, o.HostNQN, fabrics.InvalidParameter(c.DW0))
	}
	if err != nil {
		return err
	}
	result := fabrics.ConnectResult(c.DW0)
	if result&(fabrics.AuthRequired|fabrics.AuthSecureChannelRequired) != 0 {
		return fault.Errorf(fault.Unsupported, "", "", "Connect: the controller wants the host to authenticate")
	}
	a.cntlid = result.CNTLID()
	return nil
}

// refused says why Connect was.
func refused(e *StatusError, subNQN, hostNQN string, field fabrics.InvalidParameter) error {
	switch e.Status.Code() {
	case fabrics.StatusInvalidHost:
		return fault.Errorf(fault.Permission, "", "", "Connect: %s does not allow host %s: %w", subNQN, hostNQN, e)
	case fabrics.StatusControllerBusy:
		return fault.Errorf(fault.Exists, "", "", "Connect: %s is busy: %w", subNQN, e)
	case fabrics.StatusInvalidParameters:
		if field == fabrics.MakeInvalidParameter(fabrics.OffsetSUBNQN, true) {
			return fault.Errorf(fault.NotFound, "", "", "Connect: there is no %s: %w", subNQN, e)
		}
		return fault.Errorf(fault.Peer, "", "", "Connect: %w: %v", e, field)
	}
	return fault.Errorf(fault.Peer, "", "", "Connect: %w", e)
}

// enablePause is how often a controller that is to become ready is looked at.
const enablePause = 10 * time.Millisecond

// Enable enables the controller and waits until it is ready, as long as CAP.TO
// allows.
func (a *Admin) Enable(ctx context.Context) error {
	start := time.Now()
	raw, err := a.property(ctx, nvme.RegCAP, true)
	if err != nil {
		return err
	}
	cc := nvme.CC(0).WithEN(true).WithIOSQES(6).WithIOCQES(4)
	if err := a.setProperty(ctx, nvme.RegCC, uint64(cc)); err != nil {
		return err
	}
	a.cap = nvme.CAP(raw)
	limit := a.cap.Timeout()
	for end := time.Now().Add(limit); ; {
		raw, err := a.property(ctx, nvme.RegCSTS, false)
		if err != nil {
			return err
		}
		switch csts := nvme.CSTS(raw); {
		case csts.CFS():
			return fault.Errorf(fault.Peer, "", "", "enabling: the controller has failed (CSTS.CFS)")
		case csts.RDY():
			a.step(StepEnable, time.Since(start))
			return nil
		case time.Now().After(end):
			return fault.Errorf(fault.Timeout, "", "", "enabling: the controller is not ready after %v", limit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(enablePause):
		}
	}
}

func (a *Admin) property(ctx context.Context, offset uint32, wide bool) (uint64, error) {
	var e nvme.SQE
	fabrics.Property{OFST: offset, Wide: wide}.PutGet(&e)
	c, err := a.Do(ctx, "Property Get", e, nil, nil)
	return uint64(c.DW0) | uint64(c.DW1)<<32, err
}

func (a *Admin) setProperty(ctx context.Context, offset uint32, value uint64) error {
	var e nvme.SQE
	fabrics.Property{OFST: offset, Value: value}.PutSet(&e)
	_, err := a.Do(ctx, "Property Set", e, nil, nil)
	return err
}

// KeepAlive sends a Keep Alive and returns how long the answer took.
func (a *Admin) KeepAlive(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := a.Do(ctx, "Keep Alive", nvme.SQE{Opcode: uint8(nvme.AdminKeepAlive)}, nil, nil)
	return time.Since(start), err
}

// IdentifyController returns what the controller says of itself.
func (a *Admin) IdentifyController(ctx context.Context) (*nvme.IdentifyController, error) {
	var e nvme.SQE
	nvme.Identify{CNS: nvme.CNSController}.Put(&e)
	id := new(nvme.IdentifyController)
	_, err := a.Do(ctx, "Identify", e, nil, nvme.Bytes(id))
	return id, err
}

// Limits of a discovery log.
const (
	logPart    = 4 << 10 // bytes read at once: every controller can do that
	maxEntries = 4096
	logTries   = 8 // a log that keeps changing is given up
)

// DiscoveryLog reads the discovery log. It reads again if the log changes
// meanwhile.
func (a *Admin) DiscoveryLog(ctx context.Context) (generation uint64, entries []fabrics.DiscoveryEntry, err error) {
	for range logTries {
		var before, after fabrics.DiscoveryHeader
		if err := a.readLog(ctx, 0, fabrics.Bytes(&before)); err != nil {
			return 0, nil, err
		}
		if before.RECFMT != 0 || before.NUMREC > maxEntries {
			return 0, nil, fault.Errorf(fault.Peer, "", "", "discovery log: format %d with %d records, not 0 with at most %d", before.RECFMT, before.NUMREC, maxEntries)
		}
		entries := make([]fabrics.DiscoveryEntry, before.NUMREC)
		const size = 1024 // of the header, and of an entry
		for i := range entries {
			if err := a.readLog(ctx, uint64(i+1)*size, fabrics.Bytes(&entries[i])); err != nil {
				return 0, nil, err
			}
		}
		if err := a.readLog(ctx, 0, fabrics.Bytes(&after)); err != nil {
			return 0, nil, err
		}
		if before.GENCTR == after.GENCTR {
			return before.GENCTR, entries, nil
		}
	}
	return 0, nil, fault.Errorf(fault.Peer, "", "", "discovery log: it has changed %d times while it was read", logTries)
}

func (a *Admin) readLog(ctx context.Context, offset uint64, b []byte) error {
	var e nvme.SQE
	nvme.GetLogPage{LID: nvme.LogDiscovery, NUMD: uint32(len(b)/4 - 1), LPO: offset}.Put(&e)
	_, err := a.Do(ctx, "discovery log", e, nil, b)
	return err
}

// Event waits until the controller has something to tell, however long that
// takes, and returns what. It executes an Asynchronous Event Request: each event
// is told once, and further ones of its type when its log page has been read.
func (a *Admin) Event(ctx context.Context) (nvme.AsyncEvent, error) {
	c, err := a.do(ctx, 0, "Asynchronous Event Request", nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, nil, nil)
	return nvme.AsyncEvent(c.DW0), err
}

// Do executes a command with data that goes in its capsule, or data that comes.
// what names it in errors.
func (a *Admin) Do(ctx context.Context, what string, e nvme.SQE, out, in []byte) (nvme.CQE, error) {
	return a.do(ctx, a.timeout, what, e, out, in)
}

// do is Do with a limit of its own; 0: none.
func (a *Admin) do(ctx context.Context, limit time.Duration, what string, e nvme.SQE, out, in []byte) (nvme.CQE, error) {
	c, err := a.execute(ctx, limit, e, out, in)
	if err != nil {
		return c, fmt.Errorf("%s: %w", what, err)
	}
	if st := c.StatusField(); st.Code() != nvme.StatusSuccess {
		text := st.String()
		if e.Opcode == fabrics.Opcode {
			text = fabrics.StatusText(st)
		}
		return c, fault.Errorf(fault.Peer, "", "", "%s: %w", what, &StatusError{Status: st, Text: text})
	}
	return c, nil
}
