// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// guestSpec is how a guest uses its drive.
type guestSpec struct {
	port      string
	doorbells string // trap or map
	shadow    bool
	irq       string // poll, msix or intx
	unshared  bool   // its memory is not shared with the daemons
	high      bool   // it has memory above 4 GiB
	queues    int
	depth     int
	disks     []string // namespace 1 and up
	slow      bool     // its latencies are no pauses of a daemon
}

// guest is a machine that comes and goes. Steps on it are taken by one goroutine
// at a time.
type guest struct {
	s     *soak
	spec  guestSpec
	disks []*disk
	mu    sync.Mutex // held by who takes a step
	rng   *rand.Rand // for who has mu

	n      *vfiousertest.NVMe // nil: the machine is off
	lanes  []*lane
	lost   []*flight // of a machine that went without a word, until the next one is there
	halted atomic.Bool
	wg     sync.WaitGroup
	events atomic.Int64 // Namespace Attribute Changed
	lives  atomic.Int64 // rises when it begins to use its drive, and when it has ended
}

// isOn reports whether the guest uses its drive.
func (g *guest) isOn() bool { return g.lives.Load()%2 == 1 }

func (g *guest) fail(format string, args ...any) {
	g.s.fail("guest %s: %s", g.spec.port, fmt.Sprintf(format, args...))
}

// come switches the machine on: its drive is in use then.
func (g *guest) come() error {
	options := vfiousertest.MemoryOptions{Low: 24 << 20}
	if g.spec.high {
		options.High = 16 << 20
	}
	if g.spec.unshared {
		options.Private = g.rng.IntN(2) == 0
		options.Copied = !options.Private
	}
	mem, err := vfiousertest.NewMemory(options)
	if err != nil {
		return err
	}
	// QEMU waits 5 s, but not on a machine that has ten other things to do.
	c, err := vfiousertest.Dial(g.s.paths.PortSocket(g.spec.port), mem, vfiousertest.Options{Timeout: patience})
	if err != nil {
		mem.Close()
		return err
	}
	if g.n, err = vfiousertest.NewNVMe(c); err != nil {
		return err
	}
	return g.begin()
}

// begin enables the controller and has lanes use it. I/O of the time before has
// ended, since the controller is ready.
func (g *guest) begin() error {
	var err error
	switch g.spec.irq {
	case "msix":
		err = g.n.UseMSIX()
	case "intx":
		err = g.n.UseINTx()
	}
	if err != nil {
		return err
	}
	if err := g.n.Enable(16); err != nil {
		return fmt.Errorf("enabling: %w", err)
	}
	for _, f := range g.lost {
		f.access.lost()
	}
	g.lost = nil
	if g.spec.shadow {
		if err := g.n.EnableShadowDoorbells(); err != nil {
			return err
		}
	}
	event := make(chan nvme.CQE, 1)
	if _, err := g.n.SetFeatures(nvme.FeatAsyncEventConfig, nvme.NoticeNamespaceAttribute); err != nil {
		return err
	}
	if err := ask(g.n, event); err != nil {
		return err
	}
	g.lives.Add(1)
	g.halted.Store(false)
	for id := 1; id <= g.spec.queues; id++ {
		vector := vfiousertest.Polled
		if g.spec.irq != "poll" {
			vector = id
		}
		pair, err := g.n.CreatePair(uint16(id), g.spec.depth+1, vector)
		if err != nil {
			return err
		}
		l := &lane{
			g: g, n: g.n, pair: pair, strict: g.spec.irq == "msix", depth: 1 + g.rng.IntN(g.spec.depth), largest: 64 << 10, halted: &g.halted,
			rng: rand.New(rand.NewPCG(g.rng.Uint64(), uint64(id))), flights: make(map[*flight]bool), last: time.Now(),
		}
		g.lanes = append(g.lanes, l)
		g.wg.Go(l.run)
	}
	n, seed := g.n, g.rng.Uint64()
	g.wg.Go(func() {
		if err := g.administer(n, event, rand.New(rand.NewPCG(seed, 9))); err != nil {
			g.fail("admin queue: %v", err)
		}
	})
	return nil
}

// ask asks for the next event.
func ask(n *vfiousertest.NVMe, event chan<- nvme.CQE) error {
	return n.Admin().Submit(nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, func(e nvme.CQE) { event <- e })
}

