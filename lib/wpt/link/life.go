// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"hash/fnv"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/qpair"
)

// life keeps what a drive counts in the port's state area.
type life struct {
	page *qpair.Life
	// drive tells subsystems apart: a port that shows another one has another
	// drive, whose life begins.
	drive uint64
}

// life returns the life of subsystem sub on this port.
func (p *Port) life(sub *controller.Subsystem) life {
	h := fnv.New64a()
	_, _ = h.Write([]byte(sub.NQN)) // never fails
	return life{&p.state.Page.Header.Life, h.Sum64()}
}

// Load implements controller.Life.
func (l life) Load() controller.Counts {
	c := l.page.Load()
	if c[0] != l.drive {
		return controller.Counts{}
	}
	return controller.Counts{
		ReadCommands: c[1], WriteCommands: c[2], ReadBytes: c[3], WrittenBytes: c[4], MediaErrors: c[5], Errors: c[6],
	}
}

// Store implements controller.Life.
func (l life) Store(c controller.Counts) {
	l.page.Store(qpair.LifeCounts{
		l.drive, c.ReadCommands, c.WriteCommands, c.ReadBytes, c.WrittenBytes, c.MediaErrors, c.Errors,
	})
}
