// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the status field of a completion: its codes, its retry bits and their names.

package nvme

import "fmt"

// Status is the status field of a completion queue entry without the phase tag (Base Specification, "Status Field Definition"):
// SC in bits 7:0, SCT in bits 10:8, CRD in bits 12:11, M in bit 13, DNR in bit 14. The Status constants have only SC and SCT set: compare
// with [Status.Code].
type Status uint16

// Bits of Status beside the code.
const (
	StatusDNR      Status = 1 << 14 // do not retry: the same command would fail again
	StatusMore     Status = 1 << 13 // M: the error information log has more about this command
	statusCRDShift        = 11
	statusCodeMask Status = 0x7ff
)

// Status code types, SCT.
const (
	SCTGeneric         uint8 = 0
	SCTCommandSpecific uint8 = 1
	SCTMedia           uint8 = 2
	SCTPath            uint8 = 3
	SCTVendorSpecific  uint8 = 7
)

// Generic command status (SCT 0).
const (
	StatusSuccess                        Status = 0x000
	StatusInvalidOpcode                  Status = 0x001
	StatusInvalidField                   Status = 0x002
	StatusCIDConflict                    Status = 0x003
	StatusDataTransferError              Status = 0x004
	StatusAbortedPowerLoss               Status = 0x005
	StatusInternalError                  Status = 0x006
	StatusAbortRequested                 Status = 0x007
	StatusAbortedSQDeletion              Status = 0x008
	StatusAbortedFailedFused             Status = 0x009
	StatusAbortedMissingFused            Status = 0x00a
	StatusInvalidNamespaceOrFormat       Status = 0x00b
	StatusCommandSequenceError           Status = 0x00c
	StatusInvalidSGLSegmentDescriptor    Status = 0x00d
	StatusInvalidNumberOfSGLDescriptors  Status = 0x00e
	StatusInvalidDataSGLLength           Status = 0x00f
	StatusInvalidMetadataSGLLength       Status = 0x010
	StatusInvalidSGLDescriptorType       Status = 0x011
	StatusInvalidUseOfCMB                Status = 0x012
	StatusInvalidPRPOffset               Status = 0x013
	StatusAtomicWriteUnitExceeded        Status = 0x014
	StatusOperationDenied                Status = 0x015
	StatusInvalidSGLOffset               Status = 0x016
	StatusHostIDInconsistentFormat       Status = 0x018
	StatusKeepAliveExpired               Status = 0x019
	StatusInvalidKeepAliveTimeout        Status = 0x01a
	StatusAbortedPreemptAndAbort         Status = 0x01b
	StatusSanitizeFailed                 Status = 0x01c
	StatusSanitizeInProgress             Status = 0x01d
	StatusInvalidSGLDataBlockGranularity Status = 0x01e
	StatusNotSupportedForQueueInCMB      Status = 0x01f
	StatusNamespaceWriteProtected        Status = 0x020
	StatusCommandInterrupted             Status = 0x021
	StatusTransientTransportError        Status = 0x022
	StatusProhibitedByLockdown           Status = 0x023
	StatusAdminMediaNotReady             Status = 0x024
	StatusInvalidKeyTag                  Status = 0x025
	StatusHostDispersedNotEnabled        Status = 0x026
	StatusHostIDNotInitialized           Status = 0x027
	StatusIncorrectKey                   Status = 0x028
	StatusFDPDisabled                    Status = 0x029
	StatusInvalidPlacementHandleList     Status = 0x02a

	StatusLBAOutOfRange       Status = 0x080
	StatusCapacityExceeded    Status = 0x081
	StatusNamespaceNotReady   Status = 0x082
	StatusReservationConflict Status = 0x083
	StatusFormatInProgress    Status = 0x084
)

