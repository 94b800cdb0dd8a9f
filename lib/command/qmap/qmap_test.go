// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

func TestCheck(t *testing.T) {
	const nqn = "nqn.2014-08.org.nvmexpress:uuid:a"
	for _, tt := range []struct {
		r    Request
		want string // in the error; empty: none
	}{
		{Request{Port: "vm1", Targets: []string{"d1", "d2"}}, ""},
		{Request{Port: "vm1", Targets: []string{nqn}}, ""},
		{Request{Port: "vm1", Targets: []string{"d1"}, Shared: true, Runtime: "two"}, ""},
		{Request{Port: "vm1", Targets: []string{"d1"}, ReadOnly: true}, ""},
		{Request{Port: "VM1", Targets: []string{"d1"}}, "bad port name"},
		{Request{Port: "vm1", Targets: []string{"D1"}}, "bad target name"},
		{Request{Port: "vm1", Targets: []string{"nqn."}}, "nqn."},
		{Request{Port: "vm1", Targets: []string{"d1", "d2", "d1"}}, "given twice"},
		{Request{Port: "vm1", Targets: []string{"d1", nqn}}, "is the only target"},
		{Request{Port: "vm1", Targets: []string{nqn}, Shared: true}, "--shared is for volumes"},
		{Request{Port: "vm1", Targets: []string{nqn}, ReadOnly: true}, "--read-only is for volumes"},
		{Request{Port: "vm1", Targets: []string{"d1"}, Runtime: "link"}, "bad runtime name"},
	} {
		err := tt.r.check()
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", tt.r, err)
		case tt.want != "" && (fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: got %v, want a usage fault with %q", tt.r, err, tt.want)
		}
	}
	r := Request{Port: "vm1", Targets: []string{"d1"}}
	if err := r.check(); err != nil || r.Runtime != api.DefaultRuntime {
		t.Errorf("the runtime is %q, %v, want the default", r.Runtime, err)
	}
}

func TestPending(t *testing.T) {
	for _, tt := range []struct {
		head, tail uint32
		want       string // of entries 0 to 3
	}{
		{0, 0, "...."}, {1, 3, ".xx."}, {3, 1, "x..x"}, {3, 3, "...."}, {0, 3, "xxx."}, {2, 0, "..xx"},
	} {
		got := ""
		for i := range uint32(4) {
			got += map[bool]string{true: "x", false: "."}[pending(api.Ring{Head: tt.head, Tail: tt.tail}, i)]
		}
		if got != tt.want {
			t.Errorf("head %d, tail %d: got %s, want %s", tt.head, tt.tail, got, tt.want)
		}
	}
}

func TestEntries(t *testing.T) {
	flush := make([]byte, nvme.SQESize)
	flush[2], flush[4] = 7, 1 // CID, NSID
	ring := api.Ring{Port: "vm1", QID: 1, Kind: "sq", Head: 0, Tail: 1, Entries: [][]byte{flush, make([]byte, nvme.SQESize)}}
	got, err := appendEntries(nil, ring)
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{Port: "vm1", QID: 1, Ring: "sq", Index: 0, At: []string{"head"}, Pending: true,
			Raw: "0000070001000000" + strings.Repeat("0", 112), Entry: "op=flush opc=0x00 cid=7 nsid=1 prp1=0x0 prp2=0x0"},
		{Port: "vm1", QID: 1, Ring: "sq", Index: 1, At: []string{"tail"}, Raw: strings.Repeat("0", 128)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []api.Ring{
		{Kind: "sq", Entries: [][]byte{{1}}},
		{Kind: "cq", Entries: [][]byte{flush}},
		{Kind: "", Entries: [][]byte{flush}},
	} {
		if _, err := appendEntries(nil, bad); fault.KindOf(err) != fault.Peer {
			t.Errorf("%+v: %v, want a peer fault", bad, err)
		}
	}
}
