// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// half is a command that is half of a fused pair, from queue sqid.
func (h *host) half(sqid uint16, f nvme.Fuse, op nvme.IOOpcode, rw nvme.RW, out []byte) *hostCommand {
	h.t.Helper()
	cmd := newCommand(h.t, h.p, rwSQE(op, 1, rw))
	cmd.SQE.SetFuse(f)
	cmd.SQID, cmd.out = sqid, out
	return cmd
}

// pair is a Compare and Write.
func (h *host) pair(rw nvme.RW, compare, write []byte) (first, second *hostCommand) {
	h.t.Helper()
	return h.half(1, nvme.FuseFirst, nvme.IOCompare, rw, compare), h.half(1, nvme.FuseSecond, nvme.IOWrite, rw, write)
}

// together begins I/O commands in one turn.
func (h *host) together(cmds ...*hostCommand) {
	h.t.Helper()
	h.do(func() {
		for _, c := range cmds {
			h.w.Execute(&c.Command)
		}
	})
}

func ended(t *testing.T, what string, want nvme.Status, c *hostCommand) {
	t.Helper()
	if c.wait(); c.Status != want {
		t.Errorf("%s: %v (%#x), want %v", what, c.Status, uint16(c.Status), want)
	}
}

func TestCompareAndWrite(t *testing.T) {
	m := filled(4<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	for _, rw := range []nvme.RW{{SLBA: 9}, {SLBA: 10, NLB: 7}, {SLBA: 100, NLB: 2047}} {
		for i, late := range []bool{false, true} {
			n := int(rw.Blocks()) * 512
			area := m.bytes[rw.SLBA*512:][:n]
			old, next := bytes.Clone(area), pattern(n, byte(77+i))
			first, second := h.pair(rw, old, next)
			first.late, second.late = late, late
			h.together(first, second)
			ended(t, "compare", 0, first)
			ended(t, "write", 0, second)
			if !bytes.Equal(area, next) {
				t.Errorf("%+v: not written", rw)
			}
			old[n-1]++
			first, second = h.pair(rw, old, pattern(n, 1))
			h.together(first, second)
			ended(t, "compare with other data", nvme.StatusCompareFailure, first)
			ended(t, "write after that", nvme.StatusAbortedFailedFused, second)
			if !bytes.Equal(area, next) {
				t.Errorf("%+v: written although it differs", rw)
			}
		}
	}
	if h.w.ns[1].ns.fence.raised.Load() || h.w.ns[1].inflight != 0 {
		t.Error("the fence stands, or the namespace is in use")
	}
}

// TestFusedAgain: a pair that is executed again finds what the process before has
// left of it. One that had begun to write goes on if it finds what it was to
// write, too; no other pair does. One that had ended gives the same results.
func TestFusedAgain(t *testing.T) {
	m := filled(4<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	rw := nvme.RW{SLBA: 100, NLB: 1023} // two pieces
	n := int(rw.Blocks()) * 512
	area := m.bytes[rw.SLBA*512:][:n]
	old, next, other := bytes.Clone(area), pattern(n, 5), pattern(n, 6)
	const (
		success  = keptEnded
		mismatch = keptEnded | uint64(nvme.StatusCompareFailure)<<16 | uint64(nvme.StatusAbortedFailedFused)
	)
	for _, tt := range []struct {
		name          string
		there         []byte
		first, second uint64 // kept
		want          nvme.Status
		data          []byte
		left          uint64 // of the second half
	}{
		{"first time", old, 0, 0, 0, next, success},
		{"something else", other, 0, 0, nvme.StatusCompareFailure, other, mismatch},
		{"what it was to write, but not by it", next, 0, 0, nvme.StatusCompareFailure, next, mismatch},
		{"begun and not written", old, keptCompared, 0, 0, next, success},
		{"begun and written", next, keptCompared, 0, 0, next, success},
		{"begun, and something else", other, keptCompared, 0, nvme.StatusCompareFailure, other, mismatch},
		{"begun and half written", append(bytes.Clone(old[:n/2]), next[n/2:]...), keptCompared, 0, 0, next, success},
		{"half of each, by others", append(bytes.Clone(next[:n/2]), old[n/2:]...), 0, 0, nvme.StatusCompareFailure, append(bytes.Clone(next[:n/2]), old[n/2:]...), mismatch},
		{"begun, and a block of others", append(bytes.Clone(old[:n-512]), other[n-512:]...), keptCompared, 0, nvme.StatusCompareFailure, append(bytes.Clone(old[:n-512]), other[n-512:]...), mismatch},
		{"ended well", other, keptCompared, success, 0, other, success},
		{"ended otherwise", old, 0, mismatch, nvme.StatusCompareFailure, old, mismatch},
	} {
		copy(area, tt.there)
		first, second := h.pair(rw, old, next)
		first.Kept, second.Kept = &tt.first, &tt.second
		h.together(first, second)
		ended(t, tt.name, tt.want, first)
		want := nvme.StatusSuccess
		if tt.want != 0 {
			want = nvme.StatusAbortedFailedFused
		}
		ended(t, tt.name+": write", want, second)
		if !bytes.Equal(area, tt.data) {
			t.Errorf("%s: wrong data", tt.name)
		}
		if tt.second != tt.left {
			t.Errorf("%s: %#x is left, want %#x", tt.name, tt.second, tt.left)
		}
		if begun := tt.want == 0 && tt.name != "ended well"; begun && tt.first != keptCompared {
			t.Errorf("%s: its beginning was not noted", tt.name)
		}
	}
	// The second half alone, when the first was published.
	kept := uint64(success)
	_, second := h.pair(rw, old, next)
	second.Kept = &kept
	h.start(false, second).wait()
	ended(t, "second half alone", nvme.StatusSuccess, second)
}

func TestFusedHalves(t *testing.T) {
	const missing, failed, field = nvme.StatusAbortedMissingFused, nvme.StatusAbortedFailedFused, nvme.StatusInvalidField | nvme.StatusDNR
	const lba, wp, zero = nvme.StatusLBAOutOfRange | nvme.StatusDNR, nvme.StatusNamespaceWriteProtected | nvme.StatusDNR, nvme.StatusSuccess
	m := newMemory(1<<20, 512)
	ro := testNamespace(2, newMemory(4096, 512))
	ro.ReadOnly = true
	sub := newSubsystem(t, m)
	if err := sub.Add(ro); err != nil {
		t.Fatal(err)
	}
	h := connect(t, sub, nil)
	type cmd struct {
		sqid uint16
		fuse nvme.Fuse
		op   nvme.IOOpcode
		rw   nvme.RW
		nsid uint32
		want nvme.Status
	}
	const a, b, none = nvme.FuseFirst, nvme.FuseSecond, nvme.FuseNone
	const cmp, wr, rd = nvme.IOCompare, nvme.IOWrite, nvme.IORead
	for name, cmds := range map[string][]cmd{
		"a pair":                        {{1, a, cmp, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, zero}},
		"two pairs, interleaved queues": {{1, a, cmp, nvme.RW{}, 1, zero}, {2, a, cmp, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, zero}, {2, b, wr, nvme.RW{}, 1, zero}},
		"split by another queue":        {{1, a, cmp, nvme.RW{}, 1, zero}, {2, none, rd, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, zero}},
		"split by the same queue":       {{1, a, cmp, nvme.RW{}, 1, missing}, {1, none, rd, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, missing}},
		"no second":                     {{1, a, cmp, nvme.RW{}, 1, missing}},
		"no first":                      {{1, b, wr, nvme.RW{}, 1, missing}},
		"second of another queue":       {{1, a, cmp, nvme.RW{}, 1, missing}, {2, b, wr, nvme.RW{}, 1, missing}},
		"two firsts":                    {{1, a, cmp, nvme.RW{}, 1, missing}, {1, a, cmp, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, zero}},
		"two seconds":                   {{1, a, cmp, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, zero}, {1, b, wr, nvme.RW{}, 1, missing}},
		"reserved value between":        {{1, a, cmp, nvme.RW{}, 1, missing}, {1, 3, wr, nvme.RW{}, 1, field}},
		"unknown opcode between":        {{1, a, cmp, nvme.RW{}, 1, missing}, {1, none, 0xff, nvme.RW{}, 1, nvme.StatusInvalidOpcode | nvme.StatusDNR}},
		"first that cannot be":          {{1, a, wr, nvme.RW{}, 1, field}, {1, b, wr, nvme.RW{}, 1, missing}},
		"first that does not exist":     {{1, a, 0xff, nvme.RW{}, 1, field}},
		"second that cannot be":         {{1, a, cmp, nvme.RW{}, 1, field}, {1, b, cmp, nvme.RW{}, 1, field}},
		"other blocks":                  {{1, a, cmp, nvme.RW{}, 1, field}, {1, b, wr, nvme.RW{SLBA: 1}, 1, field}},
		"another length":                {{1, a, cmp, nvme.RW{}, 1, field}, {1, b, wr, nvme.RW{NLB: 1}, 1, field}},
		"another namespace":             {{1, a, cmp, nvme.RW{}, 1, field}, {1, b, wr, nvme.RW{}, 2, field}},
		"write with a directive":        {{1, a, cmp, nvme.RW{}, 1, field}, {1, b, wr, nvme.RW{DTYPE: 1}, 1, field}},
		"past the end":                  {{1, a, cmp, nvme.RW{SLBA: 2048}, 1, lba}, {1, b, wr, nvme.RW{SLBA: 2048}, 1, failed}},
		"no such namespace":             {{1, a, cmp, nvme.RW{}, 9, field}, {1, b, wr, nvme.RW{}, 9, failed}},
		"write protected":               {{1, a, cmp, nvme.RW{}, 2, failed}, {1, b, wr, nvme.RW{}, 2, wp}},
	} {
		var all []*hostCommand
		for _, x := range cmds {
			c := h.half(x.sqid, x.fuse, x.op, x.rw, nil)
			c.SQE.NSID = x.nsid
			all = append(all, c)
		}
		h.together(all...)
		for i, c := range all {
			if c.wait(); c.Status != cmds[i].want {
				t.Errorf("%s, command %d: %v (%#x), want %v", name, i, c.Status, uint16(c.Status), cmds[i].want)
			}
		}
		if len(h.w.pairs.first) != 0 {
			t.Errorf("%s: %d halves are left", name, len(h.w.pairs.first))
		}
	}
	// In two turns they are no pair.
	first, second := h.pair(nvme.RW{}, nil, nil)
	h.start(false, first)
	h.start(false, second)
	ended(t, "compare in another turn", missing, first)
	ended(t, "write in another turn", missing, second)
}

// An error of either half, at any step, ends both, and nothing is written.
func TestFusedErrors(t *testing.T) {
	const failed, data = nvme.StatusAbortedFailedFused, nvme.StatusDataTransferError
	for _, late := range []bool{false, true} {
		m := newMemory(1<<20, 512)
		h := connect(t, newSubsystem(t, m), nil)
		run := func(name string, wantFirst, wantSecond nvme.Status, change func(first, second *hostCommand)) {
			t.Helper()
			first, second := h.pair(nvme.RW{NLB: 1023}, nil, nil)
			first.late, second.late = late, late
			change(first, second)
			h.together(first, second)
			ended(t, name+": compare", wantFirst, first)
			ended(t, name+": write", wantSecond, second)
			if h.w.ns[1].ns.fence.raised.Load() || h.w.scratch.user != nil || h.w.ns[1].inflight != 0 {
				t.Errorf("%s: something is still held", name)
			}
		}
		run("no data to compare", data, failed, func(first, _ *hostCommand) { first.refuse = data })
		run("no data to write", failed, data, func(_, second *hostCommand) { second.refuse = data })
		run("read fails", nvme.StatusUnrecoveredReadError, failed, func(*hostCommand, *hostCommand) {
			m.fail[volume.Read] = nvme.StatusUnrecoveredReadError
		})
		delete(m.fail, volume.Read)
		run("write fails", failed, nvme.StatusWriteFault, func(*hostCommand, *hostCommand) {
			m.fail[volume.Write] = nvme.StatusWriteFault
		})
		delete(m.fail, volume.Write)
		run("compare is cancelled at its data", nvme.StatusAbortRequested, failed, func(first, second *hostCommand) {
			first.late, first.onReady = true, func() { first.Cancel() }
		})
		run("write is cancelled at the other's data", failed, nvme.StatusAbortRequested, func(first, second *hostCommand) {
			first.late, first.onReady = true, func() { second.Cancel() }
		})
		run("nothing", 0, 0, func(*hostCommand, *hostCommand) {})
	}
}

// A pair can be cancelled by either half wherever it is.
func TestFusedCancel(t *testing.T) {
	const aborted, failed = nvme.StatusAbortRequested, nvme.StatusAbortedFailedFused
	for _, which := range []int{0, 1} {
		want := [2][2]nvme.Status{{aborted, failed}, {failed, aborted}}[which]
		m := newMemory(1<<20, 512)
		h := connect(t, newSubsystem(t, m), nil)
		m.hold = true
		check := func(name string, first, second *hostCommand) {
			t.Helper()
			settle(h)
			h.cancel([2]*hostCommand{first, second}[which])
			settle(h)
			ended(t, name+": compare", want[0], first)
			ended(t, name+": write", want[1], second)
		}
		verify := h.start(false, newCommand(t, h.p, rwSQE(nvme.IOVerify, 1, nvme.RW{})))
		first, second := h.pair(nvme.RW{}, nil, nil)
		h.together(first, second)
		check("behind a verify", first, second)
		h.cancel(verify)

		first, second = h.pair(nvme.RW{}, nil, nil)
		h.together(first, second)
		check("while it reads", first, second)

		first, second = h.pair(nvme.RW{}, nil, nil)
		h.together(first, second)
		settle(h)
		h.do(m.step)
		check("while it writes", first, second)

		// A write before it, that is in flight, holds it up.
		write := h.start(false, newCommand(t, h.p, rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 99})))
		first, second = h.pair(nvme.RW{}, nil, nil)
		h.together(first, second)
		settle(h)
		h.cancel([2]*hostCommand{first, second}[which])
		h.do(m.release)
		ended(t, "behind a write: compare", want[0], first)
		ended(t, "behind a write: write", want[1], second)
		ended(t, "the write", 0, write)
		// Held back by a pair, a write can be cancelled too.
		h.do(func() { m.hold = true })
		first, second = h.pair(nvme.RW{}, nil, nil)
		h.together(first, second)
		settle(h)
		write = h.start(false, newCommand(t, h.p, rwSQE(nvme.IOWrite, 1, nvme.RW{})))
		h.cancel(write)
		ended(t, "a write held back", aborted, write)
		h.do(m.release)
		ended(t, "compare", 0, first)
		ended(t, "write", 0, second)
	}
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	first, second := h.pair(nvme.RW{}, nil, nil)
	h.do(func() {
		h.w.Execute(&first.Command)
		first.Cancel()
		h.w.Execute(&second.Command)
	})
	ended(t, "a first half alone", aborted, first)
	ended(t, "its second", nvme.StatusAbortedMissingFused, second)
}

