// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/volume"
)

// stateVersion is the version of record. Version 1 had no write protection,
// version 2 none by hosts, version 3 no listeners, version 4 no referrals and no
// name of the discovery subsystem, and version 5 nothing that is being deleted.
const stateVersion = 6

// record is the content of STATE/NAME.json: what exists, in the order it is
// made again.
type record struct {
	Volumes    []volume.Spec     `json:"volumes"`
	Subsystems []subsystemRecord `json:"subsystems"`
	Listeners  []listenerRecord  `json:"listeners"`
	// Generation is that of the discovery log, which only rises.
	Generation uint64 `json:"generation"`
	// Discovery is the UUID of the discovery subsystem.
	Discovery string `json:"discovery"`
	// Deleting is what is being given up of a volume that does not exist any more.
	Deleting *deletion `json:"deleting"`
}

// deletion is a volume of which all that it keeps outside is to go.
type deletion struct {
	Volume volume.Spec `json:"volume"`
	Data   bool        `json:"data"` // see volume.Kind.Delete
}

// subsystemRecord is a subsystem as it is kept.
type subsystemRecord struct {
	Name       string            `json:"name"`
	NQN        string            `json:"nqn"`
	UUID       string            `json:"uuid"`
	Implicit   bool              `json:"implicit"`
	AllowAny   bool              `json:"allow_any"`
	Hosts      []string          `json:"hosts"`
	Namespaces []namespaceRecord `json:"namespaces"`
}

// namespaceRecord is a namespace as it is kept.
type namespaceRecord struct {
	NSID     uint32 `json:"nsid"`
	Volume   string `json:"volume"`
	Shared   bool   `json:"shared"`
	ReadOnly bool   `json:"read_only"`
	// WriteProtected: hosts have protected it, and can take that back.
	WriteProtected bool `json:"write_protected"`
}

// listenerRecord is a listener as it is kept.
type listenerRecord struct {
	Number    int      `json:"number"`
	URL       string   `json:"url"`       // without an NQN
	Advertise string   `json:"advertise"` // see api.ListenerSpec
	Referrals []string `json:"referrals"` // see api.Listener
	Targets   []string `json:"targets"`   // names of subsystems; none: every subsystem; or DiscoveryNQN
}

// migrate makes a record of the state of versions 1 to 5, which have all of its
// keys but read_only, write_protected, those of listeners, referrals, discovery
// and deleting: there was nothing of it.
func migrate(_ int, old json.RawMessage) (record, error) {
	var rec record
	d := json.NewDecoder(bytes.NewReader(old))
	d.DisallowUnknownFields()
	err := d.Decode(&rec)
	return rec, err
}

// stateFile describes STATE/NAME.json.
func stateFile(cfg Config) *api.StateFile[record] {
	return api.NewStateFile[record](cfg.Paths.StateFile(cfg.Name), stateVersion, migrate).On(diskOf(cfg))
}

// openRecords opens the state file and the folders of facts.
func (r *Runtime) openRecords() error {
	paths := r.cfg.Paths
	r.state = stateFile(r.cfg)
	var err error
	if r.volumeFacts, err = api.OpenFacts(paths.Facts(api.KindVolume), r.cfg.Name); err != nil {
		return err
	}
	if r.subsystemFacts, err = api.OpenFacts(paths.Facts(api.KindSubsystem), r.cfg.Name); err != nil {
		return err
	}
	if r.listenerFacts, err = api.OpenFacts(paths.Facts(api.KindListener), r.cfg.Name); err != nil {
		return err
	}
	return r.clearFacts()
}

// clearFacts removes this runtime's facts.
func (r *Runtime) clearFacts() error {
	return errors.Join(r.volumeFacts.Clear(), r.subsystemFacts.Clear(), r.listenerFacts.Clear())
}

// save keeps what exists. r.mu is held.
func (r *Runtime) save() error { return r.state.Save(r.record()) }

// record is what exists. r.mu is held.
func (r *Runtime) record() record {
	rec := record{Generation: r.generation, Discovery: r.discovery.String(), Deleting: r.deleting}
	for _, name := range slices.Sorted(maps.Keys(r.volumes)) {
		rec.Volumes = append(rec.Volumes, r.volumes[name].spec)
	}
	for _, name := range slices.Sorted(maps.Keys(r.subsystems)) {
		rec.Subsystems = append(rec.Subsystems, r.subsystems[name].rec)
	}
	for _, n := range slices.Sorted(maps.Keys(r.listeners)) {
		rec.Listeners = append(rec.Listeners, r.listeners[n].rec)
	}
	return rec
}

// showVolume writes the facts of a volume. r.mu is held. Facts follow the
// truth; that a full disk keeps one from being written is only worth a line.
func (r *Runtime) showVolume(v *vol) {
	name := v.spec.Name
	_, err := r.volumeFacts.Add(name)
	state, _ := v.state()
	values := map[string]string{"kind": v.spec.Kind, "state": state, "uuid": v.spec.UUID}
	if v.volume != nil {
		info := v.volume.Info()
		values["size"] = strconv.FormatUint(info.Size, 10)
		values["block"] = strconv.FormatUint(uint64(info.Block), 10)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		err = errors.Join(err, r.volumeFacts.Set(name, key, values[key]))
	}
	r.logFacts(errors.Join(err, r.volumeFacts.SetLines(name, "used-by", r.users(name))))
}

// showSubsystem writes the facts of a subsystem. r.mu is held.
func (r *Runtime) showSubsystem(s *subsystem) {
	name := s.rec.Name
	_, err := r.subsystemFacts.Add(name)
	err = errors.Join(err,
		r.subsystemFacts.Set(name, "nqn", s.rec.NQN),
		r.subsystemFacts.Set(name, "serial", s.model.Serial))
	var lines []string
	for _, ns := range s.rec.Namespaces {
		lines = append(lines, fmt.Sprintf("%d\t%s", ns.NSID, ns.Volume))
	}
	r.logFacts(errors.Join(err, r.subsystemFacts.SetLines(name, "namespaces", lines)))
}

// showListener writes the facts of a listener. r.mu is held.
func (r *Runtime) showListener(l *listener) {
	_, err := r.listenerFacts.Add(l.name())
	state, reason := l.state()
	err = errors.Join(err,
		r.listenerFacts.Set(l.name(), "url", l.rec.URL),
		r.listenerFacts.Set(l.name(), "state", state),
		r.listenerFacts.Set(l.name(), "error", reason))
	var hosts []string
	for _, a := range l.associations() {
		if !slices.Contains(hosts, a.Host) {
			hosts = append(hosts, a.Host)
		}
	}
	r.logFacts(errors.Join(err, r.listenerFacts.SetLines(l.name(), "hosts", hosts)))
}

func (r *Runtime) logFacts(err error) {
	if err != nil {
		r.log.Error("facts cannot be written", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}
