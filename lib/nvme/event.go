// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds asynchronous events: DW0 of an Asynchronous Event Request completion, and the bits that announce and enable them.

package nvme

import "fmt"

// AsyncEvent is DW0 of an Asynchronous Event Request completion (Base Specification, "Asynchronous Event Request command"): the event type
// in bits 2:0, its information in bits 15:8, and the log page to read, which clears the event, in bits 23:16.
type AsyncEvent uint32

// AsyncEventType is the type of an event; events of one type are masked together until their log page is read.
type AsyncEventType uint8

// Values of AsyncEventType.
const (
	EventTypeError     AsyncEventType = 0
	EventTypeSMART     AsyncEventType = 1
	EventTypeNotice    AsyncEventType = 2
	EventTypeImmediate AsyncEventType = 3
	EventTypeOneShot   AsyncEventType = 4
	EventTypeIO        AsyncEventType = 6 // I/O command set specific
	EventTypeVendor    AsyncEventType = 7
)

// Asynchronous events, with the log page the specification associates with each.
const (
	EventInvalidDoorbellRegister AsyncEvent = 0x010000 | AsyncEvent(EventTypeError)
	EventInvalidDoorbellValue    AsyncEvent = 0x010100 | AsyncEvent(EventTypeError)
	EventDiagnosticFailure       AsyncEvent = 0x010200 | AsyncEvent(EventTypeError)
	EventPersistentInternalError AsyncEvent = 0x010300 | AsyncEvent(EventTypeError)
	EventTransientInternalError  AsyncEvent = 0x010400 | AsyncEvent(EventTypeError)
	EventFirmwareImageLoadError  AsyncEvent = 0x010500 | AsyncEvent(EventTypeError)

	EventSubsystemReliability AsyncEvent = 0x020000 | AsyncEvent(EventTypeSMART)
	EventTemperatureThreshold AsyncEvent = 0x020100 | AsyncEvent(EventTypeSMART)
	EventSpareBelowThreshold  AsyncEvent = 0x020200 | AsyncEvent(EventTypeSMART)

	EventNamespaceAttribute AsyncEvent = 0x040000 | AsyncEvent(EventTypeNotice)
	EventFirmwareActivation AsyncEvent = 0x030100 | AsyncEvent(EventTypeNotice)
	EventTelemetryLog       AsyncEvent = 0x080200 | AsyncEvent(EventTypeNotice)
	EventANAChange          AsyncEvent = 0x0c0300 | AsyncEvent(EventTypeNotice)
	EventPredictableLatency AsyncEvent = 0x0b0400 | AsyncEvent(EventTypeNotice)
	EventLBAStatus          AsyncEvent = 0x0e0500 | AsyncEvent(EventTypeNotice)
	EventEnduranceGroup     AsyncEvent = 0x0f0600 | AsyncEvent(EventTypeNotice)
	EventZoneDescriptor     AsyncEvent = 0xbfef00 | AsyncEvent(EventTypeNotice)
	EventDiscoveryLog       AsyncEvent = 0x70f000 | AsyncEvent(EventTypeNotice)

	EventSubsystemShutdown AsyncEvent = AsyncEvent(EventTypeImmediate)

	EventReservationLog       AsyncEvent = 0x800000 | AsyncEvent(EventTypeIO)
	EventSanitizeCompleted    AsyncEvent = 0x810100 | AsyncEvent(EventTypeIO)
	EventSanitizeDeallocation AsyncEvent = 0x810200 | AsyncEvent(EventTypeIO) // completed with unexpected deallocation
)

var asyncEventNames = map[AsyncEvent]string{
	EventInvalidDoorbellRegister: "Write to Invalid Doorbell Register",
	EventInvalidDoorbellValue:    "Invalid Doorbell Write Value",
	EventDiagnosticFailure:       "Diagnostic Failure",
	EventPersistentInternalError: "Persistent Internal Error",
	EventTransientInternalError:  "Transient Internal Error",
	EventFirmwareImageLoadError:  "Firmware Image Load Error",
	EventSubsystemReliability:    "NVM Subsystem Reliability",
	EventTemperatureThreshold:    "Temperature Threshold",
	EventSpareBelowThreshold:     "Spare Below Threshold",
	EventNamespaceAttribute:      "Namespace Attribute Changed",
	EventFirmwareActivation:      "Firmware Activation Starting",
	EventTelemetryLog:            "Telemetry Log Changed",
	EventANAChange:               "Asymmetric Namespace Access Change",
	EventPredictableLatency:      "Predictable Latency Event Aggregate Log Change",
	EventLBAStatus:               "LBA Status Information Alert",
	EventEnduranceGroup:          "Endurance Group Event Aggregate Log Page Change",
	EventZoneDescriptor:          "Zone Descriptor Changed",
	EventDiscoveryLog:            "Discovery Log Page Change",
	EventSubsystemShutdown:       "Normal NVM Subsystem Shutdown",
	EventReservationLog:          "Reservation Log Page Available",
	EventSanitizeCompleted:       "Sanitize Operation Completed",
	EventSanitizeDeallocation:    "Sanitize Operation Completed With Unexpected Deallocation",
}

// Type returns the event type.
func (e AsyncEvent) Type() AsyncEventType { return AsyncEventType(e & 0x7) }

// Info returns the event information.
func (e AsyncEvent) Info() uint8 { return uint8(e >> 8) }

// LID returns the log page to read.
func (e AsyncEvent) LID() LogPageID { return LogPageID(e >> 16) }

// String returns the specification's name of the event, or its numbers.
func (e AsyncEvent) String() string {
	if s, ok := asyncEventNames[e]; ok {
		return s
	}
	return fmt.Sprintf("Asynchronous Event %Xh/%02Xh", uint8(e.Type()), e.Info())
}

// Bits of IdentifyController.OAES and of the Asynchronous Event Configuration feature, which agree: events a controller may send, and
// those a host wants.
const (
	NoticeNamespaceAttribute uint32 = 1 << 8
	NoticeFirmwareActivation uint32 = 1 << 9
	NoticeTelemetryLog       uint32 = 1 << 10 // the feature only: OAES has no such bit
	NoticeANAChange          uint32 = 1 << 11
	NoticePredictableLatency uint32 = 1 << 12
	NoticeLBAStatus          uint32 = 1 << 13
	NoticeEnduranceGroup     uint32 = 1 << 14
	NoticeSubsystemShutdown  uint32 = 1 << 15
	NoticeZoneDescriptor     uint32 = 1 << 27
	NoticeDiscoveryLog       uint32 = 1 << 31
)
