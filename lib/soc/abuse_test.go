// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// Every test here abuses one drive while another machine, whose queues are
// served by the same poller, verifies what it writes.

// neighbours starts two machines: one to abuse its drive, which is enabled, and
// one that works until the test ends.
func neighbours(t *testing.T, kind string, mem vfiousertest.MemoryOptions) (*rig, *vfiousertest.NVMe) {
	t.Helper()
	r := newRig(t)
	r.volume("d1", kind, "size", "64M")
	r.volume("d2", "mem", "size", "64M")
	other := r.drive("vm2", api.DoorbellsTrap, small, "d2")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	n := r.guest("vm1", mem)
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	load := newLoad(t, other, 1)
	t.Cleanup(func() {
		load.end()
		var smart nvme.SQE
		nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}.Put(&smart)
		b, err := other.AdminRead(smart, 512)
		var l nvme.SMARTLog
		copy(nvme.Bytes(&l), b)
		if err != nil || l.HostWriteCommands.Lo < 2 {
			t.Errorf("the machine next door has written %d times: %v", l.HostWriteCommands.Lo, err)
		}
		t.Logf("the machine next door has written %d times", l.HostWriteCommands.Lo)
	})
	return r, n
}

// cured resets the controller: all is well then.
func cured(t *testing.T, n *vfiousertest.NVMe) {
	t.Helper()
	within(t, "disable", n.Disable)
	within(t, "enable", func() error { return n.Enable(32) })
	exercise(t, n, vfiousertest.Polled)
}

// push puts commands into a queue as they are, and rings.
func push(t *testing.T, sq *vfiousertest.SQ, commands ...nvme.SQE) {
	t.Helper()
	for i := range commands {
		if !sq.Push(&commands[i]) {
			t.Fatal("submission queue is full")
		}
	}
	if err := sq.Ring(); err != nil {
		t.Fatal(err)
	}
}

// rw returns a Read or Write of blocks of 512 bytes.
func rw(op nvme.IOOpcode, cid uint16, slba uint64, blocks int, prp1, prp2 uint64) nvme.SQE {
	e := nvme.SQE{Opcode: uint8(op), NSID: 1, CID: cid, PRP1: prp1, PRP2: prp2}
	nvme.RW{SLBA: slba, NLB: uint16(blocks - 1)}.Put(&e)
	return e
}

// TestRegisterSweep writes to every byte of configuration space and BAR0, the
// doorbells of all queues among them, in every width, while a runtime follows.
// Afterwards the drive works.
func TestRegisterSweep(t *testing.T) {
	t.Parallel()
	seed, err := strconv.ParseUint(os.Getenv("LEAP_TEST_SEED"), 0, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("LEAP_TEST_SEED=%#x", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	_, n := neighbours(t, "mem", small)
	c := n.Client()
	for _, region := range []vfiouser.Region{vfiouser.RegionConfig, vfiouser.RegionBAR0} {
		size := uint64(4 << 10)
		if region == vfiouser.RegionBAR0 {
			size = 16 << 10
		}
		for _, v := range []uint64{0, ^uint64(0), rng.Uint64(), rng.Uint64() | 1} {
			for _, width := range []int{1, 2, 4, 8} {
				step := uint64(1)
				if v != 0 && size > 4<<10 {
					step = 3 // misaligned ones are refused, whatever they hold
				}
				for off := uint64(0); off < size+8; off += step {
					var b [8]byte
					binary.LittleEndian.PutUint64(b[:], v)
					if err := c.PostRegion(region, off, b[:width]); err != nil {
						t.Fatalf("%v at %#x: %v", region, off, err)
					}
				}
			}
			// All have been carried out by the time this has.
			if v, err := c.Read64(nvme.RegCAP); err != nil || v != uint64(n.CAP()) {
				t.Fatalf("CAP reads %#x, %v", v, err)
			}
		}
	}
	within(t, "reset", func() error { return errors.Join(c.Reset(), c.Command(0x0406)) })
	cured(t, n)
}

// TestQueuesOverQueues makes queues over one another and over memory that is no
// place for a queue. That is the guest's own affair until the next reset.
func TestQueuesOverQueues(t *testing.T) {
	_, n := neighbours(t, "mem", small)
	if err := n.Client().Map(vfiousertest.Mapping{Address: 0x80000000, Size: 1 << 20, Flags: vfiouser.DMARead, FD: n.Client().Memory().FD()}); err != nil {
		t.Fatal(err)
	}
	const cq, sq = 16 << 20, 17 << 20
	for _, tt := range []struct {
		name          string
		cq, sq, other uint64
		answers       bool // completions come in the completion queue
	}{
		{name: "two submission queues", cq: cq, sq: sq, other: sq, answers: true},
		{name: "submission queue over its completion queue", cq: cq, sq: cq, other: sq},
		{name: "over the admin queues", cq: cq, sq: 1 << 20, other: 1<<20 + 4096},
		{name: "submission queue nowhere", cq: cq, sq: 1 << 45, other: sq},
		{name: "completion queue nowhere", cq: 1 << 45, sq: sq, other: sq},
		{name: "completion queue that cannot be written", cq: 0x80000000, sq: sq, other: sq},
		{name: "completion queue in the firmware", cq: 0xfffc0000, sq: sq, other: sq},
		{name: "queues in the doorbells", cq: 0xc000001000, sq: 0xc000001000, other: sq},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := n.Client().Memory()
			clearAt := func(at uint64) {
				if b, err := mem.Bytes(at, 4096); err == nil && at >= cq {
					clear(b)
				}
			}
			clearAt(cq)
			clearAt(sq)
			if b, err := mem.Bytes(sq, 128); err == nil {
				for i := range 2 {
					e := rw(nvme.IORead, uint16(i), 0, 1, 20<<20, 0)
					copy(b[i*nvme.SQESize:], nvme.Bytes(&e))
				}
			}
			for _, fields := range []interface{ Put(*nvme.SQE) }{
				nvme.CreateCQ{QID: 1, QSIZE: 15, PC: true},
				nvme.CreateSQ{QID: 1, QSIZE: 15, PC: true, CQID: 1},
				nvme.CreateSQ{QID: 2, QSIZE: 15, PC: true, CQID: 1},
			} {
				e := nvme.SQE{PRP1: tt.cq}
				if create, ok := fields.(nvme.CreateSQ); ok {
					if e.PRP1 = tt.sq; create.QID == 2 {
						e.PRP1 = tt.other
					}
				}
				fields.Put(&e)
				if _, err := n.AdminCommand(e); err != nil {
					t.Fatal(err)
				}
			}
			for _, qid := range []uint16{1, 2} {
				if err := n.Client().Write32(nvme.SQDoorbell(qid, 0), 2); err != nil {
					t.Fatal(err)
				}
			}
			if tt.answers {
				b, err := mem.Bytes(cq, 4*nvme.CQESize)
				if err != nil {
					t.Fatal(err)
				}
				for start := time.Now(); b[3*nvme.CQESize+14]&1 == 0; time.Sleep(time.Millisecond) {
					if time.Since(start) > 10*time.Second {
						t.Fatalf("four commands have not ended: % x", b)
					}
				}
			}
			time.Sleep(2 * time.Millisecond)
			cured(t, n)
			second(t, n)
		})
	}
}

