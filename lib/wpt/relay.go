// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

const (
	// relayQueue is how many requests of a runtime may wait for one client. A
	// runtime asks for one at a time, and once more after one was dropped.
	relayQueue = 4
	// relayLimit is how long a client may take for one piece.
	relayLimit = 10 * time.Second
	// maxPieces is how many pieces a client may owe an answer for, given up
	// ones included.
	maxPieces = 64
)

// relay is a runtime's request to read or write guest memory that only the
// client can reach.
type relay struct {
	runtime *runtime
	id      uint64
	port    uint32
	write   bool
	addr    uint64
	data    []byte        // to write, or room for what is read
	drop    chan struct{} // closed, once dropped is set: give up, answer EIO
	dropped bool          // guarded by relayer.mu
}

// piece is one DMA_READ or DMA_WRITE that the client has not answered.
type piece struct {
	command vfiouser.Command
	data    []byte // room for what is read
	done    chan error
	stale   bool // a write that was given up at a reset
}

// relayer sends DMA_READ and DMA_WRITE to one client, one at a time, and keeps
// what is under way. The handler of the connection never waits for it.
type relayer struct {
	conn  *vfiouser.Conn
	queue chan *relay
	limit uint64 // bytes in one piece, set by VERSION

	mu     sync.Mutex
	nextID uint16
	pieces map[uint16]*piece
	active map[*relay]struct{} // queued or under way
	muted  bool                // nobody is answered any more
	stale  atomic.Int32
}

func newRelayer(conn *vfiouser.Conn) *relayer {
	return &relayer{
		conn:   conn,
		queue:  make(chan *relay, relayQueue),
		pieces: make(map[uint16]*piece),
		active: make(map[*relay]struct{}),
	}
}

// start queues a request; EBUSY if too many wait. It does not block.
func (q *relayer) start(r *relay) error {
	r.drop = make(chan struct{})
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case q.queue <- r:
		q.active[r] = struct{}{}
		return nil
	default:
		return unix.EBUSY
	}
}

// run serves the queue until done is closed.
func (q *relayer) run(done <-chan struct{}) {
	for {
		select {
		case r := <-q.queue:
			q.finish(r, q.serve(r, done))
		case <-done:
			return
		}
	}
}

// finish answers a request.
func (q *relayer) finish(r *relay, err error) {
	q.mu.Lock()
	delete(q.active, r)
	muted := q.muted
	q.mu.Unlock()
	if !muted {
		r.runtime.relayed(r, err)
	}
}

// mute has requests end without an answer: that of the link tells more.
func (q *relayer) mute() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.muted = true
}

// cancel answers EIO to all that wait, after run has ended and when nobody can
// start another.
func (q *relayer) cancel() {
	for {
		select {
		case r := <-q.queue:
			q.finish(r, unix.EIO)
		default:
			return
		}
	}
}

// drop gives up the requests for which match holds. A write of theirs that is
// already with the client is remembered as stale until the client has answered,
// if the function is being reset.
func (q *relayer) drop(reset bool, match func(*relay) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for r := range q.active {
		if match(r) && !r.dropped {
			r.dropped = true
			close(r.drop)
		}
	}
	if !reset {
		return
	}
	for _, p := range q.pieces {
		if p.command == vfiouser.CmdDMAWrite && !p.stale {
			p.stale = true
			q.stale.Add(1)
		}
	}
}

// serve does one request, piece by piece.
func (q *relayer) serve(r *relay, done <-chan struct{}) error {
	for at := uint64(0); at < uint64(len(r.data)); at += q.limit {
		part := r.data[at:min(at+q.limit, uint64(len(r.data)))]
		p, err := q.send(r, r.addr+at, part)
		if err != nil {
			return err
		}
		if err := q.wait(r, p, done); err != nil {
			return err
		}
		copy(part, p.data)
	}
	return nil
}

