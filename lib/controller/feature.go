// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// feature is one row of the table of features. Identify, Get Features with
// SelectSupported and the Feature Identifiers Effects log derive from it. No
// feature is saveable; all are changeable.
type feature struct {
	name         string                 // as the specification has it; "" for none
	perNamespace bool                   // NSID selects the value
	offered      func(*Controller) bool // nil: by every controller
	initial      uint32                 // default of a value
	mask         uint32                 // bits of a value that can be set
	// get answers with the current value, or the default; set takes the new
	// one. Both end the command. nil: the value is a dword that is kept.
	get func(c *Controller, cmd *Command, f *feature, initial bool)
	set func(c *Controller, cmd *Command, f *feature)
}

// dwordFeatures is the end of the identifiers of features kept as a dword.
const dwordFeatures = 0x20

// temperatureNever is the default threshold of a composite temperature that is
// never reported.
const temperatureNever = 0xffff

// featureTable is the table of features (NVMe Base 5.27.1), by identifier.
var featureTable = [256]feature{
	nvme.FeatArbitration:           {name: "Arbitration", initial: 7, mask: 0xffffff07},
	nvme.FeatPowerManagement:       {name: "Power Management", mask: 0xff, set: (*Controller).setPower},
	nvme.FeatTemperatureThreshold:  {name: "Temperature Threshold", get: (*Controller).getTemperature, set: (*Controller).setTemperature},
	nvme.FeatErrorRecovery:         {name: "Error Recovery", perNamespace: true, get: (*Controller).getErrorRecovery, set: (*Controller).setErrorRecovery},
	nvme.FeatVolatileWriteCache:    {name: "Volatile Write Cache", initial: nvme.WCE, mask: nvme.WCE, set: (*Controller).setWriteCache},
	nvme.FeatNumberOfQueues:        {name: "Number of Queues", get: (*Controller).getQueues, set: (*Controller).setQueues},
	nvme.FeatInterruptCoalescing:   {name: "Interrupt Coalescing", mask: 0xffff, offered: (*Controller).hasQueues, set: (*Controller).setCoalescing},
	nvme.FeatInterruptVectorConfig: {name: "Interrupt Vector Configuration", offered: (*Controller).hasQueues, get: (*Controller).getVector, set: (*Controller).setVector},
	nvme.FeatWriteAtomicity:        {name: "Write Atomicity Normal", mask: nvme.DisableNormal},
	nvme.FeatAsyncEventConfig:      {name: "Asynchronous Event Configuration", mask: 0xff | oaes},
	nvme.FeatTimestamp:             {name: "Timestamp", get: (*Controller).getTimestamp, set: (*Controller).setTimestamp},
	nvme.FeatKeepAliveTimer:        {name: "Keep Alive Timer", mask: 0xffffffff, offered: (*Controller).hasKeepAlive, set: (*Controller).setKeepAlive},
	nvme.FeatNamespaceWriteProtect: {name: "Namespace Write Protection Config", perNamespace: true, get: (*Controller).getProtection, set: (*Controller).setProtection},
	nvme.FeatHostBehavior:          {name: "Host Behavior Support", get: (*Controller).getHostBehavior, set: (*Controller).setHostBehavior},
}

// maxVectors bounds the interrupt vectors that can be configured.
const maxVectors = 1024

// features are the current values. They belong to the admin poller.
type features struct {
	values      [dwordFeatures]uint32
	temperature [2]uint16                 // thresholds, by THSEL
	tler        [MaxNamespaces + 1]uint16 // Error Recovery, by NSID
	uncoalesced [maxVectors / 64]uint64   // vectors without interrupt coalescing, a bit each
	host        nvme.HostBehavior
	stamp       timestamp
}

// timestamp is a clock that the host may set.
type timestamp struct {
	base   uint64    // milliseconds at the time at
	at     time.Time // of the setting, or of the controller's enabling
	origin uint8     // TimestampOrigin value
}

// reset sets every feature to its default; queues is the number of I/O queue
// pairs.
func (f *features) reset(queues int) {
	*f = features{}
	for i := range f.values {
		f.values[i] = featureTable[i].initial
	}
	f.values[nvme.FeatNumberOfQueues] = uint32(queueLimit(queues))
	f.temperature[nvme.THSELOver] = temperatureNever
	f.stamp.at = time.Now()
}

// queueLimit is the value of Number of Queues for n queue pairs.
func queueLimit(n int) nvme.NumberOfQueues {
	most := uint16(min(max(n, 1), 0xffff) - 1)
	return nvme.MakeNumberOfQueues(most, most)
}

// queues returns what Number of Queues has granted.
func (f *features) queues() nvme.NumberOfQueues {
	return nvme.NumberOfQueues(f.values[nvme.FeatNumberOfQueues])
}

// feature returns the feature fid if the controller has it, or nil.
func (c *Controller) feature(fid nvme.FeatureID) *feature {
	f := &featureTable[fid]
	if f.name == "" || f.offered != nil && !f.offered(c) {
		return nil
	}
	return f
}

