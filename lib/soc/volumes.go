// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/file"
	"github.com/leapio/leapio/lib/volume/mem"
	"github.com/leapio/leapio/lib/volume/null"
	"github.com/leapio/leapio/lib/volume/remote"
)

// kinds are the kinds of volumes this build knows.
var kinds = map[string]volume.Kind{
	file.Kind.Name:   file.Kind,
	mem.Kind.Name:    mem.Kind,
	null.Kind.Name:   null.Kind,
	remote.Kind.Name: remote.Kind,
}

// States of a volume, as facts and events say them.
const (
	volumeReady  = "ready"
	volumeFailed = "failed"
)

// vol is a volume that exists: open, or failed to open after a restart.
type vol struct {
	spec   volume.Spec
	volume volume.Volume // nil: failed
	err    error         // why
	// changing: its size or block is being changed, without the lock.
	changing bool
	stats    *stats.Group // since this runtime has it
}

func (v *vol) state() (state, reason string) {
	err := v.err
	if reporter, ok := v.volume.(volume.Reporter); ok && err == nil {
		err = reporter.Err()
	}
	if err != nil {
		return volumeFailed, err.Error()
	}
	return volumeReady, ""
}

// watch shows and follows the changes of a volume whose medium is not its own,
// until it is closed. r.mu is held.
func (r *Runtime) watch(v *vol) {
	reporter, ok := v.volume.(volume.Reporter)
	if !ok {
		return
	}
	before, _ := v.state()
	r.watches.Go(func() {
		for range reporter.Changes() {
			r.mu.Lock()
			now, reason := v.state()
			if r.volumes[v.spec.Name] == v {
				r.followMedium(v, reporter)
				if now != before {
					r.showVolume(v)
					r.publish(api.KindVolume, v.spec.Name, now, reason)
				}
			}
			r.mu.Unlock()
			before = now
		}
	})
}

// load makes what the state file says exists. A volume that cannot be opened
// is shown as failed, and the subsystems that need it wait.
func (r *Runtime) load(ctx context.Context) error {
	rec, err := r.state.Load()
	if err != nil && r.cfg.kept != nil {
		// A program that did not take over after all has migrated the file.
		rec = *r.cfg.kept
		err = r.state.Save(rec)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.Deleting != nil {
		r.deleteRest(rec.Deleting)
	}
	for _, spec := range rec.Volumes {
		v := &vol{spec: spec, stats: stats.NewGroup()}
		v.spec.Reopen = true
		if v.volume, v.err = r.open(ctx, &v.spec); v.err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.log.Error("volume cannot be opened", "volume", spec.Name, "err", v.err)
		}
		r.volumes[spec.Name] = v
		r.watch(v)
	}
	for _, s := range rec.Subsystems {
		r.subsystems[s.Name] = r.revive(s)
	}
	for _, v := range r.volumes {
		r.showVolume(v)
	}
	r.generation = rec.Generation
	if rec.Discovery != "" {
		if r.discovery, err = nvme.ParseUUID(rec.Discovery); err != nil {
			return fmt.Errorf("%s: the discovery subsystem: %w", r.cfg.Paths.StateFile(r.cfg.Name), err)
		}
	}
	for _, rec := range rec.Listeners {
		l, err := newListener(rec)
		if err != nil {
			return fmt.Errorf("%s: listener %d: %w", r.cfg.Paths.StateFile(r.cfg.Name), rec.Number, err)
		}
		r.listeners[rec.Number] = l
		r.showListener(l)
	}
	r.admit()
	if rec.Discovery == "" {
		r.discovery = nvme.NewUUID()
	} else if rec.Deleting == nil {
		return nil
	}
	return r.save()
}

// open makes the volume of a spec.
func (r *Runtime) open(ctx context.Context, spec *volume.Spec) (volume.Volume, error) {
	kind, ok := kinds[spec.Kind]
	if !ok {
		return nil, unknownKind(spec.Kind)
	}
	return kind.Make(ctx, r, spec)
}

func unknownKind(name string) error {
	return fault.Errorf(fault.Usage, "", "", "no volume kind %q", name).
		Hint("`leap-soc volume describe` lists the kinds")
}

