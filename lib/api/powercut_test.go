// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/disk/disktest"
)

// saves are states one after the other: shorter, longer, of several sectors.
var saves = []string{"one", strings.Repeat("two ", 700), "3", strings.Repeat("four", 300)}

// cutSaves has a state file on a disk that loses what was not synced, and cuts the
// power at every step. Whatever was saved last is there, or what was being saved.
// wrap may have the disk do something else; nil: nothing else.
func cutSaves(t *testing.T, lies func(call, path string) bool, wrap func(disk.Disk) disk.Disk) (states int, err error) {
	t.Helper()
	rec, err := disktest.NewRecorder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rec.Lies = lies
	var d disk.Disk = rec
	if wrap != nil {
		d = wrap(rec)
	}
	path := filepath.Join("var", "lib", "soc.json")
	s := NewStateFile[string](filepath.Join(rec.Root, path), 1, nil).On(d)
	for _, v := range saves {
		if err := s.Save(v); err != nil {
			t.Fatal(err)
		}
		rec.Mark()
	}
	return rec.Cut(0, func(acked int) error {
		s := NewStateFile[string](filepath.Join(rec.Root, path), 1, nil)
		got, err := s.Load()
		if err != nil {
			return err
		}
		if now := append([]string{""}, saves...); got != now[acked] && (acked == len(saves) || got != now[acked+1]) {
			return fmt.Errorf("after %d saves there is %.10q...", acked, got)
		}
		// It goes on from there, and nothing else is left.
		if err := s.Save("next"); err != nil {
			return err
		}
		if got, err := s.Load(); got != "next" || err != nil {
			return fmt.Errorf("saved again: %.10q, %w", got, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(filepath.Join(rec.Root, path))); err != nil || len(entries) != 1 {
			return fmt.Errorf("there are %v, %w", entries, err)
		}
		return nil
	})
}

// A state file survives power loss at any step of its saving.
func TestStateFilePowerCut(t *testing.T) {
	states, err := cutSaves(t, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d states of the disk", states)
	if states < 30 {
		t.Errorf("only %d states of the disk: nothing was tried", states)
	}
}

// direct writes a file in place, without the temporary one.
type direct struct{ disk.Disk }

func (d direct) Open(path string, flags int, mode fs.FileMode) (int, error) {
	if strings.HasSuffix(path, ".tmp") {
		path, flags = strings.TrimSuffix(strings.Replace(path, "/.", "/", 1), ".tmp"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC
	}
	return d.Disk.Open(path, flags, mode)
}

func (d direct) Rename(string, string) error { return nil }

// replace removes what is to be replaced, first.
type replace struct{ disk.Disk }

func (d replace) Rename(from, to string) error {
	if err := d.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.Disk.Rename(from, to)
}

// late syncs the file only after it has been renamed, as far as the disk can tell.
type late struct {
	disk.Disk
	fd *int
}

func (d late) Sync(fd int) error {
	*d.fd = fd
	return nil
}

func (d late) SyncDir(path string) error {
	err := d.Disk.SyncDir(path)
	if *d.fd >= 0 {
		// By number: the descriptor itself is closed.
		err = errors.Join(err, d.Disk.Sync(*d.fd))
		*d.fd = -1
	}
	return err
}

// The cuts find what is known to be wrong.
func TestStateFilePowerCutFinds(t *testing.T) {
	never := -1
	for name, x := range map[string]struct {
		lies func(call, path string) bool
		wrap func(disk.Disk) disk.Disk
	}{
		"no sync of the file":            {lies: func(call, _ string) bool { return call == "Sync" }},
		"no sync of the folder":          {lies: func(call, path string) bool { return call == "SyncDir" && path == "var/lib" }},
		"no sync of the folder's folder": {lies: func(call, path string) bool { return call == "SyncDir" && path == "var" }},
		"no sync of the outermost":       {lies: func(call, path string) bool { return call == "SyncDir" && path == "." }},
		"written in place":               {wrap: func(d disk.Disk) disk.Disk { return direct{d} }},
		"removed, then renamed":          {wrap: func(d disk.Disk) disk.Disk { return replace{d} }},
		"file synced after its folder":   {wrap: func(d disk.Disk) disk.Disk { return late{d, &never} }},
	} {
		t.Run(name, func(t *testing.T) {
			states, err := cutSaves(t, x.lies, x.wrap)
			if err == nil {
				t.Errorf("not found in %d states of the disk", states)
			}
			t.Log(err)
		})
	}
}

// Of a migration, the copy of the old file is there when the new one is.
func TestStateFileMigratePowerCut(t *testing.T) {
	root := t.TempDir()
	must(t, NewStateFile[[]string](filepath.Join(root, "soc.json"), 1, nil).Save([]string{"d1", "d2"}))
	rec, err := disktest.NewRecorder(root)
	if err != nil {
		t.Fatal(err)
	}
	migrate := func(_ int, old json.RawMessage) (shelf, error) {
		var names []string
		err := json.Unmarshal(old, &names)
		return shelf{Next: len(names)}, err
	}
	if _, err := NewStateFile(filepath.Join(root, "soc.json"), 2, migrate).On(rec).Load(); err != nil {
		t.Fatal(err)
	}
	rec.Mark()
	states, err := rec.Cut(0, func(acked int) error {
		path := filepath.Join(root, "soc.json")
		old, oldErr := NewStateFile[[]string](path, 1, nil).Load()
		if kept, err := NewStateFile[[]string](path+".v1", 1, nil).Load(); oldErr != nil && (err != nil || len(kept) != 2) {
			return fmt.Errorf("the old file is gone, and its copy has %v, %w", kept, err)
		}
		if oldErr == nil && (len(old) != 2 || acked == 1) {
			return fmt.Errorf("the old file has %v after %d migrations", old, acked)
		}
		if got, err := NewStateFile(path, 2, migrate).Load(); err != nil || got.Next != 2 {
			return fmt.Errorf("migrated, there is %v, %w", got, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states of the disk", states)
}

// A process that is killed at any step leaves nothing that the next one takes for
// safe and that goes with the power.
func TestStateFileKillThenPowerCut(t *testing.T) {
	kills := 0
	for killed := true; killed; kills++ {
		rec, err := disktest.NewRecorder(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		file := func(d disk.Disk) *StateFile[string] {
			return NewStateFile[string](filepath.Join(rec.Root, "lib", "leapio", "soc.json"), 1, nil).On(d)
		}
		killed = file(&disktest.Mortal{Disk: rec, Left: kills}).Save("first") != nil
		s := file(rec)
		known, err := s.Load()
		if err != nil || known != "" && known != "first" {
			t.Fatalf("killed after %d steps: %q, %v", kills, known, err)
		}
		for _, now := range []string{known, "second"} {
			if now == "second" {
				must(t, s.Save(now))
			}
			if _, err := rec.Cut(rec.Mark(), func(int) error {
				if got, err := file(disk.OS).Load(); got != now || err != nil {
					return fmt.Errorf("there is %q, which was %q: %w", got, now, err)
				}
				return nil
			}); err != nil {
				t.Errorf("killed after %d steps: %v", kills, err)
			}
		}
	}
	if kills < 8 {
		t.Errorf("only %d kills", kills)
	}
}
