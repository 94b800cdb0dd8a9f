// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
	"github.com/leapio/leapio/lib/volume"
)

// counting is a subsystem of two namespaces that count.
func counting(t *testing.T, first, second volume.Volume) (sub *Subsystem, a, b, volumes *stats.Group) {
	t.Helper()
	a, b, volumes = stats.NewGroup(), stats.NewGroup(), stats.NewGroup()
	sub = newSubsystem(t)
	for i, g := range []*stats.Group{a, b} {
		ns := testNamespace(uint32(i+1), []volume.Volume{first, second}[i])
		ns.Stats, ns.VolumeStats = g, volumes
		if err := sub.Add(ns); err != nil {
			t.Fatal(err)
		}
	}
	return sub, a, b, volumes
}

// counted is what a class of commands has: their number, bytes and errors.
type counted [3]uint64

func countOf(total stats.Total, c stats.Class) counted {
	return counted{total.Latency(c).Count(), total.ClassBytes(c), total.Errors(c)}
}

// Every command is counted once for its namespace, for the volume, and for the
// transport, with the data it has moved.
func TestCounts(t *testing.T) {
	m := newMemory(1<<20, 512)
	sub, a, b, volumes := counting(t, m, newMemory(1<<20, 512))
	h := connect(t, sub, nil)
	queue := stats.NewSet()
	run := func(admin bool, e nvme.SQE, out ...byte) nvme.Status {
		t.Helper()
		cmd := newCommand(t, h.p, e)
		cmd.Stats, cmd.out = queue, out
		h.start(admin, cmd).wait()
		return cmd.Status
	}
	rw := nvme.RW{NLB: 7}
	ranges := []nvme.DSMRange{{NLB: 3}, {SLBA: 10}, {SLBA: 20, NLB: 4}}
	dsm := nvme.SQE{Opcode: uint8(nvme.IODatasetManagement), NSID: 1}
	nvme.DatasetManagement{AD: true, NR: 2}.Put(&dsm)
	cp := nvme.SQE{Opcode: uint8(nvme.IOCopy), NSID: 1}
	nvme.Copy{SDLBA: 100}.Put(&cp)
	for _, c := range []struct {
		e    nvme.SQE
		out  []byte
		want nvme.Status
	}{
		{rwSQE(nvme.IORead, 1, rw), nil, 0},
		{rwSQE(nvme.IORead, 2, rw), nil, 0},
		{rwSQE(nvme.IORead, 1, nvme.RW{SLBA: 1 << 40}), nil, nvme.StatusLBAOutOfRange},
		{rwSQE(nvme.IOWrite, 1, rw), nil, 0},
		{rwSQE(nvme.IOFlush, 1, nvme.RW{}), nil, 0},
		{nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: nvme.NSIDBroadcast}, nil, 0},
		{rwSQE(nvme.IOWriteZeroes, 1, rw), nil, 0},
		{rwSQE(nvme.IOCompare, 1, rw), nil, 0},
		{rwSQE(nvme.IOVerify, 1, rw), nil, 0},
		{dsm, nvme.SliceBytes(ranges), 0},
		{cp, nvme.SliceBytes([]nvme.CopyRange{{NLB: 1}}), 0},
		{rwSQE(nvme.IORead, 3, rw), nil, nvme.StatusInvalidField},
		{nvme.SQE{Opcode: 0xff, NSID: 1}, nil, nvme.StatusInvalidOpcode},
	} {
		if st := run(false, c.e, c.out...); st.Code() != c.want {
			t.Fatalf("%s: %v, want %v", nvme.FormatSQE(false, &c.e), st, c.want)
		}
	}
	m.fail = map[volume.Op]nvme.Status{volume.Write: nvme.StatusWriteFault}
	if st := run(false, rwSQE(nvme.IOWrite, 1, rw)); st != nvme.StatusWriteFault {
		t.Fatal(st)
	}
	run(true, sqe(nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}, 0))

	const n = 8 * 512
	for name, tt := range map[string]struct {
		got                  stats.Total
		reads, writes, other counted
	}{
		"namespace 1": {a.Total(), counted{2, n, 1}, counted{2, n, 1}, counted{7, 3*n + 7*512 + 2*512, 0}},
		"namespace 2": {b.Total(), counted{1, n, 0}, counted{}, counted{1, 0, 0}},
		"volumes":     {volumes.Total(), counted{3, 2 * n, 1}, counted{2, n, 1}, counted{8, 3*n + 9*512, 0}},
		// The broadcast flush is one command here, and there are those that
		// reached no namespace.
		"queue": {queue.Total(), counted{4, 2 * n, 2}, counted{2, n, 1}, counted{9, 3*n + 9*512, 1}},
	} {
		for class, want := range map[stats.Class]counted{stats.Reads: tt.reads, stats.Writes: tt.writes, stats.Rest: tt.other} {
			if got := countOf(tt.got, class); got != want {
				t.Errorf("%s, class %d: commands, bytes, errors %v, want %v", name, class, got, want)
			}
		}
		if tt.got.InFlight != 0 {
			t.Errorf("%s: %d commands in flight", name, tt.got.InFlight)
		}
	}
	if l := h.smart(); l.HostReadCommands.Lo != 5 || l.HostWriteCommands.Lo != 2 || l.MediaErrors.Lo != 1 {
		t.Errorf("SMART has %+v", l)
	}
}

