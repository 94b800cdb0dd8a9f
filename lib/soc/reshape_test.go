// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

const mib = 1 << 20

// resize gives volume d1 another size, larger or smaller.
func (r *rig) resize(size uint64) {
	r.t.Helper()
	out := call[api.Volume](r, r.client(), "PUT", "/v1/volumes/d1", api.VolumeResize{Size: units.Size(size), Shrink: true})
	if uint64(out.Size) != size {
		r.t.Fatalf("resized to %d: it has %d bytes", size, out.Size)
	}
	r.isVolume(size, uint64(out.Block))
}

// isVolume checks what API, facts and state file say of volume d1.
func (r *rig) isVolume(size, block uint64) {
	r.t.Helper()
	v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil)
	if v.State != "ready" || uint64(v.Size) != size || uint64(v.Block) != block {
		r.t.Fatalf("volume %s (%s): %d bytes in blocks of %d; want %d and %d", v.State, v.Error, v.Size, v.Block, size, block)
	}
	for fact, want := range map[string]uint64{"size": size, "block": block} {
		text, err := os.ReadFile(filepath.Join(r.paths.VolumeDir("d1"), fact))
		if got := strings.TrimSpace(string(text)); err != nil || got != strconv.FormatUint(want, 10) {
			r.t.Errorf("fact %s: %q, %v; want %d", fact, got, err, want)
		}
	}
	if got, err := units.ParseSize(v.Options["size"]); err != nil || uint64(got) != size {
		r.t.Errorf("option size=%s: want %d", v.Options["size"], size)
	}
}

// restated stops leap-soc, puts another value of an option of d1 in its state
// file, as if it had ended just before or after that was written, and starts it.
func (r *rig) restated(key, value string) {
	r.t.Helper()
	now := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil).Options[key]
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	quote := func(v string) []byte { return []byte(`"` + key + `": "` + v + `"`) }
	if bytes.Count(b, quote(now)) != 1 {
		r.t.Fatalf("%s is not in the state file once:\n%s", quote(now), b)
	}
	if err := os.WriteFile(path, bytes.Replace(b, quote(now), quote(value), 1), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.startSoc()
}

// namespace returns what a guest is told of namespace 1.
func namespace(t *testing.T, n *vfiousertest.NVMe) (id nvme.IdentifyNamespace) {
	t.Helper()
	b, err := n.Identify(nvme.CNSNamespace, 1)
	if err != nil {
		t.Fatal(err)
	}
	copy(nvme.Bytes(&id), b)
	return id
}

// isNamespace checks what a guest is told of the size and block of namespace 1.
func isNamespace(t *testing.T, n *vfiousertest.NVMe, size, block uint64) {
	t.Helper()
	id := namespace(t, n)
	if got, _ := id.BlockSize(); uint64(got) != block || id.NSZE*block != size || id.NCAP != id.NSZE || id.NVMCAP.Lo != size {
		t.Errorf("the guest sees %d blocks of %d bytes, want %d bytes in blocks of %d", id.NSZE, got, size, block)
	}
}

// attributeEvents begins to wait for a Namespace Attribute Changed event; what
// it returns waits for the end, and clears the event.
func attributeEvents(t *testing.T, n *vfiousertest.NVMe) (told func()) {
	t.Helper()
	if _, err := n.SetFeatures(nvme.FeatAsyncEventConfig, nvme.NoticeNamespaceAttribute); err != nil {
		t.Fatal(err)
	}
	event := make(chan nvme.CQE, 1)
	if err := n.Admin().Submit(nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, func(e nvme.CQE) { event <- e }); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		within(t, "attribute event", func() error {
			for len(event) == 0 {
				if err := n.Admin().Poll(); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		if e := <-event; nvme.AsyncEvent(e.DW0) != nvme.EventNamespaceAttribute {
			t.Errorf("event %v, %v", nvme.AsyncEvent(e.DW0), e.StatusField())
		}
		log := nvme.SQE{NSID: nvme.NSIDBroadcast}
		nvme.GetLogPage{LID: nvme.LogChangedNamespaces, NUMD: 1023}.Put(&log)
		b, err := n.AdminRead(log, 4096)
		if err != nil {
			t.Fatal(err)
		}
		var l nvme.NSList
		copy(nvme.Bytes(&l), b)
		if l.NSIDs[0] != 1 || l.NSIDs[1] != 0 {
			t.Errorf("changed namespaces %v, want 1", l.NSIDs[:2])
		}
	}
}

// TestResizeUnderLoad: a volume grows and shrinks under verified I/O on two
// pollers; the guest is told each time, reaches what came, and no more what
// went.
func TestResizeUnderLoad(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2)
			r.volume("d1", kind, "size", "64M")
			n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
			load := newLoad(t, n, 2)
			q, err := n.CreatePair(5, 16, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			size := uint64(64 * mib)
			for round := range uint64(12) {
				told := attributeEvents(t, n)
				if round%3 == 2 {
					size = 48 * mib
				} else {
					size += 16*mib + round*4096
				}
				r.resize(size)
				told()
				isNamespace(t, n, size, 512)
				data, got := pattern(4096, round), make([]byte, 4096)
				last := (size - 4096) / 512
				if round%3 != 2 {
					if err := q.Read(1, last, got, 512); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
						t.Errorf("round %d: the end before it was written: %v, zero %t", round, err, bytes.Equal(got, make([]byte, 4096)))
					}
				}
				if err := q.Write(1, last, data, 512); err != nil {
					t.Errorf("round %d: write to the end: %v", round, err)
				}
				if err := q.Read(1, last, got, 512); err != nil || !bytes.Equal(got, data) {
					t.Errorf("round %d: read of the end: %v, equal %t", round, err, bytes.Equal(got, data))
				}
				if st := statusOf(nvme.CQE{}, q.Read(1, last+1, got, 512)); st.Code() != nvme.StatusLBAOutOfRange {
					t.Errorf("round %d: read beyond the end: %v", round, st)
				}
				if err := q.Write(1, last, make([]byte, 4096), 512); err != nil {
					t.Error(err)
				}
				if round%5 == 4 {
					r.stopSoc()
					r.startSoc()
					r.isVolume(size, 512)
					isNamespace(t, n, size, 512)
				}
			}
			load.end()
		})
	}
}

