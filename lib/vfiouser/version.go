// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Limits and defaults of the version negotiation (specification, section
// "VFIO_USER_VERSION").
const (
	// MaxVersionSize is the longest VERSION payload taken, in bytes. QEMU
	// sends 198.
	MaxVersionSize = 4096

	DefaultMaxMsgFDs       = 1       // what a peer takes that does not say
	DefaultMaxDataXferSize = 1 << 20 // bytes
	DefaultMaxDMAMaps      = 65535
	DefaultPageSizes       = 4096

	versionFixedSize = 4
)

// Version is the payload of VERSION and of its reply.
type Version struct {
	Major, Minor uint16
	Capabilities Capabilities
}

// Capabilities is what a peer can take. The JSON names are those of the
// specification.
type Capabilities struct {
	// MaxMsgFDs is the most file descriptors the peer takes in one message.
	MaxMsgFDs uint32 `json:"max_msg_fds"`
	// MaxDataXferSize is the most data the peer takes in one read or write,
	// in bytes.
	MaxDataXferSize uint64 `json:"max_data_xfer_size"`
	// MaxDMAMaps is how many DMA regions there may be at one time.
	MaxDMAMaps uint64 `json:"max_dma_maps"`
	// PageSizes are the page sizes of DMA regions, or'ed together.
	PageSizes uint64 `json:"pgsizes"`
	// WriteMultiple: the peer knows REGION_WRITE_MULTI.
	WriteMultiple bool `json:"write_multiple"`
	// Migration is nil if the peer says nothing of dirty page tracking.
	Migration *Migration `json:"migration,omitempty"`
	// TwinSocket is nil if the peer cannot take commands on a second socket.
	TwinSocket *TwinSocket `json:"twin_socket,omitempty"`
}

// Migration is the dirty page tracking a peer asks for. It is not in the
// specification any more; QEMU 11 still sends it.
type Migration struct {
	PageSize      uint64 `json:"pgsize"`          // of a bit of the bitmap, in bytes
	MaxBitmapSize uint64 `json:"max_bitmap_size"` // in bytes
}

// TwinSocket offers, and in a reply sets up, a second socket for commands from
// the server.
type TwinSocket struct {
	Supported bool    `json:"supported"`
	FDIndex   *uint32 `json:"fd_index,omitempty"` // reply only: which of the descriptors it is
}

// DefaultCapabilities returns what the specification says of a peer that says
// nothing.
func DefaultCapabilities() Capabilities {
	return Capabilities{
		MaxMsgFDs:       DefaultMaxMsgFDs,
		MaxDataXferSize: DefaultMaxDataXferSize,
		MaxDMAMaps:      DefaultMaxDMAMaps,
		PageSizes:       DefaultPageSizes,
	}
}

// versionData is the JSON document after the version numbers.
type versionData struct {
	Capabilities Capabilities `json:"capabilities"`
}

// ParseVersion reads a VERSION request or reply. The JSON document is
// optional, unknown names in it are ignored, and what it does not mention has
// the default of the specification.
func ParseVersion(b []byte) (Version, error) {
	const what = "VERSION"
	if len(b) < versionFixedSize {
		return Version{}, shortError(what, len(b), versionFixedSize)
	}
	if len(b) > MaxVersionSize {
		return Version{}, formatErrorf(what, "payload of %d bytes, at most %d taken", len(b), MaxVersionSize)
	}
	v := Version{Major: le.Uint16(b[0:]), Minor: le.Uint16(b[2:])}
	text, _, _ := bytes.Cut(b[versionFixedSize:], []byte{0})
	data := versionData{Capabilities: DefaultCapabilities()}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &data); err != nil {
			return Version{}, formatErrorf(what, "capabilities: %v", err)
		}
	}
	v.Capabilities = data.Capabilities
	return v, nil
}

// Append adds the payload of v to b: the numbers, and the JSON document with
// its closing NUL.
func (v *Version) Append(b []byte) []byte {
	b = le.AppendUint16(b, v.Major)
	b = le.AppendUint16(b, v.Minor)
	text, err := json.Marshal(versionData{v.Capabilities})
	if err != nil { // integers and booleans always have a JSON form
		panic(fmt.Sprintf("vfiouser: encoding %+v: %v", v.Capabilities, err))
	}
	return append(append(b, text...), 0)
}

// Negotiate returns a server's reply to the client's proposal: the lower of the
// two minor versions, the server's own limits, and of the optional features
// only those the client named too. It fails if the major versions differ; the
// server then closes the connection.
//
// What the server may send is limited by the client's capabilities, not by the
// reply.
func Negotiate(client, server Version) (Version, error) {
	if client.Major != server.Major {
		return Version{}, fmt.Errorf("client speaks vfio-user %d.%d, this server %d.%d", client.Major, client.Minor, server.Major, server.Minor)
	}
	reply := server
	reply.Minor = min(client.Minor, server.Minor)
	if !client.Capabilities.WriteMultiple {
		reply.Capabilities.WriteMultiple = false
	}
	if client.Capabilities.Migration == nil {
		reply.Capabilities.Migration = nil
	}
	if t := client.Capabilities.TwinSocket; t == nil || !t.Supported {
		reply.Capabilities.TwinSocket = nil
	}
	return reply, nil
}
