// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// How a broker goes on where another has stopped or crashed. The state file says
// which ports there are, the tables what they have: a port that was being made
// or removed at a crash is there or not as the file has it.

// takeOver reads the tables that were left. Without tables that can be read it
// begins anew, and what was left is closed; but those of another version are
// left as they are, for a program that knows them: then the error is an
// unsupported fault.
func (b *Broker) takeOver(l *legacy) (t brokerTable, _ error) {
	b.files.adopt(l.Files)
	fd, ok := b.files.claim(rootTable)
	err := errDamaged
	if ok {
		b.root, err = openTable(fd, &t)
	}
	if err == nil && !maps.Equal(t.Layouts, layouts) {
		err = fault.Errorf(fault.Unsupported, "", "", "the program before has left layouts %v, and this build knows %v", t.Layouts, layouts)
	}
	if err == nil {
		return t, nil
	}
	if fault.KindOf(err) == fault.Unsupported {
		return t, err
	}
	b.log.Error("beginning anew: guests that were attached lose their drives", "err", err, "files", len(l.Files))
	b.files.close(fd)
	b.files.sweep()
	return brokerTable{}, nil
}

// restoreBroker is what comes before the ports.
func (b *Broker) restoreBroker(t *brokerTable) {
	if fd, ok := b.files.claim(t.PID); ok && isFile(fd, b.paths.PidFile("wpt")) {
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			b.pidFD, b.pid = fd, api.AdoptPidFile(os.NewFile(uintptr(dup), b.paths.PidFile("wpt")))
		}
	}
	b.epoch, b.lastID = t.Epoch, t.LastID
	for _, k := range t.Kept {
		if fd, ok := b.files.claim(k.File); ok {
			b.kept.put(k.Runtime, k.Name, fd)
		} else {
			b.log.Error("a file that was kept is lost", "runtime", k.Runtime, "name", k.Name)
		}
	}
	for i := range t.Runtimes {
		b.restoreRuntime(&t.Runtimes[i])
	}
}

// isFile reports whether a file is the one at a path, still.
func isFile(fd int, path string) bool {
	var mine, there unix.Stat_t
	return errors.Join(unix.Fstat(fd, &mine), unix.Lstat(path, &there)) == nil && mine.Dev == there.Dev && mine.Ino == there.Ino
}

// restoreListener makes a listener of a socket that was left; false: it was not.
func (b *Broker) restoreListener(id fileID, path string) (*net.UnixListener, int, bool) {
	fd, ok := b.files.claim(id)
	if !ok {
		return nil, noFD, false
	}
	l, err := listener(fd, path)
	if err != nil {
		b.log.Error("taking over a socket", "err", err)
		b.files.close(fd)
		return nil, noFD, false
	}
	return l, fd, true
}

// listener makes a listener of a socket that was left, which stays the caller's.
func listener(fd int, path string) (*net.UnixListener, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("taking over %s: %w", path, err)
	}
	f := os.NewFile(uintptr(dup), path)
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

// restoreRuntime makes a runtime whose link has ended and that is not gone. If its
// fence was not left, nobody can tell when it is: it is never taken for gone.
func (b *Broker) restoreRuntime(t *runtimeEntry) {
	rt := &runtime{
		broker: b, name: t.Name, pid: t.PID, epoch: t.Epoch, since: t.Since, out: newOutbox(), fenceFD: noFD, process: noFD,
		ended: make(chan struct{}), gone: make(chan struct{}),
	}
	rt.out.close()
	close(rt.ended)
	if fd, ok := b.files.claim(t.Fence); ok {
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			rt.fenceFD, rt.fence = fd, os.NewFile(uintptr(dup), "fence")
		}
	}
	if rt.fence == nil {
		b.log.Error("the fence of a runtime is lost: its name is free when all is started anew", "runtime", t.Name, "pid", t.PID, "epoch", t.Epoch)
	}
	b.runtimes[rt.name] = rt
}

