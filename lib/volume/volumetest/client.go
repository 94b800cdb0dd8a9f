// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volumetest

import (
	"context"
	"sync"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// Client uses a volume from a poller of its own. Its methods may be called
// from any goroutine but the poller's.
type Client struct {
	Poller *poller.Poller
	Queue  volume.Queue

	once sync.Once
}

// Connect starts a poller as cfg says and opens a queue of v on it. Both end
// with Close, or when the test ends.
func Connect(t testing.TB, v volume.Volume, cfg poller.Config) *Client {
	t.Helper()
	p, err := poller.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{Poller: p}
	t.Cleanup(c.Close)
	c.On(func() { c.Queue, err = v.Open(p) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Close closes the queue and ends the poller. No request is in flight.
func (c *Client) Close() {
	c.once.Do(func() {
		if c.Queue != nil {
			c.On(c.Queue.Close)
		}
		c.Poller.Stop()
	})
}

// On runs f on the poller and waits for it.
func (c *Client) On(f func()) {
	if err := c.Poller.Do(f); err != nil {
		panic(err) // used after Close
	}
}

// waiter is the owner of one request that a goroutine waits for.
type waiter struct {
	done  chan struct{}
	calls int
}

func (w *waiter) Completed(*volume.Request) {
	if w.calls++; w.calls > 1 {
		panic("volumetest: Completed called twice for one Submit")
	}
	close(w.done)
}

// Do runs r, whose Owner it sets, and returns its status. When ctx ends it
// cancels r and waits on: until the end r's memory is the volume's.
func (c *Client) Do(ctx context.Context, r *volume.Request) nvme.Status {
	w := &waiter{done: make(chan struct{})}
	r.Owner = w
	c.On(func() { c.Queue.Submit(r) })
	select {
	case <-w.done:
	case <-ctx.Done():
		c.On(func() {
			// It may have ended in the meantime; then it is not the queue's.
			if w.calls == 0 {
				c.Queue.Cancel(r)
			}
		})
		<-w.done
	}
	return r.Status
}

// Batch submits requests that are all in flight together, each cancelled at
// once if cancel is set, and waits for all of them.
func (c *Client) Batch(t testing.TB, reqs []volume.Request, cancel bool) {
	t.Helper()
	b := &batch{calls: make(map[*volume.Request]int), left: len(reqs), done: make(chan struct{})}
	c.On(func() {
		for i := range reqs {
			reqs[i].Owner = b
			c.Queue.Submit(&reqs[i])
			if b.calls[&reqs[i]] > 0 {
				t.Error("Completed was called from within Submit")
			}
		}
		for i := range reqs {
			if cancel && b.calls[&reqs[i]] == 0 {
				c.Queue.Cancel(&reqs[i])
			}
		}
	})
	if len(reqs) > 0 {
		<-b.done
	}
	// What is told twice is told in the turns after.
	c.On(func() {})
	c.On(func() {
		for i := range reqs {
			if n := b.calls[&reqs[i]]; n != 1 {
				t.Errorf("request %d: Completed called %d times, want once", i, n)
			}
		}
	})
}

type batch struct {
	calls map[*volume.Request]int
	left  int
	done  chan struct{}
}

func (b *batch) Completed(r *volume.Request) {
	b.calls[r]++
	if b.left--; b.left == 0 {
		close(b.done)
	}
}
