// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/wpt/link"
)

// subsystem is a subsystem that exists: what is kept of it, and the model that
// hosts see.
type subsystem struct {
	rec   subsystemRecord
	model *controller.Subsystem
	// failed has the volumes that could not be opened after a restart. The
	// subsystem is not shown to anybody while there are any: a drive that is
	// gone for a moment would be gone for good.
	failed []string
	use    use  // by whom, if it is not shared
	waited bool // a port waits for a host to leave it
}

// notReady says why the subsystem cannot be shown, or nil.
func (s *subsystem) notReady() error {
	if len(s.failed) == 0 {
		return nil
	}
	return fmt.Errorf("volume %s failed", strings.Join(s.failed, ", "))
}

// shownOn reports whether a port is bound to the subsystem.
func (s *subsystem) shownOn(p *link.Port) bool {
	return p.Subsystem == s.rec.Name || p.Subsystem == s.rec.NQN
}

// shared reports whether all namespaces may be attached to several controllers.
func (s *subsystem) shared() bool {
	return !slices.ContainsFunc(s.rec.Namespaces, func(ns namespaceRecord) bool { return !ns.Shared })
}

// newModel makes the model of a record without its namespaces.
func newModel(rec *subsystemRecord) (*controller.Subsystem, error) {
	id, err := nvme.ParseUUID(rec.UUID)
	if err != nil {
		return nil, fmt.Errorf("subsystem %s: %w", rec.Name, err)
	}
	return controller.NewSubsystem(rec.NQN, id.SerialNumber()), nil
}

// revive makes a subsystem of the state file. r.mu is held.
func (r *Runtime) revive(rec subsystemRecord) *subsystem {
	s := &subsystem{rec: rec}
	var err error
	if s.model, err = newModel(&rec); err != nil {
		// Without its UUID a subsystem has no serial; its NQN still names it.
		r.log.Error("state file", "err", err)
		s.model = controller.NewSubsystem(rec.NQN, "")
	}
	for _, ns := range rec.Namespaces {
		if err := r.show(s, ns); err != nil {
			r.log.Error("namespace cannot be shown", "subsystem", rec.Name, "nsid", ns.NSID, "err", err)
			s.failed = append(s.failed, ns.Volume)
		}
	}
	r.showSubsystem(s)
	return s
}

// show adds a namespace to the model. r.mu is held.
func (r *Runtime) show(s *subsystem, ns namespaceRecord) error {
	v, err := r.findVolume(ns.Volume)
	if err != nil {
		return err
	}
	if v.volume == nil {
		return fault.Errorf(fault.Failure, "", "", "volume %s is not ready: %w", ns.Volume, v.err)
	}
	if err := v.settled(); err != nil {
		return err
	}
	id, err := nvme.ParseUUID(v.spec.UUID)
	if err != nil {
		return fmt.Errorf("volume %s: %w", ns.Volume, err)
	}
	out := &controller.Namespace{
		NSID: ns.NSID, Volume: v.volume, Name: ns.Volume, UUID: id, Shared: ns.Shared, ReadOnly: ns.ReadOnly,
		Stats: stats.NewGroup(), VolumeStats: v.stats,
	}
	// A host that formats what others use would take the ground from under
	// them: only a use that is the only one can change the block.
	if _, ok := v.volume.(volume.Reshaper); ok && !ns.Shared {
		out.Reblock = r.reblocker(ns.Volume)
	}
	out.SetProtected(ns.WriteProtected)
	out.Protect = r.protector(s, out)
	return s.model.Add(out)
}

// findSubsystem returns a subsystem by name or NQN. r.mu is held.
func (r *Runtime) findSubsystem(name string) (*subsystem, error) {
	if s := r.subsystems[name]; s != nil {
		return s, nil
	}
	if api.IsNQN(name) {
		for _, s := range r.subsystems {
			if s.rec.NQN == name {
				return s, nil
			}
		}
	}
	return nil, fault.Errorf(fault.NotFound, "", "", "no subsystem %s", name)
}