// While a pair is in progress, writes that overlap it wait, on every poller and
// of every controller, and others do not; the pair waits for those before it.
func TestFence(t *testing.T) {
	m := newMemory(1<<20, 512)
	sub := newSubsystem(t, m)
	h := connect(t, sub, nil)
	o, other := h.second(), connect(t, sub, nil)
	all := []*host{h, o, other}
	early := o.start(false, func() *hostCommand {
		m.hold = true
		return newCommand(t, o.p, rwSQE(nvme.IOWriteZeroes, 1, nvme.RW{SLBA: 8}))
	}())
	first, second := h.pair(nvme.RW{SLBA: 8, NLB: 7}, nil, pattern(4096, 1))
	h.together(first, second)
	settle(all...)
	if len(m.log) != 1 {
		t.Fatalf("%d requests, want the early one alone", len(m.log))
	}
	o.do(m.step) // the early one
	early.wait()
	settle(all...)
	m.mu.Lock()
	if len(m.log) < 2 || m.log[1].Op != volume.Read {
		t.Fatalf("the pair does not begin after the early write: %+v", m.log)
	}
	m.log = nil
	m.hold = false
	m.mu.Unlock()
	var overlapping []*hostCommand
	for i, x := range all {
		dsm := nvme.SQE{NSID: 1}
		nvme.DatasetManagement{AD: true}.Put(&dsm)
		d := newCommand(t, x.p, dsm)
		d.out = nvme.SliceBytes([]nvme.DSMRange{{SLBA: 15, NLB: 2}})
		overlapping = append(overlapping,
			x.start(false, newCommand(t, x.p, rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: uint64(8 + i)}))),
			x.start(false, newCommand(t, x.p, rwSQE(nvme.IOWriteZeroes, 1, nvme.RW{NLB: 99}))),
			x.start(false, d))
		for _, e := range []nvme.SQE{
			rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 7}), rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 16}), rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 8}),
			rwSQE(nvme.IOFlush, 1, nvme.RW{}),
		} {
			if cmd := x.run(false, e); cmd.Status != 0 {
				t.Errorf("%s: %v", nvme.FormatSQE(false, &e), cmd.Status)
			}
		}
	}
	settle(all...)
	for _, c := range overlapping {
		if !c.running() {
			t.Errorf("%s was not held back", nvme.FormatSQE(false, &c.SQE))
		}
	}
	h.do(m.release) // the pair's read
	ended(t, "compare", 0, first)
	ended(t, "write", 0, second)
	for _, c := range overlapping {
		ended(t, "held back", 0, c)
	}
	if sub.Namespace(1).fence.raised.Load() {
		t.Error("the fence stands")
	}
}

