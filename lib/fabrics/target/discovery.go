// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"cmp"
	"hash/maphash"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
)

const (
	// discoveryIdle is how long a discovery controller without a keep alive timeout is kept for a host that sends no commands.
	discoveryIdle = 2 * time.Minute
	// keepAliveUnit is the granularity of the Keep Alive Timer, 1 s: KAS is in units of 100 ms.
	keepAliveUnit = time.Second
	// maxEvents is the Asynchronous Event Request Limit.
	maxEvents = 4
)

// discovery is a discovery controller (NVMe Base, "Discovery Controller"). It belongs to the poller of its association.
type discovery struct {
	a       *association
	events  uint32 // Asynchronous Event Configuration
	parked  []*command
	pending bool // a change is to be reported
	masked  bool // one was reported and the log not read since
	last    time.Duration

	// generation is that of the log when the host's part of it last changed, of which sum is the hash; 0: nobody has looked at it yet.
	generation, sum uint64
}

func newDiscovery(a *association) *discovery { return &discovery{a: a, last: a.admin.on.p.Now()} }

// reset sets features to their defaults.
func (d *discovery) reset() { d.events, d.pending, d.masked = 0, false, false }

// timeout is how long the host may send nothing.
func (d *discovery) timeout() time.Duration {
	if d.a.kato == 0 {
		return discoveryIdle
	}
	kato := time.Duration(d.a.kato) * time.Millisecond
	return (kato + keepAliveUnit - 1) / keepAliveUnit * keepAliveUnit
}

// expire ends the association if the host has sent nothing for too long, and returns when to look again.
func (d *discovery) expire() time.Duration {
	left := d.timeout() - (d.a.admin.on.p.Now() - d.last)
	if left < 0 {
		d.a.end(errKeepAlive)
	}
	return max(left, time.Second)
}

// discoveryCommands is the table of commands that discovery controllers have (NVMe Base, "Discovery Controller", admin commands).
var discoveryCommands = map[nvme.AdminOpcode]func(*discovery, *command){
	nvme.AdminIdentify:          (*discovery).identify,
	nvme.AdminGetLogPage:        (*discovery).getLogPage,
	nvme.AdminSetFeatures:       (*discovery).setFeatures,
	nvme.AdminGetFeatures:       (*discovery).getFeatures,
	nvme.AdminAsyncEventRequest: (*discovery).asyncEventRequest,
	nvme.AdminKeepAlive:         func(_ *discovery, c *command) { c.finish(nvme.StatusSuccess) },
}

// execute runs an admin command.
func (d *discovery) execute(c *command) {
	d.last = d.a.admin.on.p.Now()
	f := discoveryCommands[nvme.AdminOpcode(c.SQE.Opcode)]
	if f == nil {
		c.finish(nvme.StatusInvalidOpcode | nvme.StatusDNR)
		return
	}
	f(d, c)
}

// reply ends a command with p as its data, which is not empty.
func (c *command) reply(p []byte) {
	c.want(uint32(len(p)), controller.ToHost, func(st nvme.Status) {
		if st == nvme.StatusSuccess {
			for _, s := range c.Segments {
				p = p[copy(s.Bytes(), p):]
			}
		}
		c.finish(st)
	})
}

