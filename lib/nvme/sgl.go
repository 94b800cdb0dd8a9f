// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the SGL descriptor.

package nvme

// SGLType is the SGL descriptor type (Base Specification, "SGL Descriptor Type").
type SGLType uint8

// Values of SGLType.
const (
	SGLDataBlock          SGLType = 0x0
	SGLBitBucket          SGLType = 0x1
	SGLSegment            SGLType = 0x2
	SGLLastSegment        SGLType = 0x3
	SGLKeyedDataBlock     SGLType = 0x4
	SGLTransportDataBlock SGLType = 0x5
	SGLVendorSpecific     SGLType = 0xf
)

// SGLSubtype is the SGL descriptor sub type.
type SGLSubtype uint8

// Values of SGLSubtype.
const (
	SGLAddress   SGLSubtype = 0x0
	SGLOffset    SGLSubtype = 0x1 // Address counts from the start of in-capsule data
	SGLTransport SGLSubtype = 0xa // transport specific
)

// SGLDescriptor is an SGL descriptor (Base Specification, "Scatter Gather List"). A keyed descriptor keeps its length in the low 24 bits of
// Length and its key in the next 32 bits: see KeyedLength and Key.
type SGLDescriptor struct {
	Address  uint64
	Length   uint32
	Reserved [3]uint8 // zero, but for the key of keyed descriptors
	ID       uint8    // SGL identifier: type in bits 7:4, sub type in bits 3:0
}

// SGLDescriptorSize is the size of an SGLDescriptor, in bytes.
const SGLDescriptorSize = 16

// MakeSGL returns a descriptor that is not keyed.
func MakeSGL(t SGLType, s SGLSubtype, address uint64, length uint32) SGLDescriptor {
	return SGLDescriptor{Address: address, Length: length, ID: uint8(t)<<4 | uint8(s)&0xf}
}

// Type returns the descriptor type.
func (d *SGLDescriptor) Type() SGLType { return SGLType(d.ID >> 4) }

// Subtype returns the descriptor sub type.
func (d *SGLDescriptor) Subtype() SGLSubtype { return SGLSubtype(d.ID & 0xf) }

// KeyedLength returns the length of a keyed descriptor, in bytes, below 2^24.
func (d *SGLDescriptor) KeyedLength() uint32 { return d.Length & 0xffffff }

// Key returns the key of a keyed descriptor.
func (d *SGLDescriptor) Key() uint32 {
	return d.Length>>24 | uint32(d.Reserved[0])<<8 | uint32(d.Reserved[1])<<16 | uint32(d.Reserved[2])<<24
}

// SGL1 returns the descriptor in the command's data pointer; it means something where PSDT is not PSDTPRP.
func (e *SQE) SGL1() SGLDescriptor {
	return SGLDescriptor{
		Address:  e.PRP1,
		Length:   uint32(e.PRP2),
		Reserved: [3]uint8{uint8(e.PRP2 >> 32), uint8(e.PRP2 >> 40), uint8(e.PRP2 >> 48)},
		ID:       uint8(e.PRP2 >> 56),
	}
}

// SetSGL1 stores d in the command's data pointer. PSDT is set apart.
func (e *SQE) SetSGL1(d SGLDescriptor) {
	e.PRP1 = d.Address
	e.PRP2 = uint64(d.Length) | uint64(d.Reserved[0])<<32 | uint64(d.Reserved[1])<<40 | uint64(d.Reserved[2])<<48 | uint64(d.ID)<<56
}
