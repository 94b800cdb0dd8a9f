// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package rdma is the command leap-rdma: the transports of NVMe over Fabrics. It
// makes listeners, at which hosts connect; makes volumes of what other machines
// show; and looks at listeners, and measures them, as a host does, whoever they
// belong to.
//
//	listen.go     listeners of a runtime
//	connect.go    volumes of kind remote
//	devices.go    what there is to listen on
//	peer.go       who the host is, and how it connects; discovery
//	ping.go       round trips
//	bench.go      the words and the report of bench
//	session.go    an association with I/O queues, which carry out lib/bench's I/Os
package rdma

import (
	"github.com/leapio/leapio/lib/cli"
)

// Command is the tree of leap-rdma.
func Command() *cli.Command {
	return &cli.Command{
		Name:     "leap-rdma",
		Usage:    "bring up and inspect NVMe over Fabrics",
		Commands: []*cli.Command{listen(), unlisten(), list(), show(), devices(), discover(), ping(), benchVerb(), connect(), disconnect()},
	}
}