// createSubsystem makes a subsystem and the namespaces of its volumes: all of
// it or nothing.
func (r *Runtime) createSubsystem(in api.SubsystemSpec) (api.Subsystem, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, err := r.findSubsystem(in.Name); err == nil && in.ExistOK {
		// Who may come can be left to what is there.
		in.AllowAny = in.AllowAny || old.rec.AllowAny
		if other := old.differs(in); other != "" {
			return api.Subsystem{}, fault.Errorf(fault.Exists, "", "", "subsystem %s exists already, %s", old.rec.Name, other).
				Hint(fmt.Sprintf("`leap-soc subsystem show %s` tells what it is; `leap-soc subsystem delete %[1]s` makes room for another", old.rec.Name))
		}
		return r.describeSubsystem(old), nil
	}
	s, err := r.makeSubsystem(in, nil)
	if err != nil {
		return api.Subsystem{}, err
	}
	return r.describeSubsystem(s), nil
}

// makeSubsystem is createSubsystem for one that must be new, and that allows
// some hosts from the start. r.mu is held.
func (r *Runtime) makeSubsystem(in api.SubsystemSpec, allow []string) (*subsystem, error) {
	if _, err := r.findSubsystem(in.Name); err == nil {
		return nil, fault.Errorf(fault.Exists, "", "", "subsystem %s exists already", in.Name)
	}
	id := api.UUID(in.UUID)
	for _, other := range r.subsystems {
		if other.rec.UUID == id.String() {
			return nil, fault.Errorf(fault.Exists, "", "", "subsystem %s has the UUID %v", other.rec.Name, id)
		}
	}
	s := &subsystem{rec: subsystemRecord{
		Name: in.Name, NQN: in.NQN, UUID: id.String(), Implicit: in.Implicit,
		AllowAny: in.AllowAny || slices.Contains(allow, api.HostAny), Hosts: hostList(allow),
	}}
	switch {
	case s.rec.NQN == "" && api.IsNQN(in.Name):
		s.rec.NQN = in.Name
	case s.rec.NQN == "":
		s.rec.NQN = id.NQN()
	}
	if s.rec.NQN == fabrics.DiscoveryNQN || s.rec.NQN == r.discovery.NQN() {
		return nil, fault.Errorf(fault.Usage, "", "", "NQN %s is that of discovery", s.rec.NQN)
	}
	if other, err := r.findSubsystem(s.rec.NQN); err == nil {
		return nil, fault.Errorf(fault.Exists, "", "", "subsystem %s has NQN %s already", other.rec.Name, s.rec.NQN)
	}
	var err error
	if s.model, err = newModel(&s.rec); err != nil {
		return nil, err
	}
	for i, name := range in.Volumes {
		ns := namespaceRecord{NSID: uint32(i) + 1, Volume: name, Shared: in.Shared, ReadOnly: in.ReadOnly}
		if err := r.mayUse(s, ns); err != nil {
			return nil, err
		}
		if err := r.show(s, ns); err != nil {
			return nil, err
		}
		s.rec.Namespaces = append(s.rec.Namespaces, ns)
	}
	if _, err := r.subsystemFacts.Add(in.Name); err != nil {
		return nil, err
	}
	r.subsystems[in.Name] = s
	r.generation++
	if err := r.save(); err != nil {
		delete(r.subsystems, in.Name)
		r.logFacts(r.subsystemFacts.Remove(in.Name))
		return nil, err
	}
	r.changed(s, "created")
	return s, nil
}

// differs says how a subsystem that exists is other than a request describes it;
// empty: it is not. Without volumes in the request it may show any.
func (s *subsystem) differs(in api.SubsystemSpec) string {
	switch {
	case in.NQN != "" && in.NQN != s.rec.NQN:
		return "with NQN " + s.rec.NQN
	case in.UUID != "" && api.UUID(in.UUID).String() != s.rec.UUID:
		return "with UUID " + s.rec.UUID
	case in.AllowAny && !s.rec.AllowAny:
		return "not for every host"
	case !in.AllowAny && s.rec.AllowAny:
		return "for every host"
	case in.Implicit && !s.rec.Implicit:
		return "not as implicit"
	case !in.Implicit && s.rec.Implicit:
		return "as implicit"
	}
	shows := func(ns namespaceRecord, v string) bool {
		return ns.Volume == v && ns.Shared == in.Shared && ns.ReadOnly == in.ReadOnly
	}
	if len(in.Volumes) > 0 && !slices.EqualFunc(s.rec.Namespaces, in.Volumes, shows) {
		return "with other namespaces"
	}
	return ""
}

