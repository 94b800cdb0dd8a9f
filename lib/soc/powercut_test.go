// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/disk/disktest"
	"github.com/leapio/leapio/lib/units"
)

// office is a runtime that consists of its volumes and of what is kept.
type office struct {
	*Runtime
	disk disk.Disk
}

// openOffice begins with what there is in the folder root.
func openOffice(t *testing.T, root string, d disk.Disk) (*office, error) {
	run, err := os.MkdirTemp(t.TempDir(), "run")
	if err != nil {
		return nil, err
	}
	paths, err := api.NewPaths(run, filepath.Join(root, "lib", "leapio"))
	if err != nil {
		return nil, err
	}
	r := newRuntime(Config{Paths: paths, Name: api.DefaultRuntime, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), disk: d})
	if err := errors.Join(r.openRecords(), r.load(context.Background())); err != nil {
		r.closeVolumes()
		return nil, err
	}
	return &office{r, d}, nil
}

// has is what a volume has: its size, and its bytes without the zeroes at the end,
// repetitions left out.
type has struct {
	size int
	data string
}

// has returns what the volumes have; those that cannot be used are an error.
func (o *office) has() (map[string]has, error) {
	all := make(map[string]has)
	for _, v := range o.listVolumes() {
		if v.State != volumeReady {
			return nil, fmt.Errorf("volume %s: %s", v.Name, v.Error)
		}
		data, err := os.ReadFile(v.Path)
		if err != nil {
			return nil, err
		}
		if len(data) < int(v.Size) {
			return nil, fmt.Errorf("volume %s has %d bytes, and its file %d", v.Name, v.Size, len(data))
		}
		all[v.Name] = has{int(v.Size), string(slices.Compact(bytes.TrimRight(data[:v.Size], "\x00")))}
	}
	return all, nil
}

// action is one thing to do to an office.
type action struct {
	name  string
	do    func(*office) error
	after map[string]has // what there is then
	files string         // in the folder of volumes
}

func make1(name string, size units.Size) func(*office) error {
	return func(o *office) error {
		v, err := o.createVolume(context.Background(), api.VolumeSpec{Name: name, Kind: "file", Options: api.Options{"size": size.String()}})
		if err != nil {
			return err
		}
		// It is empty, whatever has been there, and ours.
		data, err := os.ReadFile(v.Path)
		if err != nil || len(bytes.Trim(data, "\x00")) > 0 || !o.volumes[name].spec.Made {
			return fmt.Errorf("a volume that was just made has %.20q; made: %v; %w", data, o.volumes[name].spec.Made, err)
		}
		return nil
	}
}

func resize(name string, size units.Size) func(*office) error {
	return func(o *office) error {
		_, err := o.resizeVolume(context.Background(), name, api.VolumeResize{Size: size, Shrink: true})
		return err
	}
}

func deleteData(name string) func(*office) error {
	return func(o *office) error { return o.deleteVolume(name, true) }
}

// flushed is a guest that writes, and has it flushed.
func flushed(name, data string) func(*office) error {
	return func(o *office) error {
		fd, err := o.disk.Open(o.DataPath(name), unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(o.disk.Write(fd, []byte(data)), o.disk.Sync(fd))
	}
}

// actions are done one after the other.
func actions() []action {
	const k = 1024
	all := func(c string, n int) string { return strings.Repeat(c, n) }
	return []action{
		{"nothing", func(*office) error { return nil }, map[string]has{}, ""},
		{"create d1", make1("d1", 8*k), map[string]has{"d1": {8 * k, ""}}, "d1.img"},
		{"write d1", flushed("d1", all("a", 8*k)), map[string]has{"d1": {8 * k, "a"}}, "d1.img"},
		{"grow d1", resize("d1", 16*k), map[string]has{"d1": {16 * k, "a"}}, "d1.img"},
		{"create d2", make1("d2", 4*k), map[string]has{"d1": {16 * k, "a"}, "d2": {4 * k, ""}}, "d1.img d2.img"},
		{"write d2", flushed("d2", all("b", 4*k)), map[string]has{"d1": {16 * k, "a"}, "d2": {4 * k, "b"}}, "d1.img d2.img"},
		{"shrink d1", resize("d1", 4*k), map[string]has{"d1": {4 * k, "a"}, "d2": {4 * k, "b"}}, "d1.img d2.img"},
		{"delete d2", deleteData("d2"), map[string]has{"d1": {4 * k, "a"}}, "d1.img"},
		{"create d2 again", make1("d2", 4*k), map[string]has{"d1": {4 * k, "a"}, "d2": {4 * k, ""}}, "d1.img d2.img"},
		{"delete d1", deleteData("d1"), map[string]has{"d2": {4 * k, ""}}, "d2.img"},
		{"let d2 go", func(o *office) error { return o.deleteVolume("d2", false) }, map[string]has{}, "d2.img"},
	}
}

// look holds an office against what there is after an action.
func (o *office) look(a action) error {
	now, err := o.has()
	if err != nil {
		return err
	}
	if !maps.Equal(now, a.after) {
		return fmt.Errorf("there are %v, and after %q there should be %v", now, a.name, a.after)
	}
	entries, err := os.ReadDir(filepath.Dir(o.DataPath("x")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var files []string
	for _, e := range entries {
		files = append(files, e.Name())
	}
	if got := strings.Join(files, " "); got != a.files {
		return fmt.Errorf("there are files %q, and after %q there should be %q", got, a.name, a.files)
	}
	return nil
}

// recoverOffice finds out, in a folder with what a power cut has left after action
// number acked was done, and maybe all or a part of the next, if the one or the
// other is there, and if the next can be done once more.
func recoverOffice(t *testing.T, root string, acked int) error {
	all := actions()
	o, err := openOffice(t, root, disk.OS)
	if err != nil {
		return err
	}
	defer o.closeVolumes()
	now, err := o.has()
	if err != nil {
		return err
	}
	last := acked == len(all)-1
	switch {
	case !last && maps.Equal(now, all[acked+1].after) && !maps.Equal(now, all[acked].after):
		return o.look(all[acked+1])
	case !maps.Equal(now, all[acked].after) && (last || !strings.HasPrefix(all[acked+1].name, "write")):
		return fmt.Errorf("there are %v, and after %q there should be %v", now, all[acked].name, all[acked].after)
	case last:
		return o.look(all[acked])
	}
	if err := all[acked+1].do(o); err != nil {
		return fmt.Errorf("once more, %s: %w", all[acked+1].name, err)
	}
	return o.look(all[acked+1])
}

// play does all actions on a disk that is cut off from power at every step, and
// looks at what is left.
func play(t *testing.T, lies func(call, path string) bool) (states int, err error) {
	t.Helper()
	rec, err := disktest.NewRecorder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rec.Lies = lies
	o, err := openOffice(t, rec.Root, rec)
	if err != nil {
		t.Fatal(err)
	}
	defer o.closeVolumes()
	for i, a := range actions() {
		if err := a.do(o); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		if err := o.look(a); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // number 0 is the start
			rec.Mark()
		}
	}
	return rec.Cut(0, func(acked int) error { return recoverOffice(t, rec.Root, acked) })
}

// Wherever the power is cut, volumes are as before or after what was being done,
// and what was flushed to them is there.
func TestPowerCut(t *testing.T) {
	states, err := play(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d states of the disk", states)
	if states < 100 {
		t.Errorf("only %d states of the disk: nothing was tried", states)
	}
}

// A process that is killed at any step leaves what is before or after what it was
// doing, and nothing that the next one takes for safe and that goes with the power.
func TestKillThenPowerCut(t *testing.T) {
	kills, states := 0, 0
	for i := range actions() {
		for left, killed := 0, true; killed; left++ {
			var n int
			if n, killed = killIn(t, i, left); killed {
				kills++
				states += n
			}
		}
	}
	t.Logf("%d kills, %d states of the disk", kills, states)
	if kills < 50 {
		t.Errorf("only %d kills", kills)
	}
}

// killIn has a process die in action number i, after left steps of it, if it has
// as many; number 0 is the start. The next one does what is left of the action;
// then the power is cut.
func killIn(t *testing.T, i, left int) (states int, killed bool) {
	t.Helper()
	all := actions()
	rec, err := disktest.NewRecorder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	fail := func(err error) {
		t.Helper()
		t.Fatalf("killed after %d steps of %q: %v\n%s", left, all[i].name, err, strings.Join(rec.Steps(), "\n"))
	}
	life := &disktest.Mortal{Disk: rec, Left: -1}
	if i == 0 {
		life.Left = left
	}
	o, err := openOffice(t, rec.Root, life)
	if err == nil {
		for _, a := range all[:i] {
			if err := a.do(o); err != nil {
				t.Fatalf("%s: %v", a.name, err)
			}
		}
		if i > 0 {
			life.Left = left
		}
		err = all[i].do(o)
		killed = life.Left == 0
		life.Left = 0
		o.closeVolumes()
	}
	if !killed && err == nil {
		return 0, false
	}
	if o, err = openOffice(t, rec.Root, rec); err != nil {
		fail(err)
	}
	now, err := o.has()
	before := all[max(i-1, 0)]
	write := strings.HasPrefix(all[i].name, "write") // it may be there, and goes on until it is flushed
	done := !write && maps.Equal(now, all[i].after) && !maps.Equal(now, before.after)
	if err != nil || !done && !maps.Equal(now, before.after) && !write {
		fail(fmt.Errorf("there are %v, %w", now, err))
	}
	if !done {
		err = all[i].do(o)
	}
	if err = errors.Join(err, o.look(all[i])); err != nil {
		fail(err)
	}
	o.closeVolumes()
	states, err = rec.Cut(rec.Mark(), func(int) error { return recoverOffice(t, rec.Root, i) })
	if err != nil {
		fail(err)
	}
	return states, true
}

// The cuts find what is known to be wrong.
func TestPowerCutFinds(t *testing.T) {
	for name, lies := range map[string]func(call, path string) bool{
		"state not synced":           func(call, path string) bool { return call == "Sync" && strings.Contains(path, "soc.json") },
		"state's folder not synced":  func(call, path string) bool { return call == "SyncDir" && path == "lib/leapio" },
		"data not synced":            func(call, path string) bool { return call == "Sync" && strings.Contains(path, ".img") },
		"data's folder not synced":   func(call, path string) bool { return call == "SyncDir" && path == "lib/leapio/volumes" },
		"folders of both not synced": func(call, path string) bool { return call == "SyncDir" && path == "lib" },
	} {
		t.Run(name, func(t *testing.T) {
			states, err := play(t, lies)
			if err == nil {
				t.Errorf("not found in %d states of the disk", states)
			}
			t.Log(err)
		})
	}
}
