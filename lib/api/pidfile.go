// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Pid files: one daemon of a name at a time, and a sign that it is ready.

package api

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
)

// PidFile is a locked pid file. It is empty until its daemon is ready.
type PidFile struct {
	f *os.File
}

// LockPidFile makes the pid file at path and locks it with flock(2). If another
// process has it, the error is an exists fault that names its pid.
func LockPidFile(path string) (*PidFile, error) {
	if err := makeDir(disk.OS, filepath.Dir(path), 0o755, false); err != nil {
		return nil, err
	}
	return tryPidFile(path)
}

// WaitPidFile is LockPidFile for one that waits until no other process has it.
func WaitPidFile(ctx context.Context, path string) (*PidFile, error) {
	if err := makeDir(disk.OS, filepath.Dir(path), 0o755, false); err != nil {
		return nil, err
	}
	tick := time.NewTicker(pidFileTick)
	defer tick.Stop()
	for {
		p, err := tryPidFile(path)
		if err == nil || fault.KindOf(err) != fault.Exists {
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// pidFileTick is how often WaitPidFile tries: a wait for the lock itself could
// not be given up.
const pidFileTick = 10 * time.Millisecond

// tryPidFile locks the pid file.
func tryPidFile(path string) (*PidFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return nil, err
		}
		current, err := lockPid(f)
		if err == nil && current {
			return &PidFile{f}, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lockPid locks f and empties it. It is false if the daemon before removed the
// file after f was opened: then another process may have made a new one.
func lockPid(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, running(f)
	}
	if err != nil {
		return false, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	if there, err := os.Lstat(f.Name()); err != nil || !os.SameFile(mine, there) {
		return false, nil
	}
	if err := errors.Join(f.Chmod(0o644), f.Truncate(0)); err != nil {
		return false, err
	}
	return true, nil
}

// running is the fault of a pid file that another process has locked.
func running(f *os.File) error {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0) // io.EOF, as it is short
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:n])))
	if err != nil {
		return fault.Errorf(fault.Exists, "", "", "another process is starting (%s is locked)", f.Name())
	}
	return fault.Errorf(fault.Exists, "", "", "already running as pid %d (%s is locked)", pid, f.Name())
}

// AdoptPidFile takes over the locked pid file of a process that replaced itself
// with this one by execve(2) and let this descriptor through. Its name is the
// path of the pid file.
func AdoptPidFile(f *os.File) *PidFile { return &PidFile{f} }

// File is the open file, which stays the PidFile's.
func (p *PidFile) File() *os.File { return p.f }

// Ready writes the pid of this process: it now serves.
func (p *PidFile) Ready() error {
	pid := strconv.Itoa(os.Getpid()) + "\n"
	_, err := p.f.WriteAt([]byte(pid), 0)
	return err
}

// Close removes the pid file and then unlocks it. It may be called twice.
func (p *PidFile) Close() error {
	if p.f == nil {
		return nil
	}
	err := os.Remove(p.f.Name())
	// A service manager may have another descriptor of it.
	if lerr := unix.Flock(int(p.f.Fd()), unix.LOCK_UN); err == nil {
		err = lerr
	}
	if cerr := p.f.Close(); err == nil {
		err = cerr
	}
	p.f = nil
	return err
}
