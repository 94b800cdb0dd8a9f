// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/mem"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

const (
	testNQN  = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef"
	testUUID = "11111111-2222-3333-4444-555555555555"
	patience = 20 * time.Second // of tests; nothing is measured by it
)

// cfg is the poller of tests.
var cfg = poller.Config{Name: "test", CPU: -1, Fence: -1}

// server is a target whose namespace 1 is a volume in memory, which outlives it.
type server struct {
	t      testing.TB
	env    *volumetest.Env
	volume volume.Volume
	sub    *controller.Subsystem
	uuid   nvme.UUID
	limits target.Limits
	single atomic.Bool    // one association at a time, as leap-soc has it for what is not shared
	addr   netip.AddrPort // of the first start; the same for each further one

	target  *target.Target
	pollers []*poller.Poller
}

// newServer makes the volume and starts the target.
func newServer(t testing.TB, shape volume.Shape) *server {
	t.Helper()
	return newLimitedServer(t, shape, target.Limits{})
}

func newLimitedServer(t testing.TB, shape volume.Shape, limits target.Limits) *server {
	t.Helper()
	goroutines, before := runtime.NumGoroutine(), fabricstest.Descriptors(t)
	s := &server{t: t, env: volumetest.NewEnv(t, t.TempDir()), uuid: nvme.NewUUID(), limits: limits, addr: netip.MustParseAddrPort("127.0.0.1:0")}
	spec := &volume.Spec{Name: "m", Kind: "mem", Options: map[string]string{"size": fmt.Sprint(shape.Size), "block": fmt.Sprint(shape.Block)}}
	var err error
	if s.volume, err = mem.Kind.Make(t.Context(), s.env, spec); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if err := s.volume.Close(); err != nil {
			t.Error(err)
		}
		fabricstest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		// The environment keeps two: the memory and its log.
		fabricstest.WaitFor(t, "descriptors to be closed", func() bool { return fabricstest.Descriptors(t) <= before+2 })
	})
	return s
}

// start starts the target, a new one on the address of the one before.
func (s *server) start() {
	s.t.Helper()
	s.sub = controller.NewSubsystem(testNQN, "0123456789abcdef0123")
	if err := s.sub.Add(&controller.Namespace{NSID: 1, Volume: s.volume, Name: "m", UUID: s.uuid}); err != nil {
		s.t.Fatal(err)
	}
	s.pollers = nil
	for range 2 {
		p, err := poller.Start(poller.Config{Name: "target", CPU: -1, Fence: -1})
		if err != nil {
			s.t.Fatal(err)
		}
		s.pollers = append(s.pollers, p)
	}
	sub := s.sub
	s.target = target.New(target.Config{
		Pollers: s.pollers, Limits: s.limits, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Subsystem: func(_ int, nqn, _ string) (*controller.Subsystem, error) {
			if nqn != testNQN {
				return nil, target.ErrNoSubsystem
			}
			if now, _ := sub.Controllers(); now > 0 && s.single.Load() {
				return nil, errors.New("another host is connected")
			}
			return sub, nil
		},
		Discovery: func(int, string, netip.AddrPort) ([]fabrics.DiscoveryEntry, uint64) { return nil, 0 },
	})
	var l *target.Listener
	var err error
	fabricstest.WaitFor(s.t, "the address to be free", func() bool {
		l, err = s.target.Listen(1, s.addr)
		return err == nil
	})
	s.addr = l.Addr()
}

// stop ends the target.
func (s *server) stop() {
	if s.target == nil {
		return
	}
	s.target.Close()
	for _, p := range s.pollers {
		p.Stop()
	}
	s.target = nil
}

// spec describes a volume that is at addr.
func spec(addr netip.AddrPort, options ...string) *volume.Spec {
	s := &volume.Spec{Name: "r", Kind: "remote", UUID: testUUID, Options: map[string]string{"addr": fmt.Sprintf("tcp://%s/%s", addr, testNQN)}}
	for i := 0; i < len(options); i += 2 {
		s.Options[options[i]] = options[i+1]
	}
	return s
}

// open makes a volume, which is closed when the test ends.
func open(t testing.TB, s *volume.Spec) *remote {
	t.Helper()
	return openIn(t, new(volumetest.Env), s)
}

func openIn(t testing.TB, env volume.Env, s *volume.Spec) *remote {
	t.Helper()
	v, err := Kind.Make(t.Context(), env, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v.(*remote)
}
