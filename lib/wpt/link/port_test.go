// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package link

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/null"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// machine is a port whose other side is the test: pages, guest memory, kicks.
type machine struct {
	t     testing.TB
	port  *Port
	regs  *qpair.Registers
	bells *qpair.Doorbells
	mem   []byte
	kick  int
	tail  uint32 // of the admin queue
}

// Where the machine's queues are, and their size.
const (
	adminSQ, adminCQ, ioSQ, ioCQ = 0x1000, 0x2000, 0x3000, 0x4000
	entries                      = 16
)

// newMachine attaches a port of one namespace and enables it.
func newMachine(t *testing.T) *machine {
	return newMachineOf(t, 1<<20, newDrive(t), poller.Config{CPU: -1}, poller.Config{CPU: -1})
}

// newMachineOf attaches a port that shows sub to a machine with so many bytes of
// memory at address 0, served by such pollers, and enables it.
func newMachineOf(t testing.TB, memory int, sub *controller.Subsystem, cfg ...poller.Config) *machine {
	t.Helper()
	b := newBroker(t, qpair.Message{Version: qpair.LinkVersion, Gen: 1}, func(qpair.Message) (qpair.Message, []int) {
		return qpair.Message{}, nil
	})
	c, err := Dial(context.Background(), b.path, "soc", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	var pollers []*poller.Poller
	for _, c := range cfg {
		c.Name, c.Fence = "p", -1
		p, err := poller.Start(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		pollers = append(pollers, p)
	}
	m := &machine{t: t}
	msg := message{Message: qpair.Message{Kind: qpair.MsgAttach, Port: 1}, fds: m.pages()}
	if m.port, err = c.newPort(&msg, pollers); err != nil {
		t.Fatal(err)
	}
	m.memory(memory)
	m.port.sub.Store(sub)
	atomic.StoreUint64(&m.regs.ASQ, adminSQ)
	atomic.StoreUint64(&m.regs.ACQ, adminCQ)
	atomic.StoreUint32(&m.regs.AQA, uint32(nvme.MakeAQA(entries-1, entries-1)))
	atomic.StoreUint32(&m.regs.CC, uint32(nvme.CC(0).WithIOSQES(nvme.SQEShift).WithIOCQES(nvme.CQEShift).WithEN(true)))
	m.port.start()
	m.wait("ready", func() bool { return m.regs.LoadStatus().CSTS().RDY() })
	return m
}

// pages makes the pages of a port and returns the fds of a MsgAttach.
func (m *machine) pages() []int {
	m.t.Helper()
	regs, err1 := qpair.Create[qpair.Registers]("r")
	bells, err2 := qpair.Create[qpair.Doorbells]("d")
	state, err3 := qpair.Create[qpair.State]("s")
	kick, err4 := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			m.t.Fatal(err)
		}
	}
	regs.Page.Init(0, nvme.MakeVS(2, 0, 0), 0)
	state.Page.Init()
	m.regs, m.bells, m.kick = regs.Page, bells.Page, kick
	m.t.Cleanup(func() {
		regs.Close()
		bells.Close()
		state.Close()
		unix.Close(kick)
	})
	return []int{dup(m.t, regs.FD()), dup(m.t, bells.FD()), dup(m.t, state.FD()), dup(m.t, kick)}
}

// memory gives the guest so many bytes at address 0.
func (m *machine) memory(size int) {
	m.t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		m.t.Fatal(err)
	}
	if m.mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = unix.Munmap(m.mem) })
	atomic.StoreUint64(&m.regs.MapGen, 1)
	if err := m.port.space.Map(1, 0, uint64(size), dma.ProtRead|dma.ProtWrite, fd, 0); err != nil {
		m.t.Fatal(err)
	}
}

// newDrive is a subsystem of one namespace.
func newDrive(t testing.TB) *controller.Subsystem {
	return newDriveOf(t, null.Kind, "1M")
}