// setFeatures checks what all features have in common (NVMe Base 5.27).
func (c *Controller) setFeatures(cmd *Command) {
	set := cmd.SQE.SetFeatures()
	f := c.feature(set.FID)
	st := nvme.StatusSuccess
	switch {
	case f == nil:
		st = nvme.StatusInvalidField
	case set.SV:
		st = nvme.StatusFeatureNotSaveable
	case cmd.SQE.NSID == nvme.NSIDBroadcast:
		// all namespaces, or the controller
	case f.perNamespace:
		st = c.active(cmd.SQE.NSID)
	case cmd.SQE.NSID > MaxNamespaces:
		st = nvme.StatusInvalidNamespaceOrFormat
	case cmd.SQE.NSID != 0:
		st = nvme.StatusFeatureNotNamespaceSpecific
	}
	switch {
	case st != nvme.StatusSuccess:
		cmd.finish(dnr(st))
	case f.set != nil:
		f.set(c, cmd, f)
	default:
		c.keep(cmd, f)
	}
}

// keep stores the value of a Set Features command and ends it.
func (c *Controller) keep(cmd *Command, f *feature) {
	set := cmd.SQE.SetFeatures()
	c.features.values[set.FID] = set.Value & f.mask
	cmd.finish(nvme.StatusSuccess)
}

// getFeatures checks what all features have in common (NVMe Base 5.15).
func (c *Controller) getFeatures(cmd *Command) {
	get := cmd.SQE.GetFeatures()
	f := c.feature(get.FID)
	if f == nil || get.SEL > nvme.SelectSupported {
		cmd.finish(dnr(nvme.StatusInvalidField))
		return
	}
	if get.SEL == nvme.SelectSupported {
		cmd.DW0 = nvme.CapabilityChangeable
		if f.perNamespace {
			cmd.DW0 |= nvme.CapabilityNamespaceSpecific
		}
		cmd.finish(nvme.StatusSuccess)
		return
	}
	if f.perNamespace {
		if st := c.active(cmd.SQE.NSID); st != nvme.StatusSuccess {
			cmd.finish(dnr(st))
			return
		}
	}
	// Nothing is saved: the saved value is the default (NVMe Base 5.15).
	initial := get.SEL != nvme.SelectCurrent
	switch {
	case f.get != nil:
		f.get(c, cmd, f, initial)
		return
	case initial:
		cmd.DW0 = f.initial
	default:
		cmd.DW0 = c.features.values[get.FID]
	}
	cmd.finish(nvme.StatusSuccess)
}

// invalid ends a command with Invalid Field in Command.
func (cmd *Command) invalid() { cmd.finish(dnr(nvme.StatusInvalidField)) }

// setPower takes the only power state there is.
func (c *Controller) setPower(cmd *Command, f *feature) {
	if nvme.PowerManagement(cmd.SQE.CDW11).PS() != 0 {
		cmd.invalid()
		return
	}
	c.keep(cmd, f)
}

func (c *Controller) getTemperature(cmd *Command, _ *feature, initial bool) {
	v := nvme.TemperatureThreshold(cmd.SQE.CDW11)
	if v.THSEL() > nvme.THSELUnder || v.TMPSEL() != nvme.TMPSELComposite {
		cmd.invalid()
		return
	}
	switch {
	case !initial:
		cmd.DW0 = uint32(c.features.temperature[v.THSEL()])
	case v.THSEL() == nvme.THSELOver:
		cmd.DW0 = temperatureNever
	}
	cmd.finish(nvme.StatusSuccess)
}

// setTemperature stores a threshold of the composite temperature. There is no
// other sensor, and no temperature that could reach it.
func (c *Controller) setTemperature(cmd *Command, _ *feature) {
	v := nvme.TemperatureThreshold(cmd.SQE.CDW11)
	if v.THSEL() > nvme.THSELUnder || v.TMPSEL() != nvme.TMPSELComposite && v.TMPSEL() != nvme.TMPSELAll {
		cmd.invalid()
		return
	}
	c.features.temperature[v.THSEL()] = v.TMPTH()
	cmd.finish(nvme.StatusSuccess)
}

func (c *Controller) getErrorRecovery(cmd *Command, _ *feature, initial bool) {
	if !initial {
		cmd.DW0 = uint32(c.features.tler[cmd.SQE.NSID])
	}
	cmd.finish(nvme.StatusSuccess)
}

// setErrorRecovery stores the time limit. Deallocated blocks can always be read
// (NSFEAT), so that DULBE cannot be enabled.
func (c *Controller) setErrorRecovery(cmd *Command, _ *feature) {
	v := nvme.ErrorRecovery(cmd.SQE.CDW11)
	if v.DULBE() {
		cmd.invalid()
		return
	}
	if cmd.SQE.NSID == nvme.NSIDBroadcast {
		for _, ns := range c.sub.Namespaces() {
			c.features.tler[ns.NSID] = v.TLER()
		}
	} else {
		c.features.tler[cmd.SQE.NSID] = v.TLER()
	}
	cmd.finish(nvme.StatusSuccess)
}

