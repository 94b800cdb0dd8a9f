// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package soc is the storage runtime, the body of leap-soc: it owns pollers,
// volumes and subsystems, serves the control API, and follows the link to
// leap-wpt.
//
//	soc.go         start and stop, in order
//	attach.go      the link to leap-wpt: attach, serve, attach again
//	volumes.go     volumes: made, opened again, deleted
//	reshape.go     volumes that change their size or block
//	subsystems.go  subsystems, namespaces, the hosts they allow
//	listeners.go   listeners: made, removed
//	hosts.go       listeners: opened; who is let in there
//	discovery.go   what hosts are told of them
//	record.go      what is kept in STATE and what is shown as facts in RUN
//	setup.go       what is made at every start
//	successor.go   another program that takes over
//	stat.go        what was counted
//	metrics.go     the same for Prometheus
//	limits.go      what is bounded
//	handlers.go    the control API
//
// What exists is changed under one lock (Runtime.mu) by the API only; every
// change is kept in the state file before it is reported as done. Pollers never
// take that lock.
package soc

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/wpt/link"
)

// Config describes a runtime.
type Config struct {
	Paths   api.Paths
	Name    string // of the runtime; empty: api.DefaultRuntime
	Group   string // whose members may look by the control API; "": nobody's
	Version string
	// CPUs has one poller pinned to each; empty: one poller that is not pinned.
	CPUs []int
	Poll poller.Mode
	// Limits bound what hosts take; fields of 0 have their defaults.
	Limits target.Limits
	// Standby: if another runtime has the name, its end is waited for.
	Standby bool
	// Setup makes what is to be there after every start; nil: nothing is. It is
	// called when the runtime is ready, beside all else, and uses the control API.
	// An error says that some of it is not there. It returns when ctx ends.
	Setup func(ctx context.Context) error
	Log   *slog.Logger

	Ready     func()        // called once it serves; may be nil
	Succeeded func(pid int) // called at an upgrade, when another process serves; may be nil

	before *before // the runtime that has started this one; nil: none has
	failed error   // why this runtime goes on after an upgrade
	kept   *record // what it had before: the other may have migrated its file

	disk disk.Disk // of a test; nil: disk.OS
}

// Runtime is a running leap-soc.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	since   time.Time
	pollers []*poller.Poller
	procs   int // GOMAXPROCS before it was raised for them; 0: it was not
	ports   *link.Ports
	target  *target.Target
	events  api.Events

	state          *api.StateFile[record]
	volumeFacts    *api.Facts
	subsystemFacts *api.Facts
	listenerFacts  *api.Facts

	refreshes sync.WaitGroup // goroutines that have ports look for their subsystem
	changes   sync.WaitGroup // and those that change volumes for hosts
	watches   sync.WaitGroup // and those that show what becomes of volumes

	protecting sync.Mutex // a host's change of write protection; before mu

	mu         sync.Mutex
	volumes    map[string]*vol
	making     map[string]string // the UUIDs of volumes that are being made, by name
	deleting   *deletion         // what is being deleted; nil: nothing
	subsystems map[string]*subsystem
	listeners  map[int]*listener // by number
	generation uint64            // of the discovery log
	discovery  nvme.UUID         // of the discovery subsystem; fixed once load has returned
	setup      string            // api.SetupNone, ...

	admission     atomic.Pointer[admission]
	admitted      chan struct{} // closed when leap-wpt has let this runtime in
	listenersKept chan struct{} // closed when keepListeners has ended
	listenerWork  chan struct{} // has keepListeners look at what follows
	announce      atomic.Bool   // the discovery log has changed
	hostsMoved    atomic.Bool   // hosts have come or gone
	portsWait     atomic.Bool   // for hosts to go

	linkMu sync.Mutex
	client *link.Client // nil while there is no link

	stop      context.CancelFunc // ends this runtime
	pause     atomic.Int64       // for guests, when it took over; 0: it did not
	upgradeMu sync.Mutex
	successor *successor // on standby, or nil
	last      record     // at the end
}

// linkWait is how long a start waits for leap-wpt: what it keeps for this
// runtime is needed to open volumes that live in memory.
const linkWait = 5 * time.Second

