// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

// This file is the host and the transport of the tests, and their volumes.

// deadline ends a test that hangs. Nothing is measured by it.
const deadline = 20 * time.Second

// guard is what surrounds every piece of a command's data.
const guard = 64

// hostCommand is a command as a transport has it: data in pieces of memory of
// the host, with guard bytes around each.
type hostCommand struct {
	Command
	t       testing.TB
	p       *poller.Poller
	arena   []byte
	pieces  []int // sizes of the pieces the data is cut into; the last repeats
	out     []byte
	late    bool        // Data answers in a later turn
	refuse  nvme.Status // what Data answers, if not success
	asked   uint32      // bytes asked for by Data
	dir     Direction
	ended   int
	done    chan struct{}
	onReady func() // called before late data is announced
}

func newCommand(t testing.TB, p *poller.Poller, sqe nvme.SQE) *hostCommand {
	h := &hostCommand{t: t, p: p, pieces: []int{4096}, done: make(chan struct{})}
	h.Init(h)
	h.SQE = sqe
	return h
}

// Data implements Carrier.
func (h *hostCommand) Data(n uint32, dir Direction) (bool, nvme.Status) {
	if h.asked != 0 || n == 0 || n > dma.MaxTransfer {
		h.t.Errorf("%s: Data(%d) after Data(%d)", nvme.FormatSQE(false, &h.SQE), n, h.asked)
		return true, nvme.StatusInternalError
	}
	h.asked, h.dir = n, dir
	if h.late {
		if err := h.p.Post(func() {
			if h.onReady != nil {
				h.onReady()
			}
			h.place()
			h.Ready(h.refuse)
		}); err != nil {
			h.t.Error(err)
		}
		return false, 0
	}
	h.place()
	return true, h.refuse
}

// place cuts the data into segments. Data from the host is h.out, then zeroes.
func (h *hostCommand) place() {
	if h.refuse != nvme.StatusSuccess {
		return
	}
	left, sizes := int(h.asked), []int(nil)
	for i := 0; left > 0; i++ {
		n := min(left, h.pieces[min(i, len(h.pieces)-1)])
		sizes = append(sizes, n)
		left -= n
	}
	h.arena = bytes.Repeat([]byte{0xa5}, guard)
	for _, n := range sizes {
		h.arena = append(h.arena, make([]byte, n)...)
		h.arena = append(h.arena, bytes.Repeat([]byte{0xa5}, guard)...)
	}
	off, out := guard, h.out
	for _, n := range sizes {
		piece := h.arena[off : off+n : off+n]
		if h.dir == FromHost {
			out = out[copy(piece, out):]
		}
		h.Segments = append(h.Segments, dma.SegmentOf(piece))
		off += n + guard
	}
}

// Complete implements Carrier.
func (h *hostCommand) Complete() {
	if h.ended++; h.ended > 1 {
		h.t.Errorf("%s: ended %d times", nvme.FormatSQE(false, &h.SQE), h.ended)
		return
	}
	close(h.done)
}

// data returns the command's data, and checks what surrounds it.
func (h *hostCommand) data() []byte {
	h.t.Helper()
	var p []byte
	off, fence := guard, bytes.Repeat([]byte{0xa5}, guard)
	if h.arena == nil {
		return nil
	}
	if !bytes.Equal(h.arena[:guard], fence) {
		h.t.Error("memory before the data was changed")
	}
	for left, i := int(h.asked), 0; left > 0; i++ {
		n := min(left, h.pieces[min(i, len(h.pieces)-1)])
		p = append(p, h.arena[off:off+n]...)
		off += n
		if !bytes.Equal(h.arena[off:off+guard], fence) {
			h.t.Errorf("memory after piece %d of the data was changed", i)
		}
		off += guard
		left -= n
	}
	if h.dir == FromHost && !bytes.Equal(p[:min(len(p), len(h.out))], h.out[:min(len(p), len(h.out))]) {
		h.t.Error("data of the host was changed")
	}
	return p
}

func (h *hostCommand) wait() {
	h.t.Helper()
	select {
	case <-h.done:
	case <-time.After(deadline):
		h.t.Fatalf("%s: no end", nvme.FormatSQE(false, &h.SQE))
	}
}