// TestMemoryGoes takes memory away under commands, by a message or by making
// the file smaller, and gives it back. Commands on it fail, or their controller
// does; the next reset is a cure.
func TestMemoryGoes(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		for _, how := range []string{"unmapped", "truncated"} {
			t.Run(kind+"/"+how, func(t *testing.T) {
				t.Parallel()
				_, n := neighbours(t, kind, vfiousertest.MemoryOptions{Low: 64 << 20})
				mem := n.Client().Memory()
				// Data in a mapping of its own: queues stay where they are.
				data := vfiousertest.Mapping{Address: 0x80000000, Size: 16 << 20, Offset: 48 << 20, Flags: vfiouser.DMARead | vfiouser.DMAWrite, FD: mem.FD()}
				if err := n.Client().Map(data); err != nil {
					t.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(5, 6))
				fatal := 0
				for round := range 20 {
					sq := queue(t, n, 1)
					for i := range 60 {
						op := []nvme.IOOpcode{nvme.IORead, nvme.IOWrite}[i%2]
						push(t, sq, rw(op, uint16(i), uint64(rng.IntN(1000)), 16, data.Address+uint64(i)*8192, data.Address+uint64(i)*8192+4096))
					}
					time.Sleep(time.Duration(rng.IntN(100)) * time.Microsecond)
					var err error
					if how == "unmapped" {
						err = n.Client().Unmap(data.Address, data.Size)
					} else {
						err = mem.Shrink(48 << 20)
					}
					if err != nil {
						t.Fatal(err)
					}
					push(t, sq, rw(nvme.IORead, 60, 0, 16, data.Address, data.Address+4096), rw(nvme.IOWrite, 61, 0, 16, data.Address, data.Address+4096))
					if ends(t, n, sq, 62, round) {
						fatal++
					}
					if how == "unmapped" {
						err = n.Client().Map(data)
					} else {
						err = mem.Shrink(64 << 20) // grow, in fact
					}
					if err != nil {
						t.Fatal(err)
					}
					within(t, "disable", n.Disable)
					within(t, "enable", func() error { return n.Enable(32) })
				}
				if how == "unmapped" && fatal > 0 || kind == "mem" && how == "truncated" && fatal == 0 {
					t.Errorf("%d controllers failed", fatal)
				}
				exercise(t, n, vfiousertest.Polled)
			})
		}
	}
}

