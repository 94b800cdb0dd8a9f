// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package pagemap is the command leap-pagemap: it tells what addresses are, of
// processes and of guests. What it knows comes from lib/pagemap, and from
// leap-wpt for guests.
package pagemap

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// Command is the tree of leap-pagemap.
func Command() *cli.Command {
	return &cli.Command{
		Name:     "leap-pagemap",
		Usage:    "tell what addresses are, of processes and of guests",
		Commands: []*cli.Command{va(), ranges(), gpa(), contig(), hugepages(), watch(), benchmark()},
	}
}

// parsePID reads the number of a process.
func parsePID(s string) (int, error) {
	pid, err := strconv.ParseUint(s, 10, 31)
	if err != nil || pid == 0 {
		return 0, fault.Errorf(fault.Usage, "", "", "bad process %q: not the number of one", s)
	}
	return int(pid), nil
}

// parseAddress reads an address. Digits alone would be taken for what they are
// not: the kernel's files print hexadecimal without a mark.
func parseAddress(s string) (uint64, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	if !ok {
		return 0, fault.Errorf(fault.Usage, "", "", "bad address %q: it does not begin with 0x", s)
	}
	addr, err := strconv.ParseUint(digits, 16, 64)
	if err != nil || strings.Contains(digits, "_") {
		return 0, fault.Errorf(fault.Usage, "", "", "bad address %q: no hexadecimal number of 64 bits", s)
	}
	return addr, nil
}

// open opens a process by the word for it.
func open(word string) (*pagemap.Process, error) {
	pid, err := parsePID(word)
	if err != nil {
		return nil, err
	}
	p, err := pagemap.Open(pid)
	return p, explain(err)
}

// explain gives errors of lib/pagemap their exit codes.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pagemap.ErrNoProcess), errors.Is(err, pagemap.ErrNoMemory), errors.Is(err, pagemap.ErrGone):
		return fault.New(fault.NotFound, "", "", err)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Permission, "", "", err, "root may look at every process, anybody at their own")
	}
	return err
}

// openFrames opens what the kernel knows of page frames, if this user may see
// it; else nil.
func openFrames() (*pagemap.Frames, error) {
	f, err := pagemap.OpenFrames()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// warnHidden says that physical addresses are missing from what was printed.
func warnHidden(call *cli.Call) error {
	_, err := fmt.Fprintln(call.Stderr, "leap-pagemap: the kernel hides physical addresses from this user; root, or CAP_SYS_ADMIN, sees them")
	return err
}

// address is an address in a table; nil: not known.
func address(a *uint64) any {
	if a == nil {
		return nil
	}
	return fmt.Sprintf("%#x", *a)
}

// size is a number of bytes in a table, 0 being none.
func size(n units.Size) any {
	if n == 0 {
		return nil
	}
	return n
}

// of gives a value the form of one that may be missing.
func of[T any](known bool, v T) *T {
	if !known {
		return nil
	}
	return &v
}
