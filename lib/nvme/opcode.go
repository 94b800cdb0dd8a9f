// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the opcodes of the admin command set and of the I/O command sets.

package nvme

import "fmt"

// AdminOpcode is the opcode of a command on queue 0 (Base Specification, "Admin Command Set").
type AdminOpcode uint8

// Admin opcodes.
const (
	AdminDeleteIOSQ            AdminOpcode = 0x00
	AdminCreateIOSQ            AdminOpcode = 0x01
	AdminGetLogPage            AdminOpcode = 0x02
	AdminDeleteIOCQ            AdminOpcode = 0x04
	AdminCreateIOCQ            AdminOpcode = 0x05
	AdminIdentify              AdminOpcode = 0x06
	AdminAbort                 AdminOpcode = 0x08
	AdminSetFeatures           AdminOpcode = 0x09
	AdminGetFeatures           AdminOpcode = 0x0a
	AdminAsyncEventRequest     AdminOpcode = 0x0c
	AdminNamespaceManagement   AdminOpcode = 0x0d
	AdminFirmwareCommit        AdminOpcode = 0x10
	AdminFirmwareImageDownload AdminOpcode = 0x11
	AdminDeviceSelfTest        AdminOpcode = 0x14
	AdminNamespaceAttachment   AdminOpcode = 0x15
	AdminKeepAlive             AdminOpcode = 0x18
	AdminDirectiveSend         AdminOpcode = 0x19
	AdminDirectiveReceive      AdminOpcode = 0x1a
	AdminVirtualizationMgmt    AdminOpcode = 0x1c
	AdminNVMeMISend            AdminOpcode = 0x1d
	AdminNVMeMIReceive         AdminOpcode = 0x1e
	AdminCapacityManagement    AdminOpcode = 0x20
	AdminLockdown              AdminOpcode = 0x24
	AdminTrackSend             AdminOpcode = 0x3d
	AdminTrackReceive          AdminOpcode = 0x3e
	AdminMigrationSend         AdminOpcode = 0x41
	AdminMigrationReceive      AdminOpcode = 0x42
	AdminControllerDataQueue   AdminOpcode = 0x45
	AdminDoorbellBufferConfig  AdminOpcode = 0x7c
	AdminFabrics               AdminOpcode = 0x7f
	AdminFormatNVM             AdminOpcode = 0x80
	AdminSecuritySend          AdminOpcode = 0x81
	AdminSecurityReceive       AdminOpcode = 0x82
	AdminSanitize              AdminOpcode = 0x84
	AdminGetLBAStatus          AdminOpcode = 0x86
	AdminSanitizeNamespace     AdminOpcode = 0x8c
	AdminVendorSpecific        AdminOpcode = 0xc0 // first vendor specific admin opcode; the last is 0xff
)

var adminOpcodeNames = map[AdminOpcode]string{
	AdminDeleteIOSQ:            "Delete I/O Submission Queue",
	AdminCreateIOSQ:            "Create I/O Submission Queue",
	AdminGetLogPage:            "Get Log Page",
	AdminDeleteIOCQ:            "Delete I/O Completion Queue",
	AdminCreateIOCQ:            "Create I/O Completion Queue",
	AdminIdentify:              "Identify",
	AdminAbort:                 "Abort",
	AdminSetFeatures:           "Set Features",
	AdminGetFeatures:           "Get Features",
	AdminAsyncEventRequest:     "Asynchronous Event Request",
	AdminNamespaceManagement:   "Namespace Management",
	AdminFirmwareCommit:        "Firmware Commit",
	AdminFirmwareImageDownload: "Firmware Image Download",
	AdminDeviceSelfTest:        "Device Self-test",
	AdminNamespaceAttachment:   "Namespace Attachment",
	AdminKeepAlive:             "Keep Alive",
	AdminDirectiveSend:         "Directive Send",
	AdminDirectiveReceive:      "Directive Receive",
	AdminVirtualizationMgmt:    "Virtualization Management",
	AdminNVMeMISend:            "NVMe-MI Send",
	AdminNVMeMIReceive:         "NVMe-MI Receive",
	AdminCapacityManagement:    "Capacity Management",
	AdminLockdown:              "Lockdown",
	AdminTrackSend:             "Track Send",
	AdminTrackReceive:          "Track Receive",
	AdminMigrationSend:         "Migration Send",
	AdminMigrationReceive:      "Migration Receive",
	AdminControllerDataQueue:   "Controller Data Queue",
	AdminDoorbellBufferConfig:  "Doorbell Buffer Config",
	AdminFabrics:               "Fabrics Commands",
	AdminFormatNVM:             "Format NVM",
	AdminSecuritySend:          "Security Send",
	AdminSecurityReceive:       "Security Receive",
	AdminSanitize:              "Sanitize",
	AdminGetLBAStatus:          "Get LBA Status",
	AdminSanitizeNamespace:     "Sanitize Namespace",
}

