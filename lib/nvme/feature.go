// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds feature identifiers and the layouts of feature values.

package nvme

import "time"

// FeatureID identifies a feature, FID (Base Specification, "Set Features command").
type FeatureID uint8

// Feature identifiers.
const (
	FeatArbitration             FeatureID = 0x01 // Arbitration
	FeatPowerManagement         FeatureID = 0x02 // PowerManagement
	FeatLBARangeType            FeatureID = 0x03
	FeatTemperatureThreshold    FeatureID = 0x04 // TemperatureThreshold
	FeatErrorRecovery           FeatureID = 0x05 // ErrorRecovery; per namespace
	FeatVolatileWriteCache      FeatureID = 0x06 // bit 0: enabled, see WCE
	FeatNumberOfQueues          FeatureID = 0x07 // NumberOfQueues
	FeatInterruptCoalescing     FeatureID = 0x08 // InterruptCoalescing
	FeatInterruptVectorConfig   FeatureID = 0x09 // InterruptVectorConfig
	FeatWriteAtomicity          FeatureID = 0x0a // bit 0: disable normal, see DisableNormal
	FeatAsyncEventConfig        FeatureID = 0x0b // Notice bits; SMARTCritical bits in bits 7:0
	FeatAutonomousPower         FeatureID = 0x0c
	FeatHostMemoryBuffer        FeatureID = 0x0d
	FeatTimestamp               FeatureID = 0x0e // Timestamp
	FeatKeepAliveTimer          FeatureID = 0x0f // milliseconds; 0 disables it
	FeatHostThermalManagement   FeatureID = 0x10
	FeatNonOpPowerConfig        FeatureID = 0x11
	FeatReadRecoveryLevel       FeatureID = 0x12
	FeatPredictableLatency      FeatureID = 0x13
	FeatPredictableWindow       FeatureID = 0x14
	FeatLBAStatusInterval       FeatureID = 0x15
	FeatHostBehavior            FeatureID = 0x16 // HostBehavior
	FeatSanitizeConfig          FeatureID = 0x17
	FeatEnduranceEventConfig    FeatureID = 0x18
	FeatIOCommandSetProfile     FeatureID = 0x19 // bits 8:0: index into IOCommandSets.Vectors
	FeatSpinupControl           FeatureID = 0x1a
	FeatFlexibleDataPlacement   FeatureID = 0x1d
	FeatFDPEvents               FeatureID = 0x1e
	FeatSoftwareProgress        FeatureID = 0x80
	FeatHostIdentifier          FeatureID = 0x81 // 8 bytes, or 16 with ExtendedHostID
	FeatReservationMask         FeatureID = 0x82
	FeatReservationPersistence  FeatureID = 0x83
	FeatNamespaceWriteProtect   FeatureID = 0x84 // bits 2:0: WPS values; per namespace
	FeatBootPartitionProtection FeatureID = 0x85
)

// FeatureSelect is the SEL field of Get Features: which value is wanted.
type FeatureSelect uint8

// Values of FeatureSelect.
const (
	SelectCurrent   FeatureSelect = 0
	SelectDefault   FeatureSelect = 1
	SelectSaved     FeatureSelect = 2
	SelectSupported FeatureSelect = 3 // the completion's DW0 has Capability bits
)

// Bits of DW0 of a Get Features completion for SelectSupported.
const (
	CapabilitySaveable          uint32 = 1 << 0
	CapabilityNamespaceSpecific uint32 = 1 << 1
	CapabilityChangeable        uint32 = 1 << 2
)

// Arbitration is the value of FeatArbitration.
type Arbitration uint32

// AB returns the arbitration burst, a base-two logarithm; 7 for no limit.
func (v Arbitration) AB() uint8 { return uint8(v) & 0x7 }

// LPW returns the low priority weight, minus one.
func (v Arbitration) LPW() uint8 { return uint8(v >> 8) }

// MPW returns the medium priority weight, minus one.
func (v Arbitration) MPW() uint8 { return uint8(v >> 16) }

// HPW returns the high priority weight, minus one.
func (v Arbitration) HPW() uint8 { return uint8(v >> 24) }

// PowerManagement is the value of FeatPowerManagement.
type PowerManagement uint32

// PS returns the power state, 0 to 31.
func (v PowerManagement) PS() uint8 { return uint8(v) & 0x1f }

// WH returns the workload hint, 0 to 7.
func (v PowerManagement) WH() uint8 { return uint8(v>>5) & 0x7 }

// TemperatureThreshold is the value of FeatTemperatureThreshold.
type TemperatureThreshold uint32

// Values of TemperatureThreshold.TMPSEL beside sensors 1 to 8, and of THSEL.
const (
	TMPSELComposite uint8 = 0x0
	TMPSELAll       uint8 = 0xf // Set Features only
	THSELOver       uint8 = 0
	THSELUnder      uint8 = 1
)

// TMPTH returns the threshold, in kelvins.
func (v TemperatureThreshold) TMPTH() uint16 { return uint16(v) }

// TMPSEL returns the sensor: TMPSELComposite, 1 to 8, TMPSELAll.
func (v TemperatureThreshold) TMPSEL() uint8 { return uint8(v>>16) & 0xf }