// Command specific status (SCT 1). Codes 80h and above belong to the I/O command sets.
const (
	StatusCompletionQueueInvalid          Status = 0x100
	StatusInvalidQueueIdentifier          Status = 0x101
	StatusInvalidQueueSize                Status = 0x102
	StatusAbortLimitExceeded              Status = 0x103
	StatusAsyncEventLimitExceeded         Status = 0x105
	StatusInvalidFirmwareSlot             Status = 0x106
	StatusInvalidFirmwareImage            Status = 0x107
	StatusInvalidInterruptVector          Status = 0x108
	StatusInvalidLogPage                  Status = 0x109
	StatusInvalidFormat                   Status = 0x10a
	StatusFirmwareNeedsConventionalReset  Status = 0x10b
	StatusInvalidQueueDeletion            Status = 0x10c
	StatusFeatureNotSaveable              Status = 0x10d
	StatusFeatureNotChangeable            Status = 0x10e
	StatusFeatureNotNamespaceSpecific     Status = 0x10f
	StatusFirmwareNeedsSubsystemReset     Status = 0x110
	StatusFirmwareNeedsControllerReset    Status = 0x111
	StatusFirmwareNeedsMaxTimeViolation   Status = 0x112
	StatusFirmwareActivationProhibited    Status = 0x113
	StatusOverlappingRange                Status = 0x114
	StatusNamespaceInsufficientCapacity   Status = 0x115
	StatusNamespaceIDUnavailable          Status = 0x116
	StatusNamespaceAlreadyAttached        Status = 0x118
	StatusNamespaceIsPrivate              Status = 0x119
	StatusNamespaceNotAttached            Status = 0x11a
	StatusThinProvisioningNotSupported    Status = 0x11b
	StatusControllerListInvalid           Status = 0x11c
	StatusSelfTestInProgress              Status = 0x11d
	StatusBootPartitionWriteProhibited    Status = 0x11e
	StatusInvalidControllerIdentifier     Status = 0x11f
	StatusInvalidSecondaryController      Status = 0x120
	StatusInvalidControllerResources      Status = 0x121
	StatusInvalidResourceIdentifier       Status = 0x122
	StatusSanitizeProhibitedByPMR         Status = 0x123
	StatusANAGroupInvalid                 Status = 0x124
	StatusANAAttachFailed                 Status = 0x125
	StatusInsufficientCapacity            Status = 0x126
	StatusNamespaceAttachmentLimit        Status = 0x127
	StatusLockdownNotSupported            Status = 0x128
	StatusIOCommandSetNotSupported        Status = 0x129
	StatusIOCommandSetNotEnabled          Status = 0x12a
	StatusIOCommandSetCombinationRejected Status = 0x12b
	StatusInvalidIOCommandSet             Status = 0x12c
	StatusIdentifierUnavailable           Status = 0x12d

	StatusConflictingAttributes      Status = 0x180
	StatusInvalidProtectionInfo      Status = 0x181
	StatusWriteToReadOnlyRange       Status = 0x182
	StatusCommandSizeLimitExceeded   Status = 0x183
	StatusIncompatibleNamespace      Status = 0x185
	StatusFastCopyNotPossible        Status = 0x186
	StatusOverlappingIORange         Status = 0x187
	StatusInsufficientResources      Status = 0x189
	StatusInvalidZoneOperation       Status = 0x1b6
	StatusZRWAResourcesUnavailable   Status = 0x1b7
	StatusZonedBoundaryError         Status = 0x1b8
	StatusZoneIsFull                 Status = 0x1b9
	StatusZoneIsReadOnly             Status = 0x1ba
	StatusZoneIsOffline              Status = 0x1bb
	StatusZoneInvalidWrite           Status = 0x1bc
	StatusTooManyActiveZones         Status = 0x1bd
	StatusTooManyOpenZones           Status = 0x1be
	StatusInvalidZoneStateTransition Status = 0x1bf
)

// Media and data integrity errors (SCT 2).
const (
	StatusWriteFault             Status = 0x280
	StatusUnrecoveredReadError   Status = 0x281
	StatusGuardCheckError        Status = 0x282
	StatusApplicationTagError    Status = 0x283
	StatusReferenceTagError      Status = 0x284
	StatusCompareFailure         Status = 0x285
	StatusAccessDenied           Status = 0x286
	StatusDeallocatedOrUnwritten Status = 0x287
	StatusStorageTagError        Status = 0x288
)

// Path related status (SCT 3).
const (
	StatusInternalPathError      Status = 0x300
	StatusANAPersistentLoss      Status = 0x301
	StatusANAInaccessible        Status = 0x302
	StatusANATransition          Status = 0x303
	StatusControllerPathingError Status = 0x360
	StatusHostPathingError       Status = 0x370
	StatusCommandAbortedByHost   Status = 0x371
)

// Code returns the status code type and status code alone, for comparison with the Status constants.
func (s Status) Code() Status { return s & statusCodeMask }

// SC returns the status code.
func (s Status) SC() uint8 { return uint8(s) }

// SCT returns the status code type, 0 to 7.
func (s Status) SCT() uint8 { return uint8(s>>8) & 0x7 }

// CRD returns the command retry delay: 0 for none, 1 to 3 for Identify Controller's CRDT1 to CRDT3.
func (s Status) CRD() uint8 { return uint8(s>>statusCRDShift) & 0x3 }

// More returns the M bit.
func (s Status) More() bool { return s&StatusMore != 0 }

// DNR returns the do not retry bit.
func (s Status) DNR() bool { return s&StatusDNR != 0 }

// WithDNR returns s with the do not retry bit set.
func (s Status) WithDNR() Status { return s | StatusDNR }

// WithCRD returns s with the command retry delay set (0 to 3). It means something only without DNR and to a host that enabled ACRE.
func (s Status) WithCRD(crd uint8) Status {
	return s&^(0x3<<statusCRDShift) | Status(crd&0x3)<<statusCRDShift
}

// String returns the specification's words for the code, or its numbers; the retry bits are not shown.
func (s Status) String() string {
	if name, ok := statusNames[s.Code()]; ok {
		return name
	}
	switch s.SCT() {
	case SCTGeneric:
		return fmt.Sprintf("Generic Command Status %02Xh", s.SC())
	case SCTCommandSpecific:
		return fmt.Sprintf("Command Specific Status %02Xh", s.SC())
	case SCTMedia:
		return fmt.Sprintf("Media and Data Integrity Error %02Xh", s.SC())
	case SCTPath:
		return fmt.Sprintf("Path Related Status %02Xh", s.SC())
	case SCTVendorSpecific:
		return fmt.Sprintf("Vendor Specific Status %02Xh", s.SC())
	}
	return fmt.Sprintf("Reserved Status %Xh/%02Xh", s.SCT(), s.SC())
}