// running reports whether the command has not ended yet.
func (h *hostCommand) running() bool {
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// host is a controller with its poller, and who uses it.
type host struct {
	t   testing.TB
	p   *poller.Poller
	sub *Subsystem
	c   *Controller
	w   *Worker

	requests uint16 // Asynchronous Event Requests so far
}

var testConfig = Config{
	CNTLID: -1, VS: nvme.MakeVS(2, 0, 0), MaxQueues: 15,
	PCIVendor: 0x1234, PCISubsystemVendor: 0x5678, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
}

func startPoller(t testing.TB, name string) *poller.Poller {
	t.Helper()
	p, err := poller.Start(poller.Config{Name: name, CPU: -1, Mode: poller.Interrupt, Fence: -1, NoRing: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

func newSubsystem(t testing.TB, volumes ...volume.Volume) *Subsystem {
	t.Helper()
	sub := NewSubsystem("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001", "0123456789abcdef0123")
	for i, v := range volumes {
		if err := sub.Add(testNamespace(uint32(i+1), v)); err != nil {
			t.Fatal(err)
		}
	}
	return sub
}

func testNamespace(nsid uint32, v volume.Volume) *Namespace {
	return &Namespace{NSID: nsid, Volume: v, Name: "v", UUID: [16]byte{0: uint8(nsid), 1: uint8(nsid >> 8), 6: 0x40, 8: 0x80, 15: 1}}
}

// connect makes a controller with a worker, on one poller, as change makes its
// configuration.
func connect(t testing.TB, sub *Subsystem, change func(*Config)) *host {
	t.Helper()
	h := &host{t: t, p: startPoller(t, "admin"), sub: sub}
	cfg := testConfig
	cfg.Poller = h.p
	if change != nil {
		change(&cfg)
	}
	h.do(func() {
		var err error
		if h.c, err = sub.New(cfg); err != nil {
			t.Error(err)
			return
		}
		if h.w, err = h.c.Worker(h.p); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { h.do(func() { h.w.Close(); h.c.Close() }) })
	return h
}

// do runs f on the poller.
func (h *host) do(f func()) {
	h.t.Helper()
	if err := h.p.Do(f); err != nil {
		h.t.Fatal(err)
	}
}

// start begins an admin command, or an I/O command.
func (h *host) start(admin bool, cmd *hostCommand) *hostCommand {
	h.t.Helper()
	h.do(func() {
		if admin {
			h.c.Admin(&cmd.Command)
		} else {
			h.w.Execute(&cmd.Command)
		}
	})
	return cmd
}

// run executes a command and returns it when it has ended.
func (h *host) run(admin bool, sqe nvme.SQE, out ...byte) *hostCommand {
	h.t.Helper()
	cmd := newCommand(h.t, h.p, sqe)
	cmd.out = out
	h.start(admin, cmd)
	cmd.wait()
	return cmd
}

// putter is a struct of command fields.
type putter interface{ Put(*nvme.SQE) }

func sqe(fields putter, nsid uint32) nvme.SQE {
	e := nvme.SQE{NSID: nsid, CID: 7}
	fields.Put(&e)
	return e
}

// admin executes an admin command that must succeed.
func (h *host) admin(fields putter, nsid uint32, out ...byte) *hostCommand {
	h.t.Helper()
	cmd := h.run(true, sqe(fields, nsid), out...)
	if cmd.Status != nvme.StatusSuccess {
		h.t.Fatalf("%s: %v", nvme.FormatSQE(true, &cmd.SQE), cmd.Status)
	}
	return cmd
}

// refused executes an admin command that must fail with st, not to be retried.
func (h *host) refused(st nvme.Status, fields putter, nsid uint32, out ...byte) {
	h.t.Helper()
	cmd := h.run(true, sqe(fields, nsid), out...)
	if cmd.Status != st|nvme.StatusDNR {
		h.t.Errorf("%s: status %v (%#x), want %v", nvme.FormatSQE(true, &cmd.SQE), cmd.Status, uint16(cmd.Status), st)
	}
}

// park begins an Asynchronous Event Request.
func (h *host) park() *hostCommand {
	h.t.Helper()
	h.requests++
	return h.start(true, newCommand(h.t, h.p, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: 99 + h.requests}))
}

// parked returns the number of parked requests.
func (h *host) parked() (n int) {
	h.t.Helper()
	h.do(func() { n = h.c.Parked() })
	return n
}

// log reads a log page of n bytes from its start.
func (h *host) log(lid nvme.LogPageID, n int, rae bool) []byte {
	h.t.Helper()
	return h.admin(nvme.GetLogPage{LID: lid, NUMD: uint32(n/4 - 1), RAE: rae}, nvme.NSIDBroadcast).data()
}

// memory is a volume in memory. Requests end at once, or when released. Tests
// look at it when the pollers that use it have nothing to do.
type memory struct {
	mu     sync.Mutex // pollers use it at the same time
	info   volume.Info
	next   atomic.Pointer[volume.Info] // instead of info, once reshaped
	bytes  []byte
	fail   map[volume.Op]nvme.Status
	hold   bool // keep requests until release
	held   []*volume.Request
	linger time.Duration    // how long a request takes; not at the same time as hold
	log    []volume.Request // what was submitted, in order
	open   int
	noOpen error
	closed bool // nobody may use it any more
	misuse int  // by how many it was used all the same
}

func newMemory(size uint64, block uint32) *memory {
	return &memory{
		info: volume.Info{
			Size: size, Block: block, WriteGranularity: 4096, DiscardGranularity: 64 << 10, AtomicUnit: 4096, VolatileCache: true,
		},
		bytes: make([]byte, size),
		fail:  make(map[volume.Op]nvme.Status),
	}
}

func (m *memory) Info() *volume.Info {
	if next := m.next.Load(); next != nil {
		return next
	}
	return &m.info
}

// reshape makes the volume have another size and block.
func (m *memory) reshape(size uint64, block uint32) {
	next := *m.Info()
	next.Size, next.Block = size, block
	m.mu.Lock()
	defer m.mu.Unlock()
	if more := int(size) - len(m.bytes); more > 0 {
		m.bytes = append(m.bytes, make([]byte, more)...)
	}
	m.next.Store(&next)
}

func (m *memory) Open(p *poller.Poller) (volume.Queue, error) {
	if m.noOpen != nil {
		return nil, m.noOpen
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	if m.closed {
		m.misuse++
	}
	return &memoryQueue{m, p}, nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.open > 0 || len(m.held) > 0 {
		m.misuse++
	}
	m.closed = true
	return nil
}

type memoryQueue struct {
	m *memory
	p *poller.Poller
}

func (q *memoryQueue) Submit(r *volume.Request) {
	r.Begin(q.p)
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	if q.m.closed {
		q.m.misuse++
	}
	q.m.log = append(q.m.log, *r)
	if q.m.hold {
		q.m.held = append(q.m.held, r)
		return
	}
	if q.m.linger > 0 {
		time.AfterFunc(q.m.linger, func() {
			_ = q.p.Post(func() { // a poller ends after its requests
				q.m.mu.Lock()
				defer q.m.mu.Unlock()
				q.m.execute(r)
			})
		})
		return
	}
	q.m.execute(r)
}

// release ends the requests that are held.
func (m *memory) release() {
	held := m.held
	m.held, m.hold = nil, false
	for _, r := range held {
		m.execute(r)
	}
}

// setHold has requests held or not.
func (m *memory) setHold(hold bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
}

// step ends the requests that are held, and holds those that follow.
func (m *memory) step() {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := m.held
	m.held = nil
	for _, r := range held {
		m.execute(r)
	}
}

func (m *memory) execute(r *volume.Request) {
	if st := m.fail[r.Op]; st != nvme.StatusSuccess {
		r.Complete(st)
		return
	}
	area := m.bytes[r.Offset : r.Offset+r.Length]
	switch r.Op {
	case volume.Read:
		for _, s := range r.Segments {
			area = area[copy(s.Bytes(), area):]
		}
	case volume.Write:
		for _, s := range r.Segments {
			area = area[copy(area, s.Bytes()):]
		}
	case volume.WriteZeroes, volume.Discard:
		clear(area)
	}
	r.Complete(nvme.StatusSuccess)
}

// Cancel ends a request that is held.
func (q *memoryQueue) Cancel(r *volume.Request) {
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	if i := slices.Index(q.m.held, r); i >= 0 {
		q.m.held = slices.Delete(q.m.held, i, i+1)
		r.Complete(nvme.StatusAbortRequested)
	}
}

func (q *memoryQueue) Close() {
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	q.m.open--
}
