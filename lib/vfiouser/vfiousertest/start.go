// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser"
)

// Start does what QEMU 11.1 does when a machine with this device starts, and
// then what firmware does to a PCI device, message by message: negotiate, map
// the guest's memory, ask for regions and interrupts, read configuration space,
// switch INTx on, off and on, reset the device, size and place the BARs, and
// enable memory access.
func (c *Client) Start() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"negotiating", c.Negotiate},
		{"mapping memory", c.MapMemory},
		{"asking for the device", c.askDevice},
		{"asking for regions", c.askRegions},
		{"reading configuration space", c.readConfig},
		{"asking for interrupts", c.askIRQs},
		{"resetting", c.resetAtStart},
		{"placing BARs", c.placeBARs},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Negotiate sends VERSION and keeps the server's answer. As QEMU does, it
// refuses an answer with a higher minor version than it proposed.
func (c *Client) Negotiate() error {
	proposal := vfiouser.Version{
		Minor: c.options.Minor,
		Capabilities: vfiouser.Capabilities{
			MaxMsgFDs:       maxMsgFDs,
			MaxDataXferSize: vfiouser.DefaultMaxDataXferSize,
			MaxDMAMaps:      vfiouser.DefaultMaxDMAMaps,
			PageSizes:       vfiouser.DefaultPageSizes,
			WriteMultiple:   true,
			Migration:       &vfiouser.Migration{PageSize: 4096, MaxBitmapSize: 256 << 20},
		},
	}
	r, err := c.Call(vfiouser.CmdVersion, nil, proposal.Append(nil))
	if err != nil {
		return err
	}
	answer, err := vfiouser.ParseVersion(r.Payload)
	if err != nil {
		return err
	}
	if answer.Major != proposal.Major || answer.Minor > proposal.Minor {
		return fmt.Errorf("incompatible server version %d.%d, proposed %d.%d", answer.Major, answer.Minor, proposal.Major, proposal.Minor)
	}
	c.server = answer
	return nil
}

func (c *Client) askDevice() error {
	var b [vfiouser.DeviceInfoSize]byte
	request := vfiouser.DeviceInfo{ArgSize: vfiouser.DeviceInfoSize}
	request.Put(b[:])
	r, err := c.Call(vfiouser.CmdDeviceGetInfo, nil, b[:])
	if err != nil {
		return err
	}
	if c.device, err = vfiouser.ParseDeviceInfo(r.Payload); err != nil {
		return err
	}
	if c.device.Flags&vfiouser.DevicePCI == 0 || c.device.Regions <= uint32(vfiouser.RegionConfig) || c.device.IRQs <= uint32(vfiouser.IRQMSIX) {
		return fmt.Errorf("no PCI function: %+v", c.device)
	}
	return nil
}

func (c *Client) askRegions() error {
	for _, region := range []vfiouser.Region{0, 1, 2, 3, 4, 5, vfiouser.RegionConfig} {
		if err := c.askRegion(region, vfiouser.RegionInfoSize); err != nil {
			return fmt.Errorf("%v: %w", region, err)
		}
	}
	return nil
}

