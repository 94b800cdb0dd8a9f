// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
)

// fakeRuntime is a runtime that serves registers and nothing else: it follows
// resets and enables, keeps the tables it is told, and answers what must be.
type fakeRuntime struct {
	link  *qpair.Link
	epoch uint64
	fence int
	wg    sync.WaitGroup

	holdResets atomic.Bool // resets are not acknowledged
	deaf       atomic.Bool // MsgUnmap and MsgDetach are not answered
	hung       atomic.Bool // nor is MsgPing

	mu      sync.Mutex
	ports   map[uint32]*fakePort
	log     []qpair.MessageKind
	answers map[uint64]answer // MsgRelayed, MsgKept by ID
	lastID  uint64
	err     error // why the link ended
}

type answer struct {
	status int32
	data   []byte
	fd     int
}

// fakePort is what the runtime knows of a port.
type fakePort struct {
	id              uint32
	name, subsystem string
	mapped          bool
	regs            *qpair.Shared[qpair.Registers]
	bells           *qpair.Shared[qpair.Doorbells]
	state           *qpair.Shared[qpair.State]
	kick            *os.File
	gen             uint64 // of the region table
	regions         []qpair.Message
	shared          int               // regions with an fd
	vectors         map[[2]uint32]int // by index and vector
	kicks           int
}

// connect sends MsgHello and returns the connection and the answer.
func connect(t testing.TB, b *Broker, name string) (*qpair.Link, qpair.Message, []int) {
	t.Helper()
	link := dialLink(t, b)
	m := qpair.Message{Kind: qpair.MsgHello, Version: qpair.LinkVersion, ID: uint64(os.Getpid())}
	if err := qpair.SetName(&m.Name, name); err != nil {
		t.Fatal(err)
	}
	if err := link.Send(&m, nil); err != nil {
		t.Fatal(err)
	}
	welcome, _, fds, err := link.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if welcome.Kind != qpair.MsgWelcome {
		t.Fatalf("the first message is %v", welcome.Kind)
	}
	return link, welcome, fds
}

func dialLink(t testing.TB, b *Broker) *qpair.Link {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: b.paths.LinkSocket(), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	return qpair.NewLink(conn)
}

// startRuntime connects a runtime and serves until it is killed or the test
// ends.
func startRuntime(t testing.TB, b *Broker, name string) *fakeRuntime {
	t.Helper()
	var (
		link    *qpair.Link
		welcome qpair.Message
		fds     []int
	)
	eventually(t, "end of the runtime before", func() bool {
		link, welcome, fds = connect(t, b, name)
		if unix.Errno(welcome.Status) != unix.EBUSY {
			return true
		}
		link.Close()
		return false
	})
	if welcome.Kind != qpair.MsgWelcome || welcome.Status != 0 || len(fds) != 1 {
		t.Fatalf("welcome is %v with status %d and %d fds", welcome.Kind, welcome.Status, len(fds))
	}
	rt := &fakeRuntime{
		link: link, epoch: welcome.Gen, fence: fds[0],
		ports: make(map[uint32]*fakePort), answers: make(map[uint64]answer),
	}
	rt.wg.Go(rt.read)
	t.Cleanup(rt.kill)
	return rt
}

// kill ends the runtime: its link, its threads, its rings.
func (rt *fakeRuntime) kill() {
	rt.hang()
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.fence >= 0 {
		unix.Close(rt.fence)
		rt.fence = -1
	}
}

// hang ends the link only: the runtime is lost, not gone.
func (rt *fakeRuntime) hang() {
	rt.link.Close()
	rt.mu.Lock()
	ports := rt.ports
	rt.ports = nil
	rt.mu.Unlock()
	for _, p := range ports {
		p.close()
	}
	rt.wg.Wait()
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, a := range rt.answers {
		if a.fd >= 0 {
			unix.Close(a.fd)
		}
	}
	rt.answers = nil
}

// close ends the port's goroutine, which then unmaps the pages.
func (p *fakePort) close() {
	p.kick.Close()
	for _, fd := range p.vectors {
		unix.Close(fd)
	}
}

func (rt *fakeRuntime) read() {
	for {
		m, data, fds, err := rt.link.Recv()
		if err != nil {
			rt.mu.Lock()
			rt.err = err
			rt.mu.Unlock()
			return
		}
		rt.receive(m, append([]byte(nil), data...), fds)
	}
}

