// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"math/rand/v2"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// script is a sequence of what a host may do: chunks of a byte that says what,
// and a submission queue entry.
type script []byte

const chunk = 1 + nvme.SQESize

// What the first byte of a chunk says.
const (
	doAdmin    = 1 << iota // an admin command, not an I/O command
	doLate                 // its data comes later
	doRefuse               // its data does not come
	doChange               // a namespace comes or goes first, and another changes its size
	doEvent                // an event comes first
	doCut                  // its data is in odd pieces
	doHold                 // volumes hold their requests until one without it
	doTogether             // the next command is executed in the same turn
)

func (s script) add(what byte, e nvme.SQE) script {
	return append(append(s, what), nvme.Bytes(&e)...)
}

// play runs a script on a new controller, on p, and checks that every command
// ends once, that what does not end is parked, and that no memory but the
// commands' own data is touched.
func (s script) play(t *testing.T, p *poller.Poller) {
	m := newMemory(64<<10, 512)
	other := newMemory(64<<10, 4096)
	h := &host{t: t, p: p, sub: newSubsystem(t, m, other)}
	shape := func(size uint64, block uint32, then func()) {
		h.sub.Follow(1, func() { m.reshape(size, block); h.sub.Follow(1, then) })
	}
	h.sub.Namespace(1).Reblock = func(block uint32, done func(nvme.Status)) {
		shape(m.Info().Size, block, func() { done(nvme.StatusSuccess) })
	}
	q := &testQueues{p: p}
	cfg := testConfig
	cfg.Poller, cfg.Queues, cfg.KeepAliveExpired = p, q, func() {}
	h.do(func() {
		var err error
		if h.c, err = h.sub.New(cfg); err != nil {
			t.Error(err)
		}
		if h.w, err = h.c.Worker(p); err != nil {
			t.Error(err)
		}
	})
	var parked, together []*hostCommand
	for ; len(s) >= chunk; s = s[chunk:] {
		var e nvme.SQE
		copy(nvme.Bytes(&e), s[1:chunk])
		what := s[0]
		if what&doChange != 0 {
			if !h.sub.Remove(2, func() {}) {
				if err := h.sub.Add(testNamespace(2, other)); err != nil {
					t.Error(err)
				}
			}
			m.reshape(32<<10<<(e.CDW14>>1&1), m.Info().Block)
			h.sub.Follow(1, func() {})
		}
		if what&doEvent != 0 {
			h.event(nvme.AsyncEvent(e.CDW15), nvme.EventInvalidDoorbellValue)
		}
		cmd := newCommand(t, p, e)
		cmd.late = what&doLate != 0
		if what&doRefuse != 0 {
			cmd.refuse = nvme.StatusDataTransferError
		}
		if what&doCut != 0 {
			cmd.pieces = []int{3, 4097, 16}
		}
		cmd.out = s[1:]
		if what&doAdmin != 0 {
			// Abort finds what is held; nothing else runs beside another.
			if q.live = parked; nvme.AdminOpcode(e.Opcode) != nvme.AdminAbort {
				h.do(m.release)
			}
			h.start(true, cmd)
			parked = append(parked, cmd)
			h.turnsFor(cmd)
			continue
		}
		m.setHold(what&doHold != 0)
		cmd.SQID = uint16(1 + e.CDW14&1)
		together = append(together, cmd)
		if what&doTogether == 0 || len(s) < 2*chunk {
			h.together(together...)
			parked, together = append(parked, together...), nil
		}
		if what&doHold == 0 {
			h.do(m.release)
			parked = h.ended(parked)
		}
	}
	h.together(together...)
	h.do(m.release)
	parked = h.ended(append(parked, together...))
	h.do(func() { h.w.Close(); h.c.Close() })
	if parked = h.ended(parked); len(parked) != 0 {
		t.Errorf("%d commands have not ended with the controller", len(parked))
	}
	if m.open != 0 || other.open != 0 {
		t.Errorf("%d and %d queues are still open", m.open, other.open)
	}
}

// turnsFor gives an admin command turns to end in. One that waits for commands
// that are held goes on without being waited for.
func (h *host) turnsFor(cmd *hostCommand) {
	for range 20 {
		if !cmd.running() {
			return
		}
		h.do(func() {})
	}
}

// ended waits until all commands but parked event requests have ended, checks
// those, and returns the others.
func (h *host) ended(cmds []*hostCommand) (running []*hostCommand) {
	h.t.Helper()
	for range 2000 { // a Dataset Management has 256 steps of a turn or two
		running = running[:0]
		for _, c := range cmds {
			if c.running() {
				running = append(running, c)
			} else {
				c.data()
			}
		}
		if len(running) == h.parked() && len(running) <= aerl+1 {
			return running
		}
		cmds = append([]*hostCommand(nil), running...)
	}
	h.t.Fatalf("%d commands do not end, %d are parked", len(running), h.parked())
	return nil
}

