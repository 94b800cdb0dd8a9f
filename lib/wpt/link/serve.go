// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"context"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
)

// Ports is the set of ports a runtime serves. Its methods may be called from
// any goroutine.
type Ports struct {
	pollers []*poller.Poller
	// subsystem finds what a port is to show; nil: nothing (yet).
	subsystem func(*Port) *controller.Subsystem

	mu   sync.Mutex
	byID map[uint32]*Port
}

// NewPorts returns an empty set. Its ports are spread over the pollers, which
// outlive it. subsystem finds what a port is to show, nil if that does not exist
// or may not be shown there (yet); it is asked when a port comes, and again when
// Refresh says so.
func NewPorts(pollers []*poller.Poller, subsystem func(*Port) *controller.Subsystem) *Ports {
	return &Ports{pollers: pollers, subsystem: subsystem, byID: make(map[uint32]*Port)}
}

// Serve follows the ports of the link until ctx ends or the link does, then
// gives them up: controllers stay enabled for whoever comes next. It returns
// nil when ctx ended, else why the link ended.
func (ps *Ports) Serve(ctx context.Context, c *Client) error {
	defer ps.giveUp()
	for {
		ms, err := c.take()
		if err != nil {
			return err
		}
		for i := range ms {
			ps.follow(c, &ms[i])
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.arrived:
		}
	}
}

// follow acts on one message.
func (ps *Ports) follow(c *Client, m *message) {
	switch {
	case m.do != nil:
		m.do()
		return
	case m.Kind == qpair.MsgAttach:
		ps.attach(c, m)
		return
	}
	p := ps.get(m.Port)
	if p == nil {
		qpair.CloseFDs(m.fds)
		return
	}
	switch m.Kind {
	case qpair.MsgMap:
		p.mapRegion(m)
	case qpair.MsgUnmap:
		p.unmapRegion(m)
		return
	case qpair.MsgVector:
		p.setVector(m)
		return // which has taken the fds
	case qpair.MsgDetach:
		ps.detach(c, p)
	default:
		c.log.Warn("unknown message from leap-wpt", "kind", uint32(m.Kind))
	}
	qpair.CloseFDs(m.fds)
}

func (ps *Ports) attach(c *Client, m *message) {
	p, err := c.newPort(m, ps.pollers)
	if err != nil {
		c.log.Error("port cannot be attached", "err", err)
		return
	}
	ps.mu.Lock()
	ps.byID[p.ID] = p
	ps.mu.Unlock()
	p.sub.Store(ps.subsystem(p))
	p.start()
	p.log.Info("port attached", "subsystem", p.Subsystem)
}

func (ps *Ports) detach(c *Client, p *Port) {
	ps.mu.Lock()
	delete(ps.byID, p.ID)
	ps.mu.Unlock()
	p.giveUp(func() {
		_ = c.link.Send(&qpair.Message{Kind: qpair.MsgDetached, Port: p.ID}, nil)
	})
	ps.Refresh() // another port may have waited for what this one showed
}

// giveUp stops serving every port and waits.
func (ps *Ports) giveUp() {
	ps.mu.Lock()
	all := ps.byID
	ps.byID = make(map[uint32]*Port)
	ps.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Add(1)
		p.giveUp(wg.Done)
	}
	wg.Wait()
}

func (ps *Ports) get(id uint32) *Port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byID[id]
}

// List returns the ports in no particular order.
func (ps *Ports) List() []*Port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := make([]*Port, 0, len(ps.byID))
	for _, p := range ps.byID {
		all = append(all, p)
	}
	return all
}

// Refresh has every port look again for what it is to show.
func (ps *Ports) Refresh() {
	for _, p := range ps.List() {
		p.SetSubsystem(ps.subsystem(p))
	}
}

// mapRegion follows a MsgMap. A region that cannot be mapped is missing from
// the table: the guest's commands there fail with an NVMe status.
func (p *Port) mapRegion(m *message) {
	if m.Flags&qpair.RegionOwn != 0 {
		p.space.Skip(m.Gen)
		p.homePost(func() {})
		return
	}
	var prot dma.Prot
	if m.Flags&qpair.RegionRead != 0 {
		prot |= dma.ProtRead
	}
	if m.Flags&qpair.RegionWrite != 0 {
		prot |= dma.ProtWrite
	}
	fd := -1
	if len(m.fds) == 1 && !p.unshared {
		fd = m.fds[0]
	}
	if err := p.space.Map(m.Gen, m.Addr, m.Size, prot, fd, m.Offset); err != nil {
		p.log.Warn("guest memory cannot be mapped", "err", err)
		p.space.Skip(m.Gen)
	}
	p.homePost(func() {}) // enabling may wait for it
}

// unmapRegion follows a MsgUnmap and answers it when no I/O touches the range,
// at the latest after unmapGrace.
func (p *Port) unmapRegion(m *message) {
	answer := qpair.Message{Kind: qpair.MsgUnmapped, Port: p.ID, ID: m.ID}
	done, err := p.space.Unmap(m.Gen, m.Addr, m.Size)
	if err != nil {
		p.space.Skip(m.Gen)
		_ = p.c.link.Send(&answer, nil)
		return
	}
	if len(p.space.Table().Regions()) == 0 {
		p.unshared = false // the client has gone
	}
	p.homePost(func() {})
	go func() {
		select {
		case <-done:
		case <-time.After(unmapGrace):
		}
		_ = p.c.link.Send(&answer, nil)
	}()
}
