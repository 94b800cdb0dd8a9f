// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// session is an association with I/O queues on pollers of its own.
type session struct {
	*peer
	ns      namespace
	threads []*thread
	lanes   []*lane
	broken  chan error // why a connection has broken; the first counts
	alive   sync.WaitGroup
	end     context.CancelFunc // of the goroutine that keeps the controller alive
	procs   int                // GOMAXPROCS before it was raised; 0: it was not
}

// namespace is what is measured.
type namespace struct {
	nsid    uint32
	block   uint32 // bytes
	blocks  uint64
	maxSize uint64 // most bytes of a command
}

// thread is a poller with its connections.
type thread struct {
	p   *poller.Poller
	set *tcp.Set
}

// lane is an I/O queue, which carries out the I/Os of a worker. Its methods are
// for its poller.
type lane struct {
	t      *thread
	nsid   uint32
	block  uint32
	socket *host.Socket
	queue  *host.Queue
	ops    []op // by slot
	lost   bool // an I/O was lost, or could not be begun
}

// op is an I/O on its way.
type op struct {
	l       *lane
	command host.Command
	io      *bench.IO
}

// keepAlive is the Keep Alive Timeout of a session.
const keepAlive = 30 * time.Second

// newSession makes a session of an association, which is its own from now on, also
// after an error. ctx ends only the making.
func newSession(ctx context.Context, p *peer, nsid uint32, queues int) (*session, error) {
	x := &session{peer: p, broken: make(chan error, 1)}
	if err := x.open(ctx, nsid, queues); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

// open finds the namespace and connects the queues.
func (x *session) open(ctx context.Context, nsid uint32, queues int) error {
	id, err := x.IdentifyController(ctx)
	if err != nil {
		return err
	}
	if x.ns, err = x.identify(ctx, nsid, id); err != nil {
		return err
	}
	if err := x.countQueues(ctx, queues); err != nil {
		return err
	}
	n := min(queues, runtime.NumCPU())
	if need := n + 2; runtime.GOMAXPROCS(0) < need { // those that spin keep nobody from running
		x.procs = runtime.GOMAXPROCS(need)
	}
	for i := range n {
		if err := x.startThread(i); err != nil {
			return err
		}
	}
	for i := range queues {
		socket, err := x.ConnectQueue(ctx, x.addr, x.options, id, uint16(i+1))
		if err != nil {
			return err
		}
		l := &lane{t: x.threads[i%n], nsid: nsid, block: x.ns.block, socket: socket}
		x.lanes = append(x.lanes, l)
		if err := x.serve(l); err != nil {
			return err
		}
	}
	ctx, x.end = context.WithCancel(context.WithoutCancel(ctx))
	x.alive.Go(func() { x.keepAlive(ctx) })
	return nil
}

// identify asks what the namespace is.
func (x *session) identify(ctx context.Context, nsid uint32, id *nvme.IdentifyController) (namespace, error) {
	n := namespace{nsid: nsid, maxSize: host.MaxTransfer}
	var ns nvme.IdentifyNamespace
	e := nvme.SQE{NSID: nsid}
	nvme.Identify{CNS: nvme.CNSNamespace}.Put(&e)
	if _, err := x.Do(ctx, "Identify", e, nil, nvme.Bytes(&ns)); err != nil {
		return n, err
	}
	block, ok := ns.BlockSize()
	switch {
	case ns.NSZE == 0:
		return n, fault.Errorf(fault.NotFound, "", "", "there is no namespace %d", nsid)
	case !ok || block < bench.MinBlock:
		return n, fault.Errorf(fault.Unsupported, "", "", "namespace %d has blocks of %d bytes, less than %d", nsid, block, bench.MinBlock)
	case ns.NSZE > math.MaxInt64/uint64(block):
		return n, fault.Errorf(fault.Peer, "", "", "namespace %d has %d blocks of %d bytes", nsid, ns.NSZE, block)
	case ns.LBAF[ns.FormatIndex()].MS != 0:
		return n, fault.Errorf(fault.Unsupported, "", "", "namespace %d has %d bytes of metadata in each block", nsid, ns.LBAF[ns.FormatIndex()].MS)
	}
	n.block, n.blocks = block, ns.NSZE
	const minPage = 4096 // the unit of MDTS, CAP.MPSMIN 0
	if id.MDTS != 0 {
		n.maxSize = min(n.maxSize, minPage<<min(id.MDTS, 40))
	}
	return n, nil
}

// countQueues makes sure that there may be so many I/O queues.
func (x *session) countQueues(ctx context.Context, queues int) error {
	var e nvme.SQE
	want := uint16(queues - 1)
	nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(want, want))}.Put(&e)
	c, err := x.Do(ctx, "Set Features Number of Queues", e, nil, nil)
	if err != nil {
		return err
	}
	n := nvme.NumberOfQueues(c.DW0)
	if have := min(int(n.NSQ()), int(n.NCQ())) + 1; have < queues {
		return fault.Errorf(fault.Unsupported, "", "", "the controller has %d I/O queues for a host, not %d", have, queues)
	}
	return nil
}

