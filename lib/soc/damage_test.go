// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestDamagedState: a runtime that adopts a controller whose state another one has
// damaged lives, and so do its other guests; the guest's reset is the cure.
func TestDamagedState(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 4
	}
	r := newProcesses(t, 2)
	r.volume("d1", "mem", "size", "32M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	rng := rand.New(rand.NewPCG(3, 4))
	for range rounds {
		for id := range uint16(2) {
			q, err := n.CreatePair(id+1, 32, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			for range 8 { // some of them will be outstanding
				e := nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1}
				if err := q.Submit(e, func(nvme.CQE) {}); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.killSoc()
		all, giveBack := r.borrow()
		fd, err := unix.Dup(all[0].files[2])
		if err != nil {
			t.Fatal(err)
		}
		state, err := qpair.Open[qpair.State](fd)
		if err != nil {
			t.Fatal(err)
		}
		damage(state.Page, rng)
		state.Close()
		giveBack()
		r.startSoc()
		pid := call[api.RuntimeInfo](r, r.client(), "GET", "/v1/runtime", nil).PID
		within(t, "reset", func() error { return errors.Join(n.Client().Reset(), n.Client().Command(0x0406)) })
		within(t, "enable", func() error { return n.Enable(32) })
		exercise(t, n, vfiousertest.Polled)
		if now := call[api.RuntimeInfo](r, r.client(), "GET", "/v1/runtime", nil).PID; now != pid {
			t.Errorf("process %d after %d", now, pid)
		}
		within(t, "disable", n.Disable)
		within(t, "enable", func() error { return n.Enable(32) })
	}
}

// damage changes something of what a runtime has left.
func damage(s *qpair.State, rng *rand.Rand) {
	// Small numbers get further than large ones.
	number := func() uint64 { return rng.Uint64() >> rng.IntN(64) }
	for range 1 + rng.IntN(20) {
		id := rng.IntN(3)
		cq, sq := &s.CQ[id], &s.SQ[id]
		slot := &sq.Slots[rng.IntN(40)]
		page := &s.Controller[rng.IntN(2)]
		switch rng.IntN(17) {
		case 0:
			cq.Addr = number()
		case 1:
			cq.Entries = uint32(number())
		case 2:
			cq.Vector = uint32(number())
		case 3:
			cq.Tail = number()
		case 4:
			sq.Addr = number()
		case 5:
			sq.Entries = uint32(number())
		case 6:
			sq.CQID = uint32(number())
		case 7:
			sq.Head = number()
		case 8:
			slot.State = uint32(number())
		case 9:
			slot.N = number()
		case 10:
			slot.CQN = number()
		case 11:
			slot.Aux[rng.IntN(len(slot.Aux))] = number()
		case 12:
			b := nvme.Bytes(&slot.SQE)
			b[rng.IntN(len(b))] = byte(number())
		case 13:
			page.Size = uint32(number())
		case 14:
			page.Payload[rng.IntN(256)] = byte(number())
		case 15:
			s.Header.Selector = number()
		case 16:
			s.CQ[1+rng.IntN(qpair.MaxQueues-1)] = *cq
		}
	}
}