// setWriteCache enables or disables the volatile write cache. When it is
// disabled, what it holds is flushed before the command ends.
func (c *Controller) setWriteCache(cmd *Command, f *feature) {
	off := cmd.SQE.CDW11&nvme.WCE == 0
	if c.writeThrough.Swap(off) == off || !off {
		c.keep(cmd, f)
		return
	}
	c.flush(func(st nvme.Status) {
		if st != nvme.StatusSuccess {
			c.writeThrough.Store(false)
			cmd.finish(st)
			return
		}
		c.keep(cmd, f)
	})
}

func (c *Controller) getQueues(cmd *Command, _ *feature, initial bool) {
	cmd.DW0 = uint32(c.features.queues())
	if initial {
		cmd.DW0 = uint32(queueLimit(c.cfg.MaxQueues))
	}
	cmd.finish(nvme.StatusSuccess)
}

// setQueues grants what was asked for, as far as there is, as long as no I/O
// queue has been made (NVMe Base 5.27.1.5).
func (c *Controller) setQueues(cmd *Command, _ *feature) {
	want, most := nvme.NumberOfQueues(cmd.SQE.CDW11), queueLimit(c.cfg.MaxQueues)
	switch {
	case want.NSQ() == 0xffff || want.NCQ() == 0xffff:
		cmd.invalid()
		return
	case c.queueMade:
		cmd.finish(dnr(nvme.StatusCommandSequenceError))
		return
	}
	granted := nvme.MakeNumberOfQueues(min(want.NSQ(), most.NSQ()), min(want.NCQ(), most.NCQ()))
	c.features.values[nvme.FeatNumberOfQueues] = uint32(granted)
	cmd.DW0 = uint32(granted)
	cmd.finish(nvme.StatusSuccess)
}

// vector returns the interrupt vector a command is about: one for the admin
// queue and each I/O queue.
func (c *Controller) vector(cmd *Command) (iv uint16, ok bool) {
	iv = nvme.InterruptVectorConfig(cmd.SQE.CDW11).IV()
	return iv, int(iv) <= c.cfg.MaxQueues && iv < maxVectors
}

func (c *Controller) getVector(cmd *Command, _ *feature, initial bool) {
	iv, ok := c.vector(cmd)
	if !ok {
		cmd.invalid()
		return
	}
	off := c.features.uncoalesced[iv/64]>>(iv%64)&1 != 0
	cmd.DW0 = uint32(nvme.MakeInterruptVectorConfig(iv, off && !initial))
	cmd.finish(nvme.StatusSuccess)
}

func (c *Controller) setVector(cmd *Command, _ *feature) {
	iv, ok := c.vector(cmd)
	if !ok {
		cmd.invalid()
		return
	}
	bit := uint64(1) << (iv % 64)
	c.features.uncoalesced[iv/64] &^= bit
	if nvme.InterruptVectorConfig(cmd.SQE.CDW11).CD() {
		c.features.uncoalesced[iv/64] |= bit
	}
	c.spreadCoalescing()
	cmd.finish(nvme.StatusSuccess)
}

func (c *Controller) getTimestamp(cmd *Command, _ *feature, initial bool) {
	var t nvme.Timestamp
	if !initial {
		s := &c.features.stamp
		t.Set(s.base+uint64(max(0, time.Since(s.at).Milliseconds())), s.origin)
	}
	c.reply(cmd, nvme.Bytes(&t))
}

func (c *Controller) setTimestamp(cmd *Command, _ *feature) {
	cmd.data(uint32(len(nvme.Bytes(&nvme.Timestamp{}))), FromHost, func(cmd *Command) {
		var t nvme.Timestamp
		if !c.receive(cmd, nvme.Bytes(&t)) {
			cmd.invalid()
			return
		}
		c.features.stamp = timestamp{base: t.Milliseconds(), at: time.Now(), origin: nvme.TimestampOriginHost}
		cmd.finish(nvme.StatusSuccess)
	})
}

func (c *Controller) getHostBehavior(cmd *Command, _ *feature, initial bool) {
	h := c.features.host
	if initial {
		h = nvme.HostBehavior{}
	}
	c.reply(cmd, nvme.Bytes(&h))
}

// setHostBehavior takes what does no harm here, that the host understands retry
// delays and extended LBA formats, and the formats of Copy. What would change the meaning of commands
// that are not supported is refused.
func (c *Controller) setHostBehavior(cmd *Command, _ *feature) {
	cmd.data(uint32(len(nvme.Bytes(&nvme.HostBehavior{}))), FromHost, func(cmd *Command) {
		var h nvme.HostBehavior
		if !c.receive(cmd, nvme.Bytes(&h)) || h.ACRE > 1 || h.LBAFEE > 1 || h.ETDAS != 0 || h.HDISNS != 0 || h.CDFE&^copyAcross != 0 {
			cmd.invalid()
			return
		}
		c.features.host = nvme.HostBehavior{ACRE: h.ACRE, LBAFEE: h.LBAFEE, CDFE: h.CDFE}
		c.copyFormats.Store(uint32(h.CDFE))
		cmd.finish(nvme.StatusSuccess)
	})
}
