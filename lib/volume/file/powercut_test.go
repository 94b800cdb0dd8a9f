// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/disk/disktest"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// A volume that is made after another process was killed at any step of that is
// there after a power loss, with its folders; deleted in the same way it is gone.
func TestKillThenPowerCut(t *testing.T) {
	const size = 16 << 10
	kills := 0
	for _, deleting := range []bool{false, true} {
		for left, killed := 0, true; killed; left++ {
			rec, err := disktest.NewRecorder(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			spec := func() *volume.Spec {
				return &volume.Spec{Name: "d", Kind: "file", Options: map[string]string{"size": fmt.Sprint(size)}}
			}
			env := volumetest.NewEnv(t, filepath.Join(rec.Root, "lib", "leapio"))
			made := spec()
			create := func(d disk.Disk) error {
				env.On = d
				made = spec()
				v, err := Kind.Make(t.Context(), env, made)
				if err == nil {
					err = v.Close()
				}
				return err
			}
			remove := func(d disk.Disk) error {
				env.On = d
				return Kind.Delete(env, made, true)
			}
			do := create
			if deleting {
				if err := create(rec); err != nil {
					t.Fatal(err)
				}
				do = remove
			}
			if killed = do(&disktest.Mortal{Disk: rec, Left: left}) != nil; killed {
				kills++
			}
			if err := do(rec); err != nil {
				t.Fatalf("killed after %d steps, deleting %v: %v", left, deleting, err)
			}
			if !made.Made {
				t.Errorf("killed after %d steps, deleting %v: the file is not known to be ours", left, deleting)
			}
			if _, err := rec.Cut(rec.Mark(), func(int) error {
				info, err := os.Stat(env.DataPath("d"))
				if deleting && !os.IsNotExist(err) || !deleting && (err != nil || info.Size() != size) {
					return fmt.Errorf("deleting %v: there is %v, %w", deleting, info, err)
				}
				return nil
			}); err != nil {
				t.Errorf("killed after %d steps: %v", left, err)
			}
		}
	}
	if kills < 10 {
		t.Errorf("only %d kills", kills)
	}
}
