// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/qpair"
)

const (
	helloLimit = 5 * time.Second // for MsgHello after the connect
	// maxLinks is how many connections to the link socket there may be: runtimes,
	// and those that wait for the one before them to be gone.
	maxLinks = 64
	// maxKept is how many files a runtime may leave in our care.
	maxKept = 2048
	// readRoomLimit is how long a runtime may leave its answers unread while it
	// asks for more.
	readRoomLimit = 5 * time.Second
)

// Why a runtime is given up.
var (
	errNotReading   = errors.New("it does not read its link")
	errNotAnswering = errors.New("it does not answer MsgUnmap")
)

// runtime is one leap-soc process from its MsgWelcome until it is gone: its
// link has ended and its fence pipe says that all its threads and rings have.
type runtime struct {
	broker  *Broker
	name    string
	pid     int
	epoch   uint64
	since   time.Time
	link    *qpair.Link // nil: it has ended before this program began
	out     *outbox
	fence   *os.File      // read end
	fenceFD int           // another descriptor of it, for the program that follows
	ended   chan struct{} // closed: the link has ended
	gone    chan struct{} // closed: gone

	process  int           // pidfd; noFD: none
	expected chan struct{} // a port waits for it
	pongs    chan uint64   // answers to pings

	mu     sync.Mutex
	reason error // why we ended the link, nil: the runtime did
}

// lost reports whether the link has ended.
func (rt *runtime) lost() bool {
	select {
	case <-rt.ended:
		return true
	default:
		return false
	}
}

// fail ends the link because of err.
func (rt *runtime) fail(err error) {
	rt.mu.Lock()
	if rt.reason == nil {
		rt.reason = err
	}
	rt.mu.Unlock()
	rt.endLink()
}

func (rt *runtime) closeProcess() {
	if rt.process >= 0 {
		unix.Close(rt.process)
	}
}

// closeFence has nobody wait for it any more.
func (rt *runtime) closeFence() {
	if rt.fence != nil { // else it is lost
		rt.fence.Close()
	}
}

func (rt *runtime) endLink() {
	if rt.link != nil {
		rt.link.Close()
	}
}

// why returns what ended the link.
func (rt *runtime) why() error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.reason
}

// acceptLinks serves the link socket until it is closed.
func (b *Broker) acceptLinks() {
	slots := b.linkSlots
	for {
		conn, err := b.links.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.log.Error("accepting a runtime", "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		b.wg.Go(func() {
			defer func() { <-slots }()
			b.serveLink(conn)
		})
	}
}

// serveLink serves one connection from its MsgHello until its runtime is gone.
func (b *Broker) serveLink(conn *net.UnixConn) {
	link := qpair.NewLink(conn)
	defer link.Close()
	stop := context.AfterFunc(b.ctx, func() { link.Close() })
	name, version, err := hello(conn, link)
	stop()
	if err != nil {
		b.log.Warn("link refused", "pid", peerPID(conn), "err", err)
		return
	}
	var rt *runtime
	var status unix.Errno
	var why error
	switch {
	case version != qpair.LinkVersion:
		status = unix.EPROTO
		why = fmt.Errorf("%w: install leap-wpt and leap-soc of the same release",
			&qpair.VersionError{What: "link protocol of the runtime", Got: version, Want: qpair.LinkVersion})
	case name == "" || api.CheckRuntime(name) != nil:
		status, why = unix.EINVAL, unix.EINVAL
	default:
		rt, status = b.admit(name, conn, link)
		why = status
	}
	if rt == nil {
		level := slog.LevelWarn
		if status == unix.EBUSY {
			level = slog.LevelDebug // a standby asks again and again
		}
		b.log.Log(context.Background(), level, "runtime refused", "runtime", name, "pid", peerPID(conn), "err", why)
		// If it has gone, nobody wants to know.
		_ = link.Send(&qpair.Message{Kind: qpair.MsgWelcome, Version: qpair.LinkVersion, Status: int32(status)}, nil)
		return
	}
	rt.serve()
}

// hello reads the first message: the name of the runtime, and the version of the
// protocol that it speaks.
func hello(conn *net.UnixConn, link *qpair.Link) (name string, version uint32, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(helloLimit)); err != nil {
		return "", 0, err
	}
	m, _, fds, err := link.Recv()
	qpair.CloseFDs(fds)
	if err != nil {
		return "", 0, err
	}
	if m.Kind != qpair.MsgHello {
		return "", 0, fmt.Errorf("message %d where MsgHello was expected", m.Kind)
	}
	return qpair.NameOf(&m.Name), m.Version, conn.SetReadDeadline(time.Time{})
}

