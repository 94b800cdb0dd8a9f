// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"net/netip"
	"strconv"

	"github.com/leapio/leapio/lib/fabrics"
)

// discoveryFor returns the records of the discovery log that a host sees which
// has come to the address at of a listener: the subsystems it may use there, or
// at a listener for discovery only those at all others; the referrals; and the
// discovery subsystem itself. It is called on pollers.
func (r *Runtime) discoveryFor(listener int, hostNQN string, at netip.AddrPort) ([]fabrics.DiscoveryEntry, uint64) {
	a := r.admission.Load()
	here := a.listeners[listener]
	if here == nil {
		return nil, a.generation // it is being removed
	}
	var entries []fabrics.DiscoveryEntry
	for _, e := range a.order {
		if e != here && !here.discovery {
			continue
		}
		addr, ok := e.address(e == here, at)
		for i := range e.shown {
			if s := &e.shown[i]; ok && s.allows(hostNQN) {
				entries = append(entries, e.entry(fabrics.SubsystemNVM, s.nqn, addr))
			}
		}
	}
	for _, addr := range here.referrals {
		entry := here.entry(fabrics.SubsystemReferral, addr.NQN, addr)
		entry.TREQ = fabrics.TREQSecureUnspecified // that is for others to say
		entries = append(entries, entry)
	}
	// An entry with EFLAGSDuplicate leads to what this log says: hosts need not go
	// there. Other listeners say other things.
	addr, _ := here.address(true, at)
	current := here.entry(fabrics.SubsystemDiscovery, r.discovery.NQN(), addr)
	current.EFLAGS = fabrics.EFLAGSDuplicate | fabrics.EFLAGSPersistent
	return append(entries, current), a.generation
}

// entry returns an entry for what is found at an address.
func (e *entrance) entry(t fabrics.SubsystemType, nqn string, addr fabrics.Address) fabrics.DiscoveryEntry {
	entry := fabrics.DiscoveryEntry{
		TRTYPE: addr.Transport, SUBTYPE: t, TREQ: fabrics.TREQSecureNotRequired | fabrics.TREQNoFlowControl,
		PORTID: uint16(e.number), CNTLID: fabrics.CNTLIDDynamic, ASQSZ: fabrics.MinAdminQueue,
	}
	entry.Set(nqn, addr.Host, strconv.Itoa(int(addr.Port)))
	entry.ADRFAM = fabrics.FamilyIPv4 // of a name, too: hosts look it up whatever this says
	if ip, err := netip.ParseAddr(addr.Host); err == nil && ip.Is6() {
		entry.ADRFAM = fabrics.FamilyIPv6
	}
	return entry
}

// address is where a host finds the entrance that has come to the address at,
// here or of another. It reports whether there is such a place.
func (e *entrance) address(here bool, at netip.AddrPort) (fabrics.Address, bool) {
	addr, bound := at, e.bound.Addr()
	switch {
	case !here && !e.bound.IsValid():
		return fabrics.Address{}, false // it would find nobody
	case e.advertise.Host != "":
		return e.advertise, true
	case here:
	case bound.IsUnspecified():
		addr = netip.AddrPortFrom(at.Addr(), e.bound.Port())
	case bound.IsLoopback() && !at.Addr().IsLoopback():
		return fabrics.Address{}, false // it would find itself
	case bound.IsLinkLocalUnicast() && bound.Zone() != at.Addr().Zone():
		return fabrics.Address{}, false // it is on another link
	default:
		addr = e.bound
	}
	return fabrics.Address{Transport: fabrics.TransportTCP, Host: addr.Addr().WithZone("").String(), Port: addr.Port()}, true
}
