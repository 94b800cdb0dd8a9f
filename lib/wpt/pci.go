// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
)

// PCI identity of every port, beside qpair.PCIVendor. The vendor is not one
// that PCI-SIG has assigned: as other virtual devices of this family do, LeapIO
// uses letters, "LI", that name no vendor in the public list. Hence no driver's
// table of quirks (nvme in Linux, for one) has a row for it, and drivers bind by
// class code: an id of Red Hat's would bring QEMU's quirks (1b36:0010) or virtio
// drivers (1af4) along.
const (
	PCIDevice    = 0x0001
	PCISubsystem = 0x0001
	PCIRevision  = 0x01
)

// Sizes of the regions in bytes. BAR0 has the registers in its first page, the
// doorbells in the second, and nothing in the others.
const (
	bar0Size   = 16 << 10
	bar4Size   = 4 << 10
	configSize = 4 << 10
)

// Offsets in configuration space that code refers to (PCI Local Bus 3.0, 6.1;
// PCI Express Base 5.0, 7.5). The capabilities lie where the table below has
// them.
const (
	cfgCommand       = 0x04
	cfgBAR0          = 0x10
	cfgBAR4          = 0x20
	cfgCapPointer    = 0x34
	cfgPM            = 0x40
	cfgMSIX          = 0x50
	cfgPCIe          = 0x60
	cfgDeviceControl = cfgPCIe + 0x08

	flrBit   = 0x80 // Initiate Function Level Reset, in byte 1 of Device Control
	bar64Bit = 0x4  // a memory BAR of 64 bits, not prefetchable

	msixPBA = 16 * qpair.Vectors // the pending bits follow the table
)

var _ [bar4Size - msixPBA - qpair.Vectors/8]byte // both fit into BAR4

// configRegister is one row of the configuration space: what it holds after a
// reset, and which of its bits software can change.
type configRegister struct {
	offset, width int // bytes
	name          string
	value, write  uint32
}

// configRegisters is the configuration space. What has no row reads as 0 and
// ignores writes, the extended space (no capability) included.
var configRegisters = []configRegister{
	{0x00, 2, "vendor id", qpair.PCIVendor, 0},
	{0x02, 2, "device id", PCIDevice, 0},
	{cfgCommand, 2, "command", 0, 0x0546}, // memory, bus master, parity, SERR, INTx disable; there is no I/O BAR
	{0x06, 2, "status", 0x0010, 0},        // there are capabilities
	{0x08, 1, "revision", PCIRevision, 0},
	{0x09, 1, "programming interface", 0x02, 0}, // 010802: NVM Express I/O controller
	{0x0a, 2, "class", 0x0108, 0},
	{0x0c, 1, "cache line size", 0, 0xff},
	{cfgBAR0, 4, "BAR0", bar64Bit, ^uint32(bar0Size - 1)},
	{cfgBAR0 + 4, 4, "BAR0 high", 0, 0xffffffff},
	{cfgBAR4, 4, "BAR4", bar64Bit, ^uint32(bar4Size - 1)},
	{cfgBAR4 + 4, 4, "BAR4 high", 0, 0xffffffff},
	{0x2c, 2, "subsystem vendor id", qpair.PCIVendor, 0},
	{0x2e, 2, "subsystem id", PCISubsystem, 0},
	{cfgCapPointer, 1, "capabilities", cfgPM, 0},
	{0x3c, 1, "interrupt line", 0, 0xff},
	{0x3d, 1, "interrupt pin", 1, 0}, // INTA

	{cfgPM, 2, "power management", 0x01 | cfgMSIX<<8, 0},
	{cfgPM + 2, 2, "PM capabilities", 0x0003, 0},                 // version 1.2, no PME
	{cfgPM + 4, 2, "PM control/status", 0x0008, 0x0003},          // no soft reset; power state
	{cfgMSIX, 2, "MSI-X", 0x11 | cfgPCIe<<8, 0},                  //
	{cfgMSIX + 2, 2, "MSI-X control", qpair.Vectors - 1, 0xc000}, // enable, function mask
	{cfgMSIX + 4, 4, "MSI-X table", 4, 0},                        // BAR4 at 0
	{cfgMSIX + 8, 4, "MSI-X pending bits", msixPBA | 4, 0},
	{cfgPCIe, 2, "PCI Express", 0x10, 0},
	{cfgPCIe + 0x02, 2, "PCIe capabilities", 0x0002, 0},       // version 2, endpoint
	{cfgPCIe + 0x04, 4, "device capabilities", 0x10008000, 0}, // FLR, role-based errors
	{cfgDeviceControl, 2, "device control", 0x2810, 0x78ff},
	{cfgPCIe + 0x0c, 4, "link capabilities", 0x00400011, 0}, // 2.5 GT/s, x1, ASPM optionality
	{cfgPCIe + 0x10, 2, "link control", 0, 0x00cb},
	{cfgPCIe + 0x12, 2, "link status", 0x0011, 0},
	{cfgPCIe + 0x24, 4, "device capabilities 2", 0x00000010, 0}, // completion timeout disable
	{cfgPCIe + 0x28, 2, "device control 2", 0, 0x0010},
	{cfgPCIe + 0x2c, 4, "link capabilities 2", 0x00000002, 0}, // 2.5 GT/s
	{cfgPCIe + 0x30, 2, "link control 2", 0x0001, 0},
}

