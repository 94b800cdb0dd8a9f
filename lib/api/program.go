// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Programs that are to take the place of a daemon.

package api

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/fault"
)

// Program is what a daemon's run --check says: what it is, and in which versions
// it knows what it would take over.
type Program struct {
	Daemon  string         `json:"daemon"` // leap-wpt or leap-soc
	Version string         `json:"version"`
	Layouts map[string]int `json:"layouts"` // version by name
}

// Upgrade asks a daemon to be replaced by another program.
type Upgrade struct {
	Binary string `json:"binary"` // absolute path
}

// Check tells whether the words of the request are well-formed.
func (u Upgrade) Check() error {
	if !filepath.IsAbs(u.Binary) {
		return fault.Errorf(fault.Usage, "", "", "bad path %q of a program: it is not absolute", u.Binary)
	}
	return nil
}

// programLimit is how long a program may take to say what it is.
const programLimit = 10 * time.Second

// AskProgram has the program at path check whether it can be this daemon, with
// the arguments of this process, and returns what it says. It is an unsupported
// fault if it cannot, is another daemon, or has other versions of the layouts.
func AskProgram(ctx context.Context, path, daemon string, layouts map[string]int) (p Program, err error) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = append(slices.Clone(os.Args), "--check", "--output=json")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return p, fault.Errorf(fault.Timeout, "", "", "it does not answer run --check within %v", programLimit)
	case errors.As(err, new(*exec.ExitError)):
		return p, fault.Errorf(fault.Unsupported, "", "", "run --check: %w: %s", err, strings.TrimSpace(stderr.String()))
	case errors.Is(err, os.ErrNotExist):
		return p, fault.New(fault.NotFound, "", "", err)
	case err != nil:
		return p, err
	}
	if err := json.Unmarshal(out, &p); err != nil || p.Daemon != daemon {
		return p, fault.Errorf(fault.Unsupported, "", "", "it is no %s with run --check", daemon)
	}
	for _, name := range slices.Sorted(maps.Keys(layouts)) {
		if got, want := p.Layouts[name], layouts[name]; got != want {
			return p, fault.Errorf(fault.Unsupported, "", "", "%s %s knows version %d of the layout %s, and %d is in use", daemon, p.Version, got, name, want)
		}
	}
	return p, nil
}
