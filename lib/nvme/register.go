// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the controller properties: offsets in BAR0 and the bit fields of CAP, VS, CC, CSTS, AQA and CRTO.

package nvme

import (
	"fmt"
	"time"
)

// Offsets of the controller properties in BAR0, in bytes (Base Specification, "Controller Properties").
const (
	RegCAP    = 0x00 // 8 bytes: controller capabilities
	RegVS     = 0x08 // 4: version
	RegINTMS  = 0x0c // 4: interrupt mask set
	RegINTMC  = 0x10 // 4: interrupt mask clear
	RegCC     = 0x14 // 4: controller configuration
	RegCSTS   = 0x1c // 4: controller status
	RegNSSR   = 0x20 // 4: NVM subsystem reset
	RegAQA    = 0x24 // 4: admin queue attributes
	RegASQ    = 0x28 // 8: admin submission queue base address
	RegACQ    = 0x30 // 8: admin completion queue base address
	RegCMBLOC = 0x38 // 4: controller memory buffer location
	RegCMBSZ  = 0x3c // 4: controller memory buffer size
	RegBPINFO = 0x40 // 4: boot partition information
	RegBPRSEL = 0x44 // 4: boot partition read select
	RegBPMBL  = 0x48 // 8: boot partition memory buffer location
	RegCMBMSC = 0x50 // 8: controller memory buffer memory space control
	RegCMBSTS = 0x58 // 4: controller memory buffer status
	RegNSSD   = 0x64 // 4: NVM subsystem shutdown
	RegCRTO   = 0x68 // 4: controller ready timeouts

	RegDoorbells = 0x1000 // start of the doorbell registers (PCIe Transport Specification, "Doorbell registers")
)

// NSSRValue written to NSSR starts an NVM subsystem reset: "NVMe" in ASCII.
const NSSRValue uint32 = 0x4e564d65

// SQDoorbell returns the BAR0 offset of the tail doorbell of submission queue qid; dstrd is CAP.DSTRD (0 to 15).
func SQDoorbell(qid uint16, dstrd uint8) uint64 {
	return RegDoorbells + 2*uint64(qid)*(4<<(dstrd&0xf))
}

// CQDoorbell returns the BAR0 offset of the head doorbell of completion queue qid; dstrd is CAP.DSTRD (0 to 15).
func CQDoorbell(qid uint16, dstrd uint8) uint64 {
	return RegDoorbells + (2*uint64(qid)+1)*(4<<(dstrd&0xf))
}

// DoorbellAt tells which doorbell lies at BAR0 offset off. ok is false where off is not the first byte of a doorbell of queues 0 to 65535.
func DoorbellAt(off uint64, dstrd uint8) (qid uint16, completion, ok bool) {
	stride := uint64(4) << (dstrd & 0xf)
	if off < RegDoorbells || (off-RegDoorbells)%stride != 0 {
		return 0, false, false
	}
	n := (off - RegDoorbells) / stride
	if n/2 > 0xffff {
		return 0, false, false
	}
	return uint16(n / 2), n%2 == 1, true
}

// field returns the width bits of v that start at bit shift.
func field(v uint64, shift, width uint) uint64 { return v >> shift & (1<<width - 1) }

