// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// linkPair returns both ends of a link; raw is the first one's connection.
func linkPair(t testing.TB) (a, b *Link, raw *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "link")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return NewLink(conns[0]), NewLink(conns[1]), conns[0]
}

func TestLink(t *testing.T) {
	a, b, _ := linkPair(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer CloseFDs(pipe[:])
	m := Message{Kind: MsgMap, Port: 3, Addr: 1 << 40, Size: 4096, Flags: RegionRead | RegionOwn}
	if err := SetName(&m.Name, "vm1"); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, MaxRelay)
	if err := a.Send(&m, data, pipe[1]); err != nil {
		t.Fatal(err)
	}
	got, gotData, fds, err := b.Recv()
	if err != nil || got != m || NameOf(&got.Name) != "vm1" || !bytes.Equal(gotData, data) || len(fds) != 1 {
		t.Fatalf("received %+v with %d bytes and %d fds: %v", got, len(gotData), len(fds), err)
	}
	if flags, _ := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("a received descriptor is inherited by children")
	}
	if _, err := unix.Write(fds[0], []byte("x")); err != nil {
		t.Error("the descriptor is not the pipe:", err)
	}
	CloseFDs(fds)
	if err := a.Send(&m, make([]byte, MaxRelay+1)); err == nil {
		t.Error("a message too long was sent")
	}
	a.Close()
	if _, _, _, err := b.Recv(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("end of the link: %v", err)
	}
}

func TestLinkRefuses(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	before := openFiles(t)
	tests := []struct {
		name string
		msg  []byte
		fds  []int
		want string
	}{
		{"short", make([]byte, MessageSize-1), nil, fmt.Sprint(MessageSize-1, " bytes")},
		{"long", make([]byte, MessageSize+MaxRelay+1), nil, "too long"},
		{"many fds", make([]byte, MessageSize), []int{null, null, null, null, null}, "5 fds"},
		{"very many fds", make([]byte, MessageSize), bytesOf(null, 200), "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, b, raw := linkPair(t)
			if _, _, err := raw.WriteMsgUnix(tt.msg, unix.UnixRights(tt.fds...), nil); err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := b.Recv(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

// bytesOf returns n times fd.
func bytesOf(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestNames(t *testing.T) {
	var b [64]byte
	for _, s := range []string{"", "vm1", strings.Repeat("x", len(b)-1)} {
		if err := SetName(&b, s); err != nil || NameOf(&b) != s {
			t.Errorf("%q: %v, read back %q", s, err, NameOf(&b))
		}
	}
	if err := SetName(&b, strings.Repeat("x", 64)); err == nil {
		t.Error("a name without room for its end is accepted")
	}
	for i := range b {
		b[i] = 'y'
	}
	if got := NameOf(&b); len(got) != 64 {
		t.Errorf("unterminated: %q", got)
	}
}
