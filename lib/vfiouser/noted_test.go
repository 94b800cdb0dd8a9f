// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newJournal makes a journal until the test ends.
func newJournal(t testing.TB) *Journal {
	t.Helper()
	j, fd, err := CreateJournal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fd)
		if err := j.Unmap(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// successor makes the connection that goes on after a process was killed, with
// another descriptor of its socket, as a service manager keeps one.
func successor(t testing.TB, socket *net.UnixConn, j *Journal) *Conn {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dup, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Check(); err != nil {
		t.Fatal(err)
	}
	c, err := NewNotedConn(dup.(*net.UnixConn), Limits{MaxData: 64 << 10, WriteTimeout: 50 * time.Millisecond}, j)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	return c
}

// Whoever serves a connection is killed again and again, at any step of a
// command and wherever the stream is cut. Every command is carried out, with its
// file descriptors, and answered once.
func TestNotedKilled(t *testing.T) {
	a, b := memFD(t, "a"), memFD(t, "b")
	messages := [][]byte{
		message(Header{ID: 1, Command: CmdDeviceReset}),
		message(Header{ID: 2, Command: CmdDMAMap}, make([]byte, DMAMapSize)...),
		message(Header{ID: 3, Command: CmdRegionWrite, Flags: FlagNoAck}, 1, 2, 3),
		message(Header{ID: 4, Command: CmdDMAMap}, make([]byte, DMAMapSize)...),
		message(Header{ID: 5, Command: CmdRegionWrite}, make([]byte, 3000)...), // more than a batch
		message(Header{ID: 6, Command: CmdDeviceReset}),
	}
	files := map[int]int{1: a, 3: b}
	const steps = 4 // read, carried out, answered, done
	for cut := range len(messages[3]) {
		for every := 1; every <= steps; every++ {
			before := openFDs(t)
			peer, own := socketPair(t)
			j := newJournal(t)
			for i, m := range messages {
				fds := []int{}
				if fd, ok := files[i]; ok {
					fds = append(fds, fd)
				}
				if i == 3 && cut > 0 {
					sendRaw(t, peer, m[:cut], fds...)
					m, fds = m[cut:], nil
				}
				sendRaw(t, peer, m, fds...)
			}
			client := NewConn(peer, Limits{})
			c := successor(t, own, j)
			step, carried, killed := 0, map[uint16]int{}, false
			kill := func() bool {
				if step++; step%every != 0 || step > 40 {
					return false
				}
				c.Close()
				c.ReadMessage() // for its descriptors
				c, killed = successor(t, own, j), true
				return true
			}
			for last := uint16(0); last < 6; {
				m, err := c.ReadMessage()
				if err != nil {
					t.Fatalf("cut at %d, killed every %d: %v", cut, every, err)
				}
				h := m.Header
				if h.ID != last+1 {
					t.Fatalf("cut at %d, killed every %d: message %d after %d was done", cut, every, h.ID, last)
				}
				if carried[h.ID] > 0 && !m.Again || m.Again && !killed {
					t.Errorf("message %d: again is %v, and it was carried out %d times", h.ID, m.Again, carried[h.ID])
				}
				c.Begin(m.End)
				for i, want := range map[uint16]string{2: "a", 4: "b"} {
					if h.ID != i {
						continue
					}
					fd := m.TakeFD(0)
					if got := content(t, fd); got != want || m.NumFDs() != 1 {
						t.Errorf("message %d: %d descriptors, of %q, want %q", i, m.NumFDs(), got, want)
					}
					unix.Close(fd)
				}
				if kill() {
					continue
				}
				carried[h.ID]++
				if kill() {
					continue
				}
				if err := c.Reply(h, []byte(fmt.Sprint(h.ID))); err != nil {
					t.Fatal(err)
				}
				if h.WantsReply() {
					last = h.ID // it must not come again
				}
				if kill() {
					continue
				}
				c.Done()
				last = h.ID
				kill()
			}
			c.Close()
			c.ReadMessage()
			for _, id := range []uint16{1, 2, 4, 5, 6} {
				m, err := client.ReadMessage()
				if err != nil || m.Header.ID != id || string(m.Payload) != fmt.Sprint(id) {
					t.Fatalf("cut at %d, killed every %d: answer %+v, %v, want that to %d", cut, every, m, err, id)
				}
			}
			client.SetReadDeadline(time.Now().Add(-time.Second))
			if m, err := client.ReadMessage(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("an answer too many: %+v, %v", m, err)
			}
			client.Close()
			own.Close()
			if after := openFDs(t); after != before+1 { // the journal
				t.Fatalf("cut at %d, killed every %d: %d descriptors open, want %d", cut, every, after, before+1)
			}
		}
	}
}

// A message of which a part was sent is sent to its end, and the command that it
// answers is done.
func TestNotedHalfSent(t *testing.T) {
	peer, own := socketPair(t)
	if err := own.SetWriteBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	j := newJournal(t)
	sendRaw(t, peer, message(Header{ID: 1, Command: CmdRegionRead}))
	sendRaw(t, peer, message(Header{ID: 2, Command: CmdRegionRead}))
	c := successor(t, own, j)
	m, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	c.Begin(m.End)
	data := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	if err := c.Reply(m.Header, data); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a reply that does not fit: %v", err)
	}
	if sent := j.out.total(); sent == 0 || sent >= j.outEnd {
		t.Fatalf("%d of %d bytes sent", sent, j.outEnd)
	}
	c.Close()
	c.ReadMessage()
	client := NewConn(peer, Limits{})
	got := make(chan error, 1)
	go func() {
		m, err := client.ReadMessage()
		if err == nil && !bytes.Equal(m.Payload, data) {
			err = errors.New("not what was sent")
		}
		got <- err
	}()
	f, err := own.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c = successor(t, own, j)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if m, err = c.ReadMessage(); err != nil || m.Header.ID != 2 {
		t.Errorf("after the rest of the answer to 1: %+v, %v", m, err)
	}
	c.Close()
	c.ReadMessage()
}

