// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package fabrics declares the wire formats of NVMe over Fabrics once for both roles, host and controller: the capsules of Fabrics
// commands, the discovery log page, the PDUs of NVMe/TCP, and the addresses that users write.
//
// It follows the NVM Express Base Specification 2.x ("Fabrics Command Set", "Discovery Log Page") and the NVMe/TCP Transport Specification
// 1.x; comments name the section title. Field names are the specification's abbreviations.
//
// The package does no I/O and keeps no state. As in lib/nvme, structures have the size and the offsets of the wire, checked at compile
// time in wire_unsafe.go, and are used in place through [Bytes].
//
// Everything read from a peer is data of unknown quality: accessors accept any bit pattern without a panic, and [Framing.Check] tells what
// is wrong with the header of a PDU in the terms of the termination request that the peer is to get.
package fabrics

// Ports of the well-known services (NVMe/TCP and NVMe/RDMA Transport Specifications, "Well Known Ports").
const (
	PortNVMe      = 4420 // I/O controllers, and discovery controllers where nothing else is said
	PortDiscovery = 8009 // discovery controllers over TCP
)
