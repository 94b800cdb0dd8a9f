// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// intentLog is memory beside that of the volume, kept like it. A poller that is
// killed while it stores a page leaves there what the page is to be, and where;
// the next process stores it again before it serves anybody. So no block is ever
// found in part old and in part new, whoever had written it, and whether that
// command is executed again or not.
//
// Each poller has a slot: a word, in a cache line of its own at the head of the
// log, and a page of data behind all words. The word is stored when the data is
// complete and the stripe of the page is locked, and cleared before the stripe
// is unlocked. So there is one intent for a page at most, and nobody has stored
// anything to it since.
type intentLog struct {
	fd  int
	mem []byte

	mu    sync.Mutex
	slots map[*poller.Poller]*slot
	free  []int // numbers of slots that were given back
}

// slot is what a poller stores through, for all its queues.
type slot struct {
	number int
	users  int     // queues
	intent *uint64 // 0: none
	data   []byte  // pageSize bytes
}

const (
	slotCount = 1024 // pollers: untouched slots take no memory
	wordSize  = 64
	logSize   = slotCount * (wordSize + pageSize)
)

// An intent is an offset in the volume, a multiple of 512, with these below.
const (
	intentZero  = 1 << 8   // the data is zeroes
	intentUnits = 1<<8 - 1 // of 512 bytes, up to a page
	unit        = 512
)

func intentOf(off, n uint64) uint64 { return off | n/unit }

// logName is the name leap-wpt knows the log by.
func logName(spec *volume.Spec) string { return "log/" + spec.Name }

// openLog maps the log in fd, which becomes the log's own.
func openLog(fd int) (*intentLog, error) {
	data, err := unix.Mmap(fd, 0, logSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mapping the intent log: %w", err)
	}
	return &intentLog{fd: fd, mem: data, slots: make(map[*poller.Poller]*slot)}, nil
}

// enter returns the slot of a poller, for one more queue.
func (l *intentLog) enter(p *poller.Poller) (*slot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[p]
	if s == nil {
		number := len(l.slots) // all numbers below are taken, or free
		if n := len(l.free); n > 0 {
			number, l.free = l.free[n-1], l.free[:n-1]
		}
		if number == slotCount {
			return nil, fmt.Errorf("more than %d pollers", slotCount)
		}
		at := slotCount*wordSize + number*pageSize
		s = &slot{number: number, intent: word(l.mem[number*wordSize:]), data: l.mem[at : at+pageSize]}
		l.slots[p] = s
	}
	s.users++
	return s, nil
}

// leave is the end of a queue.
func (l *intentLog) leave(p *poller.Poller) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[p]
	if s.users--; s.users == 0 {
		delete(l.slots, p)
		l.free = append(l.free, s.number)
	}
}

func (l *intentLog) close() error { return errors.Join(unix.Close(l.fd), unix.Munmap(l.mem)) }

// redo stores what a process that was killed was about to store to the volume
// of size bytes in fd; log is its log. It may be cut short and run again. It
// reads with system calls, to which holes stay holes.
func redo(log, fd int, size uint64) error {
	words := make([]byte, slotCount*wordSize)
	if err := readFull(log, words, 0); err != nil {
		return err
	}
	for i := range slotCount {
		at := int64(i * wordSize)
		intent := binary.NativeEndian.Uint64(words[at:])
		if intent == 0 {
			continue
		}
		off, n := intent&^(unit-1), intent&intentUnits*unit
		if n == 0 || n > pageSize || off > size || n > size-off {
			return fault.Errorf(fault.Failure, "", "", "the intent log is damaged: it has %#x, and the volume %d bytes", intent, size)
		}
		data := make([]byte, n)
		if intent&intentZero == 0 {
			if err := readFull(log, data, slotCount*wordSize+int64(i)*pageSize); err != nil {
				return err
			}
		}
		for _, w := range []struct {
			fd   int
			data []byte
			off  int64
		}{{fd, data, int64(off)}, {log, make([]byte, 8), at}} {
			if n, err := unix.Pwrite(w.fd, w.data, w.off); err != nil || n < len(w.data) {
				return fmt.Errorf("storing what was cut short: %d bytes: %w", n, err)
			}
		}
	}
	return nil
}

// readFull reads all of p from memory that has as much.
func readFull(fd int, p []byte, off int64) error {
	if n, err := unix.Pread(fd, p, off); err != nil || n < len(p) {
		return fmt.Errorf("reading the intent log: %d bytes: %w", n, err)
	}
	return nil
}

// logMemory returns the log of a volume: what leap-wpt has kept, with all that was
// in it done to the volume of size bytes in fd, or a new one that is yet to be
// kept. fresh: the memory of the volume is new.
func logMemory(env volume.Env, spec *volume.Spec, fd int, size uint64, fresh bool) (log int, kept bool, err error) {
	name := logName(spec)
	log, kept, err = fetch(env, name, logSize, fresh)
	if err == nil && kept {
		if err = redo(log, fd, size); err != nil {
			unix.Close(log)
			err = fmt.Errorf("%s kept by leap-wpt: %w", name, err)
		}
	}
	return log, kept, err
}
