// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

var enableNotices = nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: nvme.NoticeNamespaceAttribute}

// event raises events.
func (h *host) event(events ...nvme.AsyncEvent) {
	h.t.Helper()
	h.do(func() {
		for _, e := range events {
			h.c.Event(e)
		}
	})
}

// told waits for a parked request to end with event e.
func told(t *testing.T, cmd *hostCommand, e nvme.AsyncEvent) {
	t.Helper()
	cmd.wait()
	if cmd.Status != nvme.StatusSuccess || nvme.AsyncEvent(cmd.DW0) != e {
		t.Errorf("event request ended with %v, %v; want %v", cmd.Status, nvme.AsyncEvent(cmd.DW0), e)
	}
}

func TestEventRequestLimit(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	var requests []*hostCommand
	for i := range aerl + 1 {
		requests = append(requests, h.park())
		if got := h.parked(); got != i+1 {
			t.Errorf("%d parked, want %d", got, i+1)
		}
	}
	over := h.park()
	if over.wait(); over.Status != nvme.StatusAsyncEventLimitExceeded {
		t.Errorf("one too many: %v", over.Status)
	}
	if got := h.parked(); got != aerl+1 {
		t.Errorf("%d parked, want %d", got, aerl+1)
	}
	// They end in order, each once.
	h.event(nvme.EventInvalidDoorbellValue)
	told(t, requests[0], nvme.EventInvalidDoorbellValue)
	if !requests[1].running() || h.parked() != aerl {
		t.Errorf("%d parked after an event, want %d", h.parked(), aerl)
	}
}

func TestEventMasking(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	first := h.park()
	h.event(nvme.EventInvalidDoorbellValue, nvme.EventInvalidDoorbellValue, nvme.EventInvalidDoorbellRegister)
	told(t, first, nvme.EventInvalidDoorbellValue)
	second := h.park()
	if !second.running() {
		t.Fatalf("an event of a masked type was reported: %v", nvme.AsyncEvent(second.DW0))
	}
	// Retained, or another page: nothing is cleared.
	h.log(nvme.LogErrorInformation, 64, true)
	h.log(nvme.LogSMART, 512, false)
	if !second.running() {
		t.Fatal("an event of a masked type was reported after another page was read")
	}
	// Reading the page clears what it shows, pending events of it included.
	h.log(nvme.LogErrorInformation, 64, false)
	if !second.running() {
		t.Fatalf("a cleared event was reported: %v", nvme.AsyncEvent(second.DW0))
	}
	h.event(nvme.EventInvalidDoorbellRegister)
	told(t, second, nvme.EventInvalidDoorbellRegister)
}

// Types are masked apart, and events wait for a request.
func TestEventPending(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	h.admin(nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: 0x107}, 0)
	raised := []nvme.AsyncEvent{
		nvme.EventTransientInternalError, nvme.EventNamespaceAttribute, nvme.EventSpareBelowThreshold, nvme.EventTemperatureThreshold,
	}
	h.event(raised...)
	for _, want := range raised[:3] {
		told(t, h.park(), want)
	}
	last := h.park()
	if !last.running() {
		t.Fatalf("a second SMART event was reported: %v", nvme.AsyncEvent(last.DW0))
	}
	h.log(nvme.LogSMART, 512, false)
	h.event(nvme.EventSubsystemReliability)
	told(t, last, nvme.EventSubsystemReliability)
}

// However often an event is raised, it waits once, and others find room.
func TestEventRepeated(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	h.admin(enableNotices, 0)
	for range 2 * maxPending {
		h.event(nvme.EventInvalidDoorbellValue)
	}
	h.event(nvme.EventNamespaceAttribute)
	told(t, h.park(), nvme.EventInvalidDoorbellValue)
	told(t, h.park(), nvme.EventNamespaceAttribute)
	if cmd := h.park(); !cmd.running() {
		t.Errorf("one event more: %v", nvme.AsyncEvent(cmd.DW0))
	}
	// And no number of different ones takes more than a bounded room.
	h.do(func() {
		for i := range 100 {
			h.c.Event(nvme.AsyncEvent(i << 8))
		}
		if got := len(h.c.events.pending); got > maxPending {
			t.Errorf("%d events wait, want %d at most", got, maxPending)
		}
	})
}