// send sends one piece.
func (q *relayer) send(r *relay, addr uint64, part []byte) (*piece, error) {
	select {
	case <-r.drop:
		return nil, unix.EIO
	default:
	}
	p := &piece{command: vfiouser.CmdDMARead, done: make(chan error, 1)}
	var data []byte
	if r.write {
		p.command, data = vfiouser.CmdDMAWrite, part
	} else {
		p.data = make([]byte, len(part))
	}
	q.mu.Lock()
	if len(q.pieces) >= maxPieces {
		q.mu.Unlock()
		return nil, unix.EBUSY
	}
	for q.pieces[q.nextID] != nil {
		q.nextID++
	}
	id := q.nextID
	q.nextID++
	q.pieces[id] = p
	q.mu.Unlock()
	var head [vfiouser.DMAAccessSize]byte
	access := vfiouser.DMAAccess{Address: addr, Count: uint64(len(part))}
	access.Put(head[:])
	if err := q.conn.Send(vfiouser.Header{ID: id, Command: p.command}, head[:], data); err != nil {
		return nil, unix.EIO
	}
	return p, nil
}

// wait waits for the answer to a piece. A piece that is given up stays known,
// so that its answer is told from an answer to nothing.
func (q *relayer) wait(r *relay, p *piece, done <-chan struct{}) error {
	timer := time.NewTimer(relayLimit)
	defer timer.Stop()
	select {
	case err := <-p.done:
		return err
	case <-r.drop:
	case <-timer.C:
	case <-done:
	}
	return unix.EIO
}

// answered takes a reply of the client's. An error is a client that breaks the
// protocol.
func (q *relayer) answered(m *vfiouser.Message) error {
	q.mu.Lock()
	p := q.pieces[m.Header.ID]
	if p == nil || p.command != m.Header.Command {
		q.mu.Unlock()
		return fmt.Errorf("reply %#x (%v) to no command", m.Header.ID, m.Header.Command)
	}
	delete(q.pieces, m.Header.ID)
	if p.stale {
		q.stale.Add(-1)
	}
	q.mu.Unlock()
	err := m.Header.Err()
	if err == nil && p.command == vfiouser.CmdDMARead {
		var access vfiouser.DMAAccess
		if access, err = vfiouser.ParseDMAAccess(m.Payload); err == nil {
			data := m.Payload[vfiouser.DMAAccessSize:]
			if access.Count != uint64(len(p.data)) || len(data) != len(p.data) {
				err = unix.EIO
			}
			copy(p.data, data)
		}
	}
	p.done <- err
	return nil
}

// errnoOf gives the errno of an error for a link message, EIO if it has none.
func errnoOf(err error) int32 {
	if err == nil {
		return 0
	}
	errno := unix.EIO
	errors.As(err, &errno)
	if errno == 0 {
		errno = unix.EIO
	}
	return int32(errno)
}

// startRelay is a MsgRelayRead or MsgRelayWrite of runtime rt. It owns data.
func (p *port) startRelay(rt *runtime, m *qpair.Message, data []byte) {
	r := &relay{runtime: rt, id: m.ID, port: p.id, addr: m.Addr, data: data, write: m.Kind == qpair.MsgRelayWrite}
	need := uint32(qpair.RegionRead)
	if r.write {
		need = qpair.RegionWrite
	}
	if err := p.admitRelay(r, m.Size, need); err != nil {
		rt.relayed(r, err)
	}
}

// admitRelay checks and starts a request.
func (p *port) admitRelay(r *relay, size uint64, need uint32) error {
	switch {
	case size == 0 || size > qpair.MaxRelay:
		return unix.EINVAL
	case r.write && size != uint64(len(r.data)):
		return unix.EINVAL
	case !r.write:
		r.data = make([]byte, size)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.client == nil || !p.client.negotiated || p.holder != r.runtime:
		return unix.EIO
	case p.functionReset && !p.acknowledged():
		// The client waits for the answer to its reset and would not serve it.
		return unix.EIO
	case !p.regions.covers(r.addr, size, need):
		return unix.EFAULT
	}
	if r.write {
		p.counts.writes.Add(1)
	} else {
		p.counts.reads.Add(1)
	}
	return p.client.relays.start(r)
}

// owed has the client's answer to a piece that another program sent be expected,
// by nobody.
func (q *relayer) owed(h pieceHandover) {
	q.pieces[h.ID] = &piece{command: h.Command, done: make(chan error, 1), stale: h.Stale}
	if h.Stale {
		q.stale.Add(1)
	}
}
