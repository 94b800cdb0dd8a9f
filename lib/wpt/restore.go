// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// restore goes on where another broker has stopped. It owns what h has.
func (b *Broker) restore(h *handover) (err error) {
	b.pid = api.AdoptPidFile(os.NewFile(uintptr(h.PID), b.paths.PidFile("wpt")))
	if b.facts, err = api.OpenFacts(b.paths.Facts(api.KindPort), "wpt"); err != nil {
		return err
	}
	if _, err := b.loadState(); err != nil { // a newer build may have it in another form
		return err
	}
	for _, r := range h.Failed {
		b.failed[r.Name] = r
	}
	b.kept.put(h.Kept)
	b.epoch, b.lastID = h.Epoch, h.LastID
	for i := range h.Runtimes {
		b.restoreRuntime(&h.Runtimes[i])
	}
	for i := range h.Ports {
		p, err := b.restorePort(&h.Ports[i])
		if err != nil {
			return fmt.Errorf("taking over port %s: %w", h.Ports[i].Record.Name, err)
		}
		b.ports[p.name], b.byID[p.id] = p, p
	}
	if b.links, err = listener(h.Links, b.paths.LinkSocket()); err != nil {
		return err
	}
	control, err := listener(h.Control, b.paths.WptSocket())
	if err != nil {
		return err
	}
	for _, rt := range b.runtimes {
		b.wg.Go(rt.await)
	}
	for _, p := range b.allPorts() {
		p.accepting.Go(p.accept)
		if p.client != nil {
			p.wg.Go(p.client.run)
		}
		p.reconcile()
	}
	b.wg.Go(b.acceptLinks)
	b.serve(control)
	b.pause = time.Since(h.Began)
	b.log.Info("took over", "from", h.From, "version", b.version, "pause", b.pause, "ports", len(h.Ports))
	return b.pid.Ready()
}

// listener makes a listener of a socket that was handed over, and owns it.
func listener(fd int, path string) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("taking over %s: %w", path, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("taking over %s: it is no Unix socket", path)
	}
	u.SetUnlinkOnClose(true)
	return u, nil
}

// restoreRuntime makes a runtime whose link has ended and that is not gone.
func (b *Broker) restoreRuntime(h *runtimeHandover) {
	rt := &runtime{
		broker: b, name: h.Name, pid: h.PID, epoch: h.Epoch, since: h.Since, out: newOutbox(), left: noFD, process: noFD,
		fence: os.NewFile(uintptr(h.Fence), "fence"), ended: make(chan struct{}), gone: make(chan struct{}),
	}
	rt.out.close()
	close(rt.ended)
	b.runtimes[rt.name] = rt
}

// restorePort makes a port with what it had; nobody is let in yet.
func (b *Broker) restorePort(h *portHandover) (p *port, err error) {
	p = makePort(b, h.ID, h.Record)
	p.kick, p.functionReset = h.Kick, h.FunctionReset
	p.told = binding{h.Subsystem, h.Poll}
	p.shown, p.since = h.Shown, h.Since
	if copy(p.config[:], h.Config) != configSize {
		return nil, errors.New("the configuration space is not complete")
	}
	for _, rt := range b.runtimes {
		if rt.epoch == h.Holder {
			p.holder = rt
		}
	}
	for _, r := range h.Regions {
		p.regions.regions = append(p.regions.regions, region{addr: r.Addr, size: r.Size, offset: r.Offset, flags: r.Flags, fd: r.File})
	}
	for _, v := range h.Vectors {
		if int(v.Index) >= len(p.irqs.fds) || int(v.Vector) >= len(p.irqs.fds[v.Index]) {
			return nil, fmt.Errorf("there is no interrupt %v %d", v.Index, v.Vector)
		}
		p.irqs.fds[v.Index][v.Vector] = v.File
	}
	p.irqs.msix, p.irqs.mask = h.MSIX, h.Mask
	if p.regs, err = qpair.Open[qpair.Registers](h.Registers); err == nil {
		p.cc = p.regs.Page.LoadCC()
		p.bells, err = qpair.Open[qpair.Doorbells](h.Doorbells)
	}
	if err == nil {
		p.state, err = qpair.Open[qpair.State](h.State)
	}
	if err == nil {
		// In which layout they are this program was asked before (run --check).
		p.renewPages()
		p.listener, err = listener(h.Listener, p.socket)
	}
	if err == nil && h.Client != nil {
		p.client, err = p.restoreClient(h.Client)
	}
	return p, err
}

// restoreClient makes the client of a connection that was left.
func (p *port) restoreClient(h *clientHandover) (*client, error) {
	f := os.NewFile(uintptr(h.Socket), p.socket)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("its client has no Unix socket")
	}
	c := openClient(p, socket)
	c.negotiated = h.Negotiated
	unread := vfiouser.Unread{Data: h.Unread}
	for _, f := range h.Files {
		unread.FDs = append(unread.FDs, vfiouser.UnreadFD{At: f.At, FD: f.File})
	}
	c.relays.limit, c.relays.nextID = h.Limit, h.NextID
	for _, piece := range h.Pieces {
		c.relays.owed(piece)
	}
	return c, c.conn.Attach(unread)
}
