// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// handoverEnv names the descriptor of the list of what is left, in the
// environment of a program that replaces this one in place.
const handoverEnv = "LEAP_HANDOVER"

// legacy is what a program before this one has left: all its open files. Whoever
// has it owns them.
type legacy struct {
	Began time.Time      `json:"began"` // since then guests have to wait; zero: unknown, after a crash
	Files map[fileID]int `json:"files"`
}

// setInherited has a program that is executed get the files, or not.
func (l *legacy) setInherited(inherited bool) error {
	flags := unix.FD_CLOEXEC
	if inherited {
		flags = 0
	}
	for _, fd := range l.Files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			return fmt.Errorf("file %d: %w", fd, err)
		}
	}
	return nil
}

// exec replaces this program by the one in path, with the same arguments. It
// returns only if that cannot be done.
func (l *legacy) exec(path string) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("listing what is handed over: %w", err)
	}
	fd, err := unix.MemfdCreate("leapio-handover", 0)
	if err != nil {
		return fmt.Errorf("listing what is handed over: %w", err)
	}
	list := os.NewFile(uintptr(fd), "handover")
	defer list.Close()
	if _, err := list.WriteAt(b, 0); err != nil {
		return fmt.Errorf("listing what is handed over: %w", err)
	}
	err = l.setInherited(true)
	if err == nil {
		err = unix.Exec(path, os.Args, append(os.Environ(), handoverEnv+"="+strconv.Itoa(fd)))
		err = &os.PathError{Op: "execute", Path: path, Err: err}
	}
	return errors.Join(err, l.setInherited(false))
}

// inherit returns what the program before this one has left: in this process, or
// with the service manager, which has named the files in stored. It is nil if
// there was none.
func inherit(stored map[string]int) (*legacy, error) {
	if text := os.Getenv(handoverEnv); text != "" {
		return handedOver(text)
	}
	if len(stored) == 0 {
		return nil, nil
	}
	l := &legacy{Files: make(map[fileID]int)}
	for name, fd := range stored {
		if id, ok := parseFileID(name); ok {
			l.Files[id] = fd
		} else {
			unix.Close(fd) // nothing of ours
		}
	}
	return l, nil
}

// handedOver reads the list in the descriptor that text names.
func handedOver(text string) (*legacy, error) {
	if err := os.Unsetenv(handoverEnv); err != nil { // it is not for our children
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 0 {
		return nil, fault.Errorf(fault.Usage, "", "", "%s=%s: not the number of a file", handoverEnv, text)
	}
	list := os.NewFile(uintptr(fd), "handover")
	defer list.Close()
	b, err := io.ReadAll(io.NewSectionReader(list, 0, 1<<30))
	if err != nil {
		return nil, fmt.Errorf("reading what was handed over: %w", err)
	}
	l := new(legacy)
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("reading what was handed over: %w", err)
	}
	return l, l.setInherited(false)
}
