// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

const stateMagic = 0x6c746e43 // "Cntl"

// StateVersion is the version of what State returns.
const StateVersion = 2

// ErrStateVersion is what Restore has to say of the state of another release.
var ErrStateVersion = errors.New("controller state of another version")

// state is what a successor of this runtime needs to go on as the same
// controller: the host must not notice. It is encoded little-endian, without
// padding, in the order of its fields. Statistics and the error log are not
// part of it, and neither are parked Asynchronous Event Requests: the transport
// executes them again.
type state struct {
	Magic        uint32
	Version      uint16
	CNTLID       uint16
	QueueMade    bool
	Values       [dwordFeatures]uint32
	Temperature  [2]uint16
	Uncoalesced  [maxVectors / 64]uint64
	ACRE, LBAFEE uint8
	CDFE         uint16
	StampBase    uint64 // milliseconds
	StampAt      int64  // milliseconds since 1970, by this machine's clock
	StampOrigin  uint8
	Pending      [maxPending]nvme.AsyncEvent // 0: none
	Masked       [8]nvme.AsyncEvent
	Changed      namespaceSet
	Known        [MaxNamespaces + 1]uint32
	TLER         [MaxNamespaces + 1]uint16
}

// State returns what Restore takes, and whether it has changed since the last
// call. The payload, at most 8000 bytes, is valid until the next call. State is
// called on the admin poller.
func (c *Controller) State() (payload []byte, changed bool) {
	f, ev := &c.features, &c.events
	s := state{
		Magic: stateMagic, Version: StateVersion, CNTLID: c.CNTLID(), QueueMade: c.queueMade,
		Values: f.values, Temperature: f.temperature, Uncoalesced: f.uncoalesced,
		ACRE: f.host.ACRE, LBAFEE: f.host.LBAFEE, CDFE: f.host.CDFE,
		StampBase: f.stamp.base, StampAt: f.stamp.at.UnixMilli(), StampOrigin: f.stamp.origin,
		Masked: ev.masked, Changed: ev.changed, Known: ev.known, TLER: f.tler,
	}
	copy(s.Pending[:], ev.pending)
	if s == c.last {
		return c.payload, false
	}
	c.last = s
	c.payload, _ = binary.Append(c.payload[:0], binary.LittleEndian, &s) // never fails: its size is fixed
	return c.payload, true
}

// Restore makes a controller that was just made the one that State described,
// with the same identifier if that is free. Namespaces that have come, gone or
// been replaced since are reported to the host. The payload may be anything;
// the error says why it is no state, and then nothing has changed. Restore is
// called on the admin poller.
func (c *Controller) Restore(payload []byte) error {
	var s state
	if err := checkState(payload); err != nil {
		return err
	}
	if n := binary.Size(&s); len(payload) != n {
		return fmt.Errorf("controller state of %d bytes, expected %d", len(payload), n)
	}
	if _, err := binary.Decode(payload, binary.LittleEndian, &s); err != nil {
		return fmt.Errorf("controller state: %w", err)
	}
	c.sub.rename(c, s.CNTLID)
	c.queueMade = s.QueueMade
	c.restoreFeatures(&s)
	c.restoreEvents(&s)
	return nil
}

// checkState looks at how a state begins, which is the same in all versions.
func checkState(payload []byte) error {
	var head struct {
		Magic   uint32
		Version uint16
	}
	_, err := binary.Decode(payload, binary.LittleEndian, &head)
	switch {
	case err != nil:
		return fmt.Errorf("controller state of %d bytes is too short", len(payload))
	case head.Magic != stateMagic:
		return fmt.Errorf("controller state begins with %#x, expected %#x", head.Magic, stateMagic)
	case head.Version != StateVersion:
		return fmt.Errorf("%w: %d, and this program understands %d", ErrStateVersion, head.Version, StateVersion)
	}
	return nil
}

// restoreFeatures takes the values as far as the host could have set them.
func (c *Controller) restoreFeatures(s *state) {
	f := &c.features
	for i, v := range s.Values {
		f.values[i] = v & featureTable[i].mask
	}
	granted, most := nvme.NumberOfQueues(s.Values[nvme.FeatNumberOfQueues]), queueLimit(c.cfg.MaxQueues)
	f.values[nvme.FeatNumberOfQueues] = uint32(nvme.MakeNumberOfQueues(
		min(granted.NSQ(), most.NSQ()), min(granted.NCQ(), most.NCQ())))
	f.temperature, f.uncoalesced, f.tler = s.Temperature, s.Uncoalesced, s.TLER
	c.spreadCoalescing()
	f.host = nvme.HostBehavior{ACRE: s.ACRE & 1, LBAFEE: s.LBAFEE & 1, CDFE: s.CDFE & copyAcross}
	c.copyFormats.Store(uint32(f.host.CDFE))
	f.stamp = timestamp{base: s.StampBase, at: time.UnixMilli(s.StampAt), origin: s.StampOrigin}
	c.writeThrough.Store(f.values[nvme.FeatVolatileWriteCache]&nvme.WCE == 0)
	if c.hasKeepAlive() {
		c.startKeepAlive(f.values[nvme.FeatKeepAliveTimer])
	}
}

// restoreEvents goes on with the events, and with those of the time in between.
func (c *Controller) restoreEvents(s *state) {
	ev := &c.events
	ev.pending = ev.pending[:0]
	for _, e := range s.Pending {
		if e != 0 {
			ev.pending = append(ev.pending, e)
		}
	}
	ev.masked = [8]nvme.AsyncEvent{}
	for _, e := range s.Masked {
		if e != 0 {
			ev.masked[e.Type()] = e
		}
	}
	ev.changed, ev.known = namespaceSet{}, s.Known
	for nsid := uint32(1); nsid <= MaxNamespaces; nsid++ {
		if s.Changed.has(nsid) {
			ev.changed.add(nsid)
		}
		if ev.known[nsid] != fingerprint(c.sub.Namespace(nsid)) {
			c.namespaceEvent(nsid)
		}
	}
}
