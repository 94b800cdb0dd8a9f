// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Files that are replaced as a whole, and their folders.

package api

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/leapio/leapio/lib/fault"
)

// makeDir makes a folder where it is missing, with exactly this mode whatever
// the umask, and those above it with 0755.
func makeDir(path string, mode fs.FileMode) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		return fault.Errorf(fault.Exists, "", "", "%s is there and is no folder", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := makeDir(parent, 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); errors.Is(err, os.ErrExist) {
		return nil // somebody was faster
	} else if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// tempName is where the next content of path is written. It is hidden, in the
// same folder, and always the same, so that what a crash left there is found.
func tempName(path string) string {
	dir, base := filepath.Split(path)
	return dir + "." + base + ".tmp"
}

// replaceFile gives path new content: readers see the old one or the new one.
// A durable replacement survives a power loss once it returned nil. After an
// error that is not about the folder's own sync, path is as it was.
func replaceFile(path string, data []byte, mode fs.FileMode, durable bool) error {
	temp := tempName(path)
	if err := remove(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = fill(f, data, mode, durable)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // the error that counts is err
		return err
	}
	if !durable {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

// fill writes the content of a new file.
func fill(f *os.File, data []byte, mode fs.FileMode, durable bool) error {
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if !durable {
		return nil
	}
	return f.Sync()
}

// syncDir makes the entries of a folder survive a power loss.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// remove is os.Remove to which a missing file is no error.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sizeOf returns the size of a file, 0 where there is none.
func sizeOf(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return int(info.Size())
}
