// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/soc"
)

// brokerOf is a leap-wpt of another release, which answers hello as it likes, and
// then has something to say.
func brokerOf(t *testing.T, r *rig, welcome qpair.Message, then func(*qpair.Link)) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: r.paths.LinkSocket(), Net: "unixpacket"})
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
			serveHello(t, qpair.NewLink(conn), welcome, then)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// serveHello serves one link until the runtime ends it.
func serveHello(t *testing.T, link *qpair.Link, welcome qpair.Message, then func(*qpair.Link)) {
	defer link.Close()
	if m, _, _, err := link.Recv(); err != nil || m.Kind != qpair.MsgHello {
		t.Errorf("message %v, %v", m.Kind, err)
		return
	}
	welcome.Kind = qpair.MsgWelcome
	var fence []int
	if welcome.Status == 0 {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Error(err)
			return
		}
		defer qpair.CloseFDs(pipe[:])
		fence = pipe[1:]
	}
	if err := link.Send(&welcome, nil, fence...); err != nil {
		t.Error(err)
		return
	}
	if then != nil {
		then(link)
	}
	for {
		if _, err := nextMessage(link); err != nil {
			return
		}
	}
}

// nextMessage returns what the runtime has to say; that it keeps and fetches is
// answered.
func nextMessage(link *qpair.Link) (qpair.Message, error) {
	for {
		m, _, fds, err := link.Recv()
		qpair.CloseFDs(fds)
		if err != nil || m.Kind != qpair.MsgKeep && m.Kind != qpair.MsgFetch {
			return m, err
		}
		_ = link.Send(&qpair.Message{Kind: qpair.MsgKept, ID: m.ID, Status: int32(unix.ENOENT)}, nil)
	}
}

// TestSkewBroker: a runtime does not start beside a leap-wpt that speaks another
// version of the link, older or newer, and says what to do.
func TestSkewBroker(t *testing.T) {
	for _, version := range []uint32{qpair.LinkVersion - 1, qpair.LinkVersion + 1} {
		r := newFolders(t, 1)
		brokerOf(t, r, qpair.Message{Version: version, Status: int32(unix.EPROTO)}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // should it serve
		err := soc.Run(ctx, soc.Config{Paths: r.paths, Log: r.log})
		cancel()
		want := (&qpair.VersionError{What: "link protocol of leap-wpt", Got: version, Want: qpair.LinkVersion}).Error()
		if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), want) {
			t.Errorf("version %d: %v", version, err)
		}
		if hints := fault.Hints(err); len(hints) != 1 || !strings.Contains(hints[0], "same release") {
			t.Errorf("version %d: hints %q", version, hints)
		}
	}
}

// hello introduces a runtime that speaks some version of the link to leap-wpt, and
// returns the answer.
func (r *rig) hello(version uint32) (*qpair.Link, qpair.Message, []int) {
	r.t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: r.paths.LinkSocket(), Net: "unixpacket"})
	if err != nil {
		r.t.Fatal(err)
	}
	link := qpair.NewLink(conn)
	hello := qpair.Message{Kind: qpair.MsgHello, Version: version, ID: uint64(os.Getpid())}
	if err := qpair.SetName(&hello.Name, api.DefaultRuntime); err != nil {
		r.t.Fatal(err)
	}
	if err := link.Send(&hello, nil); err != nil {
		r.t.Fatal(err)
	}
	welcome, _, fds, err := link.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return link, welcome, fds
}

// TestSkewLink: runtimes that speak another version of the link, older or newer,
// are refused while a guest's I/O is outstanding; the right one then ends it.
func TestSkewLink(t *testing.T) {
	r := newProcesses(t, 1)
	r.volume("d1", "file", "size", "64M")
	load := newLoad(t, r.drive("vm1", api.DoorbellsTrap, small, "d1"), 2)
	time.Sleep(20 * time.Millisecond) // any moment
	r.killSoc()
	for _, version := range []uint32{qpair.LinkVersion - 1, qpair.LinkVersion + 1} {
		link, welcome, fds := r.hello(version)
		if unix.Errno(welcome.Status) != unix.EPROTO || welcome.Version != qpair.LinkVersion || len(fds) > 0 {
			t.Errorf("version %d: answer %+v with %d files", version, welcome, len(fds))
		}
		link.Close()
		r.waitState("vm1", api.PortFrozen)
	}
	r.startSoc()
	load.end()
}

