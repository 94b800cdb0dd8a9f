// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package target makes subsystems available to hosts over NVMe/TCP.
//
// Each connection is a queue and lives on one poller, with its commands, its data and a controller.Worker of its own if it is an I/O queue.
// An association is a host's use of a subsystem: the admin queue, the controller and the I/O queues. It belongs to the poller of its admin
// queue; other pollers reach it by posting.
//
// A command's way, all of it on the poller of its queue:
//
//  1. The capsule arrives (queue.Header): a record is taken, as many as the queue has entries. Data in the capsule goes to memory that
//     the record has of its own, so that a connection never has to wait for memory.
//  2. The controller decodes the command and asks for its data (command.Data). Other data that is small goes through the record's memory,
//     too, larger data through buffers of the poller's pool. If there are none the command waits for its association's turn, and only
//     then its R2T is sent: a host sends no more than there is room for. One R2T asks for all data of a command, which suits hosts with
//     any MAXR2T: since the buffers are there, to ask in parts would only cost round trips.
//  3. H2CData is read from the socket into the buffers; the volume reads and writes there, too.
//  4. The result (command.Complete) is queued on the connection, data and response, and written at the end of the turn. When the kernel
//     has taken it, buffers and record are free.
package target

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/poller"
)

// What Config.Subsystem answers where there is nothing to connect to.
var (
	ErrNoSubsystem    = errors.New("no such subsystem")
	ErrHostNotAllowed = errors.New("host is not allowed to connect")
)

// Config of a target.
type Config struct {
	Pollers []*poller.Poller // connections are spread over them
	// Subsystem finds what a host wants to connect to. It is called on a poller and returns at once: it takes no lock that anybody holds
	// who waits for a poller, as the methods of Target and Listener do. Errors: ErrNoSubsystem, ErrHostNotAllowed; any other means that
	// it is not ready.
	Subsystem func(listener int, subNQN, hostNQN string) (*controller.Subsystem, error)
	// Discovery returns the discovery log for a host that has come to the address at of a listener, and the generation counter, which
	// rises whenever the log of any host changes. It is called as Subsystem is.
	Discovery func(listener int, hostNQN string, at netip.AddrPort) (entries []fabrics.DiscoveryEntry, generation uint64)
	// DiscoveryNQN is the name of the discovery subsystem that no other has. Hosts reach it by the well-known one, too.
	DiscoveryNQN string
	// Changed is told that an association has come or gone. It is called as Subsystem is; nil: nobody wants to know.
	Changed func()
	Limits  Limits
	Log     *slog.Logger // not nil
}

// Target is a set of listeners and what hosts have connected to them. Methods may be called from any goroutine but a poller's.
type Target struct {
	cfg    Config
	limits Limits
	room   chan struct{} // told when a connection has gone

	mu           sync.Mutex
	shards       []*shard
	turn         int // the shard of the next connection
	listeners    map[*Listener]bool
	associations map[*association]bool
	connections  int
	seats        int      // associations with subsystems, and those that are being made
	guests       []*queue // connections that belong to no host that was let in, in the order in which they have to make room
	lastCNTLID   uint16   // of a discovery controller
	closed       bool
	numbers      atomic.Uint64
}

// shard is the target's part on one poller.
type shard struct {
	index int
	p     *poller.Poller
	set   *tcp.Set
	pool  *pool
	// strangers is what connections hold that belong to no host that was let in: before Connect, and of discovery controllers.
	strangers account
	// queues are those on this poller.
	queues   map[*queue]bool
	patience time.Duration
	sweeper  *time.Timer // has the poller sweep
}

// New returns a target without listeners.
func New(cfg Config) *Target {
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Target{
		cfg: cfg, limits: cfg.Limits.withDefaults(), room: make(chan struct{}, 1),
		listeners: make(map[*Listener]bool), associations: make(map[*association]bool),
	}
}

// number returns a number that no other connection or association has.
func (t *Target) number() uint64 { return t.numbers.Add(1) }

// start has the pollers serve connections. t.mu is held.
func (t *Target) start() error {
	if t.closed {
		return errors.New("target is closed")
	}
	if t.shards != nil {
		return nil
	}
	for i, p := range t.cfg.Pollers {
		s, err := newShard(i, p, t.limits)
		if err != nil {
			t.stop()
			return err
		}
		t.shards = append(t.shards, s)
	}
	return nil
}

func newShard(index int, p *poller.Poller, limits Limits) (*shard, error) {
	s := &shard{index: index, p: p, queues: make(map[*queue]bool), strangers: account{stranger: true}, patience: limits.Patience}
	var err error
	if s.pool, err = newPool(p, limits.Memory, limits.Share); err != nil {
		return nil, err
	}
	doErr := p.Do(func() {
		if s.set, err = tcp.NewSet(p); err == nil {
			sweep := s.sweep
			s.sweeper = time.AfterFunc(0, func() { _ = p.Post(sweep) }) // a poller that has stopped has no connections any more
		}
	})
	if doErr != nil {
		err = doErr
	}
	if err != nil {
		s.pool.close()
		return nil, fmt.Errorf("serving connections on poller %s: %w", p.Name(), err)
	}
	return s, nil
}

// stop ends what start began; there are no connections.
func (t *Target) stop() {
	for _, s := range t.shards {
		_ = s.p.Do(func() {
			s.set.Close()
			s.strangers.on(s.p).Close()
		})
		s.sweeper.Stop()
		s.pool.close()
	}
	t.shards = nil
}

// stir has the poller sweep soon: something has happened on a connection.
func (s *shard) stir() { s.sweeper.Reset(min(time.Second, s.patience/4+1)) }

// sweep drops peers that have stalled, and sees to the next sweep: soon if there are some that may stall, else when something happens.
// Connections on which nothing is under way wake nobody. It is called on the poller.
func (s *shard) sweep() {
	soon, next := s.set.Sweep(s.patience), time.Duration(0)
	for q := range s.queues {
		if q.progress < joining {
			soon = true
			if s.p.Now()-q.since > s.patience {
				q.conn.Close(tcp.ErrStalled) // however it drips
			}
		}
		if q.id == 0 && q.a != nil && q.a.discovery != nil {
			if left := q.a.discovery.expire(); next == 0 || left < next {
				next = left
			}
		}
	}
	if soon {
		s.stir()
		return
	}
	s.set.OnStir(s.stir)
	if next > 0 {
		s.sweeper.Reset(next)
	}
}

// discovers reports whether nqn is a name of the discovery subsystem.
func (t *Target) discovers(nqn string) bool {
	return nqn == fabrics.DiscoveryNQN || nqn == t.cfg.DiscoveryNQN
}

// DiscoveryChanged tells hosts that wait for it that the discovery log has changed, those for which it has.
func (t *Target) DiscoveryChanged() {
	for _, a := range t.present() {
		if a.discovery != nil {
			a.post(a.discovery.changed)
		}
	}
}

// present returns the associations there are.
func (t *Target) present() []*association {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*association, 0, len(t.associations))
	for a := range t.associations {
		list = append(list, a)
	}
	return list
}

// Connected reports whether a host has an association with the subsystem, also while its controller is being reset. It may be called on a
// poller.
func (t *Target) Connected(subNQN string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.associations {
		if a.subNQN == subNQN {
			return true
		}
	}
	return false
}

// Disconnect ends the associations that match says, and returns how many. Their hosts may connect again. It does not wait.
func (t *Target) Disconnect(match func(Association) bool) int {
	n := 0
	for _, a := range t.present() {
		if match(a.describe()) {
			n++
			a.post(func() { a.end(errDisconnected) })
		}
	}
	return n
}

var errDisconnected = errors.New("disconnected by the target")

// Close ends all listeners and connections, and returns when no command is in flight. The pollers still run. A second Close does nothing.
func (t *Target) Close() {
	t.mu.Lock()
	t.closed = true
	list := make([]*Listener, 0, len(t.listeners))
	for l := range t.listeners {
		list = append(list, l)
	}
	t.mu.Unlock()
	for _, l := range list {
		l.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
}
