// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// filled returns a volume with content.
func filled(size uint64, block uint32) *memory {
	m := newMemory(size, block)
	copy(m.bytes, pattern(int(size), 3))
	return m
}

func TestCompare(t *testing.T) {
	for _, block := range []uint32{512, 4096} {
		m := filled(4<<20, block)
		h := connect(t, newSubsystem(t, m), nil)
		most := uint16(dma.MaxTransfer/block - 1)
		for _, rw := range []nvme.RW{{}, {SLBA: 3, NLB: 8}, {SLBA: 1, NLB: most}, {SLBA: 4<<20/uint64(block) - 1}} {
			off, n := int(rw.SLBA)*int(block), int(rw.Blocks()*block)
			// The byte that differs; -1 for none.
			for _, wrong := range []int{-1, 0, n / 2, n - 1, min(n, scratchSize) - 1} {
				for _, late := range []bool{false, true} {
					cmd := newCommand(t, h.p, rwSQE(nvme.IOCompare, 1, rw))
					cmd.late, cmd.pieces = late, []int{7, 100, 4096}
					cmd.out = append([]byte(nil), m.bytes[off:off+n]...)
					want := nvme.StatusSuccess
					if wrong >= 0 {
						cmd.out[wrong] ^= 0x10
						want = nvme.StatusCompareFailure
					}
					h.start(false, cmd).wait()
					cmd.data()
					if cmd.Status != want {
						t.Errorf("block %d, %+v, byte %d differs, late %v: %v, want %v", block, rw, wrong, late, cmd.Status, want)
					}
				}
			}
		}
		if got := h.smart(); got.MediaErrors.Lo != 0 || got.HostReadCommands.Lo == 0 || got.HostWriteCommands.Lo != 0 {
			t.Errorf("counts %+v", got)
		}
	}
}

// Verify and Compare read everything, by pieces that fit the buffer.
func TestScanPieces(t *testing.T) {
	m := filled(16<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	for _, tt := range []struct {
		op     nvme.IOOpcode
		blocks int
		pieces int
	}{
		{nvme.IOVerify, 1, 1}, {nvme.IOVerify, 512, 1}, {nvme.IOVerify, 513, 2}, {nvme.IOVerify, 16384, 32}, {nvme.IOCompare, 2048, 4},
	} {
		m.log = nil
		cmd := newCommand(t, h.p, rwSQE(tt.op, 1, nvme.RW{SLBA: 5, NLB: uint16(tt.blocks - 1)}))
		cmd.out = m.bytes[5*512 : (5+tt.blocks)*512]
		if h.start(false, cmd).wait(); cmd.Status != 0 || len(m.log) != tt.pieces {
			t.Errorf("%v of %d blocks: %v, %d reads, want %d", tt.op, tt.blocks, cmd.Status, len(m.log), tt.pieces)
		}
		next := uint64(5 * 512)
		for _, r := range m.log {
			if r.Op != volume.Read || r.Offset != next || r.Length == 0 || r.Length > scratchSize {
				t.Errorf("%v of %d blocks: %v %d+%d, want a read at %d", tt.op, tt.blocks, r.Op, r.Offset, r.Length, next)
			}
			next += r.Length
		}
	}
	if cmd := h.run(false, rwSQE(nvme.IOVerify, 1, nvme.RW{NLB: 16384})); cmd.Status != nvme.StatusInvalidField|nvme.StatusDNR || cmd.asked != 0 {
		t.Errorf("verify of more than VSL: %v", cmd.Status)
	}
	m.fail[volume.Read] = nvme.StatusUnrecoveredReadError
	for _, op := range []nvme.IOOpcode{nvme.IOVerify, nvme.IOCompare} {
		if st := h.run(false, rwSQE(op, 1, nvme.RW{})).Status; st != nvme.StatusUnrecoveredReadError {
			t.Errorf("%v of a bad block: %v", op, st)
		}
	}
	if got := h.smart().MediaErrors.Lo; got != 2 {
		t.Errorf("%d media errors, want 2", got)
	}
}

// Commands that need the buffer have it one after the other, in order; reads
// do not wait for them.
func TestScanOrder(t *testing.T) {
	m := filled(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	m.hold = true
	var cmds []*hostCommand
	for i := range 5 {
		cmds = append(cmds, h.start(false, newCommand(t, h.p, rwSQE(nvme.IOVerify, 1, nvme.RW{SLBA: uint64(i)}))))
	}
	read := h.start(false, newCommand(t, h.p, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 99})))
	if len(m.log) != 2 {
		t.Fatalf("%d requests, want the first command's and the read's", len(m.log))
	}
	h.do(m.release)
	for _, c := range append(cmds, read) {
		if c.wait(); c.Status != 0 {
			t.Errorf("verify: %v", c.Status)
		}
	}
	var got []uint64
	for _, r := range m.log {
		got = append(got, r.Offset/512)
	}
	for i, want := range []uint64{0, 99, 1, 2, 3, 4} {
		if i >= len(got) || got[i] != want {
			t.Fatalf("blocks were read in the order %v", got)
		}
	}
	// Everything has been given back.
	h.do(func() {
		h.w.Close()
		if h.w.scratch.user != nil || h.w.scratch.buf != nil || len(h.w.scratch.waiting) != 0 {
			t.Errorf("left: %+v", h.w.scratch)
		}
	})
}