// Reading a page lets those events of the type go on that another page shows.
func TestEventUnmasked(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	const other = nvme.AsyncEvent(nvme.LogSMART)<<16 | nvme.AsyncEvent(nvme.EventTypeError)
	h.event(nvme.EventInvalidDoorbellValue, other)
	told(t, h.park(), nvme.EventInvalidDoorbellValue)
	cmd := h.park()
	if !cmd.running() {
		t.Fatal("an event of a masked type was reported")
	}
	h.log(nvme.LogErrorInformation, 64, false)
	told(t, cmd, other)
}

func TestEventConfiguration(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	for _, tt := range []struct {
		config uint32
		wanted map[nvme.AsyncEvent]bool
	}{
		{0, map[nvme.AsyncEvent]bool{nvme.EventPersistentInternalError: true}},
		{0x100, map[nvme.AsyncEvent]bool{nvme.EventPersistentInternalError: true, nvme.EventNamespaceAttribute: true}},
		{0x001, map[nvme.AsyncEvent]bool{nvme.EventPersistentInternalError: true, nvme.EventSpareBelowThreshold: true}},
		{0x002, map[nvme.AsyncEvent]bool{nvme.EventPersistentInternalError: true, nvme.EventTemperatureThreshold: true}},
		{0x004, map[nvme.AsyncEvent]bool{nvme.EventPersistentInternalError: true, nvme.EventSubsystemReliability: true}},
		{0xffffffff, map[nvme.AsyncEvent]bool{
			nvme.EventPersistentInternalError: true, nvme.EventNamespaceAttribute: true, nvme.EventSpareBelowThreshold: true,
			nvme.EventTemperatureThreshold: true, nvme.EventSubsystemReliability: true,
		}},
	} {
		h.admin(nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: tt.config}, 0)
		for _, e := range []nvme.AsyncEvent{
			nvme.EventPersistentInternalError, nvme.EventNamespaceAttribute, nvme.EventSpareBelowThreshold, nvme.EventTemperatureThreshold,
			nvme.EventSubsystemReliability, nvme.EventFirmwareActivation, nvme.EventANAChange, nvme.EventSanitizeCompleted, nvme.EventSubsystemShutdown,
		} {
			h.event(e)
			cmd := h.park()
			if reported := !cmd.running(); reported != tt.wanted[e] {
				t.Errorf("configuration %#x: %v reported: %v", tt.config, e, reported)
			}
			for _, lid := range []nvme.LogPageID{nvme.LogErrorInformation, nvme.LogSMART, nvme.LogChangedNamespaces} {
				h.log(lid, 64, false)
			}
			if cmd.running() { // make room for the next
				h.event(nvme.EventPersistentInternalError)
				told(t, cmd, nvme.EventPersistentInternalError)
				h.log(nvme.LogErrorInformation, 64, false)
			}
		}
	}
}

// An event that was disabled while it waited is not reported.
func TestEventDisabledSince(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	h.admin(enableNotices, 0)
	h.event(nvme.EventNamespaceAttribute)
	h.admin(nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig}, 0)
	if cmd := h.park(); !cmd.running() {
		t.Errorf("%v was reported", nvme.AsyncEvent(cmd.DW0))
	}
}

// changed reads the Changed Namespace List.
func (h *host) changed(rae bool) (nsids []uint32) {
	h.t.Helper()
	var l nvme.NSList
	copy(nvme.Bytes(&l), h.log(nvme.LogChangedNamespaces, 4096, rae))
	for _, id := range l.NSIDs {
		if id != 0 {
			nsids = append(nsids, id)
		}
	}
	return nsids
}

// Coming and going namespaces are one event until the host reads the list.
func TestNamespaceEvents(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	h.admin(enableNotices, 0)
	add := func(nsid uint32) {
		t.Helper()
		if err := h.sub.Add(testNamespace(nsid, newMemory(4096, 512))); err != nil {
			t.Fatal(err)
		}
	}
	check := func(rae bool, want ...uint32) {
		t.Helper()
		got := h.changed(rae)
		if len(got) != len(want) {
			t.Fatalf("changed namespaces: %v, want %v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("changed namespaces: %v, want %v", got, want)
			}
		}
	}
	if got := h.changed(false); got != nil {
		t.Errorf("nothing has changed yet, but %v", got)
	}
	first, second := h.park(), h.park()
	add(1024)
	told(t, first, nvme.EventNamespaceAttribute)
	add(64)
	h.sub.Remove(1, func() {})
	check(true, 1, 64, 1024)
	if !second.running() {
		t.Fatal("a second event before the list was read")
	}
	check(false, 1, 64, 1024)
	check(false)
	if !second.running() {
		t.Fatal("an event without a change")
	}
	h.sub.Remove(64, func() {})
	told(t, second, nvme.EventNamespaceAttribute)
	check(false, 64)
}

