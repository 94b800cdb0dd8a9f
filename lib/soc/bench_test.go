// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// BenchmarkQueuePair drives one queue pair end to end: the fake client rings
// mapped doorbells and polls for completions, as a polling guest driver does.
// One operation is one command; B/s counts its data.
func BenchmarkQueuePair(b *testing.B) {
	for _, kind := range []string{"null", "mem", "file"} {
		for _, op := range []nvme.IOOpcode{nvme.IORead, nvme.IOWrite} {
			for _, size := range []int{4 << 10, 128 << 10} {
				for _, depth := range []int{1, 32, 128} {
					name := fmt.Sprintf("%s/%s/%dk/qd%d", kind, op, size>>10, depth)
					b.Run(name, func(b *testing.B) { benchPair(b, kind, op, size, depth) })
				}
			}
		}
	}
}

// benchPair keeps depth commands in flight until b.N have ended.
func benchPair(b *testing.B, kind string, op nvme.IOOpcode, size, depth int) {
	const volume = 256 << 20
	r := newRig(b)
	r.volume("d1", kind, "size", fmt.Sprint(volume))
	r.wire("vm1", api.DoorbellsMap, "d1")
	n := r.guest("vm1", vfiousertest.MemoryOptions{Low: 128 << 20, Sealed: true})
	if err := n.Enable(32); err != nil {
		b.Fatal(err)
	}
	cq, err := n.CreateCQ(1, 256, vfiousertest.Polled)
	if err != nil {
		b.Fatal(err)
	}
	sq, err := n.CreateSQ(1, 256, 1)
	if err != nil {
		b.Fatal(err)
	}
	commands := make([]nvme.SQE, depth)
	rng := rand.New(rand.NewPCG(7, uint64(size)))
	mem := n.Client().Memory()
	for i := range commands {
		buf, err := mem.NewBuffer(size, vfiousertest.Shape{})
		if err != nil {
			b.Fatal(err)
		}
		commands[i] = nvme.SQE{Opcode: uint8(op), CID: uint16(i), NSID: 1}
		buf.Set(&commands[i])
	}
	if kind == "file" {
		fill(b, mem, sq, cq, volume)
	}
	send := func(cid uint16) {
		e := &commands[cid]
		nvme.RW{SLBA: uint64(rng.IntN(volume/size)) * uint64(size/512), NLB: uint16(size/512 - 1)}.Put(e)
		if !sq.Push(e) {
			b.Fatal("submission queue is full")
		}
	}
	sent, done := 0, 0
	again := func(e nvme.CQE) {
		if st := e.StatusField(); st != nvme.StatusSuccess {
			b.Fatal(st)
		}
		done++
		if sent < b.N {
			send(e.CID)
			sent++
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for sent < min(depth, b.N) {
		send(uint16(sent))
		sent++
	}
	for done < b.N {
		if err := sq.Ring(); err != nil {
			b.Fatal(err)
		}
		for {
			n, err := cq.Poll(again)
			if err != nil {
				b.Fatal(err)
			}
			if n > 0 {
				break
			}
			runtime.Gosched()
		}
	}
}

// fill writes the whole volume once, so that reads find blocks.
func fill(b *testing.B, mem *vfiousertest.Memory, sq *vfiousertest.SQ, cq *vfiousertest.CQ, volume int) {
	b.Helper()
	const size = 1 << 20
	buf, err := mem.NewBuffer(size, vfiousertest.Shape{})
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Free()
	e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1}
	buf.Set(&e)
	for at := 0; at < volume; at += size {
		nvme.RW{SLBA: uint64(at / 512), NLB: size/512 - 1}.Put(&e)
		sq.Push(&e)
		if err := sq.Ring(); err != nil {
			b.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; {
			n, err := cq.Poll(func(e nvme.CQE) {
				if st := e.StatusField(); st != nvme.StatusSuccess {
					b.Fatal(st)
				}
			})
			if err != nil || time.Now().After(deadline) {
				b.Fatal("filling the volume:", err)
			}
			if n == 1 {
				break
			}
			runtime.Gosched()
		}
	}
}
