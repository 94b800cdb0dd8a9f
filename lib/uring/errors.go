// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrUnavailable matches, through errors.Is, every error of New that
	// says that this system does not offer the io_uring this package needs.
	// A caller then takes another way to its files. The error itself is an
	// *UnavailableError.
	ErrUnavailable = errors.New("io_uring is not available")

	// ErrFull says that the ring, or the kernel behind it, has no room for
	// another operation now. The caller keeps the operation, calls Submit
	// and Reap, and tries again.
	ErrFull = errors.New("io_uring is full")

	// ErrWrongThread says that a thread other than the one that called New
	// used the ring.
	ErrWrongThread = errors.New("io_uring used by a thread that did not create it")

	// ErrClosed says that the ring was closed before.
	ErrClosed = errors.New("io_uring is closed")
)

// UnavailableError says what keeps io_uring from being used here.
type UnavailableError struct {
	Missing string // what is missing or in the way, for people
	Err     error  // the kernel's answer; nil where it gave none
}

// Error names what is missing and the kernel's answer.
func (e *UnavailableError) Error() string {
	s := ErrUnavailable.Error() + ": " + e.Missing
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is reports whether target is ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap returns the kernel's answer.
func (e *UnavailableError) Unwrap() error { return e.Err }

// InFlightError is Close's answer while operations have not completed: the
// kernel may still touch their buffers.
type InFlightError struct {
	Count int // operations queued or submitted and not reaped
}

// Error names the number of operations.
func (e *InFlightError) Error() string {
	return fmt.Sprintf("closing io_uring: %d operations in flight", e.Count)
}

// setupError explains an errno of io_uring_setup(2) that the kernel gave to
// the plainest set of flags.
func setupError(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return &UnavailableError{"the kernel has no io_uring, or a seccomp filter hides it", errno}
	case unix.EPERM, unix.EACCES:
		return &UnavailableError{forbiddenBy(), errno}
	case unix.EINVAL:
		return &UnavailableError{"Linux 5.6 or later", errno}
	case unix.ENOMEM:
		return fmt.Errorf("setting up io_uring: %w (on Linux before 5.12 RLIMIT_MEMLOCK limits rings)", errno)
	}
	return fmt.Errorf("setting up io_uring: %w", errno)
}

// forbiddenBy names what denies io_uring_setup(2): the sysctl, which knows 1
// (unprivileged processes outside kernel.io_uring_group) and 2 (everybody),
// or else a filter, which cannot be seen from inside.
func forbiddenBy() string {
	b, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	if v := strings.TrimSpace(string(b)); err == nil && v != "0" {
		return "disabled by sysctl kernel.io_uring_disabled=" + v
	}
	return "forbidden by a seccomp filter or a security module"
}

// enterError explains an errno of io_uring_enter(2) or io_uring_register(2).
func enterError(op string, errno unix.Errno) error {
	switch errno {
	case unix.EAGAIN, unix.EBUSY: // no memory for a request; completions overflown
		return fmt.Errorf("%s: %w: %w", op, ErrFull, errno)
	case unix.EEXIST: // setupSingleIssuer
		return fmt.Errorf("%s: %w: %w", op, ErrWrongThread, errno)
	case unix.EBADR:
		return fmt.Errorf("%s: the kernel ran out of memory and lost completions: %w", op, errno)
	}
	return fmt.Errorf("%s: %w", op, errno)
}
