// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/stats"
)

// Model and firmware revision, as Identify Controller reports them.
const (
	Model    = "LeapIO Virtual NVMe Drive"
	Firmware = "1.0"
)

// Config describes a controller.
type Config struct {
	// Poller executes the admin commands.
	Poller *poller.Poller
	// CNTLID asks for a controller identifier, as after a restart; negative:
	// any free one.
	CNTLID int
	// VS and MaxQueues are what the transport offers; MaxQueues counts I/O
	// queue pairs.
	VS        nvme.VS
	MaxQueues int
	// SGLS is how the transport's commands may describe data by SGLs (Identify
	// Controller SGLS); 0: by PRPs only.
	SGLS uint32
	// KeepAliveExpired is called on the admin poller when the host has let its
	// Keep Alive Timeout pass (NVMe Base 3.9): the transport ends the
	// association. nil: there is no keep alive, as on PCI.
	KeepAliveExpired func()
	// KeepAlive is the timeout in milliseconds to begin with; 0: none.
	KeepAlive uint32
	// Queues manages queues for transports whose queues are made by admin
	// commands (PCI); nil where they are made by Connect.
	Queues Queues
	// Aborter finds I/O commands to abort; nil: nothing does.
	Aborter Aborter
	// Fabrics are the fields of Identify Controller that only controllers over
	// fabrics have; zero on PCI.
	Fabrics Fabrics
	// Life keeps what the drive counts; nil: the controller begins at zero.
	Life Life
	// PCIVendor and PCISubsystemVendor are the function's ids; 0 on fabrics.
	PCIVendor, PCISubsystemVendor uint16
	Log                           *slog.Logger
}

// Fabrics are the fields of Identify Controller by which a transport over
// fabrics says what it takes (NVMe Base, "Identify Controller Data Structure").
type Fabrics struct {
	IOCCSZ uint32 // I/O queue command capsule, in units of 16 bytes
	IORCSZ uint32 // I/O queue response capsule, in units of 16 bytes
	ICDOFF uint16 // in-capsule data offset, in units of 16 bytes
	MSDBD  uint8  // SGL data block descriptors per command
	OFCS   uint16 // optional Fabrics commands
	MAXCMD uint16 // outstanding commands per I/O queue
}

// Queues manages the I/O queues of a transport in host memory. Methods are
// called on the admin poller and answer there, possibly later: a queue may
// live on another poller, and deleting one waits for its commands.
type Queues interface {
	CreateCQ(cmd nvme.CreateCQ, addr uint64, done func(nvme.Status))
	CreateSQ(cmd nvme.CreateSQ, addr uint64, done func(nvme.Status))
	DeleteCQ(qid uint16, done func(nvme.Status))
	DeleteSQ(qid uint16, done func(nvme.Status))
	// Shadow makes the pages at these guest addresses the shadow doorbells and
	// event indexes (Doorbell Buffer Config).
	Shadow(doorbells, events uint64, done func(nvme.Status))
	// CanShadow reports whether Doorbell Buffer Config is offered.
	CanShadow() bool
}

// Controller is one host's view of a subsystem, from enable to reset. Admin,
// State and Close are called on the admin poller.
type Controller struct {
	sub    *Subsystem
	cfg    Config
	p      *poller.Poller
	log    *slog.Logger
	stats  *stats.Group  // of all namespaces, since it was enabled
	born   Counts        // of the drive, before it was enabled
	cntlid atomic.Uint32 // changed by Subsystem.allocate and rename only

	// writeThrough: the host has disabled the volatile write cache.
	writeThrough atomic.Bool
	// copyFormats are the formats of Copy that the host has enabled (Host
	// Behavior Support CDFE).
	copyFormats atomic.Uint32
	coalescing  coalescing

	mu      sync.Mutex
	workers []*Worker
	ended   bool // Close was called

	// Owned by the admin poller.
	features  features
	events    events
	errors    errorRing
	keepAlive keepAlive
	queueMade bool   // an I/O queue has been created: Number of Queues is settled
	last      state  // as State saw it last
	payload   []byte // of last
	closed    bool
}

// New returns a controller of the subsystem, enabled, with default features.
// It is called on the admin poller.
func (s *Subsystem) New(cfg Config) (*Controller, error) {
	if cfg.Life == nil {
		cfg.Life = noLife{}
	}
	c := &Controller{sub: s, cfg: cfg, p: cfg.Poller, log: cfg.Log, stats: stats.NewGroup(), born: cfg.Life.Load()}
	c.errors.before = c.born.Errors
	c.features.reset(cfg.MaxQueues)
	if err := s.allocate(c, cfg.CNTLID); err != nil {
		return nil, err
	}
	c.know()
	if cfg.KeepAliveExpired != nil {
		c.features.values[nvme.FeatKeepAliveTimer] = cfg.KeepAlive
		c.startKeepAlive(cfg.KeepAlive)
	}
	return c, nil
}

// CNTLID returns the controller identifier. It changes with Restore only.
func (c *Controller) CNTLID() uint16 { return uint16(c.cntlid.Load()) }

// Subsystem returns the subsystem the controller belongs to.
func (c *Controller) Subsystem() *Subsystem { return c.sub }

// Close ends the controller. Nothing but Asynchronous Event Requests is in
// execution; they end as if their queue were deleted, which the transport does
// not show the host after a reset (NVMe Base 3.7.2). Workers may end before or
// after; the subsystem forgets the controller when all have, since until then
// they use its volumes. Close is called on the admin poller; a second one does
// nothing.
func (c *Controller) Close() {
	if c.closed {
		return
	}
	c.closed = true
	c.lived()
	c.keepAlive.stop()
	for len(c.events.parked) > 0 {
		c.unpark(func(cmd *Command) { cmd.finish(nvme.StatusAbortedSQDeletion) })
	}
	c.mu.Lock()
	c.ended = true
	last := len(c.workers) == 0
	c.mu.Unlock()
	if last {
		c.sub.forget(c)
	}
}

// leave takes an ended worker from the controller.
func (c *Controller) leave(w *Worker) {
	c.mu.Lock()
	i := slices.Index(c.workers, w)
	if i < 0 {
		c.mu.Unlock()
		return
	}
	// A new slice: the old one may be being walked.
	c.workers = append(c.workers[:i:i], c.workers[i+1:]...)
	last := c.ended && len(c.workers) == 0
	c.mu.Unlock()
	if last {
		c.sub.forget(c)
	}
}

// Shutdown makes what the host has written survive power loss (CC.SHN, NVMe
// Base 3.6), through worker w, and then calls done. It is called on the admin
// poller, which is w's. An error is logged: the host is not told of one.
func (c *Controller) Shutdown(w *Worker, done func()) {
	w.flushAll(func(st nvme.Status) {
		if st != nvme.StatusSuccess {
			c.log.Error("flush at shutdown failed", "status", st)
		}
		done()
	})
}

// flush flushes every namespace through one of the workers, which reaches what
// all of them have written. then is called on the admin poller.
func (c *Controller) flush(then func(nvme.Status)) {
	c.mu.Lock()
	var w *Worker
	if len(c.workers) > 0 {
		w = c.workers[0]
	}
	c.mu.Unlock()
	if w == nil || w.p.Post(func() {
		w.flushAll(func(st nvme.Status) { _ = c.p.Post(func() { then(st) }) })
	}) != nil {
		then(nvme.StatusSuccess) // no I/O queue has been served yet
	}
}

// present returns the workers there are.
func (c *Controller) present() []*Worker {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.workers // leave makes a new slice
}