// THSEL returns the kind of threshold: THSELOver or THSELUnder.
func (v TemperatureThreshold) THSEL() uint8 { return uint8(v>>20) & 0x3 }

// TMPTHH returns the hysteresis, in kelvins.
func (v TemperatureThreshold) TMPTHH() uint8 { return uint8(v>>22) & 0x7 }

// ErrorRecovery is the value of FeatErrorRecovery.
type ErrorRecovery uint32

// TLER returns the time limit of error recovery, in units of 100 ms; 0 for no limit.
func (v ErrorRecovery) TLER() uint16 { return uint16(v) }

// DULBE tells whether reading a deallocated or unwritten block is an error.
func (v ErrorRecovery) DULBE() bool { return v>>16&1 != 0 }

// Namespace write protection states, bits 2:0 (WPSMask) of FeatNamespaceWriteProtect.
const (
	WPSNone            uint32 = 0
	WPSWriteProtect    uint32 = 1
	WPSUntilPowerCycle uint32 = 2
	WPSPermanent       uint32 = 3
	WPSMask            uint32 = 7
)

// WCE is the bit of FeatVolatileWriteCache that enables the cache.
const WCE uint32 = 1 << 0

// DisableNormal is the bit of FeatWriteAtomicity, DN: only AWUPF and NAWUPF are of interest to the host.
const DisableNormal uint32 = 1 << 0

// NumberOfQueues is the value of FeatNumberOfQueues, and DW0 of its completions: counts of I/O queues, minus one.
type NumberOfQueues uint32

// MakeNumberOfQueues returns the value for nsq+1 submission and ncq+1 completion queues.
func MakeNumberOfQueues(nsq, ncq uint16) NumberOfQueues {
	return NumberOfQueues(uint32(nsq) | uint32(ncq)<<16)
}

// NSQ returns the number of I/O submission queues, minus one. A request for FFFFh is invalid.
func (v NumberOfQueues) NSQ() uint16 { return uint16(v) }

// NCQ returns the number of I/O completion queues, minus one. A request for FFFFh is invalid.
func (v NumberOfQueues) NCQ() uint16 { return uint16(v >> 16) }

// InterruptCoalescing is the value of FeatInterruptCoalescing.
type InterruptCoalescing uint32

// THR returns the aggregation threshold, in completion queue entries minus one.
func (v InterruptCoalescing) THR() uint8 { return uint8(v) }

// Time returns the longest delay of an interrupt, 0 to 25.5 ms; 0 for no delay.
func (v InterruptCoalescing) Time() time.Duration {
	return time.Duration(uint8(v>>8)) * 100 * time.Microsecond
}

// InterruptVectorConfig is the value of FeatInterruptVectorConfig.
type InterruptVectorConfig uint32

// MakeInterruptVectorConfig returns the value for interrupt vector iv.
func MakeInterruptVectorConfig(iv uint16, coalescingDisable bool) InterruptVectorConfig {
	return InterruptVectorConfig(uint64(iv) | bit(coalescingDisable)<<16)
}

// IV returns the interrupt vector. In Get Features it is an input, in CDW11.
func (v InterruptVectorConfig) IV() uint16 { return uint16(v) }

// CD tells whether interrupt coalescing is disabled for the vector.
func (v InterruptVectorConfig) CD() bool { return v>>16&1 != 0 }

// Timestamp is the data structure of FeatTimestamp.
type Timestamp struct {
	Value      [6]uint8 // milliseconds, little-endian; see Milliseconds
	Attributes uint8    // bit 0: counting may have stopped (Synch); bits 3:1: TimestampOrigin values
	_          uint8
}

// Values of the timestamp origin, Timestamp.Attributes bits 3:1.
const (
	TimestampOriginReset uint8 = 0 // counts from the last controller level reset
	TimestampOriginHost  uint8 = 1 // counts from the value a host set, usually since 1970-01-01 UTC
)

// Milliseconds returns the value, 0 to 2^48 - 1.
func (t *Timestamp) Milliseconds() uint64 {
	var ms uint64
	for i, b := range t.Value {
		ms |= uint64(b) << (8 * i)
	}
	return ms
}

// Set stores the low 48 bits of ms and the origin, with Synch clear.
func (t *Timestamp) Set(ms uint64, origin uint8) {
	for i := range t.Value {
		t.Value[i] = uint8(ms >> (8 * i))
	}
	t.Attributes = origin & 0x7 << 1
}

// HostBehavior is the data structure of FeatHostBehavior. Each field is 0 or 1 unless noted.
type HostBehavior struct {
	ACRE   uint8  // advanced command retry: Command Interrupted and CRDT are understood
	ETDAS  uint8  // extended telemetry data area 4
	LBAFEE uint8  // LBA format extension: more than 16 formats, and the extended ones
	HDISNS uint8  // host dispersed namespaces
	CDFE   uint16 // copy descriptor formats enabled: bit 2 and bit 3 for formats 2 and 3
	_      [506]uint8
}

// ExtendedHostID is the bit of FeatHostIdentifier's CDW11, EXHID: the identifier has 16 bytes instead of 8.
const ExtendedHostID uint32 = 1 << 0
