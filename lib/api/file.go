// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Files that are replaced as a whole, and their folders.

package api

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
)

// makeDir makes a folder where it is missing, with exactly this mode whatever
// the umask, and those above it with 0755. What is durable survives a power loss,
// also if it was made by somebody who was killed before he could see to that.
func makeDir(d disk.Disk, path string, mode fs.FileMode, durable bool) error {
	parent := filepath.Dir(path)
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.IsDir():
		return fault.Errorf(fault.Exists, "", "", "%s is there and is no folder", path)
	case err == nil && durable:
		if err := d.SyncDir(parent); !errors.Is(err, os.ErrPermission) {
			return err
		}
		return nil // an admin has made it
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if parent != path {
		if err := makeDir(d, parent, 0o755, durable); err != nil {
			return err
		}
	}
	if err := d.Mkdir(path, mode); errors.Is(err, os.ErrExist) {
		return nil // somebody was faster
	} else if err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil || !durable {
		return err
	}
	return d.SyncDir(parent)
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
func replaceFile(d disk.Disk, path string, data []byte, mode fs.FileMode, durable bool) error {
	temp := tempName(path)
	if err := remove(d, temp); err != nil {
		return err
	}
	fd, err := d.Open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = fill(d, fd, data, mode, durable)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", temp, err)
	} else {
		err = d.Rename(temp, path)
	}
	if err != nil {
		_ = d.Remove(temp) // the error that counts is err
		return err
	}
	if !durable {
		return nil
	}
	return d.SyncDir(filepath.Dir(path))
}

// fill writes the content of a new file.
func fill(d disk.Disk, fd int, data []byte, mode fs.FileMode, durable bool) error {
	if err := unix.Fchmod(fd, uint32(mode.Perm())); err != nil {
		return err
	}
	if err := d.Write(fd, data); err != nil {
		return err
	}
	if !durable {
		return nil
	}
	return d.Sync(fd)
}

// remove removes a file; that there is none is no error.
func remove(d disk.Disk, path string) error {
	if err := d.Remove(path); !errors.Is(err, os.ErrNotExist) {
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
