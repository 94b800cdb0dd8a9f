// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package commandtest plays the service manager of a daemon: it is told when the
// daemon serves, keeps open files for it, and gives them back when it starts the
// daemon again, as systemd does (sd_notify(3), sd_listen_fds(3)).
package commandtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager of one daemon.
type Manager struct {
	address string
	socket  *net.UnixConn
	raw     syscall.RawConn
	wg      sync.WaitGroup

	mu    sync.Mutex
	store []stored
	ready int // how often the daemon has said so
	err   error
}

// stored is a file that is kept.
type stored struct {
	name string
	fd   int
}

// NewManager makes a manager whose socket is in a folder with a short name.
func NewManager(dir string) (*Manager, error) {
	m := &Manager{address: filepath.Join(dir, "notify")}
	var err error
	if m.socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.address, Net: "unixgram"}); err != nil {
		return nil, err
	}
	if m.raw, err = m.socket.SyscallConn(); err != nil {
		m.socket.Close()
		return nil, err
	}
	m.wg.Go(m.listen)
	return m, nil
}

// Close closes everything that is kept. The daemon has ended.
func (m *Manager) Close() error {
	err := m.socket.Close()
	m.wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.store {
		unix.Close(s.fd)
	}
	m.store = nil
	return errors.Join(err, m.err)
}

// Stored returns the names of what is kept, in order, after all that the daemon
// has said so far.
func (m *Manager) Stored() []string {
	m.drain()
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, s := range m.store {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

// File returns another descriptor of what is kept under a name.
func (m *Manager) File(name string) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.store {
		if s.name == name {
			fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
			return os.NewFile(uintptr(fd), name), err
		}
	}
	return nil, fmt.Errorf("nothing is kept as %s", name)
}

// listen takes what the daemon says.
func (m *Manager) listen() {
	for {
		err := m.raw.Read(func(uintptr) bool { return !m.drain() })
		if err != nil {
			return
		}
	}
}

// drain takes everything the daemon has said; it is true if it did so without an
// error. What a process has said before it ended is there when its end is seen.
func (m *Manager) drain() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(253*4))
	ok := true
	err := m.raw.Control(func(fd uintptr) {
		for {
			n, oobn, _, _, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				ok = err == unix.EAGAIN
				return
			}
			if err := m.told(string(b[:n]), oob[:oobn]); err != nil {
				m.err = errors.Join(m.err, err)
			}
		}
	})
	return ok && err == nil
}

// told is a message of the daemon's. The caller holds mu.
func (m *Manager) told(words string, oob []byte) error {
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := 0; err == nil && i < len(messages); i++ {
		var some []int
		some, err = unix.ParseUnixRights(&messages[i])
		fds = append(fds, some...)
	}
	if err != nil {
		return err
	}
	said := make(map[string]string)
	for line := range strings.Lines(words) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		said[key] = value
	}
	name := said["FDNAME"]
	switch {
	case said["FDSTORE"] == "1":
		if name == "" || len(name) > 255 || strings.Contains(name, ":") || said["FDPOLL"] != "0" || len(fds) == 0 {
			return fmt.Errorf("%d files to keep, and the words %q", len(fds), words)
		}
		for _, fd := range fds {
			m.keep(name, fd)
		}
		return nil
	case said["FDSTOREREMOVE"] == "1":
		m.store = slices.DeleteFunc(m.store, func(s stored) bool {
			if s.name == name {
				unix.Close(s.fd)
			}
			return s.name == name
		})
	case said["READY"] == "1":
		m.ready++
	}
	if len(fds) > 0 {
		return fmt.Errorf("%d files with the words %q", len(fds), words)
	}
	return nil
}

// keep keeps a file, unless it is there already, under whatever name.
func (m *Manager) keep(name string, fd int) {
	for _, s := range m.store {
		if same(s.fd, fd) {
			unix.Close(fd)
			return
		}
	}
	m.store = append(m.store, stored{name, fd})
}

// same reports whether two descriptors are of one open file.
func same(a, b int) bool {
	const file = 0 // KCMP_FILE
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, file, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}

// Process is a daemon that runs.
type Process struct {
	Pid  int
	done chan struct{}
	err  error // after done
}

// Start starts the program in path, with what is kept, in an environment to which
// what a manager tells is added. What it says goes to log. It is killed when the
// test ends.
func (m *Manager) Start(path string, args, env []string, log *os.File) (*Process, error) {
	m.drain()
	m.mu.Lock()
	defer m.mu.Unlock()
	files := []uintptr{log.Fd(), log.Fd(), log.Fd()}
	var names []string
	for _, s := range m.store {
		files = append(files, uintptr(s.fd))
		names = append(names, s.name)
	}
	env = append(slices.Clone(env), "NOTIFY_SOCKET="+m.address)
	argv := append([]string{"sh", "-c", `exec "$@"`, "sh", path}, args...)
	if len(names) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		argv[2] = `LISTEN_PID=$$ exec "$@"`
	}
	p := &Process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the kernel watches the thread that started it
		pid, err := syscall.ForkExec("/bin/sh", argv, &syscall.ProcAttr{
			Env: env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
		})
		p.Pid = pid
		started <- err
		if err != nil {
			return
		}
		var status syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				break
			}
		}
		if status.Signaled() {
			p.err = fmt.Errorf("signal %v", status.Signal())
		} else if status.ExitStatus() != 0 {
			p.err = fmt.Errorf("exit status %d", status.ExitStatus())
		}
		close(p.done)
	}()
	return p, <-started
}

// AwaitReady waits until the daemon has said so once more than n times, or has
// ended, or for limit, and returns how often it has.
func (m *Manager) AwaitReady(n int, p *Process, limit time.Duration) (int, error) {
	deadline := time.After(limit)
	for {
		m.drain()
		m.mu.Lock()
		ready := m.ready
		m.mu.Unlock()
		if ready > n {
			return ready, nil
		}
		select {
		case <-p.done:
			return ready, fmt.Errorf("the daemon has ended: %w", p.err)
		case <-deadline:
			return ready, errors.New("the daemon is not ready")
		case <-time.After(time.Millisecond):
		}
	}
}

// Signal sends the process a signal.
func (p *Process) Signal(sig syscall.Signal) error { return syscall.Kill(p.Pid, sig) }

// Wait waits for the end of the process.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }
