// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the two queue entry formats: submission (64 bytes) and completion (16 bytes).

package nvme

// Sizes of queue entries in bytes, and their base-two logarithms as CC.IOSQES and CC.IOCQES carry them.
const (
	SQESize  = 64
	CQESize  = 16
	SQEShift = 6
	CQEShift = 4
)

// NSIDBroadcast addresses all namespaces of a controller (Base Specification, "Namespace Identifiers").
const NSIDBroadcast uint32 = 0xffffffff

// SQE is a submission queue entry, Common Command Format (Base Specification, "Submission Queue Entry").
type SQE struct {
	Opcode uint8  // CDW0 bits 7:0; see AdminOpcode and IOOpcode
	Flags  uint8  // CDW0 bits 15:8: FUSE in bits 1:0, PSDT in bits 7:6
	CID    uint16 // CDW0 bits 31:16: command identifier, chosen by the host
	NSID   uint32
	CDW2   uint32
	CDW3   uint32
	MPTR   uint64 // metadata pointer, or address of one SGL segment (PSDT = 10b)
	PRP1   uint64 // DPTR, first half: PRP entry 1, or the first half of SGL1
	PRP2   uint64 // DPTR, second half: PRP entry 2, or the second half of SGL1
	CDW10  uint32
	CDW11  uint32
	CDW12  uint32
	CDW13  uint32
	CDW14  uint32
	CDW15  uint32
}

// Fuse is the FUSE field of a command: whether it is one of a fused pair.
type Fuse uint8

// Values of FUSE. The remaining value, 3, is reserved.
const (
	FuseNone   Fuse = 0
	FuseFirst  Fuse = 1
	FuseSecond Fuse = 2
)

// PSDT is the "PRP or SGL for Data Transfer" field of a command.
type PSDT uint8

// Values of PSDT. The remaining value, 3, is reserved.
const (
	PSDTPRP        PSDT = 0 // PRPs
	PSDTSGL        PSDT = 1 // SGL; MPTR is the address of a contiguous buffer
	PSDTSGLMPTRSGL PSDT = 2 // SGL; MPTR is the address of one SGL descriptor
)

// Fuse returns the FUSE field.
func (e *SQE) Fuse() Fuse { return Fuse(e.Flags & 0x3) }

// PSDT returns the PSDT field.
func (e *SQE) PSDT() PSDT { return PSDT(e.Flags >> 6) }

// SetFuse stores the FUSE field; only the two low bits of f count.
func (e *SQE) SetFuse(f Fuse) { e.Flags = e.Flags&^0x3 | uint8(f)&0x3 }

// SetPSDT stores the PSDT field; only the two low bits of p count.
func (e *SQE) SetPSDT(p PSDT) { e.Flags = e.Flags&0x3f | uint8(p)<<6 }

// CQE is a completion queue entry (Base Specification, "Common Completion Queue Entry Layout").
type CQE struct {
	DW0    uint32 // command specific
	DW1    uint32 // command specific
	SQHead uint16 // DW2 bits 15:0: head of the submission queue, 0 to its size - 1
	SQID   uint16 // DW2 bits 31:16: submission queue the command came from
	CID    uint16 // DW3 bits 15:0
	Status uint16 // DW3 bits 31:16: phase tag in bit 0, status field in bits 15:1
}

// Phase returns the phase tag.
func (e *CQE) Phase() bool { return e.Status&1 != 0 }

// StatusField returns the status field without the phase tag.
func (e *CQE) StatusField() Status { return Status(e.Status >> 1) }

// SetStatus stores status field and phase tag; bit 15 of s is lost, since the field has 15 bits.
func (e *CQE) SetStatus(s Status, phase bool) {
	e.Status = uint16(s) << 1
	if phase {
		e.Status |= 1
	}
}

// DW2 returns the third dword: SQHead and SQID.
func (e *CQE) DW2() uint32 { return uint32(e.SQHead) | uint32(e.SQID)<<16 }

// DW3 returns the last dword, CID, phase and status, which a controller stores after the others and in one piece.
func (e *CQE) DW3() uint32 { return uint32(e.CID) | uint32(e.Status)<<16 }
