// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the Identify command's selector values and the controller data structure with its field values.

package nvme

// IdentifySize is the size of every Identify data structure, in bytes.
const IdentifySize = 4096

// CNS selects what Identify returns (Base Specification, "Identify command").
type CNS uint8

// Values of CNS.
const (
	CNSNamespace               CNS = 0x00 // IdentifyNamespace
	CNSController              CNS = 0x01 // IdentifyController
	CNSActiveNamespaces        CNS = 0x02 // NSList: attached namespaces with an NSID above the command's
	CNSNamespaceDescriptors    CNS = 0x03 // list of IDDescriptor
	CNSNVMSets                 CNS = 0x04
	CNSIOCSNamespace           CNS = 0x05 // IdentifyNVMNamespace where CSI is CSINVM
	CNSIOCSController          CNS = 0x06 // IdentifyNVMController where CSI is CSINVM
	CNSIOCSActiveNamespaces    CNS = 0x07 // NSList: as CNSActiveNamespaces, one I/O command set only
	CNSIndependentNamespace    CNS = 0x08 // IdentifyIndependentNamespace
	CNSAllocatedNamespaces     CNS = 0x10 // NSList
	CNSAllocatedNamespace      CNS = 0x11 // IdentifyNamespace
	CNSNamespaceControllers    CNS = 0x12 // ControllerList: controllers attached to the NSID
	CNSControllers             CNS = 0x13 // ControllerList: controllers of the subsystem
	CNSPrimaryControllerCaps   CNS = 0x14
	CNSSecondaryControllers    CNS = 0x15
	CNSNamespaceGranularity    CNS = 0x16
	CNSUUIDList                CNS = 0x17
	CNSDomains                 CNS = 0x18
	CNSEnduranceGroups         CNS = 0x19
	CNSIOCSAllocatedNamespaces CNS = 0x1a // NSList
	CNSIOCSAllocatedNamespace  CNS = 0x1b
	CNSIOCommandSets           CNS = 0x1c // IOCommandSets
	CNSIndependentAllocated    CNS = 0x1f // IdentifyIndependentNamespace
	CNSControllerStateFormats  CNS = 0x20
)

// CSI is an I/O command set identifier (Base Specification, "I/O Command Sets").
type CSI uint8

// Values of CSI.
const (
	CSINVM CSI = 0 // NVM command set
	CSIKV  CSI = 1 // key value command set
	CSIZNS CSI = 2 // zoned namespace command set
)

// PowerState is a power state descriptor of Identify Controller.
type PowerState struct {
	MP    uint16 // maximum power, in units of MXPS (bit 0 of Flags: 0.0001 W, else 0.01 W)
	_     uint8
	Flags uint8  // bit 0 MXPS, bit 1 NOPS (non-operational)
	ENLAT uint32 // entry latency, in microseconds
	EXLAT uint32 // exit latency, in microseconds
	RRT   uint8  // relative read throughput, smaller is better
	RRL   uint8  // relative read latency
	RWT   uint8  // relative write throughput
	RWL   uint8  // relative write latency
	IDLP  uint16 // idle power
	IPS   uint8  // idle power scale
	_     uint8
	ACTP  uint16 // active power
	APWS  uint8  // active power workload and scale
	_     [9]uint8
}

