// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// shelf is a state.
type shelf struct {
	Volumes List[Volume] `json:"volumes"`
	Next    int          `json:"next"`
}

// full is a shelf with something in every kind of field.
func full() shelf {
	return shelf{Next: 7, Volumes: List[Volume]{{
		Name: "d1", Kind: "file", Size: 10 * units.GiB, On: List[string]{"a"}, UsedBy: List[string]{},
		Options: Options{"path": "/x\ty"},
	}}}
}

func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "soc.json")
	s := NewStateFile[shelf](path, 1, nil)
	if got, err := s.Load(); err != nil || got.Volumes != nil || got.Next != 0 {
		t.Errorf("without a file: got %v, %v, want nothing", got, err)
	}
	if _, err := os.Lstat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("Load made a folder: %v", err)
	}
	want := full()
	must(t, s.Save(shelf{}), s.Save(want))
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"soc.json"}, names(t, path)); d != "" {
		t.Error(d)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700, filepath.Dir(filepath.Dir(path)): 0o755} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", p, info.Mode(), err, want)
		}
	}
}

// names lists the files beside path.
func names(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestStateFileMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.json")
	must(t, NewStateFile[[]string](path, 1, nil).Save([]string{"d1", "d2"}))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	migrate := func(version int, old json.RawMessage) (shelf, error) {
		calls++
		var names []string
		if err := json.Unmarshal(old, &names); err != nil || version != 1 {
			return shelf{}, fmt.Errorf("version %d: %w", version, err)
		}
		return shelf{Next: len(names)}, nil
	}
	s := NewStateFile(path, 3, migrate)
	for range 2 {
		if got, err := s.Load(); err != nil || got.Next != 2 {
			t.Errorf("got %v, %v, want 2", got, err)
		}
	}
	if calls != 1 {
		t.Errorf("migrated %d times, want once", calls)
	}
	if kept, err := os.ReadFile(path + ".v1"); err != nil || string(kept) != string(before) {
		t.Errorf("the copy has %q, %v, want %q", kept, err, before)
	}

	// The older build then refuses, and changes nothing.
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewStateFile[[]string](path, 1, nil).Load()
	if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), path) || len(fault.Hints(err)) == 0 {
		t.Errorf("a newer file: %v, want an unsupported fault with its name and a hint", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(after) {
		t.Errorf("the newer file was changed: %q, %v", now, err)
	}
}

// A migration that fails leaves the old file.
func TestStateFileMigrateBad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.json")
	must(t, NewStateFile[int](path, 1, nil).Save(5))
	cause := errors.New("no such thing")
	_, err := NewStateFile(path, 2, func(int, json.RawMessage) (shelf, error) { return shelf{}, cause }).Load()
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want the cause and the file", err)
	}
	if _, err := NewStateFile[shelf](path, 2, nil).Load(); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("without a migration: %v, want an unsupported fault", err)
	}
	if got, err := NewStateFile[int](path, 1, nil).Load(); got != 5 || err != nil {
		t.Errorf("got %d, %v, want 5", got, err)
	}
}

func TestStateFileDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.json")
	s := NewStateFile[shelf](path, 1, nil)
	for _, tt := range []struct{ content, want string }{
		{"", "it is empty"},
		{`{"version":1,"state":{"next":`, "at byte 29"},
		{`{"version":1,"state":{"next":1}}}`, "at byte 33"},
		{"{\"version\":1,\"state\":{\x00}}", "at byte 23"},
		{`{"version":1,"state":{"next":"x"}}`, "key state.next cannot be a JSON string"},
		{`{"version":1,"state":{"volumes":[{"size":"x"}]}}`, "size cannot be a JSON string"},
		{`{"version":1,"state":{"colour":1}}`, `unknown field "colour"`},
		{`{"version":1,"state":{},"more":1}`, `unknown field "more"`},
		{`{"version":1}`, "no version or no state"},
		{`{"version":1,"state": null }`, "no version or no state"},
		{`{"state":{}}`, "no version or no state"},
		{`{"version":-1,"state":{}}`, "no version or no state"},
		{`{"version":1.5,"state":{}}`, "key version cannot be"},
		{`[]`, "cannot be a JSON array"},
		{`null`, "no version or no state"},
	} {
		must(t, os.WriteFile(path, []byte(tt.content), 0o600))
		_, err := s.Load()
		if fault.KindOf(err) != fault.Failure || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v (%v), want a failure with the path and %q", tt.content, err, fault.KindOf(err), tt.want)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != tt.content {
			t.Errorf("%s: the file has now %q, %v", tt.content, b, err)
		}
	}
	must(t, os.Truncate(path, maxState+1)) // sparse
	if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
}

