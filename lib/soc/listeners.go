// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/fault"
)

// listener is a listener that exists: what is kept of it, and how far opening it
// has come (keepListeners).
type listener struct {
	rec   listenerRecord
	addr  fabrics.Address
	open  *target.Listener // nil: its address cannot be had, or was not tried yet
	err   error            // why
	retry backoff          // when it is tried again
	tried chan struct{}    // closed once it was
}

// newListener makes the listener of a record.
func newListener(rec listenerRecord) (*listener, error) {
	addr, err := fabrics.ParseAddress(rec.URL)
	return &listener{rec: rec, addr: addr, err: errNotTried, tried: make(chan struct{})}, err
}

func (l *listener) name() string { return strconv.Itoa(l.rec.Number) }

// discovers reports whether the listener is for discovery only.
func (l *listener) discovers() bool { return discoveryOnly(l.rec.Targets) }

// discoveryOnly reports whether the words are the targets of such a listener.
func discoveryOnly(targets []string) bool {
	return len(targets) == 1 && targets[0] == fabrics.DiscoveryNQN
}

// shows reports whether the listener shows a subsystem to those it allows.
func (l *listener) shows(s *subsystem) bool {
	return len(l.rec.Targets) == 0 || slices.Contains(l.rec.Targets, s.rec.Name)
}

func (l *listener) state() (state, reason string) {
	if l.open == nil {
		return api.ListenerRetrying, l.err.Error()
	}
	return api.ListenerListening, ""
}

// listenAddress reads the URL of a request; an NQN in it is a target.
func listenAddress(in *api.ListenerSpec) (fabrics.Address, error) {
	addr, err := fabrics.ParseAddress(in.URL)
	if err == nil && discoveryOnly(in.Targets) && addr.NQN == "" {
		in.Targets = nil // it chooses the port as it does in the URL
		addr, err = fabrics.ParseAddressOf(in.URL, fabrics.DiscoveryNQN)
	}
	switch {
	case err != nil:
		return addr, fault.New(fault.Usage, "", "", err)
	case addr.Transport != fabrics.TransportTCP:
		return addr, fault.Errorf(fault.Unsupported, "", "", "there is no transport %v to listen with", addr.Transport)
	case addr.NSID != 0:
		return addr, fault.Errorf(fault.Usage, "", "", "%s: a listener shows whole subsystems, no single namespace", in.URL)
	case addr.NQN != "" && len(in.Targets) > 0:
		return addr, fault.Errorf(fault.Usage, "", "", "%s: an NQN in the URL is the only target", in.URL)
	case addr.NQN != "":
		in.Targets = []string{addr.NQN}
		addr.NQN = ""
	}
	if in.Advertise != "" {
		if _, err := advertised(in.Advertise, addr); err != nil {
			return addr, fault.New(fault.Usage, "", "", err)
		}
	}
	var referrals []string
	for _, url := range in.Referrals {
		to, err := referral(url)
		if err != nil {
			return addr, fault.New(fault.Usage, "", "", err)
		}
		referrals = append(referrals, to.String())
	}
	slices.Sort(referrals)
	in.Referrals = slices.Compact(referrals)
	if addr.Port == 0 {
		addr.Port, err = freePort(addr)
	}
	return addr, err
}

// referral reads the URL of another discovery controller.
func referral(url string) (fabrics.Address, error) {
	addr, err := fabrics.ParseAddressOf(url, fabrics.DiscoveryNQN)
	switch {
	case err != nil:
	case addr.Port == 0:
		err = fmt.Errorf("referral to %s: port 0 is for listeners", url)
	case addr.NSID != 0:
		err = fmt.Errorf("referral to %s: it is to discovery, no namespace", url)
	}
	return addr, err
}

// advertised is the address that discovery is to tell instead of that of a
// listener, whose port it has unless it says another.
func advertised(words string, of fabrics.Address) (fabrics.Address, error) {
	addr, err := fabrics.ParseAddress(of.Transport.String() + "://" + words)
	if err == nil && (addr.NQN != "" || addr.NSID != 0 || addr.Port == 0) {
		err = fmt.Errorf("bad address %q to advertise: it is not HOST[:PORT]", words)
	}
	if err == nil && !strings.HasSuffix(words, ":"+strconv.Itoa(int(addr.Port))) {
		addr.Port = of.Port
	}
	return addr, err
}

// freePort finds a port that is free now. It is what the listener is known by
// from then on, also over restarts.
func freePort(addr fabrics.Address) (uint16, error) {
	l, err := net.Listen("tcp", addr.HostPort())
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), nil
}

