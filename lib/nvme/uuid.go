// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds UUIDs and the identifiers derived from them.

package nvme

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// UUID is a universally unique identifier (RFC 9562), in the byte order of its text form, which is also the wire's.
type UUID [16]byte

// NewUUID returns a random UUID, version 4.
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails: it ends the process instead
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// ParseUUID reads the form 01234567-89ab-cdef-0123-456789abcdef, in either case.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return UUID{}, fmt.Errorf("%.40q is not a UUID", s)
	}
	digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	if _, err := hex.Decode(u[:], []byte(digits)); err != nil {
		return UUID{}, fmt.Errorf("%q is not a UUID", s)
	}
	return u, nil
}

// String returns the text form, in lower case.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// MarshalText returns the text form.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads the text form.
func (u *UUID) UnmarshalText(text []byte) error {
	v, err := ParseUUID(string(text))
	if err == nil {
		*u = v
	}
	return err
}

// NQN returns the name the specification derives from a UUID: nqn.2014-08.org.nvmexpress:uuid:UUID.
func (u UUID) NQN() string { return NQNUUID + u.String() }

// NGUID returns the namespace globally unique identifier of a volume with this UUID: the UUID's bytes, of which the first octet of the
// OUI field (byte 8) is marked as locally administered and individual (U/L bit 1, I/G bit 0), since no registered OUI is claimed. It is
// never zero, and it differs for UUIDs that differ in any of the other 126 bits. EUI64 stays zero, "not provided".
func (u UUID) NGUID() [16]uint8 {
	const individualGroup, universalLocal = 0x01, 0x02
	u[8] = u[8]&^individualGroup | universalLocal
	return u
}

// SerialNumber returns the serial number of a subsystem with this UUID: its first 20 hexadecimal digits, which fill IdentifyController.SN.
func (u UUID) SerialNumber() string { return hex.EncodeToString(u[:10]) }