// mayUse checks that a volume may be used once more: a second use, or a first
// one that is not to stay alone, must be shared on both sides. r.mu is held; s
// may not be in the table yet.
func (r *Runtime) mayUse(s *subsystem, ns namespaceRecord) error {
	check := func(o *subsystem) error {
		for _, other := range o.rec.Namespaces {
			if other.Volume == ns.Volume && !(other.Shared && ns.Shared) {
				return fault.Errorf(fault.Exists, "", "", "volume %s is in use by namespace %s/%d", ns.Volume, o.rec.Name, other.NSID).
					Hint("--shared on every use lets several uses see the same blocks")
			}
		}
		return nil
	}
	for _, o := range r.subsystems {
		if err := check(o); err != nil {
			return err
		}
	}
	if r.subsystems[s.rec.Name] == nil {
		return check(s)
	}
	return nil
}

// changed follows a change of a subsystem. r.mu is held.
func (r *Runtime) changed(s *subsystem, what string) {
	r.showSubsystem(s)
	for _, ns := range s.rec.Namespaces {
		if v := r.volumes[ns.Volume]; v != nil {
			r.showVolume(v)
		}
	}
	r.publish(api.KindSubsystem, s.rec.Name, what, "")
	r.admit()
	// Ports look for their subsystem under r.mu.
	r.refreshes.Go(r.ports.Refresh)
}

// deleteSubsystem removes a subsystem that no port of this runtime, no listener
// and no host uses.
func (r *Runtime) deleteSubsystem(ctx context.Context, name string) error {
	r.mu.Lock()
	s, err := r.findSubsystem(name)
	if err == nil {
		err = r.unused(s)
	}
	if err != nil {
		r.mu.Unlock()
		return err
	}
	delete(r.subsystems, s.rec.Name)
	r.generation++
	if err := r.save(); err != nil {
		r.subsystems[s.rec.Name] = s
		r.mu.Unlock()
		return err
	}
	volumes := r.deleted(s)
	r.mu.Unlock()
	return letGo(ctx, s, volumes)
}

// unused reports, as a fault, who uses a subsystem. r.mu is held.
func (r *Runtime) unused(s *subsystem) error {
	if ports := r.portsOf(s); len(ports) > 0 {
		return fault.Errorf(fault.Exists, "", "", "subsystem %s is in use by port %s", s.rec.Name, strings.Join(ports, ", ")).
			Hint("`leap-qmap unmap " + ports[0] + "` frees it")
	}
	if listeners := r.listenersOf(s); len(listeners) > 0 {
		return fault.Errorf(fault.Exists, "", "", "subsystem %s is in use by listener %d", s.rec.Name, listeners[0]).
			Hint(fmt.Sprintf("`leap-rdma unlisten %d` frees it", listeners[0]))
	}
	if hosts := r.hostsOf(s); len(hosts) > 0 {
		return fault.Errorf(fault.Exists, "", "", "subsystem %s is in use by %s", s.rec.Name, strings.Join(hosts, ", "))
	}
	return nil
}

// deleted follows the end of a subsystem, and returns the namespaces that are to
// be let go. r.mu is held.
func (r *Runtime) deleted(s *subsystem) []namespaceRecord {
	r.logFacts(r.subsystemFacts.Remove(s.rec.Name))
	volumes := s.rec.Namespaces
	s.rec.Namespaces = nil
	for _, ns := range volumes {
		if v := r.volumes[ns.Volume]; v != nil {
			r.showVolume(v)
		}
	}
	r.admit()
	r.publish(api.KindSubsystem, s.rec.Name, "deleted", "")
	return volumes
}

// letGo waits until no controller, which may still be ending, uses the namespaces
// of a subsystem that was deleted.
func letGo(ctx context.Context, s *subsystem, volumes []namespaceRecord) error {
	for _, ns := range volumes {
		if err := drain(ctx, s, ns.NSID); err != nil {
			return err
		}
	}
	return nil
}

