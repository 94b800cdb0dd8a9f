// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package remote is the kind of volume that is a namespace of another
// machine's subsystem, over NVMe/TCP.
//
//	remote.go       the kind, its options, and the volume
//	association.go  what a controller is and can do
//	namespace.go    and what its namespace
//	keep.go         the goroutine that keeps an association, and makes another
//	lane.go         a poller's connection and the requests that wait for it
//	op.go           one command, from a request's memory to its end
//
// Each volume has one association at a time, and each poller that uses it one
// connection or several: a lane. Data is copied once, between guest memory and
// memory of the lane: a guest may change or take away its memory at any time,
// which must neither spoil a digest nor cost others the connection; and a write
// that is sent again after the connection broke is the same write.
//
// When the connection breaks, requests are kept and sent again over the next
// one: reads and flushes at once, and what changes the volume when the old
// controller has nothing in execution any more. That is after its Keep Alive
// Timeout, which nothing restarts any more, and its Command Quiesce Time; where
// it reports none, the Keep Alive Timeout once more. Nothing that may still
// change the volume is told to have ended before, not even by an error. The
// option resubmit says otherwise where the remote can be relied upon, or where
// nothing is to be sent again.
//
// A namespace that has grown has the volume offer to grow (volume.Reporter). One
// that is not what it was is not used: its association ends, and the next one
// begins when it is again.
package remote

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

var keys = []volume.Key{
	{Name: "addr", Value: "ADDRESS", Usage: "tcp://HOST[:PORT]/NQN[?nsid=N] of the namespace; namespace 1 by default"},
	{Name: "host-nqn", Value: "NQN", Usage: "who the subsystem is told wants it; by default made of the volume's UUID"},
	{Name: "hdr-digest", Value: "on|off", Default: "off", Usage: "CRC32C of PDU headers"},
	{Name: "data-digest", Value: "on|off", Default: "off", Usage: "CRC32C of data"},
	{Name: "queues", Value: "N", Default: "1", Usage: "connections of each poller that uses the volume, 1 to 16"},
	{Name: "keep-alive", Value: "DURATION", Default: "5s", Usage: "Keep Alive Timeout, 500ms to 1h"},
	{Name: "reconnect-delay", Value: "DURATION", Default: "2s", Usage: "time from one attempt to connect to the next, 10ms to 1h"},
	{Name: "fast-io-fail", Value: "DURATION|off", Default: "off", Usage: "after this long without a connection, I/O fails until there is one"},
	{Name: "ctrl-loss-timeout", Value: "DURATION|off", Default: "10m", Usage: "after this long without a connection, the volume fails"},
	{Name: "resubmit", Value: "safe|reconnect|never", Default: "safe", Usage: "when a command that changes the volume is sent again after its connection was lost"},
	{Name: noteID, Value: "ID", Usage: "the namespace that it must be, as export writes it"},
	{Name: noteSize, Value: "SIZE", Noted: true, Usage: "what it has while the remote is away, if namespace-id= and block= are given, too"},
	{Name: noteBlock, Value: "512|4096", Noted: true, Usage: "likewise"},
}

// maxQueues is the most connections of a lane.
const maxQueues = 16

// Values of resubmit.
const (
	resubmitSafe      = "safe"      // when nothing of the old association is in execution
	resubmitReconnect = "reconnect" // when there is a new one
	resubmitNever     = "never"     // it fails, when safe would have it sent again
)

// Options that Make notes, so that the volume is known while the remote is away.
const (
	noteSize  = "size"
	noteBlock = "block"
	noteID    = "namespace-id" // see identifiers
)

// known reports whether the options say what the namespace is.
func known(spec *volume.Spec) bool {
	return spec.Options[noteSize] != "" && spec.Options[noteBlock] != "" && spec.Options[noteID] != ""
}

// Kind is the kind remote.
var Kind = volume.Kind{
	Name:    "remote",
	Summary: "a namespace of another machine's subsystem, over NVMe/TCP",
	Keys:    keys,
	Make:    create,
}

// config is what the options say.
type config struct {
	addr           fabrics.Address
	options        host.Options
	queues         int
	resubmit       string
	reconnectDelay time.Duration
	fastIOFail     time.Duration // negative: off
	ctrlLoss       time.Duration // negative: off
}