// IdentifyController is the Identify Controller data structure, CNS 01h (Base Specification, "Identify Controller Data Structure").
// Fields that end in a limit of zero mean what the specification says for zero, usually "not reported".
type IdentifyController struct {
	VID       uint16    // PCI vendor id
	SSVID     uint16    // PCI subsystem vendor id
	SN        [20]byte  // serial number, see SetASCII
	MN        [40]byte  // model number, see SetASCII
	FR        [8]byte   // firmware revision, see SetASCII
	RAB       uint8     // recommended arbitration burst, base-two logarithm
	IEEE      [3]uint8  // OUI, least significant byte first; zero for none
	CMIC      uint8     // CMIC bits
	MDTS      uint8     // maximum data transfer size, base-two logarithm in units of CAP.MPSMIN pages; 0 for no limit
	CNTLID    uint16    // controller id, unique in the subsystem
	VER       VS        // as the VS property
	RTD3R     uint32    // RTD3 resume latency, in microseconds
	RTD3E     uint32    // RTD3 entry latency, in microseconds
	OAES      uint32    // optional asynchronous events supported, Notice bits
	CTRATT    uint32    // CTRATT bits
	RRLS      uint16    // read recovery levels supported
	BPCAP     uint8     // boot partition capabilities
	_         uint8     //
	NSSL      uint32    // NVM subsystem shutdown latency, in microseconds
	_         [2]uint8  //
	PLSI      uint8     // power loss signaling information
	CNTRLTYPE uint8     // ControllerType values
	FGUID     [16]uint8 // FRU globally unique identifier
	CRDT1     uint16    // command retry delay times, in units of 100 ms
	CRDT2     uint16    //
	CRDT3     uint16    //
	CRCAP     uint8     // controller reachability capabilities
	_         [118]uint8
	NVMSR     uint8      // NVM subsystem report (NVMe-MI)
	VWCI      uint8      // VPD write cycle information (NVMe-MI)
	MEC       uint8      // management endpoint capabilities (NVMe-MI)
	OACS      uint16     // OACS bits
	ACL       uint8      // abort command limit, minus one
	AERL      uint8      // asynchronous event request limit, minus one
	FRMW      uint8      // FRMW bits and number of slots
	LPA       uint8      // LPA bits
	ELPE      uint8      // error log page entries, minus one
	NPSS      uint8      // number of power states supported, minus one
	AVSCC     uint8      // admin vendor specific command configuration
	APSTA     uint8      // autonomous power state transition attributes
	WCTEMP    uint16     // warning composite temperature, in kelvins
	CCTEMP    uint16     // critical composite temperature, in kelvins
	MTFA      uint16     // maximum time for firmware activation, in units of 100 ms
	HMPRE     uint32     // host memory buffer preferred size, in units of 4 KiB
	HMMIN     uint32     // host memory buffer minimum size, in units of 4 KiB
	TNVMCAP   Uint128    // total NVM capacity, in bytes
	UNVMCAP   Uint128    // unallocated NVM capacity, in bytes
	RPMBS     uint32     // replay protected memory block support
	EDSTT     uint16     // extended device self-test time, in minutes
	DSTO      uint8      // device self-test options
	FWUG      uint8      // firmware update granularity, in units of 4 KiB; 0 not reported, 255 no restriction
	KAS       uint16     // keep alive granularity, in units of 100 ms; 0 for no keep alive
	HCTMA     uint16     // host controlled thermal management attributes
	MNTMT     uint16     // minimum thermal management temperature, in kelvins
	MXTMT     uint16     // maximum thermal management temperature, in kelvins
	SANICAP   uint32     // sanitize capabilities
	HMMINDS   uint32     // host memory buffer minimum descriptor entry size, in units of 4 KiB
	HMMAXD    uint16     // host memory maximum descriptor entries
	NSETIDMAX uint16     // NVM set identifier maximum
	ENDGIDMAX uint16     // endurance group identifier maximum
	ANATT     uint8      // ANA transition time, in seconds
	ANACAP    uint8      // ANACAP bits
	ANAGRPMAX uint32     // ANA group identifier maximum
	NANAGRPID uint32     // number of ANA group identifiers
	PELS      uint32     // persistent event log size, in units of 64 KiB
	DID       uint16     // domain identifier
	KPIOC     uint8      // key per I/O capabilities
	_         uint8      //
	MPTFAWR   uint16     // maximum processing time for firmware activation without reset, in units of 100 ms
	_         [6]uint8   //
	MEGCAP    Uint128    // maximum endurance group capacity, in bytes
	TMPTHHA   uint8      // temperature threshold hysteresis attributes
	_         uint8      //
	CQT       uint16     // command quiesce time, in milliseconds
	_         [124]uint8 //
	SQES      uint8      // submission queue entry size: required in bits 3:0, maximum in bits 7:4, base-two logarithms
	CQES      uint8      // completion queue entry size, as SQES
	MAXCMD    uint16     // maximum outstanding commands
	NN        uint32     // largest valid NSID
	ONCS      uint16     // ONCS bits
	FUSES     uint16     // FUSES bits
	FNA       uint8      // FNA bits
	VWC       uint8      // VWC bits
	AWUN      uint16     // atomic write unit normal, in blocks minus one
	AWUPF     uint16     // atomic write unit power fail, in blocks minus one
	ICSVSCC   uint8      // I/O command set vendor specific command configuration
	NWPC      uint8      // namespace write protection capabilities
	ACWU      uint16     // atomic compare and write unit, in blocks minus one
	CDFS      uint16     // copy descriptor formats supported, one bit per format (OCFS before 2.1)
	SGLS      uint32     // SGLS bits
	MNAN      uint32     // maximum number of allowed namespaces
	MAXDNA    Uint128    // maximum domain namespace attachments
	MAXCNA    uint32     // maximum I/O controller namespace attachments
	OAQD      uint32     // optimal aggregated queue depth
	RHIRI     uint8      // recommended host-initiated refresh interval
	HIRT      uint8      // host-initiated refresh time
	CMMRTD    uint16     // controller maximum memory range tracking descriptors
	NMMRTD    uint16     // NVM subsystem maximum memory range tracking descriptors
	MINMRTG   uint8      // minimum memory range tracking granularity
	MAXMRTG   uint8      // maximum memory range tracking granularity
	TRATTR    uint8      // tracking attributes
	_         uint8      //
	MCUDMQ    uint16     // maximum controller user data migration queues
	MNSUDMQ   uint16     // maximum NVM subsystem user data migration queues
	MCMR      uint16     // maximum CDQ memory ranges
	NMCMR     uint16     // NVM subsystem maximum CDQ memory ranges
	MCDQPC    uint16     // maximum controller data queue PRP count
	_         [180]uint8
	SUBNQN    [256]byte // subsystem NQN, NUL padded, see SetNQN
	_         [768]uint8
	IOCCSZ    uint32 // fabrics: I/O queue command capsule supported size, in units of 16 bytes
	IORCSZ    uint32 // fabrics: I/O queue response capsule supported size, in units of 16 bytes
	ICDOFF    uint16 // fabrics: in capsule data offset, in units of 16 bytes
	FCATT     uint8  // fabrics: controller attributes; bit 0 set for the static controller model
	MSDBD     uint8  // fabrics: maximum SGL data block descriptors
	OFCS      uint16 // fabrics: optional fabrics commands support; bit 0 Disconnect
	DCTYPE    uint8  // discovery controller type
	_         [241]uint8
	PSD       [32]PowerState
	VS        [1024]uint8 // vendor specific
}