// Run serves until ctx ends, then stops: nothing more is fetched, what is in
// flight ends, and every controller stays enabled in leap-wpt for the next
// runtime. It does the same at an upgrade, and returns when the next runtime
// serves.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Name == "" {
		cfg.Name = api.DefaultRuntime
	}
	var err error
	if cfg.before, err = startedBy(); err != nil {
		return err
	}
	for {
		r := newRuntime(cfg)
		err := r.run(ctx)
		next := r.next()
		if next == nil {
			return err
		}
		failed := next.takeOver(ctx)
		if failed == nil {
			if cfg.Succeeded != nil {
				cfg.Succeeded(next.cmd.Process.Pid)
			}
			return err
		}
		cfg.Log.Error("upgrade failed: going on", "err", errors.Join(err, failed))
		cfg.before, cfg.failed, cfg.kept = nil, failed, &r.last
	}
}

// run is one life of a runtime.
func (r *Runtime) run(ctx context.Context) error {
	cfg := &r.cfg
	socket, err := cfg.Paths.RuntimeSocket(cfg.Name)
	if err != nil {
		return err
	}
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	pid, err := r.takePlace(ctx)
	if err != nil {
		return err
	}
	defer pid.Close()
	control, err := api.ListenControl(socket, cfg.Group)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := r.openRecords(); err != nil {
		return err
	}
	first, err := r.firstLink(ctx)
	if err != nil {
		return err
	}
	defer func() { r.dropLink(r.linkNow()) }()
	if err := r.startPollers(first); err != nil {
		return err
	}
	defer r.stopPollers()
	r.ports = link.NewPorts(r.pollers, r.resolve)
	defer r.watches.Wait()
	defer r.closeVolumes()
	if err := r.load(ctx); err != nil {
		return err
	}
	r.target = r.newTarget()

	r.beginSetup()
	err = pid.Ready() // before anybody is answered: who knows of this runtime finds its pid
	server := api.NewServer(r.mux())
	served := make(chan error, 1)
	go func() { served <- server.Serve(control) }()
	linked := make(chan struct{})
	go func() { defer close(linked); r.keepLink(ctx, first) }()
	go r.keepListeners(ctx)
	var setup sync.WaitGroup
	if err == nil {
		setup.Go(func() { r.makeSetup(ctx) })
		r.log.Info("ready", "socket", socket, "pollers", len(r.pollers))
		if cfg.Ready != nil {
			cfg.Ready()
		}
		took := make(chan struct{})
		go func() { defer close(took); r.tookOver(first) }()
		select {
		case <-ctx.Done():
		case err = <-served:
		}
		r.stop()
		<-took
	}
	r.stop()
	if next := r.next(); next != nil {
		next.stopping()
	}
	setup.Wait()
	<-r.listenersKept
	<-linked
	stop, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	err = errors.Join(err, server.Shutdown(stop))
	r.refreshes.Wait()
	r.changes.Wait()
	r.mu.Lock()
	r.last = r.record()
	r.mu.Unlock()
	return errors.Join(err, r.clearFacts())
}

// takePlace locks the pid file. On standby it waits for that.
func (r *Runtime) takePlace(ctx context.Context) (*api.PidFile, error) {
	path := r.cfg.Paths.PidFile(r.cfg.Name)
	if !r.cfg.Standby && r.cfg.before == nil {
		return api.LockPidFile(path)
	}
	if err := stateFile(r.cfg).Check(); err != nil {
		return nil, err
	}
	r.log.Info("on standby")
	r.cfg.before.say("standby")
	return api.WaitPidFile(ctx, path)
}

// tookOver tells the runtime before this one that it can go, and finds out how
// long guests had to wait.
func (r *Runtime) tookOver(c *link.Client) {
	if r.cfg.before == nil {
		return
	}
	stopped := r.cfg.before.serving()
	if stopped.IsZero() {
		return
	}
	if c != nil {
		if err := r.ports.Settled(c); err != nil {
			return
		}
	}
	pause := time.Since(stopped)
	r.pause.Store(int64(pause))
	r.log.Info("took over", "pause", pause)
}

// newRuntime makes a runtime that has nothing yet.
func newRuntime(cfg Config) *Runtime {
	return &Runtime{
		cfg: cfg, log: cfg.Log, since: time.Now(),
		volumes: make(map[string]*vol), making: make(map[string]string), subsystems: make(map[string]*subsystem),
		listeners: make(map[int]*listener), admitted: make(chan struct{}),
		listenersKept: make(chan struct{}), listenerWork: make(chan struct{}, 1),
	}
}

// startPollers starts the pollers, fenced by the link if there is one.
func (r *Runtime) startPollers(c *link.Client) error {
	fence := -1
	if c != nil {
		fence = c.Fence()
	}
	cpus := r.cfg.CPUs
	if len(cpus) == 0 {
		cpus = []int{-1}
	}
	// Control work and the garbage collector need processors that pollers,
	// which may spin, do not hold.
	if need := len(cpus) + 2; runtime.GOMAXPROCS(0) < need {
		r.procs = runtime.GOMAXPROCS(need)
	}
	for i, cpu := range cpus {
		p, err := poller.Start(poller.Config{Name: "poller-" + strconv.Itoa(i), CPU: cpu, Mode: r.cfg.Poll, Fence: fence})
		if err != nil {
			r.stopPollers()
			return err
		}
		r.pollers = append(r.pollers, p)
	}
	if _, why := r.ring(); why != nil {
		r.log.Warn("no io_uring: files are served by a pool of threads", "reason", why)
	}
	return nil
}

// ring asks the first poller for its io_uring.
func (r *Runtime) ring() (ok bool, why error) {
	_ = r.pollers[0].Do(func() {
		ring, err := r.pollers[0].Ring()
		ok, why = ring != nil, err
	})
	return ok, why
}

func (r *Runtime) stopPollers() {
	for _, p := range r.pollers {
		p.Stop()
	}
	if r.procs > 0 {
		runtime.GOMAXPROCS(r.procs)
	}
}

// resolve finds what a port is to show; it is asked for one port at a time. A
// subsystem is shown on one port only unless all its namespaces are shared: on
// the first that came, until that has gone.
func (r *Runtime) resolve(p *link.Port) *controller.Subsystem {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.findSubsystem(p.Subsystem)
	if err != nil || s.notReady() != nil {
		return nil
	}
	for _, other := range r.ports.List() {
		if p.Shows() != s.model && other.Shows() == s.model && !s.shared() {
			r.log.Error("subsystem is shown on another port and its namespaces are not shared",
				"subsystem", s.rec.Name, "port", p.Name, "other", other.Name)
			return nil
		}
	}
	if !s.use.byPort(p, s.model, r.target) && !s.shared() {
		if !s.waited {
			r.log.Warn("port waits for a host to leave its subsystem, whose namespaces are not shared", "subsystem", s.rec.Name, "port", p.Name)
		}
		s.waited = true
		r.portsWait.Store(true)
		r.wakeListeners()
		return nil
	}
	s.waited = false
	return s.model
}

// publish tells whoever watches.
func (r *Runtime) publish(kind, name, state, detail string) {
	r.events.Publish(api.Event{Time: time.Now(), Kind: kind, Name: name, State: state, Detail: detail})
}

// info describes the runtime.
func (r *Runtime) info() api.RuntimeInfo {
	uring, _ := r.ring()
	r.mu.Lock()
	setup := r.setup
	r.mu.Unlock()
	info := api.RuntimeInfo{
		Name: r.cfg.Name, Version: r.cfg.Version, PID: os.Getpid(), Since: r.since, Uptime: time.Since(r.since),
		Epoch: r.epoch(), Poll: r.cfg.Poll.String(), IOUring: uring, Pause: time.Duration(r.pause.Load()),
		StateDir: r.cfg.Paths.State, Setup: setup,
	}
	if r.cfg.failed != nil {
		info.UpgradeError = r.cfg.failed.Error()
	}
	queues := make(map[string]int)
	for _, p := range r.ports.List() {
		for _, q := range p.Queues() {
			queues[q.Poller]++
		}
	}
	for _, q := range r.target.Queues() {
		queues[q.Poller]++
	}
	for i, p := range r.pollers {
		info.Pollers = append(info.Pollers, api.PollerInfo{ID: i, CPU: p.CPU(), Queues: queues[p.Name()]})
	}
	return info
}
