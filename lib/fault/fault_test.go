// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The contract's table: names and codes are what scripts rely on.
func TestKinds(t *testing.T) {
	want := map[string]int{
		"failure": 1, "partial": 3, "not_found": 4, "exists": 5, "unsupported": 6,
		"permission": 7, "timeout": 8, "peer": 9, "usage": 64, "interrupted": 130,
	}
	got := make(map[string]int)
	for k := Failure; int(k) < len(kinds); k++ {
		got[k.String()] = k.ExitCode()
		if p := parseKind(k.String()); p != k {
			t.Errorf("parseKind(%q) = %d, want %d", k, p, k)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, k := range []Kind{0, Interrupted + 1, 255} {
		if k.String() != "failure" || k.ExitCode() != 1 {
			t.Errorf("Kind(%d) = %s, %d", k, k, k.ExitCode())
		}
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("no space left")
	for _, tt := range []struct {
		err  *Error
		want string
	}{
		{New(Failure, "volume create", "d1", cause), "volume create d1: no space left"},
		{New(Failure, "run", "", cause), "run: no space left"},
		{New(Failure, "", "d1", cause), "d1: no space left"},
		{New(Failure, "", "", cause), "no space left"},
		{New(NotFound, "volume show", "d1", nil), "volume show d1: not found"},
		{Errorf(Usage, "map", "vm1", "bad value %q", "x"), `map vm1: bad value "x"`},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

type timeoutError struct{}

func (timeoutError) Error() string { return "slow" }
func (timeoutError) Timeout() bool { return true }

func TestKindOf(t *testing.T) {
	path := func(errno error) error { return &os.PathError{Op: "open", Path: "/x", Err: errno} }
	for _, tt := range []struct {
		err  error
		want Kind
	}{
		{nil, 0},
		{errors.New("x"), Failure},
		{path(unix.ENOENT), NotFound},
		{path(unix.EEXIST), Exists},
		{path(unix.EBUSY), Exists},
		{path(unix.EACCES), Permission},
		{path(unix.EPERM), Permission},
		{path(unix.ENOSPC), Failure},
		{path(unix.ENOSYS), Unsupported},
		{path(unix.EOPNOTSUPP), Unsupported},
		{unix.EAGAIN, Exists},
		{unix.ETIMEDOUT, Timeout},
		{timeoutError{}, Timeout},
		{&net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}, Peer},
		{&net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", unix.EADDRINUSE)}, Exists},
		{fmt.Errorf("reading: %w", io.ErrUnexpectedEOF), Peer},
		{context.DeadlineExceeded, Timeout},
		{os.ErrDeadlineExceeded, Timeout},
		{context.Canceled, Interrupted},
		{fmt.Errorf("a: %w", New(Peer, "", "", unix.ENOENT)), Peer},
		// An outer fault that states no kind has that of its cause,
		// one that states a kind has its own.
		{New(0, "open", "x", New(Exists, "", "", nil)), Exists},
		{New(0, "open", "x", unix.EACCES), Permission},
		{New(Usage, "open", "x", New(Exists, "", "", nil)), Usage},
		{errors.Join(errors.New("x"), New(Timeout, "", "", nil)), Timeout},
	} {
		if got := KindOf(tt.err); got != tt.want {
			t.Errorf("KindOf(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestSeveral(t *testing.T) {
	a, b := New(NotFound, "", "a", nil), New(NotFound, "", "b", nil)
	c := New(Exists, "", "c", nil)
	for _, tt := range []struct {
		total int
		errs  []error
		want  Kind
	}{
		{3, nil, 0},
		{1, []error{a}, NotFound},
		{2, []error{a}, Partial},
		{2, []error{a, b}, NotFound},
		{2, []error{a, c}, Failure},
	} {
		err := Several(tt.total, tt.errs...)
		if got := KindOf(err); got != tt.want {
			t.Errorf("Several(%d, %v) is %v, want %v", tt.total, tt.errs, got, tt.want)
		}
		for _, e := range tt.errs {
			if !errors.Is(err, e) {
				t.Errorf("Several(%d, %v) does not wrap %v", tt.total, tt.errs, e)
			}
		}
	}
	if err := Several(1, a); err != error(a) {
		t.Errorf("one of one: got %v, want the error itself", err)
	}
}

func TestHints(t *testing.T) {
	inner := New(NotFound, "", "", errors.New("gone"), "look again", "give up")
	outer := New(0, "x", "", fmt.Errorf("y: %w", errors.Join(inner, inner)), "first").Hint("give up")
	want := []string{"first", "give up", "look again"}
	if d := cmp.Diff(want, Hints(outer)); d != "" {
		t.Error(d)
	}
}

func TestEncode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{
			New(Exists, "volume create", "d1", errors.New("in use"), "unmap it first"),
			`{"error":{"op":"volume create","name":"d1","kind":"exists","code":5,"message":"in use","hints":["unmap it first"]}}`,
		},
		{
			errors.New("boom"),
			`{"error":{"op":"","name":"","kind":"failure","code":1,"message":"boom","hints":[]}}`,
		},
		{
			fmt.Errorf("asking: %w", New(Timeout, "wait", "vm1", errors.New("30s"), "wait more")),
			`{"error":{"op":"","name":"","kind":"timeout","code":8,"message":"asking: wait vm1: 30s","hints":["wait more"]}}`,
		},
	} {
		got := Encode(tt.err)
		if string(got) != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
		back, err := Decode(got)
		if err != nil {
			t.Fatal(err)
		}
		if back.Error() != tt.err.Error() || KindOf(back) != KindOf(tt.err) {
			t.Errorf("came back as %v (%v), want %v (%v)", back, KindOf(back), tt.err, KindOf(tt.err))
		}
		if d := cmp.Diff(Hints(tt.err), Hints(back)); d != "" {
			t.Error(d)
		}
	}
}

func TestDecodeBad(t *testing.T) {
	for _, s := range []string{"", "null", "{}", "[]", `{"error":3}`, `{"error":null}`} {
		if e, err := Decode([]byte(s)); err == nil {
			t.Errorf("Decode(%q) = %v, want an error", s, e)
		}
	}
	e, err := Decode([]byte(`{"error":{"kind":"from_the_future","code":99,"message":"m"}}`))
	if err != nil || KindOf(e) != Failure || e.Error() != "m" {
		t.Errorf("got %v, %v, want a failure with the message", e, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(New(Exists, "volume create", "d1", errors.New("in use"), "a", "b")))
	f.Add([]byte(`{"error":{"kind":"peer"}}`))
	f.Add([]byte(`{"error":{"hints":["\u0000",""]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Decode(Encode(e))
		if err != nil {
			t.Fatalf("%s: encoded, then %v", b, err)
		}
		x, _ := json.Marshal(e)
		y, _ := json.Marshal(again)
		if string(x) != string(y) {
			t.Errorf("round trip changed %s into %s", x, y)
		}
	})
}
