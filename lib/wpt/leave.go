// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"errors"
	"net"
	"time"
)

// How a broker leaves, so that another can go on where it stopped: first calls
// of the control API end, then the readers of clients stop, handlers carry out
// what was read, and the links of runtimes end. A runtime that notices that
// drains, lets go of its fence and comes again: the next broker takes it for
// one that was lost. What is left is the same as after a crash, only that no
// command is half done.

// errLeaving is why readers and links end when a broker leaves.
var errLeaving = errors.New("leap-wpt is being replaced")

// leave ends the broker and returns what it had; nothing else of it remains. Who
// connects meanwhile waits.
func (b *Broker) leave() *legacy {
	b.control.SetUnlinkOnClose(false)
	ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
	defer cancel()
	if err := b.server.Shutdown(ctx); err != nil {
		b.log.Warn("ending calls of the control API", "err", err)
	}
	<-b.ended
	b.admin.Lock() // for ever
	ports := b.allPorts()
	l := &legacy{Began: time.Now()}
	for _, p := range ports {
		p.stopClient()
	}
	for _, p := range ports {
		p.wg.Wait()
	}
	b.cancel()
	b.links.SetUnlinkOnClose(false)
	b.links.Close()
	b.endLinks()
	b.wg.Wait()
	b.note()
	for _, p := range ports {
		p.mu.Lock()
		p.note()
		p.journal.Rest()
		p.leave()
		p.mu.Unlock()
	}
	b.pid.File().Close()
	l.Files = b.files.all()
	return l
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
		rt.fail(errLeaving)
		rt.closeFence()
	}
}

// abandon gives up what a program before has left, which stays as it is for one
// that fares better. Nothing runs yet.
func (b *Broker) abandon() {
	b.cancel()
	for _, p := range b.ports {
		p.listener.SetUnlinkOnClose(false)
		p.listener.Close()
		if p.client != nil {
			p.client.conn.Close()
		}
		p.leave()
	}
	for _, l := range []*net.UnixListener{b.links, b.control} {
		if l != nil {
			l.SetUnlinkOnClose(false)
			l.Close()
		}
	}
	for _, rt := range b.runtimes {
		rt.closeFence()
	}
	if b.pid != nil {
		b.pid.File().Close()
	}
	b.files.abandon()
}

// leave gives up the mappings of the port, which nobody uses any more.
func (p *port) leave() {
	p.regs.Release()
	p.bells.Release()
	p.state.Release()
	// It fails for addresses that were never mapped only.
	_ = p.journal.Unmap()
}
