// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/mem"
	"github.com/leapio/leapio/lib/volume/null"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

const (
	testNQN  = "nqn.2026-01.org.example:one"
	busyNQN  = "nqn.2026-01.org.example:busy"
	hostNQN  = "nqn.2026-01.org.example:host"
	patience = 30 * time.Second // of tests; nothing is measured by it
)

// Namespaces of a server.
const (
	nsMem       = 1 // 4 MiB of memory
	nsNull      = 2 // forgets what it is given
	nsProtected = 3 // memory that cannot be written to
	nsSilent    = 4 // answers nothing
)

// server is a target with a subsystem for one host.
type server struct {
	target   *target.Target
	listener *target.Listener
	pollers  []*poller.Poller
	addr     netip.AddrPort
	silent   silent
}

// serve starts a server, which ends with the test. Then nothing of it, nor of
// those who came to it, is left.
func serve(t testing.TB) *server {
	t.Helper()
	goroutines, before := runtime.NumGoroutine(), descriptors(t)
	s := new(server)
	for _, name := range []string{"0", "1"} {
		p, err := poller.Start(poller.Config{Name: name, CPU: -1, Fence: -1, NoRing: true})
		if err != nil {
			t.Fatal(err)
		}
		s.pollers = append(s.pollers, p)
	}
	env := volumetest.NewEnv(t, t.TempDir())
	sub := controller.NewSubsystem(testNQN, "0123456789abcdef0123")
	add := func(ns *controller.Namespace) {
		ns.UUID = nvme.NewUUID()
		if err := sub.Add(ns); err != nil {
			t.Fatal(err)
		}
	}
	var volumes []volume.Volume
	for i, kind := range []volume.Kind{mem.Kind, null.Kind, mem.Kind} {
		v, err := kind.Make(t.Context(), env, &volume.Spec{Name: string(rune('a' + i)), Options: map[string]string{"size": "4M"}})
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, v)
	}
	add(&controller.Namespace{NSID: nsMem, Volume: volumes[0], Name: "mem"})
	add(&controller.Namespace{NSID: nsNull, Volume: volumes[1], Name: "null"})
	add(&controller.Namespace{NSID: nsProtected, Volume: volumes[2], Name: "protected", ReadOnly: true})
	add(&controller.Namespace{NSID: nsSilent, Volume: &s.silent, Name: "silent"})
	s.target = target.New(target.Config{
		Pollers: s.pollers, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Subsystem: func(_ int, nqn, host string) (*controller.Subsystem, error) {
			switch {
			case nqn == busyNQN:
				return nil, errors.New("busy")
			case nqn != testNQN:
				return nil, target.ErrNoSubsystem
			case host != hostNQN:
				return nil, target.ErrHostNotAllowed
			}
			return sub, nil
		},
	})
	var err error
	if s.listener, err = s.target.Listen(1, netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	s.addr = s.listener.Addr()
	t.Cleanup(func() {
		s.target.Close()
		for _, p := range s.pollers {
			p.Stop()
		}
		for _, v := range volumes {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
		waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		// The environment keeps four for memory, two of each volume.
		waitFor(t, "descriptors to be closed", func() bool { return descriptors(t) <= before+4 })
	})
	return s
}

// url is where a subsystem is.
func (s *server) url(nqn string) string { return "tcp://" + s.addr.String() + "/" + nqn }

// silent is a volume that ends nothing before it is told to give up.
type silent struct{}

func (*silent) Info() *volume.Info {
	return &volume.Info{Size: 1 << 20, Block: 512, WriteGranularity: 512, DiscardGranularity: 512, AtomicUnit: 512}
}
func (v *silent) Open(p *poller.Poller) (volume.Queue, error) { return &silentQueue{p: p}, nil }
func (*silent) Close() error                                  { return nil }

type silentQueue struct{ p *poller.Poller }

func (q *silentQueue) Submit(r *volume.Request) { r.Begin(q.p) }
func (q *silentQueue) Cancel(r *volume.Request) { r.Complete(nvme.StatusAbortRequested) }
func (q *silentQueue) Close()                   {}

// descriptors counts the open descriptors of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: in vain", what)
		}
	}
}
