// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// TestStorm has hosts connect, write, read, reset and go at any time, all at once. What one has written it reads, and nothing is left behind.
func TestStorm(t *testing.T) {
	f := start(t, Limits{Memory: 16 << 20, Share: 1 << 20})
	t.Run("hosts", func(t *testing.T) {
		for host := range 6 {
			t.Run(fmt.Sprint(host), func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(uint64(host), 1))
				for range 12 {
					f.visit(t, r, host)
				}
			})
		}
	})
	fabricstest.WaitFor(t, "the associations to leave", func() bool { return len(f.listener.Associations()) == 0 })
	fabricstest.WaitFor(t, "the pool to be whole", func() bool { return f.whole(t) })
	if n := f.holder.count.Load(); n != 0 {
		t.Errorf("%d requests are held", n)
	}
}

// whole reports whether every buffer is back in its pool.
func (f *fixture) whole(t *testing.T) bool {
	ok := true
	for _, s := range f.target.shards {
		if err := s.p.Do(func() {
			ok = ok && len(s.pool.large)*largeBuffer+len(s.pool.small)*smallBuffer == len(s.pool.memory) && len(s.pool.turns) == 0 && len(s.queues) == 0
		}); err != nil {
			t.Error(err)
		}
	}
	return ok
}

// visit is one association of a host, whose blocks on the shared volume are its own.
func (f *fixture) visit(t *testing.T, r *rand.Rand, host int) {
	o := fabricstest.Options{Host: byte(host), HeaderDigest: r.IntN(2) == 0, DataDigest: r.IntN(2) == 0, HPDA: uint8(r.IntN(32)), InCapsule: 512 << r.IntN(5)}
	admin := f.enabled(t, o)
	defer admin.Conn.Close()
	var event fabricstest.Request
	event.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
	if r.IntN(2) == 0 {
		admin.Start(&event)
	}
	queues := 1 + uint16(r.IntN(3))
	for qid := uint16(1); qid <= queues; qid++ {
		q := f.io(t, admin, o, qid, uint8(r.IntN(2))*fabrics.CATTRNoFlowControl)
		base := host * 8 << 20
		requests := make([]fabricstest.Request, 1+r.IntN(32))
		want := make([][]byte, len(requests))
		q.Corked = true
		for i := range requests {
			n := 512 << r.IntN(9)
			want[i] = pattern(r.Uint64(), n)
			requests[i] = fabricstest.Request{SQE: rw(nvme.IOWrite, 1, base+i*(256<<10), n), To: want[i]}
			q.Start(&requests[i])
		}
		q.Flush()
		for range requests {
			if done, err := q.Next(); err != nil || done.CQE.StatusField() != 0 {
				t.Fatalf("write: %+v, %v", done, err)
			}
		}
		q.Corked = false
		for i := range requests {
			n := len(want[i])
			read := fabricstest.Request{SQE: rw(nvme.IORead, 1, base+i*(256<<10), n), From: make([]byte, n)}
			if q.Do(&read); read.CQE.StatusField() != 0 || !bytes.Equal(read.From, want[i]) {
				t.Fatalf("read of %d bytes: %v", n, read.CQE.StatusField())
			}
		}
		hold(q, r.IntN(8), 512<<r.IntN(5)) // not so much that there is not enough left
		if r.IntN(3) == 0 {
			q.Conn.Close()
		} else if qid == queues {
			hold(q, r.IntN(8), 1<<20)
		}
	}
	switch r.IntN(3) {
	case 0:
		var reset fabricstest.Request
		fabrics.Property{OFST: nvme.RegCC}.PutSet(&reset.SQE)
		admin.Start(&reset)
		for done := (*fabricstest.Request)(nil); done != &reset; {
			var err error
			if done, err = admin.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(2) == 0 {
			admin.WaitStatus(func(c nvme.CSTS) bool { return c == 0 })
		}
	case 1:
		f.target.Disconnect(func(a Association) bool { return a.CNTLID == admin.CNTLID })
	}
}

// hold starts reads and writes of n bytes that are in flight at the end: held by the volume, waiting for buffers, or for data that never
// comes.
func hold(q *fabricstest.Queue, count, n int) {
	for range count {
		q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, n), From: make([]byte, n)})
		q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 3, 0, n), To: make([]byte, n)})
	}
}
