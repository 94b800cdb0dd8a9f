// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

const (
	// EventRequests is how many Asynchronous Event Requests a controller parks.
	EventRequests = 4
	// aerl is that limit as Identify Controller has it, minus one.
	aerl = EventRequests - 1
	// maxPending bounds the events that wait for a request. Each event waits
	// once, and there are fewer.
	maxPending = 8
	// oaes are the optional events (Identify Controller OAES).
	oaes = nvme.NoticeNamespaceAttribute
)

// events are what the host is told without having asked (NVMe Base 5.2). They
// belong to the admin poller.
type events struct {
	parked  []*Command        // Asynchronous Event Requests, oldest first
	pending []nvme.AsyncEvent // to be reported, oldest first, each once
	// masked is, by type, the event that was reported and not yet cleared by
	// reading its log page: no other of its type is reported meanwhile.
	// 0, which is no event, for none.
	masked [8]nvme.AsyncEvent
	// changed is log page 04h; known is what the host has been or is to be
	// told of, so that a successor finds what has changed in between.
	changed namespaceSet
	known   [MaxNamespaces + 1]uint32 // by NSID, see fingerprint
}

// namespaceSet is a set of NSIDs.
type namespaceSet [MaxNamespaces/64 + 1]uint64

func (s *namespaceSet) add(nsid uint32) { s[nsid/64] |= 1 << (nsid % 64) }

func (s *namespaceSet) has(nsid uint32) bool { return s[nsid/64]>>(nsid%64)&1 != 0 }

// list returns the members in increasing order: at most MaxNamespaces, so that
// a namespace list always holds them.
func (s *namespaceSet) list() (l nvme.NSList) {
	n := 0
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			l.NSIDs[n] = uint32(i*64 + bits.TrailingZeros64(word))
			n++
		}
	}
	return l
}

var _ [nvme.NSListMax]struct{} = [MaxNamespaces]struct{}{}

// fingerprint tells namespaces apart, and what a host must know of one before
// and after a change; 0 is that of no namespace.
func fingerprint(ns *Namespace) uint32 {
	if ns == nil {
		return 0
	}
	info := ns.Volume.Info()
	known := binary.LittleEndian.AppendUint64(ns.UUID[:len(ns.UUID):len(ns.UUID)], info.Size)
	known = binary.LittleEndian.AppendUint32(known, info.Block)
	if ns.writeProtected() {
		known = append(known, 1)
	}
	return max(1, crc32.ChecksumIEEE(known))
}

// Parked returns the number of Asynchronous Event Requests that wait for an
// event. It is called on the admin poller.
func (c *Controller) Parked() int { return len(c.events.parked) }

// Event tells the host of e, if it wants to be told: at once if it has a
// request parked, else with its next one. Error events are noted in the error
// log. It is called on the admin poller.
func (c *Controller) Event(e nvme.AsyncEvent) {
	if c.closed {
		return
	}
	if e.Type() == nvme.EventTypeError {
		c.errors.add(nvme.ErrorLogEntry{SQID: notSpecific, CID: notSpecific, Status: uint16(errorStatus(e)) << 1})
	}
	if !c.wants(e) || slices.Contains(c.events.pending, e) || len(c.events.pending) == maxPending {
		return
	}
	c.events.pending = append(c.events.pending, e)
	c.deliver()
}

// errorStatus is the status that says best what an error event is about.
func errorStatus(e nvme.AsyncEvent) nvme.Status {
	switch e {
	case nvme.EventInvalidDoorbellRegister:
		return nvme.StatusInvalidQueueIdentifier
	case nvme.EventInvalidDoorbellValue:
		return nvme.StatusInvalidField
	}
	return nvme.StatusInternalError
}

// wants reports whether the host has enabled e (Asynchronous Event
// Configuration, NVMe Base 5.27.1.8). Error events cannot be disabled.
func (c *Controller) wants(e nvme.AsyncEvent) bool {
	config := c.features.values[nvme.FeatAsyncEventConfig]
	switch e {
	case nvme.EventSubsystemReliability:
		return config&uint32(nvme.SMARTCriticalReliability) != 0
	case nvme.EventTemperatureThreshold:
		return config&uint32(nvme.SMARTCriticalTemperature) != 0
	case nvme.EventSpareBelowThreshold:
		return config&uint32(nvme.SMARTCriticalSpare) != 0
	case nvme.EventNamespaceAttribute:
		return config&nvme.NoticeNamespaceAttribute != 0
	}
	return e.Type() == nvme.EventTypeError
}

// asyncEventRequest parks the command until there is an event.
func (c *Controller) asyncEventRequest(cmd *Command) {
	if len(c.events.parked) > aerl {
		cmd.finish(nvme.StatusAsyncEventLimitExceeded)
		return
	}
	c.events.parked = append(c.events.parked, cmd)
	c.deliver()
}

// deliver reports pending events as long as requests are parked.
func (c *Controller) deliver() {
	ev := &c.events
	for len(ev.parked) > 0 {
		i := slices.IndexFunc(ev.pending, func(e nvme.AsyncEvent) bool { return ev.masked[e.Type()] == 0 })
		if i < 0 {
			return
		}
		e := ev.pending[i]
		ev.pending = slices.Delete(ev.pending, i, i+1)
		if !c.wants(e) {
			continue // disabled since
		}
		ev.masked[e.Type()] = e
		c.unpark(func(cmd *Command) {
			cmd.DW0 = uint32(e)
			cmd.finish(nvme.StatusSuccess)
		})
	}
}

// unpark ends the oldest parked request, which is no longer counted by then.
func (c *Controller) unpark(end func(*Command)) {
	cmd := c.events.parked[0]
	c.events.parked = slices.Delete(c.events.parked, 0, 1)
	end(cmd)
}

// request returns the parked request cid, or nil.
func (ev *events) request(cid uint16) *Command {
	for _, cmd := range ev.parked {
		if cmd.SQE.CID == cid {
			return cmd
		}
	}
	return nil
}

// clear forgets the events of a log page that has been read.
func (ev *events) clear(lid nvme.LogPageID) {
	ev.pending = slices.DeleteFunc(ev.pending, func(e nvme.AsyncEvent) bool { return e.LID() == lid })
	for i, e := range ev.masked {
		if e != 0 && e.LID() == lid {
			ev.masked[i] = 0
		}
	}
	if lid == nvme.LogChangedNamespaces {
		ev.changed = namespaceSet{}
	}
}

// namespaceEvent notes that namespace nsid has come, gone or been replaced, and
// tells the host: once, until it reads which ones have changed.
func (c *Controller) namespaceEvent(nsid uint32) {
	if c.closed {
		return
	}
	c.events.known[nsid] = fingerprint(c.sub.Namespace(nsid))
	c.features.tler[nsid] = 0
	c.events.changed.add(nsid)
	c.Event(nvme.EventNamespaceAttribute)
}

// shapeEvent is namespaceEvent for a namespace that is the same and may look
// different: what the host has set for it stays.
func (c *Controller) shapeEvent(nsid uint32) {
	if c.events.known[nsid] == fingerprint(c.sub.Namespace(nsid)) {
		return
	}
	tler := c.features.tler[nsid]
	c.namespaceEvent(nsid)
	c.features.tler[nsid] = tler
}

// know takes the subsystem's namespaces as known to the host, which has not
// asked yet.
func (c *Controller) know() {
	for _, ns := range c.sub.Namespaces() {
		c.events.known[ns.NSID] = fingerprint(ns)
	}
}
