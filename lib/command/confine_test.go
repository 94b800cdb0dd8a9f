// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// envConfinement has a confinement as JSON.
const envConfinement = "LEAPIO_TEST_CONFINEMENT"

// confinement is what a service manager does to itself before it becomes a
// daemon, as far as tests need it.
type confinement struct {
	Allowed    []uint32 `json:",omitempty"` // system calls; any other one is a fault, SIGSYS, that shows where it was made
	Refused    []uint32 `json:",omitempty"` // of those, which fail with EPERM
	Families   []uint32 `json:",omitempty"` // of sockets; others fail with EAFNOSUPPORT. None: all are allowed
	NoNewCode  bool     `json:",omitempty"` // no memory can be written and executed, or is executable later
	NoSetID    bool     `json:",omitempty"` // no file can be set-user-ID or set-group-ID
	NoMoreNS   bool     `json:",omitempty"` // no new namespaces
	NewPrivs   bool     `json:",omitempty"` // programs may give privileges
	Umask      int      // of files
	OpenFiles  uint64   `json:",omitempty"` // RLIMIT_NOFILE; 0: as it is
	LockMemory uint64   `json:",omitempty"` // RLIMIT_MEMLOCK; 0: as it is

	Sandbox *sandbox // nil: the user and the files of who runs the test
}

// sandbox is a user and what he sees of the machine. Only root can make one.
type sandbox struct {
	UID, GID     uint32
	Groups       []uint32
	Capabilities []int
	NoNetwork    bool    // only its own loopback device
	NoDevices    bool    // only the harmless ones
	Bound        []bound // in this order
	Mounts       []mount // in this order

	readOnly, writable, system []string // what Mounts is made of
}

// bound is something that is seen at a path.
type bound struct {
	Path   string
	Source string // a file or folder; "": an empty folder
	Mode   uint32 // of the empty folder
}

// mount is how a folder is mounted, with all below it.
type mount struct {
	Path     string
	ReadOnly bool
}

// becomeConfined is the program "confined": it puts itself into a confinement and
// becomes the program that its arguments are.
func becomeConfined() {
	// Everything below is for this thread, which is the one that goes on.
	runtime.LockOSThread()
	err := func() error {
		var c confinement
		if err := json.Unmarshal([]byte(os.Getenv(envConfinement)), &c); err != nil {
			return err
		}
		if err := os.Unsetenv(envConfinement); err != nil {
			return err
		}
		return c.exec(os.Args[1:])
	}()
	fmt.Fprintln(os.Stderr, "confined:", err)
	os.Exit(1)
}

// exec does not return unless something fails.
func (c *confinement) exec(argv []string) error {
	for resource, limit := range map[int]uint64{unix.RLIMIT_NOFILE: c.OpenFiles, unix.RLIMIT_MEMLOCK: c.LockMemory} {
		if limit == 0 {
			continue
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err != nil {
			return err
		}
		// Nobody here may be able to raise it; what a unit gives too little of shows.
		limit = min(limit, now.Max)
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("setting limit %d to %d: %w", resource, limit, err)
		}
	}
	if c.Sandbox != nil {
		if err := c.Sandbox.enter(); err != nil {
			return err
		}
	}
	unix.Umask(c.Umask)
	if !c.NewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	if err := installFilter(c.filter()); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", argv[0], unix.Exec(argv[0], append([]string{filepath.Base(argv[0])}, argv[1:]...), os.Environ()))
}

