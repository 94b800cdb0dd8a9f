// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"strconv"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// Where nvme-cli keeps who this host is.
const (
	hostNQNFile = "/etc/nvme/hostnqn"
	hostIDFile  = "/etc/nvme/hostid"
)

// self is the host that discover, ping and bench are.
type self struct {
	nqn                      string
	timeout                  time.Duration
	headerDigest, dataDigest bool
}

// defaultTimeout is how long a step may take that has no other limit.
const defaultTimeout = 10 * time.Second

func (s *self) flags() []cli.Flag {
	s.timeout = defaultTimeout
	return []cli.Flag{
		{Name: "hostnqn", Arg: "NQN", Usage: "the host to be; without it, that of /etc/nvme/hostnqn, or one made up", Value: cli.String(&s.nqn)},
		{Name: "timeout", Arg: "DURATION", Usage: "how long each step may take", Value: cli.Duration(&s.timeout)},
	}
}

// digestFlags are those of the verbs for which digests make a difference.
func (s *self) digestFlags() []cli.Flag {
	return []cli.Flag{
		{Name: "header-digest", Usage: "ask for digests of headers", Value: cli.Bool(&s.headerDigest)},
		{Name: "data-digest", Usage: "ask for digests of data", Value: cli.Bool(&s.dataDigest)},
	}
}

// options say who the host is.
func (s *self) options() (host.Options, error) {
	o := host.Options{HostNQN: s.nqn, Timeout: s.timeout, HostID: nvme.NewUUID(), HeaderDigest: s.headerDigest, DataDigest: s.dataDigest}
	if s.timeout == 0 {
		return o, fault.Errorf(fault.Usage, "", "", "--timeout: no time at all")
	}
	if s.nqn != "" {
		err := api.CheckNQN(s.nqn)
		return o, err
	}
	o.HostNQN = word(hostNQNFile)
	if err := nvme.CheckNQN(o.HostNQN); err != nil {
		o.HostNQN = o.HostID.NQN()
		return o, nil
	}
	if id, err := nvme.ParseUUID(word(hostIDFile)); err == nil {
		o.HostID = id
	}
	return o, nil
}

// peer is the controller at the other end, enabled.
type peer struct {
	*host.Admin
	addr    fabrics.Address
	options host.Options // as it was connected with
}

// connect connects to the controller at addr and enables it. step, unless nil, is
// told of each step when it is done.
func (s *self) connect(ctx context.Context, addr fabrics.Address, keepAlive time.Duration, step func(string, time.Duration)) (*peer, error) {
	p := &peer{addr: addr}
	var err error
	if p.options, err = s.options(); err != nil {
		return nil, err
	}
	p.options.KeepAlive, p.options.Step = keepAlive, step
	if p.Admin, err = host.Connect(ctx, addr, p.options); err != nil {
		return nil, err
	}
	if err := p.Enable(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// subsystemAddress is peerAddress of a URL that has to name a subsystem.
func subsystemAddress(url string) (fabrics.Address, error) {
	addr, err := peerAddress(url)
	if err == nil && addr.NQN == "" {
		err = fault.Errorf(fault.Usage, "", "", "%s names no subsystem", url).
			Hint("`leap-rdma discover " + url + "` lists the subsystems there")
	}
	return addr, err
}

// peerAddress reads the URL of a verb.
func peerAddress(url string) (fabrics.Address, error) {
	addr, err := fabrics.ParseAddress(url)
	switch {
	case err != nil:
		return addr, fault.New(fault.Usage, "", "", err)
	case addr.Port == 0:
		return addr, fault.Errorf(fault.Usage, "", "", "address %q: port 0 is for listeners", url)
	}
	return addr, nil
}

// record is a record of a discovery log.
type record struct {
	URL       string `json:"url"`
	Subtype   string `json:"subtype"`
	Transport string `json:"trtype"`
	Family    string `json:"adrfam"`
	Address   string `json:"traddr"`
	Service   string `json:"trsvcid"`
	NQN       string `json:"subnqn"`
	PortID    uint16 `json:"portid"`
}

var recordColumns = []cli.Column[record]{
	{Name: "NQN", Value: func(r record) any { return r.NQN }},
	{Name: "SUBTYPE", Value: func(r record) any { return r.Subtype }},
	{Name: "TRTYPE", Value: func(r record) any { return r.Transport }},
	{Name: "ADRFAM", Value: func(r record) any { return r.Family }},
	{Name: "TRADDR", Value: func(r record) any { return r.Address }},
	{Name: "TRSVCID", Value: func(r record) any { return r.Service }},
	{Name: "PORTID", Value: func(r record) any { return r.PortID }},
	{Name: "URL", Value: func(r record) any { return r.URL }},
}

// newRecord reads a record. It has a URL if it has an address that can be one.
func newRecord(e *fabrics.DiscoveryEntry) record {
	r := record{
		Subtype: e.SUBTYPE.String(), Transport: e.TRTYPE.String(), Family: e.ADRFAM.String(),
		Address: e.Address(), Service: e.Service(), NQN: e.Subsystem(), PortID: e.PORTID,
	}
	port, err := strconv.ParseUint(r.Service, 10, 16)
	addr := fabrics.Address{Transport: e.TRTYPE, Host: r.Address, Port: uint16(port), NQN: r.NQN}
	if err != nil {
		return r
	}
	if back, err := fabrics.ParseAddress(addr.String()); err == nil && back == addr {
		r.URL = addr.String()
	}
	return r
}

func discover() *cli.Command {
	var s self
	return &cli.Command{
		Name:  "discover",
		Usage: "list the subsystems that are found at an address",
		Args:  "URL",
		Flags: s.flags(),
		Run: func(ctx context.Context, call *cli.Call) error {
			addr, err := peerAddress(call.Arg(0))
			if err != nil {
				return err
			}
			records, err := s.records(ctx, addr)
			if err != nil {
				return command.About(call, call.Arg(0), err)
			}
			return cli.List(call, recordColumns, records)
		},
	}
}

// records reads the discovery log at addr.
func (s *self) records(ctx context.Context, addr fabrics.Address) ([]record, error) {
	p, err := s.connect(ctx, addr, 0, nil)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	_, entries, err := p.DiscoveryLog(ctx)
	if err != nil {
		return nil, err
	}
	var records []record
	for i := range entries {
		records = append(records, newRecord(&entries[i]))
	}
	return records, nil
}
