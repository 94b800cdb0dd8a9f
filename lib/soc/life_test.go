// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// within fails the test if f takes longer than any of this does.
func within(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s: not after a minute", what)
	}
}

// TestUnsharedRestartUnderLoad stops leap-soc while reads into memory that is
// reached by messages are in flight.
func TestUnsharedRestartUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, vfiousertest.MemoryOptions{Low: 32 << 20, Private: true}, "d1")
	load := newLoad(t, n, 2)
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		r.stopSoc()
		r.startSoc()
	}
	load.end()
}

// TestTruncatedLists: a PRP list, a completion ring, or shadow doorbells that a
// client takes away under an access cost its own controller; the next reset and
// the end of leap-soc are not held up.
func TestTruncatedLists(t *testing.T) {
	const gone = 48 << 20
	list := nvme.SQE{Opcode: uint8(nvme.IORead), NSID: 1, PRP1: 40 << 20, PRP2: gone}
	nvme.RW{NLB: 127}.Put(&list)
	ranges := nvme.SQE{Opcode: uint8(nvme.IODatasetManagement), NSID: 1, PRP1: gone, CDW11: 4}
	identify := nvme.SQE{PRP1: gone}
	nvme.Identify{CNS: nvme.CNSController}.Put(&identify)
	shadow := nvme.SQE{}
	nvme.DoorbellBuffer{Shadow: gone, EventIndex: gone + 4096}.Put(&shadow)
	for _, tt := range []struct {
		name  string
		admin bool
		e     nvme.SQE
	}{
		{"prp list", false, list}, {"ranges", false, ranges}, {"identify", true, identify}, {"doorbell buffer", true, shadow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, n := newDrive(t, "mem", vfiousertest.MemoryOptions{Low: 64 << 20})
			sq := queue(t, n, 1)
			if tt.admin {
				sq = n.Admin().SQ
			}
			if err := n.Client().Memory().Shrink(32 << 20); err != nil {
				t.Fatal(err)
			}
			sq.Push(&tt.e)
			if err := sq.Ring(); err != nil {
				t.Fatal(err)
			}
			if err := n.WaitCSTS("fatal status", 30*time.Second, nvme.CSTS.CFS); err != nil {
				t.Fatal(err)
			}
			within(t, "reset", n.Disable)
			within(t, "enable", func() error { return n.Enable(32) })
			exercise(t, n, vfiousertest.Polled)
			n.Client().Close()
			r.waitState("vm1", api.PortWaiting)
		})
	}
}

// TestTruncatedRestart: the memory of rings is gone when the next leap-soc
// adopts their controller.
func TestTruncatedRestart(t *testing.T) {
	for _, doorbells := range []string{api.DoorbellsTrap, "shadow"} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", doorbells, running), func(t *testing.T) {
				t.Parallel()
				r := newRigOf(t, 2)
				r.volume("d1", "mem", "size", "32M")
				n := r.drive("vm1", doorbells, vfiousertest.MemoryOptions{Low: 16 << 20}, "d1")
				for id := range uint16(2) {
					q, err := n.CreatePair(id+1, 16, 1)
					if err != nil {
						t.Fatal(err)
					}
					if err := q.Read(1, 0, make([]byte, 512), 512); err != nil {
						t.Fatal(err)
					}
				}
				if !running {
					r.stopSoc()
				}
				if err := n.Client().Memory().Shrink(0); err != nil {
					t.Fatal(err)
				}
				if running {
					r.stopSoc()
				}
				r.startSoc()
				_ = n.Client().Write32(nvme.SQDoorbell(1, 0), 5)
				n.Client().Close()
				r.waitState("vm1", api.PortWaiting)
				within(t, "the next guest", func() error {
					next := r.guest("vm1", small)
					return next.Enable(32)
				})
			})
		}
	}
}

// TestShadowUnmapped: a client unmaps the memory that its shadow doorbells are
// in. Nothing looks at them any more; with the memory they come back.
func TestShadowUnmapped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.volume("d1", "mem", "size", "32M")
	n := r.drive("vm1", "shadow", vfiousertest.MemoryOptions{Low: 16 << 20}, "d1")
	q, err := n.CreatePair(1, 16, 1)
	if err != nil {
		t.Fatal(err)
	}
	data := pattern(4096, 1)
	if err := q.Write(1, 0, data, 512); err != nil {
		t.Fatal(err)
	}
	low := n.Client().Memory().Mappings()[0]
	if err := n.Client().Unmap(low.Address, low.Size); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		call[api.List[api.QueuePair]](r, r.client(), "GET", "/v1/ports/vm1/queues", nil)
		if err := n.Client().DisableMSIX(); err != nil {
			t.Fatal(err)
		}
		if err := n.Client().EnableMSIX(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Client().Vector(1); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Client().Map(low); err != nil {
		t.Fatal(err)
	}
	q.CQ.Interrupt = nil
	got := make([]byte, len(data))
	if err := q.Read(1, 0, got, 512); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read back: %v, equal %t", err, bytes.Equal(got, data))
	}
}

