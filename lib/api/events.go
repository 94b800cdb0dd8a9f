// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Events: what changed, for whoever watches.

package api

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// KindEvents is the kind of an event about the stream of events itself.
const KindEvents = "events"

// StateDropped is the State of the last event of a reader that was too slow.
const StateDropped = "dropped"

// eventBuffer is how many events a reader may be behind.
const eventBuffer = 256

// Event is one change of one thing.
type Event struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // KindPort, KindVolume, ..., KindEvents
	Name   string    `json:"name"`
	State  string    `json:"state"`  // the state entered, or "created", "deleted", ...
	Detail string    `json:"detail"` // more words, may be empty
}

// Events hands every event to every reader. The zero value is ready. It may be
// used by several goroutines.
type Events struct {
	mu      sync.Mutex
	readers map[chan Event]func() bool // the func ends the watch on the reader's context
}

// Publish hands e to all readers and never blocks. A zero Time becomes now.
func (s *Events) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, unwatch := range s.readers {
		if len(c) < eventBuffer {
			c <- e
			continue
		}
		// The channel has room for one more than eventBuffer: this one.
		c <- Event{Time: e.Time, Kind: KindEvents, State: StateDropped,
			Detail: fmt.Sprintf("the reader is more than %d events behind", eventBuffer)}
		unwatch()
		delete(s.readers, c)
		close(c)
	}
}

// Subscribe gives a channel with all events from now on. It is closed when ctx
// ends, or after an event of KindEvents and StateDropped when its reader is
// too slow.
func (s *Events) Subscribe(ctx context.Context) <-chan Event {
	c := make(chan Event, eventBuffer+1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers == nil {
		s.readers = make(map[chan Event]func() bool)
	}
	s.readers[c] = context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.readers[c]; ok {
			delete(s.readers, c)
			close(c)
		}
	})
	return c
}

// HandleEvents serves the events as a stream of JSON lines. The headers of the
// answer are sent once the reader is subscribed: a client that has them misses
// nothing.
func HandleEvents(mux *http.ServeMux, pattern string, events *Events) {
	handleStream(mux, pattern, func(ctx context.Context, out *lineWriter) error {
		c := events.Subscribe(ctx)
		if err := out.start(); err != nil {
			return err
		}
		for e := range c {
			if err := out.send(e); err != nil {
				return err
			}
		}
		return nil
	})
}
