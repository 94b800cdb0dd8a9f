// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// smart reads what a host is told of its drive's life.
func smart(t *testing.T, n *vfiousertest.NVMe) (l nvme.SMARTLog) {
	t.Helper()
	var e nvme.SQE
	nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 512/4 - 1}.Put(&e)
	e.NSID = nvme.NSIDBroadcast
	p, err := n.AdminRead(e, 512)
	if err != nil {
		t.Fatal("SMART log:", err)
	}
	copy(nvme.Bytes(&l), p)
	return l
}

// TestSMART: what a drive counts is the work of its life, over resets, machines
// and restarts of the runtime. A kill costs what nobody had asked for.
func TestSMART(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.stopSoc()
	r.child = true
	r.startSoc()
	r.volume("d1", "mem", "size", "32M")
	r.volume("d2", "mem", "size", "32M")
	for _, name := range []string{"one", "two"} {
		volume := map[string]string{"one": "d1", "two": "d2"}[name]
		call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: name, Volumes: []string{volume}})
	}
	n := r.bound("vm1", "one")
	const unit = 512000 // bytes of a data unit
	var reads, writes uint64
	work := func() {
		t.Helper()
		data := make([]byte, unit/4)
		for qid := range uint16(2) {
			q, err := n.CreatePair(qid+1, 16, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			for range 8 {
				if err := q.Read(1, 0, data, 512); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := q.Write(1, 0, data, 512); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.DeletePair(q); err != nil {
				t.Fatal(err)
			}
		}
		reads, writes = reads+16, writes+4
	}
	check := func(when string) {
		t.Helper()
		got := smart(t, n)
		want := nvme.SMARTLog{
			AvailableSpare: 100, AvailableSpareThreshold: 10, ErrorLogEntries: got.ErrorLogEntries,
			HostReadCommands: nvme.Uint128{Lo: reads}, HostWriteCommands: nvme.Uint128{Lo: writes},
			DataUnitsRead: nvme.Uint128{Lo: reads / 4}, DataUnitsWritten: nvme.Uint128{Lo: writes / 4},
		}
		if got != want {
			t.Errorf("%s: got %+v\nwant %+v", when, got, want)
		}
	}
	enable := func() {
		t.Helper()
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
	}
	enable()
	check("new")
	work()
	check("after work")

	work()
	if err := n.Disable(); err != nil {
		t.Fatal(err)
	}
	enable()
	check("after a reset")

	work()
	r.stopSoc()
	r.startSoc()
	check("after a restart")

	work()
	check("before a kill")
	r.killSoc()
	r.startSoc()
	check("after a kill")

	// An error of before the kill is there no more, but was counted.
	errors := smart(t, n).ErrorLogEntries.Lo
	if _, err := n.AdminCommand(nvme.SQE{Opcode: 0xff}); err == nil {
		t.Fatal("no error")
	}
	if got := smart(t, n).ErrorLogEntries.Lo; got != errors+1 {
		t.Errorf("entries of the error log: got %d, want %d", got, errors+1)
	}

	work()
	n.Client().Close()
	r.waitState("vm1", api.PortWaiting)
	n = r.guest("vm1", small)
	enable()
	check("of another machine")
	if got := smart(t, n).ErrorLogEntries.Lo; got != errors+1 {
		t.Errorf("entries of the error log of another machine: got %d, want %d", got, errors+1)
	}
	n.Client().Close()
	r.waitState("vm1", api.PortWaiting)

	// Another drive at the same port.
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/vm1", api.PortBinding{Subsystem: "two"})
	n = r.guest("vm1", small)
	enable()
	reads, writes = 0, 0
	check("of another drive")
}
