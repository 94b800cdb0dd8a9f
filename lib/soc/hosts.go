// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/wpt/link"
)

// newTarget makes the target, which serves hosts on the pollers.
func (r *Runtime) newTarget() *target.Target {
	return target.New(target.Config{
		Pollers: r.pollers, Subsystem: r.subsystemFor, Discovery: r.discoveryFor, DiscoveryNQN: r.discovery.NQN(),
		Changed: r.hostsChanged, Limits: r.cfg.Limits, Log: r.log,
	})
}

// errNotTried is why a listener is not open at first.
var errNotTried = errors.New("leap-soc has not been attached to leap-wpt yet")

// backoff says when a listener that cannot be opened is tried again.
type backoff struct {
	pause time.Duration
	at    time.Time
}

// How long the pauses are.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 15 * time.Second
)

// failed makes the pause twice as long as the one before.
func (b *backoff) failed(now time.Time) {
	b.pause = min(max(2*b.pause, firstPause), lastPause)
	b.at = now.Add(b.pause)
}

// keepListeners opens the listeners there are and those that come, and tries
// again those that cannot be opened, until ctx ends; then it cuts off the hosts
// and waits until none of their commands is in flight. It begins when leap-wpt
// has let this runtime in: before that, I/O of the one before may be in flight.
// That leap-wpt goes later changes nothing for hosts: while this process lives
// nobody else is let in under its name.
func (r *Runtime) keepListeners(ctx context.Context) {
	defer close(r.listenersKept)
	defer r.target.Close()
	select {
	case <-r.admitted:
	case <-ctx.Done():
		return
	}
	var asked, shown time.Time
	for {
		now := time.Now()
		due, wait := r.dueListeners(now)
		for _, l := range due {
			r.openListener(ctx, l)
		}
		if r.announce.Swap(false) {
			r.target.DiscoveryChanged()
		}
		if r.hostsMoved.Load() {
			if now.Sub(shown) >= hostsPause {
				shown = now
				r.hostsMoved.Store(false)
				r.showListeners()
			}
			wait = min(wait, hostsPause)
		}
		if r.portsWait.Load() {
			if now.Sub(asked) >= portsPause {
				asked = now
				r.portsWait.Store(false)
				r.ports.Refresh() // the host that was in the way may have gone
			}
			wait = min(wait, portsPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.listenerWork:
		case <-time.After(wait):
		}
	}
}

const (
	// portsPause is how often ports look again that a host keeps waiting.
	portsPause = 500 * time.Millisecond
	// hostsPause is the least time from one look at who is connected to the next:
	// hosts may come and go as often as they like.
	hostsPause = 100 * time.Millisecond
)

// wakeListeners has keepListeners look.
func (r *Runtime) wakeListeners() {
	select {
	case r.listenerWork <- struct{}{}:
	default:
	}
}

// hostsChanged is told by the target that a host has come to a listener or has
// gone. It may be called on a poller.
func (r *Runtime) hostsChanged() {
	r.hostsMoved.Store(true)
	r.wakeListeners()
}

// dueListeners returns the listeners that are to be opened now, and the time
// until the next one is.
func (r *Runtime) dueListeners(now time.Time) (due []*listener, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait = time.Hour
	for _, l := range r.listeners {
		switch left := l.retry.at.Sub(now); {
		case l.open != nil:
		case left <= 0:
			due = append(due, l)
			wait = min(wait, firstPause) // should it fail
		default:
			wait = min(wait, left)
		}
	}
	slices.SortFunc(due, func(a, b *listener) int { return a.rec.Number - b.rec.Number })
	return due, wait
}

// showListeners writes the facts of all listeners.
func (r *Runtime) showListeners() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listeners {
		r.showListener(l)
	}
}

// openListener tries to open a listener.
func (r *Runtime) openListener(ctx context.Context, l *listener) {
	open, err := r.bind(ctx, l)
	r.mu.Lock()
	if r.listeners[l.rec.Number] != l { // removed meanwhile
		r.mu.Unlock()
		if open != nil {
			open.Close()
		}
		return
	}
	defer r.mu.Unlock()
	if first := l.retry.pause == 0; err == nil || first || err.Error() != l.err.Error() {
		detail := ""
		if err != nil {
			detail = err.Error()
			r.log.Warn("listener cannot be opened; it is tried again", "listener", l.rec.Number, "url", l.rec.URL, "err", err)
		} else {
			r.log.Info("listening", "listener", l.rec.Number, "url", l.rec.URL)
		}
		defer func() {
			r.showListener(l)
			state, _ := l.state()
			r.publish(api.KindListener, l.name(), state, detail)
		}()
	}
	if l.open, l.err = open, err; err != nil {
		l.retry.failed(time.Now())
	} else {
		r.generation++ // other listeners tell where this one is
		if err := r.save(); err != nil {
			r.log.Error("generation of the discovery log cannot be kept", "err", err)
		}
		r.admit()
	}
	select {
	case <-l.tried:
	default:
		close(l.tried)
	}
}

// lookupLimit is how long finding the address of a host name may take.
const lookupLimit = 5 * time.Second

