// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestCoalescing: a host that wants few interrupts gets one for so many
// completions, or after a while for fewer; none is lost. After a restart of the
// runtime it is the same.
func TestCoalescing(t *testing.T) {
	const (
		entries = 32                       // half of what one turn of a poller takes
		wait    = 25500 * time.Microsecond // the longest there is
	)
	r, n := newDrive(t, "mem", small)
	if err := n.Disable(); err != nil {
		t.Fatal(err)
	}
	if err := n.UseMSIX(); err != nil {
		t.Fatal(err)
	}
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateCQ(1, 256, 1); err != nil {
		t.Fatal(err)
	}
	sq, err := n.CreateSQ(1, 256, 1)
	if err != nil {
		t.Fatal(err)
	}
	vector, err := n.Client().Vector(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.SetFeatures(nvme.FeatInterruptCoalescing, uint32(wait/(100*time.Microsecond))<<8|(entries-1)); err != nil {
		t.Fatal(err)
	}
	// check executes k flushes that the controller sees at once. One interrupt
	// tells of all of them.
	check := func(when string, k int) {
		t.Helper()
		for i := range k {
			sq.Push(&nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: 1, CID: uint16(i)})
		}
		if err := sq.Ring(); err != nil {
			t.Fatal(err)
		}
		if got, err := vector.Wait(10 * time.Second); err != nil || got != 1 {
			t.Fatalf("%s, %d commands: %d interrupts, %v; want 1", when, k, got, err)
		}
		if got, err := sq.CQ().Poll(func(nvme.CQE) {}); err != nil || got != k {
			t.Fatalf("%s: %d completions with the interrupt, %v; want %d", when, got, err, k)
		}
		if got, err := vector.Wait(2 * wait); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s, %d commands: %d more interrupts, %v; want none", when, k, got, err)
		}
	}
	for _, when := range []string{"after it was set", "after a restart"} {
		check(when, entries)
		check(when, 1)
		check(when, entries-1)
		check(when, 2*entries)
		r.stopSoc()
		r.startSoc()
		// Every restart sends an interrupt, or some.
		if _, err := vector.Wait(10 * time.Second); err != nil {
			t.Fatal("the interrupt of a restart:", err)
		}
		for err == nil {
			_, err = vector.Wait(2 * wait)
		}
	}
	exercise(t, second(t, n), vfiousertest.Polled)
}
