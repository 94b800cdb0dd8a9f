// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volumetest

import (
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/volume"
)

// Env is what a kind needs of a runtime and of leap-wpt: it keeps descriptors
// until the test ends. It is a volume.Env.
type Env struct {
	Folder string       // where DataPath's files go: Folder/volumes
	Log    *slog.Logger // nil: nobody reads it
	On     disk.Disk    // nil: disk.OS

	mu   sync.Mutex
	kept map[string]int
}

var _ volume.Env = (*Env)(nil)

// NewEnv returns an Env on folder.
func NewEnv(t testing.TB, folder string) *Env {
	e := &Env{Folder: folder, kept: make(map[string]int)}
	t.Cleanup(func() {
		for name := range e.kept {
			_ = e.Drop(name)
		}
	})
	return e
}

// DataPath implements volume.Env.
func (e *Env) DataPath(name string) string { return filepath.Join(e.Folder, "volumes", name+".img") }

// Disk implements volume.Env.
func (e *Env) Disk() disk.Disk {
	if e.On == nil {
		return disk.OS
	}
	return e.On
}

// Logger implements volume.Env.
func (e *Env) Logger() *slog.Logger {
	if e.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return e.Log
}

// Keep implements volume.Env. A name in use is an error: who keeps something
// new has dropped the old.
func (e *Env) Keep(name string, fd int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.kept[name]; ok {
		return fmt.Errorf("keeping %s: %w", name, fs.ErrExist)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	e.kept[name] = dup
	return nil
}

// Fetch implements volume.Env.
func (e *Env) Fetch(name string) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fd, ok := e.kept[name]
	if !ok {
		return -1, fmt.Errorf("fetching %s: %w", name, fs.ErrNotExist)
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// Drop implements volume.Env.
func (e *Env) Drop(name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	fd, ok := e.kept[name]
	if !ok {
		return fmt.Errorf("dropping %s: %w", name, fs.ErrNotExist)
	}
	delete(e.kept, name)
	return unix.Close(fd)
}

// Kept returns how many descriptors are kept.
func (e *Env) Kept() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.kept)
}
