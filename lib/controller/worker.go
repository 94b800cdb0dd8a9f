// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"fmt"
	"math/bits"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// Worker is a controller's part on one poller: it executes the I/O commands of
// the queues served there. All methods are called on that poller.
type Worker struct {
	c       *Controller
	p       *poller.Poller
	ns      []*nsQueue // by NSID; nil where there is none
	open    int        // queues that are not closed, those about to go included
	closed  bool
	scratch scratch
	pairs   pairs
}

// nsQueue is a namespace as one worker reaches it. What it says of the volume
// is never changed: one that has changed gets a new nsQueue (Worker.renew),
// and commands in execution keep the one they have begun with.
type nsQueue struct {
	w        *Worker
	ns       *Namespace
	info     *volume.Info
	shift    uint // block size, base-two logarithm
	blocks   uint64
	readOnly bool
	queue    volume.Queue
	users    *int // nsQueues that queue and stats are for
	stats    *stats.Set
	writes   writes
	inflight int
	gone     bool     // no new commands; closed when inflight is 0
	closed   bool     // by now
	drained  []func() // told when this one and those before it are closed
	earlier  *nsQueue // before it, of the same volume
}

// release ends a command's use of the namespace.
func (n *nsQueue) release() {
	n.inflight--
	if n.gone && n.inflight == 0 {
		n.close()
	}
}

// retire takes no new commands, and closes when the last one has ended.
func (n *nsQueue) retire() {
	n.gone = true
	if n.inflight == 0 {
		n.close()
	}
}

func (n *nsQueue) close() {
	n.closed = true
	n.ns.fence.leave(n)
	if *n.users--; *n.users == 0 {
		n.queue.Close()
		n.stats.End()
	}
	if n.w.ns[n.ns.NSID] == n {
		n.w.ns[n.ns.NSID] = nil
	}
	if open := n.earlier.firstOpen(); open != nil {
		open.drained = append(open.drained, n.drained...)
	} else {
		for _, told := range n.drained {
			told()
		}
	}
	n.w.open--
	n.w.leave()
}

// firstOpen returns the latest of n and those before it that is not closed.
func (n *nsQueue) firstOpen() *nsQueue {
	for n != nil && n.closed {
		n = n.earlier
	}
	return n
}

// Worker opens the controller's namespaces on poller p and returns the worker
// of that poller. It is called on p.
func (c *Controller) Worker(p *poller.Poller) (*Worker, error) {
	w := &Worker{c: c, p: p}
	w.scratch.w, w.pairs.w = w, w
	c.mu.Lock()
	c.workers = append(c.workers, w)
	all := c.sub.Namespaces()
	c.mu.Unlock()
	for _, ns := range all {
		if err := w.show(ns); err != nil {
			w.Close()
			return nil, err
		}
	}
	return w, nil
}

// Close ends the worker. None of the transport's commands is in execution; a
// flush of the controller's own may be, and is waited for.
func (w *Worker) Close() {
	if w.closed {
		return
	}
	w.closed = true
	for _, n := range w.ns {
		if n != nil {
			n.retire()
		}
	}
	w.leave()
}

// leave ends a closed worker when its queues are closed. Until then changes of
// the subsystem concern it.
func (w *Worker) leave() {
	if w.closed && w.open == 0 {
		w.scratch.unmap()
		w.c.leave(w)
	}
}

// show makes ns reachable for this worker's commands.
func (w *Worker) show(ns *Namespace) error {
	q, err := ns.Volume.Open(w.p)
	if err != nil {
		return fmt.Errorf("opening volume %s on poller %s: %w", ns.Name, w.p.Name(), err)
	}
	for uint32(len(w.ns)) <= ns.NSID {
		w.ns = append(w.ns, nil)
	}
	w.enter(&nsQueue{ns: ns, queue: q, stats: stats.NewSet(w.c.stats, ns.Stats, ns.VolumeStats), users: new(int)})
	return nil
}

// enter has n, whose namespace, queue and stats are set, be the way to its namespace.
func (w *Worker) enter(n *nsQueue) {
	info := n.ns.Volume.Info()
	n.w, n.info = w, info
	n.readOnly = n.ns.writeProtected()
	n.shift, n.blocks = uint(bits.TrailingZeros32(info.Block)), info.Size/uint64(info.Block)
	*n.users++
	w.open++
	n.ns.fence.enter(n)
	w.ns[n.ns.NSID] = n
}

// at returns the way to namespace nsid, or nil.
func (w *Worker) at(nsid uint32) *nsQueue {
	if nsid >= uint32(len(w.ns)) {
		return nil
	}
	return w.ns[nsid]
}