// enter makes the sandbox and goes into it.
func (s *sandbox) enter() error {
	flags := unix.CLONE_NEWNS
	if s.NoNetwork {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// Some may hide the sources of later ones.
	sources := make([]int, len(s.Bound))
	for i, p := range s.Bound {
		if p.Source == "" {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, p.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("opening %s: %w", p.Source, err)
		}
		sources[i] = fd
	}
	for i, p := range s.Bound {
		if err := p.make(sources[i]); err != nil {
			return fmt.Errorf("making %s: %w", p.Path, err)
		}
	}
	if s.NoDevices {
		if err := harmlessDevices(); err != nil {
			return fmt.Errorf("making devices: %w", err)
		}
	}
	for _, m := range s.Mounts {
		if err := m.set(); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Path, err)
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return becomeUser(s.UID, s.GID, s.Groups, s.Capabilities)
}

// set mounts it over itself, if it is there.
func (m *mount) set() error {
	if m.Path != "/" {
		if err := unix.Mount(m.Path, m.Path, "", unix.MS_BIND|unix.MS_REC, ""); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return err
		}
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if m.ReadOnly {
		attr = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	}
	return unix.MountSetattr(unix.AT_FDCWD, m.Path, unix.AT_RECURSIVE, &attr)
}

// make makes it of what its source is, or empty.
func (p *bound) make(source int) error {
	if p.Source == "" {
		if _, err := os.Stat(p.Path); errors.Is(err, os.ErrNotExist) {
			return nil // there is nothing to hide
		}
		return unix.Mount("tmpfs", p.Path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%o", p.Mode))
	}
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(p.Path, 0o755); err != nil {
			return err
		}
	}
	return unix.MoveMount(source, "", unix.AT_FDCWD, p.Path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// harmlessDevices replaces /dev.
func harmlessDevices() error {
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
	}
	return unix.Mkdir("/dev/shm", 0o1777)
}

// argument is a rule for an argument of a system call that is allowed: the call
// fails with errno if, of the bits of mask, all are set or, with any, one is.
type argument struct {
	call, index, mask uint32
	any               bool
	errno             unix.Errno
}

// filter is the program for the kernel.
func (c *confinement) filter() []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		and  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
		// Of struct seccomp_data; both machines are little-endian.
		number, architecture, arguments = 0, 4, 16
	)
	var f []unix.SockFilter
	emit := func(code uint16, k uint32, jt, jf int) {
		f = append(f, unix.SockFilter{Code: code, K: k, Jt: uint8(jt), Jf: uint8(jf)})
	}
	fails := func(errno unix.Errno) { emit(ret, unix.SECCOMP_RET_ERRNO|uint32(errno), 0, 0) }
	emit(load, architecture, 0, 0)
	emit(jeq, auditArch, 1, 0)
	emit(ret, unix.SECCOMP_RET_KILL_PROCESS, 0, 0)
	emit(load, number, 0, 0)
	if n := len(c.Families); n > 0 {
		emit(jeq, unix.SYS_SOCKET, 0, n+3)
		emit(load, arguments, 0, 0)
		for i, family := range c.Families {
			emit(jeq, family, n-i, 0)
		}
		fails(unix.EAFNOSUPPORT)
		emit(load, number, 0, 0)
	}
	for _, r := range c.rules() {
		emit(jeq, r.call, 0, 5)
		emit(load, arguments+8*r.index, 0, 0)
		emit(and, r.mask, 0, 0)
		if r.any {
			emit(jset, r.mask, 0, 1)
		} else {
			emit(jeq, r.mask, 0, 1)
		}
		fails(r.errno)
		emit(load, number, 0, 0)
	}
	for _, call := range c.Refused {
		emit(jeq, call, 0, 1)
		fails(unix.EPERM)
	}
	for _, call := range c.Allowed {
		emit(jeq, call, 0, 1)
		emit(ret, unix.SECCOMP_RET_ALLOW, 0, 0)
	}
	emit(ret, unix.SECCOMP_RET_TRAP, 0, 0)
	return f
}

// rules are those for arguments.
func (c *confinement) rules() (all []argument) {
	if c.NoNewCode {
		all = append(all,
			argument{call: unix.SYS_MMAP, index: 2, mask: unix.PROT_WRITE | unix.PROT_EXEC, errno: unix.EPERM},
			argument{call: unix.SYS_MPROTECT, index: 2, mask: unix.PROT_EXEC, errno: unix.EPERM})
	}
	if c.NoSetID {
		for call, mode := range map[uint32]uint32{unix.SYS_FCHMOD: 1, unix.SYS_FCHMODAT: 2, unix.SYS_MKDIRAT: 2, unix.SYS_OPENAT: 3} {
			all = append(all, argument{call: call, index: mode, mask: unix.S_ISUID | unix.S_ISGID, any: true, errno: unix.EPERM})
		}
	}
	if c.NoMoreNS {
		const namespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS
		all = append(all, argument{call: unix.SYS_CLONE, mask: namespaces, any: true, errno: unix.EPERM})
	}
	return all
}
