// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestReadOnly: a machine writes to a volume that another one sees write
// protected, over restarts under both.
func TestReadOnly(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2)
			r.volume("d1", kind, "size", "32M")
			r.volume("d2", kind, "size", "32M")
			call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "rw", Volumes: []string{"d1"}, Shared: true})
			call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "ro", Volumes: []string{"d1"}, Shared: true, ReadOnly: true})
			call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/ro/namespaces", api.NamespaceSpec{Volume: "d2"})
			writer, reader := r.bound("vm1", "rw"), r.bound("vm2", "ro")
			var pairs []*vfiousertest.Pair
			for _, n := range []*vfiousertest.NVMe{writer, reader} {
				if err := n.Enable(16); err != nil {
					t.Fatal(err)
				}
				q, err := n.CreatePair(1, 16, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				pairs = append(pairs, q)
			}
			for round := range 3 {
				checkProtected(t, writer, 1, false)
				checkProtected(t, reader, 1, true)
				checkProtected(t, reader, 2, false)
				data := pattern(4096, uint64(round))
				if err := pairs[0].Write(1, 8, data, 512); err != nil {
					t.Fatal("write of the writer:", err)
				}
				refuseChanges(t, reader, pairs[1])
				got := make([]byte, len(data))
				if err := pairs[1].Read(1, 8, got, 512); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("round %d: the reader reads: %v, equal %t", round, err, bytes.Equal(got, data))
				}
				if err := pairs[1].Flush(1); err != nil {
					t.Error("flush:", err)
				}
				if err := pairs[1].Write(2, 8, data, 512); err != nil {
					t.Error("write to the reader's other namespace:", err)
				}
				r.stopSoc()
				r.startSoc()
			}
		})
	}
}

