// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package api is how LeapIO's commands and daemons talk to each other and to
// shell scripts: the types, the server and the client of the control API, the
// facts under RUN, and the state files under STATE.
//
// The control API is HTTP and JSON over a Unix socket of mode 0600, below /v1/ but
// for /metrics.
// Keys are snake_case and only ever added, sizes are bytes and durations are
// nanoseconds, both integers, times are RFC 3339, and a list is never null. An
// error is answered as {"error":{...}} in the form of lib/fault. Requests are
// read strictly (unknown keys are refused), answers leniently (a newer daemon
// may have more keys). The calls are:
//
//	both daemons
//	GET    /v1/                                   Info
//	GET    /v1/events                             Event, one per line
//	GET    /v1/limits                             []Limit
//
//	leap-wpt
//	GET    /v1/show                               WptShow
//	GET    /v1/ports                              []Port
//	POST   /v1/ports                              PortSpec, Port
//	GET    /v1/ports/{name}                       Port
//	PUT    /v1/ports/{name}                       PortBinding, Port
//	DELETE /v1/ports/{name}                       None
//	GET    /v1/runtimes                           []Runtime
//
//	leap-soc
//	GET    /v1/runtime                            RuntimeInfo
//	GET    /v1/kinds                              []KindInfo
//	GET    /v1/kinds/{kind}                       KindInfo
//	GET    /v1/volumes                            []Volume
//	POST   /v1/volumes                            VolumeSpec, Volume
//	GET    /v1/volumes/{name}                     Volume
//	PUT    /v1/volumes/{name}                     VolumeResize, Volume
//	DELETE /v1/volumes/{name}                     VolumeDelete, None
//	GET    /v1/subsystems                         []Subsystem
//	POST   /v1/subsystems                         SubsystemSpec, Subsystem
//	GET    /v1/subsystems/{subsystem}             Subsystem
//	DELETE /v1/subsystems/{subsystem}             None
//	GET    /v1/subsystems/{subsystem}/namespaces  []Namespace
//	POST   /v1/subsystems/{subsystem}/namespaces  NamespaceSpec, Namespace
//	DELETE /v1/subsystems/{subsystem}/namespaces/{nsid}  None
//	POST   /v1/subsystems/{subsystem}/hosts       HostSpec, Subsystem
//	DELETE /v1/subsystems/{subsystem}/hosts/{host}       Subsystem
//	GET    /v1/listeners                          []Listener
//	POST   /v1/listeners                          ListenerSpec, Listener
//	GET    /v1/listeners/{listener}               Listener
//	DELETE /v1/listeners/{listener}               None
//	GET    /v1/stat/{by}                          Stat
//	GET    /metrics                               in the text format of Prometheus
//	GET    /v1/ports/{port}/queues                []QueuePair
//	GET    /v1/ports/{port}/queues/{qid}/{ring}   Ring
//
// {subsystem} is a name or an NQN, {host} an NQN or "any", {listener} a number or
// a URL, {ring} "sq" or "cq", {by} "volume", "namespace" or "queue".
package api
