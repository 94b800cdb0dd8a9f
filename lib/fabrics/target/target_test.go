// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// TestCommands is the life of an association, with and without digests, alignment and flow control.
func TestCommands(t *testing.T) {
	for _, o := range []fabricstest.Options{
		{},
		{HeaderDigest: true},
		{DataDigest: true, Chunk: 4096},
		{HeaderDigest: true, DataDigest: true, HPDA: 31, InCapsule: 512},
		{HPDA: 3, Chunk: 70000},
	} {
		for _, cattr := range []uint8{0, fabrics.CATTRNoFlowControl} {
			t.Run(fmt.Sprintf("%+v/%d", o, cattr), func(t *testing.T) {
				f := start(t, Limits{})
				admin := f.enabled(t, o)
				f.identify(t, admin)
				q := f.io(t, admin, o, 1, cattr)
				for i, n := range []int{512, 4096, 8192, 8704, 32768, 33280, 131072, 135168, dma.MaxTransfer} {
					f.verify(t, q, 1<<20*i, n, cattr != 0)
				}
				if list := f.listener.Associations(); len(list) != 1 || list[0].Queues != 1 || list[0].HostNQN != hostNQN ||
					list[0].SubsystemNQN != testNQN || list[0].CNTLID != admin.CNTLID || !list[0].Peer.IsValid() {
					t.Errorf("associations: %+v", list)
				}
			})
		}
	}
}

// verify writes n bytes at off and reads them.
func (f *fixture) verify(t *testing.T, q *fabricstest.Queue, off, n int, noFlow bool) {
	t.Helper()
	data := pattern(uint64(off), n)
	w := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, off, n), To: data}
	if st := q.Do(&w); st != 0 {
		t.Fatalf("write of %d bytes: %v", n, st)
	}
	if inCapsule := n <= q.Options.InCapsule; inCapsule != (w.R2Ts == 0) {
		t.Errorf("write of %d bytes: %d R2Ts", n, w.R2Ts)
	}
	r := fabricstest.Request{SQE: rw(nvme.IORead, 1, off, n), From: make([]byte, n)}
	if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, data) {
		t.Fatalf("read of %d bytes: %v, equal: %v", n, st, bytes.Equal(r.From, data))
	}
	if r.Success != noFlow {
		t.Errorf("read without flow control %v: SUCCESS flag %v", noFlow, r.Success)
	}
}

// identify holds what a controller over fabrics says of itself.
func (f *fixture) identify(t *testing.T, q *fabricstest.Queue) {
	t.Helper()
	var id nvme.IdentifyController
	r := fabricstest.Request{From: nvme.Bytes(&id)}
	nvme.Identify{CNS: nvme.CNSController}.Put(&r.SQE)
	if st := q.Do(&r); st != 0 {
		t.Fatal(st)
	}
	if id.CNTLID != q.CNTLID || id.IOCCSZ != (64+8192)/16 || id.IORCSZ != 1 || id.MSDBD != 1 || id.MAXCMD != 128 || id.OFCS&1 == 0 ||
		id.KAS == 0 || id.SGLS&3 != 1 || id.SGLS&nvme.SGLSTransportBlocks == 0 || id.CNTRLTYPE != nvme.ControllerTypeIO {
		t.Errorf("Identify Controller: %+v", id)
	}
}

// TestHeads: SQHD follows the commands of a queue with flow control.
func TestHeads(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	q := fabricstest.Initialize(t, f.addr, fabricstest.Options{})
	cqe := q.Connect(fabrics.ConnectCommand{QID: 1, SQSIZE: 3}, fabricstest.ConnectData(hostNQN, testNQN, admin.CNTLID))
	if cqe.StatusField() != 0 || cqe.SQHead != 1 {
		t.Fatalf("Connect: %+v", cqe)
	}
	for i := range 9 {
		r := fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, 512), From: make([]byte, 512)}
		if st := q.Do(&r); st != 0 || int(r.CQE.SQHead) != (i+2)%4 {
			t.Errorf("command %d: %v, SQHD %d", i, st, r.CQE.SQHead)
		}
	}
	other := fabricstest.Initialize(t, f.addr, fabricstest.Options{})
	cqe = other.Connect(fabrics.ConnectCommand{QID: 2, SQSIZE: 3, CATTR: fabrics.CATTRNoFlowControl}, fabricstest.ConnectData(hostNQN, testNQN, admin.CNTLID))
	if cqe.StatusField() != 0 || cqe.SQHead != 0xffff {
		t.Errorf("Connect without flow control: %+v", cqe)
	}
}

