// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"math/bits"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
)

// identifications is the table of Identify data structures (NVMe Base 5.17.2),
// by CNS. A structure that is shorter than IdentifySize ends in zeroes; nil is
// all zero.
var identifications = [256]func(*Controller, *Command) ([]byte, nvme.Status){
	nvme.CNSNamespace:            (*Controller).identifyNamespace,
	nvme.CNSController:           (*Controller).identifyController,
	nvme.CNSActiveNamespaces:     (*Controller).namespaceList,
	nvme.CNSNamespaceDescriptors: (*Controller).namespaceDescriptors,
	nvme.CNSIOCSNamespace:        nvmOnly((*Controller).identifyNVMNamespace),
	nvme.CNSIOCSController:       nvmOnly((*Controller).identifyNVMController),
	nvme.CNSIOCSActiveNamespaces: nvmOnly((*Controller).namespaceList),
	nvme.CNSIndependentNamespace: (*Controller).identifyIndependentNamespace,
	// Every namespace of the subsystem is attached to every controller.
	nvme.CNSAllocatedNamespaces:     (*Controller).namespaceList,
	nvme.CNSAllocatedNamespace:      (*Controller).identifyNamespace,
	nvme.CNSIOCSAllocatedNamespaces: nvmOnly((*Controller).namespaceList),
	nvme.CNSIOCSAllocatedNamespace:  nvmOnly((*Controller).identifyNVMNamespace),
	nvme.CNSIndependentAllocated:    (*Controller).identifyIndependentNamespace,
	nvme.CNSNamespaceControllers:    (*Controller).namespaceControllers,
	nvme.CNSControllers:             (*Controller).controllerList,
	nvme.CNSIOCommandSets:           (*Controller).ioCommandSets,
}

// identify sends an Identify data structure.
func (c *Controller) identify(cmd *Command) {
	build := identifications[cmd.SQE.Identify().CNS]
	if build == nil {
		cmd.invalid()
		return
	}
	p, st := build(c, cmd)
	if st != nvme.StatusSuccess {
		cmd.finish(dnr(st))
		return
	}
	whole := make([]byte, nvme.IdentifySize)
	copy(whole, p)
	c.reply(cmd, whole)
}

// nvmOnly refuses I/O command sets other than NVM.
func nvmOnly(f func(*Controller, *Command) ([]byte, nvme.Status)) func(*Controller, *Command) ([]byte, nvme.Status) {
	return func(c *Controller, cmd *Command) ([]byte, nvme.Status) {
		if cmd.SQE.Identify().CSI != nvme.CSINVM {
			return nil, nvme.StatusInvalidField
		}
		return f(c, cmd)
	}
}

// validNSID reports whether a namespace may have this identifier.
func validNSID(nsid uint32) bool { return nsid != 0 && nsid <= MaxNamespaces }

// active returns what a command on namespace nsid deserves (NVMe Base
// 3.2.1.5): no namespace can have an invalid NSID, none has an inactive one.
func (c *Controller) active(nsid uint32) nvme.Status {
	switch {
	case !validNSID(nsid):
		return nvme.StatusInvalidNamespaceOrFormat
	case c.sub.Namespace(nsid) == nil:
		return nvme.StatusInvalidField
	}
	return nvme.StatusSuccess
}

// log2 returns the base-two logarithm of the largest power of two up to n > 0.
func log2(n uint64) uint8 { return uint8(bits.Len64(n) - 1) }