// administer executes admin commands, makes and deletes queues, and takes events,
// until the lanes are halted.
func (g *guest) administer(n *vfiousertest.NVMe, event chan nvme.CQE, rng *rand.Rand) error {
	for !g.halted.Load() {
		select {
		case e := <-event:
			if nvme.AsyncEvent(e.DW0) != nvme.EventNamespaceAttribute || e.StatusField().Code() != nvme.StatusSuccess {
				return fmt.Errorf("event %v, %v", nvme.AsyncEvent(e.DW0), e.StatusField())
			}
			log := nvme.SQE{NSID: nvme.NSIDBroadcast}
			nvme.GetLogPage{LID: nvme.LogChangedNamespaces, NUMD: 1023}.Put(&log)
			if _, err := n.AdminRead(log, 4096); err != nil {
				return err
			}
			g.events.Add(1)
			if err := ask(n, event); err != nil {
				return err
			}
		default:
		}
		if err := g.adminStep(n, rng); err != nil {
			return err
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
	return nil
}

func (g *guest) adminStep(n *vfiousertest.NVMe, rng *rand.Rand) error {
	switch rng.IntN(5) {
	case 0:
		_, err := n.Identify(nvme.CNSController, 0)
		return err
	case 1:
		smart := nvme.SQE{NSID: nvme.NSIDBroadcast}
		nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}.Put(&smart)
		_, err := n.AdminRead(smart, 512)
		return err
	case 2:
		want := uint32(rng.IntN(8))
		if _, err := n.SetFeatures(nvme.FeatArbitration, want); err != nil {
			return err
		}
		if got, err := n.GetFeatures(nvme.FeatArbitration); err != nil || got&7 != want {
			return fmt.Errorf("feature is %#x, want %#x: %w", got, want, err)
		}
	case 3:
		q, err := n.CreatePair(9, 8, vfiousertest.Polled)
		if err != nil {
			return err
		}
		turns := g.disks[0].turns()
		err = q.Flush(1)
		for tries := 0; isNotReady(err) && tries < 1000; tries++ { // as hosts do
			time.Sleep(time.Millisecond)
			err = q.Flush(1)
		}
		if err != nil && turns%2 == 0 && g.disks[0].turns() == turns {
			return err
		}
		return n.DeletePair(q)
	}
	return n.Admin().Poll()
}

// halt ends the lanes and leaves what they have in flight.
func (g *guest) halt() []*flight {
	g.lives.Add(1)
	g.halted.Store(true)
	g.wg.Wait()
	var all []*flight
	for _, l := range g.lanes {
		for f := range l.flights {
			all = append(all, f)
		}
	}
	g.lanes = nil
	return all
}

// ended is what becomes of commands that a reset has ended: they change neither
// blocks nor memory any more.
func (g *guest) ended(flights []*flight) error {
	mark := func(f *flight) []byte { return bytes.Repeat([]byte{0x5a}, len(f.data)) }
	var reads []*flight
	for _, f := range flights {
		if f.kind == read {
			f.buf.Write(mark(f))
			reads = append(reads, f)
		}
	}
	if len(reads) > 0 {
		time.Sleep(time.Millisecond) // time for what must not come
	}
	for _, f := range reads {
		if f.buf.Read(f.data); !bytes.Equal(f.data, mark(f)) {
			return fmt.Errorf("%v changes memory after the reset was acknowledged", f.access)
		}
	}
	for _, f := range flights {
		f.access.lost()
		if f.buf != nil {
			f.buf.Free()
		}
	}
	return nil
}

// reset resets the controller with commands in flight.
func (g *guest) reset() error {
	flights := g.halt()
	if err := g.n.Disable(); err != nil {
		return fmt.Errorf("resetting: %w", err)
	}
	if err := g.ended(flights); err != nil {
		return err
	}
	return g.begin()
}

// resetFunction resets the function with commands in flight, as QEMU does when
// the machine is reset.
func (g *guest) resetFunction() error {
	flights := g.halt()
	c := g.n.Client()
	if err := c.Reset(); err != nil {
		return fmt.Errorf("resetting the function: %w", err)
	}
	// What the answer does not wait for, CSTS.CFS shows.
	quiet := func(c nvme.CSTS) bool { return !c.CFS() && !c.RDY() }
	if err := g.n.WaitCSTS("the end of the reset", patience, quiet); err != nil {
		return err
	}
	if err := g.ended(flights); err != nil {
		return err
	}
	if g.spec.irq == "msix" {
		if err := c.DisableMSIX(); err != nil {
			return err
		}
	}
	const master = 0x0507 // in the command register, beside memory and I/O space: what a driver sets when it probes
	if err := c.Command(master); err != nil {
		return err
	}
	return g.begin()
}

// isNotReady reports whether a command is to be sent again.
func isNotReady(err error) bool {
	var status *vfiousertest.StatusError
	return errors.As(err, &status) && status.Completion.StatusField() == nvme.StatusNamespaceNotReady
}

// leave switches the machine off: its driver shuts the controller down.
func (g *guest) leave() error {
	flights := g.halt()
	if err := g.n.Shutdown(); err != nil {
		return fmt.Errorf("shutting down: %w", err)
	}
	g.off()
	g.lost = append(g.lost, flights...)
	return nil
}

// vanish ends the connection with commands in flight, as when QEMU is killed.
func (g *guest) vanish() {
	g.lost = append(g.lost, g.halt()...)
	g.off()
}

func (g *guest) off() {
	c := g.n.Client()
	c.Close()
	c.Memory().Close()
	g.n = nil
}

// told waits until a running guest has had an event after those it had had, or is
// another one than it was.
func (g *guest) told(events, life int64) error {
	return g.s.await("guest "+g.spec.port+" is told of a change", func() bool {
		return g.events.Load() > events || g.lives.Load() != life
	})
}
