// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// BenchmarkStart starts both daemons, as processes and with what they had before,
// until a guest has read its first block: the one first or the other.
func BenchmarkStart(b *testing.B) {
	for _, order := range [][]string{{"leap-wpt", "leap-soc"}, {"leap-soc", "leap-wpt"}} {
		b.Run(order[0]+"-first", func(b *testing.B) {
			r := newFolders(b, 1)
			r.child = true
			r.startWpt()
			r.startSoc()
			r.volume("d1", "file", "size", "64M")
			r.volume("d2", "null", "size", "1G")
			r.wire("vm1", api.DoorbellsTrap, "d1")
			r.wire("vm2", api.DoorbellsMap, "d2")
			call[api.Listener](r, r.client(), "POST", "/v1/listeners", api.ListenerSpec{URL: "tcp://127.0.0.1:0"})
			b.ResetTimer()
			for b.Loop() {
				b.StopTimer()
				r.stopSoc()
				r.stopWpt()
				b.StartTimer()
				r.startBoth(order)
				r.readFirst("vm1")
			}
			b.StopTimer()
			r.stopSoc()
			r.stopWpt()
		})
	}
}

// startBoth starts both daemons as processes and does not wait for them.
func (r *rig) startBoth(order []string) {
	for _, name := range order {
		if d := r.startChild(name); name == "leap-wpt" {
			r.wpt = d
		} else {
			r.soc = d
		}
	}
}

// readFirst connects a machine to a port as soon as there is one, and reads a
// block.
func (r *rig) readFirst(port string) {
	m, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 16 << 20, Sealed: true})
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	var c *vfiousertest.Client
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Microsecond) {
		if c, err = vfiousertest.Dial(r.paths.PortSocket(port), m, vfiousertest.Options{}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
	defer c.Close()
	n, err := vfiousertest.NewNVMe(c)
	if err == nil {
		err = n.Enable(32)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	q, err := n.CreatePair(1, 32, vfiousertest.Polled)
	if err == nil {
		err = q.Read(1, 0, make([]byte, 4096), 512)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}
