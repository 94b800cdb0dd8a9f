// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

func TestQEMUArgs(t *testing.T) {
	vm1 := api.Port{Name: "vm1", Socket: "/run/leapio/port/vm1/cntrl"}
	vm2 := api.Port{Name: "vm2", Socket: "/run/leapio/port/vm2/cntrl"}
	got, err := QEMUArgs([]api.Port{vm1, vm2}, 2*units.GiB, false)
	want := `-object memory-backend-memfd,id=leapmem,size=2147483648,share=on -machine memory-backend=leapmem` +
		` -device {"driver":"vfio-user-pci","id":"leap-vm1","socket":{"type":"unix","path":"/run/leapio/port/vm1/cntrl"}}` +
		` -device {"driver":"vfio-user-pci","id":"leap-vm2","socket":{"type":"unix","path":"/run/leapio/port/vm2/cntrl"}}`
	if err != nil || got != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
	// What an unquoted $(...) makes of it in sh.
	if sh, err := exec.LookPath("sh"); err == nil {
		words, err := exec.Command(sh, "-c", `printf '%s\n' $(printf '%s\n' "$1")`, "sh", got).Output()
		if want := strings.ReplaceAll(got, " ", "\n") + "\n"; err != nil || string(words) != want {
			t.Errorf("in sh: %v\n%s", err, words)
		}
	}
	for _, tt := range []struct {
		name  string
		ports []api.Port
		mem   units.Size
	}{
		{"no port", nil, units.GiB},
		{"no memory", []api.Port{vm1}, 0},
		{"odd memory", []api.Port{vm1}, units.MiB + 1},
		{"twice", []api.Port{vm1, vm1}, units.GiB},
		{"blank", []api.Port{{Name: "a", Socket: "/run/x y/cntrl"}}, units.GiB},
		{"glob", []api.Port{{Name: "a", Socket: "/run/[x]/cntrl"}}, units.GiB},
		{"quote", []api.Port{{Name: "a", Socket: `/run/"/cntrl`}}, units.GiB},
	} {
		if got, err := QEMUArgs(tt.ports, tt.mem, false); fault.KindOf(err) != fault.Usage {
			t.Errorf("%s: got %q, %v; want a usage fault", tt.name, got, err)
		}
	}
}

func TestLibvirt(t *testing.T) {
	got, err := QEMUArgs([]api.Port{{Name: "vm1", Socket: "/run/<&>/cntrl"}}, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader("<domain>" + got + "</domain>"))
	var args []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, got)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "arg" {
			args = append(args, e.Attr[0].Value)
		}
	}
	if len(args) != 2 || args[0] != "-device" {
		t.Fatalf("arguments: %q", args)
	}
	var device struct{ Socket struct{ Path string } }
	if err := json.Unmarshal([]byte(args[1]), &device); err != nil || device.Socket.Path != "/run/<&>/cntrl" {
		t.Errorf("device %s: %v", args[1], err)
	}
	if with, err := QEMUArgs([]api.Port{{Name: "vm1", Socket: "/x"}}, units.GiB, true); err != nil || !strings.Contains(with, "<memory unit='bytes'>1073741824</memory>") {
		t.Errorf("with memory: %v\n%s", err, with)
	}
}