// configImage and configMask are the table as bytes: the space after a reset,
// and the bits that can be written.
var configImage, configMask = buildConfig()

func buildConfig() (image, mask [configSize]byte) {
	var value, write [4]byte
	for _, r := range configRegisters {
		binary.LittleEndian.PutUint32(value[:], r.value)
		binary.LittleEndian.PutUint32(write[:], r.write)
		copy(image[r.offset:r.offset+r.width], value[:])
		copy(mask[r.offset:r.offset+r.width], write[:])
	}
	return image, mask
}

// pciConfig is the configuration space of one port.
type pciConfig [configSize]byte

// reset gives every register its value after a reset.
func (c *pciConfig) reset() { *c = configImage }

// read reads len(b) bytes at off: any that lie in the space.
func (c *pciConfig) read(off uint64, b []byte) error {
	if err := checkAccess("configuration space", off, len(b), configSize); err != nil {
		return err
	}
	copy(b, c[off:])
	return nil
}

// write writes b at off, bit by bit where software may. It reports whether the
// write asks for a function level reset, which it leaves to the caller.
func (c *pciConfig) write(off uint64, b []byte) (flr bool, err error) {
	if err := checkAccess("configuration space", off, len(b), configSize); err != nil {
		return false, err
	}
	for i, v := range b {
		at := off + uint64(i)
		if at == cfgDeviceControl+1 && v&flrBit != 0 {
			flr = true // the bit itself always reads as 0
		}
		c[at] = c[at]&^configMask[at] | v&configMask[at]
	}
	return flr, nil
}

// bar0 returns where BAR0 lies in guest-physical memory.
func (c *pciConfig) bar0() uint64 {
	return binary.LittleEndian.Uint64(c[cfgBAR0:]) &^ (bar0Size - 1)
}

// ownPage reports whether [addr, addr+size) is the doorbell page of this
// function as the client has placed it. With mapped doorbells QEMU registers it
// as memory, without a file descriptor.
func (c *pciConfig) ownPage(addr, size uint64) bool {
	bar := c.bar0()
	return bar != 0 && addr == bar+nvme.RegDoorbells && size <= bar0Size-nvme.RegDoorbells
}

// checkAccess reports whether n bytes at off lie in a region of size bytes.
func checkAccess(what string, off uint64, n int, size uint64) error {
	if n == 0 || off >= size || uint64(n) > size-off {
		return fmt.Errorf("%s: access to %d bytes at %#x: %w", what, n, off, unix.EINVAL)
	}
	return nil
}
