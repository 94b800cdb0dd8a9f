// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the command dwords of admin commands: for each command a struct of its fields, a method of SQE that reads them and a
// Put method that writes them. Readers accept any bit pattern and leave checking to the controller.

package nvme

// Queue priorities, CreateSQ.QPRIO; they mean something only with weighted round robin arbitration.
const (
	QPRIOUrgent uint8 = 0
	QPRIOHigh   uint8 = 1
	QPRIOMedium uint8 = 2
	QPRIOLow    uint8 = 3
)

// CreateCQ holds the fields of Create I/O Completion Queue. PRP1 has the queue's address.
type CreateCQ struct {
	QID   uint16
	QSIZE uint16 // entries, minus one
	PC    bool   // physically contiguous
	IEN   bool   // interrupts enabled
	IV    uint16 // interrupt vector
}

// CreateCQ reads the fields of Create I/O Completion Queue.
func (e *SQE) CreateCQ() CreateCQ {
	return CreateCQ{
		QID:   uint16(e.CDW10),
		QSIZE: uint16(e.CDW10 >> 16),
		PC:    e.CDW11&1 != 0,
		IEN:   e.CDW11>>1&1 != 0,
		IV:    uint16(e.CDW11 >> 16),
	}
}

// Put writes opcode and command dwords of e.
func (c CreateCQ) Put(e *SQE) {
	e.Opcode = uint8(AdminCreateIOCQ)
	e.CDW10 = uint32(c.QID) | uint32(c.QSIZE)<<16
	e.CDW11 = uint32(bit(c.PC) | bit(c.IEN)<<1 | uint64(c.IV)<<16)
}

// CreateSQ holds the fields of Create I/O Submission Queue. PRP1 has the queue's address.
type CreateSQ struct {
	QID      uint16
	QSIZE    uint16 // entries, minus one
	PC       bool   // physically contiguous
	QPRIO    uint8  // 0 to 3
	CQID     uint16 // completion queue to use
	NVMSETID uint16
}

// CreateSQ reads the fields of Create I/O Submission Queue.
func (e *SQE) CreateSQ() CreateSQ {
	return CreateSQ{
		QID:      uint16(e.CDW10),
		QSIZE:    uint16(e.CDW10 >> 16),
		PC:       e.CDW11&1 != 0,
		QPRIO:    uint8(e.CDW11>>1) & 0x3,
		CQID:     uint16(e.CDW11 >> 16),
		NVMSETID: uint16(e.CDW12),
	}
}

// Put writes opcode and command dwords of e.
func (c CreateSQ) Put(e *SQE) {
	e.Opcode = uint8(AdminCreateIOSQ)
	e.CDW10 = uint32(c.QID) | uint32(c.QSIZE)<<16
	e.CDW11 = uint32(bit(c.PC) | uint64(c.QPRIO&0x3)<<1 | uint64(c.CQID)<<16)
	e.CDW12 = uint32(c.NVMSETID)
}

// DeleteQID reads the queue identifier of Delete I/O Submission Queue and Delete I/O Completion Queue, CDW10 bits 15:0.
func (e *SQE) DeleteQID() uint16 { return uint16(e.CDW10) }

// Identify holds the fields of Identify. PRP1 and PRP2 have the buffer of IdentifySize bytes.
type Identify struct {
	CNS       CNS
	CNTID     uint16 // controller identifier
	CNSSID    uint16 // CNS specific identifier
	CSI       CSI
	UUIDIndex uint8 // 0 to 127; 0 for none
}

// Identify reads the fields of Identify.
func (e *SQE) Identify() Identify {
	return Identify{
		CNS:       CNS(e.CDW10),
		CNTID:     uint16(e.CDW10 >> 16),
		CNSSID:    uint16(e.CDW11),
		CSI:       CSI(e.CDW11 >> 24),
		UUIDIndex: uint8(e.CDW14) & 0x7f,
	}
}

// Put writes opcode and command dwords of e.
func (c Identify) Put(e *SQE) {
	e.Opcode = uint8(AdminIdentify)
	e.CDW10 = uint32(c.CNS) | uint32(c.CNTID)<<16
	e.CDW11 = uint32(c.CNSSID) | uint32(c.CSI)<<24
	e.CDW14 = uint32(c.UUIDIndex & 0x7f)
}

// GetLogPage holds the fields of Get Log Page.
type GetLogPage struct {
	LID       LogPageID
	LSP       uint8  // log specific parameter, 0 to 127
	RAE       bool   // retain asynchronous event: reading does not clear it
	NUMD      uint32 // dwords to transfer, minus one
	LSI       uint16 // log specific identifier
	LPO       uint64 // offset: in bytes, or with OT an index of entries
	UUIDIndex uint8  // 0 to 127
	OT        bool   // offset type: LPO is an index
	CSI       CSI
}

// GetLogPage reads the fields of Get Log Page.
func (e *SQE) GetLogPage() GetLogPage {
	return GetLogPage{
		LID:       LogPageID(e.CDW10),
		LSP:       uint8(e.CDW10>>8) & 0x7f,
		RAE:       e.CDW10>>15&1 != 0,
		NUMD:      e.CDW10>>16 | e.CDW11<<16,
		LSI:       uint16(e.CDW11 >> 16),
		LPO:       uint64(e.CDW12) | uint64(e.CDW13)<<32,
		UUIDIndex: uint8(e.CDW14) & 0x7f,
		OT:        e.CDW14>>23&1 != 0,
		CSI:       CSI(e.CDW14 >> 24),
	}
}

// Bytes returns the length of the transfer, 4 bytes to 16 GiB.
func (c GetLogPage) Bytes() uint64 { return (uint64(c.NUMD) + 1) * 4 }

