// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the PDUs of NVMe/TCP.

package fabrics

import (
	"fmt"
	"hash/crc32"

	"github.com/leapio/leapio/lib/nvme"
)

// PDUType is the type of a PDU (NVMe/TCP Transport Specification, "PDU Type").
type PDUType uint8

// PDU types.
const (
	TypeICReq       PDUType = 0x00 // host: initialize connection
	TypeICResp      PDUType = 0x01 // controller
	TypeH2CTermReq  PDUType = 0x02 // host: ends the connection for an error
	TypeC2HTermReq  PDUType = 0x03 // controller
	TypeCapsuleCmd  PDUType = 0x04 // host: a command
	TypeCapsuleResp PDUType = 0x05 // controller: its completion
	TypeH2CData     PDUType = 0x06 // host: data that an R2T has asked for
	TypeC2HData     PDUType = 0x07 // controller: data of a command
	TypeR2T         PDUType = 0x09 // controller: ready to transfer
)

// String returns the specification's name, or the number.
func (t PDUType) String() string {
	if int(t) < len(formats) && formats[t].hlen != 0 {
		return formats[t].name
	}
	return fmt.Sprintf("PDU type %02Xh", uint8(t))
}

// Flags of the common header.
const (
	FlagHDGST   uint8 = 1 << 0 // HDGSTF: a header digest follows the header
	FlagDDGST   uint8 = 1 << 1 // DDGSTF: a data digest follows the data
	FlagLast    uint8 = 1 << 2 // LAST_PDU of H2CData and C2HData
	FlagSuccess uint8 = 1 << 3 // SUCCESS of C2HData: no CapsuleResp follows
)

// Sizes in bytes.
const (
	DigestSize       = 4
	CommonHeaderSize = 8
	ICSize           = 128 // of ICReq and ICResp
	DataHeaderSize   = 24  // of H2CData, C2HData and R2T
	CmdHeaderSize    = CommonHeaderSize + nvme.SQESize
	RespHeaderSize   = CommonHeaderSize + nvme.CQESize
	TermHeaderSize   = 24
	MaxTermSize      = 152 // of a termination request with what it cites
	MaxHeaderSize    = 128
	MinMaxH2CData    = 4096 // the least MAXH2CDATA a controller may have
	MaxAlign         = 128  // of data, in bytes: HPDA and CPDA 31
)

// CommonHeader begins every PDU.
type CommonHeader struct {
	Type  PDUType
	Flags uint8
	HLEN  uint8  // length of the header, without its digest
	PDO   uint8  // where the data begins, in bytes from the start of the PDU; 0 without data
	PLEN  uint32 // length of the PDU with everything
}

// DGST bits of ICReq and ICResp: digests that are wanted, or will be used.
const (
	DGSTHeader uint8 = 1 << 0
	DGSTData   uint8 = 1 << 1
)

// ICReq is the Initialize Connection Request.
type ICReq struct {
	CommonHeader
	PFV    uint16 // PDU format version, 0
	HPDA   uint8  // alignment of C2HData's data, in dwords minus one, 0 to 31
	DGST   uint8
	MAXR2T uint32 // R2Ts that may be outstanding per command, minus one
	_      [112]byte
}

// ICResp is the Initialize Connection Response.
type ICResp struct {
	CommonHeader
	PFV        uint16
	CPDA       uint8 // alignment of the data of H2CData and CapsuleCmd, as HPDA
	DGST       uint8
	MAXH2CDATA uint32 // most data of an H2CData, in bytes
	_          [112]byte
}

// Align returns the alignment that HPDA or CPDA stand for, in bytes.
func Align(pda uint8) uint32 { return (uint32(pda) + 1) * 4 }

// MaxPDA is the largest HPDA or CPDA.
const MaxPDA = 31

// FES is the Fatal Error Status of a termination request.
type FES uint16