// createListener makes a listener and has it opened; if that cannot be done at
// once, it is retrying.
func (r *Runtime) createListener(ctx context.Context, in api.ListenerSpec) (api.Listener, error) {
	addr, err := listenAddress(&in)
	if err != nil {
		return api.Listener{}, err
	}
	r.mu.Lock()
	l, err := r.listen(addr, in)
	r.mu.Unlock()
	if err != nil {
		return api.Listener{}, err
	}
	select {
	case <-r.admitted:
		select {
		case <-l.tried:
		case <-r.listenersKept:
		case <-ctx.Done():
			return api.Listener{}, ctx.Err()
		}
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.describeListener(l), nil
}

// listen makes a listener, and for volumes the subsystem that shows them: all of
// it or nothing. r.mu is held.
func (r *Runtime) listen(addr fabrics.Address, in api.ListenerSpec) (*listener, error) {
	targets, volumes, err := r.sortTargets(in.Targets)
	if err != nil {
		return nil, err
	}
	if len(volumes) == 0 {
		if err := volumesOnly(in); err != nil {
			return nil, err
		}
	}
	for _, l := range r.listeners {
		if l.addr == addr {
			return r.sameListener(l, in, targets, volumes)
		}
	}
	if len(volumes) > 0 && len(in.Allow) == 0 {
		return nil, fault.Errorf(fault.Usage, "", "", "no host may use volume %s yet", volumes[0]).
			Hint("--allow NQN lets a host in, as in its /etc/nvme/hostnqn; --allow any lets every host in")
	}
	rec := listenerRecord{URL: addr.String(), Advertise: in.Advertise, Referrals: in.Referrals, Targets: targets}
	l, err := newListener(rec)
	if err != nil {
		return nil, err
	}
	if err := r.number(l, len(volumes) > 0); err != nil {
		return nil, err
	}
	r.listeners[l.rec.Number] = l
	if err := r.fill(l, in, volumes); err != nil {
		delete(r.listeners, l.rec.Number)
		r.logFacts(r.listenerFacts.Remove(l.name()))
		return nil, err
	}
	r.admit()
	r.showListener(l)
	r.publish(api.KindListener, l.name(), api.ListenerRetrying, "")
	return l, nil
}

// number gives a new listener the lowest number that is free, also among those
// of other runtimes, and, if it is to have one, whose implicit subsystem is new.
// r.mu is held.
func (r *Runtime) number(l *listener, implicit bool) (err error) {
	for l.rec.Number < maxListener {
		l.rec.Number++
		if r.listeners[l.rec.Number] != nil || implicit && r.subsystems[implicitName(l)] != nil {
			continue
		}
		if _, err = r.listenerFacts.Add(l.name()); fault.KindOf(err) != fault.Exists {
			return err
		}
	}
	return err
}

// maxListener is the highest number of a listener, which is its Port ID in the
// discovery log.
const maxListener = 1<<16 - 1

// fill keeps a new listener, with the subsystem of its volumes if it is for
// some. r.mu is held.
func (r *Runtime) fill(l *listener, in api.ListenerSpec, volumes []string) error {
	r.generation++
	if len(volumes) == 0 {
		return r.save()
	}
	l.rec.Targets = []string{implicitName(l)}
	spec := api.SubsystemSpec{Name: implicitName(l), UUID: in.UUID, Implicit: true, Volumes: volumes, Shared: in.Shared, ReadOnly: in.ReadOnly}
	_, err := r.makeSubsystem(spec, in.Allow)
	return err
}

// implicitName is the name of the subsystem that is made for the volumes of a
// listener.
func implicitName(l *listener) string { return "listener-" + l.name() }

// sortTargets tells subsystems, of which it returns the names, from volumes.
// r.mu is held.
func (r *Runtime) sortTargets(words []string) (subsystems, volumes []string, err error) {
	if discoveryOnly(words) {
		return words, nil, nil
	}
	for _, word := range words {
		s, err := r.findSubsystem(word)
		v := r.volumes[word]
		switch {
		case err == nil && v != nil:
			return nil, nil, fault.Errorf(fault.Usage, "", "", "%s is a subsystem and a volume", word).
				Hint(s.rec.NQN + " means the subsystem")
		case err == nil && slices.Contains(subsystems, s.rec.Name):
			return nil, nil, fault.Errorf(fault.Usage, "", "", "target %s is given twice", s.rec.Name)
		case err == nil:
			subsystems = append(subsystems, s.rec.Name)
		case v != nil:
			volumes = append(volumes, word)
		case word == fabrics.DiscoveryNQN:
			return nil, nil, fault.Errorf(fault.Usage, "", "", "%s is the only target of a listener", word).
				Hint("every listener has discovery of what it shows itself")
		case api.IsNQN(word):
			return nil, nil, err
		default:
			return nil, nil, fault.Errorf(fault.NotFound, "", "", "no subsystem and no volume %s", word).
				Hint("`leap-soc volume list` and `leap-soc subsystem list` show what there is")
		}
	}
	if len(subsystems) > 0 && len(volumes) > 0 {
		return nil, nil, fault.Errorf(fault.Usage, "", "", "%s is a subsystem and %s a volume: a listener is for the ones or the others", subsystems[0], volumes[0]).
			Hint("`leap-soc namespace add " + subsystems[0] + " " + volumes[0] + "` shows the volume in the subsystem")
	}
	slices.Sort(subsystems)
	return subsystems, volumes, nil
}

// volumesOnly refuses what is for volumes where there are none.
func volumesOnly(in api.ListenerSpec) error {
	of := "every subsystem"
	if len(in.Targets) > 0 {
		of = in.Targets[0]
	}
	switch {
	case len(in.Allow) > 0 && discoveryOnly(in.Targets):
		return fault.Errorf(fault.Usage, "", "", "every host may discover: --allow is for volumes")
	case len(in.Allow) > 0 && len(in.Targets) > 0:
		return fault.Errorf(fault.Usage, "", "", "%s is a subsystem: --allow is for volumes", of).
			Hint(fmt.Sprintf("`leap-soc host allow %s NQN` lets a host use it", of))
	case len(in.Allow) > 0:
		return fault.Errorf(fault.Usage, "", "", "without a target the listener is for every subsystem: --allow is for volumes").
			Hint("`leap-soc host allow SUBSYSTEM NQN` lets a host use a subsystem")
	case in.Shared:
		return fault.Errorf(fault.Usage, "", "", "the listener is for %s: --shared is for volumes", of)
	case in.ReadOnly:
		return fault.Errorf(fault.Usage, "", "", "the listener is for %s: --read-only is for volumes", of)
	case in.UUID != "":
		return fault.Errorf(fault.Usage, "", "", "the listener is for %s: --uuid is for volumes", of)
	}
	return nil
}

// sameListener returns the listener that has the address already, if it is as
// asked for. r.mu is held.
func (r *Runtime) sameListener(l *listener, in api.ListenerSpec, targets, volumes []string) (*listener, error) {
	if len(volumes) > 0 {
		targets = []string{implicitName(l)}
	}
	same := slices.Equal(l.rec.Targets, targets) && l.rec.Advertise == in.Advertise && slices.Equal(l.rec.Referrals, in.Referrals)
	if s := r.subsystems[implicitName(l)]; same && len(volumes) > 0 {
		spec := api.SubsystemSpec{
			Name: implicitName(l), UUID: in.UUID, Implicit: true, Volumes: volumes, Shared: in.Shared, ReadOnly: in.ReadOnly, AllowAny: slices.Contains(in.Allow, api.HostAny),
		}
		// Who may come can be left to what is there.
		spec.AllowAny = spec.AllowAny || len(in.Allow) == 0 && s != nil && s.rec.AllowAny
		same = s != nil && s.differs(spec) == "" && (len(in.Allow) == 0 || slices.Equal(s.rec.Hosts, hostList(in.Allow)))
	}
	if !same {
		return nil, fault.Errorf(fault.Exists, "", "", "listener %d has %s already, in another way", l.rec.Number, l.rec.URL).
			Hint(fmt.Sprintf("`leap-rdma show %d` tells how, and `leap-rdma unlisten %[1]d` frees it", l.rec.Number))
	}
	return l, nil
}

// hostList are the NQNs of a list of hosts, sorted, each once.
func hostList(allow []string) []string {
	var nqns []string
	for _, host := range allow {
		if host != api.HostAny && !slices.Contains(nqns, host) {
			nqns = append(nqns, host)
		}
	}
	slices.Sort(nqns)
	return nqns
}

// findListener returns a listener by its number or its URL, in which an NQN
// counts for nothing. r.mu is held.
func (r *Runtime) findListener(name string) (*listener, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if l := r.listeners[n]; l != nil {
			return l, nil
		}
		return nil, fault.Errorf(fault.NotFound, "", "", "no listener %s", name)
	}
	addr, err := fabrics.ParseAddress(name)
	if err != nil {
		return nil, fault.Errorf(fault.Usage, "", "", "bad listener %q: neither a number nor a URL: %w", name, err)
	}
	addr.NQN, addr.NSID = "", 0
	for _, l := range r.listeners {
		if l.addr == addr {
			return l, nil
		}
	}
	return nil, fault.Errorf(fault.NotFound, "", "", "no listener has the address %s", addr)
}

