// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build amd64 || arm64

// This file views wire structures as bytes, and checks their sizes and offsets at compile time, as lib/nvme does.

package fabrics

import (
	"unsafe"

	"github.com/leapio/leapio/lib/nvme"
)

// wire lists the structures that Bytes accepts: fixed size, no padding, no pointers, so that every byte is a field.
type wire interface {
	ConnectData | DiscoveryHeader | DiscoveryEntry |
		CommonHeader | ICReq | ICResp | TermReq | CapsuleCmd | CapsuleResp | Data | R2T
}

// Bytes returns the memory of *p, in wire order. The slice aliases *p: writing it decodes, reading it encodes. p is not nil.
func Bytes[T wire](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// Each line compiles only if the two array lengths agree: what the specification says on the left, what the compiler does on the right.
var (
	_ [1024]byte          = [unsafe.Sizeof(ConnectData{})]byte{}
	_ [OffsetCNTLID]byte  = [unsafe.Offsetof(ConnectData{}.CNTLID)]byte{}
	_ [OffsetSUBNQN]byte  = [unsafe.Offsetof(ConnectData{}.SUBNQN)]byte{}
	_ [OffsetHOSTNQN]byte = [unsafe.Offsetof(ConnectData{}.HOSTNQN)]byte{}
	_ [1024]byte          = [unsafe.Sizeof(DiscoveryHeader{})]byte{}
	_ [16]byte            = [unsafe.Offsetof(DiscoveryHeader{}.RECFMT)]byte{}
	_ [1024]byte          = [unsafe.Sizeof(DiscoveryEntry{})]byte{}
	_ [10]byte            = [unsafe.Offsetof(DiscoveryEntry{}.EFLAGS)]byte{}
	_ [32]byte            = [unsafe.Offsetof(DiscoveryEntry{}.TRSVCID)]byte{}
	_ [256]byte           = [unsafe.Offsetof(DiscoveryEntry{}.SUBNQN)]byte{}
	_ [512]byte           = [unsafe.Offsetof(DiscoveryEntry{}.TRADDR)]byte{}
	_ [768]byte           = [unsafe.Offsetof(DiscoveryEntry{}.TSAS)]byte{}

	_ [CommonHeaderSize]byte = [unsafe.Sizeof(CommonHeader{})]byte{}
	_ [offsetFlags]byte      = [unsafe.Offsetof(CommonHeader{}.Flags)]byte{}
	_ [offsetHLEN]byte       = [unsafe.Offsetof(CommonHeader{}.HLEN)]byte{}
	_ [offsetPDO]byte        = [unsafe.Offsetof(CommonHeader{}.PDO)]byte{}
	_ [offsetPLEN]byte       = [unsafe.Offsetof(CommonHeader{}.PLEN)]byte{}
	_ [ICSize]byte           = [unsafe.Sizeof(ICReq{})]byte{}
	_ [OffsetPFV]byte        = [unsafe.Offsetof(ICReq{}.PFV)]byte{}
	_ [OffsetPDA]byte        = [unsafe.Offsetof(ICReq{}.HPDA)]byte{}
	_ [OffsetDGST]byte       = [unsafe.Offsetof(ICReq{}.DGST)]byte{}
	_ [12]byte               = [unsafe.Offsetof(ICReq{}.MAXR2T)]byte{}
	_ [ICSize]byte           = [unsafe.Sizeof(ICResp{})]byte{}
	_ [OffsetPDA]byte        = [unsafe.Offsetof(ICResp{}.CPDA)]byte{}
	_ [OffsetMAXH2C]byte     = [unsafe.Offsetof(ICResp{}.MAXH2CDATA)]byte{}
	_ [TermHeaderSize]byte   = [unsafe.Sizeof(TermReq{})]byte{}
	_ [8]byte                = [unsafe.Offsetof(TermReq{}.FES)]byte{}
	_ [10]byte               = [unsafe.Offsetof(TermReq{}.fei)]byte{}
	_ [CmdHeaderSize]byte    = [unsafe.Sizeof(CapsuleCmd{})]byte{}
	_ [8]byte                = [unsafe.Offsetof(CapsuleCmd{}.SQE)]byte{}
	_ [RespHeaderSize]byte   = [unsafe.Sizeof(CapsuleResp{})]byte{}
	_ [8]byte                = [unsafe.Offsetof(CapsuleResp{}.CQE)]byte{}
	_ [DataHeaderSize]byte   = [unsafe.Sizeof(Data{})]byte{}
	_ [OffsetCCCID]byte      = [unsafe.Offsetof(Data{}.CCCID)]byte{}
	_ [OffsetTTAG]byte       = [unsafe.Offsetof(Data{}.TTAG)]byte{}
	_ [OffsetDATAO]byte      = [unsafe.Offsetof(Data{}.DATAO)]byte{}
	_ [OffsetDATAL]byte      = [unsafe.Offsetof(Data{}.DATAL)]byte{}
	_ [DataHeaderSize]byte   = [unsafe.Sizeof(R2T{})]byte{}
	_ [OffsetTTAG]byte       = [unsafe.Offsetof(R2T{}.TTAG)]byte{}
	_ [OffsetDATAO]byte      = [unsafe.Offsetof(R2T{}.R2TO)]byte{}
	_ [OffsetDATAL]byte      = [unsafe.Offsetof(R2T{}.R2TL)]byte{}

	// Where Connect and Property have their fields in a submission queue entry.
	_ [40]byte = [unsafe.Offsetof(nvme.SQE{}.CDW10)]byte{}
)
