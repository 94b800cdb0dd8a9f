// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the Identify data of namespaces: the NVM command set's, the command set independent ones, and identifier descriptors.

package nvme

import "fmt"

// NSListMax is the capacity of an NSList.
const NSListMax = 1024

// NSList is a namespace list (Base Specification, "Namespace List"): NSIDs in increasing order, unused entries zero.
type NSList struct {
	NSIDs [NSListMax]uint32
}

// LBAFormat is an LBA format of Identify Namespace.
type LBAFormat struct {
	MS    uint16 // metadata size, in bytes
	LBADS uint8  // LBA data size, base-two logarithm in bytes: 9 for 512, 12 for 4096; 0 for a format that is not available
	RP    uint8  // relative performance: 0 best to 3 degraded
}

// IdentifyNamespace is the NVM command set's Identify Namespace data structure, CNS 00h (NVM Command Set Specification, "Identify
// Namespace Data Structure").
type IdentifyNamespace struct {
	NSZE     uint64    // size, in blocks
	NCAP     uint64    // capacity, in blocks
	NUSE     uint64    // utilization, in blocks
	NSFEAT   uint8     // NSFEAT bits
	NLBAF    uint8     // number of LBA formats, minus one
	FLBAS    uint8     // format in use: index in bits 3:0 and 6:5, bit 4 set for metadata at the end of each block
	MC       uint8     // metadata capabilities
	DPC      uint8     // end-to-end data protection capabilities
	DPS      uint8     // end-to-end data protection settings
	NMIC     uint8     // NMIC bits
	RESCAP   uint8     // RESCAP bits
	FPI      uint8     // format progress: bit 7 supported, bits 6:0 percentage that remains
	DLFEAT   uint8     // DLFEAT bits
	NAWUN    uint16    // atomic write unit normal, in blocks minus one
	NAWUPF   uint16    // atomic write unit power fail, in blocks minus one
	NACWU    uint16    // atomic compare and write unit, in blocks minus one
	NABSN    uint16    // atomic boundary size normal, in blocks minus one
	NABO     uint16    // atomic boundary offset, in blocks
	NABSPF   uint16    // atomic boundary size power fail, in blocks minus one
	NOIOB    uint16    // optimal I/O boundary, in blocks; 0 for none
	NVMCAP   Uint128   // NVM capacity, in bytes
	NPWG     uint16    // preferred write granularity, in blocks minus one; valid with NSFEATOptimal
	NPWA     uint16    // preferred write alignment, in blocks minus one
	NPDG     uint16    // preferred deallocate granularity, in blocks minus one
	NPDA     uint16    // preferred deallocate alignment, in blocks minus one
	NOWS     uint16    // optimal write size, in blocks minus one
	MSSRL    uint16    // maximum single source range length of Copy, in blocks
	MCL      uint32    // maximum length of Copy, in blocks
	MSRC     uint8     // maximum source range count of Copy, minus one
	KPIOS    uint8     // key per I/O status
	NULBAF   uint8     // number of LBA formats with unique attributes
	_        uint8     //
	KPIODAAG uint32    // key per I/O data access alignment and granularity
	_        [4]uint8  //
	ANAGRPID uint32    // ANA group; 0 where ANA reporting is not supported
	_        [3]uint8  //
	NSATTR   uint8     // bit 0: write protected
	NVMSETID uint16    // NVM set; 0 for none
	ENDGID   uint16    // endurance group; 0 for none
	NGUID    [16]uint8 // big-endian; zero for none
	EUI64    [8]uint8  // big-endian; zero for none
	LBAF     [64]LBAFormat
	VS       [3712]uint8 // vendor specific
}

// Bits of IdentifyNamespace.NSFEAT. IdentifyIndependentNamespace has bits of its own.
const (
	NSFEATThin         uint8 = 1 << 0 // NCAP may be below NSZE
	NSFEATAtomic       uint8 = 1 << 1 // NAWUN, NAWUPF and NACWU are defined
	NSFEATDULBE        uint8 = 1 << 2 // Deallocated or Unwritten Logical Block error is supported
	NSFEATUIDNotReused uint8 = 1 << 3 // NGUID and EUI64 are never reused
	NSFEATOptimal      uint8 = 1 << 4 // NPWG, NPWA, NPDG, NPDA and NOWS are defined
)

// NMICShared is the bit of NMIC for a namespace that two or more controllers may attach at once.
const NMICShared uint8 = 1 << 0

// Bits of RESCAP, the reservation capabilities.
const (
	RESCAPPersistThroughPowerLoss        uint8 = 1 << 0
	RESCAPWriteExclusive                 uint8 = 1 << 1
	RESCAPExclusiveAccess                uint8 = 1 << 2
	RESCAPWriteExclusiveRegistrantsOnly  uint8 = 1 << 3
	RESCAPExclusiveAccessRegistrantsOnly uint8 = 1 << 4
	RESCAPWriteExclusiveAllRegistrants   uint8 = 1 << 5
	RESCAPExclusiveAccessAllRegistrants  uint8 = 1 << 6
	RESCAPIgnoreExistingKey13            uint8 = 1 << 7 // Ignore Existing Key as in revision 1.3 and later
)

// Values and bits of IdentifyNamespace.DLFEAT: what deallocated blocks read as, and how to deallocate.
const (
	DLFEATReadsZeroes            uint8 = 1 // value of bits 2:0
	DLFEATReadsOnes              uint8 = 2 // value of bits 2:0
	DLFEATWriteZeroesDeallocates uint8 = 1 << 3
	DLFEATGuardCRC               uint8 = 1 << 4
)

