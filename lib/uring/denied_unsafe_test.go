// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denySetup makes io_uring_setup(2) fail with errno on this thread for ever,
// as container runtimes do.
func denySetup(errno unix.Errno) error {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEq = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret    = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // seccomp_data.nr
		{Code: jumpEq, Jf: 1, K: unix.SYS_IO_URING_SETUP},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

func TestDenied(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.EPERM, "forbidden by a seccomp filter"},
		{unix.ENOSYS, "has no io_uring"},
		{unix.EINVAL, "Linux 5.6 or later"},
	} {
		type answer struct{ filter, err error }
		answers := make(chan answer)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with its filter
			if err := denySetup(c.errno); err != nil {
				answers <- answer{filter: err}
				return
			}
			_, err := New(Config{Entries: 1})
			answers <- answer{err: err}
		}()
		a := <-answers
		if a.filter != nil {
			t.Skipf("not run: no seccomp filter here: %v", a.filter)
		}
		if !errors.Is(a.err, ErrUnavailable) || !errors.Is(a.err, c.errno) {
			t.Errorf("New denied with %v = %v, want ErrUnavailable and the errno", c.errno, a.err)
			continue
		}
		var u *UnavailableError
		if !errors.As(a.err, &u) || !strings.Contains(u.Missing, c.want) {
			// The sysctl, where it is set, is named first.
			if c.errno != unix.EPERM || !strings.Contains(u.Missing, "kernel.io_uring_disabled") {
				t.Errorf("New denied with %v says %q, want %q", c.errno, u.Missing, c.want)
			}
		}
	}
}
