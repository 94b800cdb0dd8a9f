// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// model is what the specification, and docs/nvme.md where that leaves a choice,
// say of a controller, from enable to reset. It is written independently of
// lib/controller: what both have wrong, both have understood wrong.
type model struct {
	values      map[nvme.FeatureID]uint32
	temperature [2]uint16
	recovery    map[uint32]uint16
	uncoalesced map[uint16]bool
	host        nvme.HostBehavior
	stamped     bool
	stamp       uint64
	queueMade   bool

	events  []nvme.AsyncEvent // waiting, each once
	masked  map[nvme.AsyncEventType]nvme.AsyncEvent
	parked  int // Asynchronous Event Requests
	changed map[uint32]bool
	told    []nvme.AsyncEvent // by requests that have ended
}

// Limits that Identify announces.
const (
	playQueues    = 127
	playMDTS      = 1 << 20
	playZeroes    = 8 << 20
	playCopyRange = 1 << 20
	playCopy      = 16 << 20
	playAERs      = 4
	playNN        = 1024
)

// valueFeature is a feature that is a value which is kept.
type valueFeature struct{ initial, mask uint32 }

var valueFeatures = map[nvme.FeatureID]valueFeature{
	nvme.FeatArbitration:         {7, 0xffffff07},
	nvme.FeatPowerManagement:     {0, 0xff},
	nvme.FeatVolatileWriteCache:  {1, 1},
	nvme.FeatInterruptCoalescing: {0, 0xffff},
	nvme.FeatWriteAtomicity:      {0, 1},
	nvme.FeatAsyncEventConfig:    {0, 0x1ff},
	nvme.FeatNumberOfQueues:      {0x7e007e, 0xffffffff},
}

// otherFeatures need more than a value.
var otherFeatures = []nvme.FeatureID{
	nvme.FeatTemperatureThreshold, nvme.FeatErrorRecovery, nvme.FeatInterruptVectorConfig, nvme.FeatTimestamp, nvme.FeatHostBehavior,
}

// reset gives the model the state after an enable.
func (m *model) reset() {
	*m = model{
		values: make(map[nvme.FeatureID]uint32), recovery: make(map[uint32]uint16), uncoalesced: make(map[uint16]bool),
		masked: make(map[nvme.AsyncEventType]nvme.AsyncEvent), changed: make(map[uint32]bool),
	}
	for fid, f := range valueFeatures {
		m.values[fid] = f.initial
	}
	m.temperature[0] = 0xffff
}

func (m *model) queues() nvme.NumberOfQueues {
	return nvme.NumberOfQueues(m.values[nvme.FeatNumberOfQueues])
}

// wants reports whether an event is enabled; errors always are.
func (m *model) wants(e nvme.AsyncEvent) bool {
	return e != nvme.EventNamespaceAttribute || m.values[nvme.FeatAsyncEventConfig]&nvme.NoticeNamespaceAttribute != 0
}

// event notes an event.
func (m *model) event(e nvme.AsyncEvent) {
	if m.wants(e) && !slices.Contains(m.events, e) {
		m.events = append(m.events, e)
	}
}

// namespace notes that a namespace has come, gone or changed.
func (m *model) namespace(nsid uint32) {
	m.changed[nsid] = true
	delete(m.recovery, nsid)
	m.event(nvme.EventNamespaceAttribute)
}

// deliver returns the events that requests must now have been told, and takes
// those requests.
func (m *model) deliver() (told []nvme.AsyncEvent) {
	for m.parked > 0 {
		i := slices.IndexFunc(m.events, func(e nvme.AsyncEvent) bool { return m.masked[e.Type()] == 0 })
		if i < 0 {
			break
		}
		e := m.events[i]
		m.events = slices.Delete(m.events, i, i+1)
		if !m.wants(e) {
			continue
		}
		m.masked[e.Type()] = e
		m.parked--
		told = append(told, e)
	}
	return told
}

// read follows the reading of a log page that was not to retain events.
func (m *model) read(lid nvme.LogPageID) {
	m.events = slices.DeleteFunc(m.events, func(e nvme.AsyncEvent) bool { return e.LID() == lid })
	for t, e := range m.masked {
		if e != 0 && e.LID() == lid {
			delete(m.masked, t)
		}
	}
	if lid == nvme.LogChangedNamespaces {
		clear(m.changed)
	}
}

// nsidErrors is what a command on this namespace deserves, nil if it is there.
func (s *stage) nsidErrors(nsid uint32) []nvme.Status {
	switch {
	case nsid == 0 || nsid > playNN:
		return []nvme.Status{nvme.StatusInvalidNamespaceOrFormat}
	case s.shown[nsid].d == nil:
		return []nvme.Status{nvme.StatusInvalidField}
	}
	return nil
}

// logSizes are the log pages there are, in bytes.
var logSizes = map[nvme.LogPageID]uint64{
	nvme.LogSupportedLogPages: 1024, nvme.LogErrorInformation: 4096, nvme.LogSMART: 512, nvme.LogFirmwareSlot: 512,
	nvme.LogChangedNamespaces: 4096, nvme.LogCommandEffects: 4096, nvme.LogFeatureEffects: 1024, nvme.LogMIEffects: 4096,
}

// tape is the bytes that say a step. Behind their end all is zero.
type tape struct{ b []byte }

func (t *tape) u8() (v byte) {
	if len(t.b) > 0 {
		v, t.b = t.b[0], t.b[1:]
	}
	return v
}

func (t *tape) u16() uint16 { return uint16(t.u8()) | uint16(t.u8())<<8 }

func (t *tape) u32() uint32 { return uint32(t.u16()) | uint32(t.u16())<<16 }

// pick chooses one of several.
func pick[T any](t *tape, of ...T) T { return of[int(t.u8())%len(of)] }
