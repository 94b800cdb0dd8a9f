// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
)

const (
	// MaxPorts bounds the ports of a host; each costs some pages and descriptors.
	MaxPorts = 1024
	// releaseLimit is how long a change waits for a runtime to give a port up.
	releaseLimit = 5 * time.Second
	// stateVersion is the version of STATE/wpt.json.
	stateVersion = 1
)

// state is STATE/wpt.json.
type state struct {
	Ports []record `json:"ports"`
}

// record is what is kept of a port.
type record struct {
	Name      string `json:"name"`
	Owner     string `json:"owner"`
	Doorbells string `json:"doorbells"`
	Subsystem string `json:"subsystem"`
	Runtime   string `json:"runtime"`
	Poll      string `json:"poll"` // empty: as the runtime
}

func (r record) binding() binding { return binding{r.Subsystem, r.Poll} }

// check tells whether what the file says can be a port.
func (r record) check() error {
	spec := api.PortSpec{Name: r.Name, Owner: r.Owner, Doorbells: r.Doorbells}
	if err := spec.Check(); err != nil {
		return err
	}
	return api.PortBinding{Subsystem: r.Subsystem, Runtime: r.Runtime, Poll: r.Poll}.Check()
}

// Broker is a running leap-wpt.
type Broker struct {
	log     *slog.Logger
	paths   api.Paths
	version string
	since   time.Time
	limits  limits
	group   string // see Config
	// maxPorts bounds the ports that are added; those of before stay.
	maxPorts int

	pause time.Duration // for guests, when this program took over; else 0

	upgrades  chan string // a program that is to take over
	upgradeMu sync.Mutex
	failure   error // of the last upgrade

	// What the program that follows needs.
	files  *files
	root   *table // the broker's own
	noteMu sync.Mutex
	table  *table // root, once all is in it
	// Descriptors of their own of pid, links and control.
	pidFD, linksFD, controlFD int

	pid    *api.PidFile
	facts  *api.Facts
	events api.Events
	file   *api.StateFile[state]
	server *api.Server
	links  *net.UnixListener
	// linkSlots has an item for each connection to it.
	linkSlots chan struct{}
	kept      keptFiles
	counts    brokerCounts

	control *net.UnixListener // the server's
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	ended   chan error // the API server has ended

	admin  sync.Mutex
	failed map[string]record // ports of the state file that could not be opened

	mu     sync.Mutex
	ports  map[string]*port
	byID   map[uint32]*port
	lastID uint32

	linkMu   sync.Mutex
	runtimes map[string]*runtime
	epoch    uint64
}

// Open starts the broker: it takes the pid file, opens the ports of the state
// file, and serves clients, runtimes and the control API until Close. A port
// that cannot be opened is logged and stays in the state file. If another
// leap-wpt runs in the same folder, the error is an exists fault.
func Open(config Config) (*Broker, error) { return open(config, defaultLimits) }