func (d *discovery) identify(c *command) {
	if c.SQE.Identify().CNS != nvme.CNSController {
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	f := d.a.t.limits.fields()
	id := nvme.IdentifyController{
		MDTS: mdts, CNTLID: d.a.cntlid, VER: version, OAES: nvme.NoticeDiscoveryLog, CNTRLTYPE: nvme.ControllerTypeDiscovery,
		AERL: maxEvents - 1, LPA: nvme.LPAExtendedData, KAS: uint16(keepAliveUnit / (100 * time.Millisecond)), SGLS: sgls,
		MAXCMD: f.MAXCMD, IOCCSZ: f.IOCCSZ, IORCSZ: f.IORCSZ, MSDBD: f.MSDBD,
	}
	nvme.SetASCII(id.FR[:], controller.Firmware)
	nvme.SetASCII(id.SN[:], "")
	nvme.SetASCII(id.MN[:], controller.Model)
	nvme.SetNQN(&id.SUBNQN, cmp.Or(d.a.t.cfg.DiscoveryNQN, fabrics.DiscoveryNQN))
	c.reply(nvme.Bytes(&id))
}

// mdts is the largest transfer, as a power of two of pages.
const mdts = 8

var _ [dma.PageSize << mdts]struct{} = [dma.MaxTransfer]struct{}{}

// getLogPage sends part of the discovery log. What it sends beyond the end is zero.
func (d *discovery) getLogPage(c *command) {
	get := c.SQE.GetLogPage()
	switch {
	case get.LID != nvme.LogDiscovery:
		c.finish(nvme.StatusInvalidLogPage | nvme.StatusDNR)
		return
	case get.Bytes() > dma.MaxTransfer, get.OT, get.LPO%4 != 0:
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	log, _ := d.log()
	if get.LPO > uint64(len(log)) {
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	p := make([]byte, get.Bytes())
	copy(p, log[get.LPO:])
	if !get.RAE {
		d.masked = false
	}
	c.reply(p)
	d.deliver()
}

// hashSeed makes hashes that no host can foresee.
var hashSeed = maphash.MakeSeed()

// log returns the log page as it is for this host, and whether it has changed since the last time. Its generation counter changes only with
// what the host sees: who reads in pieces is not made to begin again by changes for others.
func (d *discovery) log() (page []byte, changed bool) {
	entries, generation := d.a.t.cfg.Discovery(d.a.admin.l.id, d.a.hostNQN, d.a.admin.local)
	h := fabrics.DiscoveryHeader{NUMREC: uint64(len(entries))}
	page = append(page, fabrics.Bytes(&h)...)
	for i := range entries {
		page = append(page, fabrics.Bytes(&entries[i])...)
	}
	if sum := maphash.Bytes(hashSeed, page); sum != d.sum {
		changed = d.sum != 0
		d.sum, d.generation = sum, generation
	}
	h.GENCTR = d.generation
	copy(page, fabrics.Bytes(&h))
	return page, changed
}

func (d *discovery) setFeatures(c *command) {
	set := c.SQE.SetFeatures()
	st := nvme.StatusSuccess
	switch {
	case set.SV:
		st = nvme.StatusFeatureNotSaveable | nvme.StatusDNR
	case set.FID == nvme.FeatAsyncEventConfig:
		d.events = set.Value & nvme.NoticeDiscoveryLog
	case set.FID == nvme.FeatKeepAliveTimer:
		d.a.kato = set.Value
	default:
		st = nvme.StatusInvalidField | nvme.StatusDNR
	}
	c.finish(st)
	d.changed() // perhaps while nobody wanted to know
}

func (d *discovery) getFeatures(c *command) {
	get := c.SQE.GetFeatures()
	switch {
	case get.SEL != nvme.SelectCurrent:
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	case get.FID == nvme.FeatAsyncEventConfig:
		c.DW0 = d.events
	case get.FID == nvme.FeatKeepAliveTimer:
		c.DW0 = d.a.kato
	default:
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	c.finish(nvme.StatusSuccess)
}

func (d *discovery) asyncEventRequest(c *command) {
	if len(d.parked) == maxEvents {
		c.finish(nvme.StatusAsyncEventLimitExceeded)
		return
	}
	d.parked = append(d.parked, c)
	d.deliver()
}

// changed follows a change of the discovery log.
func (d *discovery) changed() {
	if d.events&nvme.NoticeDiscoveryLog == 0 || d.a.ending {
		return
	}
	if _, changed := d.log(); changed {
		d.pending = true
		d.deliver()
	}
}

// deliver reports a change, if the host waits for one.
func (d *discovery) deliver() {
	if !d.pending || d.masked || len(d.parked) == 0 {
		return
	}
	c := d.parked[0]
	d.parked = append(d.parked[:0], d.parked[1:]...)
	d.pending, d.masked = false, true
	c.DW0 = uint32(nvme.EventDiscoveryLog)
	c.finish(nvme.StatusSuccess)
}

// stop ends the parked requests, without an answer.
func (d *discovery) stop() {
	parked := d.parked
	d.parked = nil
	for _, c := range parked {
		c.muted = true
		c.finish(nvme.StatusAbortedSQDeletion)
	}
}
