// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Unix sockets that daemons listen on.

package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
)

// Listen makes a Unix socket at path, for network "unix" or "unixpacket". It
// makes the folder where it is missing, replaces a socket that nobody listens
// on, and refuses one that somebody does, and any other file. The socket never
// has more permissions than mode, which no umask narrows. Closing the listener
// removes the socket.
//
// Two processes that replace the same dead socket at once are kept apart by
// their PidFile, not by Listen.
func Listen(path, network string, mode fs.FileMode) (*net.UnixListener, error) {
	if err := CheckSocketPath(path); err != nil {
		return nil, err
	}
	if err := makeDir(disk.OS, filepath.Dir(path), 0o755, false); err != nil {
		return nil, err
	}
	if err := removeStale(path, network); err != nil {
		return nil, err
	}
	l, err := bind(path, network, mode)
	if err != nil {
		return nil, err
	}
	// The umask may have taken away from mode what owners of a group need.
	if err := os.Chmod(path, mode.Perm()); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// ListenControl makes the socket of a control API at path. Besides root and the
// user of this process only the members of a group may connect, who may only read
// (see Server). It is a name or a number; "": nobody else.
func ListenControl(path, group string) (*net.UnixListener, error) {
	gid, err := LookupGroup(group)
	if err != nil {
		return nil, err
	}
	l, err := Listen(path, "unix", 0o600)
	if err != nil || gid == noGroup {
		return l, err
	}
	if err = os.Chown(path, -1, gid); err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// noGroup in the place of a group: none.
const noGroup = -1

// LookupGroup returns the number of a group, which is given by it or by a name; -1
// for "". It is a not-found fault if there is none of that name.
func LookupGroup(group string) (int, error) {
	if group == "" {
		return noGroup, nil
	}
	if gid, err := strconv.Atoi(group); err == nil && gid >= 0 {
		return gid, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return noGroup, fault.Errorf(fault.NotFound, "", "", "group %q: %w", group, err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return noGroup, fmt.Errorf("group %q: %w", group, err)
	}
	return gid, nil
}

// bind makes the socket with the permissions mode minus the umask.
func bind(path, network string, mode fs.FileMode) (*net.UnixListener, error) {
	config := net.ListenConfig{
		// bind(2) gives the socket's file the mode of the socket itself.
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			if cerr := raw.Control(func(fd uintptr) {
				err = os.NewSyscallError("fchmod", unix.Fchmod(int(fd), uint32(mode.Perm())))
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
	l, err := config.Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fault.Errorf(fault.Unsupported, "", "", "%s: network %q is no Unix socket", path, network)
	}
	return u, nil
}

// removeStale removes a socket at path that nobody listens on.
func removeStale(path, network string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fault.Errorf(fault.Exists, "", "", "%s is there and is no socket", path)
	}
	c, err := net.Dial(network, path)
	switch {
	case err == nil:
		c.Close()
		return live(path)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE):
		// Its backlog is full, or it is a socket of the other type.
		return live(path)
	case errors.Is(err, os.ErrNotExist):
		return nil
	case !errors.Is(err, unix.ECONNREFUSED):
		return err
	}
	return remove(disk.OS, path)
}

// live is the fault of a socket that is in use.
func live(path string) error {
	return fault.Errorf(fault.Exists, "", "", "%s: another process listens on it", path)
}