// Values of IdentifyController.CNTRLTYPE.
const (
	ControllerTypeIO        uint8 = 1
	ControllerTypeDiscovery uint8 = 2
	ControllerTypeAdmin     uint8 = 3
)

// Bits of IdentifyController.CMIC.
const (
	CMICMultiPort       uint8 = 1 << 0 // the subsystem may have more than one port
	CMICMultiController uint8 = 1 << 1 // the subsystem may have more than one controller
	CMICSRIOV           uint8 = 1 << 2 // the controller is a virtual function
	CMICANA             uint8 = 1 << 3 // asymmetric namespace access reporting
)

// Bits of IdentifyController.CTRATT.
const (
	CTRATTHostID128             uint32 = 1 << 0
	CTRATTNonOpPowerPermissive  uint32 = 1 << 1
	CTRATTNVMSets               uint32 = 1 << 2
	CTRATTReadRecoveryLevels    uint32 = 1 << 3
	CTRATTEnduranceGroups       uint32 = 1 << 4
	CTRATTPredictableLatency    uint32 = 1 << 5
	CTRATTTrafficBasedKeepAlive uint32 = 1 << 6
	CTRATTNamespaceGranularity  uint32 = 1 << 7
	CTRATTSQAssociations        uint32 = 1 << 8
	CTRATTUUIDList              uint32 = 1 << 9
	CTRATTMultiDomain           uint32 = 1 << 10
	CTRATTFixedCapacityMgmt     uint32 = 1 << 11
	CTRATTVariableCapacityMgmt  uint32 = 1 << 12
	CTRATTDeleteEnduranceGroup  uint32 = 1 << 13
	CTRATTDeleteNVMSet          uint32 = 1 << 14
	CTRATTExtendedLBAFormats    uint32 = 1 << 15
	CTRATTMDTSExcludesMetadata  uint32 = 1 << 16
	CTRATTHMBRestrictions       uint32 = 1 << 17
	CTRATTReservationHostID     uint32 = 1 << 18
	CTRATTFlexibleDataPlacement uint32 = 1 << 19
)

// Bits of IdentifyController.OACS, the optional admin commands.
const (
	OACSSecurity       uint16 = 1 << 0
	OACSFormatNVM      uint16 = 1 << 1
	OACSFirmware       uint16 = 1 << 2
	OACSNamespaceMgmt  uint16 = 1 << 3
	OACSSelfTest       uint16 = 1 << 4
	OACSDirectives     uint16 = 1 << 5
	OACSNVMeMI         uint16 = 1 << 6
	OACSVirtualization uint16 = 1 << 7
	OACSDoorbellBuffer uint16 = 1 << 8
	OACSGetLBAStatus   uint16 = 1 << 9
	OACSLockdown       uint16 = 1 << 10
	OACSLiveMigration  uint16 = 1 << 11
)

// Bits of IdentifyController.FRMW. The number of slots, 1 to 7, lies in bits 3:1.
const (
	FRMWSlot1ReadOnly        uint8 = 1 << 0
	FRMWSlotsShift                 = 1
	FRMWActivateWithoutReset uint8 = 1 << 4
	FRMWOverlapDetection     uint8 = 1 << 5
)

// Bits of IdentifyController.LPA, the log page attributes.
const (
	LPASMARTPerNamespace uint8 = 1 << 0
	LPACommandEffects    uint8 = 1 << 1 // log page 05h
	LPAExtendedData      uint8 = 1 << 2 // NUMDU and log page offsets
	LPATelemetry         uint8 = 1 << 3 // log pages 07h and 08h
	LPAPersistentEvent   uint8 = 1 << 4 // log page 0Dh
	LPASupportedLogPages uint8 = 1 << 5 // log pages 00h, 12h, 13h and the scope fields of 05h
	LPATelemetryArea4    uint8 = 1 << 6
)

// Bits of IdentifyController.ANACAP: the ANA states the controller may report, and properties of ANAGRPID.
const (
	ANACAPOptimized        uint8 = 1 << 0
	ANACAPNonOptimized     uint8 = 1 << 1
	ANACAPInaccessible     uint8 = 1 << 2
	ANACAPPersistentLoss   uint8 = 1 << 3
	ANACAPChange           uint8 = 1 << 4
	ANACAPGroupIDFixed     uint8 = 1 << 6 // ANAGRPID does not change while the namespace is attached
	ANACAPGroupIDSupported uint8 = 1 << 7 // a non-zero ANAGRPID in Namespace Management
)

// Bits of IdentifyController.ONCS, the optional NVM commands.
const (
	ONCSCompare                uint16 = 1 << 0
	ONCSWriteUncorrectable     uint16 = 1 << 1
	ONCSDatasetManagement      uint16 = 1 << 2
	ONCSWriteZeroes            uint16 = 1 << 3
	ONCSSaveAndSelectFeatures  uint16 = 1 << 4 // Set Features SV, Get Features SEL
	ONCSReservations           uint16 = 1 << 5
	ONCSTimestamp              uint16 = 1 << 6
	ONCSVerify                 uint16 = 1 << 7
	ONCSCopy                   uint16 = 1 << 8
	ONCSCopySingleAtomicity    uint16 = 1 << 9
	ONCSAllFastCopy            uint16 = 1 << 10
	ONCSMaxWriteZeroesWithDEAC uint16 = 1 << 11
	ONCSNamespaceZeroes        uint16 = 1 << 12
)

