// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

var shape = volume.Shape{Size: 16 << 20, Block: 512}

// quick are options of a volume that soon notices, and soon tries again.
var quick = []string{"keep-alive", "500ms", "reconnect-delay", "20ms"}

func quickSpec(addr netip.AddrPort, more ...string) *volume.Spec {
	return spec(addr, append(append([]string{}, quick...), more...)...)
}

// patientSpec describes a volume that does not take a machine which is busy for
// a remote that is away.
func patientSpec(addr netip.AddrPort, more ...string) *volume.Spec {
	return spec(addr, append([]string{"keep-alive", "1m"}, more...)...)
}

// TestRestarts: the target ends and comes again under verified load of two
// pollers.
func TestRestarts(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, quickSpec(s.addr))
	clients := []*volumetest.Client{volumetest.Connect(t, r, cfg), volumetest.Connect(t, r, cfg)}
	wait := load(t, clients, 10, 150)
	for range 2 {
		time.Sleep(50 * time.Millisecond)
		s.stop()
		s.start()
		fabricstest.WaitFor(t, "an association", func() bool { return r.Err() == nil })
	}
	wait()
}

// TestCuts: connections are cut, and go silent, under verified load.
func TestCuts(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*proxy)
	}{{"cut", (*proxy).cut}, {"hold", (*proxy).hold}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(t, newServer(t, shape).addr)
			r := open(t, quickSpec(p.addr))
			clients := []*volumetest.Client{volumetest.Connect(t, r, cfg), volumetest.Connect(t, r, cfg)}
			wait := load(t, clients, 10, 60)
			time.Sleep(50 * time.Millisecond)
			tt.do(p)
			fabricstest.WaitFor(t, "the loss", func() bool { return r.Err() != nil })
			wait()
		})
	}
}

// ended is an owner that notes the order of ends.
type ended struct {
	count *atomic.Int32
	place int32
	done  chan struct{}
}

func (e *ended) Completed(*volume.Request) {
	e.place = e.count.Add(1)
	close(e.done)
}

// TestQuiesce: a write that was in flight when the connection was lost is not
// told to have ended before the old controller can do nothing any more, while
// a read ends over the next connection.
func TestQuiesce(t *testing.T) {
	s := newServer(t, shape)
	p := newProxy(t, s.addr)
	r := open(t, quickSpec(p.addr))
	c := volumetest.Connect(t, r, cfg)
	mem := volumetest.NewMemory(t, 8192)
	read := volume.Request{Op: volume.Read, Length: 4096, Segments: mem.Segments(0, 4096)}
	if st := c.Do(t.Context(), &read); st != nvme.StatusSuccess {
		t.Fatal(st)
	}
	p.hold()
	var count atomic.Int32
	first := &ended{count: &count, done: make(chan struct{})}
	second := &ended{count: &count, done: make(chan struct{})}
	write := volume.Request{Op: volume.Write, Offset: 8192, Length: 4096, Segments: mem.Segments(4096, 4096), Owner: first}
	read.Owner = second
	c.On(func() { c.Queue.Submit(&write); c.Queue.Submit(&read) })
	fabricstest.WaitFor(t, "the loss", func() bool { return r.Err() != nil })
	var lost *association
	c.On(func() { lost = r.lanes[c.Poller].a })
	c.On(func() { c.Queue.Cancel(&write) }) // no wish makes it end earlier
	<-second.done
	<-first.done
	if now := r.now(); lost.safe.Load() == 0 || now < lost.safe.Load() {
		t.Errorf("the write has ended at %v, before %v", time.Duration(now), time.Duration(lost.safe.Load()))
	}
	if second.place != 1 || read.Status != nvme.StatusSuccess || write.Status != nvme.StatusAbortRequested {
		t.Errorf("the read is end %d: %v, the write is end %d: %v", second.place, read.Status, first.place, write.Status)
	}
}

