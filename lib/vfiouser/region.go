// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

// RegionAccessSize is the length of a RegionAccess in bytes.
const RegionAccessSize = 16

// RegionAccess begins REGION_READ and REGION_WRITE and their replies. Data
// follows in a REGION_WRITE and in the reply to a REGION_READ.
type RegionAccess struct {
	Offset uint64 // in the region, in bytes
	Region Region
	Count  uint32 // bytes of data, at most Capabilities.MaxDataXferSize of the receiver
}

// ParseRegionAccess reads a RegionAccess. It does not look at the data behind
// it; Offset and Count are the sender's word.
func ParseRegionAccess(b []byte) (RegionAccess, error) {
	if len(b) < RegionAccessSize {
		return RegionAccess{}, shortError("region access", len(b), RegionAccessSize)
	}
	return RegionAccess{
		Offset: le.Uint64(b[0:]),
		Region: Region(le.Uint32(b[8:])),
		Count:  le.Uint32(b[12:]),
	}, nil
}

// ParseRegionWrite reads a REGION_WRITE request (or the reply to a
// REGION_READ, which looks the same) and returns the data behind the
// structure, exactly Count bytes of b.
func ParseRegionWrite(b []byte) (RegionAccess, []byte, error) {
	m, err := ParseRegionAccess(b)
	if err != nil {
		return m, nil, err
	}
	data := b[RegionAccessSize:]
	if uint64(m.Count) != uint64(len(data)) {
		return m, nil, formatErrorf("region access", "count is %d, data is %d bytes", m.Count, len(data))
	}
	return m, data, nil
}

// Put writes the structure to the first RegionAccessSize bytes of b.
func (m *RegionAccess) Put(b []byte) {
	_ = b[RegionAccessSize-1]
	le.PutUint64(b[0:], m.Offset)
	le.PutUint32(b[8:], uint32(m.Region))
	le.PutUint32(b[12:], m.Count)
}

// Layout of REGION_WRITE_MULTI: a count, then writes of 24 bytes each.
const (
	// WriteMultiHeaderSize is the length of the count in front, and of the
	// whole reply, in bytes.
	WriteMultiHeaderSize = 8
	// WriteMultiEntrySize is the length of one write in bytes.
	WriteMultiEntrySize = RegionAccessSize + MaxWriteMultiData
	// MaxWriteMultiData is the most one write can hold, in bytes.
	MaxWriteMultiData = 8
)

// RegionWrites is the list of writes in a REGION_WRITE_MULTI request. It
// aliases the payload it was parsed from.
type RegionWrites struct{ entries []byte }

// ParseRegionWriteMulti reads a REGION_WRITE_MULTI request. Every write it
// returns has a Count of at most MaxWriteMultiData.
func ParseRegionWriteMulti(b []byte) (RegionWrites, error) {
	const what = "REGION_WRITE_MULTI"
	if len(b) < WriteMultiHeaderSize {
		return RegionWrites{}, shortError(what, len(b), WriteMultiHeaderSize)
	}
	n, entries := le.Uint64(b), b[WriteMultiHeaderSize:]
	if n > uint64(len(entries))/WriteMultiEntrySize {
		return RegionWrites{}, formatErrorf(what, "%d writes in %d bytes", n, len(entries))
	}
	w := RegionWrites{entries: entries[:int(n)*WriteMultiEntrySize]}
	for i := range w.Len() {
		if count := le.Uint32(w.entries[i*WriteMultiEntrySize+12:]); count > MaxWriteMultiData {
			return RegionWrites{}, formatErrorf(what, "write %d of %d bytes, at most %d possible", i, count, MaxWriteMultiData)
		}
	}
	return w, nil
}

// Len returns how many writes there are.
func (w RegionWrites) Len() int { return len(w.entries) / WriteMultiEntrySize }

// At returns write i, counted from 0, and its data.
func (w RegionWrites) At(i int) (RegionAccess, []byte) {
	e := w.entries[i*WriteMultiEntrySize : (i+1)*WriteMultiEntrySize]
	m := RegionAccess{
		Offset: le.Uint64(e[0:]),
		Region: Region(le.Uint32(e[8:])),
		Count:  le.Uint32(e[12:]),
	}
	return m, e[RegionAccessSize:][:m.Count]
}

// RegionIOFDsSize is the length of a RegionIOFDs in bytes.
const RegionIOFDsSize = 16

// RegionIOFDs is the request of DEVICE_GET_REGION_IO_FDS, and the front of its
// reply. A server that offers no descriptors answers with Count 0.
type RegionIOFDs struct {
	ArgSize uint32 // request: greatest reply taken; reply: its full size. Bytes
	Flags   uint32 // 0
	Index   Region
	Count   uint32 // reply: sub-regions that follow, 40 bytes each
}

// ParseRegionIOFDs reads a DEVICE_GET_REGION_IO_FDS request.
func ParseRegionIOFDs(b []byte) (RegionIOFDs, error) {
	if len(b) < RegionIOFDsSize {
		return RegionIOFDs{}, shortError("DEVICE_GET_REGION_IO_FDS", len(b), RegionIOFDsSize)
	}
	m := RegionIOFDs{
		ArgSize: le.Uint32(b[0:]),
		Flags:   le.Uint32(b[4:]),
		Index:   Region(le.Uint32(b[8:])),
		Count:   le.Uint32(b[12:]),
	}
	return m, checkArgSize("DEVICE_GET_REGION_IO_FDS", m.ArgSize, RegionIOFDsSize)
}

// Put writes the structure to the first RegionIOFDsSize bytes of b.
func (m *RegionIOFDs) Put(b []byte) {
	_ = b[RegionIOFDsSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint32(b[8:], uint32(m.Index))
	le.PutUint32(b[12:], m.Count)
}
