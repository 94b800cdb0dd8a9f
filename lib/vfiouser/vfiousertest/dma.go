// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser"
)

// Mapping is a DMA region as the client maps it.
type Mapping struct {
	Address uint64
	Size    uint64 // in bytes
	Offset  uint64 // in the file
	Flags   vfiouser.DMAFlags
	FD      int // -1: mapped without a file descriptor
}

// biosROM is the firmware at the end of the first 4 GiB. QEMU maps it read-only
// and without a file descriptor.
var biosROM = Mapping{Address: 0xfffc0000, Size: 0x40000, Flags: vfiouser.DMARead, FD: -1}

// MapMemory maps the guest's RAM and its firmware, as QEMU does at the start:
// all messages go out before the first reply is waited for.
func (c *Client) MapMemory() error {
	all := c.mem.Mappings()
	return c.MapAll(slices.Insert(all, 1, biosROM))
}

// Map sends one DMA_MAP and waits for the reply.
func (c *Client) Map(m Mapping) error { return c.MapAll([]Mapping{m}) }

// MapAll sends a DMA_MAP for each mapping back to back, then waits for all
// replies. It returns the first error.
func (c *Client) MapAll(all []Mapping) error {
	c.big.Lock()
	defer c.big.Unlock()
	waits := make([]pending, 0, len(all))
	var first error
	for _, m := range all {
		var b [vfiouser.DMAMapSize]byte
		request := vfiouser.DMAMap{ArgSize: vfiouser.DMAMapSize, Flags: m.Flags, Offset: m.Offset, Address: m.Address, Size: m.Size}
		request.Put(b[:])
		var fds []int
		if m.FD >= 0 {
			fds = []int{m.FD}
		}
		p, err := c.send(vfiouser.CmdDMAMap, fds, b[:])
		if err != nil {
			first = err
			break
		}
		waits = append(waits, p)
	}
	for i, p := range waits {
		if _, err := c.wait(p); err != nil {
			if first == nil {
				first = fmt.Errorf("mapping %#x+%#x: %w", all[i].Address, all[i].Size, err)
			}
			continue
		}
		c.mu.Lock()
		c.maps = append(c.maps, all[i])
		c.mu.Unlock()
	}
	return first
}

