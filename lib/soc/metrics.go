// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/leapio/leapio/lib/metrics"
	"github.com/leapio/leapio/lib/stats"
)

// metrics returns what GET /metrics answers: all that is counted, at a moment.
func (r *Runtime) metrics() ([]byte, error) {
	var page metrics.Page
	page.Family(metrics.Gauge, "leapio_build_info", "Which runtime this is; always 1.", "runtime", "version").Add(1, r.cfg.Name, r.cfg.Version)
	page.Family(metrics.Gauge, "leapio_start_time_seconds", "When the runtime started, in seconds of Unix time.").Add(seconds(r.since))
	page.Family(metrics.Gauge, "leapio_attached", "1 while the runtime is attached to leap-wpt.").Add(truth(r.linkNow() != nil))
	r.pollerMetrics(&page)
	r.mu.Lock()
	r.volumeMetrics(&page)
	r.namespaceMetrics(&page)
	r.listenerMetrics(&page)
	r.mu.Unlock()
	r.queueMetrics(&page)
	if err := page.Process(); err != nil {
		return nil, err
	}
	return page.Bytes(), nil
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is a time as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func (r *Runtime) pollerMetrics(page *metrics.Page) {
	busy := page.Family(metrics.Counter, "leapio_poller_busy_seconds_total", "Time that a poller spent on commands.", "poller")
	turns := page.Family(metrics.Counter, "leapio_poller_turns_total", "Turns of a poller's loop that found work.", "poller")
	sleeps := page.Family(metrics.Counter, "leapio_poller_sleeps_total", "How often a poller went to sleep.", "poller")
	for _, p := range r.pollers {
		load := p.Load()
		busy.Add(load.Busy.Seconds(), p.Name())
		turns.Add(float64(load.Turns), p.Name())
		sleeps.Add(float64(load.Sleeps), p.Name())
	}
}

// classes are the values of the label op.
var classes = [stats.Classes]string{stats.Reads: "read", stats.Writes: "write", stats.Rest: "other"}

// counted are the families of what is counted of volumes, and those of
// namespaces.
type counted struct {
	commands, bytes, errors, inFlight, media, latency *metrics.Family
}

// countedOf makes the families of a kind of things.
func countedOf(page *metrics.Page, kind string, labels ...string) *counted {
	byOp := append(slices.Clone(labels), "op")
	name := "leapio_" + kind + "_"
	of := " of a " + kind + "."
	return &counted{
		commands: page.Family(metrics.Counter, name+"commands_total", "Commands that have ended, successful or not,"+of, byOp...),
		bytes:    page.Family(metrics.Counter, name+"bytes_total", "Bytes moved or covered by commands that succeeded,"+of, byOp...),
		errors:   page.Family(metrics.Counter, name+"errors_total", "Commands that have failed,"+of, byOp...),
		inFlight: page.Family(metrics.Gauge, name+"commands_in_flight", "Commands under way"+of, labels...),
		media:    page.Family(metrics.Counter, name+"media_errors_total", "Requests that the medium could not serve,"+of, labels...),
		latency:  page.Family(metrics.Histogram, name+"latency_seconds", "How long commands took; the sum is at most 1/32 off,"+of, byOp...),
	}
}

// add adds what was counted of a thing.
func (c *counted) add(total stats.Total, values ...string) {
	for class, op := range classes {
		class := stats.Class(class)
		all, latency := append(slices.Clone(values), op), total.Latency(class)
		c.commands.Add(float64(latency.Count()), all...)
		c.bytes.Add(float64(total.ClassBytes(class)), all...)
		c.errors.Add(float64(total.Errors(class)), all...)
		c.latency.Latency(latency, all...)
	}
	c.inFlight.Add(float64(total.InFlight), values...)
	c.media.Add(float64(total.MediaErrors), values...)
}

// volumeMetrics is called with r.mu held, as are those below.
func (r *Runtime) volumeMetrics(page *metrics.Page) {
	ready := page.Family(metrics.Gauge, "leapio_volume_ready", "1 if a volume can be used, 0 if it has failed.", "volume", "kind")
	size := page.Family(metrics.Gauge, "leapio_volume_size_bytes", "Size of a volume.", "volume", "kind")
	all := countedOf(page, "volume", "volume")
	for _, name := range slices.Sorted(maps.Keys(r.volumes)) {
		v := r.volumes[name]
		state, _ := v.state()
		ready.Add(truth(state == volumeReady), name, v.spec.Kind)
		if v.volume != nil {
			size.Add(float64(v.volume.Info().Size), name, v.spec.Kind)
		}
		all.add(v.stats.Total(), name)
	}
}

func (r *Runtime) namespaceMetrics(page *metrics.Page) {
	all := countedOf(page, "namespace", "subsystem", "nsid", "volume")
	for _, name := range slices.Sorted(maps.Keys(r.subsystems)) {
		for _, ns := range r.subsystems[name].model.Namespaces() {
			all.add(ns.Stats.Total(), name, strconv.FormatUint(uint64(ns.NSID), 10), ns.Name)
		}
	}
}

func (r *Runtime) listenerMetrics(page *metrics.Page) {
	up := page.Family(metrics.Gauge, "leapio_listener_up", "1 if hosts can connect to a listener.", "listener", "url")
	associations := page.Family(metrics.Gauge, "leapio_listener_associations", "Controllers that hosts are connected to, those of discovery among them.", "listener")
	for _, n := range slices.Sorted(maps.Keys(r.listeners)) {
		l := r.listeners[n]
		up.Add(truth(l.open != nil), l.name(), l.rec.URL)
		associations.Add(float64(len(l.associations())), l.name())
	}
	limits, use := r.target.Limits(), r.target.Use()
	page.Family(metrics.Gauge, "leapio_host_connections", "Connections that hosts have.").Add(float64(use.Connections))
	page.Family(metrics.Gauge, "leapio_host_connections_limit", "Connections that hosts may have.").Add(float64(limits.Connections))
	page.Family(metrics.Gauge, "leapio_host_associations", "Controllers that hosts are connected to, without those of discovery.").Add(float64(use.Associations))
	page.Family(metrics.Gauge, "leapio_host_associations_limit", "Controllers that hosts may be connected to, without those of discovery.").Add(float64(limits.Associations))
}

// queueMetrics has a line for each queue, but no histogram: there may be
// thousands. Those of machines are named by port, those of hosts by subsystem and
// controller.
func (r *Runtime) queueMetrics(page *metrics.Page) {
	queues := page.Family(metrics.Gauge, "leapio_port_queues", "Queue pairs of a port, that of administration among them; 0 while its controller is not enabled.", "port", "subsystem")
	labels := []string{"port", "subsystem", "controller", "queue", "poller"}
	commands := page.Family(metrics.Counter, "leapio_queue_commands_total", "Commands that have ended, of a queue.", labels...)
	failures := page.Family(metrics.Counter, "leapio_queue_errors_total", "Commands that have failed, of a queue.", labels...)
	inFlight := page.Family(metrics.Gauge, "leapio_queue_commands_in_flight", "Commands under way of a queue.", labels...)
	add := func(s *stats.Set, outstanding int, values ...string) {
		total := s.Total()
		var ended, failed uint64
		for class := range stats.Classes {
			ended += total.Latency(class).Count()
			failed += total.Errors(class)
		}
		commands.Add(float64(ended), values...)
		failures.Add(float64(failed), values...)
		inFlight.Add(float64(outstanding), values...)
	}
	for _, p := range r.ports.List() {
		all := p.Queues()
		subsystem := p.Subsystem
		queues.Add(float64(len(all)), p.Name, subsystem)
		for _, q := range all {
			add(q.Stats, q.Outstanding, p.Name, subsystem, "", strconv.Itoa(int(q.QID)), q.Poller)
		}
	}
	names := r.subsystemNames()
	for _, q := range r.target.Queues() {
		if name, ok := names[q.SubsystemNQN]; ok { // else it has just been deleted
			add(q.Stats, q.Outstanding, "", name, strconv.Itoa(int(q.CNTLID)), strconv.Itoa(int(q.QID)), q.Poller)
		}
	}
}
