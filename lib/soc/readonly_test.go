// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"testing"

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
