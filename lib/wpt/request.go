// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// limits is how long the answer to a command may wait for the runtime, and how
// long a runtime is waited for before it is asked whether it is alive.
type limits struct {
	unmap    time.Duration // for its answer to MsgUnmap
	reset    time.Duration // for the end of its I/O
	room     time.Duration // for it to read its link
	patience time.Duration // before a ping
	alive    time.Duration // for its answer to that
}

// defaultLimits: the first three fit into the 5 s that QEMU gives each command.
// A machine can be so busy that a live process does not run for a second.
var defaultLimits = limits{
	unmap: 2 * time.Second, reset: 4 * time.Second, room: 2 * time.Second,
	patience: 2 * time.Second, alive: 5 * time.Second,
}

// command carries out one command of a client, as execute describes.
type command func(c *client, payload []byte) (reply [][]byte, fd int, err error)

// commands has the handler of every command of the protocol. A command without
// one is unknown to us and gets EINVAL.
var commands = [...]command{
	vfiouser.CmdVersion:              (*client).version,
	vfiouser.CmdDMAMap:               (*client).dmaMap,
	vfiouser.CmdDMAUnmap:             (*client).dmaUnmap,
	vfiouser.CmdDeviceGetInfo:        (*client).deviceInfo,
	vfiouser.CmdDeviceGetRegionInfo:  (*client).regionInfo,
	vfiouser.CmdDeviceGetRegionIOFDs: (*client).regionIOFDs,
	vfiouser.CmdDeviceGetIRQInfo:     (*client).irqInfo,
	vfiouser.CmdDeviceSetIRQs:        (*client).setIRQs,
	vfiouser.CmdRegionRead:           (*client).regionRead,
	vfiouser.CmdRegionWrite:          (*client).regionWrite,
	vfiouser.CmdDeviceReset:          (*client).deviceReset,
	14:                               (*client).unsupported, // DIRTY_PAGES of old drafts
	vfiouser.CmdRegionWriteMulti:     (*client).regionWriteMulti,
	vfiouser.CmdDeviceFeature:        (*client).unsupported,
	vfiouser.CmdMigDataRead:          (*client).unsupported,
	vfiouser.CmdMigDataWrite:         (*client).unsupported,
}

// unsupported is what has to do with migration: the memory of guests is not
// watched, and the state of a drive is not the machine's to carry away.
func (c *client) unsupported([]byte) ([][]byte, int, error) {
	return nil, noFD, fmt.Errorf("migration: %w", unix.ENOTSUP)
}

// reply returns a reply of one part.
func (c *client) reply(part []byte) [][]byte {
	c.parts[0] = part
	return c.parts[:1]
}

func (c *client) version(payload []byte) ([][]byte, int, error) {
	proposal, err := vfiouser.ParseVersion(payload)
	if err != nil {
		return nil, noFD, err
	}
	// QEMU proposes 0.0 and refuses anything higher.
	answer, err := vfiouser.Negotiate(proposal, vfiouser.Version{
		Minor: 1,
		Capabilities: vfiouser.Capabilities{
			MaxMsgFDs: maxFDs, MaxDataXferSize: maxData, MaxDMAMaps: maxRegions,
			PageSizes: qpair.PageSize, WriteMultiple: true,
		},
	})
	if err == nil && proposal.Capabilities.MaxDataXferSize == 0 {
		err = fmt.Errorf("client takes no data")
	}
	if err != nil {
		return nil, noFD, fmt.Errorf("%w: %w", err, unix.EINVAL)
	}
	c.relays.limit = min(proposal.Capabilities.MaxDataXferSize, qpair.MaxRelay)
	p := c.port
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.leaving {
		if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
			return nil, noFD, err
		}
	}
	c.negotiated = true
	p.note()
	atomic.StoreUint32(&p.regs.Page.Client, 1)
	p.publish()
	return c.reply(answer.Append(nil)), noFD, nil
}

func (c *client) deviceInfo(payload []byte) ([][]byte, int, error) {
	if _, err := vfiouser.ParseDeviceInfo(payload); err != nil {
		return nil, noFD, err
	}
	info := vfiouser.DeviceInfo{
		ArgSize: vfiouser.DeviceInfoSize, Flags: vfiouser.DeviceReset | vfiouser.DevicePCI,
		Regions: vfiouser.NumPCIRegions, IRQs: vfiouser.NumPCIIRQs,
	}
	info.Put(c.data[:])
	return c.reply(c.data[:vfiouser.DeviceInfoSize]), noFD, nil
}

// regionSizes lists the regions that there are. QEMU keeps the MSI-X table of
// BAR4 itself: no access to that region ever comes.
var regionSizes = [vfiouser.NumPCIRegions]uint64{
	vfiouser.RegionBAR0:   bar0Size,
	vfiouser.RegionBAR4:   bar4Size,
	vfiouser.RegionConfig: configSize,
}

func (c *client) regionInfo(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseRegionInfo(payload)
	if err != nil {
		return nil, noFD, err
	}
	if m.Index >= vfiouser.NumPCIRegions {
		return nil, noFD, fmt.Errorf("no %v: %w", m.Index, unix.EINVAL)
	}
	info := vfiouser.RegionInfo{Index: m.Index, Size: regionSizes[m.Index]}
	if info.Size > 0 {
		info.Flags = vfiouser.RegionRead | vfiouser.RegionWrite
	}
	var areas []vfiouser.SparseArea
	if m.Index == vfiouser.RegionBAR0 && c.port.mapped {
		info.Flags |= vfiouser.RegionMmap
		areas = []vfiouser.SparseArea{{Offset: qpair.DoorbellOffset, Size: qpair.PageSize}}
	}
	reply, mappable := vfiouser.RegionInfoReply(info, areas, m.ArgSize)
	if mappable {
		return c.reply(reply), c.port.bells.FD(), nil
	}
	return c.reply(reply), noFD, nil
}

func (c *client) regionIOFDs(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseRegionIOFDs(payload)
	if err != nil {
		return nil, noFD, err
	}
	if m.Index >= vfiouser.NumPCIRegions {
		return nil, noFD, fmt.Errorf("no %v: %w", m.Index, unix.EINVAL)
	}
	// None: a doorbell's value matters, and an eventfd would lose it.
	answer := vfiouser.RegionIOFDs{ArgSize: vfiouser.RegionIOFDsSize, Index: m.Index}
	answer.Put(c.data[:])
	return c.reply(c.data[:vfiouser.RegionIOFDsSize]), noFD, nil
}

func (c *client) irqInfo(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseIRQInfo(payload)
	if err != nil {
		return nil, noFD, err
	}
	if m.Index >= vfiouser.NumPCIIRQs {
		return nil, noFD, fmt.Errorf("no %v: %w", m.Index, unix.EINVAL)
	}
	t := irqTypes[m.Index]
	info := vfiouser.IRQInfo{ArgSize: vfiouser.IRQInfoSize, Flags: t.flags, Index: m.Index, Count: t.count}
	info.Put(c.data[:])
	return c.reply(c.data[:vfiouser.IRQInfoSize]), noFD, nil
}

// setIRQs is DEVICE_SET_IRQS in all its forms.
func (c *client) setIRQs(payload []byte) ([][]byte, int, error) {
	m, bools, err := vfiouser.ParseIRQSet(payload)
	if err != nil {
		return nil, noFD, err
	}
	p := c.port
	p.makeRoom()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.irqs.check(&m, c.request.numFDs); err != nil {
		return nil, noFD, err
	}
	for _, fd := range c.request.fds[:c.request.numFDs] {
		if err := checkEventFD(fd); err != nil {
			return nil, noFD, err
		}
	}
	fds := c.request.takeFDs()
	for _, fd := range fds {
		p.broker.files.keep(fd)
	}
	changes := p.changeIRQs(&m, fds, bools)
	p.note()
	for _, v := range changes {
		p.tellVector(v)
	}
	p.broker.files.close(p.irqs.takeOld()...)
	atomic.StoreUint32(&p.regs.Page.IRQMode, uint32(p.irqs.mode()))
	raise(p.kick)
	return nil, noFD, nil
}

// changeIRQs carries out a checked request, and returns the vectors whose
// eventfd is another one for the runtime. The caller holds mu.
func (p *port) changeIRQs(m *vfiouser.IRQSet, fds []int, bools []byte) []change {
	q := p.irqs
	switch m.Flags & vfiouser.IRQActionTypeMask {
	case vfiouser.IRQActionTrigger:
		switch {
		case m.Flags&vfiouser.IRQDataEventFD != 0:
			return q.set(m.Index, m.Start, m.Count, fds)
		case m.Count == 0:
			return q.disable(m.Index)
		}
		q.trigger(m.Index, m.Start, m.Count, bools)
		return nil
	case vfiouser.IRQActionMask:
		if bools != nil && bools[0] == 0 || q.mask {
			return nil
		}
		q.mask = true
		return []change{{vfiouser.IRQINTx, 0}}
	}
	// Unmask, which is the end of an interrupt as well.
	if bools != nil && bools[0] == 0 {
		return nil
	}
	atomic.AddUint64(&p.regs.Page.Unmasks, 1)
	if !q.mask {
		return nil
	}
	q.mask = false
	return []change{{vfiouser.IRQINTx, 0}}
}

func (c *client) regionRead(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseRegionAccess(payload)
	if err != nil {
		return nil, noFD, err
	}
	if m.Count > uint32(len(c.data)) {
		return nil, noFD, fmt.Errorf("%v: read of %d bytes: %w", m.Region, m.Count, unix.EINVAL)
	}
	data := c.data[:m.Count]
	switch m.Region {
	case vfiouser.RegionBAR0:
		err = c.port.readBAR0(m.Offset, data)
	case vfiouser.RegionBAR4:
		clear(data)
		err = checkAccess("BAR4", m.Offset, len(data), bar4Size)
	case vfiouser.RegionConfig:
		c.port.mu.Lock()
		err = c.port.config.read(m.Offset, data)
		c.port.mu.Unlock()
	default:
		err = fmt.Errorf("no %v: %w", m.Region, unix.EINVAL)
	}
	if err != nil {
		return nil, noFD, err
	}
	m.Put(c.head[:])
	c.parts = [2][]byte{c.head[:], data}
	return c.parts[:], noFD, nil
}

func (c *client) regionWrite(payload []byte) ([][]byte, int, error) {
	m, data, err := vfiouser.ParseRegionWrite(payload)
	if err == nil {
		err = c.write(m, data)
	}
	if err != nil {
		return nil, noFD, err
	}
	m.Put(c.head[:])
	return c.reply(c.head[:]), noFD, nil
}

// regionWriteMulti is a list of writes: all up to the first that fails.
func (c *client) regionWriteMulti(payload []byte) ([][]byte, int, error) {
	writes, err := vfiouser.ParseRegionWriteMulti(payload)
	if err != nil {
		return nil, noFD, err
	}
	for i := range writes.Len() {
		if err := c.write(writes.At(i)); err != nil {
			return nil, noFD, fmt.Errorf("write %d: %w", i, err)
		}
	}
	binary.LittleEndian.PutUint64(c.head[:], uint64(writes.Len()))
	return c.reply(c.head[:vfiouser.WriteMultiHeaderSize]), noFD, nil
}

// write writes data to a region.
func (c *client) write(m vfiouser.RegionAccess, data []byte) error {
	p := c.port
	switch m.Region {
	case vfiouser.RegionBAR0:
		return p.writeBAR0(m.Offset, data)
	case vfiouser.RegionBAR4:
		return checkAccess("BAR4", m.Offset, len(data), bar4Size)
	case vfiouser.RegionConfig:
		p.mu.Lock()
		flr, err := p.config.write(m.Offset, data)
		p.note()
		p.mu.Unlock()
		if flr {
			c.reset()
		}
		return err
	}
	return fmt.Errorf("no %v: %w", m.Region, unix.EINVAL)
}

