// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"fmt"
	"slices"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
)

func listen() *cli.Command {
	var (
		runtime string
		existOK bool
		spec    api.ListenerSpec
		allow   []string
		refer   []string
	)
	return &cli.Command{
		Name:  "listen",
		Usage: "let hosts connect at an address; prints a URL per subsystem",
		Help: "Volumes get a subsystem of their own. Without a target, every subsystem is\n" +
			"shown. The well-known discovery NQN as the target makes a listener for discovery\n" +
			"only, of what hosts may use at all others. The same command again changes nothing.",
		Args: "URL [TARGET...]",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "allow", Arg: "NQN|any", Usage: "a host that may use the volumes, or any; may be repeated", Value: cli.Strings(&allow)},
			{Name: "advertise", Arg: "ADDR", Usage: "the address that discovery tells hosts; without it, the one they have come to", Value: cli.String(&spec.Advertise)},
			{Name: "referral", Arg: "URL", Usage: "another discovery controller that discovery names here; may be repeated", Value: cli.Strings(&refer)},
			{Name: "shared", Usage: "the volumes may be in use elsewhere, too", Value: cli.Bool(&spec.Shared)},
			{Name: "read-only", Usage: "hosts cannot write to the volumes", Value: cli.Bool(&spec.ReadOnly)},
			{Name: "uuid", Arg: "UUID", Usage: "the UUID of the subsystem that the volumes get; without it, a new one", Value: cli.String(&spec.UUID)},
			{Name: "exist-ok", Usage: "a listener that is as asked for already is no error, here in any case", Value: cli.Bool(&existOK)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			spec.URL, spec.Targets, spec.Allow, spec.Referrals = call.Arg(0), call.Args[1:], allow, refer
			if err := spec.Check(); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var l api.Listener
			if err := client.Post(ctx, api.Path("listeners"), spec, &l); err != nil {
				return command.About(call, spec.URL, err)
			}
			if l.State != api.ListenerListening {
				call.Logger("rdma").Warn("not listening yet; it is tried again", "listener", l.Number, "err", l.Error)
			}
			return printURLs(call, l)
		},
	}
}

// madeURL is what listen prints in JSON for each subsystem.
type madeURL struct {
	Name string `json:"name"`
}

// printURLs prints where hosts find each subsystem of a listener.
func printURLs(call *cli.Call, l api.Listener) error {
	addr, err := fabrics.ParseAddress(l.URL)
	if err != nil {
		return fault.New(fault.Peer, "", "", fmt.Errorf("the daemon sent a bad URL: %w", err))
	}
	urls := []madeURL{}
	for _, addr.NQN = range l.Subsystems {
		urls = append(urls, madeURL{addr.String()})
	}
	if len(urls) == 0 {
		if _, err := fmt.Fprintf(call.Stderr, "leap-rdma: there is no subsystem yet; those made later are shown at %s, too\n", l.URL); err != nil {
			return err
		}
	}
	if call.Format == cli.JSON {
		return cli.List(call, nil, urls)
	}
	for _, url := range urls {
		if _, err := fmt.Fprintln(call.Stdout, url.Name); err != nil {
			return err
		}
	}
	return nil
}

func unlisten() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "unlisten",
		Usage: "remove a listener; its hosts are cut off",
		Args:  "LISTENER",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, path, err := listenerCall(call, runtime)
			if err != nil {
				return err
			}
			return command.About(call, call.Arg(0), client.Delete(ctx, path, nil, nil))
		},
	}
}

// listenerCall finds the call for the listener that is the first argument.
func listenerCall(call *cli.Call, runtime string) (client *api.Client, path string, err error) {
	name := call.Arg(0)
	if name == "" || name == "/" {
		return nil, "", fault.Errorf(fault.Usage, "", "", "bad listener %q: neither a number nor a URL", name)
	}
	client, err = command.Runtime(call, runtime)
	return client, api.Path("listeners", name), err
}

var columns = []cli.Column[api.Listener]{
	{Name: "LISTENER", Value: func(l api.Listener) any { return l.Number }},
	{Name: "URL", Value: func(l api.Listener) any { return l.URL }},
	{Name: "STATE", Value: func(l api.Listener) any { return l.State }},
	{Name: "TARGETS", Value: func(l api.Listener) any { return []string(l.Targets) }},
	{Name: "ADVERTISE", Value: func(l api.Listener) any { return l.Advertise }},
	{Name: "HOSTS", Value: hostWords},
	{Name: "ERROR", Value: func(l api.Listener) any { return l.Error }},
	{Name: "REFERRALS", Value: func(l api.Listener) any { return []string(l.Referrals) }},
}

// hostWords are the hosts that are connected, each once.
func hostWords(l api.Listener) any {
	var hosts []string
	for _, a := range l.Associations {
		if !slices.Contains(hosts, a.Host) {
			hosts = append(hosts, a.Host)
		}
	}
	return hosts
}

var associationColumns = []cli.Column[api.Association]{
	{Name: "HOST", Value: func(a api.Association) any { return a.Host }},
	{Name: "SUBSYSTEM", Value: func(a api.Association) any { return a.Subsystem }},
	{Name: "CNTLID", Value: func(a api.Association) any { return a.CNTLID }},
	{Name: "QUEUES", Value: func(a api.Association) any { return a.Queues }},
	{Name: "ADDRESS", Value: func(a api.Association) any { return a.Address }},
	{Name: "SINCE", Value: func(a api.Association) any { return a.Since }},
}

func list() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "list",
		Usage: "list the listeners",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var all []api.Listener
			if err := client.Get(ctx, api.Path("listeners"), &all); err != nil {
				return err
			}
			return cli.List(call, columns, all)
		},
	}
}

func show() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "show",
		Usage: "show one listener, and the hosts that are connected there",
		Args:  "LISTENER",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, path, err := listenerCall(call, runtime)
			if err != nil {
				return err
			}
			var l api.Listener
			if err := client.Get(ctx, path, &l); err != nil {
				return command.About(call, call.Arg(0), err)
			}
			if err := cli.Show(call, columns, l); err != nil || call.Format != cli.Text || len(l.Associations) == 0 {
				return err
			}
			if _, err := fmt.Fprintln(call.Stdout); err != nil {
				return err
			}
			return cli.List(call, associationColumns, l.Associations)
		},
	}
}
