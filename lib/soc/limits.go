// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/units"
)

// limits returns what this runtime bounds. There may be as many volumes and
// subsystems as its state file holds.
func (r *Runtime) limits() (api.List[api.Limit], error) {
	common, err := api.CommonLimits(r.cfg.Paths.StateFile(r.cfg.Name))
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	listeners := len(r.listeners)
	r.mu.Unlock()
	l, use := r.target.Limits(), r.target.Use()
	const host = "host's controller"
	all := append(api.List[api.Limit]{
		api.CountLimit("listeners", api.PerDaemon, "", maxListener).Using(listeners),
		api.CountLimit("namespaces", "subsystem", "", controller.MaxNamespaces),
		api.BytesLimit("transfer", "command", "", dma.MaxTransfer),
		api.CountLimit("port-queues", "port", "", qpair.MaxQueues-1),
		api.CountLimit("port-entries", "queue", "", qpair.MaxEntries),
		api.CountLimit("host-connections", api.PerDaemon, "--host-connections", l.Connections).Using(use.Connections),
		api.CountLimit("host-associations", api.PerDaemon, "--host-associations", l.Associations).Using(use.Associations),
		api.CountLimit("host-queues", host, "--host-queues", l.Queues),
		api.CountLimit("host-entries", "queue", "--host-entries", l.QueueEntries),
		api.BytesLimit("host-capsule", "command", "--host-capsule", units.Size(l.InCapsule)),
		api.BytesLimit("host-memory", "poller", "--host-memory", units.Size(l.Memory)),
		api.BytesLimit("host-share", host, "--host-share", units.Size(l.Share)),
		api.TimeLimit("host-patience", "step", "--host-patience", l.Patience),
	}, common...)
	for i := range all {
		all[i].Daemon = daemon
	}
	return all, nil
}
