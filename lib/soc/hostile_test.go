// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// newDrive starts everything for one drive of 64 MiB and enables it.
func newDrive(t *testing.T, kind string, mem vfiousertest.MemoryOptions) (*rig, *vfiousertest.NVMe) {
	t.Helper()
	r := newRig(t)
	r.volume("d1", kind, "size", "64M")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	n := r.guest("vm1", mem)
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	return r, n
}

// pattern returns n bytes that tell seed apart.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 99))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

// TestManyQueues makes 64 queue pairs of 1024 entries in any order and uses
// all of them at once with transfers up to 1 MiB.
func TestManyQueues(t *testing.T) {
	_, n := newDrive(t, "mem", vfiousertest.MemoryOptions{Low: 256 << 20, High: 64 << 20})
	if got, err := n.SetQueues(64); err != nil || got < 64 {
		t.Fatalf("%d queues offered: %v", got, err)
	}
	const queues = 64
	order := rand.Perm(queues)
	for _, i := range order {
		if _, err := n.CreateCQ(uint16(i+1), 1024, vfiousertest.Polled); err != nil {
			t.Fatal(err)
		}
	}
	pairs := make([]*vfiousertest.Pair, queues)
	for _, i := range rand.Perm(queues) {
		sq, err := n.CreateSQ(uint16(i+1), 1024, uint16(i+1))
		if err != nil {
			t.Fatal(err)
		}
		pairs[i] = vfiousertest.NewPair(sq)
	}
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() {
			// Each queue has its own MiB.
			for round := range 3 {
				data := pattern(1<<20, uint64(i*10+round))
				if err := p.Write(1, uint64(i)*2048, data, 512); err != nil {
					t.Errorf("queue %d: write: %v", i, err)
					return
				}
				got := make([]byte, len(data))
				if err := p.Read(1, uint64(i)*2048, got, 512); err != nil || !bytes.Equal(got, data) {
					t.Errorf("queue %d: read back: %v, equal %t", i, err, bytes.Equal(got, data))
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range queues {
		if err := n.DeleteSQ(uint16(i + 1)); err != nil {
			t.Error(err)
		}
		if err := n.DeleteCQ(uint16(i + 1)); err != nil {
			t.Error(err)
		}
	}
}

// TestShapes moves data through PRP lists and SGLs of every shape.
func TestShapes(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			_, n := newDrive(t, kind, vfiousertest.MemoryOptions{Low: 64 << 20, High: 64 << 20})
			q, err := n.CreatePair(1, 64, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			shapes := []vfiousertest.Shape{
				{}, {Offset: 4}, {Offset: 4092}, {Offset: 2048}, {Scatter: true}, {High: true}, {Split: true},
				{ListOffset: 8}, {ListOffset: 4088}, {ListOffset: 4080, Scatter: true, Offset: 512}, {Split: true, Offset: 1024, ListOffset: 2048},
				{SGL: 2}, {SGL: 256}, {SGL: 128, Offset: 3, Scatter: true}, {SGL: 3, Offset: 4095, ListOffset: 4048}, {SGL: 16, Split: true, High: true, Offset: 1},
			}
			for i, shape := range shapes {
				for _, size := range []int{512, 4096, 4608, 8192, 12288, 128 << 10, 1 << 20} {
					data := pattern(size, uint64(i))
					lba := uint64(i * 4096)
					if err := q.WriteShaped(1, lba, data, 512, shape); err != nil {
						t.Fatalf("%+v, %d bytes: write: %v", shape, size, err)
					}
					got := make([]byte, size)
					if err := q.ReadShaped(1, lba, got, 512, shape); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("%+v, %d bytes: read: %v, equal %t", shape, size, err, bytes.Equal(got, data))
					}
				}
			}
		})
	}
}