func (rt *fakeRuntime) receive(m qpair.Message, data []byte, fds []int) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.log = append(rt.log, m.Kind)
	p := rt.ports[m.Port]
	switch m.Kind {
	case qpair.MsgAttach:
		rt.attach(m, fds)
		return
	case qpair.MsgPing:
		if !rt.hung.Load() {
			rt.link.Send(&qpair.Message{Kind: qpair.MsgPong, ID: m.ID}, nil)
		}
		return
	case qpair.MsgRelayed, qpair.MsgKept:
		a := answer{status: m.Status, data: data, fd: -1}
		if len(fds) > 0 {
			a.fd = fds[0]
		}
		if rt.answers != nil {
			rt.answers[m.ID] = a
			return
		}
	}
	if p == nil {
		qpair.CloseFDs(fds)
		return
	}
	switch m.Kind {
	case qpair.MsgMap:
		p.regions, p.gen = append(p.regions, m), m.Gen
		p.shared += len(fds)
		qpair.CloseFDs(fds)
	case qpair.MsgUnmap:
		p.gen = m.Gen
		for i, r := range p.regions {
			if r.Addr == m.Addr && r.Size == m.Size {
				p.regions = append(p.regions[:i:i], p.regions[i+1:]...)
				break
			}
		}
		if !rt.deaf.Load() {
			rt.link.Send(&qpair.Message{Kind: qpair.MsgUnmapped, Port: m.Port, ID: m.ID}, nil)
		}
	case qpair.MsgVector:
		at := [2]uint32{m.Index, m.Start}
		if fd, ok := p.vectors[at]; ok {
			unix.Close(fd)
			delete(p.vectors, at)
		}
		if len(fds) > 0 {
			p.vectors[at] = fds[0]
		}
	case qpair.MsgDetach:
		if !rt.deaf.Load() {
			delete(rt.ports, m.Port)
			p.close()
			rt.link.Send(&qpair.Message{Kind: qpair.MsgDetached, Port: m.Port}, nil)
		}
	}
}

// attach serves a port in a goroutine of its own.
func (rt *fakeRuntime) attach(m qpair.Message, fds []int) {
	regs, err1 := qpair.Open[qpair.Registers](fds[0])
	bells, err2 := qpair.Open[qpair.Doorbells](fds[1])
	state, err3 := qpair.Open[qpair.State](fds[2])
	if err := errors.Join(err1, err2, err3); err != nil {
		panic(err)
	}
	if err := errors.Join(regs.Page.Check(), state.Page.Check()); err != nil {
		panic(err)
	}
	p := &fakePort{
		id: m.Port, name: qpair.NameOf(&m.Name), subsystem: qpair.NameOf(&m.Subsystem), gen: m.Gen,
		mapped: m.Flags&qpair.PortMapped != 0, regs: regs, bells: bells, state: state,
		kick: os.NewFile(uintptr(fds[3]), "kick"), vectors: make(map[[2]uint32]int),
	}
	rt.ports[m.Port] = p
	rt.wg.Go(func() { rt.serve(p) })
}

// serve follows the registers of a port.
func (rt *fakeRuntime) serve(p *fakePort) {
	defer func() {
		p.regs.Close()
		p.bells.Close()
		p.state.Close()
	}()
	var b [8]byte
	for {
		rt.follow(p)
		p.kick.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := p.kick.Read(b[:]); err == nil {
			rt.mu.Lock()
			p.kicks++
			rt.mu.Unlock()
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// follow brings the status of a port to what its registers ask for.
func (rt *fakeRuntime) follow(p *fakePort) {
	r := p.regs.Page
	gen, old := r.LoadResetGen(), r.LoadStatus()
	if rt.holdResets.Load() && !old.Current(gen) {
		return
	}
	cc := r.LoadCC()
	s := nvme.CSTS(0).WithRDY(cc.EN())
	if cc.SHN() != 0 {
		s = s.WithSHST(nvme.SHSTComplete)
	}
	if w := qpair.MakeStatus(gen, s); w != old {
		r.StoreStatus(w)
		rt.link.Send(&qpair.Message{Kind: qpair.MsgStatus, Port: p.id}, nil)
	}
}

// port returns a copy of what the runtime knows of a port, nil if it has none
// of this name.
func (rt *fakeRuntime) port(name string) *fakePort {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, p := range rt.ports {
		if p.name == name {
			c := *p
			c.regions = append([]qpair.Message(nil), p.regions...)
			c.vectors = make(map[[2]uint32]int, len(p.vectors))
			for k, v := range p.vectors {
				c.vectors[k] = v
			}
			return &c
		}
	}
	return nil
}

// attached waits until the runtime has a port.
func (rt *fakeRuntime) attached(t testing.TB, name string) *fakePort {
	t.Helper()
	eventually(t, "attach of "+name, func() bool { return rt.port(name) != nil })
	return rt.port(name)
}

// caughtUp waits until the runtime has the current region table of a port.
func (rt *fakeRuntime) caughtUp(t testing.TB, p *port) *fakePort {
	t.Helper()
	eventually(t, "region table", func() bool {
		f := rt.port(p.name)
		return f != nil && f.gen == p.regs.Page.LoadMapGen()
	})
	return rt.port(p.name)
}

// send sends a request and returns its ID.
func (rt *fakeRuntime) send(t testing.TB, m qpair.Message, data []byte, fds ...int) uint64 {
	t.Helper()
	rt.mu.Lock()
	rt.lastID++
	m.ID = rt.lastID
	rt.mu.Unlock()
	if err := rt.link.Send(&m, data, fds...); err != nil {
		t.Fatal(err)
	}
	return m.ID
}

// answer waits for the answer to a request.
func (rt *fakeRuntime) answer(t testing.TB, id uint64) answer {
	t.Helper()
	var a answer
	eventually(t, "answer", func() bool {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		var ok bool
		a, ok = rt.answers[id]
		delete(rt.answers, id)
		return ok
	})
	return a
}

// linkError returns why the link ended, nil while it lasts.
func (rt *fakeRuntime) linkError() error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.err
}
