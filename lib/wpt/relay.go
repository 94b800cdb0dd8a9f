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
	noted *vfiouser.JournalPiece
	data  []byte // room for what is read
	done  chan error
}

// relayer sends DMA_READ and DMA_WRITE to one client, one at a time, and keeps
// what is under way. The handler of the connection never waits for it.
type relayer struct {
	conn   *vfiouser.Conn
	queue  chan *relay
	limit  uint64  // bytes in one piece, set by VERSION
	nextID *uint64 // of a piece, in the journal

	mu     sync.Mutex
	pieces map[uint16]*piece // those that the client has not answered, given up ones included
	free   []*vfiouser.JournalPiece
	active map[*relay]struct{} // queued or under way
	muted  bool                // nobody is answered any more
	stale  atomic.Int32
}

// newRelayer makes a relayer that goes on where the journal of the connection
// says that another program has stopped: answers that the client owes are
// expected, by nobody.
func newRelayer(conn *vfiouser.Conn, j *vfiouser.Journal) *relayer {
	q := &relayer{
		conn:   conn,
		queue:  make(chan *relay, relayQueue),
		nextID: &j.NextID,
		pieces: make(map[uint16]*piece),
		active: make(map[*relay]struct{}),
	}
	for i := range j.Pieces {
		noted := &j.Pieces[i]
		if !noted.Owed() {
			q.free = append(q.free, noted)
			continue
		}
		q.pieces[noted.ID] = &piece{noted: noted, done: make(chan error, 1)}
		if noted.Stale != 0 {
			q.stale.Add(1)
		}
	}
	return q
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
		if p.noted.Command == vfiouser.CmdDMAWrite && p.noted.Stale == 0 {
			p.noted.Stale = 1
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
	h := vfiouser.Header{Command: vfiouser.CmdDMARead}
	p := &piece{done: make(chan error, 1)}
	var data []byte
	if r.write {
		h.Command, data = vfiouser.CmdDMAWrite, part
	} else {
		p.data = make([]byte, len(part))
	}
	if err := q.expect(p, &h); err != nil {
		return nil, err
	}
	var head [vfiouser.DMAAccessSize]byte
	access := vfiouser.DMAAccess{Address: addr, Count: uint64(len(part))}
	access.Put(head[:])
	if err := q.conn.SendPiece(h, p.noted, head[:], data); err != nil {
		return nil, unix.EIO
	}
	return p, nil
}

// expect gives a piece its ID and a place in the journal.
func (q *relayer) expect(p *piece, h *vfiouser.Header) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.free)
	if n == 0 {
		return unix.EBUSY
	}
	id := uint16(*q.nextID)
	for q.pieces[id] != nil {
		id++
	}
	*q.nextID = uint64(id) + 1
	p.noted, q.free = q.free[n-1], q.free[:n-1]
	p.noted.ID, p.noted.Command, p.noted.Stale = id, h.Command, 0
	q.pieces[id] = p
	h.ID = id
	return nil
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
	if p == nil && m.Again {
		q.mu.Unlock()
		return nil // the program before was killed over it
	}
	if p == nil || p.noted.Command != m.Header.Command {
		q.mu.Unlock()
		return fmt.Errorf("reply %#x (%v) to no command", m.Header.ID, m.Header.Command)
	}
	delete(q.pieces, m.Header.ID)
	if p.noted.Stale != 0 {
		q.stale.Add(-1)
	}
	p.noted.Answered()
	q.free = append(q.free, p.noted)
	q.mu.Unlock()
	err := m.Header.Err()
	if err == nil && m.Header.Command == vfiouser.CmdDMARead {
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
	case p.functionReset() && !p.acknowledged():
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
