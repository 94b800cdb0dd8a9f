// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

// DeviceFlags is the flags word of a DEVICE_GET_INFO reply.
type DeviceFlags uint32

// Flags of a DEVICE_GET_INFO reply (VFIO_DEVICE_FLAGS_*).
const (
	DeviceReset DeviceFlags = 1 << 0 // the device takes DEVICE_RESET
	DevicePCI   DeviceFlags = 1 << 1 // the device is a PCI function
)

// String prints the flags by name.
func (f DeviceFlags) String() string { return flagString(uint32(f), "reset", "pci") }

// DeviceInfoSize is the length of a DeviceInfo in bytes.
const DeviceInfoSize = 16

// DeviceInfo is the request of DEVICE_GET_INFO, where only ArgSize counts, and
// its reply.
type DeviceInfo struct {
	ArgSize uint32 // request: greatest reply taken; reply: its full size. Bytes
	Flags   DeviceFlags
	Regions uint32 // how many regions, NumPCIRegions for a PCI function
	IRQs    uint32 // how many interrupt types, NumPCIIRQs for a PCI function
}

// ParseDeviceInfo reads a DEVICE_GET_INFO request or reply.
func ParseDeviceInfo(b []byte) (DeviceInfo, error) {
	if len(b) < DeviceInfoSize {
		return DeviceInfo{}, shortError("DEVICE_GET_INFO", len(b), DeviceInfoSize)
	}
	m := DeviceInfo{
		ArgSize: le.Uint32(b[0:]),
		Flags:   DeviceFlags(le.Uint32(b[4:])),
		Regions: le.Uint32(b[8:]),
		IRQs:    le.Uint32(b[12:]),
	}
	return m, checkArgSize("DEVICE_GET_INFO", m.ArgSize, DeviceInfoSize)
}

