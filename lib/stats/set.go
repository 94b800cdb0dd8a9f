// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package stats

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what a command does, as far as it is counted apart.
type Kind uint8

// Kinds of commands.
const (
	Others Kind = iota // administration, and commands that there are not
	Read
	Write
	Flush
	WriteZeroes
	Discard
	Compare
	Verify
	Copy
	kinds
)

// Class is a number of kinds whose latencies are counted together.
type Class uint8

// Classes of commands.
const (
	Reads  Class = iota // of kind Read
	Writes              // of kind Write
	Rest                // of all other kinds
	Classes
)

// classes are those of the kinds.
var classes = [kinds]Class{
	Others: Rest, Read: Reads, Write: Writes, Flush: Rest, WriteZeroes: Rest, Discard: Rest, Compare: Rest, Verify: Rest, Copy: Rest,
}

// Set is what one poller counts of one thing. All but Total is for that poller
// only; Total is for anybody.
type Set struct {
	Since time.Time // when it was made

	groups   []*Group
	inFlight Counter
	media    Counter
	errors   [Classes]Counter
	commands [kinds]Counter // of class Rest; those of others are in the histogram
	bytes    [kinds]Counter
	latency  [Classes]atomic.Pointer[Histogram]
}

// NewSet returns a set that counts for these groups, too, until End. Those that
// are nil are left out.
func NewSet(groups ...*Group) *Set {
	s := &Set{Since: time.Now()}
	for _, g := range groups {
		if g != nil {
			s.groups = append(s.groups, g)
			g.join(s)
		}
	}
	return s
}

// Begin notes that a command is in flight, until Done.
func (s *Set) Begin() { s.inFlight.Add(1) }

// Done notes that a command is no longer in flight.
func (s *Set) Done() { s.inFlight.Sub(1) }

// Record counts a command of kind k that has ended. One that has failed has moved
// no data, whatever bytes says.
func (s *Set) Record(k Kind, took Latency, bytes uint64, failed bool) {
	class := classes[k]
	h := s.latency[class].Load()
	if h == nil {
		h = new(Histogram)
		s.latency[class].Store(h)
	}
	if failed {
		s.errors[class].Add(1)
	} else {
		s.bytes[k].Add(bytes)
	}
	if class == Rest {
		s.commands[k].Add(1)
	}
	h[took].Add(1)
}

// MediaError counts a request that its medium could not serve.
func (s *Set) MediaError() { s.media.Add(1) }

// End ends the set: its groups keep what it has counted.
func (s *Set) End() {
	for _, g := range s.groups {
		g.leave(s)
	}
	s.groups = nil
}

// Total returns what the set has counted.
func (s *Set) Total() Total {
	var t Total
	t.add(s)
	return t
}

// Group is all that is counted of a thing, by one set for each poller that
// serves it. Its methods may be called from any goroutine.
type Group struct {
	Since time.Time // when it was made

	mu   sync.Mutex
	live []*Set
	past Total // of sets that have ended
}

// NewGroup returns a group without sets.
func NewGroup() *Group { return &Group{Since: time.Now()} }

func (g *Group) join(s *Set) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live = append(g.live, s)
}

func (g *Group) leave(s *Set) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live = slices.DeleteFunc(g.live, func(x *Set) bool { return x == s })
	g.past.add(s)
}

// Total returns what all sets have counted. It never goes backwards.
func (g *Group) Total() Total {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.past.clone()
	for _, s := range g.live {
		t.add(s)
	}
	return t
}

// Total is what has been counted, as plain numbers. The zero value is nothing.
type Total struct {
	InFlight    uint64 // commands, where Begin and Done are called
	MediaErrors uint64

	errors   [Classes]uint64
	commands [kinds]uint64
	bytes    [kinds]uint64
	latency  [Classes][]uint64 // dense; nil: no commands
}

func (t *Total) clone() Total {
	c := *t
	for i := range c.latency {
		c.latency[i] = slices.Clone(c.latency[i])
	}
	return c
}

// add adds what a set has counted.
func (t *Total) add(s *Set) {
	for class := range s.latency {
		h := s.latency[class].Load()
		if h == nil {
			continue
		}
		if t.latency[class] == nil {
			t.latency[class] = make([]uint64, buckets)
		}
		for i := range h {
			t.latency[class][i] += h[i].Load()
		}
		t.errors[class] += s.errors[class].Load()
	}
	for k := range s.bytes {
		t.commands[k] += s.commands[k].Load()
		t.bytes[k] += s.bytes[k].Load()
	}
	t.MediaErrors += s.media.Load()
	t.InFlight += s.inFlight.Load()
}

// Commands returns how many commands of a kind have ended.
func (t *Total) Commands(k Kind) uint64 {
	class := classes[k]
	if class == Rest {
		return t.commands[k]
	}
	n := uint64(0)
	for _, x := range t.latency[class] {
		n += x
	}
	return n
}

// Bytes returns the data moved by commands of a kind that have succeeded.
func (t *Total) Bytes(k Kind) uint64 { return t.bytes[k] }

// ClassBytes is Bytes for all kinds of a class.
func (t *Total) ClassBytes(c Class) uint64 {
	n := uint64(0)
	for k := range kinds {
		if classes[k] == c {
			n += t.bytes[k]
		}
	}
	return n
}

// Errors returns how many commands of a class have failed.
func (t *Total) Errors(c Class) uint64 { return t.errors[c] }

// Latency returns how long the commands of a class took. Their number is its
// Count.
func (t *Total) Latency(c Class) Distribution { return distribution(t.latency[c]) }