// TestResizeKilled ends leap-soc by SIGKILL at any moment of a change: the
// volume has the size of before or of after, and the guest does not notice.
func TestResizeKilled(t *testing.T) {
	kills := 12
	if testing.Short() {
		kills = 3
	}
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2)
			r.stopSoc()
			r.child = true
			r.startSoc()
			r.volume("d1", kind, "size", "64M")
			n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
			load := newLoad(t, n, 2)
			rng := rand.New(rand.NewPCG(5, uint64(len(kind))))
			for range kills {
				// One after the other until the end, the last two of which count.
				sizes := make(chan uint64, 1<<16)
				sizes <- uint64(call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil).Size)
				c, ended := r.client(), make(chan struct{})
				seed := rng.Uint64()
				go func() {
					defer close(ended)
					rng := rand.New(rand.NewPCG(seed, 0))
					for {
						size := uint64(48+rng.IntN(64)) * mib
						sizes <- size
						if c.Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: units.Size(size), Shrink: true}, nil) != nil {
							return
						}
					}
				}()
				time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
				r.killSoc()
				<-ended
				close(sizes)
				var tried []uint64
				for size := range sizes {
					tried = append(tried, size)
				}
				r.startSoc()
				v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil)
				if tried = tried[max(0, len(tried)-2):]; !slices.Contains(tried, uint64(v.Size)) {
					t.Errorf("size %d after a kill, want one of %d", v.Size, tried)
				}
				r.isVolume(uint64(v.Size), 512)
				isNamespace(t, n, uint64(v.Size), 512)
			}
			load.end()
		})
	}
}

// TestResizeInterrupted: the end of leap-soc right before and right after the
// new size is kept, which leaves more of the medium than there is of the volume.
func TestResizeInterrupted(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.volume("d1", kind, "size", "64M")
			n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
			q, err := n.CreatePair(1, 16, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			data, got := pattern(mib, 1), make([]byte, mib)
			check := func(size uint64, at ...uint64) {
				t.Helper()
				r.isVolume(size, 512)
				isNamespace(t, n, size, 512)
				for _, off := range at {
					if err := q.Read(1, off/512, got, 512); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("data at %d: %v, equal %t", off, err, bytes.Equal(got, data))
					}
				}
			}
			for _, off := range []uint64{0, 47 * mib, 63 * mib} {
				if err := q.Write(1, off/512, data, 512); err != nil {
					t.Fatal(err)
				}
			}
			// It was to grow, and the medium had.
			told := attributeEvents(t, n)
			r.resize(96 * mib)
			told()
			told = attributeEvents(t, n)
			r.restated("size", "64M")
			told()
			check(64*mib, 0, 47*mib, 63*mib)
			// It has grown, and hosts had not been told.
			told = attributeEvents(t, n)
			r.restated("size", "96M")
			told()
			check(96*mib, 0, 47*mib, 63*mib)
			// It has shrunk, and the medium not yet.
			told = attributeEvents(t, n)
			r.restated("size", "48M")
			told()
			check(48*mib, 0, 47*mib)
			r.resize(48 * mib)
			if kind == "file" {
				path := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil).Path
				if st, err := os.Stat(path); err != nil || st.Size() != 48*mib {
					t.Errorf("the file has %d bytes, %v; want 48 MiB", st.Size(), err)
				}
			}
			r.resize(64 * mib)
			check(64*mib, 0, 47*mib)
			if err := q.Read(1, 63*mib/512, got, 512); err != nil || !bytes.Equal(got, make([]byte, mib)) {
				t.Errorf("what went and came again: %v, zero %t", err, bytes.Equal(got, make([]byte, mib)))
			}
			r.stopSoc()
			r.startSoc()
			check(64*mib, 0, 47*mib)
		})
	}
}

