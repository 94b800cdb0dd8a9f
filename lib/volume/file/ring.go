// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import "github.com/leapio/leapio/lib/uring"

// ringEngine runs calls on the poller's io_uring. What is in flight is bounded
// by the ring.
type ringEngine struct {
	ring *uring.Ring
	fd   int
}

func (e *ringEngine) start(o *op) (err error) {
	f, c := uring.FD(e.fd), &o.call
	switch c.kind {
	case callRead:
		o.token, err = e.ring.Read(f, c.iov, c.off, c.flags, o)
	case callWrite:
		o.token, err = e.ring.Write(f, c.iov, c.off, c.flags, o)
	case callSync:
		o.token, err = e.ring.Fdatasync(f, o)
	case callAllocate:
		o.token, err = e.ring.Fallocate(f, c.flags, c.off, c.n, o)
	}
	return err
}

// Done implements uring.Completion.
func (o *op) Done(res int32, _ uint32) { o.finish(int(res)) }

func (e *ringEngine) cancel(o *op) {
	// No room for the wish is an answer too.
	_, _ = e.ring.Cancel(o.token, unheard{})
}

// unheard is told how a cancellation went; the op is told what counts.
type unheard struct{}

func (unheard) Done(int32, uint32) {}

func (e *ringEngine) close() {}