// FUSESCompareAndWrite is the bit of IdentifyController.FUSES for fused Compare and Write.
const FUSESCompareAndWrite uint16 = 1 << 0

// Bits of IdentifyController.FNA, the Format NVM attributes.
const (
	FNAFormatAll      uint8 = 1 << 0 // a format concerns all namespaces
	FNASecureEraseAll uint8 = 1 << 1 // a secure erase concerns all namespaces
	FNACryptoErase    uint8 = 1 << 2
	FNANoBroadcast    uint8 = 1 << 3 // NSIDBroadcast is not supported
)

// Bits of IdentifyController.NWPC: states of FeatNamespaceWriteProtect that are supported.
const (
	NWPCWriteProtect    uint8 = 1 << 0 // WPSNone and WPSWriteProtect
	NWPCUntilPowerCycle uint8 = 1 << 1
	NWPCPermanent       uint8 = 1 << 2
)

// Bits of IdentifyController.VWC, the volatile write cache. Exactly one of the two flush values is set by controllers of 1.4 and later.
const (
	VWCPresent          uint8 = 1 << 0
	VWCFlushNoBroadcast uint8 = 2 << 1 // Flush does not take NSIDBroadcast
	VWCFlushBroadcast   uint8 = 3 << 1 // Flush takes NSIDBroadcast
)

// Bits of IdentifyController.SGLS. The low two bits are one value: how SGLs are supported and aligned.
const (
	SGLSNoAlignment     uint32 = 1 // SGLs supported, any alignment
	SGLSDwordAlignment  uint32 = 2 // SGLs supported, dword address and length
	SGLSKeyed           uint32 = 1 << 2
	SGLSBitBucket       uint32 = 1 << 16
	SGLSMPTRContiguous  uint32 = 1 << 17
	SGLSLongerThanData  uint32 = 1 << 18
	SGLSMPTRSGL         uint32 = 1 << 19
	SGLSAddressOffset   uint32 = 1 << 20
	SGLSTransportBlocks uint32 = 1 << 21
)

// IdentifyNVMController is the NVM command set's controller data structure, CNS 06h with CSINVM (NVM Command Set Specification, "I/O
// Command Set Specific Identify Controller Data Structure"). Sizes are base-two logarithms in units of CAP.MPSMIN pages; 0 for no limit.
type IdentifyNVMController struct {
	VSL     uint8  // verify size limit
	WZSL    uint8  // write zeroes size limit
	WUSL    uint8  // write uncorrectable size limit
	DMRL    uint8  // dataset management ranges limit, in ranges; 0 for none reported
	DMRSL   uint32 // dataset management range size limit, in blocks; 0 for none reported
	DMSL    uint64 // dataset management size limit, in blocks; 0 for none reported
	KPIOCAP uint8  // key per I/O capabilities
	WZDSL   uint8  // write zeroes with deallocate size limit
	AOCS    uint16 // admin optional command support
	VER     VS     // version of the NVM Command Set Specification
	LBAMQF  uint8  // LBA migration queue format
	_       [4071]uint8
}

// IOCommandSets is the I/O command set data structure, CNS 1Ch: each vector is one supported combination, bit n for CSI n.
type IOCommandSets struct {
	Vectors [512]uint64
}

// ControllerListMax is the capacity of a ControllerList.
const ControllerListMax = 2047

// ControllerList is a controller list (Base Specification, "Controller List"): Num identifiers in increasing order.
type ControllerList struct {
	Num uint16
	IDs [ControllerListMax]uint16
}
