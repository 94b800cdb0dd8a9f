// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package vfiouser speaks the vfio-user protocol on the wire: the messages
// with which a virtual machine monitor (the client, QEMU for one) and a device
// in another process (the server) talk over a UNIX stream socket.
//
// It holds wire formats and a connection, and no device policy: what a message
// means for a device is the server's business. The same types serve both
// sides.
//
//   - header.go: the 16 bytes in front of every message, commands, flags
//   - version.go: version and capability negotiation
//   - dma.go, device.go, region.go, irq.go, feature.go: one family of payloads
//     each
//   - conn.go, send.go: messages over a socket, with their file descriptors
//   - errors.go: what can be wrong, and whose fault it is
//
// The specification is "vfio-user Protocol Specification" (QEMU,
// docs/interop/vfio-user.rst; libvfio-user, docs/vfio-user.rst), called "the
// specification" here; structures and flags it takes from Linux are those of
// <linux/vfio.h>. All integers are little endian: the protocol uses the byte
// order of the host, and this package runs on little-endian hosts only.
//
// Each structure is declared once, with a Size constant, a Parse function and
// a Put method. Parse takes a payload (what follows the header), checks its
// length and never panics; bytes after the structure are the caller's. Put
// writes exactly Size bytes to the front of b and panics if b is shorter, as
// encoding/binary does.
package vfiouser
