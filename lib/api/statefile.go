// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// State files: what a daemon must know again after a restart.

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
)

// maxState is the largest state file in bytes.
const maxState = 64 << 20

// StateFile is a file with a T in JSON and the version of T's layout:
// {"version":1,"state":{...}}. It has one writer, the daemon it belongs to. It
// may be used by several goroutines.
type StateFile[T any] struct {
	path    string
	version int
	migrate func(version int, old json.RawMessage) (T, error)
	disk    disk.Disk
	mu      sync.Mutex
	rooted  bool // its folder survives a power loss
}

// stateDoc is the content of a state file.
type stateDoc[T any] struct {
	Version int `json:"version"`
	State   T   `json:"state"`
}

// NewStateFile describes the state file at path. version is that of T, from 1
// up; it rises with every change that an older build could not read without
// loss, which includes new keys. migrate makes a T of the state of an older
// version; it may be nil for version 1.
func NewStateFile[T any](path string, version int, migrate func(version int, old json.RawMessage) (T, error)) *StateFile[T] {
	return &StateFile[T]{path: path, version: version, migrate: migrate, disk: disk.OS}
}

// On has the file be on d, before it is used. It returns the file.
func (s *StateFile[T]) On(d disk.Disk) *StateFile[T] {
	s.disk = d
	return s
}

// Load reads the state; without a file it is the zero T. A file of an older
// version is kept as PATH.vN, migrated and saved. A newer one is an unsupported
// fault; one that is damaged is a failure that names the file and the place.
// What a crash during Save left behind is removed.
func (s *StateFile[T]) Load() (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var zero T
	if err := remove(s.disk, tempName(s.path)); err != nil {
		return zero, err
	}
	// Who has put the file there may have been killed before it was safe, and what
	// is known now must be so after a power loss.
	if err := s.disk.SyncDir(filepath.Dir(s.path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return zero, err
	}
	return s.load(true)
}

// Check reports whether Load would succeed, as far as that can be known without
// changing anything.
func (s *StateFile[T]) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.load(false)
	return err
}

// load reads the state, and with keep puts one that was migrated into the file's
// place.
func (s *StateFile[T]) load(keep bool) (T, error) {
	var zero T
	b, err := readLimited(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return zero, nil
	}
	if err != nil {
		return zero, err
	}
	return s.parse(b, keep)
}

// readLimited reads a state file.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxState)
	}
	return b, err
}

// parse makes a T of a state file's content, of whatever version.
func (s *StateFile[T]) parse(b []byte, keep bool) (T, error) {
	var (
		zero T
		head stateDoc[json.RawMessage]
		doc  stateDoc[T]
	)
	if len(b) == 0 {
		return zero, s.damaged(errors.New("it is empty"))
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return zero, s.damaged(explain(err))
	}
	switch {
	case head.Version < 1 || head.State == nil || string(head.State) == "null":
		return zero, s.damaged(errors.New("it has no version or no state"))
	case head.Version > s.version:
		return zero, fault.Errorf(fault.Unsupported, "", "",
			"%s has version %d, and this build knows none above %d", s.path, head.Version, s.version).
			Hint("start the newer build that wrote it, or move the file away to begin with nothing")
	case head.Version < s.version:
		return s.upgrade(b, head, keep)
	}
	if err := decode(b, &doc); err != nil {
		return zero, s.damaged(err)
	}
	return doc.State, nil
}

// damaged is the fault of a state file that cannot be read.
func (s *StateFile[T]) damaged(err error) error {
	return fault.Errorf(fault.Failure, "", "", "%s is damaged: %w", s.path, err).
		Hint("put a good copy in its place, or move it away to begin with nothing")
}

// upgrade makes a T of old, which b holds, and with keep puts it in the file's
// place.
func (s *StateFile[T]) upgrade(b []byte, old stateDoc[json.RawMessage], keep bool) (T, error) {
	var zero T
	if s.migrate == nil {
		return zero, fault.Errorf(fault.Unsupported, "", "", "%s has version %d, which this build cannot read", s.path, old.Version)
	}
	state, err := s.migrate(old.Version, old.State)
	if err != nil {
		return zero, fmt.Errorf("%s: migrating from version %d to %d: %w", s.path, old.Version, s.version, err)
	}
	if !keep {
		return state, nil
	}
	if err := replaceFile(s.disk, s.path+".v"+strconv.Itoa(old.Version), b, 0o600, true); err != nil {
		return zero, err
	}
	return state, s.save(state)
}

// Save replaces the state. When it returned nil, the state survives a power
// loss; after an error the file has the old state or, if only the sync of its
// folder went wrong, the new one.
func (s *StateFile[T]) Save(state T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(state)
}

// save is Save with the lock held.
func (s *StateFile[T]) save(state T) error {
	b, err := json.MarshalIndent(stateDoc[T]{s.version, state}, "", "\t")
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	if b = append(b, '\n'); len(b) > maxState {
		return fmt.Errorf("%s would be larger than %d bytes", s.path, maxState)
	}
	if !s.rooted {
		if err := makeDir(s.disk, filepath.Dir(s.path), 0o700, true); err != nil {
			return err
		}
		s.rooted = true
	}
	if err := replaceFile(s.disk, s.path, b, 0o600, true); err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	return nil
}
