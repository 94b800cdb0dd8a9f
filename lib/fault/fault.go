// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package fault is the one typed error of LeapIO: what was being done (Op), to
// what (Name), which class of fault it is (Kind), the cause (Err) and what to
// try next (Hints).
//
// A daemon makes a fault where it decides what went wrong, lib/api carries it
// over HTTP as JSON, and lib/cli prints it and turns its Kind into the exit
// code. Code in between adds context with fmt.Errorf and %w: the innermost
// classification survives unless an outer fault states another one.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit codes of every command. Scripts rely on them: they are only ever added
// to. 2 is left to the Go runtime, which exits with it after a panic.
const (
	ExitOK          = 0
	ExitFailure     = 1
	ExitPartial     = 3 // some of several failed
	ExitNotFound    = 4
	ExitExists      = 5 // exists already, or is in use
	ExitUnsupported = 6 // not supported here
	ExitPermission  = 7
	ExitTimeout     = 8
	ExitPeer        = 9 // the peer, or the protocol spoken with it
	ExitUsage       = 64
	ExitSkipped     = 77 // test tools: a requirement is missing
	ExitInterrupted = 130
)

// Kind is the class of a fault. The list is closed and append-only: its names
// are in the JSON of errors and its exit codes in scripts. The zero Kind means
// "not stated": KindOf then asks the cause.
type Kind uint8

// The kinds of fault, each with the exit code of the same name.
const (
	Failure     Kind = iota + 1 // anything without a kind of its own
	Partial                     // some of several things failed
	NotFound                    // no such thing
	Exists                      // exists already with other properties, or is busy
	Unsupported                 // this system, build or version cannot do it
	Permission                  // not allowed
	Timeout                     // not done in time
	Peer                        // the other side is away or broke the protocol
	Usage                       // asked wrongly: a bad word, value or combination
	Interrupted                 // ended by a signal or because the caller went away
)

// kinds has one row per Kind, in order.
var kinds = [...]struct {
	name string
	code int
}{
	Failure:     {"failure", ExitFailure},
	Partial:     {"partial", ExitPartial},
	NotFound:    {"not_found", ExitNotFound},
	Exists:      {"exists", ExitExists},
	Unsupported: {"unsupported", ExitUnsupported},
	Permission:  {"permission", ExitPermission},
	Timeout:     {"timeout", ExitTimeout},
	Peer:        {"peer", ExitPeer},
	Usage:       {"usage", ExitUsage},
	Interrupted: {"interrupted", ExitInterrupted},
}

// String is the name of the kind as JSON carries it, such as "not_found".
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kinds) {
		return kinds[Failure].name
	}
	return kinds[k].name
}

// ExitCode is the exit code of a command that ends with this kind of fault.
func (k Kind) ExitCode() int {
	if k == 0 || int(k) >= len(kinds) {
		return ExitFailure
	}
	return kinds[k].code
}

// parseKind reads a kind's name. A name this build does not know is a Failure:
// a newer daemon may have kinds that an older client has not.
func parseKind(s string) Kind {
	for k := Failure; int(k) < len(kinds); k++ {
		if kinds[k].name == s {
			return k
		}
	}
	return Failure
}

// Error is a fault with its context. Its text is "op name: cause".
type Error struct {
	Op    string   // what was being done: "volume create"; a command prints its own verb instead
	Name  string   // the thing it was done to; may be empty
	Kind  Kind     // zero: that of Err
	Err   error    // the cause: lower case, no full stop
	Hints []string // what the user can try next, one sentence each, lower case
}

// New makes a fault. A kind of zero takes the kind of err.
func New(kind Kind, op, name string, err error, hints ...string) *Error {
	return &Error{Op: op, Name: name, Kind: kind, Err: err, Hints: hints}
}