// closeVolumes closes every volume; no controller uses one any more.
func (r *Runtime) closeVolumes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.volumes {
		if v.volume == nil {
			continue
		}
		if err := v.volume.Close(); err != nil {
			r.log.Error("volume cannot be closed", "volume", v.spec.Name, "err", err)
		}
	}
}

// createVolume makes a volume. The lock is not held while it is made, which
// can take a while; the name is taken from the start, and nothing else shows
// before it is there.
func (r *Runtime) createVolume(ctx context.Context, in api.VolumeSpec) (api.Volume, error) {
	if len(in.On) > 0 {
		return api.Volume{}, fault.Errorf(fault.Usage, "", "", "a volume of kind %s is not on other volumes", in.Kind)
	}
	if _, ok := kinds[in.Kind]; !ok {
		return api.Volume{}, unknownKind(in.Kind)
	}
	v := &vol{stats: stats.NewGroup(), spec: volume.Spec{Name: in.Name, Kind: in.Kind, UUID: api.UUID(in.UUID).String(), Options: maps.Clone(map[string]string(in.Options))}}
	if v.spec.Options == nil {
		v.spec.Options = make(map[string]string)
	}
	if old, exists, err := r.reserve(in, v.spec.UUID); exists || err != nil {
		return old, err
	}
	opened, err := r.open(ctx, &v.spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.making, in.Name)
	if err == nil {
		v.volume = opened
		r.volumes[in.Name] = v
		if err = r.save(); err != nil {
			delete(r.volumes, in.Name)
			r.saveAgain()
			err = errors.Join(err, r.discard(v, v.spec.Made))
		}
	}
	if err != nil {
		r.logFacts(r.volumeFacts.Remove(in.Name))
		return api.Volume{}, err
	}
	r.showVolume(v)
	r.watch(v)
	r.publish(api.KindVolume, in.Name, volumeReady, "")
	return r.describeVolume(v), nil
}

// reserve takes the name and the UUID of a volume that is to be made. It returns
// the volume that exists already, if it is what was asked for and that is no error.
func (r *Runtime) reserve(in api.VolumeSpec, uuid string) (old api.Volume, exists bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.volumes[in.Name]; old != nil {
		other := ""
		if in.ExistOK {
			if other = old.differs(in); other == "" {
				return r.describeVolume(old), true, nil
			}
			other = ", with " + other
		}
		return api.Volume{}, false, fault.Errorf(fault.Exists, "", "", "volume %s exists already%s", in.Name, other).
			Hint(fmt.Sprintf("`leap-soc volume show %s` tells what it is; `leap-soc volume delete %[1]s` makes room for another", in.Name))
	}
	if r.making[in.Name] != "" {
		return api.Volume{}, false, beingMade(in.Name)
	}
	if other := r.volumeOf(uuid); other != "" {
		return api.Volume{}, false, fault.Errorf(fault.Exists, "", "", "volume %s has the UUID %s", other, uuid)
	}
	// The folder of facts also keeps the name from other runtimes of this RUN.
	if _, err := r.volumeFacts.Add(in.Name); err != nil {
		return api.Volume{}, false, err
	}
	r.making[in.Name] = uuid
	return api.Volume{}, false, nil
}

// volumeOf returns the name of the volume with this UUID, or "". r.mu is held.
func (r *Runtime) volumeOf(uuid string) string {
	for name, v := range r.volumes {
		if v.spec.UUID == uuid {
			return name
		}
	}
	for name, taken := range r.making {
		if taken == uuid {
			return name
		}
	}
	return ""
}

func beingMade(name string) error {
	return fault.Errorf(fault.Exists, "", "", "volume %s is being made", name)
}

// discard closes a volume and gives up what it keeps outside.
func (r *Runtime) discard(v *vol, data bool) error {
	var err error
	if v.volume != nil {
		err = v.volume.Close()
	}
	if del := kinds[v.spec.Kind].Delete; del != nil {
		err = errors.Join(err, del(r, &v.spec, data))
	}
	return err
}

// differs says how a volume that exists is other than a request describes it;
// empty: it is not. What the request leaves out may be anything.
func (v *vol) differs(in api.VolumeSpec) string {
	switch {
	case v.spec.Kind != in.Kind:
		return "kind " + v.spec.Kind
	case in.UUID != "" && api.UUID(in.UUID).String() != v.spec.UUID:
		return "UUID " + v.spec.UUID
	}
	for _, key := range slices.Sorted(maps.Keys(in.Options)) {
		have, ok := v.spec.Options[key]
		switch {
		case kinds[v.spec.Kind].Noted(key):
		case !ok:
			return "no " + key + "="
		case !sameValue(have, in.Options[key]):
			return key + "=" + have
		}
	}
	return ""
}