// ends waits until n commands of a queue have ended, or the controller has
// failed, which it reports.
func ends(t *testing.T, n *vfiousertest.NVMe, sq *vfiousertest.SQ, left, round int) (fatal bool) {
	t.Helper()
	for start := time.Now(); left > 0; {
		k, err := sq.CQ().Poll(func(e nvme.CQE) {
			st := e.StatusField().Code()
			if st != nvme.StatusSuccess && st != nvme.StatusDataTransferError || e.CID >= 60 && st == nvme.StatusSuccess {
				t.Errorf("round %d: command %d: %v", round, e.CID, st)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if left -= k; k > 0 {
			continue
		}
		if csts, err := n.CSTS(); err != nil || csts.CFS() {
			return true
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("round %d: %d commands have not ended", round, left)
		}
	}
	return false
}

// TestResetStorm resets the controller a thousand times under I/O, in each of the
// ways there are.
func TestResetStorm(t *testing.T) {
	resets := 1000
	if testing.Short() {
		resets = 100
	}
	inMemory(t)
	_, n := neighbours(t, "file", small)
	c := n.Client()
	for round := range resets {
		sq := queue(t, n, 1)
		for i := range 8 {
			push(t, sq, rw([]nvme.IOOpcode{nvme.IOWrite, nvme.IORead}[i%2], uint16(i), uint64(i)*128, 16, uint64(i+8)<<20, uint64(i+8)<<20+4096))
		}
		var err error
		switch round % 4 {
		case 0:
			err = n.Disable()
		case 1:
			err = c.Write32(nvme.RegCC, 0) // and at once EN again
		case 2:
			err = errors.Join(c.Reset(), c.Command(0x0406))
		case 3:
			err = errors.Join(c.WriteConfig(c.Capability(0x10)+9, 1, 0x80), c.Command(0x0406))
		}
		if err == nil {
			err = n.Enable(8)
		}
		if err != nil {
			t.Fatalf("reset %d: %v", round, err)
		}
	}
	exercise(t, n, vfiousertest.Polled)
}

// TestFaultsInLog: a guest that makes mistakes all the time does not fill the
// log.
func TestFaultsInLog(t *testing.T) {
	inMemory(t)
	r, n := neighbours(t, "mem", small)
	c, before := n.Client(), r.lines.complained()
	const times = 200
	if err := n.Disable(); err != nil {
		t.Fatal(err)
	}
	for range times {
		// Pages of 8 KiB are not offered.
		if err := c.Write32(nvme.RegCC, uint32(nvme.CC(0).WithEN(true)|1<<7)); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitCSTS("fatal status", 10*time.Second, nvme.CSTS.CFS); err != nil {
			t.Fatal(err)
		}
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
		if err := queue(t, n, 1).SetTail(1000); err != nil {
			t.Fatal(err)
		}
		if err := n.Disable(); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.lines.complained() - before; got < 2 || got > 20 {
		t.Errorf("%d lines for %d times two mistakes", got, times)
	}
}

// TestEventFlood sends more event requests than there may be, again and again,
// with aborts and resets in between.
func TestEventFlood(t *testing.T) {
	_, n := neighbours(t, "mem", small)
	for round := range 30 {
		sq := n.Admin().SQ
		refused, aborted := 0, 0
		take := func(until func() bool) {
			t.Helper()
			for start := time.Now(); !until(); {
				if _, err := sq.CQ().Poll(func(e nvme.CQE) {
					switch st := e.StatusField().Code(); {
					case st == nvme.StatusAsyncEventLimitExceeded:
						refused++
					case st == nvme.StatusAbortRequested:
						aborted++
					case st != nvme.StatusSuccess || e.DW0 != 0:
						t.Errorf("round %d: command %d: %v, %#x", round, e.CID, st, e.DW0)
					}
				}); err != nil {
					t.Fatal(err)
				}
				if time.Since(start) > 10*time.Second {
					t.Fatalf("round %d: %d refused, %d aborted", round, refused, aborted)
				}
			}
		}
		for cid := range uint16(20) {
			push(t, sq, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: cid})
		}
		take(func() bool { return refused == 16 })
		for cid := range uint16(4) {
			e := nvme.SQE{CID: 100 + cid}
			nvme.Abort{CID: cid}.Put(&e)
			push(t, sq, e)
		}
		take(func() bool { return aborted == 4 })
		for cid := range uint16(3) { // left to the reset
			push(t, sq, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: cid})
		}
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
	}
	exercise(t, n, vfiousertest.Polled)
}

// TestRepeatedIDs uses identifiers of commands that have not ended. I/O commands
// all end; an admin command is refused while an event request has its identifier.
func TestRepeatedIDs(t *testing.T) {
	_, n := neighbours(t, "file", small)
	sq := queue(t, n, 1)
	for round := range 20 {
		for i := range 60 {
			push(t, sq, rw(nvme.IOWrite, uint16(round), uint64(i)*128, 128, 16<<20, 17<<20))
		}
		got := 0
		for start := time.Now(); got < 60; {
			k, err := sq.CQ().Poll(func(e nvme.CQE) {
				if e.CID != uint16(round) || e.StatusField() != nvme.StatusSuccess {
					t.Errorf("command %d: %v", e.CID, e.StatusField())
				}
			})
			if got += k; err != nil || time.Since(start) > 10*time.Second {
				t.Fatalf("%d of 60 commands have ended: %v", got, err)
			}
		}
	}
	admin := n.Admin().SQ
	push(t, admin, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: 5})
	e := nvme.SQE{CID: 5}
	nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}.Put(&e)
	for range 20 {
		push(t, admin, e)
		if got := finish(t, admin, 1); got[5].Code() != nvme.StatusCIDConflict {
			t.Errorf("identifier of an event request: %v", got[5])
		}
	}
	cured(t, n)
}

