// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
)

// TestVectorReplaced: a completion whose interrupt went to an eventfd that the
// client has just replaced interrupts again through the new one. The client does
// not wait until the runtime knows of its new eventfds.
func TestVectorReplaced(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "32M")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	n := r.guest("vm1", small)
	if err := n.UseMSIX(); err != nil {
		t.Fatal(err)
	}
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	done := false
	var command nvme.SQE
	nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}.Put(&command)
	if err := n.Admin().Submit(command, func(nvme.CQE) { done = true }); err != nil {
		t.Fatal(err)
	}
	old, err := n.Client().Vector(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Wait(10 * time.Second); err != nil {
		t.Fatal("first eventfd:", err)
	}
	// As when a driver frees its vector and asks for several.
	if err := n.Client().DisableMSIX(); err != nil {
		t.Fatal(err)
	}
	if err := n.Client().EnableMSIX(); err != nil {
		t.Fatal(err)
	}
	replaced, err := n.Client().Vector(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaced.Wait(10 * time.Second); err != nil {
		t.Error("eventfd that replaced it:", err)
	}
	if err := n.Admin().Poll(); err != nil || !done {
		t.Errorf("completion: got %v, %v, want it", done, err)
	}
}
