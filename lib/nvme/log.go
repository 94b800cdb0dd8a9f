// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds log page identifiers and layouts.

package nvme

// LogPageID identifies a log page, LID (Base Specification, "Get Log Page command").
type LogPageID uint8

// Log page identifiers.
const (
	LogSupportedLogPages LogPageID = 0x00 // SupportedLogPages
	LogErrorInformation  LogPageID = 0x01 // list of ErrorLogEntry, newest first
	LogSMART             LogPageID = 0x02 // SMARTLog
	LogFirmwareSlot      LogPageID = 0x03 // FirmwareSlotLog
	LogChangedNamespaces LogPageID = 0x04 // NSList; reading it clears it
	LogCommandEffects    LogPageID = 0x05 // CommandEffectsLog
	LogSelfTest          LogPageID = 0x06
	LogTelemetryHost     LogPageID = 0x07
	LogTelemetryCtrl     LogPageID = 0x08
	LogEnduranceGroup    LogPageID = 0x09
	LogPredictableNVMSet LogPageID = 0x0a
	LogPredictableEvents LogPageID = 0x0b
	LogANA               LogPageID = 0x0c // ANALogHeader, then groups
	LogPersistentEvent   LogPageID = 0x0d
	LogLBAStatus         LogPageID = 0x0e
	LogEnduranceEvents   LogPageID = 0x0f
	LogMediaUnitStatus   LogPageID = 0x10
	LogCapacityConfigs   LogPageID = 0x11
	LogFeatureEffects    LogPageID = 0x12 // FeatureEffectsLog
	LogMIEffects         LogPageID = 0x13
	LogLockdown          LogPageID = 0x14
	LogBootPartition     LogPageID = 0x15
	LogRotationalMedia   LogPageID = 0x16
	LogFDPConfigs        LogPageID = 0x20
	LogFDPUsage          LogPageID = 0x21
	LogFDPStatistics     LogPageID = 0x22
	LogFDPEvents         LogPageID = 0x23
	LogDiscovery         LogPageID = 0x70
	LogReservation       LogPageID = 0x80
	LogSanitizeStatus    LogPageID = 0x81
	LogChangedZones      LogPageID = 0xbf
	LogVendorSpecific    LogPageID = 0xc0 // first vendor specific log page; the last is 0xff
)

// SupportedLogPages is log page 00h: one LID Supported and Effects entry per log page identifier.
type SupportedLogPages struct {
	LIDs [256]uint32 // LIDSupported, LIDIndexOffset; LID specific parameter in bits 31:16
}

// Bits of an entry of SupportedLogPages.
const (
	LIDSupported   uint32 = 1 << 0 // LSUPP
	LIDIndexOffset uint32 = 1 << 1 // IOS: Get Log Page may count entries instead of bytes (OT)
)

// ErrorLogEntry is an entry of log page 01h, error information.
type ErrorLogEntry struct {
	ErrorCount     uint64 // unique and increasing; 0 marks an entry that holds nothing
	SQID           uint16
	CID            uint16
	Status         uint16 // status field in bits 15:1, as in CQE.Status
	ParameterError uint16 // byte of the command that was wrong in bits 7:0, bit in bits 10:8; FFFFh for none
	LBA            uint64
	NSID           uint32
	VS             uint8 // vendor specific log page that has more; 0 for none
	TRTYPE         uint8 // transport type
	CSI            uint8
	Opcode         uint8
	CS             uint64 // command specific
	TransportInfo  uint16 // transport type specific
	_              [21]uint8
	LPVER          uint8 // log page version; 1 where CSI and Opcode are valid
}

// SMARTLog is log page 02h, SMART / health information. Counters of a controller cover its whole life.
type SMARTLog struct {
	CriticalWarning         uint8    // SMARTCritical bits
	CompositeTemperature    [2]uint8 // in kelvins, little-endian; see SetTemperature
	AvailableSpare          uint8    // in percent
	AvailableSpareThreshold uint8    // in percent
	PercentageUsed          uint8    // may be above 100; 255 for more than 254
	EnduranceGroupWarning   uint8
	_                       [25]uint8
	DataUnitsRead           Uint128 // in units of 512000 bytes, see DataUnits
	DataUnitsWritten        Uint128 // in units of 512000 bytes, see DataUnits
	HostReadCommands        Uint128
	HostWriteCommands       Uint128
	ControllerBusyTime      Uint128 // in minutes
	PowerCycles             Uint128
	PowerOnHours            Uint128
	UnsafeShutdowns         Uint128
	MediaErrors             Uint128
	ErrorLogEntries         Uint128
	WarningTempTime         uint32    // in minutes
	CriticalTempTime        uint32    // in minutes
	TempSensors             [8]uint16 // in kelvins; 0 for a sensor that is not there
	ThermalMgmtCount1       uint32
	ThermalMgmtCount2       uint32
	ThermalMgmtTime1        uint32 // in seconds
	ThermalMgmtTime2        uint32 // in seconds
	_                       [280]uint8
}

