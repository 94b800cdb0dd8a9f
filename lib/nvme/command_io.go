// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the command dwords and data structures of NVM command set I/O commands, in the same manner as command_admin.go.

package nvme

// RW holds the fields that Read, Write, Compare, Verify, Write Zeroes and Write Uncorrectable share (NVM Command Set Specification, "NVM
// Command Set Commands"). A field that a command does not define reads as whatever the host put there.
type RW struct {
	SLBA   uint64 // first block
	NLB    uint16 // blocks, minus one
	FUA    bool   // force unit access
	LR     bool   // limited retry
	PRINFO uint8  // protection information: PRACT in bit 3, PRCHK in bits 2:0
	DEAC   bool   // Write Zeroes: deallocate
	STC    bool   // storage tag check
	DTYPE  uint8  // Write: directive type, 0 to 15
	DSPEC  uint16 // Write: directive specific
	DSM    uint8  // Read, Write: dataset management hints
}

// RW reads the fields of Read, Write and their kin.
func (e *SQE) RW() RW {
	return RW{
		SLBA:   uint64(e.CDW10) | uint64(e.CDW11)<<32,
		NLB:    uint16(e.CDW12),
		FUA:    e.CDW12>>30&1 != 0,
		LR:     e.CDW12>>31 != 0,
		PRINFO: uint8(e.CDW12>>26) & 0xf,
		DEAC:   e.CDW12>>25&1 != 0,
		STC:    e.CDW12>>24&1 != 0,
		DTYPE:  uint8(e.CDW12>>20) & 0xf,
		DSPEC:  uint16(e.CDW13 >> 16),
		DSM:    uint8(e.CDW13),
	}
}

// Blocks returns the number of blocks, 1 to 65536.
func (c RW) Blocks() uint32 { return uint32(c.NLB) + 1 }

// Put writes the command dwords of e, but not its opcode.
func (c RW) Put(e *SQE) {
	e.CDW10 = uint32(c.SLBA)
	e.CDW11 = uint32(c.SLBA >> 32)
	e.CDW12 = uint32(c.NLB) | uint32(c.DTYPE&0xf)<<20 | uint32(bit(c.STC))<<24 | uint32(bit(c.DEAC))<<25 |
		uint32(c.PRINFO&0xf)<<26 | uint32(bit(c.FUA))<<30 | uint32(bit(c.LR))<<31
	e.CDW13 = uint32(c.DSM) | uint32(c.DSPEC)<<16
}

// DatasetManagement holds the fields of Dataset Management. The data are Ranges DSMRange structures.
type DatasetManagement struct {
	NR  uint8 // ranges, minus one
	IDR bool  // integral dataset for read
	IDW bool  // integral dataset for write
	AD  bool  // deallocate
}

// DSMRangesMax is the most ranges one Dataset Management command holds.
const DSMRangesMax = 256

// DatasetManagement reads the fields of Dataset Management.
func (e *SQE) DatasetManagement() DatasetManagement {
	return DatasetManagement{
		NR:  uint8(e.CDW10),
		IDR: e.CDW11&1 != 0,
		IDW: e.CDW11>>1&1 != 0,
		AD:  e.CDW11>>2&1 != 0,
	}
}

// Ranges returns the number of ranges, 1 to DSMRangesMax.
func (c DatasetManagement) Ranges() int { return int(c.NR) + 1 }

// Put writes opcode and command dwords of e.
func (c DatasetManagement) Put(e *SQE) {
	e.Opcode = uint8(IODatasetManagement)
	e.CDW10 = uint32(c.NR)
	e.CDW11 = uint32(bit(c.IDR) | bit(c.IDW)<<1 | bit(c.AD)<<2)
}

// DSMRange is a range of Dataset Management.
type DSMRange struct {
	Attributes uint32 // context attributes, hints only
	NLB        uint32 // blocks; not minus one, 0 for none
	SLBA       uint64 // first block
}

// DSMRangeSize is the size of a DSMRange, in bytes.
const DSMRangeSize = 16

// Copy holds the fields of Copy. The data are Ranges descriptors of the layout that Format selects.
type Copy struct {
	SDLBA   uint64 // first block of the destination
	NR      uint8  // source ranges, minus one
	Format  uint8  // descriptor format: 0 and 2 CopyRange, 1 and 3 CopyRangeExtended; 0 to 15
	PRINFOR uint8  // protection information for the reads, 0 to 15
	PRINFOW uint8  // protection information for the writes, 0 to 15
	STCW    bool   // storage tag check for the writes
	DTYPE   uint8  // directive type, 0 to 15
	FUA     bool   // force unit access
	LR      bool   // limited retry
	DSPEC   uint16 // directive specific
}

// CopyRangesMax is the most source ranges one Copy command holds.
const CopyRangesMax = 256

// Copy reads the fields of Copy.
func (e *SQE) Copy() Copy {
	return Copy{
		SDLBA:   uint64(e.CDW10) | uint64(e.CDW11)<<32,
		NR:      uint8(e.CDW12),
		Format:  uint8(e.CDW12>>8) & 0xf,
		PRINFOR: uint8(e.CDW12>>12) & 0xf,
		PRINFOW: uint8(e.CDW12>>26) & 0xf,
		STCW:    e.CDW12>>24&1 != 0,
		DTYPE:   uint8(e.CDW12>>20) & 0xf,
		FUA:     e.CDW12>>30&1 != 0,
		LR:      e.CDW12>>31 != 0,
		DSPEC:   uint16(e.CDW13 >> 16),
	}
}

// Ranges returns the number of source ranges, 1 to CopyRangesMax.
func (c Copy) Ranges() int { return int(c.NR) + 1 }

// Put writes opcode and command dwords of e.
func (c Copy) Put(e *SQE) {
	e.Opcode = uint8(IOCopy)
	e.CDW10 = uint32(c.SDLBA)
	e.CDW11 = uint32(c.SDLBA >> 32)
	e.CDW12 = uint32(c.NR) | uint32(c.Format&0xf)<<8 | uint32(c.PRINFOR&0xf)<<12 | uint32(c.DTYPE&0xf)<<20 |
		uint32(bit(c.STCW))<<24 | uint32(c.PRINFOW&0xf)<<26 | uint32(bit(c.FUA))<<30 | uint32(bit(c.LR))<<31
	e.CDW13 = uint32(c.DSPEC) << 16
}

// CopyRange is a source range of Copy in descriptor formats 0 and 2: 16-bit guard protection information.
type CopyRange struct {
	SNSID  uint32 // source namespace; format 2 only
	_      [4]uint8
	SLBA   uint64 // first block
	NLB    uint16 // blocks, minus one
	_      [4]uint8
	SOPT   uint16 // source options; format 2 only: bit 15 fast copy only
	EILBRT uint32 // expected initial logical block reference tag
	ELBAT  uint16 // expected logical block application tag
	ELBATM uint16 // and its mask
}

// CopyRangeExtended is a source range of Copy in descriptor formats 1 and 3: 32-bit and 64-bit guard protection information.
type CopyRangeExtended struct {
	SNSID  uint32 // source namespace; format 3 only
	_      [4]uint8
	SLBA   uint64 // first block
	NLB    uint16 // blocks, minus one
	_      [4]uint8
	SOPT   uint16 // source options; format 3 only: bit 15 fast copy only
	_      [2]uint8
	ELBT   [10]uint8 // expected logical block storage and reference tags
	ELBAT  uint16    // expected logical block application tag
	ELBATM uint16    // and its mask
}
