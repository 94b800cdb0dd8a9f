// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// held lists what is in a folder: files with their size and the letters they have.
func held(t *testing.T, root string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root+"/", func(path string, e os.DirEntry, err error) error {
		if err != nil || path == root+"/" {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		if e.IsDir() {
			all = append(all, name+"/")
			return nil
		}
		data, err := os.ReadFile(path)
		all = append(all, fmt.Sprintf("%s:%d%s", name, len(data), slices.Compact(bytes.ReplaceAll(data, []byte{0}, []byte{'-'}))))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// What a disk can hold, step by step.
func TestCut(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(root, "old"), []byte("o"), 0o600), os.Mkdir(filepath.Join(root, "d"), 0o700)); err != nil {
		t.Fatal(err)
	}
	r, err := NewRecorder(root)
	if err != nil {
		t.Fatal(err)
	}
	before := "d/ old:1o"
	fd := -1
	for _, x := range []struct {
		name string
		do   func() error
		want []string // that was not there before
		gone []string // that cannot be any more
	}{
		{"nothing", func() error { return nil }, []string{before}, nil},
		{"make a file", func() (err error) {
			fd, err = r.Open(filepath.Join(root, "f"), unix.O_RDWR|unix.O_CREAT, 0o600)
			return err
		}, []string{"d/ f:0 old:1o"}, nil},
		{"write", func() error { return r.Write(fd, bytes.Repeat([]byte("x"), 2*sector)) },
			[]string{"d/ f:1024x old:1o", "d/ f:1024- old:1o", "d/ f:1024x- old:1o", "d/ f:1024-x old:1o"}, nil},
		{"sync it", func() error { return r.Sync(fd) }, nil,
			[]string{"d/ f:0 old:1o", "d/ f:1024- old:1o", "d/ f:1024x- old:1o", "d/ f:1024-x old:1o"}},
		{"make it longer", func() error { return r.Truncate(fd, 1025) }, []string{"d/ f:1025x- old:1o"}, nil},
		{"sync it again", func() error { return r.Sync(fd) }, nil, []string{"d/ f:1024x old:1o"}},
		{"sync the folder", func() error { return r.SyncDir(root) }, nil, []string{before}},
		{"rename", func() error { return r.Rename(filepath.Join(root, "f"), filepath.Join(root, "old")) },
			[]string{"d/ old:1025x-"}, nil},
		{"remove", func() error { return r.Remove(filepath.Join(root, "old")) },
			// One of them is done, or both.
			[]string{"d/", "d/ f:1025x-"}, nil},
		{"sync the folder again", func() error { return r.SyncDir(root) }, nil,
			[]string{"d/ f:1025x- old:1o", "d/ f:1025x-", "d/ old:1025x-"}},
		{"make a folder", func() error { return r.Mkdir(filepath.Join(root, "d", "e"), 0o700) }, []string{"d/ d/e/"}, nil},
		{"make a file in it", func() (err error) {
			unix.Close(fd)
			fd, err = r.Open(filepath.Join(root, "d", "e", "g"), unix.O_RDWR|unix.O_CREAT, 0o600)
			return err
		}, []string{"d/ d/e/ d/e/g:0"}, nil},
		{"sync that", func() error { return r.SyncDir(filepath.Join(root, "d", "e")) }, nil, []string{"d/ d/e/"}},
		{"and the folder", func() error { return r.SyncDir(filepath.Join(root, "d")) }, nil, []string{"d/"}},
	} {
		if err := x.do(); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		// From here on.
		r.marks = []int{len(r.steps)}
		got := make(map[string]bool)
		if _, err := r.Cut(0, func(mark int) error {
			if mark != 0 {
				t.Errorf("%s: mark %d", x.name, mark)
			}
			got[held(t, root)] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, want := range x.want {
			if !got[want] {
				t.Errorf("%s: %q cannot be", x.name, want)
			}
		}
		for _, gone := range x.gone {
			if got[gone] {
				t.Errorf("%s: %q can still be", x.name, gone)
			}
		}
		t.Logf("%s: %q", x.name, slices.Sorted(maps.Keys(got)))
	}
	unix.Close(fd)
}

// What is found fault with is told with its steps.
func TestCutFails(t *testing.T) {
	r, err := NewRecorder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Mkdir(filepath.Join(r.Root, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.Mark()
	wrong := errors.New("wrong")
	states, err := r.Cut(0, func(mark int) error {
		if _, err := os.Stat(filepath.Join(r.Root, "x")); err != nil && mark == 1 {
			return wrong
		}
		return nil
	})
	if !errors.Is(err, wrong) || !strings.Contains(err.Error(), "make x") || !strings.Contains(err.Error(), "not synced") || states < 2 {
		t.Errorf("after %d states: %v", states, err)
	}
}