// refresh follows a change of namespace nsid; done is called when the worker
// no longer uses what was there before. If the volume cannot be opened, the
// namespace answers Namespace Not Ready.
func (w *Worker) refresh(nsid uint32, done func()) {
	now := w.c.sub.Namespace(nsid)
	if n := w.at(nsid); n != nil && n.ns != now {
		w.ns[nsid] = nil
		n.drained = append(n.drained, done)
		n.retire()
		done = func() {}
	}
	if now != nil && !w.closed && w.at(nsid) == nil {
		if err := w.show(now); err != nil {
			w.c.log.Error("namespace cannot be opened", "nsid", nsid, "err", err)
		}
	}
	done()
}

// renew follows a change of namespace nsid itself, or of its volume; done is
// called when the commands begun before have ended. The queue stays open, so
// that nothing can fail.
func (w *Worker) renew(nsid uint32, done func()) {
	n := w.at(nsid)
	if n == nil {
		done()
		return
	}
	n.drained = append(n.drained, done)
	if !n.gone {
		next := &nsQueue{ns: n.ns, queue: n.queue, stats: n.stats, users: n.users, earlier: n}
		w.enter(next)
		n.retire()
		next.earlier = n.firstOpen()
	}
}

// Execute runs an I/O command. The command's Carrier is told the end, possibly
// before Execute returns. A transport gives it both halves of a fused pair in
// one turn of the poller: a first half that is then alone is ended, with
// Aborted due to Missing Fused Command.
func (w *Worker) Execute(c *Command) {
	c.began = w.p.Now()
	w.execute(c)
}

// execute is Execute for a command whose beginning is known, or that is not
// counted.
func (w *Worker) execute(c *Command) {
	c.begin()
	c.worker = w
	op := &ioCommands[c.SQE.Opcode]
	c.kind = op.kind
	switch {
	case (c.SQE.Fuse() != nvme.FuseNone || len(w.pairs.first) > 0) && w.pairs.take(c):
		// half of a pair
	case op.execute == nil:
		c.finish(dnr(nvme.StatusInvalidOpcode))
	case !knownPSDT(&c.SQE):
		c.finish(dnr(nvme.StatusInvalidField))
	case c.SQE.NSID == nvme.NSIDBroadcast && op.broadcast:
		op.execute(w, c)
	default:
		if st := w.use(c, c.SQE.NSID); st != nvme.StatusSuccess {
			c.finish(st)
			return
		}
		if op.changes && c.ns.readOnly {
			c.finish(dnr(nvme.StatusNamespaceWriteProtected))
			return
		}
		op.execute(w, c)
	}
}

// knownPSDT reports whether a command says how its data is described; which
// ways a transport understands it says itself.
func knownPSDT(e *nvme.SQE) bool { return e.PSDT() <= nvme.PSDTSGLMPTRSGL }

// reach returns namespace nsid as the worker reaches it, or nil and why not.
func (w *Worker) reach(nsid uint32) (*nsQueue, nvme.Status) {
	n := w.at(nsid)
	if n == nil || n.gone {
		return nil, w.missing(nsid)
	}
	if n.ns.formatting.Load() != 0 {
		return nil, nvme.StatusFormatInProgress
	}
	return n, nvme.StatusSuccess
}

// use has the command run on namespace nsid, if the worker reaches that.
func (w *Worker) use(c *Command, nsid uint32) nvme.Status {
	n, st := w.reach(nsid)
	if st != nvme.StatusSuccess {
		return st
	}
	c.ns = n
	n.inflight++
	if c.began != 0 {
		n.stats.Begin()
	}
	return nvme.StatusSuccess
}

// missing returns the status for a namespace this worker cannot reach.
func (w *Worker) missing(nsid uint32) nvme.Status {
	if st := w.c.active(nsid); st != nvme.StatusSuccess {
		return dnr(st)
	}
	return nvme.StatusNamespaceNotReady
}

// flusher is a Flush of every namespace that no host has asked for.
type flusher struct {
	Command
	done func(nvme.Status)
}

// Data implements Carrier: a Flush has none.
func (f *flusher) Data(uint32, Direction) (bool, nvme.Status) { return true, nvme.StatusInternalError }

// Complete implements Carrier.
func (f *flusher) Complete() { f.done(f.Status) }

// flushAll flushes every namespace; done is called on the worker's poller.
func (w *Worker) flushAll(done func(nvme.Status)) {
	f := &flusher{done: done}
	f.Init(f)
	f.SQE.Opcode, f.SQE.NSID = uint8(nvme.IOFlush), nvme.NSIDBroadcast
	w.execute(&f.Command)
}