// drain takes a namespace out of the model and waits until no controller has
// commands on it.
func drain(ctx context.Context, s *subsystem, nsid uint32) error {
	done := make(chan struct{})
	if !s.model.Remove(nsid, func() { close(done) }) {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Errorf(fault.Timeout, "", "", "commands on namespace %s/%d are still under way: %w", s.rec.Name, nsid, ctx.Err())
	}
}

// addNamespace shows a volume in a subsystem.
func (r *Runtime) addNamespace(name string, in api.NamespaceSpec) (api.Namespace, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.findSubsystem(name)
	if err != nil {
		return api.Namespace{}, err
	}
	for _, ns := range s.rec.Namespaces {
		same := ns.Volume == in.Volume && (in.NSID == 0 || ns.NSID == in.NSID)
		switch {
		case same && in.ExistOK && ns.Shared == in.Shared && ns.ReadOnly == in.ReadOnly:
			return r.describeNamespace(s, ns), nil
		case in.NSID != 0 && ns.NSID == in.NSID:
			return api.Namespace{}, fault.Errorf(fault.Exists, "", "", "namespace %s/%d shows volume %s already%s", s.rec.Name, ns.NSID, ns.Volume, ns.differs(in)).
				Hint(fmt.Sprintf("`leap-soc namespace remove %s %d` makes room for another", s.rec.Name, ns.NSID))
		}
	}
	ns := namespaceRecord{NSID: in.NSID, Volume: in.Volume, Shared: in.Shared, ReadOnly: in.ReadOnly}
	if ns.NSID == 0 {
		ns.NSID = lowestFree(s.rec.Namespaces)
	}
	if ns.NSID > controller.MaxNamespaces {
		return api.Namespace{}, fault.Errorf(fault.Usage, "", "", "nsid %d: the largest is %d", ns.NSID, controller.MaxNamespaces)
	}
	if n, _ := s.model.Controllers(); !ns.Shared && max(n, len(r.portsOf(s))) > 1 {
		return api.Namespace{}, fault.Errorf(fault.Exists, "", "", "subsystem %s is shown to several hosts, and the namespace is not to be shared", s.rec.Name).
			Hint("--shared lets several hosts see the same blocks")
	}
	if err := r.mayUse(s, ns); err != nil {
		return api.Namespace{}, err
	}
	if err := r.show(s, ns); err != nil {
		return api.Namespace{}, err
	}
	before := s.rec.Namespaces
	s.rec.Namespaces = append(slices.Clone(before), ns)
	slices.SortFunc(s.rec.Namespaces, func(a, b namespaceRecord) int { return cmp.Compare(a.NSID, b.NSID) })
	if err := r.save(); err != nil {
		s.rec.Namespaces = before
		s.model.Remove(ns.NSID, func() {})
		return api.Namespace{}, err
	}
	r.changed(s, "changed")
	r.publish(api.KindNamespace, fmt.Sprintf("%s/%d", s.rec.Name, ns.NSID), "added", ns.Volume)
	return r.describeNamespace(s, ns), nil
}

// differs says in what a namespace is other than a request for its volume asks.
func (ns *namespaceRecord) differs(in api.NamespaceSpec) string {
	switch {
	case ns.Volume != in.Volume || !in.ExistOK:
		return ""
	case in.Shared && !ns.Shared:
		return ", not shared"
	case ns.Shared && !in.Shared:
		return ", shared"
	case in.ReadOnly:
		return ", not read-only"
	}
	return ", read-only"
}

// lowestFree returns the lowest NSID that is free.
func lowestFree(used []namespaceRecord) uint32 {
	id := uint32(1)
	for _, ns := range used { // ascending
		if ns.NSID == id {
			id++
		}
	}
	return id
}

