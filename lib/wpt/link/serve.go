// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
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

	choosing sync.Mutex     // held while subsystem is asked and the answer set
	leaving  sync.WaitGroup // ports that are being given up

	// refused are ports that could not be taken: nothing of theirs is in flight.
	refused map[uint32]bool // for Serve

	mu   sync.Mutex
	byID map[uint32]*Port
}

// NewPorts returns an empty set. Its ports are spread over the pollers, which
// outlive it. subsystem finds what a port is to show, nil if that does not exist
// or may not be shown there (yet); it is asked when a port comes, and again when
// Refresh says so.
func NewPorts(pollers []*poller.Poller, subsystem func(*Port) *controller.Subsystem) *Ports {
	return &Ports{pollers: pollers, subsystem: subsystem, byID: make(map[uint32]*Port), refused: make(map[uint32]bool)}
}

// Serve follows the ports of the link until ctx ends or the link does, then
// gives them up: controllers stay enabled for whoever comes next. It returns
// nil when ctx ended, else why the link ended: a *qpair.VersionError if the pages
// of its ports are of another layout, which are left as they are.
func (ps *Ports) Serve(ctx context.Context, c *Client) error {
	defer ps.giveUp(c)
	clear(ps.refused)
	for {
		ms, err := c.take()
		if err != nil {
			return err
		}
		for i := range ms {
			if err := ps.follow(c, &ms[i]); err != nil {
				for _, m := range ms[i+1:] {
					qpair.CloseFDs(m.fds)
				}
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.arrived:
		}
	}
}

// follow acts on one message. An error is the end of the link.
func (ps *Ports) follow(c *Client, m *message) error {
	switch {
	case m.do != nil:
		m.do()
		return nil
	case m.Kind == qpair.MsgAttach:
		return ps.attach(c, m)
	case m.Kind == qpair.MsgPing:
		ps.pong(c, m)
		return nil
	}
	p := ps.get(m.Port)
	if p == nil || p.leaving {
		ps.answer(c, m)
		qpair.CloseFDs(m.fds)
		return nil
	}
	switch m.Kind {
	case qpair.MsgMap:
		p.mapRegion(m)
	case qpair.MsgUnmap:
		p.unmapRegion(m)
		return nil
	case qpair.MsgVector:
		p.setVector(m)
		return nil // which has taken the fds
	case qpair.MsgDetach:
		ps.detach(c, p)
	default:
		c.log.Warn("unknown message from leap-wpt", "kind", uint32(m.Kind))
	}
	qpair.CloseFDs(m.fds)
	return nil
}

// answer gives leap-wpt, and with it the guest, what it waits for of a port that
// could not be taken.
func (ps *Ports) answer(c *Client, m *message) {
	if !ps.refused[m.Port] {
		return
	}
	// An error is the end of the link, which is found out.
	switch m.Kind {
	case qpair.MsgUnmap:
		_ = c.link.Send(&qpair.Message{Kind: qpair.MsgUnmapped, Port: m.Port, ID: m.ID}, nil)
	case qpair.MsgDetach:
		delete(ps.refused, m.Port)
		_ = c.link.Send(&qpair.Message{Kind: qpair.MsgDetached, Port: m.Port}, nil)
	}
}

// pong answers a MsgPing when every poller has run.
func (ps *Ports) pong(c *Client, m *message) {
	id := m.ID
	var left atomic.Int32
	left.Store(int32(len(ps.pollers)))
	for _, q := range ps.pollers {
		post(q, func() {
			if left.Add(-1) == 0 {
				// The end of the link is as good as an answer.
				_ = c.link.Send(&qpair.Message{Kind: qpair.MsgPong, ID: id}, nil)
			}
		})
	}
}

func (ps *Ports) attach(c *Client, m *message) error {
	p, err := c.newPort(m, ps.pollers)
	var version *qpair.VersionError
	if errors.As(err, &version) {
		return err // so are those of all ports; somebody else can serve them
	}
	if err != nil {
		c.log.Error("port cannot be attached", "err", err)
		ps.refused[m.Port] = true
		return nil
	}
	ps.choosing.Lock()
	ps.mu.Lock()
	ps.byID[p.ID] = p
	ps.mu.Unlock()
	p.sub.Store(ps.subsystem(p))
	ps.choosing.Unlock()
	p.start()
	p.log.Info("port attached", "subsystem", p.Subsystem)
	return nil
}

func (ps *Ports) detach(c *Client, p *Port) {
	ps.leave(p, func() {
		_ = c.link.Send(&qpair.Message{Kind: qpair.MsgDetached, Port: p.ID}, nil)
		ps.Refresh() // another port may have waited for what this one showed
	})
}

// leave stops serving a port; it is listed until that is done, then is called.
func (ps *Ports) leave(p *Port, then func()) {
	p.leaving = true
	ps.leaving.Add(1)
	p.giveUp(func() {
		defer ps.leaving.Done()
		ps.mu.Lock()
		delete(ps.byID, p.ID)
		ps.mu.Unlock()
		then()
	})
}

// giveUp stops serving every port and waits. What ports have asked to be done
// in line with the messages is done; messages do not matter any more.
func (ps *Ports) giveUp(c *Client) {
	for _, p := range ps.List() {
		if !p.leaving {
			ps.leave(p, func() {})
		}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		ps.leaving.Wait()
	}()
	for {
		select {
		case <-gone:
			return
		case <-c.arrived:
			ms, _ := c.take()
			for i := range ms {
				switch m := &ms[i]; {
				case m.do != nil:
					m.do()
				case m.Kind == qpair.MsgPing:
					ps.pong(c, m)
				}
				qpair.CloseFDs(ms[i].fds)
			}
		}
	}
}

func (ps *Ports) get(id uint32) *Port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byID[id]
}

// List returns the ports in the order of their IDs.
func (ps *Ports) List() []*Port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := make([]*Port, 0, len(ps.byID))
	for _, p := range ps.byID {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Port) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Refresh has every port look again for what it is to show.
func (ps *Ports) Refresh() {
	ps.choosing.Lock()
	defer ps.choosing.Unlock()
	for _, p := range ps.List() {
		p.SetSubsystem(ps.subsystem(p))
	}
}

// Settled waits until the ports that leap-wpt hands over at the begin of a link
// are served, as far as their guests have enabled them. Serve runs meanwhile. The
// error is the end of the link.
func (ps *Ports) Settled(c *Client) error {
	// The answer comes after all that leap-wpt had to say first.
	if _, err := c.Fetch("nothing"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	settled := make(chan struct{})
	c.enqueue(func() {
		all := ps.List()
		var left atomic.Int32
		left.Store(int32(len(all)) + 1)
		one := func() {
			if left.Add(-1) == 0 {
				close(settled)
			}
		}
		for _, p := range all {
			// A turn after it came, a port has looked at its registers.
			p.homePost(func() { p.homePost(func() { p.whenSettled(one) }) })
		}
		one()
	})
	select {
	case <-settled:
		return nil
	case <-c.done:
		return errLinkDown
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
