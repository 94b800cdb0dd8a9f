// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/metrics"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/wpt/link"
)

// mux is the control API; lib/api/doc.go lists the calls.
func (r *Runtime) mux() *http.ServeMux {
	m := api.NewMux(api.Info{Daemon: daemon, Version: r.cfg.Version, PID: os.Getpid()})
	api.HandleEvents(m, "GET /v1/events", &r.events)
	api.Handle(m, "GET /v1/runtime", func(context.Context, api.None) (api.RuntimeInfo, error) { return r.info(), nil })
	api.Handle(m, "POST /v1/upgrade", r.upgrade)
	api.Handle(m, "GET /v1/stat/{by}", func(ctx context.Context, _ api.None) (api.Stat, error) { return r.stat(api.Param(ctx, "by")) })
	api.Handle(m, "GET /v1/limits", func(context.Context, api.None) (api.List[api.Limit], error) { return r.limits() })
	api.HandleText(m, "GET /metrics", metrics.ContentType, func(context.Context) ([]byte, error) { return r.metrics() })
	r.volumeCalls(m)
	r.subsystemCalls(m)
	r.listenerCalls(m)
	r.portCalls(m)
	return m
}

func (r *Runtime) volumeCalls(m *http.ServeMux) {
	api.Handle(m, "GET /v1/kinds", func(context.Context, api.None) (api.List[api.KindInfo], error) {
		var all api.List[api.KindInfo]
		for _, name := range slices.Sorted(maps.Keys(kinds)) {
			all = append(all, describeKind(kinds[name]))
		}
		return all, nil
	})
	api.Handle(m, "GET /v1/kinds/{kind}", func(ctx context.Context, _ api.None) (api.KindInfo, error) {
		k, ok := kinds[api.Param(ctx, "kind")]
		if !ok {
			return api.KindInfo{}, fault.Errorf(fault.NotFound, "", "", "no volume kind %s", api.Param(ctx, "kind"))
		}
		return describeKind(k), nil
	})
	api.Handle(m, "GET /v1/volumes", func(context.Context, api.None) (api.List[api.Volume], error) {
		return r.listVolumes(), nil
	})
	api.Handle(m, "POST /v1/volumes", r.createVolume)
	api.Handle(m, "GET /v1/volumes/{name}", func(ctx context.Context, _ api.None) (api.Volume, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		v, err := r.findVolume(api.Param(ctx, "name"))
		if err != nil {
			return api.Volume{}, err
		}
		return r.describeVolume(v), nil
	})
	api.Handle(m, "PUT /v1/volumes/{name}", func(ctx context.Context, in api.VolumeResize) (api.Volume, error) {
		return r.resizeVolume(ctx, api.Param(ctx, "name"), in)
	})
	api.Handle(m, "DELETE /v1/volumes/{name}", func(ctx context.Context, in api.VolumeDelete) (api.None, error) {
		return api.None{}, r.deleteVolume(api.Param(ctx, "name"), in.Data)
	})
}

func (r *Runtime) subsystemCalls(m *http.ServeMux) {
	api.Handle(m, "GET /v1/subsystems", func(context.Context, api.None) (api.List[api.Subsystem], error) {
		return r.listSubsystems(), nil
	})
	api.Handle(m, "POST /v1/subsystems", func(_ context.Context, in api.SubsystemSpec) (api.Subsystem, error) {
		return r.createSubsystem(in)
	})
	show := func(ctx context.Context, _ api.None) (api.Subsystem, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		s, err := r.findSubsystem(api.Param(ctx, "subsystem"))
		if err != nil {
			return api.Subsystem{}, err
		}
		return r.describeSubsystem(s), nil
	}
	api.Handle(m, "GET /v1/subsystems/{subsystem}", show)
	api.Handle(m, "DELETE /v1/subsystems/{subsystem}", func(ctx context.Context, _ api.None) (api.None, error) {
		return api.None{}, r.deleteSubsystem(ctx, api.Param(ctx, "subsystem"))
	})
	api.Handle(m, "GET /v1/subsystems/{subsystem}/namespaces", func(ctx context.Context, in api.None) (api.List[api.Namespace], error) {
		s, err := show(ctx, in)
		return s.Namespaces, err
	})
	api.Handle(m, "POST /v1/subsystems/{subsystem}/namespaces", func(ctx context.Context, in api.NamespaceSpec) (api.Namespace, error) {
		return r.addNamespace(api.Param(ctx, "subsystem"), in)
	})
	api.Handle(m, "DELETE /v1/subsystems/{subsystem}/namespaces/{nsid}", func(ctx context.Context, _ api.None) (api.None, error) {
		nsid, err := strconv.ParseUint(api.Param(ctx, "nsid"), 10, 32)
		if err != nil {
			return api.None{}, fault.Errorf(fault.Usage, "", "", "bad nsid %q", api.Param(ctx, "nsid"))
		}
		return api.None{}, r.removeNamespace(ctx, api.Param(ctx, "subsystem"), uint32(nsid))
	})
	api.Handle(m, "POST /v1/subsystems/{subsystem}/hosts", func(ctx context.Context, in api.HostSpec) (api.Subsystem, error) {
		return r.allow(api.Param(ctx, "subsystem"), in.Host, false)
	})
	api.Handle(m, "DELETE /v1/subsystems/{subsystem}/hosts/{host}", func(ctx context.Context, _ api.None) (api.Subsystem, error) {
		return r.allow(api.Param(ctx, "subsystem"), api.Param(ctx, "host"), true)
	})
}

