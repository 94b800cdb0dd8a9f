// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import "github.com/leapio/leapio/lib/nvme"

// This file holds the words of docs/nvme.md, which doc_test.go makes.

// featureNames are the specification's names of features that are not in
// featureTable.
var featureNames = map[nvme.FeatureID]string{
	nvme.FeatLBARangeType:            "LBA Range Type",
	nvme.FeatAutonomousPower:         "Autonomous Power State Transition",
	nvme.FeatHostMemoryBuffer:        "Host Memory Buffer",
	nvme.FeatHostThermalManagement:   "Host Controlled Thermal Management",
	nvme.FeatNonOpPowerConfig:        "Non-Operational Power State Config",
	nvme.FeatReadRecoveryLevel:       "Read Recovery Level Config",
	nvme.FeatPredictableLatency:      "Predictable Latency Mode Config",
	nvme.FeatPredictableWindow:       "Predictable Latency Mode Window",
	nvme.FeatLBAStatusInterval:       "LBA Status Information Report Interval",
	nvme.FeatSanitizeConfig:          "Sanitize Config",
	nvme.FeatEnduranceEventConfig:    "Endurance Group Event Configuration",
	nvme.FeatIOCommandSetProfile:     "I/O Command Set Profile",
	nvme.FeatSpinupControl:           "Spinup Control",
	nvme.FeatFlexibleDataPlacement:   "Flexible Data Placement",
	nvme.FeatFDPEvents:               "Flexible Data Placement Events",
	nvme.FeatSoftwareProgress:        "Software Progress Marker",
	nvme.FeatHostIdentifier:          "Host Identifier",
	nvme.FeatReservationMask:         "Reservation Notification Mask",
	nvme.FeatReservationPersistence:  "Reservation Persistence",
	nvme.FeatNamespaceWriteProtect:   "Namespace Write Protection Config",
	nvme.FeatBootPartitionProtection: "Boot Partition Write Protection Config",
}

// logNames are the specification's names of log pages.
var logNames = map[nvme.LogPageID]string{
	nvme.LogSupportedLogPages: "Supported Log Pages",
	nvme.LogErrorInformation:  "Error Information",
	nvme.LogSMART:             "SMART / Health Information",
	nvme.LogFirmwareSlot:      "Firmware Slot Information",
	nvme.LogChangedNamespaces: "Changed Attached Namespace List",
	nvme.LogCommandEffects:    "Commands Supported and Effects",
	nvme.LogSelfTest:          "Device Self-test",
	nvme.LogTelemetryHost:     "Telemetry Host-Initiated",
	nvme.LogTelemetryCtrl:     "Telemetry Controller-Initiated",
	nvme.LogEnduranceGroup:    "Endurance Group Information",
	nvme.LogPredictableNVMSet: "Predictable Latency Per NVM Set",
	nvme.LogPredictableEvents: "Predictable Latency Event Aggregate",
	nvme.LogANA:               "Asymmetric Namespace Access",
	nvme.LogPersistentEvent:   "Persistent Event Log",
	nvme.LogLBAStatus:         "LBA Status Information",
	nvme.LogEnduranceEvents:   "Endurance Group Event Aggregate",
	nvme.LogMediaUnitStatus:   "Media Unit Status",
	nvme.LogCapacityConfigs:   "Supported Capacity Configuration List",
	nvme.LogFeatureEffects:    "Feature Identifiers Supported and Effects",
	nvme.LogMIEffects:         "NVMe-MI Commands Supported and Effects",
	nvme.LogLockdown:          "Command and Feature Lockdown",
	nvme.LogBootPartition:     "Boot Partition",
	nvme.LogRotationalMedia:   "Rotational Media Information",
	nvme.LogFDPConfigs:        "FDP Configurations",
	nvme.LogFDPUsage:          "Reclaim Unit Handle Usage",
	nvme.LogFDPStatistics:     "FDP Statistics",
	nvme.LogFDPEvents:         "FDP Events",
	nvme.LogDiscovery:         "Discovery",
	nvme.LogReservation:       "Reservation Notification",
	nvme.LogSanitizeStatus:    "Sanitize Status",
	nvme.LogChangedZones:      "Changed Zone List",
}

