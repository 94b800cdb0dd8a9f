// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// exported is a line of an export: a command, or a comment on what none makes.
type exported struct {
	Argv    api.List[string] `json:"argv"`
	Comment string           `json:"comment"`
}

// line is the line as sh and apply read it.
func (e exported) line() string {
	if len(e.Argv) == 0 {
		return "# " + e.Comment
	}
	return cli.QuoteAll(e.Argv)
}

var exportColumns = []cli.Column[exported]{
	{Name: "LINE", Value: func(e exported) any { return e.line() }},
}

func export() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "export",
		Usage: "print the commands that make what there is",
		Help: "They work in this order where there is nothing yet, and apply reads them. Data\n" +
			"is not in them.",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			x, partial, err := look(ctx, paths, runtime)
			if err != nil {
				return err
			}
			lines := x.export()
			if call.Format != cli.Text {
				err = cli.List(call, exportColumns, lines)
			} else {
				for _, e := range lines {
					if _, err = fmt.Fprintln(call.Stdout, e.line()); err != nil {
						break
					}
				}
			}
			if err != nil {
				return err
			}
			return partial
		},
	}
}

// exporter has what there is, and turns it into commands.
type exporter struct {
	runtime    string
	data       api.Paths // where the runtime keeps its data
	volumes    map[string]api.Volume
	subsystems map[string]api.Subsystem
	listeners  []api.Listener
	ports      []api.Port     // that the runtime is to serve
	uses       map[string]int // how many ports and listeners show a subsystem

	lines []exported
}

// look asks the daemons for what there is. Users are asked for before what they
// use, so that what is new meanwhile is not missing below them. partial says that
// leap-wpt did not tell its ports.
func look(ctx context.Context, paths api.Paths, runtime string) (_ *exporter, partial, err error) {
	client, err := paths.Runtime(runtime)
	if err != nil {
		return nil, nil, err
	}
	x := &exporter{
		runtime: runtime, volumes: make(map[string]api.Volume), subsystems: make(map[string]api.Subsystem), uses: make(map[string]int),
	}
	if x.runtime == "" {
		x.runtime = api.DefaultRuntime
	}
	var (
		ports      []api.Port
		info       api.RuntimeInfo
		subsystems []api.Subsystem
		volumes    []api.Volume
	)
	if werr := paths.Wpt().Get(ctx, api.Path("ports"), &ports); werr != nil {
		partial = fault.New(fault.Partial, "", "", fmt.Errorf("ports are not in it: %w", werr))
	}
	for _, get := range []struct {
		what string
		out  any
	}{{"runtime", &info}, {"listeners", &x.listeners}, {"subsystems", &subsystems}, {"volumes", &volumes}} {
		if err := client.Get(ctx, api.Path(get.what), get.out); err != nil {
			return nil, nil, err
		}
	}
	x.data.State = info.StateDir
	for _, v := range volumes {
		x.volumes[v.Name] = v
	}
	for _, s := range subsystems {
		x.subsystems[s.Name] = s
		x.uses[s.Name] = len(s.Listeners)
	}
	for _, p := range ports {
		if p.Runtime == x.runtime {
			x.ports = append(x.ports, p)
			x.uses[x.shown(p).Name]++
		}
	}
	slices.SortFunc(x.ports, func(a, b api.Port) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(x.listeners, func(a, b api.Listener) int { return a.Number - b.Number })
	return x, partial, nil
}

// shown is the subsystem that a port is bound to; without a name if there is
// none.
func (x *exporter) shown(p api.Port) api.Subsystem {
	for _, s := range x.subsystems {
		if p.Subsystem == s.Name || p.Subsystem == s.NQN {
			return s
		}
	}
	return api.Subsystem{}
}

// export is everything as lines, each after those it stands on.
func (x *exporter) export() []exported {
	done := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(x.volumes)) {
		x.volume(name, done)
	}
	// The subsystems that listen and map make of volumes come with their lines.
	owned := make(map[string]bool)
	for _, l := range x.listeners {
		owned[x.ownOfListener(l).Name] = true
	}
	for _, p := range x.ports {
		owned[x.ownOfPort(p).Name] = true
	}
	names := slices.Sorted(maps.Keys(x.subsystems))
	for _, name := range names {
		if !owned[name] {
			x.subsystem(x.subsystems[name])
		}
	}
	for _, l := range x.listeners {
		x.listener(l)
	}
	for _, p := range x.ports {
		x.port(p)
	}
	for _, name := range names {
		for _, ns := range x.subsystems[name].Namespaces {
			if ns.WriteProtected {
				x.comment("hosts have write protected namespace %s/%d, which is for them to do", name, ns.NSID)
			}
		}
	}
	return x.lines
}

// add adds a command of a program. Commands of a runtime say which, unless it is
// the one of no name.
func (x *exporter) add(program, verb string, words ...string) {
	argv := append([]string{program}, strings.Fields(verb)...)
	argv = append(argv, words...)
	if x.runtime != api.DefaultRuntime && program != "leap-wpt" {
		argv = append(argv, "--runtime", x.runtime)
	}
	x.lines = append(x.lines, exported{Argv: argv})
}

// comment adds what no command makes.
func (x *exporter) comment(format string, args ...any) {
	x.lines = append(x.lines, exported{Comment: fmt.Sprintf(format, args...)})
}

