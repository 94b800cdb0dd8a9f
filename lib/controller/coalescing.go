// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// coalescing is the host's wish for fewer interrupts, where any poller can read
// it: Interrupt Coalescing, and the vectors that are excepted from it by
// Interrupt Vector Configuration, a bit each.
type coalescing struct {
	config   atomic.Uint32
	excepted [maxVectors / 64]atomic.Uint64
}

// spreadCoalescing shows the features to all pollers.
func (c *Controller) spreadCoalescing() {
	for i, bits := range c.features.uncoalesced {
		c.coalescing.excepted[i].Store(bits)
	}
	c.coalescing.config.Store(c.features.values[nvme.FeatInterruptCoalescing])
}

// Coalescing returns how many entries of an I/O completion queue the host wants
// to be told of by one interrupt of the vector, and how long the first of them
// may wait for the others; 0: not at all (NVMe Base, "Interrupt Coalescing").
// It may be called on any poller.
func (c *Controller) Coalescing(vector uint32) (entries int, wait time.Duration) {
	v := nvme.InterruptCoalescing(c.coalescing.config.Load())
	if v.THR() == 0 || v.Time() == 0 || vector < maxVectors && c.coalescing.excepted[vector/64].Load()>>(vector%64)&1 != 0 {
		return 1, 0
	}
	return int(v.THR()) + 1, v.Time()
}

// setCoalescing stores the wish.
func (c *Controller) setCoalescing(cmd *Command, f *feature) {
	c.keep(cmd, f)
	c.spreadCoalescing()
}
