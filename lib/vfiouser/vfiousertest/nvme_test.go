// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

// attach starts everything and enables the controller.
func attach(t *testing.T, so serverOptions, mo MemoryOptions, co Options, prepare func(*NVMe) error) (*server, *NVMe) {
	t.Helper()
	s, c := dial(t, so, mo, co)
	n, err := NewNVMe(c)
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		if err := prepare(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Enable(16); err != nil {
		t.Fatal(err)
	}
	return s, n
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 + seed)
	}
	return b
}

// Every way to ring a doorbell, to be told of completions and to share memory
// carries data both ways.
func TestDataPaths(t *testing.T) {
	msix := (*NVMe).UseMSIX
	for _, test := range []struct {
		name    string
		server  serverOptions
		memory  MemoryOptions
		client  Options
		prepare func(*NVMe) error
		vector  int
		shadow  bool
	}{
		{"trapped, polled", serverOptions{}, MemoryOptions{}, Options{}, nil, Polled, false},
		{"trapped, MSI-X", serverOptions{}, MemoryOptions{Sealed: true}, Options{}, msix, 1, false},
		{"trapped, MSI-X as a set", serverOptions{noResize: true}, MemoryOptions{}, Options{}, msix, 3, false},
		{"trapped, INTx", serverOptions{}, MemoryOptions{}, Options{}, (*NVMe).UseINTx, 0, false},
		{"mapped", serverOptions{mmap: true}, MemoryOptions{}, Options{}, nil, Polled, false},
		{"offered but not mapped", serverOptions{mmap: true}, MemoryOptions{}, Options{NoMmap: true}, nil, Polled, false},
		{"trapped, shadow doorbells", serverOptions{}, MemoryOptions{}, Options{}, nil, Polled, true},
		{"mapped, shadow doorbells", serverOptions{mmap: true}, MemoryOptions{}, Options{}, nil, Polled, true},
		{"private memory", serverOptions{}, MemoryOptions{Low: testLow, High: testHigh, Private: true}, Options{}, nil, Polled, false},
		{"private memory, MSI-X, protocol 0.1", serverOptions{minor: 1}, MemoryOptions{Low: testLow, High: testHigh, Private: true}, Options{Minor: 1}, msix, 2, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, n := attach(t, test.server, test.memory, test.client, test.prepare)
			if test.shadow {
				if err := n.EnableShadowDoorbells(); err != nil {
					t.Fatal(err)
				}
			}
			page, err := n.Identify(nvme.CNSController, 7)
			if err != nil || page[0] != byte(nvme.CNSController)+1 || page[4095] != 7 {
				t.Fatalf("identify: % x..., %v", page[:4], err)
			}
			q, err := n.CreatePair(1, 8, test.vector)
			if err != nil {
				t.Fatal(err)
			}
			if (q.CQ.Interrupt != nil) != (test.vector != Polled) {
				t.Errorf("interrupt %v for vector %d", q.CQ.Interrupt, test.vector)
			}
			for i, shape := range []Shape{{}, {Offset: 3588}, {Offset: 4, ListOffset: 4080, Split: true}, {Scatter: true, ListOffset: 4088}, {High: true}} {
				data := pattern(5*PageSize+i*testBlock, i)
				if err := q.WriteShaped(1, uint64(i*64), data, testBlock, shape); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(data))
				if err := q.Read(1, uint64(i*64), got, testBlock); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%+v: %v, or not the data written", shape, err)
				}
				clear(got)
				if err := q.ReadShaped(1, uint64(i*64), got, testBlock, shape); err != nil || !bytes.Equal(got, data) {
					t.Errorf("reading into %+v: %v, or not the data written", shape, err)
				}
			}
			if err := q.Flush(1); err != nil {
				t.Error(err)
			}
			if err := n.Client().ChurnPAM(); err != nil {
				t.Fatal(err)
			}
			if err := q.Flush(1); err != nil {
				t.Errorf("after the churn: %v", err)
			}
			s.ctrl.mu.Lock()
			trapped, kicks := !test.server.mmap || test.client.NoMmap, s.ctrl.kicks
			s.ctrl.mu.Unlock()
			if trapped != (kicks > 0) {
				t.Errorf("%d trapped doorbells", kicks)
			}
			s.mu.Lock()
			if unmasked := s.unmasked > 0; unmasked != (n.mode == modeINTx) {
				t.Errorf("INTx unmasked: %v", unmasked)
			}
			s.mu.Unlock()
			if err := n.DeletePair(q); err != nil {
				t.Error(err)
			}
			if err := n.Shutdown(); err != nil {
				t.Error(err)
			}
			if err := n.Disable(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestQueueManagement(t *testing.T) {
	_, n := attach(t, serverOptions{}, MemoryOptions{}, Options{}, nil)
	if got, err := n.SetQueues(4); got != 4 || err != nil {
		t.Errorf("got %d queues, %v", got, err)
	}
	status := func(err error) nvme.Status {
		var s *StatusError
		if !errors.As(err, &s) {
			return 0
		}
		return s.Completion.StatusField()
	}
	if _, err := n.CreateSQ(5, 16, 9); status(err) != nvme.StatusCompletionQueueInvalid {
		t.Errorf("submission queue before its completion queue: got %v", err)
	}
	if err := n.DeleteSQ(5); status(err) != nvme.StatusInvalidQueueIdentifier {
		t.Errorf("deleting no queue: got %v", err)
	}
	cq, err := n.CreateCQ(9, 64, Polled)
	if err != nil {
		t.Fatal(err)
	}
	// Two submission queues share a completion queue, larger than a page.
	a, err := n.CreateSQ(5, 128, 9)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.CreateSQ(6, 2, 9)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteCQ(9); status(err) != nvme.StatusInvalidQueueDeletion {
		t.Errorf("deleting a queue in use: got %v", err)
	}
	if a.CQ() != cq || b.CQ() != cq || cq.Depth() != 64 || a.Depth() != 128 {
		t.Error("queues do not know one another")
	}
	flush := nvme.SQE{Opcode: uint8(nvme.IOFlush), CID: 3}
	if !b.Push(&flush) || b.Push(&flush) || b.Room() != 0 {
		t.Error("a queue of depth 2 takes exactly one command")
	}
	a.Push(&flush) // the same CID in another queue is another command
	if err := errors.Join(a.Ring(), b.Ring()); err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]int{}
	for deadline := time.Now().Add(5 * time.Second); len(seen) < 2; {
		if _, err := cq.Poll(func(c nvme.CQE) { seen[c.SQID]++ }); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("completions: %v", seen)
		}
	}
	if b.Room() != 1 {
		t.Errorf("room after the completion: %d, want 1", b.Room())
	}
	if err := errors.Join(n.DeleteSQ(5), n.DeleteSQ(6), n.DeleteCQ(9)); err != nil {
		t.Error(err)
	}
	if err := n.Client().Reset(); err != nil {
		t.Fatal(err)
	}
	if csts, err := n.CSTS(); csts.RDY() || err != nil {
		t.Errorf("after a reset: CSTS %#x, %v", csts, err)
	}
}