// Bits of SMARTLog.CriticalWarning, and of bits 7:0 of the Asynchronous Event Configuration feature.
const (
	SMARTCriticalSpare          uint8 = 1 << 0
	SMARTCriticalTemperature    uint8 = 1 << 1
	SMARTCriticalReliability    uint8 = 1 << 2
	SMARTCriticalReadOnly       uint8 = 1 << 3
	SMARTCriticalVolatileBackup uint8 = 1 << 4
	SMARTCriticalPMRReadOnly    uint8 = 1 << 5
)

// Temperature returns the composite temperature, in kelvins.
func (l *SMARTLog) Temperature() uint16 {
	return uint16(l.CompositeTemperature[0]) | uint16(l.CompositeTemperature[1])<<8
}

// SetTemperature stores the composite temperature, in kelvins.
func (l *SMARTLog) SetTemperature(k uint16) {
	l.CompositeTemperature = [2]uint8{uint8(k), uint8(k >> 8)}
}

// DataUnits converts bytes to SMARTLog data units, thousands of 512 bytes, rounded up.
func DataUnits(bytes uint64) uint64 {
	const unit = 512 * 1000
	n := bytes / unit
	if bytes%unit != 0 {
		n++
	}
	return n
}

// FirmwareSlotLog is log page 03h, firmware slot information.
type FirmwareSlotLog struct {
	AFI uint8 // active slot in bits 2:0; slot to be active after the next reset in bits 6:4, 0 for none
	_   [7]uint8
	FRS [7][8]byte // revision in slots 1 to 7, see SetASCII; zero for an empty slot
	_   [448]uint8
}

// CommandEffectsLog is log page 05h: one Commands Supported and Effects entry per opcode.
type CommandEffectsLog struct {
	Admin [256]uint32 // indexed by AdminOpcode
	IO    [256]uint32 // indexed by IOOpcode
	_     [2048]uint8
}

// Bits of an entry of CommandEffectsLog. Submission restrictions, CSE, lie in bits 18:16.
const (
	EffectSupported             uint32 = 1 << 0 // CSUPP
	EffectContentChange         uint32 = 1 << 1 // LBCC: logical block content may change
	EffectNamespaceCapability   uint32 = 1 << 2 // NCC
	EffectNamespaceInventory    uint32 = 1 << 3 // NIC
	EffectControllerCapability  uint32 = 1 << 4 // CCC
	EffectNoOthersSameNamespace uint32 = 1 << 16
	EffectNoOthersAnyNamespace  uint32 = 2 << 16
	EffectUUIDSelection         uint32 = 1 << 19 // USS
)

// Scope bits, common to entries of CommandEffectsLog and FeatureEffectsLog.
const (
	ScopeNamespace      uint32 = 1 << 20
	ScopeController     uint32 = 1 << 21
	ScopeNVMSet         uint32 = 1 << 22
	ScopeEnduranceGroup uint32 = 1 << 23
	ScopeDomain         uint32 = 1 << 24
	ScopeSubsystem      uint32 = 1 << 25
)

// FeatureEffectsLog is log page 12h: one Feature Identifiers Supported and Effects entry per feature identifier.
type FeatureEffectsLog struct {
	FIDs [256]uint32 // FIDSupported, FIDUserDataChange, the Effect bits from NCC to CCC and USS, Scope bits
}

// Bits of an entry of FeatureEffectsLog.
const (
	FIDSupported      uint32 = 1 << 0 // FSUPP
	FIDUserDataChange uint32 = 1 << 1 // UDCC
)

// ANALogHeader starts log page 0Ch, asymmetric namespace access. NumGroups descriptors follow, each an ANAGroupDescriptor and its NSIDs.
type ANALogHeader struct {
	ChangeCount uint64
	NumGroups   uint16
	_           [6]uint8
}

// ANAGroupDescriptor describes one ANA group; NumNSIDs NSIDs of 4 bytes follow it, none where the host asked for groups only.
type ANAGroupDescriptor struct {
	GroupID     uint32
	NumNSIDs    uint32
	ChangeCount uint64
	State       ANAState // bits 3:0; the others are reserved
	_           [15]uint8
}

// ANAState is the asymmetric namespace access state of a group.
type ANAState uint8

// Values of ANAState.
const (
	ANAOptimized      ANAState = 0x1
	ANANonOptimized   ANAState = 0x2
	ANAInaccessible   ANAState = 0x3
	ANAPersistentLoss ANAState = 0x4
	ANAChange         ANAState = 0xf
)

// ANAGroupsOnly is the bit of Get Log Page's LSP that leaves out the NSIDs of log page 0Ch.
const ANAGroupsOnly uint8 = 1 << 0
