// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"os"
	"slices"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/metrics"
)

// PortRemove is the body of DELETE /v1/ports/{name}; it may be left out.
type PortRemove struct {
	Force bool `json:"force"` // also with a guest attached
}

// mux registers the calls of the control API.
func (b *Broker) mux() *http.ServeMux {
	mux := api.NewMux(api.Info{Daemon: daemon, Version: b.version, PID: os.Getpid()})
	api.HandleEvents(mux, "GET /v1/events", &b.events)
	api.Handle(mux, "GET /v1/show", func(context.Context, api.None) (api.WptShow, error) {
		return api.WptShow{
			Version: b.version, PID: os.Getpid(), Since: b.since, Pause: b.pause, UpgradeError: b.upgradeError(),
			Ports: b.listPorts(), Runtimes: b.listRuntimes(), Kept: b.kept.list(),
		}, nil
	})
	api.HandleText(mux, "GET /metrics", metrics.ContentType, func(context.Context) ([]byte, error) { return b.metrics() })
	api.Handle(mux, "GET /v1/limits", func(context.Context, api.None) (api.List[api.Limit], error) { return b.bounds() })
	api.Handle(mux, "POST /v1/upgrade", b.upgrade)
	api.Handle(mux, "GET /v1/ports", func(context.Context, api.None) ([]api.Port, error) { return b.listPorts(), nil })
	api.Handle(mux, "POST /v1/ports", func(ctx context.Context, spec api.PortSpec) (api.Port, error) {
		if caller, ok := api.CallerOf(ctx); ok {
			return b.addPort(spec, &caller)
		}
		return b.addPort(spec, nil)
	})
	api.Handle(mux, "GET /v1/ports/{name}", func(ctx context.Context, _ api.None) (api.Port, error) {
		p, err := b.port("port show", api.Param(ctx, "name"))
		if err != nil {
			return api.Port{}, err
		}
		return p.show(), nil
	})
	api.Handle(mux, "GET /v1/ports/{name}/regions", func(ctx context.Context, _ api.None) (api.PortRegions, error) {
		p, err := b.port("port regions", api.Param(ctx, "name"))
		if err != nil {
			return api.PortRegions{}, err
		}
		return p.showRegions()
	})
	api.Handle(mux, "PUT /v1/ports/{name}", func(ctx context.Context, to api.PortBinding) (api.Port, error) {
		return b.bindPort(api.Param(ctx, "name"), to)
	})
	api.Handle(mux, "DELETE /v1/ports/{name}", func(ctx context.Context, r PortRemove) (api.None, error) {
		return api.None{}, b.removePort(api.Param(ctx, "name"), r.Force)
	})
	api.Handle(mux, "GET /v1/runtimes", func(context.Context, api.None) ([]api.Runtime, error) { return b.listRuntimes(), nil })
	return mux
}

// listPorts describes all ports, by name.
func (b *Broker) listPorts() []api.Port {
	all := b.allPorts()
	out := make([]api.Port, 0, len(all))
	for _, p := range all {
		out = append(out, p.show())
	}
	return out
}

// listRuntimes describes the runtimes whose links are alive, by name.
func (b *Broker) listRuntimes() []api.Runtime {
	b.linkMu.Lock()
	all := slices.SortedFunc(maps.Values(b.runtimes), func(x, y *runtime) int { return cmp.Compare(x.name, y.name) })
	b.linkMu.Unlock()
	ports := b.allPorts()
	out := make([]api.Runtime, 0, len(all))
	for _, rt := range all {
		if rt.lost() {
			continue
		}
		r := api.Runtime{Name: rt.name, PID: rt.pid, Epoch: rt.epoch, Since: rt.since}
		for _, p := range ports {
			if p.heldBy(rt) {
				r.Ports = append(r.Ports, p.name)
			}
		}
		out = append(out, r)
	}
	return out
}

func (p *port) heldBy(rt *runtime) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holder == rt
}