// Every namespace may change, and the list holds them.
func TestNamespaceEventsAll(t *testing.T) {
	sub := newSubsystem(t)
	h := connect(t, sub, nil)
	m := newMemory(4096, 512)
	for nsid := uint32(1); nsid <= MaxNamespaces; nsid++ {
		if err := sub.Add(testNamespace(nsid, m)); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.changed(false); len(got) != MaxNamespaces || got[0] != 1 || got[MaxNamespaces-1] != MaxNamespaces {
		t.Errorf("%d namespaces changed, want %d", len(got), MaxNamespaces)
	}
}

// A change between the request for the list and its data is not lost.
func TestChangedListLate(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	cmd := newCommand(t, h.p, sqe(nvme.GetLogPage{LID: nvme.LogChangedNamespaces, NUMD: 1023}, 0))
	cmd.late = true
	cmd.onReady = func() { h.c.namespaceEvent(3) }
	h.start(true, cmd).wait()
	if got := cmd.data()[0]; got != 3 {
		t.Errorf("the list begins with %d, want 3", got)
	}
}

func TestClose(t *testing.T) {
	sub := newSubsystem(t)
	h := connect(t, sub, nil)
	id := h.c.CNTLID()
	requests := []*hostCommand{h.park(), h.park()}
	h.do(func() {
		h.c.Close()
		h.c.Close()
		if got := h.c.Parked(); got != 0 {
			t.Errorf("%d requests are parked", got)
		}
		h.c.Event(nvme.EventPersistentInternalError)
		h.c.namespaceEvent(1)
	})
	for i, r := range requests {
		if r.wait(); r.Status != nvme.StatusAbortedSQDeletion || r.ended != 1 {
			t.Errorf("request %d: status %v, ended %d times", i, r.Status, r.ended)
		}
	}
	h.do(h.w.Close)
	if ids := sub.cntlids(); len(ids) != 0 {
		t.Errorf("controllers %d are left, closed was %d", ids, id)
	}
}

func TestKeepAlive(t *testing.T) {
	expired := make(chan struct{}, 9)
	h := connect(t, newSubsystem(t), func(c *Config) { c.KeepAliveExpired = func() { expired <- struct{}{} } })
	set := func(ms uint32) { h.admin(nvme.SetFeatures{FID: nvme.FeatKeepAliveTimer, Value: ms}, 0) }
	set(1) // rounded up to a second
	h.do(func() {
		if got := h.c.keepAlive.timeout; got != time.Second {
			t.Errorf("timeout %v, want 1s", got)
		}
	})
	select {
	case <-expired:
	case <-time.After(deadline):
		t.Fatal("the timer did not expire")
	}
	// An expiry under way when the host is heard of is void.
	set(1)
	h.do(func() {
		time.Sleep(1100 * time.Millisecond) // the timer fires and posts
		h.c.restartKeepAlive()
		h.c.keepAlive.stop()
	})
	h.do(func() {})
	set(0)
	h.admin(raw(nvme.AdminKeepAlive), 0)
	h.do(func() {
		if h.c.keepAlive.timer != nil {
			t.Error("a disabled timer runs")
		}
	})
	if len(expired) != 0 {
		t.Error("the timer expired although it was restarted")
	}
	set(4000)
	h.do(func() {
		before := h.c.keepAlive.epoch
		h.c.keepAliveCommand(newCommand(t, h.p, nvme.SQE{}).primed())
		if h.c.keepAlive.epoch == before || h.c.keepAlive.timer == nil {
			t.Error("Keep Alive did not restart the timer")
		}
		h.c.Close()
		if h.c.keepAlive.timer != nil {
			t.Error("the timer of a closed controller runs")
		}
	})
}

// primed is the command as Admin hands it on.
func (h *hostCommand) primed() *Command { h.begin(); return &h.Command }