// cnsNames are what the specification calls the data structures of Identify.
var cnsNames = map[nvme.CNS]string{
	nvme.CNSNamespace:               "Identify Namespace",
	nvme.CNSController:              "Identify Controller",
	nvme.CNSActiveNamespaces:        "Active Namespace ID list",
	nvme.CNSNamespaceDescriptors:    "Namespace Identification Descriptor list",
	nvme.CNSNVMSets:                 "NVM Set List",
	nvme.CNSIOCSNamespace:           "I/O Command Set specific Identify Namespace",
	nvme.CNSIOCSController:          "I/O Command Set specific Identify Controller",
	nvme.CNSIOCSActiveNamespaces:    "I/O Command Set specific Active Namespace ID list",
	nvme.CNSIndependentNamespace:    "I/O Command Set Independent Identify Namespace",
	nvme.CNSAllocatedNamespaces:     "Allocated Namespace ID list",
	nvme.CNSAllocatedNamespace:      "Identify Namespace of an allocated namespace",
	nvme.CNSNamespaceControllers:    "Controller list of a namespace",
	nvme.CNSControllers:             "Controller list of the subsystem",
	nvme.CNSPrimaryControllerCaps:   "Primary Controller Capabilities",
	nvme.CNSSecondaryControllers:    "Secondary Controller list",
	nvme.CNSNamespaceGranularity:    "Namespace Granularity List",
	nvme.CNSUUIDList:                "UUID List",
	nvme.CNSDomains:                 "Domain List",
	nvme.CNSEnduranceGroups:         "Endurance Group List",
	nvme.CNSIOCSAllocatedNamespaces: "I/O Command Set specific Allocated Namespace ID list",
	nvme.CNSIOCSAllocatedNamespace:  "I/O Command Set specific Identify Namespace of an allocated namespace",
	nvme.CNSIOCommandSets:           "I/O Command Set data structure",
	nvme.CNSIndependentAllocated:    "I/O Command Set Independent Identify Namespace of an allocated namespace",
	nvme.CNSControllerStateFormats:  "Supported Controller State Formats",
}

