// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"fmt"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
)

// Limits bound what hosts can take. Memory is taken as it is used, at most
//
//	Connections * (64 KiB + QueueEntries * (max(InCapsule, 8 KiB) + 2 KiB))
//	+ pollers * (Memory + Associations * 1 MiB)
//
// of which the last term is a floor for each association, so that it goes on whatever others hold. A field of 0 has its default.
type Limits struct {
	Connections  int           // of the target, 1 to MaxConnections
	Associations int           // with subsystems, 1 to MaxConnections; discovery controllers are bounded by the connections
	Queues       int           // I/O queues of an association, 1 to MaxQueues
	QueueEntries int           // of an I/O queue, MinAdminQueue to MaxQueueEntries; an admin queue has at most MinAdminQueue
	InCapsule    int           // bytes of data in a capsule of an I/O queue, MinInCapsule to MaxInCapsule, a multiple of 16
	Memory       int           // bytes of data buffers of a poller, MinMemory to MaxMemory
	Share        int           // bytes of them that one association may hold, MinShare to MaxMemory
	Patience     time.Duration // how long a peer may take that has to go on, MinPatience to MaxPatience: to Connect, with a PDU, with data it is asked for
}

// The ranges of Limits.
const (
	MaxConnections  = 32768
	MaxQueues       = 1024
	MaxQueueEntries = 1024
	MinInCapsule    = 512
	MaxInCapsule    = 64 << 10
	MinMemory       = 4 << 20
	MaxMemory       = 64 << 30
	MinShare        = dma.MaxTransfer
	MinPatience     = time.Second
	MaxPatience     = time.Hour
)

// DefaultLimits are enough for a hundred hosts of some processors each.
func DefaultLimits() Limits {
	return Limits{
		Connections: 1024, Associations: 256, Queues: 64, QueueEntries: 128, InCapsule: 8 << 10,
		Memory: 64 << 20, Share: 8 << 20, Patience: 30 * time.Second,
	}
}

// Check tells whether limits that are all given are within their ranges.
func (l Limits) Check() error {
	for _, r := range []struct {
		name           string
		n, least, most int
	}{
		{"connections", l.Connections, 1, MaxConnections},
		{"associations", l.Associations, 1, MaxConnections},
		{"queues", l.Queues, 1, MaxQueues},
		{"queue entries", l.QueueEntries, fabrics.MinAdminQueue, MaxQueueEntries},
		{"bytes in a capsule", l.InCapsule, MinInCapsule, MaxInCapsule},
		{"bytes of buffers", l.Memory, MinMemory, MaxMemory},
		{"bytes of buffers for an association", l.Share, MinShare, MaxMemory},
		{"patience in milliseconds", int(l.Patience.Milliseconds()), int(MinPatience.Milliseconds()), int(MaxPatience.Milliseconds())},
	} {
		if r.n < r.least || r.n > r.most {
			return fmt.Errorf("%d %s: not between %d and %d", r.n, r.name, r.least, r.most)
		}
	}
	if l.InCapsule%16 != 0 {
		return fmt.Errorf("%d bytes in a capsule: not a multiple of 16", l.InCapsule)
	}
	return nil
}

func (l Limits) withDefaults() Limits {
	initial := DefaultLimits()
	for _, f := range []struct{ n, initial *int }{
		{&l.Connections, &initial.Connections}, {&l.Associations, &initial.Associations}, {&l.Queues, &initial.Queues},
		{&l.QueueEntries, &initial.QueueEntries}, {&l.InCapsule, &initial.InCapsule}, {&l.Memory, &initial.Memory}, {&l.Share, &initial.Share},
	} {
		if *f.n == 0 {
			*f.n = *f.initial
		}
	}
	if l.Patience == 0 {
		l.Patience = initial.Patience
	}
	return l
}

// Use is how much of Limits is taken.
type Use struct{ Connections, Associations int }

// Limits returns those in force.
func (t *Target) Limits() Limits { return t.limits }

// Use returns what hosts take now.
func (t *Target) Use() Use {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Use{Connections: t.connections, Associations: t.seats}
}

// entries returns how many entries queue qid may have.
func (l *Limits) entries(qid uint16) int {
	if qid == 0 {
		return fabrics.MinAdminQueue
	}
	return l.QueueEntries
}