func open(config Config, limits limits) (*Broker, error) {
	b := &Broker{
		log: config.Logger, paths: config.Paths, version: config.Version, since: time.Now(), limits: limits, group: config.Group,
		maxPorts: cmp.Or(config.Ports, MaxPorts),
		ended:    make(chan error, 1),
		upgrades: make(chan string, 1),
		failure:  config.failed,

		linkSlots: make(chan struct{}, maxLinks),
		failed:    make(map[string]record),
		ports:     make(map[string]*port),
		byID:      make(map[uint32]*port),
		runtimes:  make(map[string]*runtime),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if b.log == nil {
		b.log = slog.Default()
	}
	b.files = newFiles(config.Store, b.log)
	b.kept.files = b.files
	if err := b.start(config.before); err != nil {
		if config.before != nil {
			b.abandon()
			return nil, err
		}
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// start is the rest of Open: it goes on where a program before has stopped, if
// there was one. What it leaves behind on an error is Close's.
func (b *Broker) start(before *legacy) (err error) {
	var t brokerTable
	if before != nil {
		if t, err = b.takeOver(before); err != nil {
			return err
		}
	}
	anew := b.root == nil
	if anew {
		if b.root, err = newTable(); err != nil {
			return err
		}
		b.files.keepAs(rootTable, b.root.fd)
	} else {
		b.restoreBroker(&t)
	}
	if b.pid == nil {
		if b.pid, err = api.LockPidFile(b.paths.PidFile("wpt")); err == nil {
			b.pidFD, err = b.files.keepCopy(b.pid.File())
		}
		if err != nil {
			return err
		}
	}
	if b.facts, err = api.OpenFacts(b.paths.Facts(api.KindPort), "wpt"); err != nil {
		return err
	}
	if anew {
		if err := b.facts.Clear(); err != nil {
			return err
		}
	}
	stored, err := b.loadState()
	if err != nil {
		return err
	}
	missing := b.restorePorts(stored.Ports, t.Ports)
	b.links, b.linksFD, _ = b.restoreListener(t.Links, b.paths.LinkSocket())
	b.control, b.controlFD, _ = b.restoreListener(t.Control, b.paths.WptSocket())
	swept := b.files.sweep()
	for _, r := range missing {
		if _, err := b.openPort(r); err != nil {
			b.log.Error("opening a port", "port", r.Name, "err", err)
			b.failed[r.Name] = r
		}
	}
	if err := b.listen(); err != nil {
		return err
	}
	b.table = b.root
	b.note()
	if before != nil {
		b.pause = before.pause()
		b.log.Info("took over", "from", t.From, "version", b.version, "pause", b.pause, "ports", len(b.ports), "closed", swept)
	}
	for _, rt := range slices.Collect(maps.Values(b.runtimes)) { // those that are gone leave the map
		if rt.fence != nil {
			b.wg.Go(rt.await)
		}
	}
	for _, p := range b.allPorts() {
		p.serve()
	}
	b.wg.Go(b.acceptLinks)
	b.serve(b.control)
	return b.pid.Ready()
}

// restorePorts makes the ports of the state file that have a table, and returns
// the others.
func (b *Broker) restorePorts(records []record, left []portEntry) (missing []record) {
	tables := make(map[string]fileID, len(left))
	for _, e := range left {
		tables[e.Name] = e.Table
	}
	for _, r := range records {
		at, ok := tables[r.Name]
		delete(tables, r.Name)
		if ok {
			p, err := b.restorePort(r, at)
			if err == nil {
				b.ports[p.name], b.byID[p.id] = p, p
				continue
			}
			b.log.Error("taking over a port: its guest loses its drive", "port", r.Name, "err", err)
		}
		missing = append(missing, r)
	}
	for name := range tables { // they were being made, or removed
		if err := b.facts.Remove(name); err != nil {
			b.log.Error("removing a port", "port", name, "err", err)
		}
	}
	return missing
}

// listen opens the sockets of runtimes and of the control API, where they were
// not left.
func (b *Broker) listen() (err error) {
	if b.links == nil {
		if b.links, err = api.Listen(b.paths.LinkSocket(), "unixpacket", 0o600); err == nil {
			b.linksFD, err = b.files.keepCopy(b.links)
		}
	}
	if err == nil && b.control == nil {
		if b.control, err = api.ListenControl(b.paths.WptSocket(), b.group); err == nil {
			b.controlFD, err = b.files.keepCopy(b.control)
		}
	}
	return err
}

// stateFile describes STATE/wpt.json.
func stateFile(paths api.Paths) *api.StateFile[state] {
	return api.NewStateFile[state](paths.StateFile("wpt"), stateVersion, nil)
}

func (b *Broker) loadState() (state, error) {
	b.file = stateFile(b.paths)
	return b.file.Load()
}

// serve serves the control API, which owns l.
func (b *Broker) serve(l *net.UnixListener) {
	b.server = api.NewServer(b.mux())
	server := b.server
	b.wg.Go(func() { b.ended <- server.Serve(l) })
}

// Close ends everything: guests lose their drives, and runtimes their links.
func (b *Broker) Close() error {
	var errs []error
	b.cancel()
	if b.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
		errs = append(errs, b.server.Shutdown(ctx))
		cancel()
	}
	if b.links != nil {
		b.links.Close()
	}
	if b.control != nil {
		b.control.Close()
	}
	b.linkMu.Lock()
	for _, rt := range b.runtimes {
		rt.closeFence()
		rt.endLink()
	}
	b.linkMu.Unlock()
	b.wg.Wait()
	for _, p := range b.allPorts() {
		errs = append(errs, p.close())
	}
	b.files.closeAll()
	if b.pid != nil {
		errs = append(errs, b.pid.Close())
	}
	return errors.Join(errs...)
}

// Attached returns the names of the ports with a guest, in order.
func (b *Broker) Attached() []string {
	var names []string
	for _, p := range b.allPorts() {
		if p.hasClient() {
			names = append(names, p.name)
		}
	}
	return names
}

func (p *port) hasClient() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client != nil && p.client.negotiated
}

// allPorts returns the ports by name.
func (b *Broker) allPorts() []*port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.ports), func(x, y *port) int { return cmp.Compare(x.name, y.name) })
}

