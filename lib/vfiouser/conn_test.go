// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair returns the two ends of a UNIX stream connection.
func socketPair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// message builds the bytes of a message.
func message(h Header, payload ...byte) []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(payload))
	h.Size = uint32(HeaderSize + len(payload))
	h.Put(b)
	return append(b, payload...)
}

// memFD returns a memfd that holds text.
func memFD(t testing.TB, text string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
	return fd
}

// content reads back what memFD wrote.
func content(t testing.TB, fd int) string {
	t.Helper()
	b := make([]byte, 64)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		t.Fatalf("reading fd %d: %v", fd, err)
	}
	return string(b[:n])
}

// openFDs counts the descriptors of this process.
func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// sendRaw writes b with fds at its first byte, in one sendmsg.
func sendRaw(t testing.TB, c *net.UnixConn, b []byte, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if n, _, err := c.WriteMsgUnix(b, oob, nil); err != nil || n != len(b) {
		t.Fatalf("sent %d of %d bytes: %v", n, len(b), err)
	}
}

func TestReadMessageCutAnywhere(t *testing.T) {
	a := memFD(t, "a")
	first := message(Header{ID: 1, Command: CmdDMAMap}, bytes.Repeat([]byte{7}, DMAMapSize)...)
	second := message(Header{ID: 2, Command: CmdDeviceReset})
	third := message(Header{ID: 3, Command: CmdRegionWrite, Flags: FlagNoAck}, 1, 2, 3)
	stream := slices.Concat(first, second, third)
	for cut := 1; cut < len(stream); cut++ {
		peer, own := socketPair(t)
		c := NewConn(own, Limits{})
		sendRaw(t, peer, stream[:cut], a)
		go func() {
			sendRaw(t, peer, stream[cut:])
			peer.Close()
		}()
		var got []string
		for {
			m, err := c.ReadMessage()
			if err != nil {
				if err != io.EOF {
					t.Fatalf("cut at %d: %v", cut, err)
				}
				break
			}
			s := fmt.Sprintf("%d:%v:%d", m.Header.ID, m.Header.Command, len(m.Payload))
			for i := range m.NumFDs() {
				fd := m.TakeFD(i)
				s += ":" + content(t, fd)
				unix.Close(fd)
			}
			got = append(got, s)
		}
		want := []string{"1:DMA_MAP:32", "2:DEVICE_RESET:0", "3:REGION_WRITE:3"}
		// A descriptor belongs to the message its sendmsg ended in, as far
		// as the receiver can tell.
		switch {
		case cut <= len(first):
			want[0] += ":a"
		case cut <= len(first)+len(second):
			want[1] += ":a"
		default:
			want[2] += ":a"
		}
		if !slices.Equal(got, want) {
			t.Errorf("cut at %d: got %v, want %v", cut, got, want)
		}
		c.Close()
	}
}