func (c *client) deviceReset([]byte) ([][]byte, int, error) {
	c.reset()
	return nil, noFD, nil
}

// reset resets the function and waits until the runtime has ended its I/O, or
// as long as the client's patience allows; CSTS and CC see to the rest.
func (c *client) reset() {
	p := c.port
	p.mu.Lock()
	p.resetFunction()
	p.mu.Unlock()
	p.wait(p.acknowledged, p.broker.limits.reset, c.done)
}

func (c *client) dmaMap(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseDMAMap(payload)
	if err != nil {
		return nil, noFD, err
	}
	if m.Flags&^(vfiouser.DMARead|vfiouser.DMAWrite) != 0 {
		return nil, noFD, fmt.Errorf("unknown flags %v: %w", m.Flags, unix.EINVAL)
	}
	if c.request.numFDs > 1 {
		return nil, noFD, fmt.Errorf("%d file descriptors: %w", c.request.numFDs, unix.EINVAL)
	}
	p := c.port
	p.makeRoom()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := region{addr: m.Address, size: m.Size, offset: m.Offset, fd: noFD}
	if m.Flags&vfiouser.DMARead != 0 {
		r.flags |= qpair.RegionRead
	}
	if m.Flags&vfiouser.DMAWrite != 0 {
		r.flags |= qpair.RegionWrite
	}
	if c.request.numFDs == 1 {
		r.fd = c.request.fds[0]
	} else if p.config.ownPage(m.Address, m.Size) {
		r.flags |= qpair.RegionOwn
	}
	if c.request.again {
		if there := p.regions.find(r); there != nil && (r.fd == noFD || p.broker.files.same(there.fd, r.fd)) {
			return nil, noFD, nil
		}
	}
	if err := p.regions.add(r); err != nil {
		return nil, noFD, err
	}
	c.request.takeFDs() // the table's now
	if r.fd != noFD {
		p.broker.files.keep(r.fd)
	}
	p.note()
	p.tellMapped(&r)
	return nil, noFD, nil
}

func (c *client) dmaUnmap(payload []byte) ([][]byte, int, error) {
	m, err := vfiouser.ParseDMAUnmap(payload)
	if err != nil {
		return nil, noFD, err
	}
	p := c.port
	p.makeRoom()
	p.mu.Lock()
	var gone []region
	switch {
	case m.Flags == vfiouser.UnmapAll && m.Address == 0 && m.Size == 0:
		gone = p.regions.removeAll()
	case m.Flags != 0:
		err = fmt.Errorf("flags %v: %w", m.Flags, unix.ENOTSUP)
	default:
		gone, err = p.regions.remove(m.Address, m.Size)
	}
	again := c.request.again && len(gone) == 0 && (err == nil || errors.Is(err, unix.ENOENT))
	if err != nil && !again {
		p.mu.Unlock()
		return nil, noFD, err
	}
	p.note()
	// The client serves no DMA until it has its answer: who waits for DMA in
	// memory that goes would wait for ever.
	c.relays.drop(false, func(r *relay) bool { return overlaps(gone, r.addr, uint64(len(r.data))) })
	last := p.tellUnmapped(gone)
	if again && p.holder != nil && p.holder.lost() {
		last = p.unmaps.next() // whoever was told, or not, cannot answer any more
	}
	p.mu.Unlock()
	p.broker.files.closeRegions(gone)
	p.awaitUnmapped(last, c.done)
	m.ArgSize = vfiouser.DMAUnmapSize
	m.Put(c.data[:])
	return c.reply(c.data[:vfiouser.DMAUnmapSize]), noFD, nil
}

// overlaps reports whether any region has a byte of [addr, addr+size).
func overlaps(regions []region, addr, size uint64) bool {
	for i := range regions {
		if r := &regions[i]; r.addr <= addr+(size-1) && addr <= r.end() {
			return true
		}
	}
	return false
}