// askRegion asks for a region, and again if the answer has more to say than
// room bytes.
func (c *Client) askRegion(region vfiouser.Region, room uint32) error {
	b := make([]byte, vfiouser.RegionInfoSize)
	request := vfiouser.RegionInfo{ArgSize: room, Index: region}
	request.Put(b)
	r, err := c.Call(vfiouser.CmdDeviceGetRegionInfo, nil, b)
	if err != nil {
		return err
	}
	defer closeAll(r.FDs)
	info, areas, err := vfiouser.ParseRegionInfoReply(r.Payload)
	if err != nil {
		return err
	}
	if info.Flags&vfiouser.RegionCaps != 0 && info.CapOffset == 0 {
		return fmt.Errorf("capability flag without a capability: %w", unix.EINVAL)
	}
	if info.ArgSize > room {
		if room > vfiouser.RegionInfoSize {
			return fmt.Errorf("asked with room for %d bytes, answered that %d are needed", room, info.ArgSize)
		}
		return c.askRegion(region, info.ArgSize)
	}
	if info.Index != region {
		return fmt.Errorf("answer is for %v", info.Index)
	}
	c.regions[region] = info
	if info.Flags&vfiouser.RegionMmap == 0 || region != vfiouser.RegionBAR0 || c.options.NoMmap {
		return nil
	}
	if len(r.FDs) != 1 || len(areas) != 1 {
		return fmt.Errorf("to be mapped, but with %d areas and %d file descriptors", len(areas), len(r.FDs))
	}
	c.areas = areas
	c.doorbells, err = unix.Mmap(r.FDs[0], int64(info.Offset+areas[0].Offset), int(areas[0].Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %+v: %w", areas[0], err)
	}
	return nil
}

func (c *Client) askIRQ(irq vfiouser.IRQ) error {
	var b [vfiouser.IRQInfoSize]byte
	request := vfiouser.IRQInfo{ArgSize: vfiouser.IRQInfoSize, Index: irq}
	request.Put(b[:])
	r, err := c.Call(vfiouser.CmdDeviceGetIRQInfo, nil, b[:])
	if err != nil {
		return fmt.Errorf("%v: %w", irq, err)
	}
	c.irqs[irq], err = vfiouser.ParseIRQInfo(r.Payload)
	return err
}

// readConfig asks for the error interrupt, as QEMU does at this point, and
// reads configuration space: first all of it, then what QEMU looks at again.
func (c *Client) readConfig() error {
	if err := c.askIRQ(vfiouser.IRQErr); err != nil {
		return err
	}
	if err := c.ReadRegion(vfiouser.RegionConfig, 0, c.config[:]); err != nil {
		return err
	}
	if err := c.sizeBAR(pciROM, 0xfffff800); err != nil {
		return err
	}
	for _, at := range []uint64{pciBAR0, pciBAR4} {
		if _, err := c.ReadConfig(at, 4); err != nil {
			return err
		}
	}
	msix := c.Capability(pciCapMSIX)
	if msix == 0 {
		return nil
	}
	if _, err := c.ReadConfig(msix+msixControl, 2); err != nil {
		return err
	}
	for _, at := range []uint64{msixTable, msixPBA} {
		if _, err := c.ReadConfig(msix+at, 4); err != nil {
			return err
		}
	}
	return nil
}

// sizeBAR writes ones to a BAR, reads what stuck, and writes zero.
func (c *Client) sizeBAR(at uint64, ones uint32) error {
	if _, err := c.ReadConfig(at, 4); err != nil {
		return err
	}
	if err := c.WriteConfig(at, 4, ones); err != nil {
		return err
	}
	if _, err := c.ReadConfig(at, 4); err != nil {
		return err
	}
	return c.WriteConfig(at, 4, 0)
}

func (c *Client) askIRQs() error {
	if err := c.askIRQ(vfiouser.IRQMSIX); err != nil {
		return err
	}
	pin, err := c.ReadConfig(pciInterruptPin, 1)
	if err != nil || pin == 0 {
		return err
	}
	c.irqs[vfiouser.IRQINTx].Count = 1 // QEMU goes by the pin
	if err := c.EnableINTx(); err != nil {
		return err
	}
	return c.DisableINTx()
}

func (c *Client) resetAtStart() error {
	command, err := c.ReadConfig(pciCommand, 2)
	if err != nil {
		return err
	}
	if err := c.WriteConfig(pciCommand, 2, command&^(pciCommandIO|pciCommandMemory|pciCommandMaster)); err != nil {
		return err
	}
	if err := c.Reset(); err != nil {
		return err
	}
	if c.irqs[vfiouser.IRQINTx].Count > 0 {
		if err := c.EnableINTx(); err != nil {
			return err
		}
	}
	for at := uint64(pciBAR0); at < pciBAR0+24; at += 4 {
		if err := c.WriteConfig(at, 4, 0); err != nil {
			return err
		}
	}
	return nil
}

// bar0Address is where the firmware of a q35 machine puts the first 64-bit BAR.
const bar0Address = 0xc000000000

// placeBARs is the firmware's part. QEMU keeps BARs itself and only lets the
// server see the writes.
func (c *Client) placeBARs() error {
	for _, r := range []struct {
		at   uint64
		size int
	}{{pciVendor, 2}, {pciClass, 2}, {pciHeaderType, 1}, {pciVendor, 4}, {pciRevision, 4}} {
		if _, err := c.ReadConfig(r.at, r.size); err != nil {
			return err
		}
	}
	for at := uint64(pciBAR0); at < pciBAR0+24; at += 4 {
		if err := c.WriteConfig(at, 4, 0xffffffff); err != nil {
			return err
		}
		if err := c.WriteConfig(at, 4, le.Uint32(c.config[at:])); err != nil {
			return err
		}
	}
	c.bar0 = bar0Address
	if err := c.WriteConfig(pciBAR0, 4, uint32(c.bar0&0xffffffff)); err != nil {
		return err
	}
	if err := c.WriteConfig(pciBAR0+4, 4, uint32(c.bar0>>32)); err != nil {
		return err
	}
	if err := c.WriteConfig(pciInterruptLine, 1, 10); err != nil {
		return err
	}
	return c.Command(pciCommandIO | pciCommandMemory | pciCommandSERR)
}

// Reset sends DEVICE_RESET, as QEMU does when the machine is reset.
func (c *Client) Reset() error {
	_, err := c.Call(vfiouser.CmdDeviceReset, nil)
	return err
}