// Messages sent one by one may arrive in one read; each keeps its descriptors.
func TestFDsStayWithTheirMessage(t *testing.T) {
	before := openFDs(t)
	a, b := memFD(t, "a"), memFD(t, "b")
	peer, own := socketPair(t)
	c := NewConn(own, Limits{})
	sender := NewConn(peer, Limits{})
	want := []string{"", "a", "", "", "ab", "", "b", "a"}
	fds := map[byte]int{'a': a, 'b': b}
	for i, names := range want {
		var send []int
		for _, name := range []byte(names) {
			send = append(send, fds[name])
		}
		if err := sender.SendFDs(Header{ID: uint16(i), Command: CmdDMAMap}, send, make([]byte, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, names := range want {
		m, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for j := range m.NumFDs() {
			if i == 4 {
				break // left for the Conn to close
			}
			fd := m.TakeFD(j)
			got += content(t, fd)
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("message %d: descriptor flags %#x, %v; want close-on-exec", i, flags, err)
			}
			unix.Close(fd)
			if again := m.TakeFD(j); again != -1 {
				t.Errorf("taking a descriptor twice: got %d, want -1", again)
			}
		}
		if i == 4 {
			names = ""
		}
		if got != names || int(m.Header.ID) != i || len(m.Payload) != i {
			t.Errorf("message %d with %q: got %d bytes, fds %q", i, names, len(m.Payload), got)
		}
	}
	if m := (&Message{}); m.TakeFD(0) != -1 || m.TakeFD(-1) != -1 {
		t.Error("TakeFD of nothing: want -1")
	}
	c.Close()
	sender.Close()
	if after := openFDs(t); after != before+2 {
		t.Errorf("%d descriptors open, %d before and two memfds", after, before)
	}
}

func TestReadErrors(t *testing.T) {
	short := message(Header{ID: 1, Command: CmdVersion})
	binary.LittleEndian.PutUint32(short[4:], 15)
	long := message(Header{ID: 1, Command: CmdRegionWrite})
	binary.LittleEndian.PutUint32(long[4:], 1<<20+dataRoom+1)
	whole := message(Header{ID: 1, Command: CmdVersion}, 1, 2, 3)
	for _, test := range []struct {
		name string
		send []byte
		fds  int
		want string // of the error after the whole messages
	}{
		{"clean end", whole, 0, "EOF"},
		{"cut in header", slices.Concat(whole, whole[:7]), 0, "peer closed the connection 7 bytes into a message: unexpected EOF"},
		{"cut in payload", slices.Concat(whole, whole[:17]), 1, "peer closed the connection 17 bytes into a message: unexpected EOF"},
		{"size below header", short, 1, "less than its header"},
		{"size above limit", long, 1, "at most 1052688 taken"},
		{"unknown type", message(Header{Flags: 2}), 1, "unknown type 2"},
		{"too many fds", whole, 3, "more than 2 file descriptors at once"},
		{"too many fds in two sends", nil, 0, "with 3 file descriptors, at most 2 taken"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd := memFD(t, "x")
			before := openFDs(t)
			peer, own := socketPair(t)
			c := NewConn(own, Limits{MaxFDs: 2})
			if test.send == nil {
				sendRaw(t, peer, whole[:4], fd, fd)
				sendRaw(t, peer, whole[4:], fd)
			} else {
				sendRaw(t, peer, test.send, slices.Repeat([]int{fd}, test.fds)...)
			}
			peer.Close()
			var err error
			for err == nil {
				_, err = c.ReadMessage()
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q", err, test.want)
			}
			if strings.Contains(test.want, "unexpected EOF") != errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v: wrong kind of error", err)
			}
			if _, again := c.ReadMessage(); again != err {
				t.Errorf("second error %v, want the first, %v", again, err)
			}
			c.Close()
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, want %d", after, before)
			}
		})
	}
}

