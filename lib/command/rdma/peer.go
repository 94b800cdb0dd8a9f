// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
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

// self is the host that discover and ping are.
type self struct {
	nqn     string
	timeout time.Duration
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

// options say who the host is.
func (s *self) options() (host.Options, error) {
	o := host.Options{HostNQN: s.nqn, Timeout: s.timeout, HostID: nvme.NewUUID()}
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
			o, err := s.options()
			if err != nil {
				return err
			}
			records, err := discoverRecords(ctx, addr, o)
			if err != nil {
				return command.About(call, call.Arg(0), err)
			}
			return cli.List(call, recordColumns, records)
		},
	}
}

// discoverRecords reads a discovery log.
func discoverRecords(ctx context.Context, addr fabrics.Address, o host.Options) ([]record, error) {
	a, err := host.Connect(ctx, addr, o)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if err := a.Enable(ctx); err != nil {
		return nil, err
	}
	_, entries, err := a.DiscoveryLog(ctx)
	if err != nil {
		return nil, err
	}
	var records []record
	for i := range entries {
		records = append(records, newRecord(&entries[i]))
	}
	return records, nil
}

// echo is a line of ping.
type echo struct {
	Seq    int           `json:"seq"` // of a keep alive, from 1 on; 0: what came before
	Step   string        `json:"step"`
	Time   time.Duration `json:"time"`
	Detail string        `json:"detail"`
}

var echoColumns = []cli.Column[echo]{
	{Name: "SEQ", Value: func(e echo) any { return e.Seq }},
	{Name: "STEP", Value: func(e echo) any { return e.Step }},
	{Name: "TIME", Value: func(e echo) any { return e.Time }},
	{Name: "DETAIL", Value: func(e echo) any { return e.Detail }},
}

// stepKeepAlive is the step after those of lib/fabrics/host.
const stepKeepAlive = "keep-alive"

// keepAliveLimit is the Keep Alive Timeout of ping, beyond its interval.
const keepAliveLimit = 30 * time.Second

func ping() *cli.Command {
	var (
		s            self
		count        = 4
		interval     = time.Second
		header, data bool
	)
	return &cli.Command{
		Name:  "ping",
		Usage: "connect as a host does, step by step, and measure round trips",
		Args:  "URL",
		Flags: append(s.flags(),
			cli.Flag{Name: "count", Arg: "N", Usage: "how many round trips", Value: cli.Int(&count, 1, math.MaxInt32)},
			cli.Flag{Name: "interval", Arg: "DURATION", Usage: "the time between them", Value: cli.Duration(&interval)},
			cli.Flag{Name: "header-digest", Usage: "ask for digests of headers", Value: cli.Bool(&header)},
			cli.Flag{Name: "data-digest", Usage: "ask for digests of data", Value: cli.Bool(&data)},
		),
		Run: func(ctx context.Context, call *cli.Call) error {
			addr, err := peerAddress(call.Arg(0))
			if err != nil {
				return err
			}
			o, err := s.options()
			if err != nil {
				return err
			}
			o.HeaderDigest, o.DataDigest, o.KeepAlive = header, data, interval+keepAliveLimit
			return command.About(call, call.Arg(0), roundTrips(ctx, addr, o, count, interval, cli.Stream(call, echoColumns)))
		},
	}
}

// roundTrips connects, prints each step as it is done, and then count round
// trips.
func roundTrips(ctx context.Context, addr fabrics.Address, o host.Options, count int, interval time.Duration, print func(echo) error) error {
	var failed error
	say := func(e echo) {
		if err := print(e); err != nil && failed == nil {
			failed = err
		}
	}
	o.Step = func(step string, took time.Duration) { say(echo{Step: step, Time: took}) }
	a, err := host.Connect(ctx, addr, o)
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.Enable(ctx); err != nil {
		return err
	}
	detail := fmt.Sprintf("cntlid=%d", a.CNTLID())
	if header, data := a.Digests(); header || data {
		detail += fmt.Sprintf(" header-digest=%v data-digest=%v", header, data)
	}
	for i := range count {
		if i > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(interval):
			}
		}
		took, err := a.KeepAlive(ctx)
		if err != nil {
			return err
		}
		if say(echo{Seq: i + 1, Step: stepKeepAlive, Time: took, Detail: detail}); failed != nil {
			return failed
		}
	}
	return nil
}

func connect() *cli.Command {
	var dry bool
	return &cli.Command{
		Name:  "connect",
		Usage: "print the command by which a host with nvme-cli connects",
		Args:  "URL",
		Flags: []cli.Flag{
			{Name: "dry-run", Usage: "print the command and do nothing", Value: cli.Bool(&dry), Required: true},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			addr, err := peerAddress(call.Arg(0))
			if err != nil {
				return err
			}
			if addr.NQN == "" {
				return fault.Errorf(fault.Usage, "", "", "%s names no subsystem", call.Arg(0)).
					Hint("`leap-rdma discover " + call.Arg(0) + "` lists the subsystems there")
			}
			words := []string{"nvme", "connect", "--transport=" + addr.Transport.String(), "--traddr=" + addr.Host,
				"--trsvcid=" + strconv.Itoa(int(addr.Port)), "--nqn=" + addr.NQN}
			for i, w := range words {
				words[i] = shellWord(w)
			}
			_, err = fmt.Fprintln(call.Stdout, strings.Join(words, " "))
			return err
		},
	}
}

// shellWord is a word for sh, in quotes if it needs some.
func shellWord(w string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_=./:,@+%", c)
	}
	if strings.IndexFunc(w, func(c rune) bool { return !plain(c) }) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
