// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// TestAllocations: a command allocates nothing, whichever way its data goes.
func TestAllocations(t *testing.T) {
	f := start(t, Limits{})
	for _, digests := range []bool{false, true} {
		o := fabricstest.Options{HeaderDigest: digests, DataDigest: digests}
		admin := f.enabled(t, o)
		q := f.io(t, admin, o, 1, fabrics.CATTRNoFlowControl)
		capsule := func(e nvme.SQE, sgl nvme.SGLDescriptor, data []byte) []byte {
			e.SetPSDT(nvme.PSDTSGL)
			e.SetSGL1(sgl)
			c := fabrics.CapsuleCmd{SQE: e}
			return q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), data)
		}
		size := func(t fabrics.PDUType, n int) int {
			var h fabrics.CommonHeader
			return int(q.In.Make(&h, t, 0, uint32(n)).Length)
		}
		const n = 256 << 10
		read := capsule(rw(nvme.IORead, 1, 0, n), fabrics.InTransport(n), nil)
		inline := capsule(rw(nvme.IOWrite, 1, 0, 4096), fabrics.InCapsule(4096), make([]byte, 4096))
		write := capsule(rw(nvme.IOWrite, 1, 0, 128<<10), fabrics.InTransport(128<<10), nil)
		got := make([]byte, n+1024)
		say := func(p []byte, answer int) {
			if _, err := q.Conn.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(q.Conn, got[:answer]); err != nil {
				t.Fatal(err)
			}
		}
		// The record, and so the R2T, is the same each time.
		say(write, size(fabrics.TypeR2T, 0))
		d := fabrics.Data{TTAG: binary.LittleEndian.Uint16(got[10:]), DATAL: 128 << 10}
		h2c := q.Encode(fabrics.TypeH2CData, fabrics.FlagLast, fabrics.Bytes(&d), make([]byte, 128<<10))
		say(h2c, size(fabrics.TypeCapsuleResp, 0))
		for name, f := range map[string]func(){
			"read":             func() { say(read, size(fabrics.TypeC2HData, n)) },
			"write in capsule": func() { say(inline, size(fabrics.TypeCapsuleResp, 0)) },
			"write by R2T": func() {
				say(write, size(fabrics.TypeR2T, 0))
				say(h2c, size(fabrics.TypeCapsuleResp, 0))
			},
		} {
			// Nobody else allocates; the runtime may now and then.
			if got := testing.AllocsPerRun(200, f); got != 0 {
				t.Errorf("%s, digests %v: %v allocations", name, digests, got)
			}
		}
	}
}

// Benchmark is what a host of one queue sees, over loopback.
func Benchmark(b *testing.B) {
	for _, volume := range []struct {
		name string
		nsid uint32
	}{{"null", 2}, {"mem", 1}} {
		for _, op := range []nvme.IOOpcode{nvme.IORead, nvme.IOWrite} {
			for _, n := range []int{4 << 10, 128 << 10} {
				for _, depth := range []int{1, 32, 128} {
					b.Run(fmt.Sprintf("%s/%v/%dK/%d", volume.name, op, n>>10, depth), func(b *testing.B) {
						f := start(b, Limits{})
						admin := f.enabled(b, fabricstest.Options{})
						q := f.io(b, admin, fabricstest.Options{}, 1, fabrics.CATTRNoFlowControl)
						load(b, q, rw(op, volume.nsid, 0, n), n, depth)
					})
				}
			}
		}
	}
}

// load runs b.N commands, depth of them at a time.
func load(b *testing.B, q *fabricstest.Queue, e nvme.SQE, n, depth int) {
	requests := make([]fabricstest.Request, depth)
	for i := range requests {
		requests[i].SQE = e
		if e.Opcode == uint8(nvme.IORead) {
			requests[i].From = make([]byte, n)
		} else {
			requests[i].To = make([]byte, n)
		}
	}
	_ = q.Conn.SetDeadline(time.Time{})
	b.SetBytes(int64(n))
	b.ResetTimer()
	begun := 0
	q.Corked = true
	for i := range min(depth, b.N) {
		q.Start(&requests[i])
		begun++
	}
	q.Flush()
	for range b.N {
		r, err := q.Next()
		if err != nil || r.CQE.StatusField() != 0 {
			b.Fatalf("%+v, %v", r, err)
		}
		if begun < b.N {
			q.Start(r)
			begun++
			q.Flush()
		}
	}
}