// NSATTRWriteProtected is the bit of NSATTR for a write protected namespace.
const NSATTRWriteProtected uint8 = 1 << 0

// FPISupported is the bit of FPI for a namespace that tells how much of a format remains.
const FPISupported uint8 = 1 << 7

// FormatIndex returns the index into LBAF of the format in use, 0 to 63.
func (n *IdentifyNamespace) FormatIndex() uint8 {
	if n.NLBAF < 16 {
		return n.FLBAS & 0xf
	}
	return n.FLBAS&0xf | n.FLBAS>>1&0x30
}

// BlockSize returns the data size of a block in the format in use, in bytes; ok is false where LBADS is outside 9 (the least the
// specification allows) to 31.
func (n *IdentifyNamespace) BlockSize() (size uint32, ok bool) {
	ds := n.LBAF[n.FormatIndex()].LBADS
	if ds < 9 || ds > 31 {
		return 0, false
	}
	return 1 << ds, true
}

// IdentifyNVMNamespace is the NVM command set specific Identify Namespace data structure, CNS 05h with CSINVM (NVM Command Set
// Specification, "I/O Command Set Specific Identify Namespace Data Structure").
type IdentifyNVMNamespace struct {
	LBSTM  uint64     // logical block storage tag mask
	PIC    uint8      // protection information capabilities
	PIFA   uint8      // protection information format attributes
	_      [2]uint8   //
	ELBAF  [64]uint32 // extended LBA formats: storage tag size in bits 6:0, protection information format in bits 8:7
	NPDGL  uint32     // preferred deallocate granularity large, in blocks
	NPRG   uint32     // preferred read granularity, in blocks
	NPRA   uint32     // preferred read alignment, in blocks
	NORS   uint32     // optimal read size, in blocks
	NPDAL  uint32     // preferred deallocate alignment large, in blocks
	LBAPSS uint32     // LBA format placement shard size
	TLBAAG uint32     // tracked LBA allocation granularity
	_      [3800]uint8
}

// IdentifyIndependentNamespace is the I/O command set independent Identify Namespace data structure, CNS 08h.
type IdentifyIndependentNamespace struct {
	NSFEAT   uint8  // IndependentNSFEAT bits
	NMIC     uint8  // NMIC bits
	RESCAP   uint8  // RESCAP bits
	FPI      uint8  // as IdentifyNamespace.FPI
	ANAGRPID uint32 // as IdentifyNamespace.ANAGRPID
	NSATTR   uint8  // as IdentifyNamespace.NSATTR
	_        uint8
	NVMSETID uint16
	ENDGID   uint16
	NSTAT    uint8  // NSTATReady
	KPIOS    uint8  // key per I/O status
	MAXKT    uint16 // maximum key tag
	_        [2]uint8
	RGRPID   uint32 // reachability group
	_        [4072]uint8
}

// Bits of IdentifyIndependentNamespace.NSFEAT.
const (
	IndependentNSFEATUIDNotReused uint8 = 1 << 3
	IndependentNSFEATRotational   uint8 = 1 << 4
	IndependentNSFEATNoVWC        uint8 = 1 << 5 // no volatile write cache in this namespace
)

// NSTATReady is the bit of IdentifyIndependentNamespace.NSTAT for a namespace that is ready for media access.
const NSTATReady uint8 = 1 << 0

// NIDT is the type of a namespace identifier descriptor, CNS 03h (Base Specification, "Namespace Identification Descriptor list").
type NIDT uint8

// Values of NIDT; the comment gives the identifier's length.
const (
	NIDTEUI64 NIDT = 1 // 8 bytes
	NIDTNGUID NIDT = 2 // 16 bytes
	NIDTUUID  NIDT = 3 // 16 bytes
	NIDTCSI   NIDT = 4 // 1 byte
)

// IDDescriptor is one namespace identifier.
type IDDescriptor struct {
	Type NIDT
	ID   []byte // 1 to 255 bytes
}

const idDescriptorHeader = 4

// AppendIDDescriptor appends a namespace identifier descriptor to dst. A caller keeps the list within IdentifySize; a list shorter than
// that ends with a zero byte, so a zeroed remainder ends it. id holds 1 to 255 bytes.
func AppendIDDescriptor(dst []byte, t NIDT, id []byte) []byte {
	dst = append(dst, uint8(t), uint8(len(id)), 0, 0)
	return append(dst, id...)
}

// ParseIDDescriptors splits a namespace identifier descriptor list, as returned for CNS 03h, into its descriptors, whose IDs alias list.
// A descriptor of length zero ends the list; one that reaches past the end of list is an error. Unknown types are returned.
func ParseIDDescriptors(list []byte) ([]IDDescriptor, error) {
	var ds []IDDescriptor
	for off := 0; len(list)-off >= idDescriptorHeader && list[off+1] != 0; {
		start := off + idDescriptorHeader
		end := start + int(list[off+1])
		if end > len(list) {
			return nil, fmt.Errorf("namespace identifier descriptor at byte %d: %d bytes of identifier reach past the end of the list (%d bytes)",
				off, list[off+1], len(list))
		}
		ds = append(ds, IDDescriptor{Type: NIDT(list[off]), ID: list[start:end:end]})
		off = end
	}
	return ds, nil
}
