// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// hostSide is a host over NVMe/TCP: an association, a queue on a poller, and a
// goroutine that keeps both, connecting again when they break. What has had no
// answer it sends again, as Linux does.
type hostSide struct {
	s      *soak
	name   string
	url    string // of the listener, with the subsystem
	digest bool
	disks  []*disk
	depth  int
	mu     sync.Mutex // held by who takes a step
	cancel context.CancelFunc
	wg     sync.WaitGroup
	up     atomic.Bool

	// For the poller while there is one, else for the goroutine.
	rng     *rand.Rand
	queue   *host.Queue
	flights map[*hostFlight]bool
	unsent  []*hostFlight // that had no answer on the connection before
	stopped bool
	looked  time.Time // for commands that are not completed
}

// hostFlight is a command of a host that is under way.
type hostFlight struct {
	*access
	h       *hostSide
	command host.Command
	sent    time.Time
}

// come begins the host.
func (h *hostSide) come() {
	ctx, cancel := context.WithCancel(h.s.ctx)
	h.cancel = cancel
	h.wg.Go(func() {
		if err := h.keep(ctx); err != nil {
			h.s.fail("host %s: %v", h.name, err)
		}
	})
}

// leave ends it, with commands in flight.
func (h *hostSide) leave() {
	h.cancel()
	h.wg.Wait()
	h.cancel = nil
}

// keep has associations, one after the other.
func (h *hostSide) keep(ctx context.Context) error {
	p, err := poller.Start(poller.Config{Name: "host-" + h.name, CPU: -1, Fence: -1, NoRing: true})
	if err != nil {
		return err
	}
	defer p.Stop()
	var set *tcp.Set
	if do := p.Do(func() { set, err = tcp.NewSet(p) }); do != nil || err != nil {
		return errors.Join(do, err)
	}
	defer func() { _ = p.Do(set.Close) }()
	for away := time.Now(); ctx.Err() == nil; {
		err := h.associate(ctx, p, set, func() { away = time.Time{} })
		if away.IsZero() {
			away = time.Now()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case time.Since(away) > patience:
			return fmt.Errorf("not connected for %v: %w", patience, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// associate has an association until it breaks, or ctx ends.
func (h *hostSide) associate(ctx context.Context, p *poller.Poller, set *tcp.Set, connected func()) error {
	addr, err := fabrics.ParseAddress(h.url)
	if err != nil {
		return err
	}
	o := host.Options{HostNQN: "nqn.2026-01.org.example:" + h.name, HeaderDigest: h.digest, DataDigest: h.digest, KeepAlive: patience, Timeout: patience}
	o.HostID[0] = h.name[len(h.name)-1]
	a, err := host.Connect(ctx, addr, o)
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.Enable(ctx); err != nil {
		return err
	}
	id, err := a.IdentifyController(ctx)
	if err != nil {
		return err
	}
	socket, err := a.ConnectQueue(ctx, addr, o, id, 1)
	if err != nil {
		return err
	}
	defer socket.Close()
	broken := make(chan error, 1)
	do := p.Do(func() {
		h.stopped = false
		h.queue, err = host.NewQueue(set, socket, func(err error) { broken <- err })
	})
	if do != nil || err != nil {
		return errors.Join(do, err)
	}
	connected()
	h.up.Store(true)
	defer h.up.Store(false)
	defer func() {
		_ = p.Do(func() {
			h.stopped = true
			h.queue.Close(errors.New("the host leaves"))
		})
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		if err := p.Do(h.pump); err != nil {
			return err
		}
		if n%512 == 511 {
			if _, err := a.KeepAlive(ctx); err != nil {
				return err
			}
		}
		select {
		case err := <-broken:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// pump keeps commands in flight.
func (h *hostSide) pump() {
	if time.Since(h.looked) > time.Second {
		h.looked = time.Now()
		for f := range h.flights {
			if time.Since(f.sent) > patience {
				h.s.fail("host %s: %v has not ended after %v", h.name, f.access, time.Since(f.sent))
			}
		}
	}
	for !h.stopped && len(h.flights) < h.depth && h.queue.Room() > 0 {
		var f *hostFlight
		if n := len(h.unsent); n > 0 {
			f, h.unsent = h.unsent[n-1], h.unsent[:n-1]
			if h.rng.IntN(4) == 0 {
				f.access.lost() // it is given up: nothing of the association before goes on
				continue
			}
		} else if f = h.choose(); f == nil {
			return
		}
		h.flights[f] = true
		f.sent = time.Now()
		if !h.queue.Start(&f.command) {
			delete(h.flights, f)
			h.unsent = append(h.unsent, f)
			return
		}
	}
}

// choose makes a command, nil if there is none to be had.
func (h *hostSide) choose() *hostFlight {
	slot := h.rng.IntN(len(h.disks))
	a := h.disks[slot].choose(h.rng, 64<<10)
	if a == nil {
		return nil
	}
	f := &hostFlight{access: a, h: h}
	c := &f.command
	c.Owner, c.Data, c.SQE.NSID = f, a.data, uint32(slot+1)
	op := nvme.IORead
	switch a.kind {
	case write:
		op = nvme.IOWrite
	case compare:
		op = nvme.IOCompare
	case writeZeroes:
		op = nvme.IOWriteZeroes
	case flush:
		c.SQE.Opcode = uint8(nvme.IOFlush)
		return f
	case deallocate:
		nvme.DatasetManagement{AD: true}.Put(&c.SQE)
		c.Data = nvme.SliceBytes([]nvme.DSMRange{{SLBA: a.lba, NLB: uint32(a.blocks)}})
		return f
	}
	c.SQE.Opcode = uint8(op)
	nvme.RW{SLBA: a.lba, NLB: uint16(a.blocks - 1), FUA: a.fua}.Put(&c.SQE)
	return f
}

// Ended implements host.Owner.
func (f *hostFlight) Ended(c *host.Command) {
	h := f.h
	delete(h.flights, f)
	if c.Lost {
		h.unsent = append(h.unsent, f)
		return
	}
	h.s.counts.ended(f.kind, time.Since(f.begun), false)
	if c.Status.Code() != nvme.StatusSuccess {
		h.s.fail("host %s: %v: %v", h.name, f.access, c.Status)
		return
	}
	if err := f.access.done(); err != nil {
		h.s.fail("host %s: %v", h.name, err)
	}
}
