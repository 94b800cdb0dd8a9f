// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"testing"
	"time"
)

func TestFeatureValues(t *testing.T) {
	a := Arbitration(0x04030207)
	th := TemperatureThreshold(0x00d30155)
	tests := []struct {
		name      string
		got, want any
	}{
		{"arbitration burst", a.AB(), uint8(7)},
		{"low priority weight", a.LPW(), uint8(2)},
		{"medium priority weight", a.MPW(), uint8(3)},
		{"high priority weight", a.HPW(), uint8(4)},
		{"power state", PowerManagement(0xffffff43).PS(), uint8(3)},
		{"workload hint", PowerManagement(0xffffff43).WH(), uint8(2)},
		{"threshold", th.TMPTH(), uint16(0x155)},
		{"sensor", th.TMPSEL(), uint8(3)},
		{"threshold kind", th.THSEL(), THSELUnder},
		{"hysteresis", th.TMPTHH(), uint8(3)},
		{"error recovery time", ErrorRecovery(0x00010014).TLER(), uint16(20)},
		{"DULBE set", ErrorRecovery(0x00010014).DULBE(), true},
		{"DULBE clear", ErrorRecovery(0x0000ffff).DULBE(), false},
		{"queues", MakeNumberOfQueues(7, 5), NumberOfQueues(0x00050007)},
		{"submission queues", NumberOfQueues(0x00050007).NSQ(), uint16(7)},
		{"completion queues", NumberOfQueues(0x00050007).NCQ(), uint16(5)},
		{"aggregation threshold", InterruptCoalescing(0x0a05).THR(), uint8(5)},
		{"aggregation time", InterruptCoalescing(0x0a05).Time(), time.Millisecond},
		{"vector config", MakeInterruptVectorConfig(9, true), InterruptVectorConfig(0x00010009)},
		{"vector", InterruptVectorConfig(0x00010009).IV(), uint16(9)},
		{"coalescing disabled", InterruptVectorConfig(0x00010009).CD(), true},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

func TestTimestamp(t *testing.T) {
	var ts Timestamp
	ts.Set(0xffff_0102_0304_0506, TimestampOriginHost)
	if got, want := [8]byte(Bytes(&ts)), ([8]byte{6, 5, 4, 3, 2, 1, 2, 0}); got != want {
		t.Errorf("bytes: got %x, want %x", got, want)
	}
	if got, want := ts.Milliseconds(), uint64(0x0102_0304_0506); got != want {
		t.Errorf("milliseconds: got %#x, want %#x", got, want)
	}
}

func TestAsyncEvents(t *testing.T) {
	tests := []struct {
		event AsyncEvent
		raw   uint32
		typ   AsyncEventType
		info  uint8
		lid   LogPageID
		text  string
	}{
		{EventPersistentInternalError, 0x00010300, EventTypeError, 3, LogErrorInformation, "Persistent Internal Error"},
		{EventTemperatureThreshold, 0x00020101, EventTypeSMART, 1, LogSMART, "Temperature Threshold"},
		{EventNamespaceAttribute, 0x00040002, EventTypeNotice, 0, LogChangedNamespaces, "Namespace Attribute Changed"},
		{EventFirmwareActivation, 0x00030102, EventTypeNotice, 1, LogFirmwareSlot, "Firmware Activation Starting"},
		{EventANAChange, 0x000c0302, EventTypeNotice, 3, LogANA, "Asymmetric Namespace Access Change"},
		{EventDiscoveryLog, 0x0070f002, EventTypeNotice, 0xf0, LogDiscovery, "Discovery Log Page Change"},
		{EventReservationLog, 0x00800006, EventTypeIO, 0, LogReservation, "Reservation Log Page Available"},
		{0x0002ab07, 0x0002ab07, EventTypeVendor, 0xab, LogSMART, "Asynchronous Event 7h/ABh"},
	}
	for _, tt := range tests {
		e := tt.event
		if uint32(e) != tt.raw || e.Type() != tt.typ || e.Info() != tt.info || e.LID() != tt.lid || e.String() != tt.text {
			t.Errorf("event: got %#x %d %d %#x %q, want %#x %d %d %#x %q",
				uint32(e), e.Type(), e.Info(), e.LID(), e, tt.raw, tt.typ, tt.info, tt.lid, tt.text)
		}
	}
	if got, want := NoticeNamespaceAttribute|NoticeFirmwareActivation|NoticeANAChange|NoticeDiscoveryLog, uint32(0x80000b00); got != want {
		t.Errorf("notice bits: got %#x, want %#x", got, want)
	}
}