func (b *Broker) portByID(id uint32) *port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byID[id]
}

// port returns a port, or a not-found fault.
func (b *Broker) port(op, name string) (*port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.ports[name]; p != nil {
		return p, nil
	}
	return nil, fault.Errorf(fault.NotFound, op, name, "there is no such port")
}

// openPort makes a port and lets clients and its runtime in.
func (b *Broker) openPort(r record) (*port, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.lastID++
	id := b.lastID
	n := len(b.ports)
	b.mu.Unlock()
	if n >= MaxPorts {
		return nil, fault.Errorf(fault.Unsupported, "", "", "there are %d ports, the limit", n)
	}
	p, err := newPort(b, id, r)
	if err != nil {
		return nil, err
	}
	if err := p.listen(); err != nil {
		p.free()
		return nil, err
	}
	b.mu.Lock()
	b.ports[p.name], b.byID[id] = p, p
	b.mu.Unlock()
	b.note()
	return p, nil
}

// closePort ends a port that its runtime has given up, or was asked to.
func (b *Broker) closePort(p *port) error {
	b.mu.Lock()
	delete(b.ports, p.name)
	delete(b.byID, p.id)
	b.mu.Unlock()
	b.note()
	return p.close()
}

// save writes the state file. The caller holds admin.
func (b *Broker) save() error {
	var s state
	for _, p := range b.allPorts() {
		p.mu.Lock()
		s.Ports = append(s.Ports, p.record)
		p.mu.Unlock()
	}
	s.Ports = slices.AppendSeq(s.Ports, maps.Values(b.failed))
	slices.SortFunc(s.Ports, func(x, y record) int { return cmp.Compare(x.Name, y.Name) })
	return b.file.Save(s)
}

// addPort makes a port that outlives restarts. caller is who asks, if known.
func (b *Broker) addPort(spec api.PortSpec, caller *api.Caller) (api.Port, error) {
	const op = "port add"
	b.admin.Lock()
	defer b.admin.Unlock()
	if p, err := b.port(op, spec.Name); err == nil {
		if !spec.ExistOK {
			return api.Port{}, fault.Errorf(fault.Exists, op, spec.Name, "the port exists")
		}
		if what := p.differs(spec); what != "" {
			return api.Port{}, fault.Errorf(fault.Exists, op, spec.Name, "the port exists, with %s", what).
				Hint("`leap-wpt port remove " + spec.Name + "`, when no guest has it, makes room for another")
		}
		return p.show(), nil
	}
	if n := len(b.allPorts()); n >= b.maxPorts {
		return api.Port{}, fault.Errorf(fault.Unsupported, op, spec.Name, "there are %d ports, the limit", n).
			Hint("`leap-wpt run --ports N` allows as many as " + strconv.Itoa(MaxPorts))
	}
	p, err := b.openPort(newRecord(spec, caller))
	if err != nil {
		return api.Port{}, fault.New(0, op, spec.Name, err)
	}
	p.serve()
	failed, was := b.failed[spec.Name]
	delete(b.failed, spec.Name)
	if err := b.save(); err != nil {
		if was {
			b.failed[spec.Name] = failed
		}
		return api.Port{}, fault.New(0, op, spec.Name, errors.Join(err, b.closePort(p)))
	}
	b.events.Publish(api.Event{Kind: api.KindPort, Name: spec.Name, State: "created"})
	return p.show(), nil
}