// TestLinkLost: the link breaks while both daemons live. The runtime attaches
// again and the guest sees a pause.
func TestLinkLost(t *testing.T) {
	for name, mem := range map[string]vfiousertest.MemoryOptions{
		"shared": small, "unshared": {Low: 32 << 20, Private: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2)
			r.volume("d1", "file", "size", "64M")
			n := r.drive("vm1", api.DoorbellsTrap, mem, "d1")
			load := newLoad(t, n, 2)
			for epoch := range uint64(6) {
				// Also while the controller is being adopted.
				time.Sleep([]time.Duration{20, 1, 5}[epoch%3] * time.Millisecond)
				cutLink(t, r)
				within(t, "attaching again", func() error {
					for r.wptPort("vm1").Epoch < epoch+2 {
						time.Sleep(5 * time.Millisecond)
					}
					return nil
				})
			}
			load.end()
		})
	}
}

// cutLink shuts the runtime's connection to leap-wpt down.
func cutLink(t *testing.T, r *rig) {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			continue
		}
		if u, ok := peer.(*unix.SockaddrUnix); ok && strings.HasPrefix(u.Name, r.paths.LinkSocket()) {
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
				t.Fatal(err)
			}
			cut++
		}
	}
	if cut != 1 {
		t.Fatalf("cut %d links", cut)
	}
}

// wptPort is what leap-wpt says of a port.
func (r *rig) wptPort(name string) api.Port {
	return call[api.Port](r, r.paths.Wpt(), "GET", "/v1/ports/"+name, nil)
}

// TestDetachAtStop: leap-soc ends while it gives a port up, with I/O in flight.
func TestDetachAtStop(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	q, err := n.CreatePair(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	buf, err := n.Client().Memory().NewBuffer(1<<20, vfiousertest.Shape{Scatter: true})
	if err != nil {
		t.Fatal(err)
	}
	e := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1}
	buf.Set(&e)
	for round := range 5 {
		poll := []string{api.PollInterrupt, api.PollAdaptive}[round%2] // a change is a detach
		for i := range 60 {
			nvme.RW{SLBA: uint64(i) * 2048, NLB: 2047, FUA: true}.Put(&e)
			if err := q.Submit(e, func(c nvme.CQE) {
				if c.StatusField() != nvme.StatusSuccess {
					t.Errorf("write: %v", c.StatusField())
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/vm1", api.PortBinding{Subsystem: "vm1", Poll: poll})
		r.stopSoc()
		r.startSoc()
		within(t, "writes", func() error {
			for q.Outstanding() > 0 {
				if err := q.Poll(); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
			return nil
		})
	}
}

// TestShutdownRestart: a shutdown that is complete stays so over a restart, and
// one that is asked for meanwhile is carried out.
func TestShutdownRestart(t *testing.T) {
	t.Parallel()
	r, n := newDrive(t, "file", small)
	complete := func(c nvme.CSTS) bool { return c.RDY() && c.SHST() == nvme.SHSTComplete }
	if err := n.Shutdown(); err != nil {
		t.Fatal(err)
	}
	r.stopSoc()
	r.startSoc()
	if err := n.WaitCSTS("shutdown", 30*time.Second, complete); err != nil {
		t.Error("complete before the restart:", err)
	}
	if err := n.Enable(32); err != nil {
		t.Fatal(err)
	}
	r.stopSoc()
	cc, err := n.Client().Read32(nvme.RegCC)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Client().Write32(nvme.RegCC, uint32(nvme.CC(cc).WithSHN(nvme.SHNNormal))); err != nil {
		t.Fatal(err)
	}
	r.startSoc()
	if err := n.WaitCSTS("shutdown", 30*time.Second, complete); err != nil {
		t.Error("asked for without a runtime:", err)
	}
}

// TestAdoptUnmapped: a runtime takes over just when the client has taken the memory
// away that the queues are in, to map it anew. It goes on when that is there again.
func TestAdoptUnmapped(t *testing.T) {
	r := newProcesses(t, 2)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	load := newLoad(t, n, 2)
	low := n.Client().Memory().Mappings()[0]
	for range 3 {
		time.Sleep(20 * time.Millisecond) // any moment
		r.killSoc()
		if err := n.Client().Unmap(low.Address, low.Size); err != nil {
			t.Fatal(err)
		}
		r.startSoc()
		time.Sleep(50 * time.Millisecond) // most likely it has tried
		if err := n.Client().Map(low); err != nil {
			t.Fatal(err)
		}
	}
	load.end()
}
