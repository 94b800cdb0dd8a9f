// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

// DMAFlags is the flags word of a DMA_MAP request.
type DMAFlags uint32

// Flags of a DMA_MAP request (specification, section "VFIO_USER_DMA_MAP").
const (
	DMARead  DMAFlags = 1 << 0 // the device may read from the region
	DMAWrite DMAFlags = 1 << 1 // the device may write to the region
)

// String prints the flags by name.
func (f DMAFlags) String() string { return flagString(uint32(f), "read", "write") }

// DMAMapSize is the length of a DMA_MAP request in bytes.
const DMAMapSize = 32

// DMAMap is the request of DMA_MAP: guest memory the device may use from now
// on. With the message comes the file descriptor that backs it, or none if the
// memory can only be reached by DMA_READ and DMA_WRITE. The reply is empty.
type DMAMap struct {
	ArgSize uint32   // of this structure in bytes
	Flags   DMAFlags // what the device may do
	Offset  uint64   // of the region in the file, in bytes
	Address uint64   // where the region begins in the device's address space
	Size    uint64   // in bytes
}

// ParseDMAMap reads a DMA_MAP request. Addresses and sizes are the sender's
// word: the range may wrap around, or be empty.
func ParseDMAMap(b []byte) (DMAMap, error) {
	if len(b) < DMAMapSize {
		return DMAMap{}, shortError("DMA_MAP", len(b), DMAMapSize)
	}
	m := DMAMap{
		ArgSize: le.Uint32(b[0:]),
		Flags:   DMAFlags(le.Uint32(b[4:])),
		Offset:  le.Uint64(b[8:]),
		Address: le.Uint64(b[16:]),
		Size:    le.Uint64(b[24:]),
	}
	return m, checkArgSize("DMA_MAP", m.ArgSize, DMAMapSize)
}

// Put writes the request to the first DMAMapSize bytes of b.
func (m *DMAMap) Put(b []byte) {
	_ = b[DMAMapSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint64(b[8:], m.Offset)
	le.PutUint64(b[16:], m.Address)
	le.PutUint64(b[24:], m.Size)
}

// UnmapFlags is the flags word of a DMA_UNMAP request: zero in every version
// of the protocol so far. Its bits are those of VFIO_IOMMU_UNMAP_DMA.
type UnmapFlags uint32

// Flags VFIO knows and vfio-user does not use.
const (
	UnmapGetDirtyBitmap UnmapFlags = 1 << 0
	UnmapAll            UnmapFlags = 1 << 1
)

// String prints the flags by name.
func (f UnmapFlags) String() string { return flagString(uint32(f), "dirty_bitmap", "all") }

// DMAUnmapSize is the length of a DMA_UNMAP request and of its reply in bytes.
const DMAUnmapSize = 24

// DMAUnmap is the request of DMA_UNMAP and its reply, which repeats it. Address
// and Size must be those of one earlier DMA_MAP. When the reply is sent, the
// server no longer touches the memory.
type DMAUnmap struct {
	ArgSize uint32     // greatest reply the client takes, in bytes
	Flags   UnmapFlags // 0
	Address uint64
	Size    uint64 // in bytes
}

// ParseDMAUnmap reads a DMA_UNMAP request or reply.
func ParseDMAUnmap(b []byte) (DMAUnmap, error) {
	if len(b) < DMAUnmapSize {
		return DMAUnmap{}, shortError("DMA_UNMAP", len(b), DMAUnmapSize)
	}
	m := DMAUnmap{
		ArgSize: le.Uint32(b[0:]),
		Flags:   UnmapFlags(le.Uint32(b[4:])),
		Address: le.Uint64(b[8:]),
		Size:    le.Uint64(b[16:]),
	}
	return m, checkArgSize("DMA_UNMAP", m.ArgSize, DMAUnmapSize)
}

// Put writes the structure to the first DMAUnmapSize bytes of b.
func (m *DMAUnmap) Put(b []byte) {
	_ = b[DMAUnmapSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint64(b[8:], m.Address)
	le.PutUint64(b[16:], m.Size)
}

// DMAAccessSize is the length of a DMAAccess in bytes.
const DMAAccessSize = 16

// DMAAccess begins DMA_READ and DMA_WRITE, which the server sends, and their
// replies. Data follows in a DMA_WRITE and in the reply to a DMA_READ.
//
// QEMU 11.1 keeps to this. Some earlier versions of QEMU, by their source, have
// the data 12 bytes after the header instead of 16; their reply to DMA_WRITE is
// a bare header, which tells them apart.
type DMAAccess struct {
	Address uint64
	Count   uint64 // bytes of data, at most Capabilities.MaxDataXferSize of the client
}

// ParseDMAAccess reads a DMAAccess. It does not look at the data behind it.
func ParseDMAAccess(b []byte) (DMAAccess, error) {
	if len(b) < DMAAccessSize {
		return DMAAccess{}, shortError("DMA access", len(b), DMAAccessSize)
	}
	return DMAAccess{Address: le.Uint64(b[0:]), Count: le.Uint64(b[8:])}, nil
}

// Put writes the structure to the first DMAAccessSize bytes of b.
func (m *DMAAccess) Put(b []byte) {
	_ = b[DMAAccessSize-1]
	le.PutUint64(b[0:], m.Address)
	le.PutUint64(b[8:], m.Count)
}

// checkArgSize refuses an argsz that does not even cover the structure it is
// in, as VFIO does.
func checkArgSize(what string, got uint32, want uint32) error {
	if got < want {
		return formatErrorf(what, "argsz %d, at least %d needed", got, want)
	}
	return nil
}