// TestReshapeNotKept: without a state file nothing changes, for good.
func TestReshapeNotKept(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r, n := newDrive(t, kind, small)
			q, err := n.CreatePair(1, 16, vfiousertest.Polled)
			if err != nil {
				t.Fatal(err)
			}
			data, got := pattern(4096, 1), make([]byte, 4096)
			const last = 64*mib/512 - 8
			check := func() {
				t.Helper()
				r.isVolume(64*mib, 512)
				isNamespace(t, n, 64*mib, 512)
				if err := q.Write(1, last, data, 512); err != nil {
					t.Fatal(err)
				}
				if err := q.Read(1, last, got, 512); err != nil || !bytes.Equal(got, data) {
					t.Errorf("the end: %v, equal %t", err, bytes.Equal(got, data))
				}
			}
			// The new content of the file is written beside it.
			dir, base := filepath.Split(r.paths.StateFile(api.DefaultRuntime))
			hurdle := filepath.Join(dir, "."+base+".tmp")
			if err := os.MkdirAll(filepath.Join(hurdle, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, size := range []units.Size{96 * mib, 32 * mib} {
				err := r.client().Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: size, Shrink: true}, nil)
				if err == nil || !strings.Contains(err.Error(), hurdle) {
					t.Errorf("resize to %d: %v", size, err)
				}
				check()
			}
			if st := statusOf(n.AdminCommand(formatSQE(1))); st != nvme.StatusInternalError {
				t.Errorf("format: %v", st)
			}
			check()
			if err := os.RemoveAll(hurdle); err != nil {
				t.Fatal(err)
			}
			r.stopSoc()
			r.startSoc()
			check()
			r.resize(96 * mib)
			if st := statusOf(n.AdminCommand(formatSQE(1))); st != nvme.StatusSuccess {
				t.Errorf("format: %v", st)
			}
			r.isVolume(96*mib, 4096)
		})
	}
}

// TestResizeConcurrent: changes are made one at a time, and one that comes at a
// bad moment changes nothing.
func TestResizeConcurrent(t *testing.T) {
	r := newRigOf(t, 2)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	load := newLoad(t, n, 2)
	var callers sync.WaitGroup
	for i := range 6 {
		callers.Go(func() {
			for j := range 6 {
				size := units.Size(48+i*8+j) * mib
				err := r.client().Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: size, Shrink: true}, nil)
				if err != nil && (fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "is being resized")) {
					t.Error(err)
				}
				if err := r.client().Delete(context.Background(), "/v1/volumes/d1", api.VolumeDelete{}, nil); fault.KindOf(err) != fault.Exists {
					t.Errorf("deleted under a guest: %v", err)
				}
			}
		})
	}
	callers.Wait()
	load.end()
	size := uint64(call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil).Size)
	r.isVolume(size, 512)
	isNamespace(t, n, size, 512)
}

// TestResizeShared: machines that share a volume are all told, and none can
// change its block.
func TestResizeShared(t *testing.T) {
	r := newRigOf(t, 2)
	r.volume("d1", "mem", "size", "64M", "block", "4096")
	var guests []*vfiousertest.NVMe
	var told []func()
	for port, subsystem := range map[string]string{"vm1": "s1", "vm2": "s2"} {
		call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: subsystem, Volumes: []string{"d1"}, Shared: true})
		n := r.bound(port, subsystem)
		if err := n.Enable(16); err != nil {
			t.Fatal(err)
		}
		guests, told = append(guests, n), append(told, attributeEvents(t, n))
	}
	r.resize(32 * mib)
	for i, n := range guests {
		told[i]()
		isNamespace(t, n, 32*mib, 4096)
		if st := statusOf(n.AdminCommand(formatSQE(0))); st != nvme.StatusInvalidFormat|nvme.StatusDNR {
			t.Errorf("format: %v", st)
		}
		if st := statusOf(n.AdminCommand(formatSQE(1))); st != nvme.StatusSuccess {
			t.Errorf("format with the block it has: %v", st)
		}
	}
	r.isVolume(32*mib, 4096)
}

// formatSQE is Format NVM of namespace 1.
func formatSQE(lbaf uint8) nvme.SQE {
	e := nvme.SQE{NSID: 1}
	nvme.FormatNVM{LBAF: lbaf}.Put(&e)
	return e
}