// TestUnreadCompletions: a guest that never takes its completions gets no more
// of them, and one that lies about what it has taken loses the queue. With queues
// of all sizes, the lie told at once or when the queue is full.
func TestUnreadCompletions(t *testing.T) {
	_, n := neighbours(t, "mem", small)
	for _, entries := range []int{2, 3, 16} {
		for _, lie := range []int64{-1, 0, 1, 1 << 16, 1<<32 - 1} { // -1: none; else past the size
			t.Run(fmt.Sprintf("%d/%d", entries, lie), func(t *testing.T) {
				cq, err := n.CreateCQ(1, entries, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				sq, err := n.CreateSQ(1, 64, 1)
				if err != nil {
					t.Fatal(err)
				}
				if lie >= 0 {
					if err := n.Client().Write32(nvme.CQDoorbell(1, 0), uint32(int64(entries)+lie)); err != nil {
						t.Fatal(err)
					}
				}
				for i := range 40 {
					push(t, sq, rw(nvme.IORead, uint16(i), 0, 8, 16<<20, 0))
				}
				time.Sleep(5 * time.Millisecond)
				there := 0
				for _, e := range cq.Entries() {
					if e.Phase() {
						there++
					}
				}
				if lie < 0 && there != entries-1 || lie >= 0 && there != 0 {
					t.Errorf("%d completions in a queue of %d", there, entries)
				}
				if lie < 0 { // taken after all
					got := 0
					for start := time.Now(); got < 40; {
						k, err := cq.Poll(func(nvme.CQE) {})
						if got += k; err != nil || time.Since(start) > 10*time.Second {
							t.Fatalf("%d of 40 commands have ended: %v", got, err)
						}
					}
				}
				cured(t, n)
				second(t, n)
			})
		}
	}
}

// TestHostileShadows: shadow doorbells that share a page with one another or
// with queues lead to nonsense, for the guest that made them alone.
func TestHostileShadows(t *testing.T) {
	_, n := neighbours(t, "mem", small)
	const page = 16 << 20
	for name, buffers := range map[string]func(sq, cq uint64) nvme.DoorbellBuffer{
		"one page":         func(uint64, uint64) nvme.DoorbellBuffer { return nvme.DoorbellBuffer{Shadow: page, EventIndex: page} },
		"submission queue": func(sq, _ uint64) nvme.DoorbellBuffer { return nvme.DoorbellBuffer{Shadow: sq, EventIndex: page} },
		"completion queue": func(_, cq uint64) nvme.DoorbellBuffer { return nvme.DoorbellBuffer{Shadow: page, EventIndex: cq} },
		"one over another": func(sq, cq uint64) nvme.DoorbellBuffer { return nvme.DoorbellBuffer{Shadow: cq, EventIndex: sq} },
		"the admin queue's": func(uint64, uint64) nvme.DoorbellBuffer {
			return nvme.DoorbellBuffer{Shadow: page, EventIndex: 1 << 20}
		},
	} {
		t.Run(name, func(t *testing.T) {
			sqAt, cqAt := uint64(18<<20), uint64(19<<20)
			for _, fields := range []interface{ Put(*nvme.SQE) }{nvme.CreateCQ{QID: 1, QSIZE: 63, PC: true}, nvme.CreateSQ{QID: 1, QSIZE: 63, PC: true, CQID: 1}} {
				e := nvme.SQE{PRP1: cqAt}
				if _, ok := fields.(nvme.CreateSQ); ok {
					e.PRP1 = sqAt
				}
				fields.Put(&e)
				if _, err := n.AdminCommand(e); err != nil {
					t.Fatal(err)
				}
			}
			var e nvme.SQE
			buffers(sqAt, cqAt).Put(&e)
			e.CID = 77
			push(t, n.Admin().SQ, e) // its completion may be overwritten
			time.Sleep(time.Millisecond)
			for i := range uint32(200) {
				if err := n.Client().Write32(nvme.SQDoorbell(1, 0), i%64); err != nil {
					t.Fatal(err)
				}
			}
			cured(t, n)
			second(t, n)
		})
	}
}
