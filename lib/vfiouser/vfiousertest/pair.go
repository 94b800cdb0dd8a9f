// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// CommandTimeout is how long Do waits for a completion.
const CommandTimeout = 30 * time.Second

// StatusError is a command that the controller completed with an error.
type StatusError struct {
	Queue      uint16 // submission queue
	Command    nvme.SQE
	Completion nvme.CQE
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("queue %d: command with opcode %#02x: %v", e.Queue, e.Command.Opcode, e.Completion.StatusField())
}

// completed reports whether a command with this result has come to an end: the
// controller is done with its memory.
func completed(err error) bool {
	var status *StatusError
	return err == nil || errors.As(err, &status)
}

// Pair is a submission queue and its completion queue, with the bookkeeping of
// a driver: command identifiers, each reused as soon as it is free, and who
// waits for what. Its methods may be called from several goroutines. A test
// that wants to do all that itself uses SQ and CQ.
type Pair struct {
	SQ *SQ
	CQ *CQ

	mu      sync.Mutex
	free    []uint16 // identifiers, the last freed at the end
	waiting []func(nvme.CQE)
	err     error // the controller completed what was not there
}

func newPair(sq *SQ, cq *CQ) *Pair {
	p := &Pair{SQ: sq, CQ: cq, waiting: make([]func(nvme.CQE), sq.Depth())}
	for id := sq.Depth() - 2; id >= 0; id-- {
		p.free = append(p.free, uint16(id))
	}
	return p
}

// Submit sends a command, with an identifier of the Pair's choice. done is
// called with the completion by whoever polls then, and must not use the Pair.
func (p *Pair) Submit(e nvme.SQE, done func(nvme.CQE)) error {
	deadline := time.Now().Add(CommandTimeout)
	for spins := 0; ; spins++ {
		p.mu.Lock()
		err := p.poll()
		if err == nil && len(p.free) > 0 {
			e.CID = p.free[len(p.free)-1]
			if p.SQ.Push(&e) {
				p.free = p.free[:len(p.free)-1]
				p.waiting[e.CID] = done
				err = p.SQ.Ring()
				p.mu.Unlock()
				return err
			}
		}
		p.mu.Unlock()
		if err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("queue %d: no room for a command: %w", p.SQ.ID, os.ErrDeadlineExceeded)
		}
		pause(spins)
	}
}

// Poll takes the completions there are and calls who waits for them. It fails
// if the controller completed a command that was not outstanding, now and from
// then on.
func (p *Pair) Poll() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.poll()
}

func (p *Pair) poll() error {
	if p.err != nil {
		return p.err
	}
	_, err := p.CQ.Poll(func(c nvme.CQE) {
		if c.SQID != p.SQ.ID || int(c.CID) >= len(p.waiting) || p.waiting[c.CID] == nil {
			p.err = errors.Join(p.err, fmt.Errorf("queue %d: completion %+v for a command that is not outstanding", p.SQ.ID, c))
			return
		}
		done := p.waiting[c.CID]
		p.waiting[c.CID] = nil
		p.free = append(p.free, c.CID)
		done(c)
	})
	p.err = errors.Join(p.err, err)
	return p.err
}

// Outstanding returns how many commands have no completion yet.
func (p *Pair) Outstanding() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.SQ.Depth() - 1 - len(p.free)
}

// Do sends a command and waits for its completion: by the queue's interrupt if
// it has one, else by polling. A status other than success is a *StatusError.
func (p *Pair) Do(e nvme.SQE) (nvme.CQE, error) {
	result := make(chan nvme.CQE, 1)
	if err := p.Submit(e, func(c nvme.CQE) { result <- c }); err != nil {
		return nvme.CQE{}, err
	}
	deadline := time.Now().Add(CommandTimeout)
	for spins := 0; ; spins++ {
		if err := p.Poll(); err != nil {
			return nvme.CQE{}, err
		}
		select {
		case c := <-result:
			if c.StatusField() != nvme.StatusSuccess {
				return c, &StatusError{Queue: p.SQ.ID, Command: e, Completion: c}
			}
			return c, nil
		case <-p.CQ.drive.client.Done():
			return nvme.CQE{}, fmt.Errorf("queue %d: command with opcode %#02x: connection has ended: %w", p.SQ.ID, e.Opcode, p.CQ.drive.client.Err())
		default:
		}
		if time.Now().After(deadline) {
			return nvme.CQE{}, fmt.Errorf("queue %d: command with opcode %#02x: no completion within %v: %w", p.SQ.ID, e.Opcode, CommandTimeout, os.ErrDeadlineExceeded)
		}
		p.mu.Lock()
		there := p.CQ.Pending()
		p.mu.Unlock()
		if there {
			continue
		}
		if err := p.CQ.await(spins); err != nil {
			return nvme.CQE{}, err
		}
	}
}

// await waits a little for something to happen to the queue. An interrupt that
// others of the same vector also wait for may go to one of them: so the wait is
// short.
func (q *CQ) await(spins int) error {
	if q.Interrupt == nil {
		pause(spins)
		return nil
	}
	_, err := q.Interrupt.Wait(20 * time.Millisecond)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err == nil && q.Interrupt == q.drive.client.INTx() {
		return q.drive.client.EndINTx()
	}
	return err
}

// pause lets others run, and sleeps once nothing has come for a while.
func pause(spins int) {
	if spins < 200 {
		runtime.Gosched()
	} else {
		time.Sleep(50 * time.Microsecond)
	}
}