// Many commands of many goroutines, each identifier reused at once, over
// several laps of both queues.
func TestConcurrentCommands(t *testing.T) {
	_, n := attach(t, serverOptions{mmap: true}, MemoryOptions{}, Options{}, nil)
	q, err := n.CreatePair(1, 5, Polled)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			data, got := pattern(2*PageSize, w), make([]byte, 2*PageSize)
			for range 20 {
				if err := q.Write(1, uint64(w*16), data, testBlock); err != nil {
					t.Error(err)
				}
				if err := q.Read(1, uint64(w*16), got, testBlock); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%v, or not the data written", err)
				}
			}
		})
	}
	wg.Wait()
	if got := q.Outstanding(); got != 0 {
		t.Errorf("%d commands outstanding", got)
	}
}

// A completion nobody waits for is the controller's mistake, and found.
func TestStrayCompletion(t *testing.T) {
	s, n := attach(t, serverOptions{}, MemoryOptions{}, Options{}, nil)
	q, err := n.CreatePair(1, 8, Polled)
	if err != nil {
		t.Fatal(err)
	}
	s.ctrl.mu.Lock()
	s.ctrl.complete(s.ctrl.sqs[1], &nvme.SQE{CID: 2}, 0, 0)
	s.ctrl.mu.Unlock()
	if err := q.Poll(); err == nil {
		t.Error("stray completion: want an error")
	}
	if err := q.Flush(1); err == nil {
		t.Error("after a stray completion: want the error again")
	}
}