// identifyController describes the controller (NVMe Base 5.17.2.1). What is
// zero is not supported or not reported. CQT is not: nobody can say how long a
// medium takes to end what it has begun.
func (c *Controller) identifyController(*Command) ([]byte, nvme.Status) {
	id := nvme.IdentifyController{
		VID:       c.cfg.PCIVendor,
		SSVID:     c.cfg.PCISubsystemVendor,
		CMIC:      c.sub.cmic(),
		MDTS:      log2(dma.MaxTransfer / dma.PageSize),
		CNTLID:    c.CNTLID(),
		VER:       c.cfg.VS,
		OAES:      oaes,
		CNTRLTYPE: nvme.ControllerTypeIO,
		ACL:       acl,
		AERL:      aerl,
		FRMW:      nvme.FRMWSlot1ReadOnly | 1<<nvme.FRMWSlotsShift,
		LPA:       nvme.LPACommandEffects | nvme.LPAExtendedData | nvme.LPASupportedLogPages,
		ELPE:      errorEntries - 1,
		SQES:      nvme.SQEShift<<4 | nvme.SQEShift,
		CQES:      nvme.CQEShift<<4 | nvme.CQEShift,
		NN:        MaxNamespaces,
		MNAN:      MaxNamespaces,
		ONCS:      nvme.ONCSSaveAndSelectFeatures | nvme.ONCSTimestamp,
		// A namespace with a volatile cache may come at any time.
		VWC: nvme.VWCPresent | nvme.VWCFlushBroadcast,
		// AWUN, AWUPF and ACWU are one block: a namespace says how much more.
		NWPC: nvme.NWPCWriteProtect,
		CDFS: copyFormats,
		FNA:  nvme.FNANoBroadcast,
		SGLS: c.cfg.SGLS,

		MAXCMD: c.cfg.Fabrics.MAXCMD,
		IOCCSZ: c.cfg.Fabrics.IOCCSZ,
		IORCSZ: c.cfg.Fabrics.IORCSZ,
		ICDOFF: c.cfg.Fabrics.ICDOFF,
		MSDBD:  c.cfg.Fabrics.MSDBD,
		OFCS:   c.cfg.Fabrics.OFCS,
	}
	nvme.SetASCII(id.SN[:], c.sub.Serial)
	nvme.SetASCII(id.MN[:], Model)
	nvme.SetASCII(id.FR[:], Firmware)
	nvme.SetNQN(&id.SUBNQN, c.sub.NQN)
	for i := range adminCommands {
		if op := &adminCommands[i]; op.has(c) {
			id.OACS |= op.oacs
		}
	}
	if c.hasKeepAlive() {
		id.KAS = kas
	}
	for i := range ioCommands {
		id.ONCS |= ioCommands[i].oncs
		id.FUSES |= ioCommands[i].fuses
	}
	for _, ns := range c.sub.Namespaces() {
		id.TNVMCAP = id.TNVMCAP.Add(ns.Volume.Info().Size)
	}
	return nvme.Bytes(&id), nvme.StatusSuccess
}

// zeroBased returns n units as a count of blocks minus one, of at most 16 bits.
func zeroBased(n, block uint32) uint16 { return uint16(min(max(n/block, 1), 1<<16) - 1) }

// identifyNamespace describes a namespace (NVM Command Set 4.1.5.1). That of an
// inactive NSID is all zero.
func (c *Controller) identifyNamespace(cmd *Command) ([]byte, nvme.Status) {
	if !validNSID(cmd.SQE.NSID) {
		return nil, nvme.StatusInvalidNamespaceOrFormat
	}
	ns := c.sub.Namespace(cmd.SQE.NSID)
	if ns == nil {
		return nil, nvme.StatusSuccess
	}
	info := ns.Volume.Info()
	blocks := info.Size / uint64(info.Block)
	write, discard := zeroBased(info.WriteGranularity, info.Block), zeroBased(info.DiscardGranularity, info.Block)
	atomic := zeroBased(info.AtomicUnit, info.Block)
	id := nvme.IdentifyNamespace{
		NSZE: blocks, NCAP: blocks, NUSE: blocks,
		FLBAS:  lbaFormat(info.Block),
		NSFEAT: nvme.NSFEATAtomic | nvme.NSFEATOptimal,
		NMIC:   ns.nmic(),
		FPI:    ns.formatting.progress(),
		// What Dataset Management has deallocated reads as zero or as before.
		DLFEAT: nvme.DLFEATWriteZeroesDeallocates,
		NAWUN:  atomic, NAWUPF: atomic, NACWU: atomic,
		NVMCAP: nvme.Uint128{Lo: info.Size},
		NPWG:   write, NPWA: write, NOWS: write,
		NPDG: discard, NPDA: discard,
		MSSRL: uint16(maxCopyRange / info.Block), MCL: maxCopy / info.Block, MSRC: maxCopyRanges - 1,
		NSATTR: ns.nsattr(),
		NGUID:  nvme.UUID(ns.UUID).NGUID(),
	}
	for i, block := range lbaFormats {
		if ns.offers(info, block) {
			id.LBAF[i].LBADS = log2(uint64(block)) // 0 where it is not available
			id.NLBAF = uint8(i)
		}
	}
	return nvme.Bytes(&id), nvme.StatusSuccess
}

// nmic returns the Namespace Multi-path I/O and Namespace Sharing Capabilities.
func (ns *Namespace) nmic() uint8 {
	if ns.Shared {
		return nvme.NMICShared
	}
	return 0
}

// nsattr returns the Namespace Attributes.
func (ns *Namespace) nsattr() uint8 {
	if ns.writeProtected() {
		return nvme.NSATTRWriteProtected
	}
	return 0
}