// cancel cancels a command on its poller.
func (h *host) cancel(c *hostCommand) {
	h.t.Helper()
	h.do(func() {
		if c.running() {
			c.Cancel()
		}
	})
}

// Wherever a command is, it can be cancelled, and others are not.
func TestCancel(t *testing.T) {
	for _, op := range []nvme.IOOpcode{nvme.IORead, nvme.IOWrite, nvme.IOFlush, nvme.IOWriteZeroes, nvme.IOCompare, nvme.IOVerify} {
		m := filled(1<<20, 512)
		h := connect(t, newSubsystem(t, m), nil)
		m.hold = true
		first := h.start(false, newCommand(t, h.p, rwSQE(op, 1, nvme.RW{})))
		second := h.start(false, newCommand(t, h.p, rwSQE(op, 1, nvme.RW{}))) // may wait for the buffer
		late := newCommand(t, h.p, rwSQE(op, 1, nvme.RW{}))
		late.late = true
		late.onReady = func() { late.Cancel(); late.Cancel() }
		moved := op == nvme.IORead || op == nvme.IOWrite || op == nvme.IOCompare
		if moved {
			if h.start(false, late).wait(); late.Status != nvme.StatusAbortRequested {
				t.Errorf("%v, waiting for data: %v", op, late.Status)
			}
		}
		h.cancel(second)
		if second.wait(); second.Status != nvme.StatusAbortRequested || !first.running() {
			t.Errorf("%v, behind another: %v, that one runs: %v", op, second.Status, first.running())
		}
		third := h.start(false, newCommand(t, h.p, rwSQE(op, 1, nvme.RW{})))
		h.cancel(first)
		if first.wait(); first.Status != nvme.StatusAbortRequested {
			t.Errorf("%v, in flight: %v", op, first.Status)
		}
		h.do(func() {})
		h.do(m.release)
		third.out = m.bytes[:512]
		if third.wait(); third.Status != 0 && op != nvme.IOCompare {
			t.Errorf("%v that was not cancelled: %v", op, third.Status)
		}
	}
}

// A command of several steps that is cancelled goes no further, also where the
// volume cannot cancel.
func TestCancelSteps(t *testing.T) {
	dsm := nvme.SQE{NSID: 1}
	nvme.DatasetManagement{NR: 3, AD: true}.Put(&dsm)
	ranges := []nvme.DSMRange{{NLB: 1}, {NLB: 1, SLBA: 1}, {NLB: 1, SLBA: 2}, {NLB: 1, SLBA: 3}}
	for name, e := range map[string]nvme.SQE{
		"compare":    rwSQE(nvme.IOCompare, 1, nvme.RW{NLB: 1023}),
		"verify":     rwSQE(nvme.IOVerify, 1, nvme.RW{NLB: 1023}),
		"read, FUA":  rwSQE(nvme.IORead, 1, nvme.RW{FUA: true}),
		"deallocate": dsm,
		"flush all":  rwSQE(nvme.IOFlush, nvme.NSIDBroadcast, nvme.RW{}),
	} {
		m := newMemory(1<<20, 512)
		h := connect(t, newSubsystem(t, m, newMemory(4096, 512)), nil)
		m.hold = true
		cmd := newCommand(t, h.p, e)
		if name == "deallocate" {
			cmd.out = nvme.SliceBytes(ranges)
		}
		h.start(false, cmd)
		h.do(func() { cmd.cancelled = true; m.release() })
		if cmd.wait(); cmd.Status != nvme.StatusAbortRequested || len(m.log) != 1 {
			t.Errorf("%s: %v after %d requests", name, cmd.Status, len(m.log))
		}
	}
}
