// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Facts: what shell scripts read under RUN, one value per file.

package api

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// ownerFile names the owner of a thing's facts inside its folder. It is hidden:
// not a fact, but what keeps several runtimes apart that share RUN.
const ownerFile = ".owner"

// Facts are the folders of all things of one kind, such as RUN/port, as far as
// one daemon owns them. A thing is a folder, a fact a file in it. It may be
// used by several goroutines.
type Facts struct {
	dir, owner string
	mu         sync.Mutex
}

// OpenFacts makes the folder dir, see Paths.Facts, where it is missing. owner
// is the daemon: "wpt" or the name of a runtime. A daemon that begins anew then
// calls Clear; one that replaced itself in place keeps what is there.
func OpenFacts(dir, owner string) (*Facts, error) {
	if err := makeDir(disk.OS, dir, 0o755, false); err != nil {
		return nil, err
	}
	return &Facts{dir: dir, owner: owner}, nil
}

// Clear removes what an earlier process of this owner left.
func (f *Facts) Clear() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(f.dir, e.Name())
		switch owner, err := readOwner(dir); {
		case errors.Is(err, os.ErrNotExist):
			// A crash between the folder and its owner leaves it empty. One
			// that is not empty is not ours.
			_ = os.Remove(dir)
		case err != nil:
			return err
		case owner == f.owner:
			if err := removeThing(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// Add makes the folder of a thing and returns its name. It is no error if this
// owner has it already; it is an exists fault if another one does.
func (f *Facts) Add(thing string) (string, error) {
	dir, err := f.path(thing)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := makeDir(disk.OS, dir, 0o755, false); err != nil {
		return "", err
	}
	owner, err := readOwner(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err = replaceFile(disk.OS, filepath.Join(dir, ownerFile), []byte(f.owner+"\n"), 0o644, false); err != nil {
			_ = os.Remove(dir) // ours, and empty; the error that counts is err
		}
	case err == nil && owner != f.owner:
		return "", fault.Errorf(fault.Exists, "", "", "%s belongs to runtime %s", dir, owner).
			Hint("take another name, or remove the folder if that runtime is gone for good")
	}
	if err != nil {
		return "", err
	}
	return dir, nil
}

// Set makes value the fact key of a thing that was added: one line, in which
// control characters become blanks.
func (f *Facts) Set(thing, key, value string) error {
	return f.SetLines(thing, key, []string{value})
}

// SetLines is Set for a fact with any number of lines. Tabs stay.
func (f *Facts) SetLines(thing, key string, lines []string) error {
	dir, err := f.path(thing)
	if err != nil {
		return err
	}
	if err := units.CheckName("fact", key); err != nil {
		return err
	}
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(strings.Map(printable, line))
		b.WriteByte('\n')
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return replaceFile(disk.OS, filepath.Join(dir, key), []byte(b.String()), 0o644, false)
}

// printable keeps a fact on its line.
func printable(c rune) rune {
	if c < ' ' && c != '\t' || c == 0x7f {
		return ' '
	}
	return c
}

// Remove removes a thing with all its facts and the sockets in its folder. It
// is no error if it is not there.
func (f *Facts) Remove(thing string) error {
	dir, err := f.path(thing)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return removeThing(dir)
}

// path is the folder of a thing. Names of things are those of units.CheckName,
// NQNs and numbers; this only keeps a bad one from leaving the folder.
func (f *Facts) path(thing string) (string, error) {
	if thing == "" || thing[0] == '.' || strings.ContainsRune(thing, 0) {
		return "", fault.Errorf(fault.Usage, "", "", "bad name %q", thing)
	}
	return filepath.Join(f.dir, fileName(thing)), nil
}

// readOwner tells who made the folder of a thing.
func readOwner(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, ownerFile))
	return strings.TrimSuffix(string(b), "\n"), err
}

// removeThing removes a thing's folder with the files in it, but no folders:
// nothing here makes any, so they are somebody else's. The owner goes last.
func removeThing(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == ownerFile {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.Type()&fs.ModeDir != 0 {
			return fault.Errorf(fault.Exists, "", "", "%s is a folder that leapio did not make", path)
		}
		if err := remove(disk.OS, path); err != nil {
			return err
		}
	}
	if err := remove(disk.OS, filepath.Join(dir, ownerFile)); err != nil {
		return err
	}
	return remove(disk.OS, dir)
}