// removeNamespace takes a volume out of a subsystem. It returns when no host
// has commands on it in flight.
func (r *Runtime) removeNamespace(ctx context.Context, name string, nsid uint32) error {
	r.mu.Lock()
	s, err := r.findSubsystem(name)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	i := slices.IndexFunc(s.rec.Namespaces, func(ns namespaceRecord) bool { return ns.NSID == nsid })
	if i < 0 {
		r.mu.Unlock()
		return fault.Errorf(fault.NotFound, "", "", "subsystem %s has no namespace %d", s.rec.Name, nsid)
	}
	before := s.rec.Namespaces
	gone := before[i]
	s.rec.Namespaces = slices.Delete(slices.Clone(before), i, i+1)
	if err := r.save(); err != nil {
		s.rec.Namespaces = before
		r.mu.Unlock()
		return err
	}
	s.failed = slices.DeleteFunc(s.failed, func(v string) bool { return v == gone.Volume })
	r.changed(s, "changed")
	if v := r.volumes[gone.Volume]; v != nil {
		r.showVolume(v)
	}
	r.publish(api.KindNamespace, fmt.Sprintf("%s/%d", s.rec.Name, nsid), "removed", gone.Volume)
	r.mu.Unlock()
	return drain(ctx, s, nsid)
}

// allow lets a host in, or with deny no more, and cuts it off; host is an NQN or
// api.HostAny.
func (r *Runtime) allow(name, host string, deny bool) (api.Subsystem, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.findSubsystem(name)
	if err != nil {
		return api.Subsystem{}, err
	}
	before := s.rec
	has := slices.Contains(s.rec.Hosts, host)
	switch {
	case host == api.HostAny && s.rec.AllowAny == !deny, host != api.HostAny && has && !deny:
		return r.describeSubsystem(s), nil // as it is already
	case host == api.HostAny:
		s.rec.AllowAny = !deny
	case deny && !has:
		return api.Subsystem{}, fault.Errorf(fault.NotFound, "", "", "subsystem %s does not allow host %s", s.rec.Name, host)
	case deny:
		s.rec.Hosts = slices.DeleteFunc(slices.Clone(before.Hosts), func(h string) bool { return h == host })
	default:
		s.rec.Hosts = append(slices.Clone(before.Hosts), host)
		slices.Sort(s.rec.Hosts)
	}
	r.generation++
	if err := r.save(); err != nil {
		s.rec = before
		return api.Subsystem{}, err
	}
	r.admit()
	r.publish(api.KindSubsystem, s.rec.Name, "changed", "")
	if deny {
		r.target.Disconnect(func(a target.Association) bool { return a.SubsystemNQN == s.rec.NQN && !s.allows(a.HostNQN) })
	}
	return r.describeSubsystem(s), nil
}

// allows reports whether a host may use the subsystem. r.mu is held.
func (s *subsystem) allows(host string) bool {
	return s.rec.AllowAny || slices.Contains(s.rec.Hosts, host)
}

// portsOf lists the ports that show a subsystem.
func (r *Runtime) portsOf(s *subsystem) []string {
	var names []string
	for _, p := range r.ports.List() {
		if s.shownOn(p) {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// describeSubsystem is what the API says of a subsystem. r.mu is held.
func (r *Runtime) describeSubsystem(s *subsystem) api.Subsystem {
	out := api.Subsystem{
		Name: s.rec.Name, NQN: s.rec.NQN, Serial: s.model.Serial, UUID: s.rec.UUID, Implicit: s.rec.Implicit,
		AllowAny: s.rec.AllowAny, Hosts: s.rec.Hosts, Ports: r.portsOf(s), Listeners: r.listenersOf(s),
	}
	for _, ns := range s.rec.Namespaces {
		out.Namespaces = append(out.Namespaces, r.describeNamespace(s, ns))
	}
	return out
}

// describeNamespace is what the API says of a namespace. r.mu is held.
func (r *Runtime) describeNamespace(s *subsystem, ns namespaceRecord) api.Namespace {
	out := api.Namespace{
		Subsystem: s.rec.Name, NSID: ns.NSID, Volume: ns.Volume,
		Shared: ns.Shared, ReadOnly: ns.ReadOnly, WriteProtected: ns.WriteProtected,
	}
	if v := r.volumes[ns.Volume]; v != nil {
		out.UUID = v.spec.UUID
		if v.volume != nil {
			info := v.volume.Info()
			out.Size, out.Block = units.Size(info.Size), units.Size(info.Block)
		}
	}
	return out
}

// listSubsystems returns all subsystems by name.
func (r *Runtime) listSubsystems() []api.Subsystem {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]api.Subsystem, 0, len(r.subsystems))
	for _, s := range r.subsystems {
		all = append(all, r.describeSubsystem(s))
	}
	slices.SortFunc(all, func(a, b api.Subsystem) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
