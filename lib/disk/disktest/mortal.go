// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package disktest

import (
	"errors"
	"io/fs"

	"github.com/leapio/leapio/lib/disk"
)

// Mortal is the disk of a process that is killed: after Left more steps each one
// fails and does nothing; with a negative Left it lives. What it has done stays,
// but for what the power takes.
type Mortal struct {
	disk.Disk
	Left int
}

// ErrKilled is the error of each step after the last.
var ErrKilled = errors.New("killed")

// step does f, if the process is alive.
func (m *Mortal) step(f func() error) error {
	if m.Left == 0 {
		return ErrKilled
	}
	m.Left--
	return f()
}

// Mkdir implements disk.Disk.
func (m *Mortal) Mkdir(path string, mode fs.FileMode) error {
	return m.step(func() error { return m.Disk.Mkdir(path, mode) })
}

// Open implements disk.Disk.
func (m *Mortal) Open(path string, flags int, mode fs.FileMode) (int, error) {
	fd := -1
	err := m.step(func() (err error) {
		fd, err = m.Disk.Open(path, flags, mode)
		return err
	})
	return fd, err
}

// Write implements disk.Disk.
func (m *Mortal) Write(fd int, p []byte) error {
	return m.step(func() error { return m.Disk.Write(fd, p) })
}

// Truncate implements disk.Disk.
func (m *Mortal) Truncate(fd int, size int64) error {
	return m.step(func() error { return m.Disk.Truncate(fd, size) })
}

// Sync implements disk.Disk.
func (m *Mortal) Sync(fd int) error { return m.step(func() error { return m.Disk.Sync(fd) }) }

// Rename implements disk.Disk.
func (m *Mortal) Rename(from, to string) error {
	return m.step(func() error { return m.Disk.Rename(from, to) })
}

// Remove implements disk.Disk.
func (m *Mortal) Remove(path string) error {
	return m.step(func() error { return m.Disk.Remove(path) })
}

// SyncDir implements disk.Disk.
func (m *Mortal) SyncDir(path string) error {
	return m.step(func() error { return m.Disk.SyncDir(path) })
}