// docTemplate is docs/nvme.md, executed with a document.
const docTemplate = `<!-- Written by lib/controller/doc_test.go: LEAP_UPDATE=1 go test ./lib/controller -run TestNVMeDoc. Do not edit. -->

# The NVMe controller

What hosts find, for those who write drivers and those who look at drives with nvme-cli. The tables are those the code
works with, and the statuses in them were obtained by asking a controller; a test keeps this page true. A status is shown
as its words, its type and code (SCT/SC), and DNR where Do Not Retry is set. *PCI* is the drive of a virtual machine,
*fabrics* a controller whose queues are made by Connect; the README says what works today.

## In short

- **Identity.** Model "{{.Model}}", firmware revision {{.Firmware}}. PCI vendor and subsystem vendor are {{.Vendor}},
  which is nobody's: drivers bind by class code. The serial number is the first {{len .Serial}} hexadecimal digits of the subsystem's
  UUID, and a namespace's NGUID is its volume's UUID, marked as locally administered in byte 8: with UUID
  {{.UUID}} they are {{.Serial}} and {{.NGUID}}.
  EUI64 is {{.EUI64}} and IEEE {{.IEEE}}: none.
- **Queues** (PCI). {{.Queues}} I/O queue pairs of 2 to {{.Entries}} entries each, physically contiguous; the admin queues hold up to {{.Entries}}
  too. Memory pages are of {{size .Page}}. Arbitration is round robin.
- **Data** (PCI). PRPs, or for I/O commands SGLs; SGLS is {{printf "%X" .SGLS}}h. An SGL consists of data blocks, bit buckets, segments
  and last segments; data blocks lie at any address, have any length, and may be more than is needed. Of pieces that do
  not follow one another in memory there can be {{.SGLPieces}}: more get {{.SGLCount}}.
  Less data than is needed gets {{.SGLLength}}, other types of descriptors, keyed ones among them,
  {{.SGLType}}. Admin commands with an SGL get {{.SGLQueue}},
  as do all with an SGL for metadata. The reserved value of PSDT gets {{.PSDTReserved}}.
- **Formats.** LBA formats{{range $i, $b := .Blocks}}{{if $i}} and{{end}} {{$i}} (blocks of {{$b}} bytes){{end}}, no metadata, no protection information. A namespace
  has those that its size is a multiple of, and Format NVM goes from one to the other; one that is shared offers only
  the one that its volume has, since other hosts may be using it.
- **Write protection.** By who runs the drive, or by hosts, with Namespace Write Protection Config: states No Write Protect and Write
  Protect (NWPC), which last over resets, restarts and power cycles. What is not of the hosts' making they cannot take back.
- **Changes.** When a volume is given another size or block, or write protection changes, each host gets a Namespace Attribute
  Changed event, also for what has changed while no runtime was there. Commands in execution go on with what they began with.
- **Atomicity.** In blocks, AWUN is {{.AWUN}}, AWUPF {{.AWUPF}} and ACWU {{.ACWU}}; NAWUN, NAWUPF and NACWU say how much more a namespace's
  volume can do.
- **Copy** understands descriptor formats {{.CopyFormats}}. Formats {{.CopyAcross}}, whose ranges name a namespace, must first be
  enabled by Host Behavior Support.

## Limits

{{table .Limits "Limit" "Field" "Value" "Beyond it"}}

## Admin commands

{{table .Admin "Opcode" "Command" "Offered" "Announced by"}}

Where a command is not offered it gets {{.NotOffered}}. Doorbell Buffer Config needs guest memory that both sides share.

Not supported; opcodes that are not in these two tables get {{.AdminRefusal}}:

{{table .AdminRest "Opcode" "Command" "Status"}}

## I/O commands

Of the NVM command set, the only one.

{{table .IO "Opcode" "Command" "Changes data" "NSID FFFFFFFFh" "Announced by" "First of a fused pair"}}

Commands that change data get {{.Protected}} on a namespace that is write protected.

Not supported; opcodes that are not in these two tables get {{.IORefusal}}:

{{table .IORest "Opcode" "Command" "Status"}}

## Features

The default is a value of 32 bits, or the size of a data structure. Nothing but write protection is kept over a reset.
Arbitration, Power Management, Temperature Threshold, Error Recovery and Write Atomicity Normal are kept and can be read
back, but change nothing. Interrupt Coalescing may hold an interrupt 1 ms longer than the host allows.

{{table .Features "FID" "Feature" "Offered" "Scope" "Default" "Changeable" "Saveable"}}

Not supported, by Get Features and Set Features alike; identifiers that are not in these two tables get {{.FeatureRefusal}}:

{{table .FeaturesRest "FID" "Feature" "Status"}}

## Log pages

All are the controller's or the subsystem's. What is read beyond the end of a page is zero. SMART counts commands, data and
errors for as long as a port shows the subsystem, over resets, machines and runtimes; a runtime that is killed takes along what
it has counted since a host last asked. Temperature, power cycles, hours and busy time are 0: not known.

{{table .Logs "LID" "Log page" "Bytes"}}

Not supported; identifiers that are not in these two tables get {{.LogRefusal}}:

{{table .LogsRest "LID" "Log page" "Status"}}

## Identify

{{table .Identify "CNS" "Data structure" "CSI"}}

Not supported; values of CNS that are not in these two tables get {{.IdentifyRefusal}}:

{{table .IdentifyRest "CNS" "Data structure" "Status"}}
`
