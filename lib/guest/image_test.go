// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// image makes a guest's file system and reads it back.
func image(t *testing.T, job string, files map[string]File, trees ...string) ([]string, map[string]member) {
	t.Helper()
	var out bytes.Buffer
	if err := writeImage(&out, job, files, trees...); err != nil {
		t.Fatal(err)
	}
	names, members, err := readCpio(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return names, members
}

func TestWriteImage(t *testing.T) {
	tools := writeTree(t, map[string]string{"usr/bin/busybox": "box", "etc/hosts": "a package's", "usr/bin/both": "tools"})
	if err := os.Symlink("usr/bin", filepath.Join(tools, "bin")); err != nil {
		t.Fatal(err)
	}
	kernel := writeTree(t, map[string]string{"usr/lib/modules/6/modules.dep": "", "usr/bin/both": "kernel"})
	script := filepath.Join(writeTree(t, map[string]string{"s": "#!/bin/sh\n"}), "s")
	names, members := image(t, "echo job", map[string]File{
		"/bin/mine":     {Data: []byte("data")},
		"/etc/hosts":    {Data: []byte("127.0.0.1 me\n"), Mode: 0o600},
		"deep/er/file":  {Host: script},
		"/usr/bin/bare": {Host: script, Mode: 0o700},
	}, tools, kernel)
	for name, want := range map[string]member{
		"job":                           {Mode: cpioFile | 0o755, Body: "echo job"},
		"usr/bin/mine":                  {Mode: cpioFile | 0o644, Body: "data"},
		"etc/hosts":                     {Mode: cpioFile | 0o600, Body: "127.0.0.1 me\n"},
		"deep/er/file":                  {Mode: cpioFile | 0o755, Body: "#!/bin/sh\n"},
		"usr/bin/bare":                  {Mode: cpioFile | 0o700, Body: "#!/bin/sh\n"},
		"deep/er":                       {Mode: cpioDir | 0o755},
		"bin":                           {Mode: cpioLink | 0o777, Body: "usr/bin"},
		"usr/bin/both":                  {Mode: cpioFile | 0o755, Body: "tools"},
		"usr/lib/modules/6/modules.dep": {Mode: cpioFile | 0o755},
		"dev/console":                   {Mode: cpioDevice | 0o600, Major: 5, Minor: 1},
	} {
		if got := members[name]; got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	for i, name := range names {
		if dir := filepath.Dir(name); dir != "." && slices.Index(names, dir) > i {
			t.Errorf("%s comes before its directory", name)
		}
	}
	if !strings.HasPrefix(members["init"].Body, "#!/bin/sh\n") || members["init"].Mode != cpioFile|0o755 {
		t.Errorf("init: got mode %o, %.20q", members["init"].Mode, members["init"].Body)
	}
}

func TestWriteImageFileErrors(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string]map[string]File{
		"no path":      {"/": {Data: []byte("x")}},
		"no content":   {"/x": {}},
		"two contents": {"/x": {Data: []byte("x"), Host: "/etc/passwd"}},
		"missing":      {"/x": {Host: filepath.Join(dir, "missing")}},
		"directory":    {"/x": {Host: dir}},
	} {
		if err := writeImage(&bytes.Buffer{}, "true", files); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// A dynamically linked program of the host brings its libraries; the shell is one on every usual machine.
func TestWriteImageHostProgram(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	dynamic, err := isDynamic(shell)
	if err != nil {
		t.Fatal(err)
	}
	_, members := image(t, "true", map[string]File{"/bin/hostsh": {Host: shell}, "/opt/again": {Host: shell}})
	if !dynamic {
		if got := members["usr/bin/hostsh"].Body; got[:4] != "\x7fELF" {
			t.Errorf("a static program: got %.20q, want it as it is", got)
		}
		return
	}
	want := "#!/bin/sh\nexec '/host/lib/" + loaderName + "' '--library-path' '/host/lib' '/host/bin/hostsh' \"$@\"\n"
	if got := members["usr/bin/hostsh"].Body; got != want {
		t.Errorf("script: got %q, want %q", got, want)
	}
	for _, name := range []string{"host/lib/" + loaderName, "host/lib/libc.so.6", "host/bin/hostsh", "host/opt/again"} {
		if got := members[name].Body; len(got) < 4 || got[:4] != "\x7fELF" {
			t.Errorf("%s: got %.20q, want an ELF file", name, got)
		}
	}
}
