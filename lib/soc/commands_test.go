// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestCompareAndWrite sends fused pairs at every place of a fetch batch, among
// commands of another queue.
func TestCompareAndWrite(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			_, n := newDrive(t, kind, small)
			other, err := n.CreatePair(2, 64, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			stop, done := make(chan struct{}), make(chan struct{})
			go func() { defer close(done); verify(t, other, 1, stop) }()
			defer func() { close(stop); <-done }()
			if _, err := n.CreateCQ(1, 256, vfiousertest.Polled); err != nil {
				t.Fatal(err)
			}
			sq, err := n.CreateSQ(1, 256, 1)
			if err != nil {
				t.Fatal(err)
			}
			mem := n.Client().Memory()
			old, err := mem.NewBuffer(512, vfiousertest.Shape{})
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := mem.NewBuffer(512, vfiousertest.Shape{})
			if err != nil {
				t.Fatal(err)
			}
			last := make([]byte, 512) // what block 0 has
			for before := range 140 {
				next := pattern(512, uint64(before))
				old.Write(last)
				fresh.Write(next)
				read := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, CID: 1000}
				nvme.RW{SLBA: 100}.Put(&read)
				scratch, err := mem.NewBuffer(512, vfiousertest.Shape{})
				if err != nil {
					t.Fatal(err)
				}
				scratch.Set(&read)
				for range before {
					sq.Push(&read)
				}
				compare := nvme.SQE{Opcode: uint8(nvme.IOCompare), NSID: 1, CID: 1}
				nvme.RW{}.Put(&compare)
				compare.SetFuse(nvme.FuseFirst)
				old.Set(&compare)
				write := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, CID: 2}
				nvme.RW{}.Put(&write)
				write.SetFuse(nvme.FuseSecond)
				fresh.Set(&write)
				sq.Push(&compare)
				sq.Push(&write)
				got := finish(t, sq, before+2)
				if got[1] != nvme.StatusSuccess || got[2] != nvme.StatusSuccess {
					t.Fatalf("pair after %d commands: %v, %v", before, got[1], got[2])
				}
				scratch.Free()
				last = next
			}
			// One that does not match writes nothing.
			old.Write(pattern(512, 999))
			compare := nvme.SQE{Opcode: uint8(nvme.IOCompare), NSID: 1, CID: 1}
			compare.SetFuse(nvme.FuseFirst)
			old.Set(&compare)
			write := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, CID: 2}
			write.SetFuse(nvme.FuseSecond)
			old.Set(&write)
			sq.Push(&compare)
			sq.Push(&write)
			got := finish(t, sq, 2)
			if got[1].Code() != nvme.StatusCompareFailure || got[2].Code() != nvme.StatusAbortedFailedFused {
				t.Errorf("pair that does not match: %v, %v", got[1], got[2])
			}
			data := make([]byte, 512)
			if err := other.Read(1, 0, data, 512); err != nil || !bytes.Equal(data, last) {
				t.Errorf("block after it: %v, unchanged %t", err, bytes.Equal(data, last))
			}
			// A first half alone does not hang.
			sq.Push(&compare)
			if got := finish(t, sq, 1); got[1].Code() != nvme.StatusAbortedMissingFused {
				t.Errorf("first half alone: %v", got[1])
			}
		})
	}
}

// finish rings and waits for n completions; it returns the last status of each
// command identifier.
func finish(t *testing.T, sq *vfiousertest.SQ, n int) map[uint16]nvme.Status {
	t.Helper()
	if err := sq.Ring(); err != nil {
		t.Fatal(err)
	}
	got := make(map[uint16]nvme.Status)
	for deadline := time.Now().Add(10 * time.Second); n > 0; {
		k, err := sq.CQ().Poll(func(e nvme.CQE) { got[e.CID] = e.StatusField() })
		if n -= k; err != nil || time.Now().After(deadline) {
			t.Fatalf("%d completions missing: %v", n, err)
		}
	}
	return got
}

