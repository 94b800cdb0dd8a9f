// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/fault"
)

// The contract's list of file names.
func TestPaths(t *testing.T) {
	p, err := NewPaths("/run/leapio/", "/var/lib/leapio")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want string }{
		{p.WptSocket(), "/run/leapio/wpt.sock"},
		{p.LinkSocket(), "/run/leapio/link.sock"},
		{p.PidFile("wpt"), "/run/leapio/wpt.pid"},
		{p.PortDir("vm1"), "/run/leapio/port/vm1"},
		{p.PortSocket("vm1"), "/run/leapio/port/vm1/cntrl"},
		{p.VolumeDir("d1"), "/run/leapio/volume/d1"},
		{p.SubsystemDir("s1"), "/run/leapio/subsystem/s1"},
		{p.SubsystemDir("nqn.2014-08.org.x:a/../b"), "/run/leapio/subsystem/nqn.2014-08.org.x:a%2F..%2Fb"},
		{p.SubsystemDir("nqn.2014-08.org.x:a%2Fb"), "/run/leapio/subsystem/nqn.2014-08.org.x:a%252Fb"},
		{p.ListenerDir(3), "/run/leapio/listener/3"},
		{p.StateFile("soc"), "/var/lib/leapio/soc.json"},
		{p.VolumeData("d1"), "/var/lib/leapio/volumes/d1.img"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
}

func TestRuntimeSocket(t *testing.T) {
	p := Paths{Run: "/r"}
	for _, tt := range []struct{ name, want string }{
		{"", "/r/soc.sock"},
		{"soc", "/r/soc.sock"},
		{"b2", "/r/b2.sock"},
		{"wpt", ""},
		{"link", ""},
		{"../x", ""},
		{"A", ""},
	} {
		got, err := p.RuntimeSocket(tt.name)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("RuntimeSocket(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
		if err != nil && fault.KindOf(err) != fault.Usage {
			t.Errorf("RuntimeSocket(%q): kind %v, want usage", tt.name, fault.KindOf(err))
		}
		if _, err := p.Runtime(tt.name); (err != nil) != (tt.want == "") {
			t.Errorf("Runtime(%q): %v", tt.name, err)
		}
	}
}

func TestNewPathsBad(t *testing.T) {
	fits := "/" + strings.Repeat("r", 107-len("//link.sock"))
	if _, err := NewPaths(fits, "/s"); err != nil {
		t.Errorf("a socket path of 107 bytes: %v", err)
	}
	for _, tt := range []struct{ run, want string }{
		{"", "empty"},
		{"/run/a b", "blanks"},
		{"/run/a\tb", "blanks"},
		{"/run/a\nb", "blanks"},
		{"/run/a*", "blanks"},
		{"/run/a?", "blanks"},
		{"/run/[a", "blanks"},
		{`/run/a\b`, "blanks"},
		{`/run/a"b`, "blanks"},
		{"/run/a\xffb", "not UTF-8"},
		{fits + "r", "the limit is 107"},
	} {
		_, err := NewPaths(tt.run, "/s")
		if err == nil || !strings.Contains(err.Error(), tt.want) || fault.KindOf(err) != fault.Usage {
			t.Errorf("NewPaths(%q): %v, want a usage fault with %q", tt.run, err, tt.want)
		}
	}
	if _, err := NewPaths("/r", ""); err == nil {
		t.Error("an empty state folder is accepted")
	}
}
