// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/leapio/leapio/lib/api"
)

// steady are the steps that end no daemon.
func (s *soak) steady() []step {
	return []step{
		s.guestStep("reset", 10, true, (*guest).reset),
		s.guestStep("function reset", 4, true, (*guest).resetFunction),
		s.guestStep("leave", 4, true, (*guest).leave),
		s.guestStep("vanish", 4, true, func(g *guest) error { g.vanish(); return nil }),
		s.guestStep("come", 40, false, (*guest).come),
		{"host", 6, func() func() error {
			h := s.hosts[s.rng.IntN(len(s.hosts))]
			if !h.mu.TryLock() {
				return nil
			}
			return func() error {
				defer h.mu.Unlock()
				if h.cancel == nil {
					h.come()
				} else {
					h.leave()
				}
				return nil
			}
		}},
		{"resize", 4, func() func() error {
			v := s.drives[s.rng.IntN(len(s.drives))]
			if v.d.name == "d4" || v.d.name == "d6" || !v.busy.TryLock() {
				return nil
			}
			rng := rand.New(rand.NewPCG(s.rng.Uint64(), 0))
			return func() error {
				defer v.busy.Unlock()
				return s.resize(v, rng)
			}
		}},
		{"replug", 3, func() func() error {
			v := s.drives[s.rng.IntN(len(s.drives))]
			if !v.busy.TryLock() {
				return nil
			}
			return func() error {
				defer v.busy.Unlock()
				return s.replug(v)
			}
		}},
		{"calls", 3, func() func() error { return s.calls }},
	}
}

// all are all steps.
func (s *soak) all() []step {
	soc, far := s.socs[0], s.socs[1]
	return append(s.steady(),
		s.daemonStep("kill soc", 12, soc.kill),
		s.daemonStep("restart soc", 3, soc.restart),
		s.daemonStep("upgrade soc", 12, s.upgradeOf(soc)),
		s.daemonStep("standby soc", 3, func() error { return soc.standby(100 * time.Millisecond) }),
		s.daemonStep("upgrade wpt", 12, s.upgradeOf(s.wpt)),
		s.timedStep("disturb soc", 4, 150, func(took time.Duration) error { return soc.disturb(took, int(took)) }),
		s.timedStep("hang soc", 1, 4000, soc.hang),
		s.timedStep("hang wpt", 1, 500, s.wpt.hang),
		s.daemonStep("kill far", 1, far.kill),
		s.daemonStep("upgrade far", 1, s.upgradeOf(far)),
		step{"cut", 3, func() func() error {
			if !s.ending.TryLock() {
				return nil
			}
			defer s.ending.Unlock()
			if _, err := s.cut(); err != nil {
				return func() error { return err }
			}
			return func() error { return nil }
		}},
	)
}

// guestStep is a step on any guest that is on, or off.
func (s *soak) guestStep(name string, weight int, on bool, do func(*guest) error) step {
	return step{name, weight, func() func() error {
		g := s.guests[s.rng.IntN(len(s.guests))]
		if !g.mu.TryLock() {
			return nil
		}
		if (g.n != nil) != on {
			g.mu.Unlock()
			return nil
		}
		s.log("%s %s", g.spec.port, name)
		return func() error {
			defer g.mu.Unlock()
			if err := do(g); err != nil {
				return fmt.Errorf("guest %s: %w", g.spec.port, err)
			}
			return nil
		}
	}}
}

// daemonStep is a step that ends a process, one at a time. How long guests had to
// wait is noted.
func (s *soak) daemonStep(name string, weight int, do func() error) step {
	return step{name, weight, func() func() error {
		if !s.ending.TryLock() {
			return nil
		}
		return func() error {
			defer s.ending.Unlock()
			s.ends.Add(1)
			s.counts.longest.Store(0)
			err := do()
			s.ends.Add(1)
			if err != nil {
				return err
			}
			// What was under way ends soon.
			done := s.counts.total()
			for end := time.Now().Add(2 * time.Second); s.counts.total() < done+200 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			s.counts.pause(name, time.Duration(s.counts.longest.Load()))
			return nil
		}
	}}
}

// timedStep is a step that takes a time which the driver chooses, below most
// milliseconds.
func (s *soak) timedStep(name string, weight, most int, do func(time.Duration) error) step {
	var took time.Duration
	st := s.daemonStep(name, weight, func() error { return do(took) })
	try := st.try
	st.try = func() func() error {
		next := time.Duration(s.rng.Int64N(int64(most) * int64(time.Millisecond)))
		f := try()
		if f != nil {
			took = next // of the one step of its kind that is under way
		}
		return f
	}
	return st
}

func (s *soak) upgradeOf(d *daemon) func() error {
	return func() error {
		_, err := d.upgrade()
		return err
	}
}

// calls asks the daemons whatever can be asked. One may end meanwhile.
func (s *soak) calls() error {
	for _, path := range []string{
		api.Path("runtime"), api.Path("volumes"), api.Path("subsystems"), api.Path("listeners"), api.Path("limits"),
		api.Path("stat", "volume"), api.Path("stat", "namespace"), api.Path("stat", "queue"),
	} {
		if err := s.ask(s.socs[0], func(ctx context.Context) error { return s.socs[0].client().Get(ctx, path, nil) }); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := s.ask(s.socs[0], func(ctx context.Context) error {
		_, err := s.socs[0].client().GetText(ctx, "/metrics")
		return err
	}); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	for _, path := range []string{api.Path("show"), api.Path("ports"), api.Path("runtimes"), api.Path("limits")} {
		if err := s.ask(s.wpt, func(ctx context.Context) error { return s.wpt.client().Get(ctx, path, nil) }); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// ask makes a call, which must succeed unless something happens to a daemon.
func (s *soak) ask(d *daemon, call func(context.Context) error) error {
	steps := s.ends.Load()
	err := s.call(call)
	if err != nil && steps%2 == 0 && s.ends.Load() == steps {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}