// Errorf makes a fault whose cause is fmt.Errorf(format, args...).
func Errorf(kind Kind, op, name, format string, args ...any) *Error {
	return &Error{Op: op, Name: name, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Hint adds hints and returns e.
func (e *Error) Hint(hints ...string) *Error {
	e.Hints = append(e.Hints, hints...)
	return e
}

// Error is "op name: cause"; parts that are empty are left out.
func (e *Error) Error() string {
	where := strings.TrimSpace(e.Op + " " + e.Name)
	if where == "" {
		return e.cause()
	}
	return where + ": " + e.cause()
}

// cause is the text of Err, or the kind's name where there is none.
func (e *Error) cause() string {
	if e.Err == nil {
		return strings.ReplaceAll(e.Kind.String(), "_", " ")
	}
	return e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Several sums up an action on total things of which errs failed: nil without
// errors, the error itself if there was one thing only, and else a fault whose
// kind is Partial if some succeeded, the kind all errors share, or Failure.
// Its Err is an errors.Join of errs.
func Several(total int, errs ...error) error {
	switch {
	case len(errs) == 0:
		return nil
	case total == 1 && len(errs) == 1:
		return errs[0]
	case len(errs) < total:
		return &Error{Kind: Partial, Err: errors.Join(errs...)}
	}
	kind := KindOf(errs[0])
	for _, err := range errs[1:] {
		if KindOf(err) != kind {
			kind = Failure
		}
	}
	return &Error{Kind: kind, Err: errors.Join(errs...)}
}

// From gives err as an *Error: err itself if it is one, else a fault around it
// with its kind and hints. From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	return &Error{Kind: KindOf(err), Err: err, Hints: Hints(err)}
}

// Hints collects the hints of all faults err wraps, outermost first, each once.
func Hints(err error) []string {
	var hints []string
	seen := make(map[string]bool)
	walk(err, func(e *Error) {
		for _, h := range e.Hints {
			if !seen[h] {
				seen[h] = true
				hints = append(hints, h)
			}
		}
	})
	return hints
}

// walk calls f for every *Error in the tree of err, outermost first.
func walk(err error, f func(*Error)) {
	if e, ok := err.(*Error); ok {
		f(e)
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		if next := u.Unwrap(); next != nil {
			walk(next, f)
		}
	case interface{ Unwrap() []error }:
		for _, next := range u.Unwrap() {
			walk(next, f)
		}
	}
}

// causes maps errors of the standard library and the kernel to kinds. The order
// matters: EAGAIN and context.DeadlineExceeded both call themselves timeouts.
var causes = []struct {
	kind Kind
	errs []error
}{
	{Interrupted, []error{context.Canceled, unix.EINTR}},
	{Timeout, []error{context.DeadlineExceeded, os.ErrDeadlineExceeded, unix.ETIMEDOUT, unix.ETIME}},
	{Exists, []error{os.ErrExist, unix.EBUSY, unix.ETXTBSY, unix.EADDRINUSE, unix.EAGAIN}},
	{NotFound, []error{os.ErrNotExist, unix.ENODEV, unix.ENXIO, unix.ESRCH}},
	{Permission, []error{os.ErrPermission, unix.EROFS}},
	{Unsupported, []error{errors.ErrUnsupported, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT}},
	{Peer, []error{
		unix.ECONNREFUSED, unix.ECONNRESET, unix.ECONNABORTED, unix.EPIPE, unix.ENOTCONN, unix.EPROTO,
		unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, io.ErrUnexpectedEOF,
	}},
}

// KindOf classifies err: the outermost fault that states a kind decides, else
// what is known about the errors of the standard library and the kernel, else
// it is a Failure. KindOf(nil) is 0.
func KindOf(err error) Kind {
	if err == nil {
		return 0
	}
	var stated Kind
	walk(err, func(e *Error) {
		if stated == 0 {
			stated = e.Kind
		}
	})
	if stated != 0 {
		return stated
	}
	for _, c := range causes {
		for _, target := range c.errs {
			if errors.Is(err, target) {
				return c.kind
			}
		}
	}
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() {
		return Timeout
	}
	return Failure
}