// parse reads the options, and notes those that were not given.
func parse(spec *volume.Spec) (c config, err error) {
	if err := spec.CheckKeys(keys); err != nil {
		return c, err
	}
	if c.addr, err = parseAddress(spec.Options["addr"]); err != nil {
		return c, err
	}
	if err := c.parseHost(spec); err != nil {
		return c, err
	}
	if known(spec) {
		if _, _, err := spec.SizeAndBlock(); err != nil {
			return c, err
		}
	}
	for _, d := range []struct {
		key      string
		to       *time.Duration
		min, max time.Duration
		off      bool
	}{
		{"keep-alive", &c.options.KeepAlive, 500 * time.Millisecond, time.Hour, false},
		{"reconnect-delay", &c.reconnectDelay, 10 * time.Millisecond, time.Hour, false},
		{"fast-io-fail", &c.fastIOFail, 0, 24 * time.Hour, true},
		{"ctrl-loss-timeout", &c.ctrlLoss, 0, 24 * time.Hour, true},
	} {
		text := option(spec, d.key)
		if *d.to = -1; d.off && text == "off" {
			continue
		}
		if *d.to, err = time.ParseDuration(text); err != nil || *d.to < d.min || *d.to > d.max {
			return c, fault.Errorf(fault.Usage, "", "", "option %s=%s: not a duration from %v to %v", d.key, text, d.min, d.max)
		}
	}
	c.options.Timeout = c.options.KeepAlive
	c.options.DigestsRequired = true
	text := option(spec, "queues")
	if c.queues, err = strconv.Atoi(text); err != nil || c.queues < 1 || c.queues > maxQueues {
		return c, fault.Errorf(fault.Usage, "", "", "option queues=%s: not a number from 1 to %d", text, maxQueues)
	}
	switch c.resubmit = option(spec, "resubmit"); c.resubmit {
	case resubmitSafe, resubmitReconnect, resubmitNever:
	default:
		return c, fault.Errorf(fault.Usage, "", "", "option resubmit=%s: not one of safe, reconnect, never", c.resubmit)
	}
	for key, to := range map[string]*bool{"hdr-digest": &c.options.HeaderDigest, "data-digest": &c.options.DataDigest} {
		if *to, err = volume.ParseSwitch(key, option(spec, key)); err != nil {
			return c, err
		}
	}
	return c, nil
}

func parseAddress(text string) (fabrics.Address, error) {
	if text == "" {
		return fabrics.Address{}, fault.Errorf(fault.Usage, "", "", "option addr= is missing: remote needs it")
	}
	a, err := fabrics.ParseAddress(text)
	switch {
	case err != nil:
		return a, fault.Errorf(fault.Usage, "", "", "option addr=: %w", err)
	case a.Transport != fabrics.TransportTCP:
		return a, fault.Errorf(fault.Unsupported, "", "", "option addr=%s: transport %v is not supported here", text, a.Transport)
	case a.NQN == "" || a.NQN == fabrics.DiscoveryNQN:
		return a, fault.Errorf(fault.Usage, "", "", "option addr=%s: it names no subsystem", text)
	case a.Port == 0:
		return a, fault.Errorf(fault.Usage, "", "", "option addr=%s: port 0 is nowhere", text)
	}
	if a.NSID == 0 {
		a.NSID = 1
	}
	return a, nil
}

// parseHost reads who the host is. Two volumes with one host NQN have one host
// identifier as well, if the NQN is made of a UUID.
func (c *config) parseHost(spec *volume.Spec) error {
	id, err := nvme.ParseUUID(spec.UUID)
	if err != nil {
		return fault.Errorf(fault.Usage, "", "", "the UUID of the volume: %w", err)
	}
	nqn, ok := spec.Options["host-nqn"]
	if !ok {
		nqn = id.NQN()
		spec.Note("host-nqn", nqn)
	}
	if err := nvme.CheckNQN(nqn); err != nil {
		return fault.Errorf(fault.Usage, "", "", "option host-nqn=: %w", err)
	}
	if len(nqn) > len(nvme.NQNUUID) && nqn[:len(nvme.NQNUUID)] == nvme.NQNUUID {
		if own, err := nvme.ParseUUID(nqn[len(nvme.NQNUUID):]); err == nil {
			id = own
		}
	}
	c.options.HostNQN, c.options.HostID = nqn, id
	return nil
}

// option returns the value of a key, and notes the default where none is given.
func option(spec *volume.Spec, name string) string {
	if text, ok := spec.Options[name]; ok {
		return text
	}
	for _, k := range keys {
		if k.Name == name {
			spec.Note(name, k.Default)
			return k.Default
		}
	}
	panic("remote: no key " + name)
}

// firstTry is how long a volume that exists waits for its remote: others are
// to be opened, too.
const firstTry = 2 * time.Second

// create connects to the remote. A volume of which the options say what it is,
// as those of one that exists do, is there at once, whether the remote answers
// or not.
func create(ctx context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
	c, err := parse(spec)
	if err != nil {
		return nil, err
	}
	r := &remote{
		config: c, done: make(chan struct{}), opened: make(chan struct{}, 1), changes: make(chan struct{}, 1),
		lanes: make(map[*poller.Poller]*lane), epoch: time.Now(), log: env.Logger().With("volume", spec.Name),
		stalled: stalled, unanswered: unanswered,
	}
	var cancel context.CancelCauseFunc
	r.ctx, cancel = context.WithCancelCause(context.Background())
	a, err := r.first(ctx, spec)
	if err != nil {
		cancel(err)
		return nil, err
	}
	r.close = sync.OnceFunc(func() {
		cancel(errClosed)
		<-r.done
		close(r.changes)
	})
	go r.keep(r.ctx, a)
	return r, nil
}

