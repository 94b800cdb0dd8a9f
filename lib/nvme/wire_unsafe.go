// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build amd64 || arm64

// This file views wire structures as bytes, and checks their sizes and offsets at compile time. It is the package's only use of unsafe,
// and not built for hosts of other byte orders, where the structures are not the wire's.

package nvme

import "unsafe"

// wire lists the structures that Bytes and SliceBytes accept: fixed size, no padding, no pointers, so that every byte is a field.
type wire interface {
	SQE | CQE | SGLDescriptor | DSMRange | CopyRange | CopyRangeExtended |
		IdentifyController | IdentifyNVMController | IOCommandSets | ControllerList | NSList |
		IdentifyNamespace | IdentifyNVMNamespace | IdentifyIndependentNamespace |
		SupportedLogPages | ErrorLogEntry | SMARTLog | FirmwareSlotLog | CommandEffectsLog | FeatureEffectsLog |
		ANALogHeader | ANAGroupDescriptor | HostBehavior | Timestamp
}

// Bytes returns the memory of *p, in wire order. The slice aliases *p: writing it decodes, reading it encodes. p is not nil.
func Bytes[T wire](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// SliceBytes returns the memory of s, in wire order. The result aliases s.
func SliceBytes[T wire](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), uintptr(len(s))*unsafe.Sizeof(s[0]))
}

// Each line compiles only if the two array lengths agree: what the specification says on the left, what the compiler does on the right.
var (
	_ [SQESize]byte = [unsafe.Sizeof(SQE{})]byte{}
	_ [2]byte       = [unsafe.Offsetof(SQE{}.CID)]byte{}
	_ [4]byte       = [unsafe.Offsetof(SQE{}.NSID)]byte{}
	_ [16]byte      = [unsafe.Offsetof(SQE{}.MPTR)]byte{}
	_ [24]byte      = [unsafe.Offsetof(SQE{}.PRP1)]byte{}
	_ [40]byte      = [unsafe.Offsetof(SQE{}.CDW10)]byte{}
	_ [60]byte      = [unsafe.Offsetof(SQE{}.CDW15)]byte{}
	_ [CQESize]byte = [unsafe.Sizeof(CQE{})]byte{}
	_ [8]byte       = [unsafe.Offsetof(CQE{}.SQHead)]byte{}
	_ [14]byte      = [unsafe.Offsetof(CQE{}.Status)]byte{}

	_ [SGLDescriptorSize]byte = [unsafe.Sizeof(SGLDescriptor{})]byte{}
	_ [15]byte                = [unsafe.Offsetof(SGLDescriptor{}.ID)]byte{}
	_ [DSMRangeSize]byte      = [unsafe.Sizeof(DSMRange{})]byte{}
	_ [32]byte                = [unsafe.Sizeof(CopyRange{})]byte{}
	_ [24]byte                = [unsafe.Offsetof(CopyRange{}.EILBRT)]byte{}
	_ [40]byte                = [unsafe.Sizeof(CopyRangeExtended{})]byte{}
	_ [26]byte                = [unsafe.Offsetof(CopyRangeExtended{}.ELBT)]byte{}
	_ [8]byte                 = [unsafe.Sizeof(Timestamp{})]byte{}
	_ [512]byte               = [unsafe.Sizeof(HostBehavior{})]byte{}

	_ [32]byte           = [unsafe.Sizeof(PowerState{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IdentifyController{})]byte{}
	_ [256]byte          = [unsafe.Offsetof(IdentifyController{}.OACS)]byte{}
	_ [512]byte          = [unsafe.Offsetof(IdentifyController{}.SQES)]byte{}
	_ [516]byte          = [unsafe.Offsetof(IdentifyController{}.NN)]byte{}
	_ [520]byte          = [unsafe.Offsetof(IdentifyController{}.ONCS)]byte{}
	_ [768]byte          = [unsafe.Offsetof(IdentifyController{}.SUBNQN)]byte{}
	_ [1792]byte         = [unsafe.Offsetof(IdentifyController{}.IOCCSZ)]byte{}
	_ [2048]byte         = [unsafe.Offsetof(IdentifyController{}.PSD)]byte{}
	_ [3072]byte         = [unsafe.Offsetof(IdentifyController{}.VS)]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IdentifyNVMController{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IOCommandSets{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(ControllerList{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(NSList{})]byte{}

	_ [4]byte            = [unsafe.Sizeof(LBAFormat{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IdentifyNamespace{})]byte{}
	_ [104]byte          = [unsafe.Offsetof(IdentifyNamespace{}.NGUID)]byte{}
	_ [120]byte          = [unsafe.Offsetof(IdentifyNamespace{}.EUI64)]byte{}
	_ [128]byte          = [unsafe.Offsetof(IdentifyNamespace{}.LBAF)]byte{}
	_ [384]byte          = [unsafe.Offsetof(IdentifyNamespace{}.VS)]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IdentifyNVMNamespace{})]byte{}
	_ [IdentifySize]byte = [unsafe.Sizeof(IdentifyIndependentNamespace{})]byte{}
	_ [14]byte           = [unsafe.Offsetof(IdentifyIndependentNamespace{}.NSTAT)]byte{}

	_ [1024]byte = [unsafe.Sizeof(SupportedLogPages{})]byte{}
	_ [64]byte   = [unsafe.Sizeof(ErrorLogEntry{})]byte{}
	_ [63]byte   = [unsafe.Offsetof(ErrorLogEntry{}.LPVER)]byte{}
	_ [512]byte  = [unsafe.Sizeof(SMARTLog{})]byte{}
	_ [32]byte   = [unsafe.Offsetof(SMARTLog{}.DataUnitsRead)]byte{}
	_ [192]byte  = [unsafe.Offsetof(SMARTLog{}.WarningTempTime)]byte{}
	_ [512]byte  = [unsafe.Sizeof(FirmwareSlotLog{})]byte{}
	_ [4096]byte = [unsafe.Sizeof(CommandEffectsLog{})]byte{}
	_ [1024]byte = [unsafe.Sizeof(FeatureEffectsLog{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(ANALogHeader{})]byte{}
	_ [32]byte   = [unsafe.Sizeof(ANAGroupDescriptor{})]byte{}
)
