// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the Fabrics commands and their responses.

package fabrics

import (
	"bytes"
	"fmt"

	"github.com/leapio/leapio/lib/nvme"
)

// Opcode is the opcode of every Fabrics command, on admin and I/O queues.
const Opcode = uint8(nvme.AdminFabrics)

// CommandType is the Fabrics Command Type, FCTYPE.
type CommandType uint8

// Fabrics commands (Base Specification, "Fabrics Commands").
const (
	PropertySet           CommandType = 0x00
	Connect               CommandType = 0x01
	PropertyGet           CommandType = 0x04
	AuthenticationSend    CommandType = 0x05
	AuthenticationReceive CommandType = 0x06
	Disconnect            CommandType = 0x08
)

var commandNames = map[CommandType]string{
	PropertySet:           "Property Set",
	Connect:               "Connect",
	PropertyGet:           "Property Get",
	AuthenticationSend:    "Authentication Send",
	AuthenticationReceive: "Authentication Receive",
	Disconnect:            "Disconnect",
}

// String returns the specification's name, or the number.
func (t CommandType) String() string {
	if name, ok := commandNames[t]; ok {
		return name
	}
	return fmt.Sprintf("Fabrics Command %02Xh", uint8(t))
}

// Status codes of Fabrics commands, SCT 1. Their numbers mean something else in the responses of I/O commands.
const (
	StatusIncompatibleFormat     nvme.Status = 0x180 // RECFMT is not supported
	StatusControllerBusy         nvme.Status = 0x181
	StatusInvalidParameters      nvme.Status = 0x182 // see InvalidParameter
	StatusRestartDiscovery       nvme.Status = 0x183
	StatusInvalidHost            nvme.Status = 0x184 // not allowed to connect
	StatusInvalidQueueType       nvme.Status = 0x185 // Disconnect of the admin queue
	StatusDiscoverRestart        nvme.Status = 0x190
	StatusAuthenticationRequired nvme.Status = 0x191
)

var statusNames = map[nvme.Status]string{
	StatusIncompatibleFormat:     "Connect Incompatible Format",
	StatusControllerBusy:         "Connect Controller Busy",
	StatusInvalidParameters:      "Connect Invalid Parameters",
	StatusRestartDiscovery:       "Connect Restart Discovery",
	StatusInvalidHost:            "Connect Invalid Host",
	StatusInvalidQueueType:       "Invalid Queue Type",
	StatusDiscoverRestart:        "Discover Restart",
	StatusAuthenticationRequired: "Authentication Required",
}

// StatusText returns the specification's words for the status of a Fabrics command.
func StatusText(st nvme.Status) string {
	if name, ok := statusNames[st.Code()]; ok {
		return name
	}
	return st.String()
}

// TypeOf returns the Fabrics Command Type of a command whose opcode is Opcode.
func TypeOf(e *nvme.SQE) CommandType { return CommandType(e.NSID) }

// setType makes e a Fabrics command.
func setType(e *nvme.SQE, t CommandType) {
	e.Opcode, e.NSID = Opcode, uint32(t)
}

// Connect attributes, CATTR.
const (
	CATTRPriorityMask         uint8 = 0x3
	CATTRNoFlowControl        uint8 = 1 << 2 // disable SQ flow control: the response's SQHD is not used
	CATTRIndividualIODeletion uint8 = 1 << 3 // the host deletes I/O queues by Disconnect
)

// ConnectCommand holds the fields of Connect.
type ConnectCommand struct {
	RECFMT uint16 // 0
	QID    uint16 // 0 for the admin queue
	SQSIZE uint16 // entries minus one
	CATTR  uint8
	KATO   uint32 // Keep Alive Timeout in milliseconds, 0 for none; admin queue only
}

// ConnectOf reads the fields of Connect.
func ConnectOf(e *nvme.SQE) ConnectCommand {
	return ConnectCommand{
		RECFMT: uint16(e.CDW10), QID: uint16(e.CDW10 >> 16),
		SQSIZE: uint16(e.CDW11), CATTR: uint8(e.CDW11 >> 16), KATO: e.CDW12,
	}
}

// Put writes opcode, type and command dwords of e.
func (c ConnectCommand) Put(e *nvme.SQE) {
	setType(e, Connect)
	e.CDW10 = uint32(c.RECFMT) | uint32(c.QID)<<16
	e.CDW11 = uint32(c.SQSIZE) | uint32(c.CATTR)<<16
	e.CDW12 = c.KATO
}

// Offsets of the fields of Connect in its submission queue entry, and in its data, for InvalidParameter.
const (
	OffsetQID     = 42
	OffsetSQSIZE  = 44
	OffsetKATO    = 48
	OffsetHOSTID  = 0
	OffsetCNTLID  = 16
	OffsetSUBNQN  = 256
	OffsetHOSTNQN = 512
)

// Controller identifiers in Connect's data and in the discovery log.
const (
	CNTLIDDynamic uint16 = 0xffff // any controller: the dynamic controller model
	CNTLIDStatic  uint16 = 0xfffe // discovery log: any controller, of the static controller model
)

