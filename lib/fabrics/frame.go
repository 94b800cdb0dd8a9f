// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file checks the header of a PDU, and says where its parts are.

package fabrics

// Direction is who sends a PDU.
type Direction uint8

// Directions.
const (
	FromHost Direction = iota
	FromController
)

// format is a row of the table of PDU types.
type format struct {
	name  string
	from  Direction
	hlen  uint8 // 0: no such type
	flags uint8 // those that may be set
	data  bool  // data may follow the header
	setup bool  // exchanged before anything is agreed upon, or after all is lost: never has a digest
}

// formats is the table of PDU types.
var formats = [...]format{
	TypeICReq:       {name: "ICReq", from: FromHost, hlen: ICSize, setup: true},
	TypeICResp:      {name: "ICResp", from: FromController, hlen: ICSize, setup: true},
	TypeH2CTermReq:  {name: "H2CTermReq", from: FromHost, hlen: TermHeaderSize, setup: true},
	TypeC2HTermReq:  {name: "C2HTermReq", from: FromController, hlen: TermHeaderSize, setup: true},
	TypeCapsuleCmd:  {name: "CapsuleCmd", from: FromHost, hlen: CmdHeaderSize, flags: FlagHDGST | FlagDDGST, data: true},
	TypeCapsuleResp: {name: "CapsuleResp", from: FromController, hlen: RespHeaderSize, flags: FlagHDGST},
	TypeH2CData:     {name: "H2CData", from: FromHost, hlen: DataHeaderSize, flags: FlagHDGST | FlagDDGST | FlagLast, data: true},
	TypeC2HData:     {name: "C2HData", from: FromController, hlen: DataHeaderSize, flags: FlagHDGST | FlagDDGST | FlagLast | FlagSuccess, data: true},
	TypeR2T:         {name: "R2T", from: FromController, hlen: DataHeaderSize, flags: FlagHDGST},
}

// Framing is what a connection has agreed on for the PDUs of one direction.
type Framing struct {
	From         Direction
	HeaderDigest bool
	DataDigest   bool
	Align        uint32 // of data, in bytes: a multiple of 4 up to MaxAlign
	MaxCapsule   uint32 // most data of a CapsuleCmd, in bytes
	MaxData      uint32 // most data of an H2CData or C2HData, in bytes
}

// Frame says where the parts of a PDU are, in bytes from its start.
type Frame struct {
	Header     uint32 // length of the header with its digest: what is to be read before the data
	DataOffset uint32 // there may be padding before
	DataLength uint32 // 0: no data
	Length     uint32 // of the PDU
	HasDigest  bool   // a data digest follows the data
}

// Check holds the common header of a PDU against the framing. The rest of the PDU may still be unread; nothing in it is looked at.
func (f *Framing) Check(h *CommonHeader) (Frame, Violation) {
	if int(h.Type) >= len(formats) || formats[h.Type].hlen == 0 || formats[h.Type].from != f.From {
		return Frame{}, Violation{FESInvalidHeader, offsetType}
	}
	t := &formats[h.Type]
	if h.HLEN != t.hlen {
		return Frame{}, Violation{FESInvalidHeader, offsetHLEN}
	}
	if h.Type == TypeH2CTermReq || h.Type == TypeC2HTermReq {
		return termFrame(h)
	}
	digest := f.HeaderDigest && !t.setup
	if h.Flags&^t.flags != 0 || h.Flags&FlagHDGST != 0 != digest {
		return Frame{}, Violation{FESInvalidHeader, offsetFlags}
	}
	header := uint32(t.hlen)
	if digest {
		header += DigestSize
	}
	if !t.data || h.Type == TypeCapsuleCmd && h.PLEN == header {
		if h.PLEN != header {
			return Frame{}, Violation{FESInvalidHeader, offsetPLEN}
		}
		return Frame{Header: header, DataOffset: header, Length: header}, Violation{}
	}
	return f.dataFrame(h, header)
}

// termFrame is Check for a termination request: what it cites is data.
func termFrame(h *CommonHeader) (Frame, Violation) {
	if h.PLEN < TermHeaderSize || h.PLEN > MaxTermSize {
		return Frame{}, Violation{FESInvalidHeader, offsetPLEN}
	}
	return Frame{Header: TermHeaderSize, DataOffset: TermHeaderSize, DataLength: h.PLEN - TermHeaderSize, Length: h.PLEN}, Violation{}
}

// dataFrame is Check for a PDU with data; header is the length of what comes before padding and data.
func (f *Framing) dataFrame(h *CommonHeader, header uint32) (Frame, Violation) {
	offset, tail := uint32(h.PDO), uint32(0)
	if f.DataDigest {
		tail = DigestSize
	}
	limit, excess := f.MaxData, Violation{FESLimitExceeded, 0}
	if h.Type == TypeCapsuleCmd {
		limit, excess = f.MaxCapsule, Violation{FESInvalidHeader, offsetPLEN}
	}
	switch {
	case h.Flags&FlagDDGST != 0 != f.DataDigest:
		return Frame{}, Violation{FESInvalidHeader, offsetFlags}
	case h.Flags&FlagSuccess != 0 && h.Flags&FlagLast == 0:
		return Frame{}, Violation{FESInvalidHeader, offsetFlags}
	case offset < header || offset%f.Align != 0:
		return Frame{}, Violation{FESInvalidHeader, offsetPDO}
	case h.PLEN <= offset+tail:
		return Frame{}, Violation{FESInvalidHeader, offsetPLEN}
	case h.PLEN-offset-tail > limit:
		return Frame{}, excess
	}
	return Frame{Header: header, DataOffset: offset, DataLength: h.PLEN - offset - tail, Length: h.PLEN, HasDigest: f.DataDigest}, Violation{}
}

// Check holds DATAL against the PDU's length.
func (d *Data) Check(f Frame) Violation {
	if d.DATAL != f.DataLength {
		return Violation{FESInvalidHeader, OffsetDATAL}
	}
	return Violation{}
}

// Make returns the frame of a PDU of type t with n bytes of data as Check accepts it, and fills in h. n is within the framing's limits, and 0
// where the type has no data; flags are those beside the digests'.
func (f *Framing) Make(h *CommonHeader, t PDUType, flags uint8, n uint32) Frame {
	header := uint32(formats[t].hlen)
	*h = CommonHeader{Type: t, Flags: flags, HLEN: uint8(header)}
	if f.HeaderDigest && !formats[t].setup {
		h.Flags |= FlagHDGST
		header += DigestSize
	}
	frame := Frame{Header: header, DataOffset: header, DataLength: n, Length: header}
	if n > 0 {
		frame.DataOffset = (header + f.Align - 1) / f.Align * f.Align
		frame.Length = frame.DataOffset + n
		h.PDO = uint8(frame.DataOffset)
		if f.DataDigest {
			frame.HasDigest = true
			frame.Length += DigestSize
			h.Flags |= FlagDDGST
		}
	}
	h.PLEN = frame.Length
	return frame
}