// String returns the specification's name of the command, or its number.
func (o AdminOpcode) String() string {
	if s, ok := adminOpcodeNames[o]; ok {
		return s
	}
	if o >= AdminVendorSpecific {
		return fmt.Sprintf("Vendor Specific Admin %02Xh", uint8(o))
	}
	return fmt.Sprintf("Reserved Admin %02Xh", uint8(o))
}

// IOOpcode is the opcode of a command on an I/O queue (NVM Command Set Specification, "NVM Command Set Commands"; Zoned Namespace Command
// Set Specification for the zone commands).
type IOOpcode uint8

// I/O opcodes.
const (
	IOFlush               IOOpcode = 0x00
	IOWrite               IOOpcode = 0x01
	IORead                IOOpcode = 0x02
	IOWriteUncorrectable  IOOpcode = 0x04
	IOCompare             IOOpcode = 0x05
	IOWriteZeroes         IOOpcode = 0x08
	IODatasetManagement   IOOpcode = 0x09
	IOVerify              IOOpcode = 0x0c
	IOReservationRegister IOOpcode = 0x0d
	IOReservationReport   IOOpcode = 0x0e
	IOReservationAcquire  IOOpcode = 0x11
	IOManagementReceive   IOOpcode = 0x12
	IOReservationRelease  IOOpcode = 0x15
	IOCancel              IOOpcode = 0x18
	IOCopy                IOOpcode = 0x19
	IOManagementSend      IOOpcode = 0x1d
	IOZoneMgmtSend        IOOpcode = 0x79
	IOZoneMgmtReceive     IOOpcode = 0x7a
	IOZoneAppend          IOOpcode = 0x7d
	IOFabrics             IOOpcode = 0x7f
	IOVendorSpecific      IOOpcode = 0x80 // first vendor specific I/O opcode; the last is 0xff
)

var ioOpcodeNames = map[IOOpcode]string{
	IOFlush:               "Flush",
	IOWrite:               "Write",
	IORead:                "Read",
	IOWriteUncorrectable:  "Write Uncorrectable",
	IOCompare:             "Compare",
	IOWriteZeroes:         "Write Zeroes",
	IODatasetManagement:   "Dataset Management",
	IOVerify:              "Verify",
	IOReservationRegister: "Reservation Register",
	IOReservationReport:   "Reservation Report",
	IOReservationAcquire:  "Reservation Acquire",
	IOManagementReceive:   "I/O Management Receive",
	IOReservationRelease:  "Reservation Release",
	IOCancel:              "Cancel",
	IOCopy:                "Copy",
	IOManagementSend:      "I/O Management Send",
	IOZoneMgmtSend:        "Zone Management Send",
	IOZoneMgmtReceive:     "Zone Management Receive",
	IOZoneAppend:          "Zone Append",
	IOFabrics:             "Fabrics Commands",
}

// String returns the specification's name of the command, or its number.
func (o IOOpcode) String() string {
	if s, ok := ioOpcodeNames[o]; ok {
		return s
	}
	if o >= IOVendorSpecific {
		return fmt.Sprintf("Vendor Specific I/O %02Xh", uint8(o))
	}
	return fmt.Sprintf("Reserved I/O %02Xh", uint8(o))
}