// ConnectData is the data of Connect (Base Specification, "Connect Command - Data").
type ConnectData struct {
	HOSTID  [16]byte
	CNTLID  uint16
	_       [238]byte
	SUBNQN  [256]byte // NUL-terminated, see Name
	HOSTNQN [256]byte
	_       [256]byte
}

// Name reads a NQN field: ok is false where no NUL ends it, or anything but NULs follows.
func Name(field *[256]byte) (nqn string, ok bool) {
	name, rest, ok := bytes.Cut(field[:], []byte{0})
	if !ok || len(bytes.Trim(rest, "\x00")) != 0 {
		return "", false
	}
	return string(name), true
}

// ConnectResult is DW0 of a successful Connect.
type ConnectResult uint32

// Bits of ConnectResult: the host has to authenticate.
const (
	AuthRequired              ConnectResult = 1 << 17 // ATR
	AuthSecureChannelRequired ConnectResult = 1 << 18 // ASCR
)

// CNTLID returns the identifier of the controller connected to.
func (r ConnectResult) CNTLID() uint16 { return uint16(r) }

// InvalidParameter is DW0 of a Connect that ended with StatusInvalidParameters: IPO, the offset of the field in bytes, and IATTR, whether
// it is in the data.
type InvalidParameter uint32

// MakeInvalidParameter returns the value for the field at offset in the submission queue entry, or in the data.
func MakeInvalidParameter(offset uint16, inData bool) InvalidParameter {
	p := InvalidParameter(offset)
	if inData {
		p |= 1 << 16
	}
	return p
}

// IPO returns the field's offset.
func (p InvalidParameter) IPO() uint16 { return uint16(p) }

// InData tells whether the field is in the data (IATTR bit 0), not in the submission queue entry.
func (p InvalidParameter) InData() bool { return p>>16&1 != 0 }

// String says which field it is.
func (p InvalidParameter) String() string {
	names, where := map[uint16]string{OffsetQID: "QID", OffsetSQSIZE: "SQSIZE", OffsetKATO: "KATO"}, "command"
	if p.InData() {
		names, where = map[uint16]string{OffsetHOSTID: "HOSTID", OffsetCNTLID: "CNTLID", OffsetSUBNQN: "SUBNQN", OffsetHOSTNQN: "HOSTNQN"}, "data"
	}
	if name, ok := names[p.IPO()]; ok {
		return name
	}
	return fmt.Sprintf("byte %d of the %s", p.IPO(), where)
}

// Property holds the fields of Property Get and Property Set.
type Property struct {
	Wide  bool   // ATTRIB: 8 bytes, else 4
	OFST  uint32 // as nvme.RegCAP and so on
	Value uint64 // of Property Set; its low 4 bytes count if not Wide
}

// Values of ATTRIB bits 2:0.
const (
	attribMask = 0x7
	attrib4    = 0
	attrib8    = 1
)

// PropertyOf reads the fields of Property Get or Property Set; ok is false where the size is reserved.
func PropertyOf(e *nvme.SQE) (p Property, ok bool) {
	attrib := uint8(e.CDW10) & attribMask
	p = Property{Wide: attrib == attrib8, OFST: e.CDW11, Value: uint64(e.CDW12) | uint64(e.CDW13)<<32}
	if !p.Wide {
		p.Value = uint64(e.CDW12)
	}
	return p, attrib == attrib4 || attrib == attrib8
}

// PutGet writes opcode, type and command dwords of a Property Get.
func (p Property) PutGet(e *nvme.SQE) {
	setType(e, PropertyGet)
	p.put(e)
}

// PutSet writes opcode, type and command dwords of a Property Set.
func (p Property) PutSet(e *nvme.SQE) {
	setType(e, PropertySet)
	p.put(e)
	e.CDW12, e.CDW13 = uint32(p.Value), 0
	if p.Wide {
		e.CDW13 = uint32(p.Value >> 32)
	}
}

func (p Property) put(e *nvme.SQE) {
	e.CDW10, e.CDW11 = attrib4, p.OFST
	if p.Wide {
		e.CDW10 = attrib8
	}
}

// PutDisconnect writes opcode, type and command dwords of a Disconnect, which deletes the I/O queue it is sent on.
func PutDisconnect(e *nvme.SQE) {
	setType(e, Disconnect)
	e.CDW10 = 0 // RECFMT
}

// DisconnectFormat returns RECFMT of Disconnect; only 0 is defined.
func DisconnectFormat(e *nvme.SQE) uint16 { return uint16(e.CDW10) }

// InCapsule returns the SGL descriptor for n bytes of data in the command's capsule, at offset 0.
func InCapsule(n uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLOffset, 0, n)
}

// InTransport returns the SGL descriptor for n bytes that the transport carries apart from the capsules.
func InTransport(n uint32) nvme.SGLDescriptor {
	return nvme.MakeSGL(nvme.SGLTransportDataBlock, nvme.SGLTransport, 0, n)
}
