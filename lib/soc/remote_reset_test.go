// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestRemoteAwayReset: while the remote is away, with I/O of a guest in flight,
// the guest resets its controller, and then is gone and the runtime stops. Nobody
// waits for the remote.
func TestRemoteAwayReset(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	l := r.remote()
	n := r.drive("vm1", api.DoorbellsMap, small, "d1")
	call[api.None](r, r.client(), "DELETE", fmt.Sprintf("/v1/listeners/%d", l.Number), nil)
	within(t, "the loss of the remote", func() error {
		for call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil).State != "failed" {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	buf, err := n.Client().Memory().NewBuffer(4096, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		q, err := n.CreatePair(1, 32, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			e := nvme.SQE{Opcode: uint8([]nvme.IOOpcode{nvme.IOWrite, nvme.IORead}[i%2]), NSID: 1}
			buf.Set(&e)
			nvme.RW{SLBA: uint64(i) * 8, NLB: 7}.Put(&e)
			if err := q.Submit(e, func(nvme.CQE) {}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond) // for them to be fetched
		if round == 0 {
			within(t, "the reset", func() error { return errors.Join(n.Disable(), n.Enable(32)) })
		}
	}
	if err := n.Client().Close(); err != nil {
		t.Error(err)
	}
	within(t, "the end of the guest", func() error {
		for r.wptPort("vm1").State != api.PortWaiting {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	r.stopSoc()
}