// startThread starts a poller.
func (x *session) startThread(i int) error {
	p, err := poller.Start(poller.Config{Name: fmt.Sprintf("bench-%d", i), CPU: -1, Fence: -1, NoRing: true})
	if err != nil {
		return err
	}
	t := &thread{p: p}
	x.threads = append(x.threads, t)
	if do := p.Do(func() { t.set, err = tcp.NewSet(p) }); do != nil {
		return do
	}
	return err
}

// serve has a lane's poller serve it.
func (x *session) serve(l *lane) error {
	var err error
	do := l.t.p.Do(func() {
		l.queue, err = host.NewQueue(l.t.set, l.socket, func(err error) { x.report(l.failure(err, x.options.Timeout)) })
	})
	if do != nil {
		return do
	}
	return err
}

// failure says why a lane has broken.
func (l *lane) failure(err error, timeout time.Duration) error {
	switch {
	case errors.Is(err, tcp.ErrStalled):
		return fault.Errorf(fault.Timeout, "", "", "queue %d: a command was not answered within %v", l.socket.QID, timeout)
	case errors.Is(err, io.EOF):
		return fault.Errorf(fault.Peer, "", "", "queue %d: the controller has closed the connection", l.socket.QID)
	}
	return fault.Errorf(fault.Peer, "", "", "queue %d: the connection was lost: %w", l.socket.QID, err)
}

// report tells that something has broken.
func (x *session) report(err error) {
	select {
	case x.broken <- err:
	default:
	}
}

// keepAlive keeps the controller alive, and looks for commands that are not
// answered.
func (x *session) keepAlive(ctx context.Context) {
	send, sweep := time.NewTicker(keepAlive/3), time.NewTicker(max(x.options.Timeout/4, time.Millisecond))
	defer send.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			for _, t := range x.threads {
				_ = t.p.Post(func() { t.set.Sweep(x.options.Timeout) })
			}
		case <-send.C:
			if _, err := x.KeepAlive(ctx); err != nil && ctx.Err() == nil {
				x.report(err)
				x.abandon(err)
			}
		}
	}
}

// abandon breaks every connection: what is in flight is lost.
func (x *session) abandon(err error) {
	for _, l := range x.lanes {
		_ = l.t.p.Post(func() { l.queue.Close(err) })
	}
}

var errClosed = errors.New("the session is closed")

// Close ends the session. Nothing of a worker is in flight any more, or its
// queue has broken.
func (x *session) Close() {
	if x.end != nil {
		x.end()
		x.alive.Wait()
	}
	for _, l := range x.lanes {
		_ = l.t.p.Do(func() {
			if l.queue != nil {
				l.queue.Close(errClosed)
			}
		})
		l.socket.Close()
	}
	for _, t := range x.threads {
		if t.set != nil {
			_ = t.p.Do(t.set.Close)
		}
		t.p.Stop()
	}
	if x.procs > 0 {
		runtime.GOMAXPROCS(x.procs)
	}
	x.peer.Close()
}

// room is how many commands each queue can have in flight.
func (x *session) room() int {
	room := 0
	for i, l := range x.lanes {
		_ = l.t.p.Do(func() {
			if n := l.queue.Room(); i == 0 || n < room {
				room = n
			}
		})
	}
	return room
}

// lost reports whether a lane has broken while it was in use.
func (x *session) lost() bool {
	lost := false
	for _, l := range x.lanes {
		_ = l.t.p.Do(func() { lost = lost || l.lost })
	}
	return lost
}

// take makes ready for I/Os of so many slots.
func (l *lane) take(depth int) {
	l.ops = make([]op, depth)
	for i := range l.ops {
		l.ops[i].l, l.ops[i].command.Owner = l, &l.ops[i]
	}
}

// Now implements bench.Queue.
func (l *lane) Now() time.Duration {
	l.t.p.Tick()
	return l.t.p.Now()
}

// Start implements bench.Queue.
func (l *lane) Start(io *bench.IO) bool {
	o := &l.ops[io.Slot]
	o.io = io
	c := &o.command
	c.SQE = nvme.SQE{Opcode: uint8(nvme.IORead), NSID: l.nsid}
	if io.Write {
		c.SQE.Opcode = uint8(nvme.IOWrite)
	}
	nvme.RW{SLBA: io.LBA, NLB: uint16(uint32(len(io.Data))/l.block - 1)}.Put(&c.SQE)
	c.Data = io.Data
	if !l.queue.Start(c) {
		l.lost = true
		return false
	}
	return true
}

// Ended implements host.Owner.
func (o *op) Ended(c *host.Command) {
	if c.Lost {
		o.l.lost = true
		o.io.Lose()
		return
	}
	o.io.End(c.Status)
}