// admit makes the runtime of this name. It waits for the one before it to be
// gone if its link has ended; otherwise the new one is refused with EBUSY.
func (b *Broker) admit(name string, conn *net.UnixConn, link *qpair.Link) (admitted *runtime, _ unix.Errno) {
	rt := &runtime{
		broker: b, name: name, pid: peerPID(conn), link: link, since: time.Now(),
		out: newOutbox(), ended: make(chan struct{}), gone: make(chan struct{}), fenceFD: noFD,
		process: peerProcess(conn), expected: make(chan struct{}, 1), pongs: make(chan uint64, 1),
	}
	defer func() {
		if admitted == nil {
			rt.closeProcess()
		}
	}()
	write, err := rt.makeFence()
	if err != nil {
		b.log.Error("making a fence", "err", err)
		return nil, unix.EMFILE
	}
	defer unix.Close(write)
	status := b.register(rt, write)
	if status == 0 {
		b.note()
		return rt, 0
	}
	rt.fence.Close()
	b.files.close(rt.fenceFD)
	return nil, status
}

// makeFence makes the fence pipe and returns its write end.
func (rt *runtime) makeFence() (write int, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	if err := unix.SetNonblock(pipe[0], true); err != nil {
		qpair.CloseFDs(pipe[:])
		return 0, err
	}
	rt.fence = os.NewFile(uintptr(pipe[0]), "fence")
	if rt.fenceFD, err = rt.broker.files.keepCopy(rt.fence); err != nil {
		rt.fence.Close()
		unix.Close(pipe[1])
		return 0, err
	}
	return pipe[1], nil
}

// register waits until no other runtime has the name, and takes it. The welcome,
// with the write end of the fence, is what the runtime is told first: nobody
// finds it before.
func (b *Broker) register(rt *runtime, fence int) unix.Errno {
	for {
		b.linkMu.Lock()
		before := b.runtimes[rt.name]
		if b.ctx.Err() != nil {
			b.linkMu.Unlock()
			return unix.ESHUTDOWN
		}
		if before == nil {
			defer b.linkMu.Unlock()
			b.epoch++
			rt.epoch = b.epoch
			// From here on only the runtime has the write end: the message's copy is
			// closed when it has been sent.
			m := qpair.Message{Kind: qpair.MsgWelcome, Version: qpair.LinkVersion, Gen: rt.epoch}
			if err := rt.out.add(m, nil, fence); err != nil {
				return unix.EMFILE
			}
			b.runtimes[rt.name] = rt
			return 0
		}
		b.linkMu.Unlock()
		if !before.lost() {
			return unix.EBUSY
		}
		select {
		case <-before.gone:
		case <-b.ctx.Done():
			return unix.ESHUTDOWN
		}
	}
}

// unregister frees the name.
func (b *Broker) unregister(rt *runtime) {
	b.linkMu.Lock()
	defer b.linkMu.Unlock()
	delete(b.runtimes, rt.name)
}

// runtime returns the runtime of this name whose link is alive, or nil.
func (b *Broker) runtime(name string) *runtime {
	b.linkMu.Lock()
	defer b.linkMu.Unlock()
	if rt := b.runtimes[name]; rt != nil && !rt.lost() {
		return rt
	}
	return nil
}

// serve serves the runtime until it is gone, or leap-wpt ends.
func (rt *runtime) serve() {
	b := rt.broker
	log := b.log.With("runtime", rt.name, "pid", rt.pid, "epoch", rt.epoch)
	log.Info("runtime connected")
	b.events.Publish(api.Event{Kind: api.KindRuntime, Name: rt.name, State: "connected"})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := rt.out.write(rt.link); err != nil {
			rt.fail(err)
		}
	})
	fenced := false
	wg.Go(func() { fenced = rt.watchFence() })
	wg.Go(rt.watch)
	for _, p := range b.allPorts() {
		p.reconcile()
	}
	err := rt.read()

	rt.out.close()
	rt.fail(err)
	close(rt.ended)
	why := rt.why()
	switch {
	case errors.Is(why, net.ErrClosed), errors.Is(why, unix.EPIPE), why == errLeaving:
		log.Info("runtime disconnected")
	default:
		log.Warn("runtime disconnected", "err", why)
	}
	if why != errLeaving {
		for _, p := range b.allPorts() {
			p.abandoned(rt)
		}
	}
	wg.Wait()
	rt.end(fenced, log)
}

// await waits until a runtime is gone whose link has ended.
func (rt *runtime) await() {
	log := rt.broker.log.With("runtime", rt.name, "pid", rt.pid, "epoch", rt.epoch)
	rt.end(rt.watchFence(), log)
}

