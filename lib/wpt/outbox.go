// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

// outboxRoom is how many messages to a runtime may wait before those who cause
// more have to.
const outboxRoom = 1024

// outgoing is a message that waits. It owns its fds.
type outgoing struct {
	message qpair.Message
	data    []byte
	fds     []int
}

func (o *outgoing) close() { qpair.CloseFDs(o.fds) }

// outbox keeps the messages to one runtime in order. Adding one never blocks,
// so that a port's lock is never held over a runtime that does not read.
type outbox struct {
	mu     sync.Mutex
	queue  []outgoing
	wake   chan struct{} // something is in the queue, or the outbox is closed
	taken  chan struct{} // closed, and replaced, when the queue is emptied
	closed bool
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), taken: make(chan struct{})}
}

// add appends a message with duplicates of fds. After close it does nothing:
// the runtime is gone, or soon will be.
func (o *outbox) add(m qpair.Message, data []byte, fds ...int) error {
	out := outgoing{message: m, data: data}
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			out.close()
			return fmt.Errorf("passing on a file descriptor: %w", err)
		}
		out.fds = append(out.fds, dup)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		out.close()
		return nil
	}
	o.queue = append(o.queue, out)
	o.wakeWriter()
	return nil
}

func (o *outbox) wakeWriter() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// waitRoom waits until fewer than outboxRoom messages wait, at most for limit.
func (o *outbox) waitRoom(limit time.Duration) bool {
	var timer *time.Timer
	for {
		o.mu.Lock()
		ok, taken := o.closed || len(o.queue) < outboxRoom, o.taken
		o.mu.Unlock()
		if ok {
			return true
		}
		if timer == nil {
			timer = time.NewTimer(limit)
			defer timer.Stop()
		}
		select {
		case <-taken:
		case <-timer.C:
			return false
		}
	}
}

// write sends what is added until the outbox is closed or the link fails.
func (o *outbox) write(link *qpair.Link) error {
	for range o.wake {
		o.mu.Lock()
		batch, closed := o.queue, o.closed
		o.emptied()
		o.mu.Unlock()
		var err error
		for i := range batch {
			if err == nil && !closed {
				err = link.Send(&batch[i].message, batch[i].data, batch[i].fds...)
			}
			batch[i].close()
		}
		if err != nil || closed {
			return err
		}
	}
	return nil
}

// close drops what waits and ends write.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for i := range o.queue {
		o.queue[i].close()
	}
	o.emptied()
	o.wakeWriter()
}

// emptied drops the queue and tells those who wait for room.
func (o *outbox) emptied() {
	o.queue = nil
	close(o.taken)
	o.taken = make(chan struct{})
}
