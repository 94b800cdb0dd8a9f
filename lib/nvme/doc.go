// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package nvme declares the NVM Express wire formats once for the whole project: queue entries, opcodes, status codes, controller
// registers, identify data, log pages, feature values and the naming rules that go with them.
//
// It follows the NVM Express Base Specification 2.x, the NVM Command Set Specification 1.x and the NVMe over PCIe Transport
// Specification 1.x; comments name the section title rather than a number, since numbers move between revisions. Field names are the
// specification's abbreviations.
//
// The package does no I/O, keeps no state, and imports only the standard library. All structures have the exact size and field offsets of
// the wire (checked at compile time in wire_unsafe.go) and are used in place through [Bytes]; NVMe is little-endian, and so are the hosts
// this package builds for: amd64 and arm64. On others [Bytes] does not exist.
//
// Everything read from a peer is data of unknown quality: accessors and formatters accept any bit pattern without a panic.
package nvme