// A command of ours is owed an answer only if some of it was sent. A reply that
// was taken does not come again, unless the one who took it was killed over it.
func TestNotedPieces(t *testing.T) {
	peer, own := socketPair(t)
	j := newJournal(t)
	c := successor(t, own, j)
	j.Pieces[0].ID, j.Pieces[0].Command = 7, CmdDMARead
	if err := c.SendPiece(Header{ID: 7, Command: CmdDMARead}, &j.Pieces[0]); err != nil {
		t.Fatal(err)
	}
	c.wmu.Lock()
	c.noted.begin(&Header{ID: 8, Command: CmdDMARead, Size: HeaderSize}, &j.Pieces[1])
	c.wmu.Unlock()
	if !j.Pieces[0].Owed() || !j.Pieces[1].Owed() {
		t.Fatal("pieces under way are not known")
	}
	next := func() {
		t.Helper()
		c.Close()
		c = successor(t, own, j)
	}
	next()
	if !j.Pieces[0].Owed() || j.Pieces[1].Owed() {
		t.Errorf("owed: %v, %v; the first was sent", j.Pieces[0].Owed(), j.Pieces[1].Owed())
	}
	sendRaw(t, peer, message(Header{ID: 7, Command: CmdDMARead, Flags: FlagReply}))
	sendRaw(t, peer, message(Header{ID: 1, Command: CmdDeviceReset}))
	for _, again := range []bool{true, true, false} {
		m, err := c.ReadMessage()
		if err != nil || m.Header.ID != 7 {
			t.Fatalf("got %+v, %v", m, err)
		}
		if again {
			next()
		} else if m, err = c.ReadMessage(); err != nil || m.Header.ID != 1 {
			t.Fatalf("got %+v, %v", m, err)
		}
	}
	next()
	if m, err := c.ReadMessage(); err != nil || m.Header.ID != 1 {
		t.Errorf("got %+v, %v", m, err)
	}
	c.Close()
}

// What is done with is taken out in several calls. Who is killed between them
// leaves the front of the stream within a message.
func TestNotedHalfTaken(t *testing.T) {
	peer, own := socketPair(t)
	j := newJournal(t)
	c := successor(t, own, j)
	for id := range uint16(2) {
		sendRaw(t, peer, message(Header{ID: id, Command: CmdRegionWrite, Flags: FlagNoAck}, make([]byte, 10000)...))
	}
	m, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	c.Begin(m.End)
	c.Done()
	j.taking = m.End
	c.noted.take = consumeMost
	if err := c.noted.raw.Control(c.noted.consumer); err != nil || j.in.total() != consumeMost {
		t.Fatalf("%d bytes taken, %v", j.in.total(), err)
	}
	c.Close()
	c = successor(t, own, j)
	defer c.Close()
	if m, err := c.ReadMessage(); err != nil || m.Header.ID != 1 || len(m.Payload) != 10000 {
		t.Errorf("got %+v, %v", m, err)
	}
}

