// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
)

// discovered is the log of a listener as a host sees it that has come to an
// address, a record a line; NQNs that are not well-known by names.
func (f *frontDesk) discovered(listener int, host, at string, names map[string]string) (lines []string) {
	entries, _ := f.discoveryFor(listener, host, netip.MustParseAddrPort(at))
	for i := range entries {
		e := &entries[i]
		nqn := e.Subsystem()
		if name, ok := names[nqn]; ok {
			nqn = name
		}
		lines = append(lines, fmt.Sprintf("%v %s %v %v %s %s %d %d", e.SUBTYPE, nqn, e.TRTYPE, e.ADRFAM, e.Address(), e.Service(), e.PORTID, e.EFLAGS))
	}
	return lines
}

// TestDiscoveryListener: where hosts only discover they find what they may use at
// every other listener, and where that is for them.
func TestDiscoveryListener(t *testing.T) {
	f := newFrontDesk(t, newPaths(t))
	close(f.admitted)
	f.volumes("d1")
	one := f.subsystem("one", api.SubsystemSpec{})
	open := f.subsystem("open", api.SubsystemSpec{AllowAny: true})
	if _, err := f.allow("one", hostA, false); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{one.NQN: "one", open.NQN: "open", f.discovery.NQN(): "own", fabrics.DiscoveryNQN: "discovery"}
	port := func(l api.Listener) string { return l.URL[strings.LastIndexByte(l.URL, ':')+1:] }
	all := f.listenTo(api.ListenerSpec{URL: "tcp://0.0.0.0:0", Targets: []string{"one"}})
	loop := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"open"}})
	gate := f.listenTo(api.ListenerSpec{URL: anyPort, Targets: []string{"open"}, Advertise: "[2001:db8::7]:4444"})
	f.listenTo(api.ListenerSpec{URL: "tcp://192.0.2.99:4420", Advertise: "192.0.2.98"}) // not of this machine
	find := f.listenTo(api.ListenerSpec{
		URL: anyPort, Targets: []string{fabrics.DiscoveryNQN},
		Referrals: []string{"tcp://[2001:db8::9]", "rdma://192.0.2.9:4421/nqn.2026-01.org.example:discovery", "tcp://names.example"},
	})
	if find.State != api.ListenerListening || !slices.Equal(find.Subsystems, []string{fabrics.DiscoveryNQN}) ||
		!slices.Equal(find.Referrals, []string{
			"rdma://192.0.2.9:4421/nqn.2026-01.org.example:discovery",
			"tcp://[2001:db8::9]:8009/" + fabrics.DiscoveryNQN, "tcp://names.example:8009/" + fabrics.DiscoveryNQN,
		}) {
		t.Errorf("%+v", find)
	}
	referrals := []string{
		"referral nqn.2026-01.org.example:discovery rdma ipv4 192.0.2.9 4421 5 0",
		"referral discovery tcp ipv6 2001:db8::9 8009 5 0",
		"referral discovery tcp ipv4 names.example 8009 5 0",
	}
	const away, near = "192.0.2.1:8009", "127.0.0.1:8009"
	for _, tt := range []struct {
		listener int
		host, at string
		want     []string
	}{
		{find.Number, hostA, near, append([]string{
			"nvm one tcp ipv4 127.0.0.1 " + port(all) + " 1 0",
			"nvm open tcp ipv4 127.0.0.1 " + port(loop) + " 2 0",
			"nvm open tcp ipv6 2001:db8::7 4444 3 0",
		}, append(referrals, "discovery own tcp ipv4 127.0.0.1 8009 5 3")...)},
		{find.Number, hostB, away, append([]string{
			"nvm open tcp ipv6 2001:db8::7 4444 3 0",
		}, append(referrals, "discovery own tcp ipv4 192.0.2.1 8009 5 3")...)},
		{find.Number, hostA, "[2001:db8::1]:8009", append([]string{
			"nvm one tcp ipv6 2001:db8::1 " + port(all) + " 1 0",
			"nvm open tcp ipv6 2001:db8::7 4444 3 0",
		}, append(referrals, "discovery own tcp ipv6 2001:db8::1 8009 5 3")...)},
		{all.Number, hostA, away, []string{"nvm one tcp ipv4 192.0.2.1 8009 1 0", "discovery own tcp ipv4 192.0.2.1 8009 1 3"}},
		{gate.Number, hostB, away, []string{"nvm open tcp ipv6 2001:db8::7 4444 3 0", "discovery own tcp ipv6 2001:db8::7 4444 3 3"}},
	} {
		if got := f.discovered(tt.listener, tt.host, tt.at, names); !slices.Equal(got, tt.want) {
			t.Errorf("listener %d, host %s at %s:\n%s\nwant\n%s", tt.listener, tt.host, tt.at, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
	}
	// There is nothing to connect to.
	for _, nqn := range []string{one.NQN, open.NQN} {
		if _, err := f.subsystemFor(find.Number, nqn, hostA); err == nil {
			t.Errorf("%s is there", nqn)
		}
	}
	// The other listeners come and go.
	_, before := f.discoveryFor(find.Number, hostB, netip.MustParseAddrPort(near))
	if err := f.unlisten(t.Context(), loop.URL); err != nil {
		t.Fatal(err)
	}
	got, now := f.discoveryFor(find.Number, hostB, netip.MustParseAddrPort(near))
	if len(got) != 5 || now <= before {
		t.Errorf("after unlisten: %d records, generation %d after %d", len(got), now, before)
	}
}

// TestDiscoveryNames: the discovery subsystem keeps its name, which nobody else
// gets.
func TestDiscoveryNames(t *testing.T) {
	paths := newPaths(t)
	f := newFrontDesk(t, paths)
	name := f.discovery.NQN()
	for _, nqn := range []string{fabrics.DiscoveryNQN, name} {
		for _, in := range []api.SubsystemSpec{{Name: "s1", NQN: nqn}, {Name: nqn}} {
			if _, err := f.createSubsystem(in); fault.KindOf(err) != fault.Usage {
				t.Errorf("%+v: %v", in, err)
			}
		}
	}
	for in, want := range map[string]string{
		"tcp://127.0.0.1/" + fabrics.DiscoveryNQN:      "tcp://127.0.0.1:8009",
		"tcp://127.0.0.1:4420/" + fabrics.DiscoveryNQN: "tcp://127.0.0.1:4420",
	} {
		spec := api.ListenerSpec{URL: in}
		if addr, err := listenAddress(&spec); err != nil || addr.String() != want || !discoveryOnly(spec.Targets) {
			t.Errorf("%s: %v, %v, %v", in, addr, spec.Targets, err)
		}
	}
	spec := api.ListenerSpec{URL: "tcp://127.0.0.1", Targets: []string{fabrics.DiscoveryNQN}}
	if addr, err := listenAddress(&spec); err != nil || addr.Port != fabrics.PortDiscovery || !discoveryOnly(spec.Targets) {
		t.Errorf("%v, %v, %v", addr, spec.Targets, err)
	}
	f.stop()
	if f = newFrontDesk(t, paths); f.discovery.NQN() != name {
		t.Errorf("%s after a restart, before %s", f.discovery.NQN(), name)
	}
}
