// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package rdma is the command leap-rdma: the transports of NVMe over Fabrics. It
// makes listeners, at which hosts connect, and looks at listeners as a host sees
// them, whoever they belong to.
package rdma

import (
	"github.com/leapio/leapio/lib/cli"
)

// Command is the tree of leap-rdma.
func Command() *cli.Command {
	return &cli.Command{
		Name:     "leap-rdma",
		Usage:    "bring up and inspect NVMe over Fabrics",
		Commands: []*cli.Command{listen(), unlisten(), list(), show(), devices(), discover(), ping(), connect()},
	}
}
