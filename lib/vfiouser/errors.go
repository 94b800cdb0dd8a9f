// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"fmt"
	"syscall"
)

// ProtocolError says that the peer broke the framing of the stream: what
// follows can no longer be told apart, and the connection is of no further
// use.
type ProtocolError struct {
	Reason string // what was wrong, with the values seen
}

func (e *ProtocolError) Error() string { return "vfio-user protocol violation: " + e.Reason }

// FormatError says that the payload of one message is not what its command
// asks for. The stream itself is intact: a server answers EINVAL and goes on.
type FormatError struct {
	What   string // the structure, in the words of the specification
	Reason string // what was wrong with it, with the values seen
}

func (e *FormatError) Error() string { return e.What + ": " + e.Reason }

// Unwrap lets errors.Is(err, syscall.EINVAL) hold: the errno to answer with.
func (e *FormatError) Unwrap() error { return syscall.EINVAL }

func formatErrorf(what, format string, args ...any) error {
	return &FormatError{What: what, Reason: fmt.Sprintf(format, args...)}
}

// shortError is the FormatError of a payload shorter than its structure.
func shortError(what string, got, want int) error {
	return formatErrorf(what, "payload of %d bytes, at least %d needed", got, want)
}

// ReplyError is an error reply as the sender of the command sees it.
type ReplyError struct {
	Command Command
	Errno   syscall.Errno // 0: the peer gave no reason
}

func (e *ReplyError) Error() string {
	if e.Errno == 0 {
		return fmt.Sprintf("%v: refused without a reason", e.Command)
	}
	return fmt.Sprintf("%v: %v", e.Command, e.Errno)
}

// Unwrap returns the errno, so that errors.Is(err, syscall.EEXIST) works.
func (e *ReplyError) Unwrap() error { return e.Errno }

func protocolErrorf(format string, args ...any) error {
	return &ProtocolError{Reason: fmt.Sprintf(format, args...)}
}