// newRecord fills in what a request leaves out.
func newRecord(spec api.PortSpec, caller *api.Caller) record {
	r := record{
		Name: spec.Name, Owner: spec.Owner, Subsystem: spec.Subsystem,
		Doorbells: cmp.Or(spec.Doorbells, api.DoorbellsTrap),
		Runtime:   cmp.Or(spec.Runtime, api.DefaultRuntime),
	}
	if r.Owner == "" {
		uid := os.Geteuid()
		if caller != nil {
			uid = int(caller.UID)
		}
		r.Owner = strconv.Itoa(uid)
		if u, err := user.LookupId(r.Owner); err == nil {
			r.Owner = u.Username
		}
	}
	return r
}

// differs says what the port has in the first thing that is not as spec asks for.
// What spec leaves out may be anything.
func (p *port) differs(spec api.PortSpec) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range []struct{ name, want, have string }{
		{"owner", spec.Owner, p.record.Owner},
		{"doorbells", spec.Doorbells, p.record.Doorbells},
		{"subsystem", spec.Subsystem, p.record.Subsystem},
		{"runtime", spec.Runtime, p.record.Runtime},
	} {
		if f.want != "" && f.want != f.have {
			return f.name + " " + cmp.Or(f.have, "-")
		}
	}
	return ""
}

// bindPort gives a port another subsystem (empty: none), runtime and poll mode,
// and waits until the runtime before has let go of it. A guest that uses its
// drive moves on to another runtime, but not to another subsystem.
func (b *Broker) bindPort(name string, to api.PortBinding) (api.Port, error) {
	const op = "port bind"
	b.admin.Lock()
	defer b.admin.Unlock()
	p, err := b.port(op, name)
	if err != nil {
		return api.Port{}, err
	}
	p.mu.Lock()
	before := p.record
	next := before
	next.Subsystem, next.Poll = to.Subsystem, to.Poll
	next.Runtime = cmp.Or(to.Runtime, api.DefaultRuntime)
	inUse := p.client != nil && p.regs.Page.LoadCC().EN()
	if inUse && before.Subsystem != "" && next.Subsystem != before.Subsystem {
		p.mu.Unlock()
		return api.Port{}, fault.Errorf(fault.Exists, op, name, "a guest uses it as %s", before.Subsystem).
			Hint("shut the guest down first")
	}
	p.record = next
	p.mu.Unlock()
	if err := b.save(); err != nil {
		p.mu.Lock()
		p.record = before
		p.mu.Unlock()
		return api.Port{}, fault.New(0, op, name, err)
	}
	p.reconcile()
	if err := p.setFacts(); err != nil {
		return api.Port{}, fault.New(0, op, name, err)
	}
	if !p.wait(p.followed, releaseLimit, b.ctx.Done()) {
		return api.Port{}, fault.Errorf(fault.Timeout, op, name, "runtime %s has not let go of it yet", before.Runtime)
	}
	return p.show(), nil
}

// followed reports whether no runtime holds the port that should not. One that
// is not gone yet is not waited for. The caller holds mu.
func (p *port) followed() bool {
	return p.holder == nil || !p.detaching || p.holder.lost()
}

// removePort ends a port for good. A guest keeps it, unless forced.
func (b *Broker) removePort(name string, force bool) error {
	const op = "port remove"
	b.admin.Lock()
	defer b.admin.Unlock()
	p, err := b.port(op, name)
	if err != nil {
		r, ok := b.failed[name]
		if !ok {
			return err
		}
		delete(b.failed, name)
		if err := b.save(); err != nil {
			b.failed[name] = r
			return fault.New(0, op, name, err)
		}
		return nil
	}
	if p.hasClient() && !force {
		return fault.Errorf(fault.Exists, op, name, "a guest is attached").
			Hint("shut the guest down, or force it: the guest then loses its drive")
	}
	p.mu.Lock()
	p.record.Subsystem = ""
	p.mu.Unlock()
	p.reconcile()
	// A runtime that does not answer has mappings of its own: nothing of it is
	// lost when the port goes all the same.
	p.wait(p.followed, releaseLimit, b.ctx.Done())
	err = b.closePort(p)
	err = errors.Join(err, b.save())
	b.events.Publish(api.Event{Kind: api.KindPort, Name: name, State: "deleted"})
	if err != nil {
		return fault.New(0, op, name, err)
	}
	return nil
}
