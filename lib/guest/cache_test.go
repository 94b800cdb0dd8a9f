// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testCache returns an empty cache in a new directory, also set as LEAP_CACHE.
func testCache(t *testing.T) *cache {
	t.Helper()
	t.Setenv("LEAP_CACHE", t.TempDir())
	c, err := openCache(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// installTest installs a bundle made of the files, as if fetched.
func installTest(t *testing.T, c *cache, name, version string, files map[string]string) string {
	t.Helper()
	b, err := findBundle(name)
	if err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(c.dir, "unpack-test")
	if err := os.Rename(writeTree(t, files), made); err != nil {
		t.Fatal(err)
	}
	dir := name + "_" + version + "_" + b.recipe()
	if err := c.install(b, made, dir); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(c.dir, dir)
}

func TestInstallReplaces(t *testing.T) {
	c := testCache(t)
	b, err := findBundle(bundleMandoc)
	if err != nil {
		t.Fatal(err)
	}
	if dir, ok := c.present(b); ok {
		t.Fatalf("an empty cache: got %s", dir)
	}
	old := installTest(t, c, bundleMandoc, "1", map[string]string{"root/usr/bin/mandoc": "#!/bin/sh\necho one\n"})
	if got, ok := c.present(b); !ok || got != old {
		t.Fatalf("after install: got %s, %v, want %s", got, ok, old)
	}
	script, err := Wrapper(t.Context(), io.Discard, "mandoc")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t.Context(), "", nil, script, "-x"); err != nil || out != "one\n" {
		t.Errorf("wrapper: got %q, %v, want one", out, err)
	}
	installTest(t, c, bundleMandoc, "2", map[string]string{"root/usr/bin/mandoc": "#!/bin/sh\necho two\n"})
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the replaced bundle: got %v, want it gone", err)
	}
	script, err = Wrapper(t.Context(), io.Discard, "mandoc")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t.Context(), "", nil, script, "-x"); err != nil || out != "two\n" {
		t.Errorf("wrapper after the update: got %q, %v, want two", out, err)
	}
	// Another recipe asks for another bundle.
	b.files = append(b.files, "usr/share/more")
	if dir, ok := c.present(b); ok {
		t.Errorf("a changed recipe: got %s", dir)
	}
}

func TestFetchErrors(t *testing.T) {
	testCache(t)
	if err := Fetch(t.Context(), io.Discard, false, "nonsense"); err == nil || !strings.Contains(err.Error(), `no bundle "nonsense": want one of qemu,`) {
		t.Errorf("an unknown bundle: got %v", err)
	}
	if _, err := Wrapper(t.Context(), io.Discard, "vi"); err == nil || !strings.Contains(err.Error(), `no program "vi"`) {
		t.Errorf("an unknown program: got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	err := Fetch(t.Context(), io.Discard, false, bundleMandoc, bundleOVMF)
	for _, want := range []string{os.Getenv("LEAP_CACHE"), "lacks mandoc, ovmf", "apt-config is needed and not installed"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("fetching without apt: got %v, want %q in it", err, want)
		}
	}
	if _, err := Run(t.Context(), Config{Job: "true", Progress: io.Discard}); err == nil || !strings.Contains(err.Error(), "lacks qemu, tools, linux") {
		t.Errorf("booting without a cache: got %v", err)
	}
	t.Setenv("LEAP_CACHE", "/tmp/a:b")
	if err := Fetch(t.Context(), io.Discard, false); err == nil {
		t.Error("a colon in the cache's path: got no error")
	}
}

func TestLockExcludes(t *testing.T) {
	c := testCache(t)
	unlock, err := c.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock: got %v, want to wait", err)
	}
	unlock()
	unlock, err = c.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestChoose(t *testing.T) {
	b := bundle{name: "x", packages: []string{"prog/suite", "data"}, dependencies: libraries}
	var resolved []debPackage
	for _, name := range []string{"libc6", "zlib1g", "perl", "prog", "data", "libpython3.13-minimal", "libsystemd0", "libsystemd-shared"} {
		resolved = append(resolved, debPackage{name: name, version: "1:" + name})
	}
	chosen, version, err := b.choose(resolved)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range chosen {
		got = append(got, p.name)
	}
	if diff := cmp.Diff([]string{"libc6", "zlib1g", "prog", "data", "libsystemd0"}, got); diff != "" {
		t.Errorf("chosen (-want +got):\n%s", diff)
	}
	if version != "1:prog" {
		t.Errorf("version: got %s, want the first package's", version)
	}
	if _, _, err := b.choose(resolved[:3]); err == nil {
		t.Error("without the first package: got no error")
	}
}

func TestBundleBuild(t *testing.T) {
	unpacked := writeTree(t, map[string]string{
		"usr/bin/prog":            string(dynamicELF("", "liba.so")),
		libDir + "/liba.so":       string(dynamicELF("")),
		libDir + "/unused.so":     "",
		"usr/lib64/" + loaderName: string(dynamicELF("")),
		"usr/share/d/one.bin":     "1",
		"usr/share/d/two.bin":     "2",
	})
	if err := os.Symlink("one.bin", filepath.Join(unpacked, "usr/share/d/three.bin")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "made")
	b := bundle{name: "x", packages: []string{"x"}, programs: []string{"usr/bin/prog"}, files: []string{"usr/share/d/*.bin"}}
	if err := b.build(t.Context(), unpacked, dir); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"root/usr/bin/prog", "root/" + libDir + "/" + loaderName, "root/" + libDir + "/liba.so",
		"root/usr/share/d/one.bin", "root/usr/share/d/three.bin", "root/usr/share/d/two.bin"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	b.files = []string{"usr/share/none/*"}
	if err := b.build(t.Context(), unpacked, filepath.Join(t.TempDir(), "made")); err == nil {
		t.Error("a pattern without a file: got no error")
	}
}
