// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/api"
)

func (s *soak) cpus() int { return runtime.NumCPU() }

// setup starts the daemons and makes volumes, subsystems, listeners and ports.
func (s *soak) setup() error {
	s.wpt = &daemon{s: s, name: "wpt"}
	s.socs = []*daemon{{s: s, name: api.DefaultRuntime}, {s: s, name: "far"}}
	for _, d := range []*daemon{s.wpt, s.socs[0], s.socs[1]} {
		s.t.Cleanup(d.end)
		if err := d.start(); err != nil {
			return err
		}
	}
	soc, far := s.socs[0].client(), s.socs[1].client()
	var failed error
	post := func(c *api.Client, path string, in, out any) {
		if err := c.Post(s.ctx, path, in, out); err != nil && failed == nil {
			failed = fmt.Errorf("making %+v: %w", in, err)
		}
	}
	volume := func(c *api.Client, name, kind string, options api.Options) {
		post(c, api.Path("volumes"), api.VolumeSpec{Name: name, Kind: kind, Options: options}, nil)
	}
	const size = 32 << 20
	add := func(name, kind string, block int) {
		d := newDisk(name, uint64(len(s.disks)+1), block, size)
		d.keeps, d.torn = kind != "null", kind == "mem"
		s.disks[name] = d
		if kind != "remote" {
			volume(soc, name, kind, api.Options{"size": fmt.Sprint(size), "block": fmt.Sprint(block)})
		}
	}
	add("d1", "file", 512)
	add("d2", "mem", 4096)
	add("d3", "mem", 512)
	add("d4", "null", 512)
	add("d5", "file", 4096)
	add("d6", "remote", 512)
	add("d7", "file", 512)
	add("d8", "file", 512)
	add("d9", "mem", 4096)

	volume(far, "f6", "file", api.Options{"size": fmt.Sprint(size), "block": "512"})
	var shown api.Listener
	post(far, api.Path("listeners"), api.ListenerSpec{URL: "tcp://127.0.0.1:0", Targets: []string{"f6"}, Allow: []string{api.HostAny}}, &shown)
	if failed != nil {
		return failed
	}
	volume(soc, "d6", "remote", api.Options{"addr": shown.URL + "/" + shown.Subsystems[0], "keep-alive": "500ms", "reconnect-delay": "50ms", "data-digest": "on"})
	var shared api.Subsystem
	post(soc, api.Path("subsystems"), api.SubsystemSpec{Name: "shared", AllowAny: true, Volumes: []string{"d8", "d9"}, Shared: true}, &shared)
	post(soc, api.Path("listeners"), api.ListenerSpec{URL: "tcp://127.0.0.1:0", Targets: []string{"shared"}}, &shown)

	for i, spec := range []guestSpec{
		{port: "vm1", doorbells: api.DoorbellsTrap, shadow: true, irq: "msix", high: true, queues: 2, depth: 32, disks: []string{"d1", "d2"}},
		{port: "vm2", doorbells: api.DoorbellsMap, irq: "poll", queues: 2, depth: 64, disks: []string{"d3", "d4"}},
		{port: "vm3", doorbells: api.DoorbellsTrap, irq: "intx", unshared: true, queues: 1, depth: 6, disks: []string{"d5"}, slow: true},
		{port: "vm4", doorbells: api.DoorbellsTrap, shadow: true, irq: "msix", queues: 2, depth: 16, disks: []string{"d6", "d7"}, slow: true},
		{port: "vm5", doorbells: api.DoorbellsTrap, irq: "msix", high: true, queues: 1, depth: 8, disks: []string{"d8", "d9"}},
	} {
		g := &guest{s: s, spec: spec, rng: rand.New(rand.NewPCG(s.rng.Uint64(), uint64(i)))}
		subsystem := spec.port
		for _, name := range spec.disks {
			g.disks = append(g.disks, s.disks[name])
		}
		if spec.port == "vm5" {
			subsystem = "shared"
		} else {
			post(soc, api.Path("subsystems"), api.SubsystemSpec{Name: spec.port, Volumes: spec.disks}, nil)
			changes := new(sync.Mutex)
			for i, d := range g.disks {
				s.drives = append(s.drives, &drive{g: g, d: d, nsid: uint32(i + 1), mu: changes})
			}
		}
		post(s.wpt.client(), api.Path("ports"), api.PortSpec{Name: spec.port, Doorbells: spec.doorbells, Subsystem: subsystem}, nil)
		s.guests = append(s.guests, g)
	}
	for i, name := range []string{"h1", "h2"} {
		s.hosts = append(s.hosts, &hostSide{
			s: s, name: name, url: shown.URL + "/" + shared.NQN, digest: i == 0, disks: []*disk{s.disks["d8"], s.disks["d9"]}, depth: 8 << i,
			rng: rand.New(rand.NewPCG(s.rng.Uint64(), uint64(i))), flights: map[*hostFlight]bool{},
		})
	}
	return failed
}

