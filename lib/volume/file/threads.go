// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"sync"

	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/uring"
)

const (
	threadCount   = 16  // goroutines per queue, each in one system call
	threadBacklog = 256 // calls that wait for one
)

// threads runs calls on goroutines, for pollers without io_uring. They touch
// guest memory through system calls alone: memory that a guest takes away is
// EFAULT there, not a signal.
type threads struct {
	p    *poller.Poller
	fd   int
	work chan *op
	all  sync.WaitGroup
}

func startThreads(p *poller.Poller, fd int) *threads {
	t := &threads{p: p, fd: fd, work: make(chan *op, threadBacklog)}
	for range threadCount {
		t.all.Go(t.serve)
	}
	return t
}

func (t *threads) start(o *op) error {
	select {
	case t.work <- o:
		return nil
	default:
		return uring.ErrFull
	}
}

// cancel needs nothing: serve looks at o.cancelled before it begins a call.
func (t *threads) cancel(*op) {}

// close ends the goroutines and waits for them: they are idle.
func (t *threads) close() {
	close(t.work)
	t.all.Wait()
}

func (t *threads) serve() {
	for o := range t.work {
		o.result = o.call.run(t.fd, &o.cancelled)
		// A poller that has stopped has no use for the result.
		_ = t.p.Post(o.ended)
	}
}

// finishThread takes the result over, on the poller.
func (o *op) finishThread() { o.finish(o.result) }
