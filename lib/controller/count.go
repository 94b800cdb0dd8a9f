// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/stats"
)

// A command is counted by two sets: that of its namespace on this poller, which
// counts for the namespace, its volume and the controller, and that of the
// transport. It took from Execute or Admin, when the transport had just fetched
// it, to its end here, shortly before its completion is published. What the
// controller does for itself is not counted.

// count counts the end of the command for the transport, if it is to, and for
// the namespace, if it has used one.
func (c *Command) count(transport *stats.Set, st nvme.Status) {
	if c.began == 0 {
		return
	}
	bytes := c.length
	if c.kind == stats.Discard {
		bytes = c.discarded
	}
	took, failed := stats.LatencyOf(c.poller().Now()-c.began), st != nvme.StatusSuccess
	if transport != nil {
		transport.Record(c.kind, took, bytes, failed)
	}
	if c.ns != nil {
		c.ns.stats.Record(c.kind, took, bytes, failed)
		c.ns.stats.Done()
	}
}

// poller returns the poller that executes the command.
func (c *Command) poller() *poller.Poller {
	if c.admin != nil {
		return c.admin.p
	}
	return c.worker.p
}