// TestMany has as many commands in flight as the queue has entries, more data than an association may hold among them.
func TestMany(t *testing.T) {
	f := start(t, Limits{Memory: 4 << 20, Share: 1 << 20})
	admin := f.enabled(t, fabricstest.Options{})
	for qid := uint16(1); qid <= 3; qid++ {
		q := f.io(t, admin, fabricstest.Options{DataDigest: qid == 2}, qid, fabrics.CATTRNoFlowControl)
		const n = 256 << 10
		want := make([][]byte, 64)
		for round := range 2 {
			requests := make([]fabricstest.Request, len(want))
			q.Corked = true
			for i := range requests {
				if round == 0 {
					want[i] = pattern(uint64(i)+1, n)
					requests[i] = fabricstest.Request{SQE: rw(nvme.IOWrite, 1, i*n, n), To: want[i]}
				} else {
					requests[i] = fabricstest.Request{SQE: rw(nvme.IORead, 1, i*n, n), From: make([]byte, n)}
				}
				q.Start(&requests[i])
			}
			q.Flush()
			for range requests {
				r, err := q.Next()
				if err != nil || r.CQE.StatusField() != 0 {
					t.Fatalf("queue %d, round %d: %+v, %v", qid, round, r, err)
				}
			}
			for i := range requests {
				if round == 1 && !bytes.Equal(requests[i].From, want[i]) {
					t.Fatalf("queue %d: block %d is not what was written", qid, i)
				}
			}
		}
	}
}

// TestShare: a host that holds all it may, with more waiting, is not in the way of others.
func TestShare(t *testing.T) {
	f := start(t, Limits{Memory: 8 << 20, Share: 1 << 20})
	greedy, other := f.enabled(t, fabricstest.Options{}), f.enabled(t, fabricstest.Options{})
	for qid := uint16(1); qid <= 4; qid++ {
		hold(f.io(t, greedy, fabricstest.Options{}, qid, 0), 4, dma.MaxTransfer)
	}
	fabricstest.WaitFor(t, "a read on each poller", func() bool { return f.holder.count.Load() == 2 })
	for qid := uint16(1); qid <= 2; qid++ {
		q := f.io(t, other, fabricstest.Options{}, qid, 0)
		f.verify(t, q, 0, dma.MaxTransfer, false)
		f.verify(t, q, 0, 16384, false)
	}
	if n := f.holder.count.Load(); n != 2 {
		t.Errorf("%d requests of the greedy one are in flight", n)
	}
}

// TestNoLeak: a host does not see what another has read, even of a volume that fills nothing in.
func TestNoLeak(t *testing.T) {
	f := start(t, Limits{})
	secret := pattern(99, 128<<10)
	for i := range 8 {
		admin := f.enabled(t, fabricstest.Options{})
		for qid := uint16(1); qid <= 2; qid++ { // one of them on each poller
			q := f.io(t, admin, fabricstest.Options{}, qid, 0)
			for _, n := range []int{4096, 128 << 10} {
				r := fabricstest.Request{SQE: rw(nvme.IORead, 2, 0, n), From: make([]byte, n)}
				if st := q.Do(&r); st != 0 || !bytes.Equal(r.From, make([]byte, n)) {
					t.Fatalf("association %d: %v; data of others: %v", i, st, !bytes.Equal(r.From, make([]byte, n)))
				}
			}
			for _, n := range []int{4096, 128 << 10} {
				w := fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, n), To: secret[:n]}
				r := fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, n), From: make([]byte, n)}
				if q.Do(&w) != 0 || q.Do(&r) != 0 || !bytes.Equal(r.From, secret[:n]) {
					t.Fatal("write and read")
				}
			}
			q.Conn.Close()
		}
		admin.Conn.Close()
	}
}