// TestCopyVerifyFormat uses the commands that move no data of the host's.
func TestCopyVerifyFormat(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			_, n := newDrive(t, kind, small)
			q, err := n.CreatePair(1, 64, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			data := pattern(64<<10, 3)
			if err := q.Write(1, 1000, data, 512); err != nil {
				t.Fatal(err)
			}
			verify := nvme.SQE{Opcode: uint8(nvme.IOVerify), NSID: 1}
			nvme.RW{SLBA: 1000, NLB: 127}.Put(&verify)
			if st := statusOf(q.Do(verify)); st != nvme.StatusSuccess {
				t.Error("verify:", st)
			}
			ranges, err := n.Client().Memory().NewBuffer(64, vfiousertest.Shape{})
			if err != nil {
				t.Fatal(err)
			}
			list := []nvme.CopyRange{{SLBA: 1064, NLB: 63}, {SLBA: 1000, NLB: 63}}
			ranges.Write(nvme.SliceBytes(list))
			e := nvme.SQE{NSID: 1}
			nvme.Copy{SDLBA: 5000, NR: 1}.Put(&e)
			ranges.Set(&e)
			if st := statusOf(q.Do(e)); st != nvme.StatusSuccess {
				t.Fatal("copy:", st)
			}
			got := make([]byte, len(data))
			want := append(bytes.Clone(data[32<<10:]), data[:32<<10]...)
			if err := q.Read(1, 5000, got, 512); err != nil || !bytes.Equal(got, want) {
				t.Errorf("copied: %v, equal %t", err, bytes.Equal(got, want))
			}
			format := nvme.SQE{NSID: 1}
			nvme.FormatNVM{SES: nvme.SESUserData}.Put(&format)
			if _, err := n.AdminCommand(format); err != nil {
				t.Fatal("format:", err)
			}
			if err := q.Read(1, 5000, got, 512); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
				t.Errorf("after a format: %v, zero %t", err, bytes.Equal(got, make([]byte, len(got))))
			}
		})
	}
}

// TestAbort aborts an event request, which ends; a command that is not there,
// which is not aborted; and commands in flight, which end one way or the other.
func TestAbort(t *testing.T) {
	_, n := newDrive(t, "file", small)
	q, err := n.CreatePair(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	buf, err := n.Client().Memory().NewBuffer(1<<20, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	ended := 0
	for round := range 20 {
		var last uint16
		for i := range 16 {
			e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, CID: uint16(i)}
			nvme.RW{SLBA: uint64(i) * 2048, NLB: 2047}.Put(&e)
			buf.Set(&e)
			if err := q.Submit(e, func(c nvme.CQE) {
				last = c.CID
				if st := c.StatusField().Code(); st != nvme.StatusSuccess && st != nvme.StatusAbortRequested {
					t.Errorf("round %d: %v", round, c.StatusField())
				}
				ended++
			}); err != nil {
				t.Fatal(err)
			}
		}
		for cid := range uint16(16) {
			var abort nvme.SQE
			nvme.Abort{SQID: 1, CID: cid}.Put(&abort)
			if _, err := n.AdminCommand(abort); err != nil {
				t.Fatal("abort:", err)
			}
		}
		for deadline := time.Now().Add(10 * time.Second); q.Outstanding() > 0; {
			if err := q.Poll(); err != nil || time.Now().After(deadline) {
				t.Fatalf("%d commands have not ended, the last was %d: %v", q.Outstanding(), last, err)
			}
		}
	}
	if ended != 20*16 {
		t.Errorf("%d commands ended, want %d", ended, 20*16)
	}
	var abort nvme.SQE
	nvme.Abort{SQID: 9, CID: 1}.Put(&abort)
	if e, err := n.AdminCommand(abort); err != nil || e.DW0&1 != 1 {
		t.Errorf("abort of nothing: DW0 %#x, %v", e.DW0, err)
	}
}

// TestShadowAgain configures shadow doorbells anew while queues are in use. Their
// registers are older than the shadow doorbells by then: they do not count.
func TestShadowAgain(t *testing.T) {
	t.Parallel()
	_, n := newDrive(t, "mem", small)
	q, err := n.CreatePair(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 30 {
		for range 40 {
			if err := q.Submit(nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1}, func(nvme.CQE) {}); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		for deadline := time.Now().Add(10 * time.Second); q.Outstanding() > 0; {
			if err := q.Poll(); err != nil || time.Now().After(deadline) {
				t.Fatalf("round %d: %d commands have not ended: %v", round, q.Outstanding(), err)
			}
		}
		if err := n.EnableShadowDoorbells(); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Flush(1); err != nil {
		t.Error(err)
	}
}

// TestSmallAdminQueue parks as many event requests as there may be in admin
// queues that have hardly more entries: other commands come through all the
// same, also after a restart.
func TestSmallAdminQueue(t *testing.T) {
	for entries := 3; entries <= 6; entries++ {
		t.Run(fmt.Sprint(entries), func(t *testing.T) {
			t.Parallel()
			r, n := newDrive(t, "mem", small)
			if err := n.Enable(entries); err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				e := nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: uint16(100 + i)}
				if sq := n.Admin().SQ; !sq.Push(&e) || sq.Ring() != nil {
					t.Fatal("no room")
				}
				// Its end tells that the request before has been fetched.
				if _, err := n.GetFeatures(nvme.FeatNumberOfQueues); err != nil {
					t.Fatal(err)
				}
			}
			r.stopSoc()
			r.startSoc()
			if _, err := n.GetFeatures(nvme.FeatNumberOfQueues); err != nil {
				t.Fatal("after a restart:", err)
			}
			exercise(t, n, vfiousertest.Polled)
		})
	}
}
