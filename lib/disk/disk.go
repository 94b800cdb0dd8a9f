// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package disk is what this project asks of a file system where the answer must
// survive power loss: state files, and the files of volumes as they are made,
// resized and deleted. It is an interface so that tests can cut the power after
// each step (disktest).
package disk

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Disk changes files and folders. Errors name the path where there is one. What
// Write and Truncate have changed survives power loss after Sync; what Mkdir,
// Open, Rename and Remove have changed of a folder, after its SyncDir. Until then
// each change may be lost, or may not.
type Disk interface {
	// Mkdir makes a folder.
	Mkdir(path string, mode fs.FileMode) error
	// Open opens a file, with flags of open(2).
	Open(path string, flags int, mode fs.FileMode) (fd int, err error)
	// Write appends p to what was written before.
	Write(fd int, p []byte) error
	// Truncate makes a file have size bytes; new ones read zero.
	Truncate(fd int, size int64) error
	// Sync has the file survive power loss as it is, without its name.
	Sync(fd int) error
	// Rename gives a file another name in its folder, in the place of what has it.
	Rename(from, to string) error
	// Remove removes a file or an empty folder.
	Remove(path string) error
	// SyncDir has the names in a folder survive power loss as they are.
	SyncDir(path string) error
}

// OS is the operating system's.
var OS Disk = system{}

type system struct{}

func (system) Mkdir(path string, mode fs.FileMode) error { return os.Mkdir(path, mode) }
func (system) Rename(from, to string) error              { return os.Rename(from, to) }
func (system) Remove(path string) error                  { return os.Remove(path) }

func (system) Open(path string, flags int, mode fs.FileMode) (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, uint32(mode.Perm()))
		return err
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func (system) Write(fd int, p []byte) error {
	for len(p) > 0 {
		n := 0
		err := retry(func() (err error) {
			n, err = unix.Write(fd, p)
			return err
		})
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p = p[n:]
	}
	return nil
}

func (system) Truncate(fd int, size int64) error {
	return retry(func() error { return unix.Ftruncate(fd, size) })
}

func (system) Sync(fd int) error { return retry(func() error { return unix.Fsync(fd) }) }

func (system) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// retry goes on after signals.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