// refuseChanges sends everything that would change blocks 8 to 15 of namespace 1.
func refuseChanges(t *testing.T, n *vfiousertest.NVMe, q *vfiousertest.Pair) {
	t.Helper()
	buf, err := n.Client().Memory().NewBuffer(4096, vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	command := func(op nvme.IOOpcode, put func(*nvme.SQE)) nvme.SQE {
		e := nvme.SQE{Opcode: uint8(op), NSID: 1}
		put(&e)
		buf.Set(&e)
		return e
	}
	blocks := nvme.RW{SLBA: 8, NLB: 7}.Put
	for name, e := range map[string]nvme.SQE{
		"write":        command(nvme.IOWrite, blocks),
		"write zeroes": command(nvme.IOWriteZeroes, blocks),
		"deallocate":   command(nvme.IODatasetManagement, nvme.DatasetManagement{AD: true}.Put),
		"copy":         command(nvme.IOCopy, nvme.Copy{SDLBA: 8}.Put),
	} {
		if _, err := q.Do(e); !protected(err) {
			t.Errorf("%s: %v, want write protected, not to be retried", name, err)
		}
	}
	format := nvme.SQE{NSID: 1}
	nvme.FormatNVM{SES: nvme.SESUserData}.Put(&format)
	if _, err := n.AdminCommand(format); !protected(err) {
		t.Errorf("format: %v, want write protected, not to be retried", err)
	}
}

// protected reports whether a command ended as those on a write protected
// namespace do.
func protected(err error) bool {
	st := statusOf(nvme.CQE{}, err)
	return st.Code() == nvme.StatusNamespaceWriteProtected && st.DNR()
}

// checkProtected holds NSATTR of a namespace against what it is to be.
func checkProtected(t *testing.T, n *vfiousertest.NVMe, nsid uint32, want bool) {
	t.Helper()
	b, err := n.Identify(nvme.CNSNamespace, nsid)
	if err != nil {
		t.Fatal(err)
	}
	var id nvme.IdentifyNamespace
	copy(nvme.Bytes(&id), b)
	if got := id.NSATTR&nvme.NSATTRWriteProtected != 0; got != want {
		t.Errorf("namespace %d: NSATTR %#x, write protected %t, want %t", nsid, id.NSATTR, got, want)
	}
}

// TestProtectByHost: what a guest write protects stays so for every guest, over
// restarts, until a guest takes that back; what an administrator protects does
// not.
func TestProtectByHost(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(map[bool]string{false: "stopped", true: "killed"}[kill], func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, 2)
			r.stopSoc()
			r.child = kill
			r.startSoc()
			r.volume("d1", "file", "size", "32M")
			r.volume("d2", "mem", "size", "32M")
			call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: "s1", Volumes: []string{"d1"}, Shared: true})
			call[api.Namespace](r, r.client(), "POST", "/v1/subsystems/s1/namespaces", api.NamespaceSpec{Volume: "d2", Shared: true, ReadOnly: true})
			one, two := r.bound("vm1", "s1"), r.bound("vm2", "s1")
			var pairs []*vfiousertest.Pair
			for _, n := range []*vfiousertest.NVMe{one, two} {
				if err := n.Enable(16); err != nil {
					t.Fatal(err)
				}
				q, err := n.CreatePair(1, 16, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				pairs = append(pairs, q)
			}
			protect := func(n *vfiousertest.NVMe, nsid, state uint32) nvme.Status {
				e := nvme.SQE{NSID: nsid}
				nvme.SetFeatures{FID: nvme.FeatNamespaceWriteProtect, Value: state}.Put(&e)
				return statusOf(n.AdminCommand(e))
			}
			restart := func() {
				if kill {
					r.killSoc()
				} else {
					r.stopSoc()
				}
				r.startSoc()
			}
			is := func(want bool) {
				t.Helper()
				all := call[api.List[api.Namespace]](r, r.client(), "GET", "/v1/subsystems/s1/namespaces", nil)
				if all[0].WriteProtected != want || all[0].ReadOnly || all[1].WriteProtected || !all[1].ReadOnly {
					t.Errorf("namespaces %+v, want the first protected by a host: %t", all, want)
				}
				for i, n := range []*vfiousertest.NVMe{one, two} {
					checkProtected(t, n, 1, want)
					checkProtected(t, n, 2, true)
					if err := pairs[i].Write(1, 8, pattern(4096, 1), 512); protected(err) != want || !want && err != nil {
						t.Errorf("write of guest %d: %v, want it refused: %t", i, err, want)
					}
				}
			}
			is(false)
			told := attributeEvents(t, two)
			if st := protect(one, 1, nvme.WPSWriteProtect); st != nvme.StatusSuccess {
				t.Fatal("protecting:", st)
			}
			told()
			is(true)
			restart()
			is(true)
			if st := protect(two, 2, nvme.WPSNone); st != nvme.StatusFeatureNotChangeable|nvme.StatusDNR {
				t.Error("taking the administrator's protection back:", st)
			}
			told = attributeEvents(t, one)
			if st := protect(two, 1, nvme.WPSNone); st != nvme.StatusSuccess {
				t.Fatal("taking it back:", st)
			}
			told()
			is(false)
			restart()
			is(false)

			// A command that is cut short is executed again, with the same answer.
			for round := range uint32(6) {
				done := make(chan nvme.CQE, 1)
				e := nvme.SQE{NSID: 1}
				nvme.SetFeatures{FID: nvme.FeatNamespaceWriteProtect, Value: 1 - round%2}.Put(&e)
				if err := one.Admin().Submit(e, func(c nvme.CQE) { done <- c }); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(round) * 300 * time.Microsecond)
				restart()
				within(t, "set features", func() error {
					for len(done) == 0 {
						if err := one.Admin().Poll(); err != nil {
							return err
						}
						time.Sleep(time.Millisecond)
					}
					return nil
				})
				if c := <-done; c.StatusField() != nvme.StatusSuccess {
					t.Errorf("round %d: %v", round, c.StatusField())
				}
				is(round%2 == 0)
			}
		})
	}
}

// TestProtectNotKept: without a state file a namespace stays as it is.
func TestProtectNotKept(t *testing.T) {
	r, n := newDrive(t, "mem", small)
	q, err := n.CreatePair(1, 16, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	dir, base := filepath.Split(r.paths.StateFile(api.DefaultRuntime))
	hurdle := filepath.Join(dir, "."+base+".tmp")
	for _, want := range []bool{false, true} {
		if err := os.MkdirAll(filepath.Join(hurdle, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		e := nvme.SQE{NSID: 1}
		change := nvme.SetFeatures{FID: nvme.FeatNamespaceWriteProtect, Value: nvme.WPSWriteProtect}
		if want {
			change.Value = nvme.WPSNone
		}
		change.Put(&e)
		if st := statusOf(n.AdminCommand(e)); st != nvme.StatusInternalError {
			t.Errorf("change: %v", st)
		}
		checkProtected(t, n, 1, want)
		if err := q.Write(1, 8, pattern(4096, 1), 512); protected(err) != want {
			t.Errorf("write: %v, want it refused: %t", err, want)
		}
		if err := os.RemoveAll(hurdle); err != nil {
			t.Fatal(err)
		}
		if st := statusOf(n.AdminCommand(e)); st != nvme.StatusSuccess {
			t.Errorf("change: %v", st)
		}
	}
	checkProtected(t, n, 1, false)
}