// newDriveOf is a subsystem of one namespace of this kind and size.
func newDriveOf(t testing.TB, kind volume.Kind, size string) *controller.Subsystem {
	t.Helper()
	v, err := kind.Make(context.Background(), volumetest.NewEnv(t, t.TempDir()), &volume.Spec{Name: "n", Options: map[string]string{"size": size}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	s := controller.NewSubsystem("nqn.2014-08.org.nvmexpress:uuid:x", "1")
	if err := s.Add(&controller.Namespace{NSID: 1, Volume: v, Name: "n"}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (m *machine) wait(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatal("waited in vain for ", what)
		}
	}
}

// put stores a command as entry i of a queue and rings.
func (m *machine) put(queue int, qid int, i uint32, e nvme.SQE) {
	copy(m.mem[queue+int(i)*qpair.SQESize:], nvme.Bytes(&e))
	atomic.StoreUint32(m.bells.SQTail(qid), i+1)
	m.ring()
}

// ring wakes the port's pollers.
func (m *machine) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(m.kick, one[:])
}

// submit sends an admin command.
func (m *machine) submit(e nvme.SQE) {
	m.put(adminSQ, 0, m.tail, e)
	m.tail++
}

// admin sends an admin command and waits for its success.
func (m *machine) admin(e nvme.SQE) {
	m.t.Helper()
	dword3 := m.mem[adminCQ+int(m.tail)*qpair.CQESize+12:]
	m.submit(e)
	m.wait("an admin command", func() bool { return binary.LittleEndian.Uint32(dword3)>>16 != 0 })
	if st := binary.LittleEndian.Uint16(dword3[2:]); st != 1 {
		m.t.Fatalf("status field %#x", st)
	}
}

// createQueues makes queue pair 1, at these addresses and of so many entries.
func (m *machine) createQueues(sq, cq uint64, entries uint16) {
	m.t.Helper()
	e := nvme.SQE{PRP1: cq}
	nvme.CreateCQ{QID: 1, QSIZE: entries - 1, PC: true}.Put(&e)
	m.admin(e)
	e = nvme.SQE{PRP1: sq}
	nvme.CreateSQ{QID: 1, QSIZE: entries - 1, PC: true, CQID: 1}.Put(&e)
	m.admin(e)
}

// gaveUp waits for the end of giveUp.
func (m *machine) gaveUp() {
	m.t.Helper()
	done := make(chan struct{})
	m.port.giveUp(func() { close(done) })
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		m.t.Fatal("the port is not given up")
	}
}

// TestINTx: the line is raised once for what is unread, again when the client
// has unmasked it and something is still unread, and not for what has been taken.
func TestINTx(t *testing.T) {
	m := newMachine(t)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	atomic.StoreUint32(&m.regs.IRQMode, uint32(qpair.IRQINTx))
	m.port.setVector(&message{Message: qpair.Message{Index: irqINTx}, fds: []int{dup(t, fd)}})
	fired := func(step string, want uint64) {
		t.Helper()
		// What the home poller has seen it has told the lanes, which fire.
		m.wait("the masks to be followed", func() bool {
			same := make(chan bool)
			m.port.homePost(func() { same <- m.port.masks.unmasks == atomic.LoadUint64(&m.regs.Unmasks) })
			return <-same
		})
		done := make(chan struct{})
		m.port.homePost(func() { m.port.adminPost(func(l *lane) { l.post(func() { close(done) }) }) })
		<-done
		var b [8]byte
		_, _ = unix.Read(fd, b[:]) // EAGAIN: not at all
		if got := binary.NativeEndian.Uint64(b[:]); got != want {
			t.Errorf("%s: fired %d times, want %d", step, got, want)
		}
	}
	unmask := func() {
		atomic.AddUint64(&m.regs.Unmasks, 1)
		m.ring()
	}
	identify := nvme.SQE{Opcode: uint8(nvme.AdminIdentify), CDW10: uint32(nvme.CNSController), PRP1: ioSQ}
	fired("before any command", 0)
	m.admin(identify)
	fired("first completion", 1)
	m.admin(identify)
	fired("second, not yet unmasked", 0)
	unmask()
	fired("unmasked, both unread", 1)
	atomic.StoreUint32(m.bells.CQHead(0), m.tail)
	unmask()
	fired("unmasked, none unread", 0)
	m.admin(identify)
	fired("third completion", 1)
}

// TestGiveUpParked: a command waits for a memory map that will never come, since
// the link has ended, and Delete I/O Submission Queue waits for the command.
func TestGiveUpParked(t *testing.T) {
	m := newMachine(t)
	m.createQueues(ioSQ, ioCQ, entries)
	atomic.StoreUint64(&m.regs.MapGen, 2)
	read := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, PRP1: 16 << 20}
	m.put(ioSQ, 1, 0, read)
	page := &m.port.state.Page.SQ[1]
	m.wait("the command to be fetched", func() bool { return atomic.LoadUint64(&page.Head) == 1 })
	m.submit(nvme.SQE{Opcode: uint8(nvme.AdminDeleteIOSQ), CDW10: 1})
	admin := &m.port.state.Page.SQ[0]
	m.wait("the deletion to be fetched", func() bool { return atomic.LoadUint64(&admin.Head) == 3 })
	m.gaveUp()
}

// TestGiveUpWhileUnsharing: the link ends while the mappings of memory that is
// not shared are being given up, which is done in line with its messages.
func TestGiveUpWhileUnsharing(t *testing.T) {
	m := newMachine(t)
	ps := NewPorts(nil, nil)
	ps.byID[1] = m.port
	m.port.homePost(func() { m.port.unshare(m.port.gen) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		ps.giveUp(m.port.c)
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Fatal("the port is not given up")
	}
}
