// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

// broker is a leap-wpt that answers as its test says.
type broker struct {
	t      testing.TB
	path   string
	answer func(m qpair.Message) (qpair.Message, []int)
}

// newBroker listens and answers MsgHello with welcome, everything else with
// answer.
func newBroker(t testing.TB, welcome qpair.Message, answer func(qpair.Message) (qpair.Message, []int)) *broker {
	t.Helper()
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, path: filepath.Join(dir, "link.sock"), answer: answer}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: b.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			b.serve(qpair.NewLink(conn), welcome)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return b
}

func (b *broker) serve(l *qpair.Link, welcome qpair.Message) {
	defer l.Close()
	for {
		m, _, fds, err := l.Recv()
		if err != nil {
			return
		}
		qpair.CloseFDs(fds)
		if m.Kind == qpair.MsgHello {
			var fence []int
			if welcome.Status == 0 {
				var pipe [2]int
				if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
					b.t.Error(err)
					return
				}
				defer unix.Close(pipe[0])
				defer unix.Close(pipe[1])
				fence = pipe[1:]
			}
			welcome.Kind = qpair.MsgWelcome
			if l.Send(&welcome, nil, fence...) != nil {
				return
			}
			continue
		}
		if b.answer == nil {
			return // the link breaks
		}
		a, send := b.answer(m)
		a.ID = m.ID
		if l.Send(&a, nil, send...) != nil {
			return
		}
	}
}

func TestDial(t *testing.T) {
	var version *qpair.VersionError
	tests := []struct {
		name    string
		welcome qpair.Message
		check   func(error) bool
	}{
		{"granted", qpair.Message{Version: qpair.LinkVersion, Gen: 42}, func(err error) bool { return err == nil }},
		{"busy", qpair.Message{Version: qpair.LinkVersion, Status: int32(unix.EBUSY)}, func(err error) bool { return errors.Is(err, ErrBusy) }},
		{"other version", qpair.Message{Version: 9, Status: int32(unix.EPROTO)}, func(err error) bool { return errors.As(err, &version) && version.Got == 9 }},
		{"refused", qpair.Message{Version: qpair.LinkVersion, Status: int32(unix.EINVAL)}, func(err error) bool { return errors.Is(err, unix.EINVAL) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBroker(t, tt.welcome, nil)
			c, err := Dial(context.Background(), b.path, "soc", slog.Default())
			if !tt.check(err) {
				t.Fatal("dial:", err)
			}
			if err != nil {
				return
			}
			if c.Epoch() != 42 || c.Fence() < 0 {
				t.Errorf("epoch %d, fence %d", c.Epoch(), c.Fence())
			}
			c.Close()
		})
	}
	if _, err := Dial(context.Background(), "/nonexistent/link.sock", "soc", slog.Default()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no socket:", err)
	}
}

func TestKeep(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	b := newBroker(t, qpair.Message{Version: qpair.LinkVersion, Gen: 1}, func(m qpair.Message) (qpair.Message, []int) {
		a := qpair.Message{Kind: qpair.MsgKept}
		switch name := qpair.NameOf(&m.Name); {
		case m.Kind == qpair.MsgFetch && name == "there":
			return a, []int{null}
		case m.Kind == qpair.MsgFetch:
			a.Status = int32(unix.ENOENT)
		case name == "full":
			a.Status = int32(unix.ENOSPC)
		}
		return a, nil
	})
	c, err := Dial(context.Background(), b.path, "soc", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Keep("there", null); err != nil {
		t.Error(err)
	}
	if err := c.Keep("full", null); !errors.Is(err, unix.ENOSPC) {
		t.Error("keep without room:", err)
	}
	if _, err := c.Fetch("away"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("fetch of nothing:", err)
	}
	fd, err := c.Fetch("there")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// TestLinkBreaks: who waits for an answer is told, and no goroutine is left.
func TestLinkBreaks(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newBroker(t, qpair.Message{Version: qpair.LinkVersion, Gen: 1}, nil)
	c, err := Dial(context.Background(), b.path, "soc", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fetch("x"); !errors.Is(err, errLinkDown) {
		t.Error("request over a broken link:", err)
	}
	if err := NewPorts(nil, nil).Serve(context.Background(), c); err == nil {
		t.Error("serving a broken link ends without an error")
	}
	if err := c.Keep("x", 0); err == nil {
		t.Error("request after the end succeeds")
	}
	c.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestVector: an interrupt while there is no eventfd is kept and fires when
// there is one.
func TestVector(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	v.fire()
	if err := v.set(dup(t, fd)); err != nil {
		t.Error(err)
	}
	var b [8]byte
	if n, _ := unix.Read(fd, b[:]); n != 8 || b[0] != 1 {
		t.Error("the pending interrupt did not fire")
	}
	v.fire()
	v.fire()
	if n, _ := unix.Read(fd, b[:]); n != 8 || b[0] != 2 {
		t.Errorf("fired %d times, want 2", b[0])
	}
	if err := v.set(-1); err != nil {
		t.Error(err)
	}
	v.fire()
	if n, _ := unix.Read(fd, b[:]); n > 0 {
		t.Error("fired an eventfd that was taken away")
	}
	next, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.set(dup(t, next)); err != nil {
		t.Error(err)
	}
	if n, _ := unix.Read(next, b[:]); n != 8 || b[0] != 1 {
		t.Error("the interrupt in between did not fire")
	}
	if n, _ := unix.Read(fd, b[:]); n > 0 {
		t.Error("the eventfd before fired")
	}
	v.close()
	unix.Close(fd)
	unix.Close(next)
}

// dup returns another descriptor of a file.
func dup(t testing.TB, fd int) int {
	t.Helper()
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
