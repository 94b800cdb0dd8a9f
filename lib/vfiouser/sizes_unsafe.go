// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import "unsafe"

// Every structure has the size it has on the wire: a field added or widened by
// mistake does not compile. The wire forms have no padding, and neither have
// these.
var (
	_ [HeaderSize]byte        = [unsafe.Sizeof(Header{})]byte{}
	_ [DMAMapSize]byte        = [unsafe.Sizeof(DMAMap{})]byte{}
	_ [DMAUnmapSize]byte      = [unsafe.Sizeof(DMAUnmap{})]byte{}
	_ [DMAAccessSize]byte     = [unsafe.Sizeof(DMAAccess{})]byte{}
	_ [DeviceInfoSize]byte    = [unsafe.Sizeof(DeviceInfo{})]byte{}
	_ [RegionInfoSize]byte    = [unsafe.Sizeof(RegionInfo{})]byte{}
	_ [sparseAreaSize]byte    = [unsafe.Sizeof(SparseArea{})]byte{}
	_ [RegionAccessSize]byte  = [unsafe.Sizeof(RegionAccess{})]byte{}
	_ [RegionIOFDsSize]byte   = [unsafe.Sizeof(RegionIOFDs{})]byte{}
	_ [IRQInfoSize]byte       = [unsafe.Sizeof(IRQInfo{})]byte{}
	_ [IRQSetSize]byte        = [unsafe.Sizeof(IRQSet{})]byte{}
	_ [DeviceFeatureSize]byte = [unsafe.Sizeof(DeviceFeature{})]byte{}
	_ [MigDataSize]byte       = [unsafe.Sizeof(MigData{})]byte{}
)