// bind finds the address of a listener and opens it there.
func (r *Runtime) bind(ctx context.Context, l *listener) (*target.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", l.addr.Host)
	if err != nil {
		return nil, err
	}
	return r.target.Listen(l.rec.Number, netip.AddrPortFrom(addrs[0].Unmap(), l.addr.Port))
}

// admission is what hosts are let in by: who sees what at which listener. It is
// never changed, so that pollers need no lock.
type admission struct {
	generation uint64            // of the discovery log
	listeners  map[int]*entrance // by number
	order      []*entrance       // by number
}

// entrance is a listener as hosts see it.
type entrance struct {
	number    int
	discovery bool            // and nothing else: hosts find there what they may use elsewhere
	advertise fabrics.Address // no host: where it is
	bound     netip.AddrPort  // not valid: it is not open
	referrals []fabrics.Address
	shown     []shown
}

// shown is a subsystem at an entrance.
type shown struct {
	nqn      string
	anybody  bool
	hosts    []string
	model    *controller.Subsystem
	use      *use
	shared   bool
	notReady error
}

func (s *shown) allows(host string) bool { return s.anybody || slices.Contains(s.hosts, host) }

// admit has hosts be let in by what there is now. r.mu is held.
func (r *Runtime) admit() {
	a := &admission{generation: r.generation, listeners: make(map[int]*entrance)}
	for _, n := range slices.Sorted(maps.Keys(r.listeners)) {
		l := r.listeners[n]
		e := &entrance{number: n, discovery: l.discovers()}
		if l.open != nil {
			e.bound = l.open.Addr()
		}
		if l.rec.Advertise != "" {
			e.advertise, _ = advertised(l.rec.Advertise, l.addr) // checked when it was made
		}
		for _, url := range l.rec.Referrals {
			addr, _ := referral(url) // as well
			e.referrals = append(e.referrals, addr)
		}
		for _, s := range r.subsystems {
			if !l.shows(s) {
				continue
			}
			e.shown = append(e.shown, shown{
				nqn: s.rec.NQN, anybody: s.rec.AllowAny, hosts: slices.Clone(s.rec.Hosts), model: s.model,
				use: &s.use, shared: s.shared(), notReady: s.notReady(),
			})
		}
		slices.SortFunc(e.shown, func(a, b shown) int { return compareNames(a.nqn, b.nqn) })
		a.listeners[n] = e
		a.order = append(a.order, e)
	}
	r.admission.Store(a)
	r.announce.Store(true)
	r.wakeListeners()
}

// subsystemFor finds what a host wants to connect to. It is called on pollers.
func (r *Runtime) subsystemFor(listener int, subNQN, hostNQN string) (*controller.Subsystem, error) {
	e := r.admission.Load().listeners[listener]
	if e == nil {
		return nil, target.ErrNoSubsystem // the listener is being removed
	}
	i := slices.IndexFunc(e.shown, func(s shown) bool { return s.nqn == subNQN })
	if i < 0 {
		return nil, target.ErrNoSubsystem
	}
	s := &e.shown[i]
	if !s.allows(hostNQN) {
		return nil, target.ErrHostNotAllowed
	}
	if s.notReady != nil {
		return nil, s.notReady
	}
	if s.shared {
		return s.model, nil
	}
	return s.model, s.use.byHost(s.model, r.ports, r.target)
}

// use keeps a subsystem that is not shared from having two controllers: those of
// ports, which come and go with link.Ports, and those of hosts, which the model
// counts and the target knows, which has them also over a reset. What was granted
// but cannot be seen there yet is noted here.
type use struct {
	mu      sync.Mutex // held for moments only, since pollers take it
	port    *link.Port // the last that was told to show the subsystem
	granted time.Time  // a host was let in
	ever    uint64     // controllers there had been by then
}

// grantLimit is how long a host that was let in may take to become a controller.
const grantLimit = 2 * time.Second

// byHost lets a host in, if nobody else is.
func (u *use) byHost(model *controller.Subsystem, ports *link.Ports, hosts *target.Target) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range ports.List() {
		if p == u.port || p.Shows() == model {
			return fmt.Errorf("port %s shows it, and its namespaces are not shared", p.Name)
		}
	}
	now := time.Now()
	if u.host(model, hosts, now) {
		return errors.New("a host is connected to it, and its namespaces are not shared")
	}
	_, u.ever = model.Controllers()
	u.granted = now
	return nil
}

// host reports whether a host uses the subsystem, which no port does. u.mu is
// held.
func (u *use) host(model *controller.Subsystem, hosts *target.Target, now time.Time) bool {
	n, ever := model.Controllers()
	return n > 0 || ever == u.ever && now.Sub(u.granted) < grantLimit || hosts.Connected(model.NQN)
}

// byPort gives a port the subsystem, if no host uses it.
func (u *use) byPort(p *link.Port, model *controller.Subsystem, hosts *target.Target) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p.Shows() != model && u.host(model, hosts, time.Now()) {
		return false
	}
	u.port = p
	return true
}
