// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzStructures: what parses, prints back to the same bytes; nothing panics.
func FuzzStructures(f *testing.F) {
	for i, s := range structures {
		f.Add(uint8(i), bytesOf(s.value, s.size))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		s := structures[int(which)%len(structures)]
		v, err := s.parse(b)
		if err != nil {
			return
		}
		if got := bytesOf(v.(putter), s.size); !bytes.Equal(got, b[:s.size]) {
			t.Errorf("%s: got % x, want % x", s.name, got, b[:s.size])
		}
	})
}

// FuzzIRQSet: the data is inside the payload and as long as the count says.
func FuzzIRQSet(f *testing.F) {
	set := IRQSet{ArgSize: 23, Flags: IRQDataBool | IRQActionTrigger, Index: IRQMSIX, Start: 1, Count: 3}
	f.Add(append(bytesOf(&set, IRQSetSize), 1, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, bools, err := ParseIRQSet(b)
		if err == nil && bools != nil && uint64(len(bools)) != uint64(m.Count) {
			t.Errorf("%d bools for a count of %d", len(bools), m.Count)
		}
	})
}

// FuzzRegionInfoReply: every area lies in the region.
func FuzzRegionInfoReply(f *testing.F) {
	b, _ := RegionInfoReply(RegionInfo{Flags: RegionMmap, Size: 0x2000}, []SparseArea{{0x1000, 0x1000}}, 64)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		info, areas, err := ParseRegionInfoReply(b)
		if err != nil {
			return
		}
		for _, a := range areas {
			if a.Offset+a.Size < a.Offset || a.Offset+a.Size > info.Size {
				t.Errorf("area %+v in a region of %#x bytes", a, info.Size)
			}
		}
	})
}

// FuzzRegionWrites: REGION_WRITE and REGION_WRITE_MULTI.
func FuzzRegionWrites(f *testing.F) {
	one := RegionAccess{Offset: 0x1000, Region: RegionBAR0, Count: 4}
	f.Add(append(bytesOf(&one, RegionAccessSize), 1, 2, 3, 4))
	f.Add(slices.Concat([]byte{1, 0, 0, 0, 0, 0, 0, 0}, bytesOf(&one, RegionAccessSize), make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, data, err := ParseRegionWrite(b); err == nil && int(m.Count) != len(data) {
			t.Errorf("%d bytes for a count of %d", len(data), m.Count)
		}
		w, err := ParseRegionWriteMulti(b)
		if err != nil {
			return
		}
		for i := range w.Len() {
			if m, data := w.At(i); int(m.Count) != len(data) {
				t.Errorf("write %d: %d bytes for a count of %d", i, len(data), m.Count)
			}
		}
	})
}

// FuzzVersion: what parses, survives being written and parsed again.
func FuzzVersion(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00" + qemuVersion + "\x00"))
	f.Add([]byte("\x00\x00\x01\x00{\"capabilities\":{\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseVersion(b)
		if err != nil {
			return
		}
		again, err := ParseVersion(v.Append(nil))
		if err != nil {
			t.Fatalf("after Append: %v", err)
		}
		if got, want := again.Append(nil), v.Append(nil); !bytes.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if _, err := Negotiate(v, Version{Capabilities: DefaultCapabilities()}); err != nil && v.Major == 0 {
			t.Errorf("version 0.%d refused: %v", v.Minor, err)
		}
	})
}

// FuzzStream feeds a byte stream, cut at any places and with descriptors at
// some of the cuts, to a Conn, and compares with what the bytes say.
func FuzzStream(f *testing.F) {
	one := message(Header{ID: 1, Command: CmdDMAMap}, make([]byte, DMAMapSize)...)
	two := message(Header{ID: 2, Command: CmdRegionWrite, Flags: FlagNoAck}, 1, 2, 3)
	f.Add(slices.Concat(one, two, two), []byte{5, 43, 0x80 | 1, 16})
	f.Add(slices.Concat(one, two[:9]), []byte{0x80 | 48})
	f.Add(message(Header{Flags: 7}), []byte{})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		if len(stream) > 4096 || len(cuts) > 64 {
			return
		}
		before := openFDs(t)
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		peer, own := socketPair(t)
		sent, rest := 0, stream
		for _, cut := range cuts {
			n := min(int(cut&0x7f), len(rest))
			if n == 0 {
				continue
			}
			if cut&0x80 != 0 {
				sendRaw(t, peer, rest[:n], fd)
				sent++
			} else {
				sendRaw(t, peer, rest[:n])
			}
			rest = rest[n:]
		}
		if len(rest) > 0 {
			sendRaw(t, peer, rest)
		}
		peer.Close()

		c := NewConn(own, Limits{MaxFDs: 64})
		rest, got := stream, 0
		for {
			m, err := c.ReadMessage()
			if err != nil {
				if len(rest) == 0 && err != io.EOF || len(rest) > 0 && err == io.EOF {
					t.Errorf("%d bytes left: %v", len(rest), err)
				}
				h, perr := ParseHeader(rest)
				bad := len(rest) >= HeaderSize && (perr != nil || h.Size > 1<<20+dataRoom)
				var protocol *ProtocolError
				if errors.As(err, &protocol) != bad {
					t.Errorf("header %+v, %v: got %v", h, perr, err)
				}
				break
			}
			want, err := ParseHeader(rest)
			if err != nil || m.Header != want || !bytes.Equal(m.Payload, rest[HeaderSize:want.Size]) {
				t.Fatalf("got %+v and %d bytes, want %+v, %v", m.Header, len(m.Payload), want, err)
			}
			got += m.NumFDs()
			rest = rest[want.Size:]
		}
		if len(rest) == 0 && got != sent {
			t.Errorf("%d descriptors came, %d were sent", got, sent)
		}
		c.Close()
		unix.Close(fd)
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}
