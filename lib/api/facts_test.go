// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// tree gives the content of all files below dir by name; folders end in a
// slash, and sockets have no content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			got[name+"/"] = ""
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			got[name] = string(b)
			return err
		default:
			got[name] = ""
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func openFacts(t *testing.T, dir, owner string) *Facts {
	t.Helper()
	f, err := OpenFacts(dir, owner)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// must fails the test for each of errs.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestFacts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "subsystem")
	defer unix.Umask(unix.Umask(0o077))
	f := openFacts(t, dir, "soc")
	got, err := f.Add("s1")
	if want := filepath.Join(dir, "s1"); err != nil || got != want {
		t.Fatalf("got %s, %v, want %s", got, err, want)
	}
	if _, err := f.Add("s1"); err != nil {
		t.Errorf("adding again: %v", err)
	}
	if _, err := f.Add("nqn.2014-08.org.x:a/b"); err != nil {
		t.Error(err)
	}
	must(t,
		f.Set("s1", "state", "first"),
		f.Set("s1", "state", "second\nline\x00"),
		f.Set("s1", "serial", ""),
		f.SetLines("s1", "namespaces", []string{"1\td1", "2\td2"}),
		f.SetLines("s1", "hosts", nil),
		f.Set("nqn.2014-08.org.x:a/b", "state", "x"),
	)
	want := map[string]string{
		"s1/": "", "s1/.owner": "soc\n", "s1/state": "second line \n", "s1/serial": "\n",
		"s1/namespaces": "1\td1\n2\td2\n", "s1/hosts": "",
		"nqn.2014-08.org.x:a%2Fb/": "", "nqn.2014-08.org.x:a%2Fb/.owner": "soc\n", "nqn.2014-08.org.x:a%2Fb/state": "x\n",
	}
	if d := cmp.Diff(want, tree(t, dir)); d != "" {
		t.Error(d)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o755, dir + "/s1": 0o755, dir + "/s1/state": 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
	must(t, f.Remove("s1"), f.Remove("s1"), f.Remove("nqn.2014-08.org.x:a/b"))
	if got := tree(t, dir); len(got) != 0 {
		t.Errorf("after Remove: %v", got)
	}
}

func TestFactsBad(t *testing.T) {
	dir := t.TempDir()
	f := openFacts(t, filepath.Join(dir, "port"), "wpt")
	for _, name := range []string{"", ".", "..", "../x", ".owner", "a\x00b"} {
		_, err := f.Add(name)
		for _, err := range []error{err, f.Set(name, "state", "x"), f.Remove(name)} {
			if err == nil {
				t.Errorf("%q: no error", name)
			}
		}
	}
	if err := f.Set("vm1", "state", "x"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a fact of a thing that is not there: %v", err)
	}
	if _, err := f.Add("vm1"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", ".owner", "../state", "a/b"} {
		if err := f.Set("vm1", key, "x"); err == nil {
			t.Errorf("key %q: no error", key)
		}
	}
	want := map[string]string{"port/": "", "port/vm1/": "", "port/vm1/.owner": "wpt\n"}
	if d := cmp.Diff(want, tree(t, dir)); d != "" {
		t.Error(d)
	}
}

// Clear removes what this owner left, half-made things, and nothing else.
func TestFactsClear(t *testing.T) {
	dir := t.TempDir()
	a, b := openFacts(t, dir, "soc"), openFacts(t, dir, "b")
	for name, f := range map[string]*Facts{"mine": a, "theirs": b} {
		if _, err := f.Add(name); err != nil {
			t.Fatal(err)
		}
		must(t, f.Set(name, "state", "x"))
	}
	if _, err := a.Add("theirs"); fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "runtime b") {
		t.Errorf("taking another's name: %v, want an exists fault with its owner", err)
	}
	l, err := Listen(filepath.Join(dir, "mine", "cntrl"), "unix", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	must(t,
		os.WriteFile(tempName(filepath.Join(dir, "mine", "state")), []byte("torn"), 0o600),
		os.Mkdir(filepath.Join(dir, "half"), 0o755),
		os.Mkdir(filepath.Join(dir, "foreign"), 0o755),
		os.WriteFile(filepath.Join(dir, "foreign", "data"), []byte("x"), 0o600),
	)
	must(t, openFacts(t, dir, "soc").Clear())
	want := map[string]string{
		"theirs/": "", "theirs/.owner": "b\n", "theirs/state": "x\n",
		"foreign/": "", "foreign/data": "x",
	}
	if d := cmp.Diff(want, tree(t, dir)); d != "" {
		t.Error(d)
	}
	// A folder inside a thing is never ours.
	if _, err := a.Add("mine"); err != nil {
		t.Fatal(err)
	}
	must(t, os.Mkdir(filepath.Join(dir, "mine", "x"), 0o755))
	if err := a.Clear(); fault.KindOf(err) != fault.Exists {
		t.Errorf("got %v, want an exists fault", err)
	}
}

// Readers see whole values only, whoever writes.
func TestFactsConcurrent(t *testing.T) {
	f := openFacts(t, t.TempDir(), "wpt")
	dir, err := f.Add("vm1")
	if err != nil {
		t.Fatal(err)
	}
	values := []string{strings.Repeat("a", 5000), strings.Repeat("b", 5000)}
	must(t, f.Set("vm1", "state", values[0]))
	var wg sync.WaitGroup
	for _, v := range values {
		wg.Go(func() {
			for range 100 {
				if err := f.Set("vm1", "state", v); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		b, err := os.ReadFile(filepath.Join(dir, "state"))
		if got := strings.TrimSuffix(string(b), "\n"); err != nil || got != values[0] && got != values[1] {
			t.Errorf("read %d bytes, %v", len(b), err)
		}
	}
	wg.Wait()
}

// A thing that cannot be made leaves no folder behind.
func TestFactsAddFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "port")
	f := openFacts(t, dir, strings.Repeat("x", 8<<10))
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &before))
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4 << 10, Max: before.Max}))
	_, err := f.Add("vm1")
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &before))
	if err == nil {
		t.Error("a full disk is no error")
	}
	if d := cmp.Diff(map[string]string{}, tree(t, dir)); d != "" {
		t.Error(d)
	}
}