// While a command is carried out, what comes after it stays in the socket, as long
// as the peer has room. When it is done the peer can go on, though nothing has come
// that the reader would wake up for.
func TestNotedDoneMakesRoom(t *testing.T) {
	peer, own := socketPair(t)
	c := successor(t, own, newJournal(t))
	defer c.Close()
	sendRaw(t, peer, message(Header{ID: 1, Command: CmdDeviceReset}))
	m, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	c.Begin(m.End)
	read := make(chan int)
	go func() { // ends with the connection
		for n := 0; ; n++ {
			if _, err := c.ReadMessage(); err != nil {
				read <- n
				return
			}
		}
	}()
	reply := message(Header{ID: 2, Command: CmdDMARead, Flags: FlagReply}, make([]byte, 16<<10)...)
	sent, rest := 0, []byte(nil)
	for {
		if err := peer.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := peer.Write(reply)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			rest = reply[n:]
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent++; sent > 1000 {
			t.Fatal("a socket has room for 16 MB")
		}
	}
	c.Done()
	if err := peer.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Write(rest); err != nil {
		t.Fatalf("after %d replies: %v", sent, err)
	}
	peer.CloseWrite()
	if n := <-read; n != sent+1 {
		t.Errorf("%d replies have come, %d were sent", n, sent+1)
	}
}

// What is done with does not stay in the socket for long, and file descriptors
// not at all.
func TestNotedConsumes(t *testing.T) {
	peer, own := socketPair(t)
	j := newJournal(t)
	c := successor(t, own, j)
	defer c.Close()
	fd := memFD(t, "a")
	m := message(Header{ID: 1, Command: CmdRegionWrite, Flags: FlagNoAck}, make([]byte, RegionAccessSize+4)...)
	for i := range 10000 {
		if i%100 == 0 {
			sendRaw(t, peer, m, fd)
		} else {
			sendRaw(t, peer, m)
		}
		got, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		c.Begin(got.End)
		c.Done()
		left := c.base - j.in.total()
		if left > consumeBatch+uint64(len(m)) {
			t.Fatalf("message %d: %d bytes are left in the socket", i, left)
		}
	}
}

// File descriptors that come with more than one peek sees arrive once, and the
// next ones as well.
func TestNotedLarge(t *testing.T) {
	peer, own := socketPair(t)
	before := openFDs(t)
	c := successor(t, own, newJournal(t))
	files := []string{"a", "b", "b"}
	for i, text := range files {
		sendRaw(t, peer, message(Header{ID: uint16(i), Command: CmdRegionWrite}, make([]byte, 40000-i*5000)...), memFD(t, text))
	}
	for i, want := range files {
		m, err := c.ReadMessage()
		if err != nil || m.Header.ID != uint16(i) || m.NumFDs() != 1 {
			t.Fatalf("message %d: %+v with %d descriptors, %v", i, m.Header, m.NumFDs(), err)
		}
		fd := m.TakeFD(0)
		if got := content(t, fd); got != want {
			t.Errorf("message %d: descriptor of %q, want %q", i, got, want)
		}
		unix.Close(fd)
	}
	c.Close()
	if after := openFDs(t); after != before+len(files)+1 { // and the journal
		t.Errorf("%d descriptors open, want %d", after, before+len(files)+1)
	}
}

func TestJournalCheck(t *testing.T) {
	for name, spoil := range map[string]func(*Journal){
		"garbage": func(j *Journal) { j.magic++ },
		"newer":   func(j *Journal) { j.version++ },
		"sent":    func(j *Journal) { j.out.side[0].before = 1 },
		"taken":   func(j *Journal) { j.taking, j.in.side[0].before = 1, 2 },
		"long":    func(j *Journal) { j.outEnd = journalRoom + 1 },
	} {
		j := newJournal(t)
		if err := j.Check(); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		if spoil(j); j.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkNotedRegionWrite(b *testing.B) {
	peer, own := socketPair(b)
	client := NewConn(peer, Limits{})
	c := successor(b, own, newJournal(b))
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
		c.Begin(m.End)
		if _, _, err := ParseRegionWrite(m.Payload); err != nil {
			b.Fatal(err)
		}
		c.Done()
	}
}
