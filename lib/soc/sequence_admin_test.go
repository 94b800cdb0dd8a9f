// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/leapio/leapio/lib/nvme"
)

// Admin commands of sequences. They are waited for one by one.

// admin executes an admin command, and takes what events it brings.
func (p *player) admin(e nvme.SQE, x *expected) (nvme.CQE, nvme.Status) {
	c, st := p.sync(p.sqs[0], e, x)
	p.told()
	return c, st
}

// told waits for the event requests that must have been told an event.
func (p *player) told() {
	want := p.model.deliver()
	if len(want) == 0 {
		return
	}
	p.drainTo(func() bool { return p.requests() <= p.model.parked })
	if p.requests() != p.model.parked {
		p.failf("%d event requests are left, want %d", p.requests(), p.model.parked)
	}
	got := p.model.told
	p.model.told = nil
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		p.failf("events %v, want %v", got, want)
	}
}

// requests returns how many Asynchronous Event Requests are outstanding.
func (p *player) requests() (n int) {
	for _, x := range p.pending {
		if x.event {
			n++
		}
	}
	return n
}

func (p *player) identify() {
	cns := pick(&p.in, nvme.CNSNamespace, nvme.CNSController, nvme.CNSActiveNamespaces, nvme.CNSNamespaceDescriptors, nvme.CNSIOCSNamespace,
		nvme.CNSIOCSController, nvme.CNSIOCSActiveNamespaces, nvme.CNSIndependentNamespace, nvme.CNSAllocatedNamespaces, nvme.CNSAllocatedNamespace,
		nvme.CNSNamespaceControllers, nvme.CNSControllers, nvme.CNSIOCommandSets, 4, 0x14, 0x17, 0x80, 0xff)
	e, x := nvme.SQE{NSID: p.nsid()}, new(expected)
	csi := nvme.CSI(0)
	if p.in.u8()&15 == 15 {
		csi = nvme.CSIZNS
	}
	nvme.Identify{CNS: cns, CSI: csi}.Put(&e)
	valid := e.NSID != 0 && e.NSID <= playNN
	s := p.shown[e.NSID]
	invalidNSID := func() {
		if !valid {
			x.errs = append(x.errs, nvme.StatusInvalidNamespaceOrFormat)
		}
	}
	ofNVM := func() {
		if csi != nvme.CSINVM {
			x.errs = append(x.errs, nvme.StatusInvalidField)
		}
	}
	check := func([]byte) bool { return true }
	list := func(b []byte) bool {
		var want []byte
		for _, nsid := range slices.Sorted(maps.Keys(p.shown)) {
			if nsid > e.NSID {
				want = binary.LittleEndian.AppendUint32(want, nsid)
			}
		}
		return bytes.Equal(b, append(want, make([]byte, 4096-len(want))...))
	}
	nsids := func() {
		if e.NSID >= nvme.NSIDBroadcast-1 {
			x.errs = append(x.errs, nvme.StatusInvalidNamespaceOrFormat)
		}
	}
	switch cns {
	case nvme.CNSNamespace, nvme.CNSAllocatedNamespace:
		invalidNSID()
		check = func(b []byte) bool {
			var id nvme.IdentifyNamespace
			copy(nvme.Bytes(&id), b)
			if s.d == nil {
				return id == nvme.IdentifyNamespace{}
			}
			return id.NSZE == s.d.blocks && 1<<id.LBAF[id.FLBAS&0xf].LBADS == s.d.block && (id.NSATTR&nvme.NSATTRWriteProtected != 0) == s.readOnly
		}
	case nvme.CNSIndependentNamespace:
		invalidNSID()
	case nvme.CNSIOCSNamespace:
		invalidNSID()
		ofNVM()
	case nvme.CNSController:
		check = func(b []byte) bool {
			var id nvme.IdentifyController
			copy(nvme.Bytes(&id), b)
			return id.NN == playNN && id.SQES == 0x66 && id.CQES == 0x44 && id.MDTS == 8 && id.AERL == playAERs-1
		}
	case nvme.CNSActiveNamespaces, nvme.CNSAllocatedNamespaces:
		nsids()
		check = list
	case nvme.CNSIOCSActiveNamespaces:
		nsids()
		ofNVM()
		check = list
	case nvme.CNSNamespaceDescriptors:
		x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
		check = func(b []byte) bool { return b[0] != 0 }
	case nvme.CNSIOCSController:
		ofNVM()
	case nvme.CNSNamespaceControllers:
		if e.NSID == nvme.NSIDBroadcast {
			x.errs = append(x.errs, nvme.StatusInvalidField)
		} else {
			invalidNSID()
		}
	case nvme.CNSControllers, nvme.CNSIOCommandSets:
		if cns == nvme.CNSIOCommandSets {
			e.CDW10 |= 0xffff << 16
		}
	default:
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	p.receive(e, x, nvme.IdentifySize, check)
}

// receive executes an admin command with data for the host.
func (p *player) receive(e nvme.SQE, x *expected, n int, check func([]byte) bool) {
	dat := p.place(&e, n, p.shape())
	x.errs = append(x.errs, dat.toHost...)
	x.done = func(_ nvme.CQE, st nvme.Status) {
		switch {
		case !dat.untouched(st != nvme.StatusSuccess && !p.private):
			p.failf("%s: %v, and memory beside the data was changed", x.what, st)
		case st == nvme.StatusSuccess && !check(dat.get()):
			p.failf("%s: the data is wrong: % x...", x.what, dat.get()[:min(n, 64)])
		}
	}
	p.admin(e, x)
}

func (p *player) getLog() {
	lid := pick(&p.in, nvme.LogSupportedLogPages, nvme.LogErrorInformation, nvme.LogSMART, nvme.LogFirmwareSlot, nvme.LogChangedNamespaces,
		nvme.LogChangedNamespaces, nvme.LogErrorInformation, nvme.LogCommandEffects, nvme.LogFeatureEffects, nvme.LogMIEffects, 6, 0x0c, 0x80, 0xff)
	e, x := nvme.SQE{NSID: pick(&p.in, 0, nvme.NSIDBroadcast, 0, nvme.NSIDBroadcast, 0, 1, 2000)}, new(expected)
	flags := p.in.u8()
	get := nvme.GetLogPage{LID: lid, RAE: flags&1 != 0, NUMD: pick[uint32](&p.in, 127, 1023, 0, 255, 2000, 1<<20), LPO: uint64(p.in.u8()) * 4}
	size, known := logSizes[lid]
	if flags&0xe0 == 0xe0 {
		switch flags >> 1 & 3 {
		case 0:
			get.LPO += 2
		case 1:
			get.LPO = size + 4
		case 2:
			get.OT = true
		default:
			get.LPO = 1<<64 - 4
		}
		x.errs = append(x.errs, nvme.StatusInvalidField)
	} else if get.LPO > size {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	if !known {
		x.errs = append(x.errs, nvme.StatusInvalidLogPage)
	}
	if get.Bytes() > playMDTS || e.NSID != 0 && e.NSID != nvme.NSIDBroadcast {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	get.Put(&e)
	check := func(b []byte) bool {
		if lid != nvme.LogChangedNamespaces || get.LPO != 0 {
			return true
		}
		var want []byte
		for _, nsid := range slices.Sorted(maps.Keys(p.model.changed)) {
			want = binary.LittleEndian.AppendUint32(want, nsid)
		}
		if len(b) > len(want) {
			want = append(want, make([]byte, len(b)-len(want))...)
		}
		return bytes.Equal(b, want[:len(b)])
	}
	p.receive(e, x, int(min(get.Bytes(), 2*playMDTS)), func(b []byte) bool {
		ok := check(b)
		if !get.RAE {
			p.model.read(lid) // before events are taken
		}
		return ok
	})
}

// featureErrors is what Set Features deserves for its namespace.
func (p *player) featureErrors(nsid uint32, perNamespace bool) []nvme.Status {
	switch {
	case nsid == nvme.NSIDBroadcast || nsid == 0 && !perNamespace:
		return nil
	case perNamespace:
		return p.nsidErrors(nsid)
	case nsid > playNN:
		return []nvme.Status{nvme.StatusInvalidNamespaceOrFormat, nvme.StatusFeatureNotNamespaceSpecific}
	}
	return []nvme.Status{nvme.StatusFeatureNotNamespaceSpecific}
}

// fid chooses a feature.
func (p *player) fid() (fid nvme.FeatureID, known bool) {
	fid = nvme.FeatureID(p.in.u8() % 0x18)
	_, value := valueFeatures[fid]
	return fid, value || slices.Contains(otherFeatures, fid)
}

func (p *player) setFeatures() {
	fid, known := p.fid()
	e, x := nvme.SQE{NSID: pick(&p.in, 0, 0, 0, nvme.NSIDBroadcast, 1, 4, 2000)}, new(expected)
	set := nvme.SetFeatures{FID: fid, Value: p.in.u32(), SV: p.in.u8() == 0xff}
	var out []byte
	m := &p.model
	then := func() {}
	invalid := func(when bool) {
		if when {
			x.errs = append(x.errs, nvme.StatusInvalidField)
		}
	}
	invalid(!known)
	if set.SV {
		x.errs = append(x.errs, nvme.StatusFeatureNotSaveable)
	}
	x.errs = append(x.errs, p.featureErrors(e.NSID, fid == nvme.FeatErrorRecovery)...)
	kept := set.Value
	switch fid {
	case nvme.FeatPowerManagement:
		invalid(set.Value&0x1f != 0)
	case nvme.FeatTemperatureThreshold:
		th, sensor := set.Value>>20&3, set.Value>>16&15
		invalid(th > 1 || sensor != 0 && sensor != 15)
		then = func() { m.temperature[th] = uint16(set.Value) }
	case nvme.FeatErrorRecovery:
		invalid(set.Value&0x10000 != 0)
		then = func() {
			for nsid := range p.shown {
				if e.NSID == nsid || e.NSID == nvme.NSIDBroadcast {
					m.recovery[nsid] = uint16(set.Value)
				}
			}
		}
	case nvme.FeatNumberOfQueues:
		set.Value %= 0x800080
		if set.Value&1 != 0 {
			set.Value |= 0x40004 // not too few for the rest of the sequence
		}
		invalid(uint16(set.Value) == 0xffff || set.Value>>16 == 0xffff)
		if m.queueMade {
			x.errs = append(x.errs, nvme.StatusCommandSequenceError)
		}
		kept = uint32(nvme.MakeNumberOfQueues(min(uint16(set.Value), 126), min(uint16(set.Value>>16), 126)))
	case nvme.FeatInterruptVectorConfig:
		iv := uint16(set.Value)
		invalid(iv > playQueues)
		then = func() { m.uncoalesced[iv] = set.Value&0x10000 != 0 }
	case nvme.FeatTimestamp:
		out = binary.LittleEndian.AppendUint64(nil, uint64(set.Value))
		then = func() { m.stamped, m.stamp = true, uint64(set.Value) }
	case nvme.FeatHostBehavior:
		h := nvme.HostBehavior{ACRE: uint8(set.Value) & 3 % 3, LBAFEE: uint8(set.Value>>4) & 1, CDFE: uint16(set.Value>>8) & 0x1f, HDISNS: uint8(set.Value>>16) & 15 / 15}
		invalid(h.ACRE > 1 || h.CDFE&^0xc != 0 || h.HDISNS != 0)
		out = nvme.Bytes(&h)
		then = func() { m.host = h }
	}
	if f, ok := valueFeatures[fid]; ok {
		keep := then
		then = func() { m.values[fid] = kept & f.mask; keep() }
	}
	set.Put(&e)
	shape := p.shape()
	if out != nil {
		dat := p.place(&e, len(out), shape)
		dat.put(out)
		x.errs = append(x.errs, dat.fromHost...)
	}
	x.done = func(e nvme.CQE, st nvme.Status) {
		if st == nvme.StatusSuccess {
			then()
			if fid == nvme.FeatNumberOfQueues && e.DW0 != m.values[fid] {
				p.failf("%s: granted %#x, want %#x", x.what, e.DW0, m.values[fid])
			}
		}
	}
	p.admin(e, x)
}

func (p *player) getFeatures() {
	fid, known := p.fid()
	e, x := nvme.SQE{NSID: pick(&p.in, 0, 1, 2, 4, 2000, nvme.NSIDBroadcast)}, new(expected)
	get := nvme.GetFeatures{FID: fid, SEL: nvme.FeatureSelect(p.in.u8() % 5), Value: p.in.u32()}
	m, perNamespace := &p.model, fid == nvme.FeatErrorRecovery
	size, want, initial := 0, uint32(0), get.SEL != nvme.SelectCurrent
	if !known || get.SEL > 3 {
		x.errs = append(x.errs, nvme.StatusInvalidField)
	}
	if f, ok := valueFeatures[fid]; ok {
		if want = m.values[fid]; initial {
			want = f.initial
		}
	}
	check := func([]byte) bool { return true }
	if get.SEL == nvme.SelectSupported {
		if want = nvme.CapabilityChangeable; perNamespace {
			want |= nvme.CapabilityNamespaceSpecific
		}
	} else {
		if perNamespace {
			x.errs = append(x.errs, p.nsidErrors(e.NSID)...)
		}
		size, want, check = p.otherFeature(get, initial, e.NSID, want, x)
	}
	get.Put(&e)
	value := func(c nvme.CQE, st nvme.Status) {
		if st == nvme.StatusSuccess && c.DW0 != want {
			p.failf("%s: %#x, want %#x", x.what, c.DW0, want)
		}
	}
	if size > 0 {
		p.receive(e, x, size, check)
		return
	}
	x.done = value
	p.admin(e, x)
}

// otherFeature is what Get Features must answer for those that are no value.
func (p *player) otherFeature(get nvme.GetFeatures, initial bool, nsid, want uint32, x *expected) (size int, value uint32, check func([]byte) bool) {
	m := &p.model
	switch get.FID {
	case nvme.FeatTemperatureThreshold:
		th, sensor := get.Value>>20&3, get.Value>>16&15
		if th > 1 || sensor != 0 {
			x.errs = append(x.errs, nvme.StatusInvalidField)
			return 0, 0, nil
		}
		if want = uint32(m.temperature[th]); initial {
			want = []uint32{0xffff, 0}[th]
		}
	case nvme.FeatErrorRecovery:
		if !initial {
			want = uint32(m.recovery[nsid])
		}
	case nvme.FeatInterruptVectorConfig:
		iv := uint16(get.Value)
		if iv > playQueues {
			x.errs = append(x.errs, nvme.StatusInvalidField)
		}
		if want = uint32(iv); m.uncoalesced[iv] && !initial {
			want |= 0x10000
		}
	case nvme.FeatTimestamp:
		return 8, 0, func(b []byte) bool {
			ms, origin := binary.LittleEndian.Uint64(b)&(1<<48-1), b[6]>>1&7
			switch {
			case initial:
				return ms == 0 && origin == 0
			case m.stamped:
				return ms >= m.stamp && ms < m.stamp+600_000 && origin == 1
			}
			return origin == 0
		}
	case nvme.FeatHostBehavior:
		return 512, 0, func(b []byte) bool {
			h := m.host
			if initial {
				h = nvme.HostBehavior{}
			}
			return bytes.Equal(b, nvme.Bytes(&h))
		}
	}
	return 0, want, nil
}