// seeds has a script for every row of every table.
func seeds() (all []script) {
	var whole script
	add := func(what byte, e nvme.SQE) {
		all = append(all, script(nil).add(what, e), script(nil).add(what|doLate|doCut, e), script(nil).add(what|doRefuse, e))
		whole = whole.add(what, e)
	}
	for op := range adminCommands {
		if adminCommands[op].execute != nil {
			add(doAdmin|doEvent, nvme.SQE{Opcode: uint8(op), CDW10: 1, CDW11: 1, CDW15: uint32(nvme.EventSpareBelowThreshold)})
		}
	}
	for op := range ioCommands {
		if ioCommands[op].execute != nil {
			add(0, rwSQE(nvme.IOOpcode(op), 1, nvme.RW{NLB: 7}))
			add(doChange, nvme.SQE{Opcode: uint8(op), NSID: nvme.NSIDBroadcast, CDW10: 3, CDW11: 4})
			add(doHold, rwSQE(nvme.IOOpcode(op), 1, nvme.RW{SLBA: 1}))
		}
	}
	for lbaf := range uint8(len(lbaFormats)) {
		add(doAdmin|doChange, sqe(nvme.FormatNVM{LBAF: lbaf}, 1))
	}
	for cns := range identifications {
		if identifications[cns] != nil {
			add(doAdmin, sqe(nvme.Identify{CNS: nvme.CNS(cns)}, 1))
		}
	}
	for lid := range logPages {
		if logPages[lid].size != 0 {
			add(doAdmin|doChange, sqe(nvme.GetLogPage{LID: nvme.LogPageID(lid), NUMD: 1023, LPO: 8}, 0))
		}
	}
	for fid := range featureTable {
		if f := &featureTable[fid]; f.name != "" {
			add(doAdmin, sqe(nvme.SetFeatures{FID: nvme.FeatureID(fid), Value: 0x101}, 0))
			add(doAdmin, sqe(nvme.GetFeatures{FID: nvme.FeatureID(fid)}, 1))
			add(doAdmin, sqe(nvme.SetFeatures{FID: nvme.FeatureID(fid), Value: 1}, 1))
		}
	}
	for _, what := range []byte{0, doLate, doHold} {
		first, second := rwSQE(nvme.IOCompare, 1, nvme.RW{NLB: 3}), rwSQE(nvme.IOWrite, 1, nvme.RW{NLB: 3})
		first.SetFuse(nvme.FuseFirst)
		second.SetFuse(nvme.FuseSecond)
		pair := script(nil).add(what|doTogether, first).add(what, second)
		pair = pair.add(0|doHold, rwSQE(nvme.IOWrite, 1, nvme.RW{})).add(doAdmin, sqe(nvme.Abort{SQID: 1, CID: 5}, 0))
		all = append(all, pair)
		whole = append(whole, pair...)
	}
	return append(all, whole)
}

// Nothing that a host sends makes a controller panic, lose a command, end one
// twice or touch memory that is not the command's.
func FuzzCommands(f *testing.F) {
	p := startPoller(f, "admin")
	for _, s := range seeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		script(data[:min(len(data), 64*chunk)]).play(t, p)
	})
}

// Long random scripts: opcodes that exist, fields that are often near a limit.
func TestRandomCommands(t *testing.T) {
	p := startPoller(t, "admin")
	rnd := rand.New(rand.NewPCG(1, 2))
	edges := []uint32{0, 1, 2, 3, 7, 127, 128, 255, 1023, 1024, 1025, 0xffff, 0x10000, 1 << 18, 0x7fffffff, 0xfffffffe, 0xffffffff}
	pick := func() uint32 {
		if rnd.IntN(3) == 0 {
			return rnd.Uint32()
		}
		return edges[rnd.IntN(len(edges))]
	}
	var rows []script
	for _, s := range seeds() {
		if len(s) == chunk {
			rows = append(rows, s)
		}
	}
	for range 60 {
		var s script
		for range 100 {
			row := rows[rnd.IntN(len(rows))]
			var e nvme.SQE
			copy(nvme.Bytes(&e), row[1:])
			for _, field := range []*uint32{&e.NSID, &e.CDW10, &e.CDW11, &e.CDW12, &e.CDW13, &e.CDW14, &e.CDW15} {
				switch rnd.IntN(4) {
				case 0:
					*field = pick()
				case 1:
					*field = *field&0xff | pick()<<8
				}
			}
			if rnd.IntN(20) == 0 {
				e.Flags = uint8(rnd.Uint32())
			}
			what := row[0]&doAdmin | uint8(rnd.Uint32())&^doAdmin
			s = s.add(what, e)
		}
		s.play(t, p)
	}
}
