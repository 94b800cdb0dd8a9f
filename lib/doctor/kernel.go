// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/uring"
)

// kernel says which kernel this is; what it can do is tried, not deduced.
func (d *Doctor) kernel(context.Context) []Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Finding{failure("kernel", err, "")}
	}
	return one("kernel", OK, fmt.Sprintf("%s %s %s", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])), "")
}

// uring makes an io_uring, as a poller does.
func (d *Doctor) uring(context.Context) []Finding {
	runtime.LockOSThread() // until this goroutine ends, and the thread with it
	ring, err := uring.New(uring.Config{Entries: 8})
	if err == nil {
		err = ring.Close()
	}
	return []Finding{uringFinding(err)}
}

// uringFinding is what a failed attempt means.
func uringFinding(err error) Finding {
	const check = "io_uring"
	switch {
	case err == nil:
		return Finding{check, OK, "available", ""}
	case !errors.Is(err, uring.ErrUnavailable):
		return failure(check, err, "")
	}
	fix := "files are served by threads, which is slower"
	if strings.Contains(err.Error(), "kernel.io_uring_disabled") {
		fix += "; `sysctl kernel.io_uring_disabled=0` allows it, or 1 and kernel.io_uring_group for a group"
	}
	return Finding{check, Warn, err.Error(), fix}
}

// memfd makes a sealed memfd, as leap-wpt does for each port.
func (d *Doctor) memfd(context.Context) []Finding {
	const fix = "ports need sealed memfds (memfd_create(2)); see which filter or security module forbids them"
	fd, err := unix.MemfdCreate("leapio-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return one("memfd", Fail, os.NewSyscallError("memfd_create", err).Error(), fix)
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return one("memfd", Fail, os.NewSyscallError("F_ADD_SEALS", err).Error(), fix)
	}
	return one("memfd", OK, "can be made and sealed", "")
}

// pidfd opens what leap-wpt watches runtimes by.
func (d *Doctor) pidfd(context.Context) []Finding {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return one("pidfd", Fail, os.NewSyscallError("pidfd_open", err).Error(), "leap-wpt cannot watch runtimes or end one that hangs; use Linux 5.3 or later")
	}
	unix.Close(fd)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return []Finding{failure("pidfd", err, "")}
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	peer, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return one("pidfd", OK, "pidfd_open, but no SO_PEERPIDFD, which is new in Linux 6.5", "")
	}
	unix.Close(peer)
	return one("pidfd", OK, "pidfd_open and SO_PEERPIDFD", "")
}

// epoll tries the call in which pollers sleep, on no descriptor, where it returns
// at once.
func (d *Doctor) epoll(context.Context) []Finding {
	if _, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, ^uintptr(0), 0, 1, 0, 0, 0); errno != unix.EBADF {
		return one("epoll", Fail, os.NewSyscallError("epoll_pwait2", errno).Error(), "pollers need it; use Linux 5.11 or later, and a filter that allows it")
	}
	return one("epoll", OK, "epoll_pwait2", "")
}

// shm looks at the file system for memory of machines that is in files.
func (d *Doctor) shm(context.Context) []Finding { return shmAt("/dev/shm") }

func shmAt(dir string) []Finding {
	const fix = "memory objects of QEMU that are files there do not work; those of `leap-wpt port qemu` do without"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return one("shm", Warn, fmt.Sprintf("%s: %v", dir, err), fix)
	}
	size, free := units.Size(st.Blocks*uint64(st.Bsize)), units.Size(st.Bavail*uint64(st.Bsize))
	found := fmt.Sprintf("%s has %s, %s free", dir, size.Human(), free.Human())
	if options := mountOptions(dir); options != "" {
		found += " (" + options + ")"
	}
	switch {
	case st.Type != unix.TMPFS_MAGIC:
		return one("shm", Warn, found+", and is no tmpfs", fix)
	case st.Flags&unix.ST_RDONLY != 0:
		return one("shm", Warn, found+", and is read-only", fix)
	}
	return one("shm", OK, found, "")
}

// mountOptions returns the options of the mount at dir, proc_pid_mountinfo(5), ""
// if there are none to be found.
func mountOptions(dir string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	options := ""
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[4] != dir {
			continue
		}
		options = fields[5] // the last one is on top
	}
	return options
}

// memlock looks at a limit that counts before Linux 5.12 only, for io_uring.
func (d *Doctor) memlock(context.Context) []Finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return []Finding{failure("memlock", err, "")}
	}
	found := "RLIMIT_MEMLOCK is " + limitSize(l.Cur)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Finding{failure("memlock", err, "")}
	}
	if release := unix.ByteSliceToString(u.Release[:]); countsMemlock(release) && l.Cur < 8<<20 {
		return one("memlock", Warn, found+", which limits io_uring before Linux 5.12", "LimitMEMLOCK=infinity in the unit of leap-soc, or ulimit -l")
	}
	return one("memlock", OK, found, "")
}

// countsMemlock reports whether io_uring of a release counts as locked memory.
func countsMemlock(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 {
		return false
	}
	return major < 5 || major == 5 && minor < 12
}

// limitSize is a resource limit of bytes for people.
func limitSize(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return units.Size(n).Human()
}

// fewFiles is less than the connections of hosts that a runtime allows, and some
// machines.
const fewFiles = 4096

// openFiles looks at what the daemons would get. What those that run have is among
// their limits.
func (d *Doctor) openFiles(context.Context) []Finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return []Finding{failure("open-files", err, "")}
	}
	found := fmt.Sprintf("RLIMIT_NOFILE is %d at most", l.Max) // Go takes what there is
	if l.Max < fewFiles {
		return one("open-files", Warn, found, fmt.Sprintf("LimitNOFILE=524288 in the units, or ulimit -Hn: many machines and hosts need more than %d", l.Max))
	}
	return one("open-files", OK, found, "")
}
