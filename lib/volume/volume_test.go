// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volume

import (
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

func TestOpString(t *testing.T) {
	for op, want := range map[Op]string{Read: "read", Write: "write", Flush: "flush",
		WriteZeroes: "write-zeroes", Discard: "discard", 99: "invalid"} {
		if got := op.String(); got != want {
			t.Errorf("Op %d is %q, want %q", op, got, want)
		}
	}
}

// owner keeps what it is told.
type owner struct{ status []nvme.Status }

func (o *owner) Completed(r *Request) { o.status = append(o.status, r.Status) }

// A request's end is told once, later and on its poller, whether it was done
// or its memory is gone.
func TestRequestEnd(t *testing.T) {
	p, err := poller.Start(poller.Config{Name: "test", CPU: -1, Fence: -1, NoRing: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	for _, x := range []struct {
		end  func(*Request)
		want nvme.Status
	}{
		{func(r *Request) { r.Complete(nvme.StatusWriteFault) }, nvme.StatusWriteFault},
		{(*Request).Faulted, nvme.StatusDataTransferError},
	} {
		var o owner
		r := Request{Owner: &o}
		for _, f := range []func(){
			func() {
				r.Begin(p)
				x.end(&r)
				if o.status != nil {
					t.Error("told from within the end")
				}
			},
			func() {},
		} {
			if err := p.Do(f); err != nil {
				t.Fatal(err)
			}
		}
		if len(o.status) != 1 || o.status[0] != x.want {
			t.Errorf("told %v, want %v once", o.status, x.want)
		}
	}
}

func TestSpec(t *testing.T) {
	keys := []Key{{Name: "size", Value: "SIZE"}, BlockKey, {Name: "path", Value: "PATH"}}
	for _, x := range []struct {
		options string // blanks between them
		size    uint64
		block   uint32
		err     string // "" for none
	}{
		{"size=1M", 1 << 20, 512, ""},
		{"size=1M block=4096", 1 << 20, 4096, ""},
		{"size=1M block=4K path=/x", 1 << 20, 4096, ""},
		{"size=8s", 4096, 512, ""},
		{"", 0, 0, "size= is missing: k needs it"},
		{"size=0", 0, 0, "size=0: a volume is not empty"},
		{"size=-1", 0, 0, "option size="},
		{"size=1X", 0, 0, "option size="},
		{"size=", 0, 0, "option size= has no value: a k volume takes size=SIZE block=512|4096 path=PATH"},
		{"size=1000", 0, 0, "size 1000 is not a multiple of the block of 512 bytes: 488 too many"},
		{"size=1M block=0", 0, 0, "option block=0"},
		{"size=1M block=x", 0, 0, "option block=x"},
		{"zise=1M aise=1", 0, 0, "unknown option aise=: a k volume takes size=SIZE block=512|4096 path=PATH"},
	} {
		s := &Spec{Kind: "k"}
		for _, kv := range strings.Fields(x.options) {
			key, value, _ := strings.Cut(kv, "=")
			s.Note(key, value)
		}
		var size uint64
		var block uint32
		err := s.CheckKeys(keys)
		if err == nil {
			size, block, err = s.SizeAndBlock()
		}
		if x.err != "" {
			if err == nil || !strings.Contains(err.Error(), x.err) || fault.KindOf(err) != fault.Usage {
				t.Errorf("%q: %v (%v), want a usage fault with %q", x.options, err, fault.KindOf(err), x.err)
			}
			continue
		}
		if err != nil || size != x.size || block != x.block {
			t.Errorf("%q: %d, %d, %v; want %d, %d", x.options, size, block, err, x.size, x.block)
		}
		if s.Options["block"] == "" {
			t.Errorf("%q: the default block is not noted", x.options)
		}
	}
}
