// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

// machineSetup is the setup of the machine.
const machineSetup = "/etc/leapio/setup"

// setupFlag is the value of run --setup: the name of a file, or empty for none.
type setupFlag struct {
	file  string
	given bool
}

// Set takes the name of a file.
func (f *setupFlag) Set(s string) error {
	*f = setupFlag{file: s, given: true}
	return nil
}

func (f *setupFlag) String() string { return f.file }

// choose returns the file with the setup of a runtime, "" if it has none. That of
// the machine, if it exists, is for the runtime with the default name in the
// default folders: others are somebody's own.
func (f *setupFlag) choose(name string, paths api.Paths, machine string) string {
	if f.given {
		return f.file
	}
	if name != "" && name != api.DefaultRuntime || paths.Run != cli.DefaultRunDir || paths.State != cli.DefaultStateDir {
		return ""
	}
	if _, err := os.Stat(machine); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return machine
}

// starter makes the setup of a runtime that starts.
type starter struct {
	file    string
	runtime string
	paths   api.Paths
	log     *slog.Logger
}

// make makes the setup and logs what it could not make, a line each, and a
// summary. Lines for ports, and those behind them, wait for leap-wpt.
func (s *starter) make(ctx context.Context) error {
	log := s.log.With("file", s.file)
	// What the commands print is for people who type them.
	stdio := cli.IO{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}
	lines, err := openSetup(s.file, s.paths, s.runtime, stdio)
	if err != nil {
		log.Error("nothing of the setup is made", "err", strings.ReplaceAll(err.Error(), "\n", "; "), "hint", strings.Join(fault.Hints(err), "; "))
		return err
	}
	counts, err := lines.apply(ctx, s.broker, func(a applied) error {
		if a.Error != nil {
			log.Error("setup", "line", a.Line, "command", cli.QuoteAll(a.Argv), "err", a.reason(), "hint", strings.Join(fault.Hints(a.Error), "; "))
		}
		return nil
	})
	if err != nil {
		return err // the end of ctx
	}
	log.Info("setup", lineUnchanged, counts[lineUnchanged], lineMade, counts[lineMade], lineFailed, counts[lineFailed])
	return failed(counts)
}

// How often leap-wpt is looked for.
const (
	firstLook = 20 * time.Millisecond
	lastLook  = time.Second
)

// broker returns when leap-wpt answers.
func (s *starter) broker(ctx context.Context) error {
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		err := s.paths.Wpt().Get(ctx, api.Path("ports"), nil)
		if err == nil {
			return nil
		}
		if pause == firstLook {
			s.log.Info("the ports of the setup wait for leap-wpt", "file", s.file, "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