// TestCapsuleSize: what an I/O queue takes in a capsule is a limit of the target; an admin queue takes 8 KiB.
func TestCapsuleSize(t *testing.T) {
	f := start(t, Limits{InCapsule: 1024})
	admin := f.enabled(t, fabricstest.Options{})
	var id nvme.IdentifyController
	r := fabricstest.Request{From: nvme.Bytes(&id)}
	nvme.Identify{CNS: nvme.CNSController}.Put(&r.SQE)
	if st := admin.Do(&r); st != 0 || id.IOCCSZ != (64+1024)/16 {
		t.Errorf("%v, IOCCSZ %d", st, id.IOCCSZ)
	}
	set := fabricstest.Request{To: make([]byte, 8192)}
	nvme.SetFeatures{FID: nvme.FeatHostBehavior}.Put(&set.SQE)
	if st := admin.Do(&set); st != 0 {
		t.Errorf("8 KiB on the admin queue: %v", st)
	}
	q := f.io(t, admin, fabricstest.Options{InCapsule: 1024}, 1, 0)
	f.verify(t, q, 0, 1024, false)
	f.verify(t, q, 0, 1536, false)
	q.Options.InCapsule = 1536
	q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 1536), To: make([]byte, 1536)})
	if v := q.Violation(); v != (fabrics.Violation{FES: fabrics.FESInvalidHeader, FEI: 4}) {
		t.Errorf("too much in a capsule: %v", v)
	}
}

// TestFused: the halves of a pair may arrive apart.
func TestFused(t *testing.T) {
	f := start(t, Limits{})
	admin := f.enabled(t, fabricstest.Options{})
	q := f.io(t, admin, fabricstest.Options{}, 1, 0)
	before, after := pattern(1, 512), pattern(2, 512)
	half := func(op nvme.IOOpcode, fuse nvme.Fuse, data []byte) *fabricstest.Request {
		t.Helper()
		r := &fabricstest.Request{SQE: rw(op, 1, 0, 512), To: data}
		r.SQE.SetFuse(fuse)
		q.Start(r)
		f.identify(t, admin) // some turns later
		return r
	}
	both := func(a, b *fabricstest.Request) (nvme.Status, nvme.Status) {
		t.Helper()
		for range 2 {
			if _, err := q.Next(); err != nil {
				t.Fatal(err)
			}
		}
		return a.CQE.StatusField().Code(), b.CQE.StatusField().Code()
	}
	if st := q.Do(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 512), To: before}); st != 0 {
		t.Fatal(st)
	}
	if a, b := both(half(nvme.IOCompare, nvme.FuseFirst, before), half(nvme.IOWrite, nvme.FuseSecond, after)); a != 0 || b != 0 {
		t.Errorf("pair: %v, %v", a, b)
	}
	if a, b := both(half(nvme.IOCompare, nvme.FuseFirst, before), half(nvme.IOWrite, nvme.FuseSecond, before)); a != nvme.StatusCompareFailure || b != nvme.StatusAbortedFailedFused {
		t.Errorf("pair that does not match: %v, %v", a, b)
	}
	r := fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, 512), From: make([]byte, 512)}
	alone := half(nvme.IOCompare, nvme.FuseFirst, after)
	q.Start(&r)
	if a, b := both(alone, &r); a != nvme.StatusAbortedMissingFused || b != 0 || !bytes.Equal(r.From, after) {
		t.Errorf("first half alone: %v; then: %v, what was written is there: %v", a, b, bytes.Equal(r.From, after))
	}
	half(nvme.IOCompare, nvme.FuseFirst, after) // and the connection ends
}
