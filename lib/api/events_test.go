// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/fault"
)

func TestEvents(t *testing.T) {
	goroutinesEnd(t)
	var s Events
	s.Publish(Event{Kind: KindPort}) // nobody reads
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	a, b := s.Subscribe(ctx), s.Subscribe(ctx)
	want := Event{Time: time.Unix(1, 0), Kind: KindPort, Name: "vm1", State: PortEnabled}
	s.Publish(want)
	for _, c := range []<-chan Event{a, b} {
		if d := cmp.Diff(want, <-c); d != "" {
			t.Error(d)
		}
	}
	s.Publish(Event{})
	if e := <-a; e.Time.IsZero() {
		t.Error("an event has no time")
	}
	<-b
	cancel()
	for _, c := range []<-chan Event{a, b} {
		if e, ok := <-c; ok {
			t.Errorf("after the end of the context: %v", e)
		}
	}
	s.Publish(want)
	if len(s.readers) != 0 {
		t.Errorf("%d readers are left", len(s.readers))
	}
	// A context that has ended gives a channel that ends.
	if e, ok := <-s.Subscribe(ctx); ok {
		t.Errorf("got %v", e)
	}
}

// A slow reader gets what fits and the reason; the others get everything.
func TestEventsSlow(t *testing.T) {
	goroutinesEnd(t)
	var s Events
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	slow, fast := s.Subscribe(ctx), s.Subscribe(ctx)
	const total = 3 * eventBuffer
	for range total {
		s.Publish(Event{Kind: KindPort})
		if e, ok := <-fast; !ok || e.Kind != KindPort {
			t.Fatalf("the fast reader got %v, %v", e, ok)
		}
	}
	var got []Event
	for e := range slow {
		got = append(got, e)
	}
	if len(got) != eventBuffer+1 {
		t.Errorf("got %d events, want %d", len(got), eventBuffer+1)
	}
	if last := got[len(got)-1]; last.Kind != KindEvents || last.State != StateDropped || last.Detail == "" {
		t.Errorf("the last event is %+v, want the reason", last)
	}
}

// No event after Open returned is lost; Shutdown ends the stream in order.
func TestEventsServed(t *testing.T) {
	var events Events
	mux := NewMux(Info{})
	HandleEvents(mux, "GET /v1/events", &events)
	c, server := serve(t, mux)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		s, err := c.Open(ctx, "/v1/events")
		if err != nil {
			t.Fatal(err)
		}
		events.Publish(Event{Kind: KindVolume, Name: "d1", State: "created"})
		item, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		var e Event
		if err := json.Unmarshal(item, &e); err != nil || e.Name != "d1" || e.State != "created" {
			t.Errorf("got %s, %v", item, err)
		}
		cancel()
		if _, err := s.Next(); fault.KindOf(err) != fault.Interrupted {
			t.Errorf("after the end of the context: %v (%v), want interrupted", err, fault.KindOf(err))
		}
		s.Close()
	}
	s, err := c.Open(context.Background(), "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after Shutdown: %v, want io.EOF", err)
	}
}