// first makes the first association, or has the volume be what was noted; then
// there is none.
func (r *remote) first(ctx context.Context, spec *volume.Spec) (*association, error) {
	limited, known := ctx, known(spec)
	if known {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, firstTry)
		defer cancel()
	}
	a, err := r.connect(limited)
	switch {
	case err == nil:
		if err = r.describe(spec, a); err != nil {
			a.report(err)
			a.admin.Close()
			return nil, err
		}
		return a, nil
	case !known || ctx.Err() != nil:
		return nil, err
	}
	r.setErr(err)
	return nil, r.recall(spec)
}

// describe takes what the volume is from the controller, and notes it.
func (r *remote) describe(spec *volume.Spec, a *association) error {
	if id, ok := spec.Options[noteID]; ok && !a.ns.ids.are(id) {
		return otherNamespace(id, &a.ns.ids)
	}
	spec.Note(noteSize, strconv.FormatUint(a.ns.info.Size, 10))
	spec.Note(noteBlock, strconv.Itoa(int(a.ns.info.Block)))
	r.id = a.ns.ids.String()
	spec.Note(noteID, r.id)
	info := a.ns.info
	r.info.Store(&info)
	r.found.Store(&info)
	return nil
}

// recall takes what the volume is from the options; what is not in there is
// the least that a host can rely on.
func (r *remote) recall(spec *volume.Spec) error {
	size, block, err := spec.SizeAndBlock()
	if err != nil {
		return err
	}
	r.id = spec.Options[noteID]
	info := volume.Info{
		Size: size, Block: block, VolatileCache: true,
		WriteGranularity: block, DiscardGranularity: block, AtomicUnit: block,
	}
	r.info.Store(&info)
	r.found.Store(&info)
	return nil
}

// remote is the volume.
type remote struct {
	config
	id    string // of the namespace
	info  atomic.Pointer[volume.Info]
	found atomic.Pointer[volume.Info] // see Found
	epoch time.Time
	log   *slog.Logger
	ctx   context.Context // ends by close, with errClosed

	stalled, unanswered time.Duration // see the constants

	close  func()
	done   chan struct{} // closed when keep has ended
	opened chan struct{} // there may be a lane without a connection, or one for it

	changes chan struct{} // Err or Found may have changed

	turns int // connections that lanes were given; for keep

	// down is since when there has been no association, as now; 0: there is one.
	down atomic.Int64
	dead atomic.Bool // ctrl-loss-timeout has passed

	mu    sync.Mutex
	lanes map[*poller.Poller]*lane
	err   error
}

// now returns the time since the volume was made, in nanoseconds; never 0.
func (r *remote) now() int64 { return int64(time.Since(r.epoch)) + 1 }

// setErr notes that there is no association since now, or since
// before, and why; nil: that there is one. It is for keep, and for first.
func (r *remote) setErr(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
	if err == nil {
		r.down.Store(0)
	} else if r.down.CompareAndSwap(0, r.now()) && r.fastIOFail >= 0 {
		time.AfterFunc(r.fastIOFail+time.Millisecond, r.wake)
	}
	r.changed()
}

// changed has whoever watches the volume look at it.
func (r *remote) changed() {
	select {
	case r.changes <- struct{}{}:
	default:
	}
}

// offer notes what the namespace is, which check has let pass.
func (r *remote) offer(info *volume.Info) {
	found := *info
	r.found.Store(&found)
	r.changed()
}

// wantWork has keep look for lanes without a connection.
func (r *remote) wantWork() {
	select {
	case r.opened <- struct{}{}:
	default:
	}
}

// Err implements volume.Reporter.
func (r *remote) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Found implements volume.Reporter.
func (r *remote) Found() *volume.Info { return r.found.Load() }

// Take implements volume.Reporter.
func (r *remote) Take(found *volume.Info) { r.info.Store(found) }

// Changes implements volume.Reporter.
func (r *remote) Changes() <-chan struct{} { return r.changes }

// failing reports whether I/O fails for want of a connection.
func (r *remote) failing() bool {
	down := r.down.Load()
	return r.dead.Load() || down != 0 && r.fastIOFail >= 0 && r.now()-down >= int64(r.fastIOFail)
}

// Info implements volume.Volume.
func (r *remote) Info() *volume.Info { return r.info.Load() }

// Close implements volume.Volume.
func (r *remote) Close() error {
	r.close()
	return nil
}

// Open implements volume.Volume. It does not wait for a connection.
func (r *remote) Open(p *poller.Poller) (volume.Queue, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[p]
	if l == nil {
		var err error
		if l, err = newLane(r, p); err != nil {
			return nil, err
		}
		r.lanes[p] = l
		r.wantWork()
	}
	l.users++
	return &queue{lane: l}, nil
}