// unlisten removes a listener and what is implicit of its targets, unless that
// is shown elsewhere, too. Its hosts are cut off.
func (r *Runtime) unlisten(ctx context.Context, name string) error {
	r.mu.Lock()
	l, err := r.findListener(name)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	delete(r.listeners, l.rec.Number)
	implicit := r.implicitTargets(l)
	for _, s := range implicit {
		delete(r.subsystems, s.rec.Name)
	}
	r.generation++
	if err := r.save(); err != nil {
		r.listeners[l.rec.Number] = l
		for _, s := range implicit {
			r.subsystems[s.rec.Name] = s
		}
		r.mu.Unlock()
		return err
	}
	r.logFacts(r.listenerFacts.Remove(l.name()))
	r.publish(api.KindListener, l.name(), "deleted", "")
	volumes := make([][]namespaceRecord, len(implicit))
	for i, s := range implicit {
		volumes[i] = r.deleted(s)
	}
	r.admit()
	open := l.open
	r.mu.Unlock()
	if open != nil {
		open.Close()
	}
	for i, s := range implicit {
		err = errors.Join(err, letGo(ctx, s, volumes[i]))
	}
	return err
}

// implicitTargets are the implicit subsystems of a listener that was removed
// which nobody else uses. r.mu is held.
func (r *Runtime) implicitTargets(l *listener) []*subsystem {
	var all []*subsystem
	for _, name := range l.rec.Targets {
		if s := r.subsystems[name]; s != nil && s.rec.Implicit && r.unused(s) == nil {
			all = append(all, s)
		}
	}
	return all
}