// namespaceList lists namespaces with an NSID above the command's.
func (c *Controller) namespaceList(cmd *Command) ([]byte, nvme.Status) {
	if cmd.SQE.NSID >= nvme.NSIDBroadcast-1 {
		return nil, nvme.StatusInvalidNamespaceOrFormat
	}
	var l nvme.NSList
	n := 0
	for _, ns := range c.sub.Namespaces() {
		if ns.NSID > cmd.SQE.NSID {
			l.NSIDs[n] = ns.NSID
			n++
		}
	}
	return nvme.Bytes(&l), nvme.StatusSuccess
}

// namespaceDescriptors gives a namespace's identifiers (NVMe Base 5.17.2.4).
func (c *Controller) namespaceDescriptors(cmd *Command) ([]byte, nvme.Status) {
	if st := c.active(cmd.SQE.NSID); st != nvme.StatusSuccess {
		return nil, st
	}
	ns := c.sub.Namespace(cmd.SQE.NSID)
	if ns == nil {
		return nil, nvme.StatusInvalidField // removed just now
	}
	nguid := nvme.UUID(ns.UUID).NGUID()
	p := nvme.AppendIDDescriptor(nil, nvme.NIDTNGUID, nguid[:])
	p = nvme.AppendIDDescriptor(p, nvme.NIDTUUID, ns.UUID[:])
	p = nvme.AppendIDDescriptor(p, nvme.NIDTCSI, []byte{uint8(nvme.CSINVM)})
	return p, nvme.StatusSuccess
}

// identifyNVMNamespace is all zero for every namespace: no protection
// information, no extended LBA formats.
func (c *Controller) identifyNVMNamespace(cmd *Command) ([]byte, nvme.Status) {
	if !validNSID(cmd.SQE.NSID) {
		return nil, nvme.StatusInvalidNamespaceOrFormat
	}
	return nil, nvme.StatusSuccess
}

// identifyNVMController gives the limits of commands without data transfer
// (NVM Command Set 4.1.5.2). Dataset Management has none.
func (c *Controller) identifyNVMController(*Command) ([]byte, nvme.Status) {
	id := nvme.IdentifyNVMController{VSL: log2(maxVerify / dma.PageSize), WZSL: log2(maxWriteZeroes / dma.PageSize)}
	return nvme.Bytes(&id), nvme.StatusSuccess
}

// identifyIndependentNamespace describes a namespace whatever its I/O command
// set (NVMe Base 5.17.2.8). That of an inactive NSID is all zero.
func (c *Controller) identifyIndependentNamespace(cmd *Command) ([]byte, nvme.Status) {
	if !validNSID(cmd.SQE.NSID) {
		return nil, nvme.StatusInvalidNamespaceOrFormat
	}
	ns := c.sub.Namespace(cmd.SQE.NSID)
	if ns == nil {
		return nil, nvme.StatusSuccess
	}
	id := nvme.IdentifyIndependentNamespace{NMIC: ns.nmic(), FPI: ns.formatting.progress(), NSATTR: ns.nsattr(), NSTAT: nvme.NSTATReady}
	if !ns.Volume.Info().VolatileCache {
		id.NSFEAT = nvme.IndependentNSFEATNoVWC
	}
	return nvme.Bytes(&id), nvme.StatusSuccess
}

// namespaceControllers lists the controllers a namespace is attached to: all.
func (c *Controller) namespaceControllers(cmd *Command) ([]byte, nvme.Status) {
	switch nsid := cmd.SQE.NSID; {
	case nsid == nvme.NSIDBroadcast:
		return nil, nvme.StatusInvalidField
	case !validNSID(nsid):
		return nil, nvme.StatusInvalidNamespaceOrFormat
	case c.sub.Namespace(nsid) == nil:
		return nil, nvme.StatusSuccess // an empty list
	}
	return c.controllerList(cmd)
}

// controllerList lists controllers with a CNTLID not below the command's.
func (c *Controller) controllerList(cmd *Command) ([]byte, nvme.Status) {
	var l nvme.ControllerList
	for _, id := range c.sub.cntlids() {
		if id >= cmd.SQE.Identify().CNTID && l.Num < nvme.ControllerListMax {
			l.IDs[l.Num] = id
			l.Num++
		}
	}
	return nvme.Bytes(&l), nvme.StatusSuccess
}

// ioCommandSets gives the only combination of I/O command sets: NVM alone.
func (c *Controller) ioCommandSets(cmd *Command) ([]byte, nvme.Status) {
	if id := cmd.SQE.Identify().CNTID; id != 0xffff && id != c.CNTLID() {
		return nil, nvme.StatusInvalidControllerIdentifier
	}
	var sets nvme.IOCommandSets
	sets.Vectors[0] = 1 << nvme.CSINVM
	return nvme.Bytes(&sets), nvme.StatusSuccess
}