// TestFastFail: I/O fails after a while without the remote, and succeeds again
// with it.
func TestFastFail(t *testing.T) {
	s := newServer(t, shape)
	made := quickSpec(s.addr, "fast-io-fail", "100ms")
	r := open(t, made)
	c := volumetest.Connect(t, r, cfg)
	req := volume.Request{Op: volume.Flush}
	if st := c.Do(t.Context(), &req); st != nvme.StatusSuccess {
		t.Fatal(st)
	}
	s.stop()
	fabricstest.WaitFor(t, "the loss", func() bool { return r.Err() != nil })
	for range 3 { // the first while connections are still tried
		if st := c.Do(t.Context(), &req); st != nvme.StatusHostPathingError {
			t.Errorf("without the remote: %v", st)
		}
	}
	s.start()
	fabricstest.WaitFor(t, "an association", func() bool { return r.Err() == nil })
	if st := c.Do(t.Context(), &req); st != nvme.StatusSuccess {
		t.Errorf("with the remote again: %v", st)
	}

	// A volume that is opened without its remote.
	s.stop()
	made.Reopen = true
	r = open(t, made)
	c = volumetest.Connect(t, r, cfg)
	if st := c.Do(t.Context(), &req); st != nvme.StatusHostPathingError {
		t.Errorf("opened without the remote: %v", st)
	}
}

// TestCloseInUse: a volume that is given up although requests wait for its remote
// ends them.
func TestCloseInUse(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, quickSpec(s.addr, "ctrl-loss-timeout", "off"))
	c := volumetest.Connect(t, r, cfg)
	s.stop()
	fabricstest.WaitFor(t, "the loss", func() bool { return r.Err() != nil })
	o := &counter{done: make(chan struct{}), left: 1}
	req := volume.Request{Op: volume.Flush, Owner: o}
	c.On(func() { c.Queue.Submit(&req) })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	<-o.done
	if req.Status != nvme.StatusHostPathingError {
		t.Errorf("it ends with %v", req.Status)
	}
}

// TestLoss: after ctrl-loss-timeout the volume has failed for good, and says
// why.
func TestLoss(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, quickSpec(s.addr, "ctrl-loss-timeout", "100ms"))
	c := volumetest.Connect(t, r, cfg)
	s.stop()
	req := volume.Request{Op: volume.Flush}
	if st := c.Do(t.Context(), &req); st != nvme.StatusHostPathingError && st != nvme.StatusSuccess {
		t.Error(st)
	}
	<-r.done
	if st := c.Do(t.Context(), &req); st != nvme.StatusHostPathingError {
		t.Errorf("after the loss: %v", st)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), s.addr.String()) {
		t.Errorf("the reason: %v", err)
	}
}

// TestAway: a volume that exists is there without its remote, can be used when
// that comes, and can be closed while it is away.
func TestAway(t *testing.T) {
	s := newServer(t, shape)
	made := quickSpec(s.addr)
	open(t, made).Close()
	s.stop()
	made.Reopen = true

	r := open(t, made)
	if got := r.Info().Shape(); got != shape {
		t.Errorf("shape %v, want %v", got, shape)
	}
	if fault.KindOf(r.Err()) != fault.Peer {
		t.Errorf("the reason: %v", r.Err())
	}
	c := volumetest.Connect(t, r, cfg)
	req := volume.Request{Op: volume.Flush}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if st := c.Do(ctx, &req); st != nvme.StatusAbortRequested {
		t.Errorf("cancelled while away: %v", st)
	}
	c.Close()
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	r = open(t, made)
	c = volumetest.Connect(t, r, cfg)
	wait := load(t, []*volumetest.Client{c}, 5, 3)
	s.start()
	wait()

	// Another namespace at that address is not this volume.
	s.uuid = nvme.NewUUID()
	s.stop()
	s.start()
	fabricstest.WaitFor(t, "the other namespace", func() bool { err := r.Err(); return err != nil && strings.Contains(err.Error(), "another one") })
}

