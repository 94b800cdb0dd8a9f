// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/vfiouser"
)

// port is a vfio-user entry for one VM: one NVMe controller, as far as its
// registers go. It owns its socket, its shared pages, and what its client
// brought.
type port struct {
	broker *Broker
	log    *slog.Logger
	id     uint32
	name   string
	socket string

	regs  *qpair.Shared[qpair.Registers]
	bells *qpair.Shared[qpair.Doorbells]
	state *qpair.Shared[qpair.State]
	kick  int // eventfd: registers or doorbells have changed

	// What the program that follows needs, beside the pages.
	table      *table
	journal    *vfiouser.Journal // of the client's connection
	journalFD  int
	listenerFD int

	mapped bool // the doorbell page is mapped into the guest

	counts portCounts

	listener  *net.UnixListener
	accepting sync.WaitGroup
	wg        sync.WaitGroup // the clients

	mu          sync.Mutex
	record      record
	config      pciConfig
	cc          nvme.CC // what the guest has made it; a runtime could change the page's
	regions     regionTable
	irqs        *irqs
	client      *client       // nil: none is connected
	functionGen uint64        // the reset generation that began with the last reset of the function
	changed     chan struct{} // closed, and replaced, when a wait may be over
	closed      bool

	// The runtime. It holds the port from the first message about it until it
	// has given it up or is gone, attached or not.
	holder    *runtime
	told      binding // what the holder was told
	detaching bool    // the holder was asked to give the port up
	unmaps    unmapWaits

	// Since when the holder is waited for, where it is.
	edge, detachedAt time.Time

	// As published in the facts.
	shown string
	since time.Time
}

// makePort makes a port without its shared pages.
func makePort(b *Broker, id uint32, r record) *port {
	return &port{
		broker: b, id: id, name: r.Name, record: r,
		log:     b.log.With("port", r.Name),
		mapped:  r.Doorbells == api.DoorbellsMap,
		socket:  b.paths.PortSocket(r.Name),
		irqs:    newIRQs(),
		changed: make(chan struct{}),
		kick:    noFD, journalFD: noFD, listenerFD: noFD,
		since: time.Now(),
	}
}

// newPort makes a port with new shared pages. listen lets clients in.
func newPort(b *Broker, id uint32, r record) (*port, error) {
	p := makePort(b, id, r)
	p.config.reset()
	err := p.makePages()
	if err != nil {
		p.free()
		return nil, err
	}
	return p, nil
}

// makePages makes what the port shares with its runtime.
func (p *port) makePages() (err error) {
	f := p.broker.files
	if p.regs, err = qpair.Create[qpair.Registers]("registers"); err != nil {
		return err
	}
	f.keep(p.regs.FD())
	if p.bells, err = qpair.Create[qpair.Doorbells]("doorbells"); err != nil {
		return err
	}
	f.keep(p.bells.FD())
	if p.state, err = qpair.Create[qpair.State]("state"); err != nil {
		return err
	}
	f.keep(p.state.FD())
	if p.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("making an eventfd: %w", err)
	}
	f.keep(p.kick)
	if p.journal, p.journalFD, err = vfiouser.CreateJournal(); err != nil {
		return err
	}
	f.keep(p.journalFD)
	if p.table, err = newTable(); err != nil {
		return err
	}
	f.keep(p.table.fd)
	p.regs.Page.Init(constCAP, constVS, constCRTO)
	p.state.Page.Init()
	return nil
}

// free gives everything back. Nobody uses the port any more, and no table names
// it.
func (p *port) free() {
	f := p.broker.files
	if p.listener != nil {
		p.listener.Close()
	}
	f.close(p.kick, p.journalFD, p.listenerFD)
	if p.regs != nil {
		f.close(p.regs.Release())
	}
	if p.bells != nil {
		f.close(p.bells.Release())
	}
	if p.state != nil {
		f.close(p.state.Release())
	}
	if p.journal != nil {
		// It fails for addresses that were never mapped only.
		_ = p.journal.Unmap()
	}
	if p.table != nil {
		f.close(p.table.fd)
	}
}