// run runs for some time, and until the daemons have ended in each of the ways
// that count as often as is wanted.
func (s *soak) run(length time.Duration, ends int) {
	if err := s.setup(); err != nil {
		s.t.Fatal(err)
	}
	stop := make(chan struct{})
	var progress sync.WaitGroup
	progress.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.t.Logf("%v: %v", time.Since(s.began).Round(time.Second), &s.counts)
			}
		}
	})
	defer progress.Wait()
	defer close(stop)
	s.began = time.Now()
	part := min(max(length/4, 3*time.Second), 2*time.Minute)
	enough := func() bool {
		for _, name := range []string{"kill soc", "upgrade soc", "upgrade wpt"} {
			if s.counts.of(name) < ends {
				return false
			}
		}
		return time.Since(s.began) >= length
	}
	before := make(map[string]usage)
	warm := min(part, 5*time.Second)
	for turn := 0; s.ctx.Err() == nil && (turn < 3 || !enough()); turn++ {
		// First what ends no daemon, for a while, so that it is known what each
		// process has when it has done everything; then that again, for longer: it
		// must not have more. Then everything.
		switch turn % 3 {
		case 0:
			s.turn("warming up", s.steady(), warm, before)
		case 1:
			s.turn("steady", s.steady(), part, before)
		case 2:
			s.drive(s.all(), part)
		}
	}
	if err := context.Cause(s.ctx); err != nil {
		s.stop()
		s.t.Error(err)
		return
	}
	s.stop()
	for _, d := range append([]*daemon{s.wpt}, s.socs...) {
		d.checkLog()
	}
	s.t.Logf("%v: %v\n%s", time.Since(s.began).Round(time.Second), &s.counts, s.counts.Pauses())
}

// turn takes steps for some time, and then looks at what the daemons have.
func (s *soak) turn(name string, steps []step, took time.Duration, before map[string]usage) {
	s.log("%s", name)
	s.drive(steps, took)
	if s.ctx.Err() != nil {
		return
	}
	if err := s.look(before); err != nil {
		s.fail("%s: %v", name, err)
	}
}

// stop ends guests and hosts that are left.
func (s *soak) stop() {
	s.end(nil)
	for _, g := range s.guests {
		g.mu.Lock()
		if g.n != nil {
			g.vanish()
		}
		g.mu.Unlock()
	}
	for _, h := range s.hosts {
		h.mu.Lock()
		if h.cancel != nil {
			h.leave()
		}
		h.mu.Unlock()
	}
}

// step is something that may happen.
type step struct {
	name   string
	weight int
	// try takes what the step needs and returns what it does; nil if that cannot be
	// had now. Only the driver calls it, with its numbers.
	try func() func() error
}

// drive takes random steps for some time, and waits for their ends. Guests and
// hosts are there in the beginning, and in the end.
func (s *soak) drive(steps []step, took time.Duration) {
	var running sync.WaitGroup
	defer running.Wait()
	total := 0
	for _, st := range steps {
		total += st.weight
	}
	launch := func(name string, f func() error) {
		s.log("%s", name)
		running.Go(func() {
			if err := f(); err != nil && s.ctx.Err() == nil {
				s.fail("%s: %v", name, err)
				return
			}
			s.log("%s: done", name)
		})
	}
	all := func() {
		for _, g := range s.guests {
			if g.mu.Lock(); g.n != nil {
				g.mu.Unlock()
				continue
			}
			launch(g.spec.port+" comes", func() error {
				defer g.mu.Unlock()
				return g.come()
			})
		}
		for _, h := range s.hosts {
			if h.mu.Lock(); h.cancel == nil {
				h.come()
			}
			h.mu.Unlock()
		}
	}
	all()
	for end := time.Now().Add(took); time.Now().Before(end) && s.ctx.Err() == nil; {
		n := s.rng.IntN(total)
		for _, st := range steps {
			if n -= st.weight; n < 0 {
				if f := st.try(); f != nil {
					s.counts.step(st.name)
					launch(st.name, f)
				}
				break
			}
		}
		time.Sleep(time.Duration(s.rng.IntN(40)) * time.Millisecond)
	}
	// Changes may wait for blocks of those that have gone without a word.
	if s.ctx.Err() == nil {
		all()
	}
}