func (r *Runtime) listenerCalls(m *http.ServeMux) {
	api.Handle(m, "GET /v1/listeners", func(context.Context, api.None) (api.List[api.Listener], error) {
		return r.listListeners(), nil
	})
	api.Handle(m, "POST /v1/listeners", r.createListener)
	api.Handle(m, "GET /v1/listeners/{listener}", func(ctx context.Context, _ api.None) (api.Listener, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		l, err := r.findListener(api.Param(ctx, "listener"))
		if err != nil {
			return api.Listener{}, err
		}
		return r.describeListener(l), nil
	})
	api.Handle(m, "DELETE /v1/listeners/{listener}", func(ctx context.Context, _ api.None) (api.None, error) {
		return api.None{}, r.unlisten(ctx, api.Param(ctx, "listener"))
	})
}

func (r *Runtime) portCalls(m *http.ServeMux) {
	api.Handle(m, "GET /v1/ports/{port}/queues", func(ctx context.Context, _ api.None) (api.List[api.QueuePair], error) {
		p, err := r.findPort(api.Param(ctx, "port"))
		if err != nil {
			return nil, err
		}
		return describeQueues(p), nil
	})
	api.Handle(m, "GET /v1/ports/{port}/queues/{qid}/{ring}", func(ctx context.Context, _ api.None) (api.Ring, error) {
		p, err := r.findPort(api.Param(ctx, "port"))
		if err != nil {
			return api.Ring{}, err
		}
		qid, err := strconv.ParseUint(api.Param(ctx, "qid"), 10, 16)
		if err != nil || qid >= qpair.MaxQueues {
			return api.Ring{}, fault.Errorf(fault.Usage, "", "", "bad queue identifier %q", api.Param(ctx, "qid"))
		}
		kind := api.Param(ctx, "ring")
		if kind != "sq" && kind != "cq" {
			return api.Ring{}, fault.Errorf(fault.Usage, "", "", "bad ring %q: neither sq nor cq", kind)
		}
		return dumpRing(p, uint16(qid), kind)
	})
}

// findPort returns a port that this runtime serves.
func (r *Runtime) findPort(name string) (*link.Port, error) {
	for _, p := range r.ports.List() {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fault.Errorf(fault.NotFound, "", "", "no port %s is attached to this runtime", name).
		Hint("`leap-wpt port list` shows which runtime a port is meant for; `leap-qmap map` wires it")
}

// describeQueues is what the API says of a port's queues, by queue identifier.
func describeQueues(p *link.Port) []api.QueuePair {
	var all []api.QueuePair
	for _, q := range p.Queues() {
		all = append(all, api.QueuePair{
			Port: p.Name, QID: q.QID, CQID: q.CQID, SQEntries: q.SQ.Entries, CQEntries: q.CQ.Entries,
			SQAddr: q.SQ.Addr, CQAddr: q.CQ.Addr, SQHead: q.SQ.Head, SQTail: q.SQ.Tail,
			CQHead: q.CQ.Head, CQTail: q.CQ.Tail, Vector: q.Vector, Interrupts: q.Interrupts,
			Outstanding: q.Outstanding, Shadow: q.Shadow, Poller: q.Poller,
			Since: q.Stats.Since, Completed: completed(q.Stats),
		})
	}
	slices.SortFunc(all, func(a, b api.QueuePair) int { return cmp.Compare(a.QID, b.QID) })
	return all
}

// completed returns how many commands a set has counted.
func completed(s *stats.Set) uint64 {
	total := s.Total()
	n := uint64(0)
	for c := range stats.Classes {
		n += total.Latency(c).Count()
	}
	return n
}

// dumpRing copies a ring for the API.
func dumpRing(p *link.Port, qid uint16, kind string) (api.Ring, error) {
	info, raw, err := p.Dump(qid, kind == "cq")
	if err != nil {
		return api.Ring{}, err
	}
	out := api.Ring{Port: p.Name, QID: qid, Kind: kind, Addr: info.Addr, Head: info.Head, Tail: info.Tail}
	for size := len(raw) / int(info.Entries); len(raw) > 0; raw = raw[size:] {
		out.Entries = append(out.Entries, raw[:size:size])
	}
	return out, nil
}
