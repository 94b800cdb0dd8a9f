// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"errors"
	"fmt"
	"sync/atomic"
)

const (
	journalMagic = 0x4c6561704a6f7572 // "LeapJour"

	// JournalVersion is the version of the layout of Journal.
	JournalVersion = 1

	// journalRoom is the longest message that is sent, in bytes.
	journalRoom = 64<<10 + dataRoom

	// journalPieces is how many commands of ours the peer may owe an answer for.
	journalPieces = 64
)

// Journal is how far a connection has come, in memory that outlives the process
// that serves it: with the socket it is all that another process needs to go on
// where this one was killed, at any instruction.
//
// What was received is peeked at only, so that the socket itself keeps it, file
// descriptors included, until it has been carried out. What a system call has
// moved is noted by the kernel: recvmmsg(2) and sendmmsg(2) store their result
// in the journal before the process goes on. So no byte is lost or sent twice.
//
// The zero Journal is that of a connection that begins.
type Journal struct {
	magic   uint64
	version uint32
	served  uint32 // a process has begun to read

	in, out passage // consumed from the socket; sent
	taking  uint64  // up to where in is being consumed, the end of a message

	// Places in the stream of what came in: commands that end at or before the
	// first are carried out and answered, replies up to the other are taken.
	commands, replies uint64

	// The message that is being sent, by places in the stream of what goes out,
	// and the place up to which it answers commands, 0: it is no answer.
	outBegin, outEnd, answers uint64

	NextID uint64 // of a command of ours, for whoever sends some
	Pieces [journalPieces]JournalPiece

	buf [journalRoom]byte // the message that is being sent
}

// JournalPiece is a command of ours that the peer has not answered.
type JournalPiece struct {
	end     uint64 // its place in the stream, once it is being sent; 0: none
	ID      uint16
	Command Command
	Stale   uint32 // for whoever sent it
	_       uint32
}

// Owed reports whether the peer owes an answer.
func (p *JournalPiece) Owed() bool { return atomic.LoadUint64(&p.end) != 0 }

// Answered frees the piece.
func (p *JournalPiece) Answered() { atomic.StoreUint64(&p.end, 0) }

// Begin empties the journal for a connection that begins.
func (j *Journal) Begin() {
	*j = Journal{magic: journalMagic, version: JournalVersion}
}

// Rest says that no message is in hand: the next process begins none again.
func (j *Journal) Rest() { j.served = 0 }

// Check reports whether another process may go on with the journal.
func (j *Journal) Check() error {
	switch {
	case j.magic != journalMagic:
		return errors.New("it is no journal of a connection")
	case j.version != JournalVersion:
		return fmt.Errorf("a journal of version %d, and this build knows %d", j.version, JournalVersion)
	}
	sent := j.out.total()
	if j.taking != 0 && j.in.total() > j.taking {
		return errors.New("a journal that contradicts itself")
	}
	if j.outEnd-j.outBegin > journalRoom || sent > j.outEnd || sent < j.outBegin {
		return errors.New("a journal that contradicts itself")
	}
	return nil
}

// passage counts bytes that have gone through a socket in one direction. The
// count is exact whenever the process is killed: it is that of the calls before
// and what the kernel says of the last.
type passage struct {
	turn uint32
	_    uint32
	side [2]struct {
		before uint64
		last   mmsghdr
	}
}

// total returns how many bytes there were.
func (p *passage) total() uint64 {
	s := &p.side[atomic.LoadUint32(&p.turn)&1]
	return s.before + uint64(atomic.LoadUint32(&s.last.n))
}

// next returns the structure for the next call.
func (p *passage) next() *mmsghdr {
	turn := atomic.LoadUint32(&p.turn) + 1
	s := &p.side[turn&1]
	s.before = p.total()
	atomic.StoreUint32(&s.last.n, 0)
	atomic.StoreUint32(&p.turn, turn)
	return &s.last
}

// moved returns what the last call moved, in bytes.
func (m *mmsghdr) moved() int { return int(atomic.LoadUint32(&m.n)) }