// Put writes opcode and command dwords of e.
func (c GetLogPage) Put(e *SQE) {
	e.Opcode = uint8(AdminGetLogPage)
	e.CDW10 = uint32(c.LID) | uint32(c.LSP&0x7f)<<8 | uint32(bit(c.RAE))<<15 | c.NUMD<<16
	e.CDW11 = c.NUMD>>16 | uint32(c.LSI)<<16
	e.CDW12 = uint32(c.LPO)
	e.CDW13 = uint32(c.LPO >> 32)
	e.CDW14 = uint32(c.UUIDIndex&0x7f) | uint32(bit(c.OT))<<23 | uint32(c.CSI)<<24
}

// SetFeatures holds the fields of Set Features.
type SetFeatures struct {
	FID       FeatureID
	SV        bool   // save: keep the value across resets and power loss
	Value     uint32 // CDW11, feature specific
	UUIDIndex uint8  // 0 to 127
}

// SetFeatures reads the fields of Set Features.
func (e *SQE) SetFeatures() SetFeatures {
	return SetFeatures{
		FID:       FeatureID(e.CDW10),
		SV:        e.CDW10>>31 != 0,
		Value:     e.CDW11,
		UUIDIndex: uint8(e.CDW14) & 0x7f,
	}
}

// Put writes opcode and command dwords of e.
func (c SetFeatures) Put(e *SQE) {
	e.Opcode = uint8(AdminSetFeatures)
	e.CDW10 = uint32(c.FID) | uint32(bit(c.SV))<<31
	e.CDW11 = c.Value
	e.CDW14 = uint32(c.UUIDIndex & 0x7f)
}

// GetFeatures holds the fields of Get Features.
type GetFeatures struct {
	FID       FeatureID
	SEL       FeatureSelect // 0 to 7
	Value     uint32        // CDW11, feature specific: the interrupt vector or the temperature sensor that is asked for, for example
	UUIDIndex uint8         // 0 to 127
}

// GetFeatures reads the fields of Get Features.
func (e *SQE) GetFeatures() GetFeatures {
	return GetFeatures{
		FID:       FeatureID(e.CDW10),
		SEL:       FeatureSelect(e.CDW10>>8) & 0x7,
		Value:     e.CDW11,
		UUIDIndex: uint8(e.CDW14) & 0x7f,
	}
}

// Put writes opcode and command dwords of e.
func (c GetFeatures) Put(e *SQE) {
	e.Opcode = uint8(AdminGetFeatures)
	e.CDW10 = uint32(c.FID) | uint32(c.SEL&0x7)<<8
	e.CDW11 = c.Value
	e.CDW14 = uint32(c.UUIDIndex & 0x7f)
}

// Abort holds the fields of Abort.
type Abort struct {
	SQID uint16
	CID  uint16
}

// AbortNotDone is the bit of DW0 of an Abort completion for a command that was not aborted.
const AbortNotDone uint32 = 1 << 0

// Abort reads the fields of Abort.
func (e *SQE) Abort() Abort { return Abort{SQID: uint16(e.CDW10), CID: uint16(e.CDW10 >> 16)} }

// Put writes opcode and command dwords of e.
func (c Abort) Put(e *SQE) {
	e.Opcode = uint8(AdminAbort)
	e.CDW10 = uint32(c.SQID) | uint32(c.CID)<<16
}

// Secure erase settings, FormatNVM.SES.
const (
	SESNone     uint8 = 0
	SESUserData uint8 = 1
	SESCrypto   uint8 = 2
)

// FormatNVM holds the fields of Format NVM.
type FormatNVM struct {
	LBAF uint8 // index of the LBA format, 0 to 63 (LBAFU and LBAFL)
	MSET bool  // metadata at the end of each block
	PI   uint8 // protection information type, 0 for none; 0 to 7
	PIL  bool  // protection information in the first bytes of metadata
	SES  uint8 // secure erase setting, 0 to 7
}

// FormatNVM reads the fields of Format NVM.
func (e *SQE) FormatNVM() FormatNVM {
	return FormatNVM{
		LBAF: uint8(e.CDW10)&0xf | uint8(e.CDW10>>12)&0x3<<4,
		MSET: e.CDW10>>4&1 != 0,
		PI:   uint8(e.CDW10>>5) & 0x7,
		PIL:  e.CDW10>>8&1 != 0,
		SES:  uint8(e.CDW10>>9) & 0x7,
	}
}

// Put writes opcode and command dwords of e.
func (c FormatNVM) Put(e *SQE) {
	e.Opcode = uint8(AdminFormatNVM)
	e.CDW10 = uint32(c.LBAF)&0xf | uint32(bit(c.MSET))<<4 | uint32(c.PI&0x7)<<5 | uint32(bit(c.PIL))<<8 |
		uint32(c.SES&0x7)<<9 | uint32(c.LBAF>>4&0x3)<<12
}

// DoorbellBuffer holds the addresses of Doorbell Buffer Config: two pages of host memory laid out as the doorbell registers, queue 0 first.
type DoorbellBuffer struct {
	Shadow     uint64 // shadow doorbells: written by the host
	EventIndex uint64 // event indexes: written by the controller
}

// DoorbellBuffer reads the fields of Doorbell Buffer Config.
func (e *SQE) DoorbellBuffer() DoorbellBuffer {
	return DoorbellBuffer{Shadow: e.PRP1, EventIndex: e.PRP2}
}

// Put writes opcode and command dwords of e.
func (c DoorbellBuffer) Put(e *SQE) {
	e.Opcode = uint8(AdminDoorbellBufferConfig)
	e.PRP1, e.PRP2 = c.Shadow, c.EventIndex
}
