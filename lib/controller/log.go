// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
)

// logPage is one row of the table of log pages.
type logPage struct {
	size uint64                   // bytes; 0 for a page that there is not
	read func(*Controller) []byte // the page, or its head if the rest is zero
}

// logPages is the table of log pages (NVMe Base 5.16.1), by identifier. It is
// filled in by init because page 00h shows it.
var logPages [256]logPage

func init() {
	logPages = [256]logPage{
		nvme.LogSupportedLogPages: {size: 1024, read: (*Controller).supportedLogPages},
		nvme.LogErrorInformation:  {size: errorEntries * 64, read: (*Controller).errorLog},
		nvme.LogSMART:             {size: 512, read: (*Controller).smartLog},
		nvme.LogFirmwareSlot:      {size: 512, read: (*Controller).firmwareSlotLog},
		nvme.LogChangedNamespaces: {size: 4096, read: (*Controller).changedNamespaces},
		nvme.LogCommandEffects:    {size: 4096, read: (*Controller).commandEffects},
		nvme.LogFeatureEffects:    {size: 1024, read: (*Controller).featureEffects},
		// No NVMe-MI command is supported: the page is zero. LPA demands it.
		nvme.LogMIEffects: {size: 4096, read: func(*Controller) []byte { return nil }},
	}
}

// getLogPage sends part of a log page. What it sends beyond the end of the page
// is zero. No page has a use for LSP, LSI or a UUID index: they are ignored.
func (c *Controller) getLogPage(cmd *Command) {
	get := cmd.SQE.GetLogPage()
	page := &logPages[get.LID]
	switch {
	case page.size == 0:
		cmd.finish(dnr(nvme.StatusInvalidLogPage))
		return
	case get.Bytes() > dma.MaxTransfer, get.OT, get.LPO%4 != 0, get.LPO > page.size:
		cmd.invalid()
		return
	case cmd.SQE.NSID != 0 && cmd.SQE.NSID != nvme.NSIDBroadcast:
		cmd.invalid() // all pages are the controller's or the subsystem's
		return
	case get.LID == nvme.LogCommandEffects && get.CSI != nvme.CSINVM:
		cmd.invalid()
		return
	}
	cmd.data(uint32(get.Bytes()), ToHost, c.sendLogPage)
}

// sendLogPage ends a Get Log Page command whose data is there. The page is made
// only now, so that no event is cleared that it does not show.
func (c *Controller) sendLogPage(cmd *Command) {
	get := cmd.SQE.GetLogPage()
	data := make([]byte, get.Bytes())
	if p := logPages[get.LID].read(c); get.LPO < uint64(len(p)) {
		copy(data, p[get.LPO:])
	}
	c.send(cmd, data)
	if !get.RAE {
		c.events.clear(get.LID)
	}
	cmd.finish(nvme.StatusSuccess)
	c.deliver() // events of the type that was masked
}

func (c *Controller) supportedLogPages() []byte {
	var l nvme.SupportedLogPages
	for i := range logPages {
		if logPages[i].size != 0 {
			l.LIDs[i] = nvme.LIDSupported
		}
	}
	return nvme.Bytes(&l)
}

// errorEntries is the number of entries of the error log (ELPE, plus one).
const errorEntries = 64

// notSpecific says in an error log entry that the error is of no particular
// queue, command or parameter.
const notSpecific = 0xffff

// errorRing holds the latest errors of the controller: commands of the admin
// queue that failed, and error events.
type errorRing struct {
	before  uint64 // errors of the drive before this controller's
	count   uint64 // errors so far
	entries [errorEntries]nvme.ErrorLogEntry
}

// add notes an error, in place of the oldest.
func (r *errorRing) add(e nvme.ErrorLogEntry) {
	e.ErrorCount = r.before + r.count + 1
	e.ParameterError = notSpecific
	e.LPVER = 1
	r.entries[r.count%errorEntries] = e
	r.count++
}

// failed notes that an admin command has failed.
func (c *Controller) failed(cmd *Command) {
	c.errors.add(nvme.ErrorLogEntry{
		CID: cmd.SQE.CID, Status: uint16(cmd.Status) << 1, NSID: cmd.SQE.NSID, Opcode: cmd.SQE.Opcode,
	})
}

func (c *Controller) errorLog() []byte {
	var newestFirst [errorEntries]nvme.ErrorLogEntry
	r := &c.errors
	for i := range min(r.count, errorEntries) {
		newestFirst[i] = r.entries[(r.count-1-i)%errorEntries]
	}
	return nvme.SliceBytes(newestFirst[:])
}

// smartLog shows what the drive has counted in its life, as far as the transport
// keeps that. There is no medium that wears and no sensor: spare and life are
// whole, and the temperature is 0 K, "not reported", rather than invented.
func (c *Controller) smartLog() []byte {
	n := c.lived()
	l := nvme.SMARTLog{
		AvailableSpare:          100,
		AvailableSpareThreshold: 10,
		DataUnitsRead:           nvme.Uint128{Lo: nvme.DataUnits(n.ReadBytes)},
		DataUnitsWritten:        nvme.Uint128{Lo: nvme.DataUnits(n.WrittenBytes)},
		HostReadCommands:        nvme.Uint128{Lo: n.ReadCommands},
		HostWriteCommands:       nvme.Uint128{Lo: n.WriteCommands},
		MediaErrors:             nvme.Uint128{Lo: n.MediaErrors},
		ErrorLogEntries:         nvme.Uint128{Lo: n.Errors},
	}
	return nvme.Bytes(&l)
}

func (c *Controller) firmwareSlotLog() []byte {
	l := nvme.FirmwareSlotLog{AFI: 1}
	nvme.SetASCII(l.FRS[0][:], Firmware)
	return nvme.Bytes(&l)
}

func (c *Controller) changedNamespaces() []byte {
	l := c.events.changed.list()
	return nvme.Bytes(&l)
}

func (c *Controller) commandEffects() []byte {
	var l nvme.CommandEffectsLog
	for i := range adminCommands {
		if op := &adminCommands[i]; op.has(c) {
			l.Admin[i] = nvme.EffectSupported | op.effects
		}
	}
	for i := range ioCommands {
		if op := &ioCommands[i]; op.execute != nil {
			// Without a scope, which is optional: Linux warns of effects that it
			// does not expect.
			l.IO[i] = nvme.EffectSupported | op.effects
		}
	}
	return nvme.Bytes(&l)
}

func (c *Controller) featureEffects() []byte {
	var l nvme.FeatureEffectsLog
	for i := range l.FIDs {
		f := c.feature(nvme.FeatureID(i))
		switch {
		case f == nil:
		case f.perNamespace:
			l.FIDs[i] = nvme.FIDSupported | nvme.ScopeNamespace
		default:
			l.FIDs[i] = nvme.FIDSupported | nvme.ScopeController
		}
	}
	return nvme.Bytes(&l)
}
