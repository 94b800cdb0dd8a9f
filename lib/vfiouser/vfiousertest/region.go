// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"

	"github.com/leapio/leapio/lib/vfiouser"
)

// ReadRegion reads len(b) bytes of a region.
func (c *Client) ReadRegion(region vfiouser.Region, offset uint64, b []byte) error {
	var payload [vfiouser.RegionAccessSize]byte
	access := vfiouser.RegionAccess{Offset: offset, Region: region, Count: uint32(len(b))}
	access.Put(payload[:])
	r, err := c.Call(vfiouser.CmdRegionRead, nil, payload[:])
	if err != nil {
		return fmt.Errorf("reading %v at %#x: %w", region, offset, err)
	}
	got, data, err := vfiouser.ParseRegionWrite(r.Payload)
	if err != nil {
		return fmt.Errorf("reading %v at %#x: %w", region, offset, err)
	}
	if got != access {
		return fmt.Errorf("reading %+v: the reply is for %+v", access, got)
	}
	copy(b, data)
	return nil
}

// WriteRegion writes to a region and waits until the server says it is done, as
// QEMU writes to configuration space.
func (c *Client) WriteRegion(region vfiouser.Region, offset uint64, b []byte) error {
	var payload [vfiouser.RegionAccessSize]byte
	access := vfiouser.RegionAccess{Offset: offset, Region: region, Count: uint32(len(b))}
	access.Put(payload[:])
	r, err := c.Call(vfiouser.CmdRegionWrite, nil, payload[:], b)
	if err != nil {
		return fmt.Errorf("writing %v at %#x: %w", region, offset, err)
	}
	got, err := vfiouser.ParseRegionAccess(r.Payload)
	if err != nil || got != access {
		return fmt.Errorf("writing %+v: the reply is for %+v, %v", access, got, err)
	}
	return nil
}

// PostRegion writes to a region without waiting, as QEMU writes to BARs. It
// allocates nothing.
func (c *Client) PostRegion(region vfiouser.Region, offset uint64, b []byte) error {
	var payload [vfiouser.RegionAccessSize]byte
	access := vfiouser.RegionAccess{Offset: offset, Region: region, Count: uint32(len(b))}
	access.Put(payload[:])
	return c.Post(vfiouser.CmdRegionWrite, nil, payload[:], b)
}

// Read32 reads a register of BAR0.
func (c *Client) Read32(offset uint64) (uint32, error) {
	var b [4]byte
	err := c.ReadRegion(vfiouser.RegionBAR0, offset, b[:])
	return le.Uint32(b[:]), err
}

// Read64 reads a 64-bit register of BAR0 as guests do: the low half, then the
// high half.
func (c *Client) Read64(offset uint64) (uint64, error) {
	low, err := c.Read32(offset)
	if err != nil {
		return 0, err
	}
	high, err := c.Read32(offset + 4)
	return uint64(high)<<32 | uint64(low), err
}

// Write32 writes a register of BAR0 without waiting.
func (c *Client) Write32(offset uint64, v uint32) error {
	var b [4]byte
	le.PutUint32(b[:], v)
	return c.PostRegion(vfiouser.RegionBAR0, offset, b[:])
}

// Write64 writes a 64-bit register of BAR0 as guests do: the low half, then the
// high half.
func (c *Client) Write64(offset uint64, v uint64) error {
	if err := c.Write32(offset, uint32(v)); err != nil {
		return err
	}
	return c.Write32(offset+4, uint32(v>>32))
}

// pciConfigSize is how much configuration space QEMU reads at the start.
const pciConfigSize = 4096

// Registers of configuration space (PCI Local Bus Specification 3.0, section
// 6.1, and PCI Express Base Specification, section 7.7.2 for MSI-X).
const (
	pciVendor         = 0x00
	pciCommand        = 0x04
	pciStatus         = 0x06
	pciRevision       = 0x08
	pciClass          = 0x0a
	pciHeaderType     = 0x0e
	pciBAR0           = 0x10
	pciBAR4           = 0x20
	pciROM            = 0x30
	pciCapabilities   = 0x34
	pciInterruptLine  = 0x3c
	pciInterruptPin   = 0x3d
	pciStatusCapList  = 1 << 4
	pciCapMSIX        = 0x11
	msixControl       = 2       // offset in the capability
	msixTable         = 4       // offset in the capability
	msixPBA           = 8       // offset in the capability
	msixEnable        = 1 << 15 // in the control word
	msixMaskAll       = 1 << 14 // in the control word
	pciCommandIO      = 1 << 0
	pciCommandMemory  = 1 << 1
	pciCommandMaster  = 1 << 2
	pciCommandSERR    = 1 << 8
	pciCommandINTxOff = 1 << 10
)

// ReadConfig reads 1, 2 or 4 bytes of configuration space from the server.
func (c *Client) ReadConfig(offset uint64, size int) (uint32, error) {
	var b [4]byte
	err := c.ReadRegion(vfiouser.RegionConfig, offset, b[:size])
	return le.Uint32(b[:]), err
}

// WriteConfig writes 1, 2 or 4 bytes of configuration space and waits for the
// reply.
func (c *Client) WriteConfig(offset uint64, size int, v uint32) error {
	var b [4]byte
	le.PutUint32(b[:], v)
	return c.WriteRegion(vfiouser.RegionConfig, offset, b[:size])
}

// Capability returns where in configuration space the capability with this ID
// begins, 0 if the device has none, from the copy read at the start.
func (c *Client) Capability(id uint8) uint64 {
	if c.config[pciStatus]&pciStatusCapList == 0 {
		return 0
	}
	at := c.config[pciCapabilities]
	for range 48 { // as many as fit: a loop ends too
		at &^= 3
		if at < 0x40 {
			return 0
		}
		if c.config[at] == id {
			return uint64(at)
		}
		at = c.config[at+1]
	}
	return 0
}

// Command writes the command register of configuration space. With mapped
// doorbells QEMU also maps, or unmaps, the doorbell page as if it were memory
// the device might use, without a file descriptor.
func (c *Client) Command(v uint16) error {
	if err := c.WriteConfig(pciCommand, 2, uint32(v)); err != nil {
		return err
	}
	c.mu.Lock()
	old := c.command
	c.command = v
	c.mu.Unlock()
	if c.doorbells == nil || (old^v)&pciCommandMemory == 0 {
		return nil
	}
	page := Mapping{Address: c.bar0 + c.areas[0].Offset, Size: c.areas[0].Size, Flags: vfiouser.DMARead | vfiouser.DMAWrite, FD: -1}
	if v&pciCommandMemory != 0 {
		return c.Map(page)
	}
	return c.Unmap(page.Address, page.Size)
}