// listen opens the port's socket and its facts.
func (p *port) listen() error {
	uid, gid, mode, err := lookupOwner(p.record.Owner)
	if err != nil {
		return err
	}
	if _, err := p.broker.facts.Add(p.name); err != nil {
		return err
	}
	if p.listener, err = api.Listen(p.socket, "unix", 0o600); err != nil {
		return errors.Join(err, p.broker.facts.Remove(p.name))
	}
	if p.listenerFD, err = p.broker.files.keepCopy(p.listener); err != nil {
		p.listener.Close()
		return errors.Join(err, p.broker.facts.Remove(p.name))
	}
	err = os.Chown(p.socket, uid, gid)
	if err == nil {
		err = os.Chmod(p.socket, mode)
	}
	if err == nil {
		err = p.setFacts()
	}
	if err != nil {
		p.listener.Close()
		return errors.Join(err, p.broker.facts.Remove(p.name))
	}
	p.mu.Lock()
	p.publish()
	p.note()
	p.mu.Unlock()
	return nil
}

// setFacts publishes what the port was made with.
func (p *port) setFacts() error {
	device, err := deviceArgument(p.name, p.socket)
	if err != nil {
		return err
	}
	return errors.Join(
		p.setFact("qemu", "-device "+device),
		p.setFact("doorbells", p.record.Doorbells),
		p.setFact("subsystem", p.record.Subsystem),
		p.setFact("runtime", p.record.Runtime),
	)
}

func (p *port) setFact(key, value string) error { return p.broker.facts.Set(p.name, key, value) }

// serve lets clients in, and serves the one that is there.
func (p *port) serve() {
	if p.client != nil {
		p.wg.Go(p.client.run)
	}
	p.accepting.Go(p.accept)
	p.reconcile()
}

// accept lets one client in at a time.
func (p *port) accept() {
	for {
		conn, err := p.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// No descriptors, no memory: it passes, or nothing helps.
			p.log.Error("accepting a client", "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if c := p.admit(conn); c != nil {
			p.wg.Go(c.run)
		} else {
			conn.Close()
		}
	}
}

// admit makes the connection the port's client, or returns nil. A machine that
// was restarted may be here before its end has been noticed: it has a moment.
func (p *port) admit(conn *net.UnixConn) *client {
	free := func() bool { return p.client == nil || p.closed }
	p.wait(free, handoverLimit, p.broker.ctx.Done())
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil
	case p.client == nil:
		c, err := newClient(p, conn)
		if err != nil {
			p.log.Error("accepting a client", "err", err)
			return nil
		}
		p.client = c
		p.note()
		return c
	}
	if !p.client.refusedOne {
		p.client.refusedOne = true
		p.log.Warn("second client refused: one is connected already", "pid", peerPID(conn))
	}
	return nil
}

// disconnected ends what c had: the guest's memory, the interrupts, and all
// I/O, by a reset. The next client may come.
func (p *port) disconnected(c *client) {
	p.mu.Lock()
	p.dropClient()
	p.mu.Unlock()
	c.relays.cancel()
	p.broker.files.close(c.socketFD)
}

// dropClient is disconnected without the connection. The caller holds mu.
func (p *port) dropClient() {
	gone := p.regions.removeAll()
	p.tellUnmapped(gone)
	for _, v := range p.irqs.disableAll() {
		p.tellVector(v)
	}
	atomic.StoreUint32(&p.regs.Page.IRQMode, uint32(qpair.IRQNone))
	atomic.StoreUint32(&p.regs.Page.Client, 0)
	atomic.StoreUint32(&p.state.Page.Header.Unshared, 0)
	p.client = nil
	p.resetFunction()
	p.notify()
	p.broker.files.closeRegions(gone)
	p.broker.files.close(p.irqs.takeOld()...)
}

// close ends the port: its client, its socket, its facts. The runtime has been
// told before. It may be called once.
func (p *port) close() error {
	p.mu.Lock()
	p.closed = true
	c := p.client
	p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
	}
	if c != nil {
		c.end()
	}
	p.accepting.Wait()
	p.wg.Wait()
	p.mu.Lock()
	p.holder = nil
	p.free()
	p.mu.Unlock()
	return p.broker.facts.Remove(p.name)
}

