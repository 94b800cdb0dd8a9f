// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/nvme"
)

// lines are an export as text.
func (x *exporter) text() []string {
	var lines []string
	for _, e := range x.export() {
		lines = append(lines, e.line())
	}
	return lines
}

// Volumes come after those they are on, else by name; keys by name.
func TestExportVolumes(t *testing.T) {
	x := &exporter{runtime: api.DefaultRuntime, data: api.Paths{State: "/state"}, volumes: map[string]api.Volume{
		"a": {Name: "a", Kind: "mirror", UUID: "A", On: []string{"c", "b"}, Options: api.Options{"z": "1", "k": "a b"}},
		"b": {Name: "b", Kind: "thin", UUID: "B", On: []string{"d"}},
		"c": {Name: "c", Kind: "file", UUID: "C", Path: "/state/volumes/c.img", Options: api.Options{"path": "/state/volumes/c.img", "size": "1G"}},
		"d": {Name: "d", Kind: "file", UUID: "D", Path: "/state/volumes/c.img", Options: api.Options{"path": "/state/volumes/c.img"}},
	}}
	want := []string{
		"leap-soc volume create c file size=1G --uuid C",
		"leap-soc volume create d file path=/state/volumes/c.img --uuid D",
		"leap-soc volume create b thin on=d --uuid B",
		"leap-soc volume create a mirror on=c,b 'k=a b' z=1 --uuid A",
	}
	if d := cmp.Diff(want, x.text()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// What no command makes is said, not left out.
func TestExportComments(t *testing.T) {
	id := nvme.NewUUID()
	x := &exporter{
		runtime: "two",
		subsystems: map[string]api.Subsystem{"s1": {Name: "s1", NQN: id.NQN(), UUID: id.String(), Namespaces: []api.Namespace{
			{Subsystem: "s1", NSID: 1, Volume: "d1", WriteProtected: true},
		}}},
		ports: []api.Port{{Name: "vm1", Owner: "root", Doorbells: api.DoorbellsTrap, Subsystem: "gone", Runtime: "two"}},
	}
	want := []string{
		"leap-soc subsystem create s1 --nqn " + id.NQN() + " --uuid " + id.String() + " --runtime two",
		"leap-soc namespace add s1 d1 --nsid 1 --runtime two",
		"leap-wpt port add vm1 --owner root --doorbells trap",
		"# port vm1 is to show subsystem gone, which does not exist",
		"# hosts have write protected namespace s1/1, which is for them to do",
	}
	if d := cmp.Diff(want, x.text()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Each line of an export is one of a setup: apply knows every command.
func TestExportIsSetup(t *testing.T) {
	id := nvme.NewUUID()
	x := &exporter{
		runtime: "two", uses: map[string]int{"vm1": 1, "listener-1": 1},
		volumes: map[string]api.Volume{"d1": {Name: "d1", Kind: "null", UUID: id.String()}},
		subsystems: map[string]api.Subsystem{
			"s1": {
				Name: "s1", NQN: "nqn.2026-01.org.example:it's", UUID: id.String(), AllowAny: true, Hosts: []string{"nqn.2026-01.org.example:h"},
				Namespaces: []api.Namespace{{NSID: 7, Volume: "d1", Shared: true, ReadOnly: true}},
			},
			"listener-1": {Name: "listener-1", NQN: id.NQN(), UUID: id.String(), Implicit: true, AllowAny: true, Namespaces: []api.Namespace{{NSID: 1, Volume: "d1"}}},
			"vm1":        {Name: "vm1", NQN: id.NQN(), UUID: id.String(), Implicit: true, Namespaces: []api.Namespace{{NSID: 1, Volume: "d1", ReadOnly: true}}},
		},
		listeners: []api.Listener{{Number: 1, URL: "tcp://[::1]:4420", Targets: []string{"listener-1"}}, {Number: 2, URL: "tcp://[::1]:4421", Advertise: "h:1"}},
		ports:     []api.Port{{Name: "vm1", Owner: "a:b", Doorbells: api.DoorbellsMap, Subsystem: "vm1", Runtime: "two", Poll: api.PollBusy}},
	}
	text := strings.Join(x.text(), "\n")
	steps, err := readSetup("export", text, "")
	if err != nil {
		t.Fatal(err)
	}
	used := make(map[string]bool)
	for i, e := range x.export()[:len(steps)] {
		if !slices.Equal(e.Argv, steps[i].argv) {
			t.Errorf("%q is read as %q", e.Argv, steps[i].argv)
		}
		used[steps[i].argv[0]+" "+steps[i].Op()] = true
	}
	for name := range makers() {
		// What connect makes is a volume like others.
		if !used[name] && name != "leap-rdma connect" {
			t.Errorf("%s is not in\n%s", name, text)
		}
	}
}

// A line is about the runtime that it names, or else the one of the setup, and
// what is there already is no error for its verb.
func TestSetupRuntime(t *testing.T) {
	steps, err := readSetup("f", "leap-soc volume create d1 -- null\nleap-qmap map vm1 d1 --runtime b\nleap-wpt port add vm1", "a")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		runtime, flag, existOK string
		port                   bool
	}{{"a", "a", "true", false}, {"b", "b", "", true}, {"a", "", "true", true}} {
		p := steps[i]
		flag, _ := p.Value("runtime")
		existOK, _ := p.Value("exist-ok")
		if p.runtime != want.runtime || flag != want.flag || existOK != want.existOK || p.port != want.port {
			t.Errorf("line %d: runtime %s, --runtime %s, --exist-ok %s, port %v", p.line, p.runtime, flag, existOK, p.port)
		}
	}
}

// Only the runtime of the machine has the setup of the machine.
func TestChooseSetup(t *testing.T) {
	machine := filepath.Join(t.TempDir(), "setup")
	system := api.Paths{Run: cli.DefaultRunDir, State: cli.DefaultStateDir}
	choose := func(name string, paths api.Paths, given ...string) string {
		var f setupFlag
		for _, g := range given {
			if err := f.Set(g); err != nil {
				t.Fatal(err)
			}
		}
		return f.choose(name, paths, machine)
	}
	if got := choose("", system); got != "" {
		t.Errorf("without the file: %q", got)
	}
	if err := os.WriteFile(machine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		paths api.Paths
		given []string
		want  string
	}{
		{"", system, nil, machine},
		{"soc", system, nil, machine},
		{"two", system, nil, ""},
		{"", api.Paths{Run: "/tmp/run", State: cli.DefaultStateDir}, nil, ""},
		{"", api.Paths{Run: cli.DefaultRunDir, State: "/tmp/state"}, nil, ""},
		{"", system, []string{""}, ""},
		{"", system, []string{"f"}, "f"},
		{"two", api.Paths{Run: "/tmp/run", State: "/tmp/state"}, []string{"f"}, "f"},
	} {
		if got := choose(tt.name, tt.paths, tt.given...); got != tt.want {
			t.Errorf("%q %v %q: %q, want %q", tt.name, tt.paths, tt.given, got, tt.want)
		}
	}
}