// told is a message of leap-wpt's, with its files.
type told struct {
	qpair.Message
	files []int
}

// borrow attaches to leap-wpt as the runtime of the only port, and returns what it
// is told of it: that it is attached, and the regions of memory; and what gives it
// back.
func (r *rig) borrow() (all []told, giveBack func()) {
	r.t.Helper()
	var link *qpair.Link
	var fence []int
	r.eventually("the runtime before is gone", func() bool {
		var welcome qpair.Message
		if link, welcome, fence = r.hello(qpair.LinkVersion); welcome.Status == 0 {
			return true
		}
		link.Close()
		return false
	})
	giveBack = sync.OnceFunc(func() {
		link.Close()
		qpair.CloseFDs(fence)
		for _, m := range all {
			qpair.CloseFDs(m.files)
		}
	})
	// Before a guest leaves, or leap-wpt kills this process, which does not answer.
	r.t.Cleanup(func() { giveBack() })
	for {
		m, _, fds, err := link.Recv()
		if err != nil {
			r.t.Fatal(err)
		}
		if m.Kind != qpair.MsgAttach && m.Kind != qpair.MsgMap {
			qpair.CloseFDs(fds)
			continue
		}
		all = append(all, told{m, fds})
		const offsetMapGen = 104
		gen := make([]byte, 8)
		if _, err := unix.Pread(all[0].files[0], gen, offsetMapGen); err != nil {
			r.t.Fatal(err)
		}
		if m.Gen == binary.NativeEndian.Uint64(gen) {
			return all, giveBack
		}
	}
}

// lend has a runtime in folders of its own be told the same, by a leap-wpt of
// which the pages are.
func (r *rig) lend(all []told) (links <-chan struct{}) {
	r.t.Helper()
	c := make(chan struct{}, 100)
	brokerOf(r.t.(*testing.T), r, qpair.Message{Version: qpair.LinkVersion, Gen: 7}, func(l *qpair.Link) {
		c <- struct{}{}
		for _, m := range all {
			if err := l.Send(&m.Message, nil, m.files...); err != nil {
				r.t.Error(err)
			}
		}
	})
	r.startSoc()
	r.t.Cleanup(r.stopSoc)
	return c
}