// notify wakes those who wait for the port to change. The caller holds mu.
func (p *port) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait waits until ok, which is called with mu held, holds; for limit at most,
// and not past done. It returns what ok said last.
func (p *port) wait(ok func() bool, limit time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	// A runtime stores its status before it says so; it may also die between.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		p.mu.Lock()
		over, changed := ok(), p.changed
		p.mu.Unlock()
		if over {
			return true
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-timer.C:
			return false
		case <-done:
			return false
		}
	}
}

// publish makes the state a fact and an event if it has changed. The caller
// holds mu.
func (p *port) publish() {
	if p.closed {
		return
	}
	state := p.currentState()
	if state == p.shown {
		return
	}
	p.shown, p.since = state, time.Now()
	err := errors.Join(p.setFact("state", state), p.setFact("since", p.since.Format(time.RFC3339)))
	if err != nil {
		p.log.Error("publishing the state", "err", err)
	}
	p.broker.events.Publish(api.Event{Time: p.since, Kind: api.KindPort, Name: p.name, State: state})
}

// currentState is the state as api.Port has it. The caller holds mu.
func (p *port) currentState() string {
	switch {
	case p.client == nil || !p.client.negotiated:
		return api.PortWaiting
	case !p.regs.Page.LoadCC().EN():
		return api.PortAttached
	case p.holder == nil || p.holder.lost():
		return api.PortFrozen
	case p.csts().RDY():
		return api.PortEnabled
	}
	return api.PortAttached
}

// handoverLimit is how long a client may wait for the end of the one before.
const handoverLimit = 500 * time.Millisecond

// linuxTimeout is how long a Linux guest waits for an I/O before it resets the
// controller (nvme_core.io_timeout); after that it waits CAP.TO for the reset.
const linuxTimeout = 30 * time.Second

// show describes the port.
func (p *port) show() api.Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := api.Port{
		Name: p.name, State: api.PortWaiting, Since: p.since, Socket: p.socket,
		Owner: p.record.Owner, Doorbells: p.record.Doorbells, Subsystem: p.record.Subsystem, Runtime: p.record.Runtime, Poll: p.record.Poll,
		Regions: len(p.regions.regions), Memory: units.Size(p.regions.bytes()),
	}
	if p.closed {
		return out // it was listed a moment ago
	}
	gen := p.regs.Page.LoadResetGen()
	out.State, out.ResetGen = p.currentState(), gen-1
	if p.holder != nil && !p.holder.lost() {
		out.Epoch = p.holder.epoch
	}
	if p.client != nil {
		out.ClientPID, out.ClientName = p.client.pid, p.client.name
	}
	for i := range p.state.Page.CQ[1:] {
		// Pages of other queues are never touched, to keep the area sparse:
		// hosts make as many completion queues as pairs.
		if p.state.Page.CQ[1+i].Valid(gen) {
			out.Queues++
		}
	}
	if out.State == api.PortFrozen {
		patience := constCAP.Timeout()
		if p.csts().RDY() {
			patience += linuxTimeout
		}
		out.TimeLeft = max(0, patience-time.Since(p.since))
	}
	return out
}

// lookupOwner resolves USER[:GROUP], each a name or a number. Without a group
// only the user may connect. The mode is that of the socket.
func lookupOwner(owner string) (uid, gid int, mode fs.FileMode, err error) {
	if owner == "" {
		return -1, -1, 0o600, nil
	}
	name, group, withGroup := strings.Cut(owner, ":")
	if uid, err = strconv.Atoi(name); err != nil || uid < 0 {
		u, err := user.Lookup(name)
		if err != nil {
			return 0, 0, 0, fault.Errorf(fault.NotFound, "", "", "owner %q: %w", owner, err)
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			return 0, 0, 0, fmt.Errorf("owner %q: %w", owner, err)
		}
	}
	if !withGroup {
		return uid, -1, 0o600, nil
	}
	if gid, err = api.LookupGroup(group); err != nil {
		return 0, 0, 0, fault.New(0, "", "", fmt.Errorf("owner %q: %w", owner, err))
	}
	return uid, gid, 0o660, nil
}