// DMA commands of the server are refused outside what is mapped for them, and
// while the guest does not let the device be a bus master.
func TestDMAIsChecked(t *testing.T) {
	s, n := attach(t, serverOptions{}, MemoryOptions{Low: testLow, High: testHigh, Private: true}, Options{}, nil)
	b := make([]byte, 16)
	for _, test := range []struct {
		cmd     vfiouser.Command
		address uint64
		ok      bool
	}{
		{vfiouser.CmdDMARead, 0x200000, true},
		{vfiouser.CmdDMAWrite, 0x200000, true},
		{vfiouser.CmdDMARead, testLow - 8, false},
		{vfiouser.CmdDMARead, 1<<32 - 8, false},
		{vfiouser.CmdDMAWrite, 0xfffc0000, false}, // firmware
		{vfiouser.CmdDMARead, ^uint64(7), false},
	} {
		if err := s.dma(test.cmd, test.address, b); (err == nil) != test.ok {
			t.Errorf("%v at %#x: got %v", test.cmd, test.address, err)
		}
	}
	if err := n.Client().Command(pciCommandMemory); err != nil {
		t.Fatal(err)
	}
	if err := s.dma(vfiouser.CmdDMARead, 0x200000, b); err == nil {
		t.Error("without bus mastering: want an error")
	}
}

// The hot path of benchmarks allocates nothing, however doorbells are rung. The
// test is the controller here, for that one does allocate.
func TestNoAllocations(t *testing.T) {
	for _, mmap := range []bool{false, true} {
		for _, shadow := range []bool{false, true} {
			s, n := attach(t, serverOptions{mmap: mmap}, MemoryOptions{}, Options{}, nil)
			if shadow {
				if err := n.EnableShadowDoorbells(); err != nil {
					t.Fatal(err)
				}
			}
			q, err := n.CreatePair(1, 8, Polled)
			if err != nil {
				t.Fatal(err)
			}
			s.ctrl.close()
			flush := nvme.SQE{Opcode: uint8(nvme.IOFlush)}
			seen, tail, phase := 0, 0, uint32(1)
			count := func(nvme.CQE) { seen++ }
			got := testing.AllocsPerRun(100, func() {
				if !q.SQ.Push(&flush) || q.SQ.Ring() != nil {
					t.Error("no room")
				}
				e := &q.CQ.Entries()[tail]
				if tail++; tail == 8 {
					tail = 0
				}
				e.SQID, e.SQHead = 1, uint16(tail)
				atomic.StoreUint32(dword3(e), phase<<16)
				if tail == 0 {
					phase ^= 1
				}
				if _, err := q.CQ.Poll(count); err != nil {
					t.Error(err)
				}
			})
			if got != 0 || seen != 101 {
				t.Errorf("mmap %v, shadow %v: %v allocations a command, want 0; %d completions, want 101", mmap, shadow, got, seen)
			}
		}
	}
}

// A shadow doorbell is followed by the register only when the tail passes the
// event index.
func TestShadowDoorbellRule(t *testing.T) {
	for _, test := range []struct {
		old, event, new uint32
		kick            bool
	}{
		{0, 0, 1, true},
		{0, 3, 1, false},
		{0, 3, 3, false},
		{0, 3, 4, true},
		{3, 3, 4, true},
		{4, 3, 5, false},
		{1023, 1023, 0, true},  // wraps, and the controller slept
		{1022, 1000, 2, false}, // wraps, and the controller is at work
		{2, 1023, 1, true},     // nearly a lap
	} {
		register, shadow, event := uint32(0xdead), test.old, test.event
		d := doorbell{value: test.old, mapped: &register, shadow: &shadow, event: &event}
		if err := d.ring(test.new); err != nil {
			t.Fatal(err)
		}
		if shadow != test.new || (register == test.new) != test.kick {
			t.Errorf("%+v: shadow %d, register %#x", test, shadow, register)
		}
	}
}