// A peer that dies with our replies unread resets the connection; that is an
// end like any other.
func TestPeerClosesWithUnreadData(t *testing.T) {
	peer, own := socketPair(t)
	c := NewConn(own, Limits{})
	if err := c.Send(Header{Command: CmdDMARead}, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	sendRaw(t, peer, message(Header{Command: CmdDeviceReset}))
	peer.Close()
	if _, err := c.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadMessage(); err != io.EOF {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestReadDeadlineLosesNothing(t *testing.T) {
	peer, own := socketPair(t)
	c := NewConn(own, Limits{})
	fd := memFD(t, "deadline")
	whole := message(Header{ID: 9, Command: CmdDMAMap}, make([]byte, DMAMapSize)...)
	sendRaw(t, peer, whole[:20], fd)
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.ReadMessage(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a timeout", err)
	}
	c.SetReadDeadline(time.Time{})
	sendRaw(t, peer, whole[20:])
	m, err := c.ReadMessage()
	if err != nil || m.Header.ID != 9 || m.NumFDs() != 1 {
		t.Fatalf("got %+v, %v", m, err)
	}
	if got := content(t, m.TakeFD(0)); got != "deadline" {
		t.Errorf("got descriptor of %q", got)
	}
}

// Large messages, small ones and read-ahead share the buffer.
func TestLargeMessages(t *testing.T) {
	peer, own := socketPair(t)
	c, sender := NewConn(own, Limits{}), NewConn(peer, Limits{})
	sizes := []int{1 << 20, 0, 5, smallBuffer, smallBuffer - HeaderSize, 1<<20 + MaxVersionSize, 3, 100 << 10, 1}
	errs := make(chan error, 1)
	go func() {
		for i, size := range sizes {
			if err := sender.Send(Header{ID: uint16(i), Command: CmdDMAWrite}, bytes.Repeat([]byte{byte(i)}, size)); err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}()
	for i, size := range sizes {
		m, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if int(m.Header.ID) != i || len(m.Payload) != size || bytes.Count(m.Payload, []byte{byte(i)}) != size {
			t.Errorf("message %d: got ID %d, %d bytes, want %d", i, m.Header.ID, len(m.Payload), size)
		}
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if len(c.buf) > 2*smallBuffer {
		t.Errorf("buffer of %d bytes kept after a small message", len(c.buf))
	}
	if err := sender.Send(Header{Command: CmdDMAWrite}, make([]byte, 1<<20+MaxVersionSize+1)); err == nil {
		t.Error("sending more than the limit: want an error")
	}
}

func TestConcurrentWriters(t *testing.T) {
	peer, own := socketPair(t)
	c, sender := NewConn(own, Limits{}), NewConn(peer, Limits{})
	fd := memFD(t, "shared")
	const writers, each = 4, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				var fds []int
				if i%3 == 0 {
					fds = []int{fd}
				}
				if err := sender.SendFDs(Header{ID: uint16(w)}, fds, bytes.Repeat([]byte{byte(w)}, 40*i), []byte{byte(i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var next [writers]int
	for range writers * each {
		m, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		w := m.Header.ID
		i := next[w]
		next[w]++
		want := append(bytes.Repeat([]byte{byte(w)}, 40*i), byte(i))
		if !bytes.Equal(m.Payload, want) || (m.NumFDs() == 1) != (i%3 == 0) {
			t.Fatalf("writer %d message %d: got %d bytes and %d fds", w, i, len(m.Payload), m.NumFDs())
		}
	}
	wg.Wait()
}

func TestReplies(t *testing.T) {
	peer, own := socketPair(t)
	c, client := NewConn(own, Limits{}), NewConn(peer, Limits{})
	command := Header{ID: 77, Command: CmdRegionRead, Size: 999, Errno: 5}
	quiet := command
	quiet.Flags = FlagNoAck
	wrapped := fmt.Errorf("mapping: %w", syscall.EEXIST)
	for _, err := range []error{
		c.Reply(quiet, []byte{1}), c.ReplyError(quiet, wrapped), // not sent
		c.Reply(Header{Flags: FlagReply}), // a reply is not answered
		c.Reply(command, []byte{1}, []byte{2}),
		c.ReplyError(command, wrapped),
		c.ReplyError(command, shortError("x", 1, 2)),
		c.ReplyError(command, errors.New("anything")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []struct {
		payload []byte
		err     error
	}{{[]byte{1, 2}, nil}, {nil, syscall.EEXIST}, {nil, syscall.EINVAL}, {nil, syscall.EINVAL}} {
		m, err := client.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.ID != 77 || m.Header.Command != CmdRegionRead || !m.Header.IsReply() {
			t.Errorf("reply %d: header %+v", i, m.Header)
		}
		if !errors.Is(m.Header.Err(), want.err) || !bytes.Equal(m.Payload, want.payload) {
			t.Errorf("reply %d: got % x and %v, want % x and %v", i, m.Payload, m.Header.Err(), want.payload, want.err)
		}
	}
}

func TestWriteTimeoutIsFinal(t *testing.T) {
	_, own := socketPair(t)
	c := NewConn(own, Limits{WriteTimeout: 20 * time.Millisecond})
	var err error
	for range 100 {
		if err = c.Send(Header{Command: CmdDMAWrite}, make([]byte, 64<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("peer that never reads: got %v, want a timeout", err)
	}
	if again := c.Send(Header{Command: CmdDeviceReset}); again != err {
		t.Errorf("writing after a cut message: got %v, want %v", again, err)
	}
}

func TestCloseEndsReader(t *testing.T) {
	_, own := socketPair(t)
	c := NewConn(own, Limits{})
	done := make(chan error)
	go func() {
		_, err := c.ReadMessage()
		done <- err
	}()
	time.Sleep(5 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestHotPathAllocations(t *testing.T) {
	peer, own := socketPair(t)
	c, client := NewConn(own, Limits{}), NewConn(peer, Limits{WriteTimeout: time.Second})
	tail := uint32(0)
	got := testing.AllocsPerRun(200, func() {
		var b [RegionAccessSize + 4]byte
		access := RegionAccess{Offset: 0x1000, Region: RegionBAR0, Count: 4}
		access.Put(b[:])
		tail++
		binary.LittleEndian.PutUint32(b[RegionAccessSize:], tail)
		if err := client.Send(Header{Command: CmdRegionWrite}, b[:]); err != nil {
			t.Fatal(err)
		}
		m, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		a, data, err := ParseRegionWrite(m.Payload)
		if err != nil || binary.LittleEndian.Uint32(data) != tail {
			t.Fatal(err)
		}
		var reply [RegionAccessSize]byte
		a.Put(reply[:])
		if err := c.Reply(m.Header, reply[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := client.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("a register write and its reply: %v allocations, want 0", got)
	}
}

func BenchmarkRegionWrite(b *testing.B) {
	peer, own := socketPair(b)
	c, client := NewConn(own, Limits{}), NewConn(peer, Limits{})
	access := RegionAccess{Offset: 0x1000, Region: RegionBAR0, Count: 4}
	payload := make([]byte, RegionAccessSize+4)
	access.Put(payload)
	b.ReportAllocs()
	for b.Loop() {
		if err := client.Send(Header{Command: CmdRegionWrite, Flags: FlagNoAck}, payload); err != nil {
			b.Fatal(err)
		}
		m, err := c.ReadMessage()
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := ParseRegionWrite(m.Payload); err != nil {
			b.Fatal(err)
		}
	}
}