// TestKnown: a volume of which the options say what it is can be made while its
// remote is away. If the remote is there, the volume is what that has.
func TestKnown(t *testing.T) {
	s := newServer(t, shape)
	made := quickSpec(s.addr)
	open(t, made).Close()
	again := func(options ...string) *volume.Spec {
		next := &volume.Spec{Name: "r", Kind: "remote", UUID: testUUID, Options: maps.Clone(made.Options)}
		for i := 0; i < len(options); i += 2 {
			next.Options[options[i]] = options[i+1]
		}
		return next
	}
	for _, tt := range []struct {
		key, value string
		want       string
	}{
		{noteSize, "1X", "option size="},
		{noteSize, "1", "not a multiple of the block"},
		{noteBlock, "513", "option block=513"},
		{noteID, "00", "another one"},
	} {
		if _, err := Kind.Make(t.Context(), new(volumetest.Env), again(tt.key, tt.value)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%s: %v, want %q", tt.key, tt.value, err, tt.want)
		}
	}
	for _, size := range []string{made.Options[noteSize], "1M", "1G"} {
		same := again(noteSize, size)
		open(t, same).Close()
		if d := cmp.Diff(made.Options, same.Options); d != "" {
			t.Errorf("made again with size=%s: (-want +got)\n%s", size, d)
		}
	}

	s.stop()
	partly := again()
	delete(partly.Options, noteID)
	if _, err := Kind.Make(t.Context(), new(volumetest.Env), partly); fault.KindOf(err) != fault.Peer {
		t.Errorf("away, and not known: %v", err)
	}
	r := open(t, again())
	if got := r.Info().Shape(); got != shape || fault.KindOf(r.Err()) != fault.Peer {
		t.Errorf("shape %v, %v", got, r.Err())
	}
	c := volumetest.Connect(t, r, cfg)
	wait := load(t, []*volumetest.Client{c}, 5, 3)
	s.start()
	wait()
}

// TestOptions: what is wrong is named.
func TestOptions(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:1")
	for _, tt := range []struct {
		key, value string
		kind       fault.Kind
		want       string
	}{
		{"addr", "", fault.Usage, "addr="},
		{"addr", "tcp://h", fault.Usage, "names no subsystem"},
		{"addr", "udp://h/" + testNQN, fault.Usage, "udp"},
		{"addr", "rdma://h/" + testNQN, fault.Unsupported, "rdma"},
		{"hdr-digest", "yes", fault.Usage, "hdr-digest=yes"},
		{"keep-alive", "1ms", fault.Usage, "keep-alive=1ms"},
		{"keep-alive", "off", fault.Usage, "keep-alive=off"},
		{"fast-io-fail", "soon", fault.Usage, "fast-io-fail=soon"},
		{"host-nqn", "me", fault.Usage, "host-nqn="},
		{"queues", "0", fault.Usage, "queues=0"},
		{"queues", "17", fault.Usage, "queues=17"},
		{"resubmit", "always", fault.Usage, "resubmit=always"},
		{"keep-alive", "5s", fault.Peer, "refused"},
	} {
		s := spec(addr)
		s.Options[tt.key] = tt.value
		_, err := Kind.Make(t.Context(), new(volumetest.Env), s)
		if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%s: %v (%v), want %v, %q", tt.key, tt.value, err, fault.KindOf(err), tt.kind, tt.want)
		}
	}
	s := newServer(t, shape)
	wrong := spec(s.addr)
	wrong.Options["addr"] += "?nsid=9"
	if _, err := Kind.Make(t.Context(), new(volumetest.Env), wrong); err == nil || !strings.Contains(err.Error(), "amespace") {
		t.Errorf("nsid=9: %v", err)
	}
	wrong = spec(s.addr)
	wrong.Options["addr"] += "1"
	if _, err := Kind.Make(t.Context(), new(volumetest.Env), wrong); fault.KindOf(err) != fault.NotFound && fault.KindOf(err) != fault.Usage {
		t.Errorf("another NQN: %v (%v)", err, fault.KindOf(err))
	}
}
