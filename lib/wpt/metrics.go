// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"sync/atomic"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/metrics"
)

// brokerCounts are what is counted since this program began.
type brokerCounts struct {
	pings     atomic.Uint64 // runtimes that were asked whether they are alive
	latePings atomic.Uint64 // those that did not answer in time
}

// portCounts are what is counted of a port since this program began.
type portCounts struct {
	messages      atomic.Uint64 // of clients
	refused       atomic.Uint64 // those that were answered with an error
	reads, writes atomic.Uint64 // of unshared memory, for runtimes
}

// metrics returns what GET /metrics answers. All names but those of the process
// begin with leapio_wpt_: none is one of a runtime's.
func (b *Broker) metrics() ([]byte, error) {
	var page metrics.Page
	one := func(kind metrics.Type, name, help string, v float64) {
		page.Family(kind, "leapio_wpt_"+name, help).Add(v)
	}
	page.Family(metrics.Gauge, "leapio_wpt_build_info", "Which leap-wpt this is; always 1.", "version").Add(1, b.version)
	one(metrics.Gauge, "start_time_seconds", "When this program began, in seconds of Unix time; an upgrade is a beginning.", float64(b.since.UnixNano())/1e9)
	one(metrics.Gauge, "upgrade_pause_seconds", "For how long messages of guests waited when this program took over from another; 0 if it has not.", b.pause.Seconds())
	b.portMetrics(&page)
	b.runtimeMetrics(&page)
	one(metrics.Counter, "pings_total", "How often a runtime that a guest waited for was asked whether it is alive.", float64(b.counts.pings.Load()))
	one(metrics.Counter, "pings_late_total", "Those that were not answered in time: the runtime was killed.", float64(b.counts.latePings.Load()))
	if err := page.Process(); err != nil {
		return nil, err
	}
	return page.Bytes(), nil
}

// portMetrics has how many ports there are, and a line for each.
func (b *Broker) portMetrics(page *metrics.Page) {
	states := page.Family(metrics.Gauge, "leapio_wpt_ports", "Ports, by their state.", "state")
	page.Family(metrics.Gauge, "leapio_wpt_ports_limit", "How many ports there may be.").Add(float64(b.maxPorts))
	client := page.Family(metrics.Gauge, "leapio_wpt_port_client", "1 while a client is connected to a port.", "port")
	regions := page.Family(metrics.Gauge, "leapio_wpt_port_regions", "Regions of guest memory that a port's client has mapped.", "port")
	memory := page.Family(metrics.Gauge, "leapio_wpt_port_memory_bytes", "Guest memory in these regions.", "port")
	resets := page.Family(metrics.Counter, "leapio_wpt_port_resets_total", "Resets of a port's controller, its function or its client since the port was made.", "port")
	messages := page.Family(metrics.Counter, "leapio_wpt_port_messages_total", "Messages of a port's clients; each trapped doorbell is one.", "port")
	refused := page.Family(metrics.Counter, "leapio_wpt_port_messages_refused_total", "Those that were answered with an error.", "port")
	relays := page.Family(metrics.Counter, "leapio_wpt_port_relays_total", "Accesses to memory that is not shared, which a port's runtime made by messages.", "port", "op")
	count := make(map[string]int)
	for _, p := range b.allPorts() {
		shown := p.show()
		count[shown.State]++
		present := 0
		if shown.ClientPID != 0 {
			present = 1
		}
		client.Add(float64(present), p.name)
		regions.Add(float64(shown.Regions), p.name)
		memory.Add(float64(shown.Memory), p.name)
		resets.Add(float64(shown.ResetGen), p.name)
		messages.Add(float64(p.counts.messages.Load()), p.name)
		refused.Add(float64(p.counts.refused.Load()), p.name)
		relays.Add(float64(p.counts.reads.Load()), p.name, "read")
		relays.Add(float64(p.counts.writes.Load()), p.name, "write")
	}
	for _, state := range []string{api.PortWaiting, api.PortAttached, api.PortEnabled, api.PortFrozen} {
		states.Add(float64(count[state]), state)
	}
}

// runtimeMetrics has a line for each runtime that is attached, and what all have
// left here.
func (b *Broker) runtimeMetrics(page *metrics.Page) {
	b.linkMu.Lock()
	epoch := b.epoch
	b.linkMu.Unlock()
	page.Family(metrics.Gauge, "leapio_wpt_epoch", "The epoch of the last attachment of a runtime.").Add(float64(epoch))
	epochs := page.Family(metrics.Gauge, "leapio_wpt_runtime_epoch", "The epoch of a runtime that is attached.", "runtime")
	since := page.Family(metrics.Gauge, "leapio_wpt_runtime_attached_time_seconds", "Since when it is attached, in seconds of Unix time.", "runtime")
	ports := page.Family(metrics.Gauge, "leapio_wpt_runtime_ports", "Ports that a runtime holds.", "runtime")
	for _, r := range b.listRuntimes() {
		epochs.Add(float64(r.Epoch), r.Name)
		since.Add(float64(r.Since.UnixNano())/1e9, r.Name)
		ports.Add(float64(len(r.Ports)), r.Name)
	}
	files := page.Family(metrics.Gauge, "leapio_wpt_kept_files", "Files that runtimes of a name have left here to outlive them.", "runtime")
	size := page.Family(metrics.Gauge, "leapio_wpt_kept_bytes", "The size of these files.", "runtime")
	var names []string
	count, sum := make(map[string]int), make(map[string]float64)
	for _, k := range b.kept.list() {
		if count[k.Runtime] == 0 {
			names = append(names, k.Runtime)
		}
		count[k.Runtime]++
		sum[k.Runtime] += float64(k.Size)
	}
	for _, name := range names {
		files.Add(float64(count[name]), name)
		size.Add(sum[name], name)
	}
}