// restorePort makes a port with what its table says; nobody is let in yet.
func (b *Broker) restorePort(r record, at fileID) (p *port, err error) {
	fd, ok := b.files.claim(at)
	if !ok {
		return nil, errors.New("its table was not left")
	}
	var t portTable
	tbl, err := openTable(fd, &t)
	if err != nil {
		b.files.close(fd)
		return nil, err
	}
	if t.Record.Name != r.Name {
		b.files.close(fd)
		return nil, fmt.Errorf("its table is that of %q", t.Record.Name)
	}
	p = makePort(b, t.ID, r)
	p.table = tbl
	p.functionGen = t.FunctionGen
	p.told = binding{t.Subsystem, t.Poll}
	p.shown, p.since = t.Shown, t.Since
	if err := p.restorePages(&t); err != nil {
		p.free()
		return nil, err
	}
	for _, rt := range b.runtimes {
		if rt.epoch == t.Holder {
			p.holder = rt
		}
	}
	if err := p.restoreClient(&t); err != nil {
		p.log.Error("the client is lost", "err", err)
		p.dropClient()
	}
	if r != t.Record {
		return p, p.setFacts()
	}
	return p, nil
}

var errNoPages = errors.New("its shared pages were not left")

// restorePages maps what the port shares with its runtime.
func (p *port) restorePages(t *portTable) error {
	f := p.broker.files
	var err error
	if fd, ok := f.claim(t.Registers); !ok {
		return errNoPages
	} else if p.regs, err = qpair.Open[qpair.Registers](fd); err != nil {
		f.forget(fd)
		return err
	}
	if fd, ok := f.claim(t.Doorbells); !ok {
		return errNoPages
	} else if p.bells, err = qpair.Open[qpair.Doorbells](fd); err != nil {
		f.forget(fd)
		return err
	}
	if fd, ok := f.claim(t.State); !ok {
		return errNoPages
	} else if p.state, err = qpair.Open[qpair.State](fd); err != nil {
		f.forget(fd)
		return err
	}
	// Their layouts are those of the broker's table.
	p.cc = p.regs.Page.LoadCC()
	p.renewPages()
	var ok [3]bool
	p.kick, ok[0] = f.claim(t.Kick)
	p.journalFD, ok[1] = f.claim(t.Journal)
	p.listener, p.listenerFD, ok[2] = p.broker.restoreListener(t.Listener, p.socket)
	if ok != [3]bool{true, true, true} {
		return errors.New("its socket, its eventfd or its journal was not left")
	}
	if copy(p.config[:], t.Config) != configSize {
		return errors.New("the configuration space is not complete")
	}
	p.journal, err = vfiouser.OpenJournal(p.journalFD)
	return err
}

// restoreClient gives the port its client with all that it has brought. After an
// error some of it may be there.
func (p *port) restoreClient(t *portTable) error {
	f := p.broker.files
	for _, r := range t.Regions {
		fd, ok := f.claim(r.File)
		if !ok && r.File != noFile {
			return fmt.Errorf("the memory at %#x was not left", r.Addr)
		}
		p.regions.regions = append(p.regions.regions, region{addr: r.Addr, size: r.Size, offset: r.Offset, flags: r.Flags, fd: fd})
	}
	for _, v := range t.Vectors {
		if int(v.Index) >= len(p.irqs.fds) || int(v.Vector) >= len(p.irqs.fds[v.Index]) {
			return fmt.Errorf("there is no interrupt %v %d", v.Index, v.Vector)
		}
		fd, ok := f.claim(v.File)
		if !ok {
			return fmt.Errorf("the eventfd of interrupt %v %d was not left", v.Index, v.Vector)
		}
		p.irqs.fds[v.Index][v.Vector] = fd
	}
	p.irqs.msix, p.irqs.mask = t.MSIX, t.Mask
	if t.Client == nil {
		return nil
	}
	fd, ok := f.claim(t.Client.Socket)
	if !ok {
		return errors.New("its socket was not left")
	}
	c, err := p.reopenClient(fd)
	if err != nil {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		f.close(fd)
		return err
	}
	c.negotiated = t.Client.Negotiated
	c.relays.limit = t.Client.Limit
	p.client = c
	return nil
}

// reopenClient makes the client of a connection that was left.
func (p *port) reopenClient(fd int) (*client, error) {
	if err := p.journal.Check(); err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), p.socket)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("it has no Unix socket")
	}
	c, err := openClient(p, socket, fd)
	if err != nil {
		conn.Close()
	}
	return c, err
}

// pause is how long guests had to wait; 0: nobody knows.
func (l *legacy) pause() time.Duration {
	if l.Began.IsZero() {
		return 0
	}
	return time.Since(l.Began)
}