// What was counted stays when workers and controllers end, and what the
// controller does for itself is not counted.
func TestCountsStay(t *testing.T) {
	sub, a, _, volumes := counting(t, newMemory(1<<20, 512), newMemory(1<<20, 512))
	for round := range uint64(3) {
		h := connect(t, sub, nil)
		h.run(false, rwSQE(nvme.IORead, 1, nvme.RW{}))
		done := make(chan struct{})
		h.do(func() { h.c.Shutdown(h.w, func() { close(done) }) })
		<-done
		h.do(func() { h.w.Close(); h.c.Close() })
		for _, g := range []*stats.Group{a, volumes} {
			if got, want := countOf(g.Total(), stats.Reads), (counted{round + 1, (round + 1) * 512, 0}); got != want {
				t.Errorf("after %d controllers: %v, want %v", round+1, got, want)
			}
			if got := countOf(g.Total(), stats.Rest); got != (counted{}) {
				t.Errorf("after %d controllers: others %v", round+1, got)
			}
		}
	}
}

// An event request is no command that takes its time, a fused pair is two.
func TestCountsApart(t *testing.T) {
	sub, a, _, _ := counting(t, newMemory(1<<20, 512), newMemory(1<<20, 512))
	h := connect(t, sub, nil)
	queue := stats.NewSet()
	request := newCommand(t, h.p, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)})
	request.Stats = queue
	h.start(true, request)
	first, second := rwSQE(nvme.IOCompare, 1, nvme.RW{}), rwSQE(nvme.IOWrite, 1, nvme.RW{})
	first.SetFuse(nvme.FuseFirst)
	second.SetFuse(nvme.FuseSecond)
	halves := []*hostCommand{newCommand(t, h.p, first), newCommand(t, h.p, second)}
	h.do(func() {
		for _, half := range halves {
			half.Stats = queue
			h.w.Execute(&half.Command)
		}
	})
	for _, half := range halves {
		if half.wait(); half.Status != nvme.StatusSuccess {
			t.Fatal(half.Status)
		}
	}
	h.do(func() { h.c.Event(nvme.EventInvalidDoorbellValue) })
	request.wait()
	for name, total := range map[string]stats.Total{"namespace": a.Total(), "queue": queue.Total()} {
		if w, o := countOf(total, stats.Writes), countOf(total, stats.Rest); w != (counted{1, 512, 0}) || o != (counted{1, 512, 0}) {
			t.Errorf("%s: writes %v, others %v", name, w, o)
		}
	}
}

// A command that is under way is in flight.
func TestCountsInFlight(t *testing.T) {
	sub, a, b, _ := counting(t, newMemory(1<<20, 512), newMemory(1<<20, 512))
	h := connect(t, sub, nil)
	cmd := newCommand(t, h.p, rwSQE(nvme.IOWrite, 1, nvme.RW{}))
	cmd.late = true
	hold := make(chan struct{})
	var during, other uint64
	cmd.onReady = func() { <-hold }
	h.start(false, cmd)
	during, other = a.Total().InFlight, b.Total().InFlight
	close(hold)
	cmd.wait()
	if after := a.Total().InFlight; during != 1 || other != 0 || after != 0 {
		t.Errorf("in flight: %d, in the other namespace %d, after the end %d", during, other, after)
	}
}