// volume adds a volume after those it is on.
func (x *exporter) volume(name string, done map[string]bool) {
	v, ok := x.volumes[name]
	if !ok || done[name] {
		return
	}
	done[name] = true
	for _, on := range v.On {
		x.volume(on, done)
	}
	words := []string{v.Name, v.Kind}
	if len(v.On) > 0 {
		words = append(words, "on="+strings.Join(v.On, ","))
	}
	for _, key := range slices.Sorted(maps.Keys(v.Options)) {
		if key == "path" && v.Path == x.data.VolumeData(v.Name) {
			continue // where that is depends on the machine
		}
		words = append(words, key+"="+v.Options[key])
	}
	x.add("leap-soc", "volume create", append(words, "--uuid", v.UUID)...)
}

// subsystem adds a subsystem of its own, with all it has.
func (x *exporter) subsystem(s api.Subsystem) {
	words := []string{s.Name}
	if s.Name != s.NQN {
		words = append(words, "--nqn", s.NQN)
	}
	words = append(words, "--uuid", s.UUID)
	if s.Implicit {
		words = append(words, "--implicit")
	}
	if s.AllowAny {
		words = append(words, "--allow-any")
	}
	x.add("leap-soc", "subsystem create", words...)
	for _, ns := range s.Namespaces {
		words := []string{s.Name, ns.Volume, "--nsid", strconv.FormatUint(uint64(ns.NSID), 10)}
		x.add("leap-soc", "namespace add", append(words, useWords(ns)...)...)
	}
	for _, host := range s.Hosts {
		x.add("leap-soc", "host allow", s.Name, host)
	}
}

// useWords are the options for the way in which a namespace shows its volume.
func useWords(ns api.Namespace) []string {
	var words []string
	if ns.Shared {
		words = append(words, "--shared")
	}
	if ns.ReadOnly {
		words = append(words, "--read-only")
	}
	return words
}

// plain reports whether listen or map makes a subsystem like this of its volumes:
// it is implicit, shows them as namespaces from 1 on, all in one way, and nobody
// but the one that made it uses it.
func (x *exporter) plain(s api.Subsystem) bool {
	if !s.Implicit || len(s.Namespaces) == 0 || x.uses[s.Name] != 1 {
		return false
	}
	if id, err := nvme.ParseUUID(s.UUID); err != nil || s.NQN != id.NQN() {
		return false
	}
	seen := make(map[string]bool)
	for i, ns := range s.Namespaces {
		if int(ns.NSID) != i+1 || !slices.Equal(useWords(ns), useWords(s.Namespaces[0])) || seen[ns.Volume] {
			return false
		}
		seen[ns.Volume] = true
		if _, both := x.subsystems[ns.Volume]; both && ns.Volume != s.Name {
			return false // as a target the word would be ambiguous
		}
	}
	return true
}

// ownOfListener is the subsystem that a listener's command makes of volumes;
// without a name if it makes none.
func (x *exporter) ownOfListener(l api.Listener) api.Subsystem {
	s := x.subsystems[fmt.Sprintf("listener-%d", l.Number)]
	_, both := x.volumes[s.Name]
	if both || !slices.Equal(l.Targets, []string{s.Name}) || !x.plain(s) || len(hosts(s)) == 0 {
		return api.Subsystem{}
	}
	return s
}

// ownOfPort is the subsystem that a port's command makes of volumes; without a
// name if it makes none.
func (x *exporter) ownOfPort(p api.Port) api.Subsystem {
	s := x.shown(p)
	if s.Name != p.Name || !x.plain(s) || len(hosts(s)) > 0 {
		return api.Subsystem{}
	}
	return s
}

// ownWords are the targets and options for a subsystem that is made of volumes.
func ownWords(s api.Subsystem) []string {
	var words []string
	for _, ns := range s.Namespaces {
		words = append(words, ns.Volume)
	}
	return append(append(words, useWords(s.Namespaces[0])...), "--uuid", s.UUID)
}

// target is the word for a subsystem where volumes can stand as well.
func (x *exporter) target(name string) string {
	s := x.subsystems[name]
	if _, both := x.volumes[name]; both || s.Implicit {
		return s.NQN
	}
	return name
}

// listener adds a listener.
func (x *exporter) listener(l api.Listener) {
	words := []string{l.URL}
	if own := x.ownOfListener(l); own.Name != "" {
		words = append(words, ownWords(own)...)
		for _, host := range hosts(own) {
			words = append(words, "--allow", host)
		}
	} else {
		for _, name := range l.Targets {
			words = append(words, x.target(name))
		}
	}
	if l.Advertise != "" {
		words = append(words, "--advertise", l.Advertise)
	}
	for _, url := range l.Referrals {
		words = append(words, "--referral", url)
	}
	x.add("leap-rdma", "listen", words...)
}

// port adds a port and what it shows.
func (x *exporter) port(p api.Port) {
	x.add("leap-wpt", "port add", p.Name, "--owner", p.Owner, "--doorbells", p.Doorbells)
	s := x.shown(p)
	switch {
	case p.Subsystem == "":
		return
	case s.Name == "":
		x.comment("port %s is to show subsystem %s, which does not exist", p.Name, p.Subsystem)
		return
	}
	words := []string{p.Name}
	if own := x.ownOfPort(p); own.Name != "" {
		words = append(words, ownWords(own)...)
	} else {
		words = append(words, x.target(s.Name))
	}
	if p.Poll != "" {
		words = append(words, "--poll", p.Poll)
	}
	x.add("leap-qmap", "map", words...)
}