// A counter in a block that several pollers count up by Compare and Write, while
// others write beside it and whole blocks are set by plain writes, never loses
// one of its steps.
func TestFusedAtomic(t *testing.T) {
	const rounds = 50
	m := newMemory(1<<20, 512)
	m.linger = 20 * time.Microsecond
	sub := newSubsystem(t, m)
	h := connect(t, sub, nil)
	pollers := []*host{h, h.second(), connect(t, sub, nil)}
	block := func(n uint64) []byte {
		p := make([]byte, 512)
		binary.LittleEndian.PutUint64(p, n)
		return p
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	steps := uint64(0)
	for _, x := range pollers {
		wg.Go(func() {
			guess := uint64(0)
			for range rounds {
				for {
					first, second := x.pair(nvme.RW{SLBA: 4}, block(guess), block(guess+1))
					first.late, second.late = guess%3 == 0, guess%2 == 0
					x.together(first, second)
					<-first.done
					<-second.done
					if first.Status == nvme.StatusSuccess {
						break
					}
					if first.Status != nvme.StatusCompareFailure || second.Status != nvme.StatusAbortedFailedFused {
						t.Errorf("pair: %v, %v", first.Status, second.Status)
						return
					}
					r := newCommand(t, x.p, rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 4}))
					x.start(false, r)
					<-r.done
					guess = binary.LittleEndian.Uint64(r.data())
				}
				guess++
				w := newCommand(t, x.p, rwSQE(nvme.IOWrite, 1, nvme.RW{SLBA: 5}))
				x.start(false, w)
				<-w.done
				mu.Lock()
				steps++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if got := binary.LittleEndian.Uint64(m.bytes[4*512:]); got != steps || steps != uint64(rounds*len(pollers)) {
		t.Errorf("counted %d, want %d", got, steps)
	}
}

// A namespace removed under a pair is drained when the pair has ended.
func TestFusedRemove(t *testing.T) {
	m := newMemory(1<<20, 512)
	h := connect(t, newSubsystem(t, m), nil)
	o := h.second()
	m.hold = true
	first, second := h.pair(nvme.RW{}, nil, nil)
	h.together(first, second)
	settle(h, o)
	drained := make(chan bool, 2)
	h.sub.Remove(1, func() { drained <- true })
	settle(h, o)
	if len(drained) != 0 {
		t.Fatal("drained under a pair")
	}
	h.do(m.release)
	ended(t, "compare", 0, first)
	ended(t, "write", 0, second)
	settle(h, o)
	if len(drained) != 1 || m.open != 0 {
		t.Errorf("drained %d times, %d queues open", len(drained), m.open)
	}
	// A pair that came too late.
	first, second = h.pair(nvme.RW{}, nil, nil)
	h.together(first, second)
	ended(t, "compare", nvme.StatusInvalidField|nvme.StatusDNR, first)
	ended(t, "write", nvme.StatusAbortedFailedFused, second)
}
