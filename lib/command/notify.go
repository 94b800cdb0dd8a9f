// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// NotifyReady tells the service manager, if there is one, that a daemon serves.
func NotifyReady(log *slog.Logger) { notify(log, daemon.SdNotifyReady) }

// NotifyMainPID tells the service manager that another process has taken the
// daemon's place.
func NotifyMainPID(log *slog.Logger, pid int) { notify(log, fmt.Sprintf("MAINPID=%d", pid)) }

// notify says something to the service manager (sd_notify(3)). Programs that
// follow this one have the socket, too.
func notify(log *slog.Logger, words string) {
	if _, err := daemon.SdNotify(false, words); err != nil {
		log.Warn("the service manager cannot be told", "words", words, "err", err)
	}
}

// notifyLimit is how long a service manager may take to read what it is told.
// What it does not take is lost.
const notifyLimit = time.Second

// FileStore is the file descriptor store of the service manager
// (sd_pid_notify_with_fds(3)). It may be used by several goroutines.
type FileStore struct {
	conn *net.UnixConn
	raw  syscall.RawConn
}

// NewFileStore opens the store of the service manager; it is nil if there is no
// service manager.
func NewFileStore() (*FileStore, error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("the service manager cannot be told: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &FileStore{conn, raw}, nil
}

// Put has the service manager keep fd under a name, for a program that it starts
// again. It drops fd as it comes if it has it already. It does not look whether
// the other end is closed: that is for the program.
func (s *FileStore) Put(name string, fd int) error {
	return s.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fd))
}

// Remove has the service manager close what it keeps under a name.
func (s *FileStore) Remove(name string) error { return s.tell("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

func (s *FileStore) tell(words string, oob []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(notifyLimit)); err != nil {
		return err
	}
	var err error
	werr := s.raw.Write(func(fd uintptr) bool {
		for {
			if err = unix.Sendmsg(int(fd), []byte(words), oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return cmp.Or(werr, err)
}

// Close ends the connection. The store stays as it is.
func (s *FileStore) Close() error { return s.conn.Close() }

// StoredFiles returns what the service manager has kept, by name
// (sd_listen_fds_with_names(3)). The descriptors are the caller's. Where a name
// comes twice, the first one counts.
func StoredFiles() (map[string]int, error) {
	stored := make(map[string]int)
	for _, f := range activation.Files(true) {
		fd, err := take(f)
		if err != nil {
			return nil, fmt.Errorf("taking over %s: %w", f.Name(), err)
		}
		if _, ok := stored[f.Name()]; ok {
			unix.Close(fd)
			continue
		}
		stored[f.Name()] = fd
	}
	return stored, nil
}

// take returns another descriptor of f, and closes f. Flags of the open file stay
// as they are: File.Fd would have all processes that share it block.
func take(f *os.File) (fd int, err error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}