// TestHostilePRPs: pointers that lead nowhere, or in a circle, cost the command.
func TestHostilePRPs(t *testing.T) {
	_, n := newDrive(t, "mem", small)
	q, err := n.CreatePair(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	mem := n.Client().Memory()
	list, raw, err := mem.Alloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(raw[at*8:], v) }
	for i := range 512 {
		put(i, list) // every entry is the list itself
	}
	pages, same, err := mem.Alloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 512 {
		binary.LittleEndian.PutUint64(same[i*8:], list)
	}
	end, err := mem.Bytes(64<<20-8, 8) // of a list, which goes on behind the memory
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(end, 64<<20)
	var queues [2]uint64 // of the admin queue
	for i, register := range []uint64{nvme.RegASQ, nvme.RegACQ} {
		if queues[i], err = n.Client().Read64(register); err != nil {
			t.Fatal(err)
		}
	}
	const away = 1 << 45
	tests := []struct {
		name       string
		prp1, prp2 uint64
		bytes      int
		want       nvme.Status
	}{
		{"prp1 out of the map", away, 0, 4096, nvme.StatusDataTransferError},
		{"prp1 at the end of the address space", 1<<64 - 4096, 0, 4096, nvme.StatusDataTransferError},
		{"prp1 unaligned", list + 2, 0, 512, nvme.StatusInvalidPRPOffset},
		{"prp2 out of the map", list, away, 8192, nvme.StatusDataTransferError},
		{"prp2 with an offset", list, list + 4, 8192, nvme.StatusInvalidPRPOffset},
		{"list out of the map", list, away, 1 << 20, nvme.StatusDataTransferError},
		{"list unaligned", list, list + 4, 1 << 20, nvme.StatusInvalidPRPOffset},
		{"list that is its own data", list, list, 1 << 20, nvme.StatusSuccess},
		{"chain to itself, one entry a page", list, list + 4088, 1 << 20, nvme.StatusSuccess},
		{"list entries that are all one page", list, pages, 64 << 10, nvme.StatusSuccess},
		{"list across the end of memory", list, 64<<20 - 8, 64 << 10, nvme.StatusDataTransferError},
		{"data across the end of memory", 64<<20 - 4096, 64 << 20, 8192, nvme.StatusDataTransferError},
		{"the queues", queues[0], queues[1], 8192, nvme.StatusSuccess},
		{"a list in the submission queue", list, queues[0], 8192 + 512, nvme.StatusInvalidPRPOffset},
		{"read-only firmware", 0xfffc0000, 0, 4096, nvme.StatusDataTransferError},
		{"the doorbells", 0xc000001000, 0, 4096, nvme.StatusDataTransferError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Writes to the drive: the guest's memory is only read, so that the
			// list stays what it is.
			e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, PRP1: tt.prp1, PRP2: tt.prp2}
			nvme.RW{NLB: uint16(tt.bytes/512 - 1)}.Put(&e)
			if st := statusOf(q.Do(e)); st.Code() != tt.want {
				t.Errorf("status %v, want %v", st, tt.want)
			}
		})
	}
	// A read into the list that describes it ends, whatever it stores.
	e := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, PRP1: list, PRP2: list}
	nvme.RW{NLB: 2047}.Put(&e)
	if st := statusOf(q.Do(e)); st != nvme.StatusSuccess {
		t.Errorf("read over its own list: %v", st)
	}
	exercise(t, second(t, n), vfiousertest.Polled)
}

// second deletes queue pair 1, so that exercise can make its own.
func second(t *testing.T, n *vfiousertest.NVMe) *vfiousertest.NVMe {
	t.Helper()
	if err := errors.Join(n.DeleteSQ(1), n.DeleteCQ(1)); err != nil {
		t.Fatal(err)
	}
	return n
}

// statusOf returns the status of a command that was completed.
func statusOf(_ nvme.CQE, err error) nvme.Status {
	var st *vfiousertest.StatusError
	switch {
	case err == nil:
		return nvme.StatusSuccess
	case errors.As(err, &st):
		return st.Completion.StatusField()
	}
	return nvme.Status(0xffff) // no completion came
}

// TestHostileDoorbells: a doorbell that cannot be stops its queue, tells the
// guest, and nothing else suffers.
func TestHostileDoorbells(t *testing.T) {
	for _, v := range []uint32{64, 65, 1 << 16, 1<<32 - 1} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			_, n := newDrive(t, "mem", small)
			event := make(chan nvme.CQE, 1)
			go func() {
				e, err := n.AdminCommand(nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)})
				if err == nil {
					event <- e
				}
			}()
			bad, err := n.CreatePair(1, 64, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			good, err := n.CreatePair(2, 64, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			if err := bad.SQ.SetTail(v); err != nil {
				t.Fatal(err)
			}
			data := pattern(4096, 5)
			if err := good.Write(1, 0, data, 512); err != nil {
				t.Error("another queue:", err)
			}
			select {
			case e := <-event:
				if nvme.AsyncEvent(e.DW0) != nvme.EventInvalidDoorbellValue {
					t.Errorf("event %v", nvme.AsyncEvent(e.DW0))
				}
			case <-time.After(5 * time.Second):
				t.Error("no event came")
			}
			if err := n.Disable(); err != nil {
				t.Fatal(err)
			}
			if err := n.Enable(32); err != nil {
				t.Fatal(err)
			}
			exercise(t, n, vfiousertest.Polled)
		})
	}
}

// TestResets disables the controller at any moment, with commands in flight,
// and finds it whole afterwards.
func TestResets(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			_, n := newDrive(t, kind, small)
			mem := n.Client().Memory()
			buf, err := mem.NewBuffer(64<<10, vfiousertest.Shape{Scatter: true})
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(3, 4))
			for round := range rounds {
				sq := queue(t, n, 1+rng.IntN(3))
				for range rng.IntN(32) {
					e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, CID: uint16(rng.IntN(4))}
					nvme.RW{SLBA: uint64(rng.IntN(1000)), NLB: 127}.Put(&e)
					buf.Set(&e)
					sq.Push(&e)
				}
				if err := sq.Ring(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond)
				if err := n.Disable(); err != nil {
					t.Fatalf("round %d: disable: %v", round, err)
				}
				if err := n.Enable(2 + rng.IntN(60)); err != nil {
					t.Fatalf("round %d: enable: %v", round, err)
				}
			}
			exercise(t, n, vfiousertest.Polled)
		})
	}
}

