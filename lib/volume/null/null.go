// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package null is the kind of volume without a medium: every request succeeds
// at once and no data moves, in either direction. It measures what everything
// but the medium costs, and is comparable with the null devices of others.
//
// A read leaves the host's buffer as it was. That shows a host nothing but its
// own memory, yet no file system survives on such a drive.
package null

import (
	"context"
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

var keys = []volume.Key{
	{Name: "size", Value: "SIZE", Usage: "capacity; any, since nothing is kept"},
	volume.BlockKey,
}

// Kind is the kind null.
var Kind = volume.Kind{
	Name:    "null",
	Summary: "no medium: reads and writes succeed and move no data (a read leaves the host's buffer as it was)",
	Keys:    keys,
	Make:    create,
}

func create(_ context.Context, _ volume.Env, spec *volume.Spec) (volume.Volume, error) {
	if err := spec.CheckKeys(keys); err != nil {
		return nil, err
	}
	size, block, err := spec.SizeAndBlock()
	if err != nil {
		return nil, err
	}
	n := new(null)
	return n, n.Reshape(volume.Shape{Size: size, Block: block})
}

type null struct{ info atomic.Pointer[volume.Info] }

func (n *null) Info() *volume.Info                          { return n.info.Load() }
func (n *null) Open(p *poller.Poller) (volume.Queue, error) { return queue{p}, nil }
func (n *null) Close() error                                { return nil }

func (n *null) Extend(uint64) error { return nil }
func (n *null) Trim() error         { return nil }

// Reshape implements volume.Reshaper.
func (n *null) Reshape(s volume.Shape) error {
	n.info.Store(&volume.Info{
		Size: s.Size, Block: s.Block,
		WriteGranularity: s.Block, DiscardGranularity: s.Block, AtomicUnit: s.Block,
	})
	return nil
}

type queue struct{ p *poller.Poller }

func (q queue) Submit(r *volume.Request) {
	r.Begin(q.p)
	r.Complete(nvme.StatusSuccess)
}

func (q queue) Cancel(*volume.Request) {} // every request has ended already
func (q queue) Close()                 {}