// What a crash in the middle of Save left is ignored and removed.
func TestStateFileTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "soc.json")
	s := NewStateFile[int](path, 1, nil)
	must(t, s.Save(1), os.WriteFile(tempName(path), []byte(`{"version":1,"sta`), 0o600))
	must(t, s.Save(2), os.WriteFile(tempName(path), []byte(`{"version":1,"sta`), 0o600))
	if got, err := s.Load(); got != 2 || err != nil {
		t.Errorf("got %d, %v, want 2", got, err)
	}
	if d := cmp.Diff([]string{"soc.json"}, names(t, path)); d != "" {
		t.Error(d)
	}
}

// A Save that fails leaves the old state and no other file.
func TestStateFileSaveFails(t *testing.T) {
	t.Run("full", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "soc.json")
		s := NewStateFile[string](path, 1, nil)
		must(t, s.Save("old"))
		if code, out := child(t, "full", path); code != 1 || !strings.Contains(out, "file too large") {
			t.Errorf("exit code %d, %s, want 1 and the reason", code, out)
		}
		if got, err := s.Load(); got != "old" || err != nil {
			t.Errorf("got %q, %v, want the old state", got, err)
		}
		if d := cmp.Diff([]string{"soc.json"}, names(t, path)); d != "" {
			t.Error(d)
		}
	})
	t.Run("no space", func(t *testing.T) {
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		info, err := f.Stat()
		must(t, err)
		// The mode that it has: this is the machine's own device.
		if err := fill(disk.OS, int(f.Fd()), []byte("x"), info.Mode().Perm(), true); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("got %v, want no space left", err)
		}
	})
	t.Run("folder in the way", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "soc.json")
		must(t, os.MkdirAll(filepath.Join(path, "x"), 0o755))
		if err := NewStateFile[int](path, 1, nil).Save(1); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want an error with the path", err)
		}
		if d := cmp.Diff([]string{"soc.json"}, names(t, path)); d != "" {
			t.Error(d)
		}
		if _, err := NewStateFile[int](path, 1, nil).Load(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Load: got %v, want an error with the path", err)
		}
	})
	t.Run("file instead of the folder", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(file, nil, 0o600))
		if err := NewStateFile[int](filepath.Join(file, "soc.json"), 1, nil).Save(1); fault.KindOf(err) != fault.Exists {
			t.Errorf("got %v (%v), want exists", err, fault.KindOf(err))
		}
	})
	t.Run("temporary file in the way", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "soc.json")
		s := NewStateFile[int](path, 1, nil)
		must(t, s.Save(1), os.MkdirAll(filepath.Join(tempName(path), "x"), 0o755))
		if err := s.Save(2); err == nil {
			t.Error("no error")
		}
		must(t, os.RemoveAll(tempName(path)))
		if got, err := s.Load(); got != 1 || err != nil {
			t.Errorf("got %d, %v, want 1", got, err)
		}
	})
	t.Run("no JSON", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "soc.json")
		if err := NewStateFile[func()](path, 1, nil).Save(nil); err == nil || len(names(t, path)) != 0 {
			t.Errorf("got %v and files %v", err, names(t, path))
		}
	})
}

// Whatever is in a state file: an error, or a state that Save and Load keep.
func FuzzStateFile(f *testing.F) {
	good, err := json.Marshal(stateDoc[shelf]{1, full()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":2,"state":{}}`))
	f.Add([]byte(`{"version":1,"state":{"volumes":[{"size":18446744073709551615}]}}`))
	f.Add([]byte(`{"version":1,"state":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewStateFile[shelf]("x", 1, nil)
		got, err := s.parse(b, true)
		if err != nil {
			if !strings.Contains(err.Error(), "x") {
				t.Errorf("%v does not name the file", err)
			}
			return
		}
		text, err := json.Marshal(stateDoc[shelf]{1, got})
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.parse(text, true)
		if err != nil {
			t.Fatalf("%s became %s, and then %v", b, text, err)
		}
		if x, _ := json.Marshal(again); string(x) != mustJSON(t, got) {
			t.Errorf("%s became %s", mustJSON(t, got), x)
		}
	})
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