// queue makes queue pair id with commands of its own.
func queue(t *testing.T, n *vfiousertest.NVMe, id int) *vfiousertest.SQ {
	t.Helper()
	if _, err := n.CreateCQ(uint16(id), 64, vfiousertest.Polled); err != nil {
		t.Fatal(err)
	}
	sq, err := n.CreateSQ(uint16(id), 64, uint16(id))
	if err != nil {
		t.Fatal(err)
	}
	return sq
}

// TestTruncatedMemory: a client that takes its memory away costs its own
// controller, with every way of accessing it, and nobody else.
func TestTruncatedMemory(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			r, n := newDrive(t, kind, vfiousertest.MemoryOptions{Low: 64 << 20})
			r.volume("d2", "mem", "size", "32M")
			r.wire("vm2", api.DoorbellsTrap, "d2")
			other := r.guest("vm2", small)
			if err := other.Enable(32); err != nil {
				t.Fatal(err)
			}
			sq := queue(t, n, 1)
			e := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, PRP1: 48 << 20}
			nvme.RW{NLB: 7}.Put(&e)
			// Queues lie at the bottom and stay; the data goes.
			if err := n.Client().Memory().Shrink(32 << 20); err != nil {
				t.Fatal(err)
			}
			for range 8 {
				sq.Push(&e)
			}
			if err := sq.Ring(); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(5 * time.Second)
			for failed := 0; failed < 1; {
				if csts, err := n.CSTS(); err != nil || csts.CFS() {
					break
				}
				if _, err := sq.CQ().Poll(func(e nvme.CQE) {
					if e.StatusField() == nvme.StatusSuccess {
						t.Error("a read into memory that is gone succeeded")
					}
					failed++
				}); err != nil {
					t.Fatal(err)
				}
				if time.Now().After(deadline) {
					t.Fatal("neither a status nor CFS")
				}
			}
			exercise(t, other, vfiousertest.Polled)
			n.Client().Close()
			r.waitState("vm1", api.PortWaiting)
			third := r.guest("vm1", small)
			if err := third.Enable(32); err != nil {
				t.Fatal(err)
			}
			exercise(t, third, vfiousertest.Polled)
		})
	}
}

// TestDisconnects ends the connection at any moment with commands in flight;
// the next machine finds the drive, and nothing is left behind.
func TestDisconnects(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "file", "size", "64M")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	rng := rand.New(rand.NewPCG(8, 9))
	round := func() {
		n := r.guest("vm1", vfiousertest.MemoryOptions{Low: 16 << 20})
		if err := n.Enable(8); err != nil {
			t.Fatal(err)
		}
		sq := queue(t, n, 1)
		buf, err := n.Client().Memory().NewBuffer(64<<10, vfiousertest.Shape{})
		if err != nil {
			t.Fatal(err)
		}
		for range rng.IntN(32) {
			e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1}
			nvme.RW{SLBA: uint64(rng.IntN(1000)), NLB: 127}.Put(&e)
			buf.Set(&e)
			sq.Push(&e)
		}
		if err := sq.Ring(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		n.Client().Close()
		n.Client().Memory().Close()
		r.waitState("vm1", api.PortWaiting)
	}
	for range 5 {
		round()
	}
	files, goroutines := settled(t)
	for range 30 {
		round()
	}
	files2, goroutines2 := settled(t)
	if files2 > files+2 || goroutines2 > goroutines+2 {
		t.Errorf("%d files and %d goroutines after 5 guests, %d and %d after 35", files, goroutines, files2, goroutines2)
	}
	n := r.guest("vm1", small)
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	exercise(t, n, vfiousertest.Polled)
}

// settled counts open files and goroutines when they have stopped falling.
func settled(t *testing.T) (files, goroutines int) {
	t.Helper()
	for last := -1; ; time.Sleep(100 * time.Millisecond) {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		files, goroutines = len(names), runtime.NumGoroutine()
		if sum := files + goroutines; sum == last {
			return files, goroutines
		} else {
			last = sum
		}
	}
}

// waitState waits until a port is in a state.
func (r *rig) waitState(port, state string) {
	r.t.Helper()
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		p := call[api.Port](r, r.paths.Wpt(), "GET", "/v1/ports/"+port, nil)
		if p.State == state {
			return
		}
		if time.Since(start) > 10*time.Second {
			r.t.Fatalf("port %s is %s, not %s", port, p.State, state)
		}
	}
}