// content reads a whole memory file.
func content(t *testing.T, fd int) []byte {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size)
	if n, err := unix.Pread(fd, b, 0); err != nil || n != len(b) {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// TestSkewPages: a runtime that meets pages of another layout, with a guest's I/O
// outstanding in them, says so, leaves them as they are and does not come back; its
// hosts and calls go on. The right one then takes over, and the I/O ends.
func TestSkewPages(t *testing.T) {
	const offsetVersion = 8 // in both pages
	for page, what := range map[int]string{0: "register page", 2: "state area"} {
		t.Run(what, func(t *testing.T) {
			r := newProcesses(t, 1)
			r.volume("d1", "file", "size", "64M")
			n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
			load := newLoad(t, n, 2)
			time.Sleep(20 * time.Millisecond) // any moment
			r.killSoc()
			all, giveBack := r.borrow()
			files := all[0].files
			version := func(v uint32) {
				if _, err := unix.Pwrite(files[page], binary.NativeEndian.AppendUint32(nil, v), offsetVersion); err != nil {
					t.Fatal(err)
				}
			}
			version(99)
			before := [][]byte{content(t, files[0]), content(t, files[2])}

			other := newFolders(t, 1)
			links := other.lend(all)
			want := what + " has layout version 99"
			other.eventually("it says: "+want, func() bool { return other.lines.has("guests cannot be served", want) })
			other.eventually("it has let go", func() bool {
				return call[api.RuntimeInfo](other, other.client(), "GET", "/v1/runtime", nil).Epoch == 0
			})
			if got := len(links); got != 1 {
				t.Errorf("it has attached %d times", got)
			}
			if !bytes.Equal(content(t, files[0]), before[0]) || !bytes.Equal(content(t, files[2]), before[1]) {
				t.Error("the pages have changed")
			}
			csts, err := n.CSTS()
			if err != nil || csts != nvme.CSTS(0).WithRDY(true) {
				t.Errorf("CSTS is %#x, %v; want RDY", csts, err)
			}
			version(map[int]uint32{0: qpair.RegistersVersion, 2: qpair.StateVersion}[page])
			giveBack()
			r.startSoc()
			load.end()
		})
	}
}

// TestSkewController: a runtime that meets a controller whose state is of another
// release, with a guest's I/O outstanding, says so and leaves it as it is. The right
// one then takes over, and the I/O ends.
func TestSkewController(t *testing.T) {
	r := newProcesses(t, 1)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	load := newLoad(t, n, 2)
	time.Sleep(20 * time.Millisecond) // any moment
	r.killSoc()
	all, giveBack := r.borrow()
	fd, err := unix.Dup(all[0].files[2])
	if err != nil {
		t.Fatal(err)
	}
	state, err := qpair.Open[qpair.State](fd)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	const offsetVersion = 16 + 4 // behind what is the transport's, and the magic
	version := state.Page.Controller[state.Page.Header.Selector&1].Payload[offsetVersion:][:1]
	if version[0] != controller.StateVersion {
		t.Fatalf("the version is %d", version[0])
	}
	version[0]++
	before := [][]byte{content(t, all[0].files[0]), content(t, all[0].files[2])[qpair.PageSize:]}

	other := newFolders(t, 1)
	other.lend(all)
	other.volume("d1", "null", "size", "64M")
	call[api.Subsystem](other, other.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "vm1", Volumes: []string{"d1"}})
	other.eventually("it says why", func() bool {
		return other.lines.has("left to a runtime of another release", "state of another version: 3, and this program understands 2")
	})
	other.stopSoc()
	if !bytes.Equal(content(t, all[0].files[0]), before[0]) || !bytes.Equal(content(t, all[0].files[2])[qpair.PageSize:], before[1]) {
		t.Error("the pages have changed")
	}
	if csts, err := n.CSTS(); err != nil || csts != nvme.CSTS(0).WithRDY(true) {
		t.Errorf("CSTS is %#x, %v; want RDY", csts, err)
	}
	version[0]--
	giveBack()
	r.startSoc()
	load.end()
}

// TestPortRefused: a port that a runtime cannot take keeps nobody waiting: that
// memory is unmapped, and that the port is wanted back, is answered at once.
func TestPortRefused(t *testing.T) {
	r := newFolders(t, 1)
	answers := make(chan qpair.Message, 2)
	brokerOf(t, r, qpair.Message{Version: qpair.LinkVersion, Gen: 1}, func(l *qpair.Link) {
		for _, m := range []qpair.Message{
			{Kind: qpair.MsgAttach, Port: 3}, // without files
			{Kind: qpair.MsgUnmap, Port: 3, ID: 5, Size: 4096},
			{Kind: qpair.MsgUnmap, Port: 4, ID: 6, Size: 4096}, // which it has never heard of
			{Kind: qpair.MsgDetach, Port: 3},
		} {
			if err := l.Send(&m, nil); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			m, err := nextMessage(l)
			if err != nil {
				t.Error(err)
			}
			answers <- m
		}
	})
	r.startSoc()
	t.Cleanup(r.stopSoc)
	for _, want := range []qpair.Message{{Kind: qpair.MsgUnmapped, Port: 3, ID: 5}, {Kind: qpair.MsgDetached, Port: 3}} {
		select {
		case m := <-answers:
			if m != want {
				t.Errorf("answer %+v, want %+v", m, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no answer %v", want.Kind)
		}
	}
}