// Put writes the structure to the first DeviceInfoSize bytes of b.
func (m *DeviceInfo) Put(b []byte) {
	_ = b[DeviceInfoSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint32(b[8:], m.Regions)
	le.PutUint32(b[12:], m.IRQs)
}

// Region is the index of a region of a PCI function (VFIO_PCI_*_REGION_INDEX).
type Region uint32

// Regions of a PCI function.
const (
	RegionBAR0    Region = 0
	RegionBAR1    Region = 1
	RegionBAR2    Region = 2
	RegionBAR3    Region = 3
	RegionBAR4    Region = 4
	RegionBAR5    Region = 5
	RegionROM     Region = 6
	RegionConfig  Region = 7
	RegionVGA     Region = 8
	NumPCIRegions        = 9
)

var regionNames = []string{"BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA"}

// String returns BAR0 to BAR5, ROM, CONFIG, VGA, or "region" and the number.
func (r Region) String() string { return indexName(uint32(r), "region ", regionNames) }

// RegionFlags is the flags word of a DEVICE_GET_REGION_INFO reply.
type RegionFlags uint32

// Flags of a DEVICE_GET_REGION_INFO reply (VFIO_REGION_INFO_FLAG_*).
const (
	RegionRead  RegionFlags = 1 << 0 // REGION_READ works
	RegionWrite RegionFlags = 1 << 1 // REGION_WRITE works
	RegionMmap  RegionFlags = 1 << 2 // a file descriptor to map comes with the reply
	RegionCaps  RegionFlags = 1 << 3 // capabilities follow at CapOffset
)

// String prints the flags by name.
func (f RegionFlags) String() string { return flagString(uint32(f), "read", "write", "mmap", "caps") }

// RegionInfoSize is the length of a RegionInfo without capabilities in bytes.
const RegionInfoSize = 32

// RegionInfo is the request of DEVICE_GET_REGION_INFO, where only ArgSize and
// Index count, and the front of its reply, which capabilities may follow.
type RegionInfo struct {
	ArgSize   uint32 // request: greatest reply taken; reply: its full size. Bytes
	Flags     RegionFlags
	Index     Region
	CapOffset uint32 // of the first capability, from the front of this structure; 0 for none
	Size      uint64 // of the region in bytes, 0: the device has no such region
	Offset    uint64 // of the region in the file that comes with the reply
}

// ParseRegionInfo reads a DEVICE_GET_REGION_INFO request, or the front of a
// reply; ParseRegionInfoReply reads the whole of one.
func ParseRegionInfo(b []byte) (RegionInfo, error) {
	if len(b) < RegionInfoSize {
		return RegionInfo{}, shortError("DEVICE_GET_REGION_INFO", len(b), RegionInfoSize)
	}
	m := RegionInfo{
		ArgSize:   le.Uint32(b[0:]),
		Flags:     RegionFlags(le.Uint32(b[4:])),
		Index:     Region(le.Uint32(b[8:])),
		CapOffset: le.Uint32(b[12:]),
		Size:      le.Uint64(b[16:]),
		Offset:    le.Uint64(b[24:]),
	}
	return m, checkArgSize("DEVICE_GET_REGION_INFO", m.ArgSize, RegionInfoSize)
}

// Put writes the structure to the first RegionInfoSize bytes of b.
func (m *RegionInfo) Put(b []byte) {
	_ = b[RegionInfoSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint32(b[8:], uint32(m.Index))
	le.PutUint32(b[12:], m.CapOffset)
	le.PutUint64(b[16:], m.Size)
	le.PutUint64(b[24:], m.Offset)
}

// SparseArea is a part of a region that may be mapped, from an entry of the
// sparse mmap capability (struct vfio_region_sparse_mmap_area).
type SparseArea struct {
	Offset uint64 // in the region, in bytes
	Size   uint64 // in bytes
}

// Region capabilities (VFIO_REGION_INFO_CAP_*) and their layout.
const (
	CapSparseMmap = 1 // capability ID: only parts of the region may be mapped

	capHeaderSize   = 8 // id u16, version u16, next u32
	sparseFixedSize = capHeaderSize + 8
	sparseAreaSize  = 16
	maxSparseAreas  = 64
	maxRegionCaps   = 16
)

// RegionInfoReply builds the payload of a DEVICE_GET_REGION_INFO reply for a
// client that takes at most room bytes (the ArgSize of its request). It sets
// ArgSize, CapOffset and the caps flag of info itself; info.Flags has
// RegionMmap if areas may be mapped.
//
// If room is too small for the capability, the reply is the bare structure
// with the size to ask again with, without the mmap and caps flags (QEMU
// refuses a caps flag without a capability). Only a reply for which mappable is
// true carries the region's file descriptor.
func RegionInfoReply(info RegionInfo, areas []SparseArea, room uint32) (payload []byte, mappable bool) {
	full := uint32(RegionInfoSize)
	if len(areas) > 0 {
		full += sparseFixedSize + uint32(len(areas))*sparseAreaSize
	}
	info.ArgSize, info.CapOffset = full, 0
	info.Flags &^= RegionCaps
	if full > room {
		info.Flags &^= RegionMmap
		payload = make([]byte, RegionInfoSize)
		info.Put(payload)
		return payload, false
	}
	payload = make([]byte, full)
	if len(areas) > 0 {
		info.Flags |= RegionCaps
		info.CapOffset = RegionInfoSize
		putSparseMmap(payload[RegionInfoSize:], areas)
	}
	info.Put(payload)
	return payload, info.Flags&RegionMmap != 0
}

func putSparseMmap(b []byte, areas []SparseArea) {
	le.PutUint16(b[0:], CapSparseMmap)
	le.PutUint16(b[2:], 1) // version
	le.PutUint32(b[4:], 0) // no next capability
	le.PutUint32(b[8:], uint32(len(areas)))
	for i, a := range areas {
		entry := b[sparseFixedSize+i*sparseAreaSize:]
		le.PutUint64(entry[0:], a.Offset)
		le.PutUint64(entry[8:], a.Size)
	}
}

// ParseRegionInfoReply reads a whole DEVICE_GET_REGION_INFO reply. areas is
// nil if the reply has no sparse mmap capability; every area lies inside the
// region. Unknown capabilities are skipped.
func ParseRegionInfoReply(b []byte) (info RegionInfo, areas []SparseArea, err error) {
	info, err = ParseRegionInfo(b)
	if err != nil || info.Flags&RegionCaps == 0 {
		return info, nil, err
	}
	next := info.CapOffset
	for n := 0; next != 0; n++ {
		if n == maxRegionCaps {
			return info, nil, formatErrorf("DEVICE_GET_REGION_INFO", "more than %d capabilities", maxRegionCaps)
		}
		if next < RegionInfoSize || uint64(next)+capHeaderSize > uint64(len(b)) {
			return info, nil, formatErrorf("DEVICE_GET_REGION_INFO", "capability at offset %d of %d bytes", next, len(b))
		}
		c := b[next:]
		if le.Uint16(c) == CapSparseMmap {
			if areas, err = parseSparseMmap(c, info.Size); err != nil {
				return info, nil, err
			}
		}
		next = le.Uint32(c[4:])
	}
	return info, areas, nil
}

func parseSparseMmap(c []byte, regionSize uint64) ([]SparseArea, error) {
	const what = "sparse mmap capability"
	if len(c) < sparseFixedSize {
		return nil, shortError(what, len(c), sparseFixedSize)
	}
	n := le.Uint32(c[8:])
	if n > maxSparseAreas {
		return nil, formatErrorf(what, "%d areas, at most %d taken", n, maxSparseAreas)
	}
	if want := sparseFixedSize + int(n)*sparseAreaSize; len(c) < want {
		return nil, shortError(what, len(c), want)
	}
	areas := make([]SparseArea, n)
	for i := range areas {
		entry := c[sparseFixedSize+i*sparseAreaSize:]
		a := SparseArea{Offset: le.Uint64(entry[0:]), Size: le.Uint64(entry[8:])}
		if a.Offset > regionSize || a.Size > regionSize-a.Offset {
			return nil, formatErrorf(what, "area %#x+%#x in a region of %#x bytes", a.Offset, a.Size, regionSize)
		}
		areas[i] = a
	}
	return areas, nil
}