// listenersOf lists the numbers of the listeners that have a subsystem as a
// target. r.mu is held.
func (r *Runtime) listenersOf(s *subsystem) []int {
	var numbers []int
	for _, n := range slices.Sorted(maps.Keys(r.listeners)) {
		if slices.Contains(r.listeners[n].rec.Targets, s.rec.Name) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// hostsOf lists the hosts that are connected to a subsystem, each once, as
// "host NQN (listener N)". r.mu is held.
func (r *Runtime) hostsOf(s *subsystem) []string {
	var hosts []string
	for _, n := range slices.Sorted(maps.Keys(r.listeners)) {
		for _, a := range r.listeners[n].associations() {
			words := fmt.Sprintf("host %s (listener %d)", a.Host, n)
			if a.Subsystem == s.rec.NQN && !slices.Contains(hosts, words) {
				hosts = append(hosts, words)
			}
		}
	}
	return hosts
}

// associations are the hosts that are connected, first those that came first.
func (l *listener) associations() []api.Association {
	if l.open == nil {
		return nil
	}
	var all []api.Association
	for _, a := range l.open.Associations() {
		all = append(all, api.Association{
			Host: a.HostNQN, Subsystem: a.SubsystemNQN, CNTLID: a.CNTLID, Queues: a.Queues + 1, Address: a.Peer.String(), Since: a.Since,
		})
	}
	slices.SortStableFunc(all, func(a, b api.Association) int { return a.Since.Compare(b.Since) })
	return all
}

// describeListener is what the API says of a listener. r.mu is held.
func (r *Runtime) describeListener(l *listener) api.Listener {
	state, reason := l.state()
	out := api.Listener{
		Number: l.rec.Number, URL: l.rec.URL, Targets: l.rec.Targets, Advertise: l.rec.Advertise, Referrals: l.rec.Referrals,
		State: state, Error: reason, Associations: l.associations(),
	}
	for _, s := range r.subsystems {
		if l.shows(s) {
			out.Subsystems = append(out.Subsystems, s.rec.NQN)
		}
	}
	slices.Sort(out.Subsystems)
	if l.discovers() {
		out.Subsystems = []string{fabrics.DiscoveryNQN}
	}
	return out
}

// listListeners returns all listeners by number.
func (r *Runtime) listListeners() []api.Listener {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]api.Listener, 0, len(r.listeners))
	for _, l := range r.listeners {
		all = append(all, r.describeListener(l))
	}
	slices.SortFunc(all, func(a, b api.Listener) int { return cmp.Compare(a.Number, b.Number) })
	return all
}
