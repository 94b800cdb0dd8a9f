// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volume

import (
	"context"
	"log/slog"
	"slices"

	"github.com/leapio/leapio/lib/disk"
)

// Kind is one kind of volume, as `volume create NAME KIND` names it.
type Kind struct {
	Name    string
	Summary string // one line, lower case
	Keys    []Key  // the key=value options it takes
	// Make creates the volume, or opens it again after a restart (Spec.Reopen).
	// If it fails, it leaves nothing behind that it made.
	Make func(context.Context, Env, *Spec) (Volume, error)
	// Delete gives up what the volume keeps outside of itself, after Close.
	// With data also the blocks, if they were made by Make. nil: nothing to do.
	Delete func(env Env, spec *Spec, data bool) error
}

// Key is one option of a kind.
type Key struct {
	Name    string
	Value   string // what it is: SIZE, PATH, 512|4096
	Default string // "" if there is none
	Usage   string // one line, lower case
	// Noted: it is what a medium that is not the volume's own was like, and
	// changes with that. A volume that exists is not held against it.
	Noted bool
}

// Noted reports whether the key of this name is Noted.
func (k Kind) Noted(name string) bool {
	return slices.ContainsFunc(k.Keys, func(key Key) bool { return key.Name == name && key.Noted })
}

// Spec is a volume as it is kept in the state file: plain data.
type Spec struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	UUID string `json:"uuid"` // fixed at creation
	// Options are the key=value pairs. Make fills in the defaults it chose, so
	// that the same volume comes back whatever the defaults are then.
	Options map[string]string `json:"options"`
	// Made: Make created the data (a file) and Delete may remove it.
	Made bool `json:"made"`
	// Reopen is set when the volume existed before.
	Reopen bool `json:"-"`
}

// Env is what kinds need of the runtime.
type Env interface {
	// DataPath is where a volume's own data file goes by default.
	DataPath(volume string) string
	// Disk is where that is.
	Disk() disk.Disk
	// Keep has leap-wpt hold fd under name beyond the death of this process.
	// The fd stays the caller's. Without a link to leap-wpt it does nothing.
	Keep(name string, fd int) error
	// Fetch returns what is kept under name; an error that is
	// fs.ErrNotExist if there is nothing.
	Fetch(name string) (fd int, err error)
	// Drop forgets what is kept under name.
	Drop(name string) error
	// Logger is for what is worth a line and is no error.
	Logger() *slog.Logger
}
