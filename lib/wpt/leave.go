// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// How a broker leaves, so that another can go on where it stopped: first calls
// of the control API end, then the readers of clients stop, handlers carry out
// what was read, and the links of runtimes end. A runtime that notices that
// drains, lets go of its fence and comes again: the next broker takes it for
// one that was lost.

// errLeaving is why readers and links end when a broker leaves.
var errLeaving = errors.New("leap-wpt is being replaced")

// duplicate returns another descriptor of a socket or file.
func duplicate(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return noFD, err
	}
	fd := noFD
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return noFD, cerr
	}
	return fd, err
}

// leave ends the broker and returns what it had; nothing else of it remains. If
// it fails for want of file descriptors, before guests notice anything, the
// broker goes on.
func (b *Broker) leave() (*handover, error) {
	h := &handover{Version: handoverVersion, From: b.version}
	if err := b.leaveSockets(h); err != nil {
		return nil, fmt.Errorf("preparing to be replaced: %w", err)
	}
	ports := b.allPorts()
	h.Began = time.Now()
	for _, p := range ports {
		p.stopClient()
	}
	for _, p := range ports {
		p.wg.Wait()
	}
	b.cancel()
	b.links.Close()
	b.endLinks()
	b.wg.Wait()
	b.describeRuntimes(h)
	h.LastID = b.lastID
	for i, p := range ports {
		p.describe(&h.Ports[i])
	}
	h.Kept = b.kept.take()
	h.Failed = slices.Collect(maps.Values(b.failed))
	return h, b.pid.File().Close()
}

// leaveSockets ends the control API and makes duplicates of what Go closes with
// its objects. Who connects meanwhile waits. admin is held from then on.
func (b *Broker) leaveSockets(h *handover) (err error) {
	var made []int
	dup := func(to *int, c syscall.Conn) error {
		fd, err := duplicate(c)
		if err == nil {
			*to = fd
			made = append(made, fd)
		}
		return err
	}
	defer func() {
		if err != nil {
			qpair.CloseFDs(made)
		}
	}()
	if err := errors.Join(dup(&h.PID, b.pid.File()), dup(&h.Links, b.links), dup(&h.Control, b.control)); err != nil {
		return err
	}
	b.control.SetUnlinkOnClose(false)
	ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
	defer cancel()
	if err := b.server.Shutdown(ctx); err != nil {
		b.log.Warn("ending calls of the control API", "err", err)
	}
	<-b.ended
	b.admin.Lock()
	ports := b.allPorts()
	h.Ports = make([]portHandover, len(ports))
	for i, p := range ports {
		if err := dup(&h.Ports[i].Listener, p.listener); err != nil {
			b.admin.Unlock()
			return errors.Join(err, b.serveAgain(h.Control))
		}
	}
	b.links.SetUnlinkOnClose(false)
	return nil
}

// serveAgain goes on with the control API.
func (b *Broker) serveAgain(control int) error {
	l, err := listener(control, b.paths.WptSocket())
	if err == nil {
		b.serve(l)
	}
	return err
}

// stopClient lets no more clients in, and has the reader of the one that is
// there stop. When p.wg is done, all it has read was carried out.
func (p *port) stopClient() {
	p.listener.SetUnlinkOnClose(false)
	p.listener.Close()
	p.accepting.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		p.client.leaving = true
		// An error is a connection that has ended.
		_ = p.client.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// endLinks ends the links of all runtimes, but does not take them for gone.
func (b *Broker) endLinks() {
	b.linkMu.Lock()
	defer b.linkMu.Unlock()
	for _, rt := range b.runtimes {
		if fd, err := duplicate(rt.fence); err == nil {
			rt.left = fd
		}
		rt.fail(errLeaving)
		rt.fence.Close()
	}
}

// describeRuntimes describes those that are not gone.
func (b *Broker) describeRuntimes(h *handover) {
	h.Epoch = b.epoch
	for _, rt := range b.runtimes {
		h.Runtimes = append(h.Runtimes, runtimeHandover{Name: rt.name, PID: rt.pid, Epoch: rt.epoch, Since: rt.since, Fence: rt.left})
	}
	slices.SortFunc(h.Runtimes, func(a, b runtimeHandover) int { return cmp.Compare(a.Epoch, b.Epoch) })
}

// describe describes the port, which nobody uses any more, and gives up its
// files.
func (p *port) describe(h *portHandover) {
	h.ID, h.Record, h.Kick = p.id, p.record, p.kick
	h.Registers, h.Doorbells, h.State = p.regs.Release(), p.bells.Release(), p.state.Release()
	h.Config, h.FunctionReset = p.config[:], p.functionReset
	h.Subsystem, h.Poll = p.told.subsystem, p.told.poll
	h.Shown, h.Since = p.shown, p.since
	if p.holder != nil {
		h.Holder = p.holder.epoch
	}
	for _, r := range p.regions.regions {
		h.Regions = append(h.Regions, regionHandover{Addr: r.addr, Size: r.size, Offset: r.offset, Flags: r.flags, File: r.fd})
	}
	for index, vectors := range p.irqs.fds {
		for v, fd := range vectors {
			if fd != noFD {
				h.Vectors = append(h.Vectors, vectorHandover{Index: vfiouser.IRQ(index), Vector: uint32(v), File: fd})
			}
		}
	}
	h.MSIX, h.Mask = p.irqs.msix, p.irqs.mask
	if p.client != nil {
		h.Client = p.client.left
	}
}

// leave ends the connection in this program, and notes what another one needs
// to go on.
func (c *client) leave() error {
	socket, err := duplicate(c.socket)
	if err != nil {
		return err
	}
	h := &clientHandover{Socket: socket, Negotiated: c.negotiated, Limit: c.relays.limit, NextID: c.relays.nextID}
	unread := c.conn.Detach()
	h.Unread = unread.Data
	for _, f := range unread.FDs {
		h.Files = append(h.Files, fileHandover{At: f.At, File: f.FD})
	}
	for id, p := range c.relays.pieces {
		h.Pieces = append(h.Pieces, pieceHandover{ID: id, Command: p.command, Stale: p.stale})
	}
	c.left = h
	return c.conn.Close()
}