// Unmap sends DMA_UNMAP and checks that the reply repeats it.
func (c *Client) Unmap(address, size uint64) error {
	var b [vfiouser.DMAUnmapSize]byte
	request := vfiouser.DMAUnmap{ArgSize: vfiouser.DMAUnmapSize, Address: address, Size: size}
	request.Put(b[:])
	r, err := c.Call(vfiouser.CmdDMAUnmap, nil, b[:])
	if err != nil {
		return fmt.Errorf("unmapping %#x+%#x: %w", address, size, err)
	}
	if got, err := vfiouser.ParseDMAUnmap(r.Payload); err != nil || got != request {
		return fmt.Errorf("unmapping %+v: the reply is %+v, %v", request, got, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.maps = slices.DeleteFunc(c.maps, func(m Mapping) bool { return m.Address == address && m.Size == size })
	return nil
}

// piece is a part of the first MiB and what follows, with a size of 0 for the
// rest of the RAM below 4 GiB.
type piece struct {
	address, size uint64
	flags         vfiouser.DMAFlags
	shared        bool // with a file descriptor
}

// pamStates are the ways in which firmware and kernel cut up the RAM below 4
// GiB while they set the access of the areas below 1 MiB (PAM registers), as
// seen from a Linux guest in QEMU: the first is the whole.
var pamStates = func() [][]piece {
	const ro, rw = vfiouser.DMARead, vfiouser.DMARead | vfiouser.DMAWrite
	return [][]piece{
		{{0, 0, rw, true}},
		{{0, 0xc0000, rw, true}, {0xc0000, 0x20000, ro, false}, {0xe0000, 0x20000, ro, false}, {0x100000, 0, rw, true}},
		{{0, 0xd8000, rw, true}, {0xd8000, 0x8000, ro, false}, {0xe0000, 0x10000, ro, false}, {0xf0000, 0, rw, true}},
		{{0, 0xc3000, rw, true}, {0xc3000, 0x15000, ro, true}, {0xd8000, 0x18000, rw, true}, {0xf0000, 0x10000, ro, true}, {0x100000, 0, rw, true}},
		{{0, 0xc3000, rw, true}, {0xc3000, 0x25000, ro, true}, {0xe8000, 0x8000, rw, true}, {0xf0000, 0x10000, ro, true}, {0x100000, 0, rw, true}},
	}
}()

// PAMStates is how many states SetPAM knows.
const PAMStates = 5

// pamMappings returns the pieces of a state as mappings.
func (c *Client) pamMappings(state int) []Mapping {
	var all []Mapping
	for _, p := range pamStates[state] {
		m := Mapping{Address: p.address, Size: p.size, Offset: p.address, Flags: p.flags, FD: c.mem.fd}
		if m.Size == 0 {
			m.Size = c.mem.options.Low - m.Address
		}
		if !p.shared {
			m.Offset, m.FD = 0, -1
		}
		all = append(all, m)
	}
	return all
}

// SetPAM cuts up the RAM below 4 GiB in another way: state 0 is one piece, 1 to
// PAMStates-1 are pieces, some of them read-only or without a file descriptor.
// All of the old pieces are unmapped first, each with a message of its own, then
// the new ones mapped. In between the device has no memory there.
func (c *Client) SetPAM(state int) error {
	for _, m := range c.pamMappings(c.pam) {
		if err := c.Unmap(m.Address, m.Size); err != nil {
			return err
		}
	}
	c.pam = state
	return c.MapAll(c.pamMappings(state))
}

// ChurnPAM goes through every PAM state and ends with the RAM in one piece.
func (c *Client) ChurnPAM() error {
	for _, state := range []int{1, 2, 0, 3, 4, 0} {
		if err := c.SetPAM(state); err != nil {
			return err
		}
	}
	return nil
}

// serve answers the server's DMA_READ and DMA_WRITE, one after the other and
// never while a caller waits for a reply. It ends with the connection.
func (c *Client) serve() {
	for cmd := range c.commands {
		c.big.Lock()
		c.serveOne(cmd)
		c.big.Unlock()
	}
}

// serveOne answers one command. An error of the connection shows elsewhere.
func (c *Client) serveOne(cmd request) {
	if cmd.header.Command != vfiouser.CmdDMARead && cmd.header.Command != vfiouser.CmdDMAWrite {
		c.conn.ReplyError(cmd.header, unix.ENOSYS)
		return
	}
	access, err := vfiouser.ParseDMAAccess(cmd.payload)
	if err != nil {
		c.conn.ReplyError(cmd.header, err)
		return
	}
	head, data := cmd.payload[:vfiouser.DMAAccessSize], cmd.payload[vfiouser.DMAAccessSize:]
	want := vfiouser.DMARead
	if cmd.header.Command == vfiouser.CmdDMAWrite {
		want = vfiouser.DMAWrite
	}
	if access.Count > vfiouser.DefaultMaxDataXferSize || want == vfiouser.DMAWrite && access.Count > uint64(len(data)) {
		c.conn.ReplyError(cmd.header, unix.E2BIG)
		return
	}
	ram, err := c.reach(access.Address, access.Count, want)
	if err != nil {
		c.conn.ReplyError(cmd.header, err)
		return
	}
	if want == vfiouser.DMAWrite {
		copy(ram, data[:access.Count])
		c.conn.Reply(cmd.header, head)
		return
	}
	c.conn.Reply(cmd.header, head, ram)
}

// reach returns RAM the device may use: in one mapping that allows it, while
// the guest lets the device be a bus master. QEMU says ENODEV to the rest.
func (c *Client) reach(address, n uint64, want vfiouser.DMAFlags) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.command&pciCommandMaster == 0 {
		return nil, unix.ENODEV
	}
	for _, m := range c.maps {
		if address >= m.Address && address-m.Address <= m.Size && n <= m.Size-(address-m.Address) && m.Flags&want != 0 {
			b, err := c.mem.Bytes(address, n)
			if err != nil {
				return nil, unix.ENODEV
			}
			return b, nil
		}
	}
	return nil, unix.ENODEV
}
