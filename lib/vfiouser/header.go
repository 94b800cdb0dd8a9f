// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"encoding/binary"
	"syscall"
)

var le = binary.LittleEndian

// Command is the number of a vfio-user command. The comments give the
// direction: C the client sends it, S the server.
type Command uint16

// Commands of the specification, section "Commands". 14 was DIRTY_PAGES in
// drafts and has no meaning now.
const (
	CmdVersion              Command = 1  // C
	CmdDMAMap               Command = 2  // C
	CmdDMAUnmap             Command = 3  // C
	CmdDeviceGetInfo        Command = 4  // C
	CmdDeviceGetRegionInfo  Command = 5  // C
	CmdDeviceGetRegionIOFDs Command = 6  // C
	CmdDeviceGetIRQInfo     Command = 7  // C
	CmdDeviceSetIRQs        Command = 8  // C
	CmdRegionRead           Command = 9  // C
	CmdRegionWrite          Command = 10 // C
	CmdDMARead              Command = 11 // S
	CmdDMAWrite             Command = 12 // S
	CmdDeviceReset          Command = 13 // C
	CmdRegionWriteMulti     Command = 15 // C
	CmdDeviceFeature        Command = 16 // C
	CmdMigDataRead          Command = 17 // C
	CmdMigDataWrite         Command = 18 // C
)

var commandNames = []string{
	CmdVersion:              "VERSION",
	CmdDMAMap:               "DMA_MAP",
	CmdDMAUnmap:             "DMA_UNMAP",
	CmdDeviceGetInfo:        "DEVICE_GET_INFO",
	CmdDeviceGetRegionInfo:  "DEVICE_GET_REGION_INFO",
	CmdDeviceGetRegionIOFDs: "DEVICE_GET_REGION_IO_FDS",
	CmdDeviceGetIRQInfo:     "DEVICE_GET_IRQ_INFO",
	CmdDeviceSetIRQs:        "DEVICE_SET_IRQS",
	CmdRegionRead:           "REGION_READ",
	CmdRegionWrite:          "REGION_WRITE",
	CmdDMARead:              "DMA_READ",
	CmdDMAWrite:             "DMA_WRITE",
	CmdDeviceReset:          "DEVICE_RESET",
	CmdRegionWriteMulti:     "REGION_WRITE_MULTI",
	CmdDeviceFeature:        "DEVICE_FEATURE",
	CmdMigDataRead:          "MIG_DATA_READ",
	CmdMigDataWrite:         "MIG_DATA_WRITE",
}

// String returns the command's name in the specification, without the
// VFIO_USER_ in front.
func (c Command) String() string { return indexName(uint32(c), "command ", commandNames) }

// Flags is the flags word of a message header.
type Flags uint32

// Header flags of the specification, section "Header". A message with no bit
// of TypeMask set is a command that wants a reply.
const (
	TypeMask  Flags = 0xf  // message type: 0 a command, 1 a reply
	FlagReply Flags = 0x1  // the message answers the command with its ID
	FlagNoAck Flags = 0x10 // No_reply: the sender of this command wants no reply
	FlagError Flags = 0x20 // in a reply: the command failed, see Header.Errno
)

// String prints "command" or "reply" and the other flags.
func (f Flags) String() string {
	switch f & TypeMask {
	case 0:
		if f == 0 {
			return "command"
		}
		return "command|" + flagString(uint32(f), "", "", "", "", "no_reply", "error")
	case FlagReply:
		return flagString(uint32(f), "reply", "", "", "", "no_reply", "error")
	}
	return flagString(uint32(f), "", "", "", "", "no_reply", "error")
}

// HeaderSize is the length of a message header in bytes.
const HeaderSize = 16

// Header is in front of every message (specification, section "Header").
type Header struct {
	ID      uint16 // chosen by the sender of the command, echoed in the reply; may repeat at any time
	Command Command
	Size    uint32 // of the whole message in bytes, this header included
	Flags   Flags
	Errno   uint32 // in a reply with FlagError: a Linux errno, or 0
}

// ParseHeader reads a header from the front of b, which must hold at least
// HeaderSize bytes, and checks what the framing rests on: the size covers the
// header, and the type is command or reply. The error is a *ProtocolError.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, protocolErrorf("header of %d bytes", len(b))
	}
	h := Header{
		ID:      le.Uint16(b[0:]),
		Command: Command(le.Uint16(b[2:])),
		Size:    le.Uint32(b[4:]),
		Flags:   Flags(le.Uint32(b[8:])),
		Errno:   le.Uint32(b[12:]),
	}
	if h.Size < HeaderSize {
		return h, protocolErrorf("message %#x (%v) gives its size as %d bytes, less than its header", h.ID, h.Command, h.Size)
	}
	if t := h.Flags & TypeMask; t != 0 && t != FlagReply {
		return h, protocolErrorf("message %#x (%v) has unknown type %d", h.ID, h.Command, uint32(t))
	}
	return h, nil
}

// Put writes the header to the first HeaderSize bytes of b.
func (h *Header) Put(b []byte) {
	_ = b[HeaderSize-1]
	le.PutUint16(b[0:], h.ID)
	le.PutUint16(b[2:], uint16(h.Command))
	le.PutUint32(b[4:], h.Size)
	le.PutUint32(b[8:], uint32(h.Flags))
	le.PutUint32(b[12:], h.Errno)
}

// IsReply tells replies from commands.
func (h *Header) IsReply() bool { return h.Flags&TypeMask == FlagReply }

// WantsReply reports whether the message is a command that must be answered.
func (h *Header) WantsReply() bool { return !h.IsReply() && h.Flags&FlagNoAck == 0 }

// Err returns nil, or the *ReplyError a reply carries.
func (h *Header) Err() error {
	if !h.IsReply() || h.Flags&FlagError == 0 {
		return nil
	}
	return &ReplyError{Command: h.Command, Errno: syscall.Errno(h.Errno)}
}
