// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the discovery log page.

package fabrics

import (
	"fmt"
	"strings"

	"github.com/leapio/leapio/lib/nvme"
)

// DiscoveryNQN is the well-known name of every discovery subsystem.
const DiscoveryNQN = nvme.NQNDiscovery

// TransportType is TRTYPE.
type TransportType uint8

// Values of TransportType.
const (
	TransportRDMA  TransportType = 1
	TransportFC    TransportType = 2
	TransportTCP   TransportType = 3
	TransportIntra TransportType = 254 // intra-host
)

// String returns the word that addresses and libnvme use, or the number.
func (t TransportType) String() string {
	switch t {
	case TransportRDMA:
		return "rdma"
	case TransportFC:
		return "fc"
	case TransportTCP:
		return "tcp"
	case TransportIntra:
		return "loop"
	}
	return fmt.Sprintf("transport-%d", uint8(t))
}

// AddressFamily is ADRFAM.
type AddressFamily uint8

// Values of AddressFamily.
const (
	FamilyIPv4       AddressFamily = 1
	FamilyIPv6       AddressFamily = 2
	FamilyInfiniBand AddressFamily = 3
	FamilyFC         AddressFamily = 4
	FamilyIntra      AddressFamily = 254
)

// String returns libnvme's word for it, or the number.
func (f AddressFamily) String() string {
	switch f {
	case FamilyIPv4:
		return "ipv4"
	case FamilyIPv6:
		return "ipv6"
	case FamilyInfiniBand:
		return "ib"
	case FamilyFC:
		return "fc"
	case FamilyIntra:
		return "loop"
	}
	return fmt.Sprintf("family-%d", uint8(f))
}

// SubsystemType is SUBTYPE.
type SubsystemType uint8

// Values of SubsystemType.
const (
	SubsystemReferral  SubsystemType = 1 // another discovery subsystem
	SubsystemNVM       SubsystemType = 2
	SubsystemDiscovery SubsystemType = 3 // the discovery subsystem that was asked
)

// String names the type in words.
func (t SubsystemType) String() string {
	switch t {
	case SubsystemReferral:
		return "referral"
	case SubsystemNVM:
		return "nvm"
	case SubsystemDiscovery:
		return "discovery"
	}
	return fmt.Sprintf("subtype-%d", uint8(t))
}

// Transport requirements, TREQ: whether a secure channel is needed, in bits 1:0, and flags.
const (
	TREQSecureMask        uint8 = 0x3
	TREQSecureUnspecified uint8 = 0
	TREQSecureRequired    uint8 = 1
	TREQSecureNotRequired uint8 = 2
	TREQNoFlowControl     uint8 = 1 << 2 // SQ flow control can be disabled
)

// Entry flags, EFLAGS.
const (
	EFLAGSDuplicate  uint16 = 1 << 0 // all listeners return the same information
	EFLAGSPersistent uint16 = 1 << 1 // explicit persistent connections are supported
	EFLAGSNoCDC      uint16 = 1 << 2 // no connectivity to a centralized discovery controller
)

// Security types of NVMe/TCP, the first byte of TSAS.
const (
	SecurityNone  uint8 = 0
	SecurityTLS13 uint8 = 2
)

// MinAdminQueue is the fewest entries an admin queue has (Base Specification, "Discovery Log Page Entry", ASQSZ).
const MinAdminQueue = 32

// DiscoveryHeader begins the discovery log page; NUMREC entries follow.
type DiscoveryHeader struct {
	GENCTR uint64 // changes with the entries
	NUMREC uint64
	RECFMT uint16 // 0
	_      [1006]byte
}

// DiscoveryEntry is a record of the discovery log page.
type DiscoveryEntry struct {
	TRTYPE  TransportType
	ADRFAM  AddressFamily
	SUBTYPE SubsystemType
	TREQ    uint8
	PORTID  uint16 // tells the subsystem's ports apart
	CNTLID  uint16 // to be used in Connect; CNTLIDDynamic where any will do
	ASQSZ   uint16 // largest admin queue, entries
	EFLAGS  uint16
	_       [20]byte
	TRSVCID [32]byte // ASCII, padded with spaces
	_       [192]byte
	SUBNQN  [256]byte // NUL-terminated
	TRADDR  [256]byte // ASCII, padded with spaces
	TSAS    [256]byte // transport specific: for TCP, SECTYPE in the first byte
}

// Subsystem returns SUBNQN, safe to print whoever wrote it.
func (e *DiscoveryEntry) Subsystem() string { return nvme.ASCII(cutNUL(e.SUBNQN[:])) }

// Address returns TRADDR, safe to print whoever wrote it.
func (e *DiscoveryEntry) Address() string { return nvme.ASCII(cutNUL(e.TRADDR[:])) }

// Service returns TRSVCID, for TCP the port in decimal, safe to print whoever wrote it.
func (e *DiscoveryEntry) Service() string { return nvme.ASCII(cutNUL(e.TRSVCID[:])) }

// Set stores where the subsystem nqn is reached.
func (e *DiscoveryEntry) Set(nqn, traddr, trsvcid string) {
	nvme.SetNQN(&e.SUBNQN, nqn)
	nvme.SetASCII(e.TRADDR[:], traddr)
	nvme.SetASCII(e.TRSVCID[:], trsvcid)
}

// cutNUL returns the bytes before the first NUL: some targets pad with those.
func cutNUL(field []byte) []byte {
	if i := strings.IndexByte(string(field), 0); i >= 0 {
		return field[:i]
	}
	return field
}
