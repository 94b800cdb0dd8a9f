// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the addresses that users write.

package fabrics

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/nvme"
)

// Address is where a subsystem, or what discovers some, is reached.
type Address struct {
	Transport TransportType // TransportTCP or TransportRDMA
	Host      string        // an IP address, without brackets, or a name
	Port      uint16        // 1 to 65535; 0, as a listener may say: any
	NQN       string        // of the subsystem; "": none is named
	NSID      uint32        // of a namespace; 0: none is named
}

// ParseAddress reads an address in one of two forms:
//
//	tcp://HOST[:PORT][/NQN][?nsid=N]          or rdma://; an IPv6 HOST is in brackets
//	transport=tcp;traddr=HOST[;trsvcid=PORT][;nqn=NQN][;nsid=N]
//
// Where no port is given it is PortNVMe, and for DiscoveryNQN over TCP PortDiscovery, as hosts have it.
func ParseAddress(s string) (Address, error) {
	a, err := parse(s)
	return a.Address, err
}

// ParseAddressOf is ParseAddress for an address that means the subsystem nqn where it names none.
func ParseAddressOf(s, nqn string) (Address, error) {
	a, err := parse(s)
	if err == nil && a.NQN == "" {
		a.NQN = nqn
		a.choosePort()
	}
	return a.Address, err
}

// parser is an address that is being read.
type parser struct {
	Address
	hasPort bool
}

func parse(s string) (parser, error) {
	var a parser
	read := a.parseURL
	if strings.HasPrefix(s, "transport=") {
		read = a.parseFields
	}
	if err := read(s); err != nil {
		return parser{}, fmt.Errorf("address %q: %w", s, err)
	}
	a.choosePort()
	return a, nil
}

// choosePort sets the port where none is given.
func (a *parser) choosePort() {
	switch {
	case a.hasPort:
	case a.Transport == TransportTCP && a.NQN == DiscoveryNQN:
		a.Port = PortDiscovery
	default:
		a.Port = PortNVMe
	}
}

// parseURL reads the form of a URL.
func (a *parser) parseURL(s string) error {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return errors.New("not of the form tcp://HOST[:PORT][/NQN][?nsid=N]")
	}
	if err := a.setTransport(scheme); err != nil {
		return err
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery {
		n, ok := strings.CutPrefix(query, "nsid=")
		if !ok {
			return fmt.Errorf("%q after the question mark is not nsid=N", query)
		}
		if err := a.setNSID(n); err != nil {
			return err
		}
	}
	authority, nqn, hasNQN := strings.Cut(rest, "/")
	if hasNQN && nqn != "" {
		if err := a.setNQN(nqn); err != nil {
			return err
		}
	}
	return a.parseAuthority(authority)
}

// parseAuthority reads HOST[:PORT].
func (a *parser) parseAuthority(s string) error {
	host, port, hasPort := s, "", false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(inner, "]")
		if !ok {
			return errors.New("no ] ends the IPv6 address")
		}
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return fmt.Errorf("%q is not an IPv6 address", host)
		}
		if port, hasPort = strings.CutPrefix(port, ":"); !hasPort && port != "" {
			return fmt.Errorf("%q follows the IPv6 address", port)
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if strings.Contains(port, ":") {
			return errors.New("an IPv6 address is written in brackets")
		}
	}
	if hasPort {
		if err := a.setPort(port); err != nil {
			return err
		}
	}
	return a.setHost(host)
}

// parseFields reads libnvme's form.
func (a *parser) parseFields(s string) error {
	set := map[string]func(string) error{
		"transport": a.setTransport, "traddr": a.setHost, "trsvcid": a.setPort, "nqn": a.setNQN, "nsid": a.setNSID,
	}
	for field := range strings.SplitSeq(s, ";") {
		key, value, _ := strings.Cut(field, "=")
		f, ok := set[key]
		switch {
		case !ok:
			return fmt.Errorf("%q is none of transport, traddr, trsvcid, nqn, nsid, or is there twice", key)
		case key == "traddr":
			value = strings.TrimSuffix(strings.TrimPrefix(value, "["), "]")
		}
		if err := f(value); err != nil {
			return err
		}
		delete(set, key)
	}
	if a.Host == "" {
		return errors.New("traddr is missing")
	}
	return nil
}

func (a *parser) setTransport(s string) error {
	switch s {
	case "tcp":
		a.Transport = TransportTCP
	case "rdma":
		a.Transport = TransportRDMA
	default:
		return fmt.Errorf("transport %q is neither tcp nor rdma", s)
	}
	return nil
}

// setHost takes an IP address or a name (RFC 1123, and underscores).
func (a *parser) setHost(s string) error {
	a.Host = s
	if s == "" {
		return errors.New("no host")
	}
	name := s
	if ip, err := netip.ParseAddr(s); err == nil {
		if name = ip.Zone(); name == "" {
			return nil
		}
	}
	if len(s) > 253 {
		return fmt.Errorf("the host has %d characters, more than 253", len(s))
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host %q is neither an IP address nor a name", s)
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return fmt.Errorf("host %q is neither an IP address nor a name", s)
			}
		}
	}
	return nil
}

func (a *parser) setPort(s string) error {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '+' {
		return fmt.Errorf("port %q is not a number from 0 to 65535", s)
	}
	a.Port, a.hasPort = uint16(n), true
	return nil
}

func (a *parser) setNQN(s string) error {
	if strings.ContainsAny(s, "?;") {
		return fmt.Errorf("NQN %q holds a question mark or a semicolon, which no address can", s)
	}
	a.NQN = s
	return nvme.CheckNQN(s)
}

func (a *parser) setNSID(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || uint32(n) == nvme.NSIDBroadcast {
		return fmt.Errorf("nsid %q is not a namespace identifier", s)
	}
	a.NSID = uint32(n)
	return nil
}

// HostPort returns HOST:PORT, with brackets around an IPv6 address.
func (a Address) HostPort() string {
	host := a.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(a.Port))
}

// String returns the URL, as ParseAddress reads it; the port is always in it.
func (a Address) String() string {
	s := a.Transport.String() + "://" + a.HostPort()
	if a.NQN != "" {
		s += "/" + a.NQN
	}
	if a.NSID != 0 {
		s += "?nsid=" + strconv.FormatUint(uint64(a.NSID), 10)
	}
	return s
}