// end is the end of a runtime, which is gone if it was fenced.
func (rt *runtime) end(fenced bool, log *slog.Logger) {
	rt.fence.Close()
	rt.closeProcess()
	if !fenced {
		return // leap-wpt ends: nothing more is granted to anyone
	}
	b := rt.broker
	b.unregister(rt)
	b.note()
	b.files.close(rt.fenceFD)
	close(rt.gone)
	log.Info("runtime gone")
	b.events.Publish(api.Event{Kind: api.KindRuntime, Name: rt.name, State: "gone"})
	for _, p := range b.allPorts() {
		p.released(rt)
	}
}

// watchFence waits for the end of the fence pipe and then ends the link. It
// reports false if leap-wpt closed the pipe. Nothing is ever written to it;
// what is, is thrown away.
func (rt *runtime) watchFence() bool {
	var b [64]byte
	for {
		if _, err := rt.fence.Read(b[:]); err != nil {
			rt.endLink()
			return !errors.Is(err, os.ErrClosed)
		}
	}
}

// read handles messages until the link ends, and says why it has.
func (rt *runtime) read() error {
	for {
		if !rt.out.waitRoom(readRoomLimit) {
			return errNotReading
		}
		m, data, fds, err := rt.link.Recv()
		if err != nil {
			return err
		}
		err = rt.receive(&m, data, fds)
		qpair.CloseFDs(fds)
		if err != nil {
			return err
		}
	}
}

// receive handles one message. data and fds stay the caller's. An error is a
// runtime that breaks the protocol. What it says of a port that it does not
// hold (any more) is ignored.
func (rt *runtime) receive(m *qpair.Message, data []byte, fds []int) error {
	if len(fds) > 0 && m.Kind != qpair.MsgKeep || len(data) > 0 && m.Kind != qpair.MsgRelayWrite {
		return fmt.Errorf("message %d with %d bytes of data and %d fds", m.Kind, len(data), len(fds))
	}
	switch m.Kind {
	case qpair.MsgKeep, qpair.MsgFetch, qpair.MsgDrop:
		return rt.care(m, fds)
	case qpair.MsgPong:
		rt.pong(m.ID)
		return nil
	case qpair.MsgDetached, qpair.MsgUnmapped, qpair.MsgStatus, qpair.MsgRelayRead, qpair.MsgRelayWrite:
	default:
		return fmt.Errorf("unexpected message %d", m.Kind)
	}
	p := rt.broker.portByID(m.Port)
	relay := m.Kind == qpair.MsgRelayRead || m.Kind == qpair.MsgRelayWrite
	switch {
	case p == nil && relay:
		return rt.out.add(qpair.Message{Kind: qpair.MsgRelayed, Port: m.Port, ID: m.ID, Status: int32(unix.EIO)}, nil)
	case p == nil:
		return nil
	case relay:
		p.startRelay(rt, m, append([]byte(nil), data...))
		return nil
	case m.Kind == qpair.MsgDetached:
		return p.detached(rt)
	case m.Kind == qpair.MsgUnmapped:
		p.unmapped(rt, m.ID)
		return nil
	}
	p.statusChanged(rt)
	return nil
}

// relayed answers a MsgRelayRead or MsgRelayWrite.
func (rt *runtime) relayed(r *relay, err error) {
	m := qpair.Message{Kind: qpair.MsgRelayed, Port: r.port, ID: r.id, Status: errnoOf(err)}
	var data []byte
	if err == nil && !r.write {
		data = r.data
	}
	// Without fds there is nothing to fail.
	_ = rt.out.add(m, data)
}

// care is MsgKeep, MsgFetch or MsgDrop.
func (rt *runtime) care(m *qpair.Message, fds []int) error {
	b, name := rt.broker, qpair.NameOf(&m.Name)
	reply := qpair.Message{Kind: qpair.MsgKept, ID: m.ID, Name: m.Name}
	switch m.Kind {
	case qpair.MsgDrop:
		fd := b.kept.drop(rt.name, name)
		b.note()
		b.files.close(fd)
		return nil
	case qpair.MsgKeep:
		if len(fds) != 1 {
			return fmt.Errorf("%d fds to keep as %q", len(fds), name)
		}
		old, err := b.kept.keep(rt.name, name, fds[0])
		b.note()
		b.files.close(old)
		reply.Status = errnoOf(err)
		return rt.out.add(reply, nil)
	}
	fd, err := b.kept.fetch(rt.name, name)
	if err != nil {
		reply.Status = errnoOf(err)
		return rt.out.add(reply, nil)
	}
	defer unix.Close(fd)
	return rt.out.add(reply, nil, fd)
}