// Values of FES.
const (
	FESInvalidHeader    FES = 1 // FEI: offset of the field in bytes
	FESSequence         FES = 2
	FESHeaderDigest     FES = 3 // FEI: the digest that was received
	FESDataOutOfRange   FES = 4
	FESLimitExceeded    FES = 5 // C2H: data transfer limit; H2C: R2T limit
	FESUnsupportedParam FES = 6 // FEI: offset of the field in bytes
)

var fesNames = [...]string{
	FESInvalidHeader:    "Invalid PDU Header Field",
	FESSequence:         "PDU Sequence Error",
	FESHeaderDigest:     "Header Digest Error",
	FESDataOutOfRange:   "Data Transfer Out of Range",
	FESLimitExceeded:    "Transfer Limit Exceeded",
	FESUnsupportedParam: "Unsupported Parameter",
}

// String returns the specification's words, or the number.
func (f FES) String() string {
	if f > 0 && int(f) < len(fesNames) {
		return fesNames[f]
	}
	return fmt.Sprintf("Fatal Error Status %Xh", uint16(f))
}

// Violation is why a connection ends: what a termination request says. Its zero value is that nothing is wrong.
type Violation struct {
	FES FES
	FEI uint32
}

// Bad reports whether anything is wrong.
func (v Violation) Bad() bool { return v.FES != 0 }

// String says what is wrong.
func (v Violation) String() string {
	switch v.FES {
	case FESInvalidHeader, FESUnsupportedParam:
		return fmt.Sprintf("%v at byte %d", v.FES, v.FEI)
	case FESHeaderDigest:
		return fmt.Sprintf("%v: got %08x", v.FES, v.FEI)
	}
	return v.FES.String()
}

// TermReq is the header of a termination request. Up to 128 bytes of the PDU that was wrong follow.
type TermReq struct {
	CommonHeader
	FES FES
	fei [2]uint16 // not aligned on the wire
	_   [10]byte
}

// Violation returns why the peer ends the connection.
func (t *TermReq) Violation() Violation {
	return Violation{t.FES, uint32(t.fei[0]) | uint32(t.fei[1])<<16}
}

// MakeTermReq returns the termination request of that type for v, which cites n bytes of the PDU that was wrong, at most 128.
func MakeTermReq(t PDUType, v Violation, n int) TermReq {
	return TermReq{
		CommonHeader: CommonHeader{Type: t, HLEN: TermHeaderSize, PLEN: TermHeaderSize + uint32(n)},
		FES:          v.FES, fei: [2]uint16{uint16(v.FEI), uint16(v.FEI >> 16)},
	}
}

// CapsuleCmd is the header of a command capsule.
type CapsuleCmd struct {
	CommonHeader
	SQE nvme.SQE
}

// CapsuleResp is a response capsule.
type CapsuleResp struct {
	CommonHeader
	CQE nvme.CQE
}

// Data is the header of H2CData and C2HData.
type Data struct {
	CommonHeader
	CCCID uint16 // CID of the command
	TTAG  uint16 // H2CData: of the R2T
	DATAO uint32 // offset in the command's data, in bytes
	DATAL uint32
	_     [4]byte
}

// R2T asks for data of a command.
type R2T struct {
	CommonHeader
	CCCID uint16
	TTAG  uint16 // the controller's name for the transfer
	R2TO  uint32 // offset in the command's data, in bytes
	R2TL  uint32
	_     [4]byte
}

// Offsets of fields, for FEI.
const (
	offsetType   = 0
	offsetFlags  = 1
	offsetHLEN   = 2
	offsetPDO    = 3
	offsetPLEN   = 4
	OffsetPFV    = 8
	OffsetPDA    = 10 // HPDA, CPDA
	OffsetDGST   = 11
	OffsetMAXH2C = 12 // MAXH2CDATA
	OffsetCCCID  = 8
	OffsetTTAG   = 10
	OffsetDATAO  = 12 // and R2TO
	OffsetDATAL  = 16 // and R2TL
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest returns the CRC32C of p, as header and data digests have it: little-endian on the wire.
func Digest(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// DigestMore returns the digest of what sum is that of, followed by p; 0 is that of nothing.
func DigestMore(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }
