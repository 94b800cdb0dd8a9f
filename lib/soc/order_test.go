// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/null"
)

func init() {
	soc.AddKind(volume.Kind{Name: "watched", Make: func(ctx context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
		v, err := makeNull(ctx, env, spec)
		if err != nil {
			return nil, err
		}
		w := &watched{Reshaper: v.(volume.Reshaper)}
		lastWatched.Store(w)
		return w, nil
	}})
	soc.AddKind(volume.Kind{Name: "fixed", Make: func(ctx context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
		v, err := makeNull(ctx, env, spec)
		return struct{ volume.Volume }{v}, err
	}})
}

func makeNull(ctx context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
	return null.Kind.Make(ctx, env, spec)
}

// lastWatched is the volume of kind watched that was opened last.
var lastWatched atomic.Pointer[watched]

// watched is a null volume that keeps requests while it is told to, and notes
// what becomes of it, each with what the state file says at that time.
type watched struct {
	volume.Reshaper
	mu       sync.Mutex
	state    string // path of the state file
	hold     bool
	held     []func() // go on with the requests
	inflight atomic.Int32
	steps    []string
}

func (w *watched) note(step string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := "?"
	if b, err := os.ReadFile(w.state); err == nil {
		_, rest, _ := bytes.Cut(b, []byte(`"size": "`))
		kept, _, _ = strings.Cut(string(rest), `"`)
	}
	w.steps = append(w.steps, fmt.Sprintf(step, args...)+fmt.Sprintf(", state %s, %d in flight", kept, w.inflight.Load()))
}

// took returns the steps since the last call.
func (w *watched) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	steps := w.steps
	w.steps = nil
	return steps
}

func (w *watched) setHold(hold bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hold = hold; hold {
		return
	}
	for _, goon := range w.held {
		goon()
	}
	w.held = nil
}

func (w *watched) Extend(size uint64) error {
	w.note("extend %d", size>>20)
	return w.Reshaper.Extend(size)
}
func (w *watched) Trim() error { w.note("trim"); return w.Reshaper.Trim() }
func (w *watched) Reshape(s volume.Shape) error {
	w.note("reshape %d", s.Size>>20)
	return w.Reshaper.Reshape(s)
}

func (w *watched) Open(p *poller.Poller) (volume.Queue, error) {
	q, err := w.Reshaper.Open(p)
	return &watchedQueue{q, w, p}, err
}

type watchedQueue struct {
	volume.Queue
	w *watched
	p *poller.Poller
}

func (q *watchedQueue) Submit(r *volume.Request) {
	q.w.mu.Lock()
	defer q.w.mu.Unlock()
	if !q.w.hold {
		q.Queue.Submit(r)
		return
	}
	q.w.inflight.Add(1)
	q.w.held = append(q.w.held, func() {
		_ = q.p.Post(func() { // which runs as long as it has requests
			q.w.inflight.Add(-1)
			q.Queue.Submit(r)
		})
	})
}

// TestResizeOrder holds a resize to its order: what is kept comes between the
// medium and hosts, and a medium shrinks when nothing is in flight any more.
func TestResizeOrder(t *testing.T) {
	r := newRigOf(t, 2)
	r.volume("d1", "watched", "size", "64M")
	w := lastWatched.Load()
	w.state = r.paths.StateFile(api.DefaultRuntime)
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	q, err := n.CreatePair(1, 16, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	steps := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, w.took()); diff != "" {
			t.Errorf("steps (-want +got): %s", diff)
		}
	}
	r.resize(96 * mib)
	steps("extend 96, state 64M, 0 in flight", "reshape 96, state 96M, 0 in flight")

	// A write of the part that goes is in flight.
	e := nvme.SQE{Opcode: uint8(nvme.IOWriteZeroes), NSID: 1}
	nvme.RW{SLBA: 96*mib/512 - 1}.Put(&e)
	written := make(chan nvme.CQE, 1)
	w.setHold(true)
	if err := q.Submit(e, func(c nvme.CQE) { written <- c }); err != nil {
		t.Fatal(err)
	}
	within(t, "the write", func() error {
		for w.inflight.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	shrink := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		go func() {
			ended <- r.client().Put(ctx, "/v1/volumes/d1", api.VolumeResize{Size: 32 * mib, Shrink: true}, nil)
		}()
		within(t, "hosts told", func() error {
			for namespace(t, n).NSZE != 32*mib/512 {
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		if st := statusOf(q.Do(e)); st != nvme.StatusLBAOutOfRange|nvme.StatusDNR {
			t.Errorf("another write there: %v", st)
		}
		if len(ended) != 0 {
			t.Fatalf("it has ended, with a write in flight: %v", <-ended)
		}
		// Nobody else may change it now.
		if err := r.client().Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: mib, Add: true}, nil); fault.KindOf(err) != fault.Exists {
			t.Errorf("another resize: %v", err)
		}
		if err := r.client().Post(context.Background(), "/v1/subsystems", api.SubsystemSpec{Name: "s2", Volumes: []string{"d1"}}, nil); fault.KindOf(err) != fault.Exists {
			t.Errorf("another use: %v", err)
		}
		return ended
	}
	// Whoever asked for it goes away: it is as it was.
	ctx, cancel := context.WithCancel(context.Background())
	ended := shrink(ctx)
	cancel()
	<-ended
	within(t, "taken back", func() error {
		for namespace(t, n).NSZE != 96*mib/512 {
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	within(t, "the end of the call", func() error {
		for r.client().Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: 96 * mib}, nil) != nil {
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	r.isVolume(96*mib, 512)
	steps("reshape 32, state 96M, 1 in flight", "reshape 96, state 96M, 1 in flight")
	// The write of before counts the second time, too.
	ended = shrink(context.Background())
	w.setHold(false)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := q.Flush(1); err != nil || len(written) != 1 {
		t.Fatalf("flush: %v, %d writes ended", err, len(written))
	}
	if c := <-written; c.StatusField() != nvme.StatusSuccess {
		t.Errorf("the write in flight: %v", c.StatusField())
	}
	r.isVolume(32*mib, 512)
	steps("reshape 32, state 96M, 1 in flight", "trim, state 32M, 0 in flight")
	r.resize(32 * mib)
	steps("trim, state 32M, 0 in flight")
}

// TestFixedShape: what cannot change is said to be so.
func TestFixedShape(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "fixed", "size", "64M", "block", "4096")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	err := r.client().Put(context.Background(), "/v1/volumes/d1", api.VolumeResize{Size: mib, Add: true}, nil)
	if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "a volume of kind fixed has one size") {
		t.Errorf("resize: %v", err)
	}
	if st := statusOf(n.AdminCommand(formatSQE(0))); st != nvme.StatusInvalidFormat|nvme.StatusDNR {
		t.Errorf("format: %v", st)
	}
	if id := namespace(t, n); id.LBAF[0].LBADS != 0 || id.LBAF[1].LBADS != 12 || id.FLBAS != 1 {
		t.Errorf("formats %v, in use %d", id.LBAF[:2], id.FLBAS)
	}
}