// withField returns v with the width bits at shift replaced by the low bits of x.
func withField(v uint64, shift, width uint, x uint64) uint64 {
	mask := uint64(1)<<width - 1
	return v&^(mask<<shift) | x&mask<<shift
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// CAP is the Controller Capabilities property.
type CAP uint64

// Bits of CAP.CSS, the supported I/O command sets.
const (
	CSSNVM    uint8 = 1 << 0 // NVM command set
	CSSIOCS   uint8 = 1 << 6 // one or more I/O command sets, see Identify CNS 1Ch
	CSSNoIOCS uint8 = 1 << 7 // no I/O command set: admin only
)

// Bits of CAP.CRMS, the supported ready modes.
const (
	CRMSWithMedia   uint8 = 1 << 0 // CRWMS: ready with media, set by every 2.x controller
	CRMSIndependent uint8 = 1 << 1 // CRIMS: ready independent of media
)

// MQES returns the maximum number of entries of an I/O queue, minus one.
func (c CAP) MQES() uint16 { return uint16(field(uint64(c), 0, 16)) }

// CQR tells whether queues have to be physically contiguous.
func (c CAP) CQR() bool { return field(uint64(c), 16, 1) != 0 }

// AMS returns the supported arbitration mechanisms besides round robin: bit 0 weighted round robin with urgent, bit 1 vendor specific.
func (c CAP) AMS() uint8 { return uint8(field(uint64(c), 17, 2)) }

// TO returns the worst time CSTS.RDY takes to follow CC.EN, in units of 500 ms.
func (c CAP) TO() uint8 { return uint8(field(uint64(c), 24, 8)) }

// Timeout returns TO as a duration.
func (c CAP) Timeout() time.Duration { return time.Duration(c.TO()) * 500 * time.Millisecond }

// DSTRD returns the doorbell stride: doorbells are 4 << DSTRD bytes apart.
func (c CAP) DSTRD() uint8 { return uint8(field(uint64(c), 32, 4)) }

// NSSRS tells whether NVM subsystem reset through NSSR is supported.
func (c CAP) NSSRS() bool { return field(uint64(c), 36, 1) != 0 }

// CSS returns the supported command sets: CSSNVM, CSSIOCS, CSSNoIOCS.
func (c CAP) CSS() uint8 { return uint8(field(uint64(c), 37, 8)) }

// BPS tells whether boot partitions are supported.
func (c CAP) BPS() bool { return field(uint64(c), 45, 1) != 0 }

// CPS returns the controller power scope.
func (c CAP) CPS() uint8 { return uint8(field(uint64(c), 46, 2)) }

// MPSMIN returns the smallest memory page size, as the power of two above 4 KiB.
func (c CAP) MPSMIN() uint8 { return uint8(field(uint64(c), 48, 4)) }

// MPSMAX returns the largest memory page size, as the power of two above 4 KiB.
func (c CAP) MPSMAX() uint8 { return uint8(field(uint64(c), 52, 4)) }

// PMRS tells whether a persistent memory region is supported.
func (c CAP) PMRS() bool { return field(uint64(c), 56, 1) != 0 }

// CMBS tells whether a controller memory buffer is supported.
func (c CAP) CMBS() bool { return field(uint64(c), 57, 1) != 0 }

// NSSS tells whether NVM subsystem shutdown through NSSD is supported.
func (c CAP) NSSS() bool { return field(uint64(c), 58, 1) != 0 }

// CRMS returns the supported ready modes: CRMSWithMedia, CRMSIndependent.
func (c CAP) CRMS() uint8 { return uint8(field(uint64(c), 59, 2)) }

func (c CAP) with(shift, width uint, x uint64) CAP { return CAP(withField(uint64(c), shift, width, x)) }

// WithMQES returns c with MQES set (entries minus one; at least 1).
func (c CAP) WithMQES(v uint16) CAP { return c.with(0, 16, uint64(v)) }

// WithCQR returns c with CQR set.
func (c CAP) WithCQR(v bool) CAP { return c.with(16, 1, bit(v)) }

// WithTO returns c with TO set, in units of 500 ms.
func (c CAP) WithTO(v uint8) CAP { return c.with(24, 8, uint64(v)) }

// WithDSTRD returns c with DSTRD set (0 to 15).
func (c CAP) WithDSTRD(v uint8) CAP { return c.with(32, 4, uint64(v)) }

// WithNSSRS returns c with NSSRS set.
func (c CAP) WithNSSRS(v bool) CAP { return c.with(36, 1, bit(v)) }

// WithCSS returns c with CSS set.
func (c CAP) WithCSS(v uint8) CAP { return c.with(37, 8, uint64(v)) }

// WithMPSMIN returns c with MPSMIN set (0 to 15).
func (c CAP) WithMPSMIN(v uint8) CAP { return c.with(48, 4, uint64(v)) }

// WithMPSMAX returns c with MPSMAX set (0 to 15).
func (c CAP) WithMPSMAX(v uint8) CAP { return c.with(52, 4, uint64(v)) }

// WithCRMS returns c with CRMS set.
func (c CAP) WithCRMS(v uint8) CAP { return c.with(59, 2, uint64(v)) }

// VS is the Version property, and the VER field of Identify Controller.
type VS uint32

// MakeVS returns the version major.minor.tertiary.
func MakeVS(major uint16, minor, tertiary uint8) VS {
	return VS(uint32(major)<<16 | uint32(minor)<<8 | uint32(tertiary))
}

// Major returns the major version number.
func (v VS) Major() uint16 { return uint16(v >> 16) }

// Minor returns the minor version number.
func (v VS) Minor() uint8 { return uint8(v >> 8) }

// Tertiary returns the tertiary version number.
func (v VS) Tertiary() uint8 { return uint8(v) }

// String returns the version as the specification prints it: "1.4", "1.2.1".
func (v VS) String() string {
	if v.Tertiary() == 0 {
		return fmt.Sprintf("%d.%d", v.Major(), v.Minor())
	}
	return fmt.Sprintf("%d.%d.%d", v.Major(), v.Minor(), v.Tertiary())
}

// CC is the Controller Configuration property.
type CC uint32

// Values of CC.CSS, the selected I/O command sets.
const (
	CCCSSNVM   uint8 = 0 // NVM command set
	CCCSSAllIO uint8 = 6 // all supported I/O command sets
	CCCSSAdmin uint8 = 7 // admin commands only
)

// Values of CC.SHN, the shutdown notification.
const (
	SHNNone   uint8 = 0
	SHNNormal uint8 = 1
	SHNAbrupt uint8 = 2
)

// EN tells whether the controller is enabled.
func (c CC) EN() bool { return field(uint64(c), 0, 1) != 0 }

// CSS returns the selected I/O command sets.
func (c CC) CSS() uint8 { return uint8(field(uint64(c), 4, 3)) }

// MPS returns the host memory page size, as the power of two above 4 KiB.
func (c CC) MPS() uint8 { return uint8(field(uint64(c), 7, 4)) }

// PageSize returns the host memory page size in bytes, 4 KiB to 128 MiB.
func (c CC) PageSize() uint64 { return 1 << (12 + c.MPS()) }

// AMS returns the selected arbitration mechanism; 0 is round robin.
func (c CC) AMS() uint8 { return uint8(field(uint64(c), 11, 3)) }

// SHN returns the shutdown notification.
func (c CC) SHN() uint8 { return uint8(field(uint64(c), 14, 2)) }

// IOSQES returns the base-two logarithm of the size of I/O submission queue entries.
func (c CC) IOSQES() uint8 { return uint8(field(uint64(c), 16, 4)) }

// IOCQES returns the base-two logarithm of the size of I/O completion queue entries.
func (c CC) IOCQES() uint8 { return uint8(field(uint64(c), 20, 4)) }

// CRIME tells whether the controller may become ready before its media.
func (c CC) CRIME() bool { return field(uint64(c), 24, 1) != 0 }

func (c CC) with(shift, width uint, x uint64) CC { return CC(withField(uint64(c), shift, width, x)) }

// WithEN returns c with EN set.
func (c CC) WithEN(v bool) CC { return c.with(0, 1, bit(v)) }

// WithCSS returns c with CSS set (0 to 7).
func (c CC) WithCSS(v uint8) CC { return c.with(4, 3, uint64(v)) }

// WithMPS returns c with MPS set (0 to 15).
func (c CC) WithMPS(v uint8) CC { return c.with(7, 4, uint64(v)) }

// WithAMS returns c with AMS set (0 to 7).
func (c CC) WithAMS(v uint8) CC { return c.with(11, 3, uint64(v)) }

// WithSHN returns c with SHN set (0 to 3).
func (c CC) WithSHN(v uint8) CC { return c.with(14, 2, uint64(v)) }

// WithIOSQES returns c with IOSQES set (0 to 15).
func (c CC) WithIOSQES(v uint8) CC { return c.with(16, 4, uint64(v)) }

// WithIOCQES returns c with IOCQES set (0 to 15).
func (c CC) WithIOCQES(v uint8) CC { return c.with(20, 4, uint64(v)) }

// CSTS is the Controller Status property.
type CSTS uint32

// Values of CSTS.SHST, the shutdown status.
const (
	SHSTNormal    uint8 = 0 // no shutdown requested
	SHSTOccurring uint8 = 1 // shutdown in progress
	SHSTComplete  uint8 = 2 // shutdown complete
)

// RDY tells whether the controller is ready to process commands.
func (c CSTS) RDY() bool { return field(uint64(c), 0, 1) != 0 }

// CFS tells whether the controller has had a fatal error.
func (c CSTS) CFS() bool { return field(uint64(c), 1, 1) != 0 }

// SHST returns the shutdown status.
func (c CSTS) SHST() uint8 { return uint8(field(uint64(c), 2, 2)) }

// NSSRO tells whether an NVM subsystem reset occurred.
func (c CSTS) NSSRO() bool { return field(uint64(c), 4, 1) != 0 }

// PP tells whether processing is paused, for example while firmware is activated.
func (c CSTS) PP() bool { return field(uint64(c), 5, 1) != 0 }

// ST tells whether SHST speaks of an NVM subsystem shutdown.
func (c CSTS) ST() bool { return field(uint64(c), 6, 1) != 0 }

func (c CSTS) with(shift, width uint, x uint64) CSTS {
	return CSTS(withField(uint64(c), shift, width, x))
}

// WithRDY returns c with RDY set.
func (c CSTS) WithRDY(v bool) CSTS { return c.with(0, 1, bit(v)) }

// WithCFS returns c with CFS set.
func (c CSTS) WithCFS(v bool) CSTS { return c.with(1, 1, bit(v)) }

// WithSHST returns c with SHST set (0 to 3).
func (c CSTS) WithSHST(v uint8) CSTS { return c.with(2, 2, uint64(v)) }

// WithNSSRO returns c with NSSRO set.
func (c CSTS) WithNSSRO(v bool) CSTS { return c.with(4, 1, bit(v)) }

// WithPP returns c with PP set.
func (c CSTS) WithPP(v bool) CSTS { return c.with(5, 1, bit(v)) }

// AQA is the Admin Queue Attributes property. Both sizes are entries minus one.
type AQA uint32

// MakeAQA returns AQA for queues of asqs+1 and acqs+1 entries (each 1 to 4095).
func MakeAQA(asqs, acqs uint16) AQA {
	return AQA(withField(uint64(asqs)&0xfff, 16, 12, uint64(acqs)))
}

// ASQS returns the admin submission queue size, minus one.
func (a AQA) ASQS() uint16 { return uint16(field(uint64(a), 0, 12)) }

// ACQS returns the admin completion queue size, minus one.
func (a AQA) ACQS() uint16 { return uint16(field(uint64(a), 16, 12)) }

// CRTO is the Controller Ready Timeouts property. Both times are in units of 500 ms.
type CRTO uint32

// MakeCRTO returns CRTO for the given timeouts, in units of 500 ms.
func MakeCRTO(crwmt, crimt uint16) CRTO { return CRTO(uint32(crwmt) | uint32(crimt)<<16) }

// CRWMT returns the controller ready with media timeout, in units of 500 ms.
func (c CRTO) CRWMT() uint16 { return uint16(c) }

// CRIMT returns the controller ready independent of media timeout, in units of 500 ms.
func (c CRTO) CRIMT() uint16 { return uint16(c >> 16) }
