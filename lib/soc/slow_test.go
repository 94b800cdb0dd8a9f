// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// SlowBlocks is how many blocks a volume of kind slow has. A request at block n
// takes n milliseconds at least.
const SlowBlocks = 64

// The kind slow is there in tests only.
func init() {
	kinds["slow"] = volume.Kind{
		Name: "slow", Summary: "takes its time",
		Make: func(context.Context, volume.Env, *volume.Spec) (volume.Volume, error) { return slow{}, nil },
	}
}

type slow struct{}

func (slow) Info() *volume.Info {
	return &volume.Info{
		Size: SlowBlocks * 512, Block: 512, WriteGranularity: 512, DiscardGranularity: 512, AtomicUnit: 512,
	}
}
func (slow) Open(p *poller.Poller) (volume.Queue, error) { return slowQueue{p}, nil }
func (slow) Close() error                                { return nil }

type slowQueue struct{ p *poller.Poller }

func (q slowQueue) Submit(r *volume.Request) {
	r.Begin(q.p)
	time.AfterFunc(time.Duration(r.Offset/512)*time.Millisecond, func() {
		_ = q.p.Post(func() { r.Complete(nvme.StatusSuccess) }) // pollers stop after their queues
	})
}

func (slowQueue) Cancel(*volume.Request) {}
func (slowQueue) Close()                 {}