// sameValue compares two values of an option; sizes are the same in any unit.
func sameValue(a, b string) bool {
	if a == b {
		return true
	}
	x, err1 := units.ParseSize(a)
	y, err2 := units.ParseSize(b)
	return err1 == nil && err2 == nil && x == y
}

// deleteVolume removes a volume that nothing uses.
func (r *Runtime) deleteVolume(name string, data bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, err := r.findVolume(name)
	if err != nil {
		return err
	}
	if users := r.users(name); len(users) > 0 {
		return fault.Errorf(fault.Exists, "", "", "volume %s is in use by %s", name, strings.Join(users, ", "))
	}
	if err := v.settled(); err != nil {
		return err
	}
	if data && !v.spec.Made && kinds[v.spec.Kind].Delete != nil {
		return fault.Errorf(fault.Permission, "", "", "the data of volume %s was not made by leap-soc", name).
			Hint("delete the volume without --data, and the data by hand")
	}
	delete(r.volumes, name)
	r.deleting = &deletion{v.spec, data}
	if err := r.save(); err != nil {
		r.volumes[name], r.deleting = v, nil
		r.saveAgain()
		return err
	}
	r.logFacts(r.volumeFacts.Remove(name))
	r.publish(api.KindVolume, name, "deleted", "")
	err = r.discard(v, data)
	r.deleting = nil
	return errors.Join(err, r.save())
}

// saveAgain has the state file say again what was before a save that failed: the
// very last step of that could have been what went wrong. r.mu is held.
func (r *Runtime) saveAgain() { _ = r.save() }

// deleteRest goes on with a deletion that was cut short.
func (r *Runtime) deleteRest(d *deletion) {
	kind, ok := kinds[d.Volume.Kind]
	if !ok || kind.Delete == nil {
		return
	}
	if err := kind.Delete(r, &d.Volume, d.Data); err != nil {
		r.log.Error("what is left of a deleted volume cannot be removed", "volume", d.Volume.Name, "err", err)
	}
}

// findVolume returns a volume by name. r.mu is held.
func (r *Runtime) findVolume(name string) (*vol, error) {
	if v := r.volumes[name]; v != nil {
		return v, nil
	}
	if r.making[name] != "" {
		return nil, beingMade(name)
	}
	return nil, fault.Errorf(fault.NotFound, "", "", "no volume %s", name)
}

// users lists what uses a volume. r.mu is held.
func (r *Runtime) users(name string) []string {
	var users []string
	for _, s := range r.subsystems {
		for _, ns := range s.rec.Namespaces {
			if ns.Volume == name {
				users = append(users, fmt.Sprintf("namespace %s/%d", s.rec.Name, ns.NSID))
			}
		}
	}
	slices.Sort(users)
	return users
}

// describeVolume is what the API says of a volume. r.mu is held.
func (r *Runtime) describeVolume(v *vol) api.Volume {
	state, reason := v.state()
	out := api.Volume{
		Name: v.spec.Name, Kind: v.spec.Kind, State: state, Error: reason, UUID: v.spec.UUID,
		Path: v.spec.Options["path"], Options: maps.Clone(v.spec.Options), UsedBy: r.users(v.spec.Name),
	}
	if v.volume != nil {
		info := v.volume.Info()
		out.Size, out.Block = units.Size(info.Size), units.Size(info.Block)
	}
	return out
}

// listVolumes returns all volumes by name.
func (r *Runtime) listVolumes() []api.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]api.Volume, 0, len(r.volumes))
	for _, v := range r.volumes {
		all = append(all, r.describeVolume(v))
	}
	slices.SortFunc(all, func(a, b api.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// describeKind is what the API says of a kind.
func describeKind(k volume.Kind) api.KindInfo {
	info := api.KindInfo{Kind: k.Name, Summary: k.Summary}
	for _, key := range k.Keys {
		info.Keys = append(info.Keys, api.Key{Name: key.Name, Type: key.Value, Default: key.Default, Summary: key.Usage})
	}
	return info
}