// TestFormatBlock: Format NVM changes the block of a volume from 512 to 4096
// bytes and back, wherever leap-soc is killed meanwhile.
func TestFormatBlock(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		for _, kill := range []bool{false, true} {
			t.Run(kind+"/"+map[bool]string{false: "alive", true: "killed"}[kill], func(t *testing.T) {
				t.Parallel()
				r := newRigOf(t, 2)
				r.stopSoc()
				r.child = kill
				r.startSoc()
				r.volume("d1", kind, "size", "64M")
				r.volume("d2", kind, "size", "64M")
				n := r.drive("vm1", api.DoorbellsTrap, small, "d1", "d2")
				q, err := n.CreatePair(1, 16, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				other := pattern(4096, 77)
				if err := q.Write(2, 5, other, 512); err != nil {
					t.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(9, uint64(len(kind))))
				block := 512
				for round := range 8 {
					data, got := pattern(64<<10, uint64(round)), make([]byte, 64<<10)
					last := uint64((64*mib - len(data)) / block)
					if err := q.Write(1, last, data, block); err != nil {
						t.Fatal(err)
					}
					if err := q.Read(1, last, got, block); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("round %d: before: %v, equal %t", round, err, bytes.Equal(got, data))
					}
					lbaf := uint8(1 - round%2)
					block = []int{512, 4096}[lbaf]
					formatted := make(chan nvme.CQE, 1)
					if err := n.Admin().Submit(formatSQE(lbaf), func(e nvme.CQE) { formatted <- e }); err != nil {
						t.Fatal(err)
					}
					if kill {
						time.Sleep(time.Duration(rng.IntN(12000)) * time.Microsecond)
						r.killSoc()
						r.startSoc()
					}
					within(t, "format", func() error {
						for len(formatted) == 0 {
							if err := n.Admin().Poll(); err != nil {
								return err
							}
							time.Sleep(time.Millisecond)
						}
						return nil
					})
					if e := <-formatted; e.StatusField() != nvme.StatusSuccess {
						t.Fatalf("round %d: format: %v", round, e.StatusField())
					}
					r.isVolume(64*mib, uint64(block))
					isNamespace(t, n, 64*mib, uint64(block))
					last = uint64((64*mib - len(data)) / block)
					if err := q.Read(1, last, got, block); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
						t.Fatalf("round %d: after: %v, zero %t", round, err, bytes.Equal(got, make([]byte, len(got))))
					}
					if err := q.Read(2, 5, got[:4096], 512); err != nil || !bytes.Equal(got[:4096], other) {
						t.Fatalf("round %d: the other namespace: %v, equal %t", round, err, bytes.Equal(got[:4096], other))
					}
				}
			})
		}
	}
}

// TestFormatBlockEnds: whatever ends under a format with another block, the
// controller, the client, the namespace or leap-soc, the volume has one block or
// the other and serves.
func TestFormatBlockEnds(t *testing.T) {
	r := newRigOf(t, 2)
	r.volume("d1", "file", "size", "64M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	block := uint64(512)
	for round := range 16 {
		lbaf := uint8(1)
		if block == 4096 {
			lbaf = 0
		}
		if err := n.Admin().Submit(formatSQE(lbaf), func(nvme.CQE) {}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(round*137%1500) * time.Microsecond)
		switch round % 4 {
		case 0:
			within(t, "disable", n.Disable)
		case 1:
			n.Client().Close()
			r.waitState("vm1", api.PortWaiting)
			n = r.guest("vm1", small)
		case 2:
			path := "/v1/subsystems/vm1/namespaces"
			call[api.None](r, r.client(), "DELETE", path+"/1", nil)
			within(t, "the namespace", func() error { // while the volume is being changed it is not to be had
				for {
					err := r.client().Post(context.Background(), path, api.NamespaceSpec{Volume: "d1", NSID: 1}, nil)
					if fault.KindOf(err) != fault.Exists {
						return err
					}
				}
			})
			within(t, "disable", n.Disable)
		case 3:
			r.stopSoc()
			r.startSoc()
			within(t, "disable", n.Disable)
		}
		within(t, "enable", func() error { return n.Enable(32) })
		v := call[api.Volume](r, r.client(), "GET", "/v1/volumes/d1", nil)
		block = uint64(v.Block)
		r.isVolume(64*mib, block)
		isNamespace(t, n, 64*mib, block)
		q, err := n.CreatePair(1, 16, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		data, got := pattern(4096, uint64(round)), make([]byte, 4096)
		last := (64*mib - 4096) / block
		if err := q.Write(1, last, data, int(block)); err != nil {
			t.Fatal(err)
		}
		if err := q.Read(1, last, got, int(block)); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("round %d: %v, equal %t", round, err, bytes.Equal(got, data))
		}
	}
}
