// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/stats"
)

// stat returns what was counted by volume, namespace or queue.
func (r *Runtime) stat(by string) (api.Stat, error) {
	var things func() []api.ThingStat
	switch by {
	case api.ByVolume:
		things = r.volumeStats
	case api.ByNamespace:
		things = r.namespaceStats
	case api.ByQueue:
		things = r.queueStats
	default:
		return api.Stat{}, fault.Errorf(fault.Usage, "", "", "cannot count by %q: none of %s, %s, %s", by, api.ByVolume, api.ByNamespace, api.ByQueue)
	}
	s := api.Stat{Runtime: r.cfg.Name, Since: r.since, By: by, GC: gcStat(), Things: things()}
	s.Time = time.Now()
	s.Uptime = s.Time.Sub(r.since)
	for _, p := range r.pollers {
		load := p.Load()
		s.Pollers = append(s.Pollers, api.PollerStat{Name: p.Name(), CPU: p.CPU(), Busy: load.Busy, Turns: load.Turns, Sleeps: load.Sleeps})
	}
	slices.SortFunc(s.Things, func(a, b api.ThingStat) int { return compareNames(a.Name, b.Name) })
	return s, nil
}

// compareNames orders names, of which those of namespaces and queues end in a
// number.
func compareNames(a, b string) int {
	i, j := strings.LastIndexByte(a, '/')+1, strings.LastIndexByte(b, '/')+1
	x, _ := strconv.ParseUint(a[i:], 10, 32)
	y, _ := strconv.ParseUint(b[j:], 10, 32)
	return cmp.Or(cmp.Compare(a[:i], b[:j]), cmp.Compare(x, y), cmp.Compare(a, b))
}

// gcStat asks the Go runtime, which stops nothing for it.
func gcStat() api.GCStat {
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	s := api.GCStat{Cycles: uint64(gc.NumGC), Paused: gc.PauseTotal}
	for _, d := range gc.Pause {
		s.LongestPause = max(s.LongestPause, d)
	}
	return s
}

// thing is what the API says of counters.
func thing(name, volume string, since time.Time, total stats.Total) api.ThingStat {
	op := func(c stats.Class) api.OpStat {
		return api.NewOpStat(total.ClassBytes(c), total.Errors(c), total.Latency(c))
	}
	return api.ThingStat{
		Name: name, Volume: volume, Since: since, InFlight: total.InFlight,
		Read: op(stats.Reads), Write: op(stats.Writes), Other: op(stats.Rest),
	}
}

func (r *Runtime) volumeStats() []api.ThingStat {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []api.ThingStat
	for name, v := range r.volumes {
		all = append(all, thing(name, name, v.stats.Since, v.stats.Total()))
	}
	return all
}

func (r *Runtime) namespaceStats() []api.ThingStat {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []api.ThingStat
	for name, s := range r.subsystems {
		for _, ns := range s.model.Namespaces() {
			all = append(all, thing(fmt.Sprintf("%s/%d", name, ns.NSID), ns.Name, ns.Stats.Since, ns.Stats.Total()))
		}
	}
	return all
}

// queueStats asks the pollers which queues there are, and reads their counters
// without them. Those of hosts are named by subsystem and controller.
func (r *Runtime) queueStats() []api.ThingStat {
	var all []api.ThingStat
	names := r.subsystemNames()
	for _, q := range r.target.Queues() {
		if name, ok := names[q.SubsystemNQN]; ok { // else it has just been deleted
			t := thing(fmt.Sprintf("%s/%d/%d", name, q.CNTLID, q.QID), "", q.Stats.Since, q.Stats.Total())
			t.InFlight = uint64(q.Outstanding)
			all = append(all, t)
		}
	}
	for _, p := range r.ports.List() {
		for _, q := range p.Queues() {
			t := thing(fmt.Sprintf("%s/%d", p.Name, q.QID), "", q.Stats.Since, q.Stats.Total())
			t.InFlight = uint64(q.Outstanding)
			all = append(all, t)
		}
	}
	return all
}

// subsystemNames returns the names of subsystems by their NQNs.
func (r *Runtime) subsystemNames() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make(map[string]string)
	for name, s := range r.subsystems {
		names[s.rec.NQN] = name
	}
	return names
}
