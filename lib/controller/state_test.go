// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// state returns what State does; the payload is a copy.
func (h *host) state() (payload []byte, changed bool) {
	h.t.Helper()
	h.do(func() {
		payload, changed = h.c.State()
		payload = bytes.Clone(payload)
	})
	return payload, changed
}

func (h *host) restore(payload []byte) (err error) {
	h.t.Helper()
	h.do(func() { err = h.c.Restore(payload) })
	return err
}

// roomForState is what a transport has for the state, in bytes.
const roomForState = 8000

func TestStateSize(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	payload, changed := h.state()
	if !changed || len(payload) != binary.Size(&state{}) || len(payload) > roomForState {
		t.Errorf("a new controller: changed %v, %d bytes of %d", changed, len(payload), roomForState)
	}
}

// Whatever the host could notice changes the state, and nothing else does.
func TestStateChanged(t *testing.T) {
	h, _ := connectPCI(t)
	h.state()
	var ts nvme.Timestamp
	ts.Set(1, 0)
	hb := nvme.HostBehavior{ACRE: 1}
	changes := []func(){
		func() { h.admin(enableNotices, 0) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatVolatileWriteCache}, 0) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: 3<<16 | 3}, 0) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatTemperatureThreshold, Value: 300}, 0) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatErrorRecovery, Value: 1}, 1) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatInterruptVectorConfig, Value: 1<<16 | 1}, 0) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatTimestamp}, 0, nvme.Bytes(&ts)...) },
		func() { h.admin(nvme.SetFeatures{FID: nvme.FeatHostBehavior}, 0, nvme.Bytes(&hb)...) },
		func() { h.admin(nvme.CreateCQ{QID: 1, PC: true}, 0) },
		func() { h.event(nvme.EventTransientInternalError) },
		func() { told(t, h.park(), nvme.EventTransientInternalError) },
		func() { h.log(nvme.LogErrorInformation, 64, false) },
		func() { h.sub.Remove(1, func() {}); h.do(func() {}) },
		func() { told(t, h.park(), nvme.EventNamespaceAttribute) },
		func() { h.log(nvme.LogChangedNamespaces, 4096, false) },
	}
	for i, change := range changes {
		change()
		if _, changed := h.state(); !changed {
			t.Errorf("change %d was not noticed", i)
		}
		if _, changed := h.state(); changed {
			t.Errorf("after change %d: changed again", i)
		}
	}
	for _, same := range []putter{
		nvme.Identify{CNS: nvme.CNSController}, nvme.GetFeatures{FID: nvme.FeatVolatileWriteCache}, nvme.Abort{},
		nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, enableNotices,
	} {
		h.admin(same, 0)
		if _, changed := h.state(); changed {
			t.Errorf("%+v changed the state", same)
		}
	}
	h.run(true, nvme.SQE{Opcode: 0xff})
	h.park()
	if _, changed := h.state(); changed {
		t.Error("an error or a parked request changed the state")
	}
}

// A successor goes on as if nothing had happened.
func TestRestore(t *testing.T) {
	sub := newSubsystem(t, newMemory(4096, 512), newMemory(4096, 512), newMemory(4096, 512))
	h := connect(t, sub, func(c *Config) { c.KeepAliveExpired = func() {} })
	values := map[nvme.FeatureID]uint32{
		nvme.FeatArbitration: 3, nvme.FeatPowerManagement: 0x20, nvme.FeatTemperatureThreshold: 333, nvme.FeatVolatileWriteCache: 0,
		nvme.FeatNumberOfQueues: 4<<16 | 2, nvme.FeatWriteAtomicity: 1, nvme.FeatAsyncEventConfig: 0x101, nvme.FeatKeepAliveTimer: 60000,
	}
	for fid, v := range values {
		h.admin(nvme.SetFeatures{FID: fid, Value: v}, 0)
	}
	h.admin(nvme.SetFeatures{FID: nvme.FeatErrorRecovery, Value: 77}, 2)
	var ts nvme.Timestamp
	ts.Set(5_000_000, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatTimestamp}, 0, nvme.Bytes(&ts)...)
	hb := nvme.HostBehavior{ACRE: 1, LBAFEE: 1, CDFE: 4}
	h.admin(nvme.SetFeatures{FID: nvme.FeatHostBehavior}, 0, nvme.Bytes(&hb)...)
	// One error event reported, a spare event pending, namespace 3 changed.
	told(t, func() *hostCommand { r := h.park(); h.event(nvme.EventTransientInternalError); return r }(), nvme.EventTransientInternalError)
	h.event(nvme.EventSpareBelowThreshold)
	h.do(func() { h.c.namespaceEvent(3) })
	payload, _ := h.state()
	id := h.c.CNTLID()
	h.do(func() { h.w.Close(); h.c.Close() })

	next := connect(t, sub, func(c *Config) { c.KeepAliveExpired = func() {} })
	if err := next.restore(payload); err != nil {
		t.Fatal(err)
	}
	if got := next.c.CNTLID(); got != id {
		t.Errorf("CNTLID %d, want %d", got, id)
	}
	if again, _ := next.state(); !bytes.Equal(again, payload) {
		t.Error("the state of the successor differs")
	}
	for fid, want := range values {
		if got := next.admin(nvme.GetFeatures{FID: fid}, 0).DW0; got != want {
			t.Errorf("feature %02Xh: %#x, want %#x", fid, got, want)
		}
	}
	if got := next.admin(nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, 2).DW0; got != 77 {
		t.Errorf("error recovery: %d", got)
	}
	copy(nvme.Bytes(&ts), next.admin(nvme.GetFeatures{FID: nvme.FeatTimestamp}, 0).data())
	if ms := ts.Milliseconds(); ms < 5_000_000 || ms > 5_000_000+uint64(deadline.Milliseconds()) {
		t.Errorf("timestamp %d", ms)
	}
	if got := next.admin(nvme.GetFeatures{FID: nvme.FeatHostBehavior}, 0).data(); !bytes.Equal(got, nvme.Bytes(&hb)) {
		t.Error("host behavior differs")
	}
	if got := next.c.copyFormats.Load(); got != 4 {
		t.Errorf("copy formats %#x", got)
	}
	if !next.c.writeThrough.Load() {
		t.Error("the write cache is enabled")
	}
	told(t, next.park(), nvme.EventSpareBelowThreshold)
	told(t, next.park(), nvme.EventNamespaceAttribute)
	last := next.park()
	next.event(nvme.EventPersistentInternalError)
	if !last.running() {
		t.Error("error events are no longer masked")
	}
	if got := next.changed(false); !slices.Equal(got, []uint32{3}) {
		t.Errorf("changed namespaces: %v, want [3]", got)
	}
}

// Namespaces that changed while no runtime was there are reported.
func TestRestoreNamespaces(t *testing.T) {
	before := newSubsystem(t, newMemory(4096, 512), newMemory(4096, 512), newMemory(4096, 512))
	h := connect(t, before, nil)
	h.admin(enableNotices, 0)
	payload, _ := h.state()

	after := newSubsystem(t, newMemory(4096, 512)) // 2 has gone
	replaced := testNamespace(3, newMemory(4096, 512))
	replaced.UUID[15]++
	for _, ns := range []*Namespace{replaced, testNamespace(9, newMemory(4096, 512))} {
		if err := after.Add(ns); err != nil {
			t.Fatal(err)
		}
	}
	next := connect(t, after, nil)
	if err := next.restore(payload); err != nil {
		t.Fatal(err)
	}
	told(t, next.park(), nvme.EventNamespaceAttribute)
	if got, want := next.changed(false), []uint32{2, 3, 9}; !slices.Equal(got, want) {
		t.Errorf("changed namespaces: %v, want %v", got, want)
	}
}

// An identifier that another controller has stays that one's.
func TestRestoreCNTLID(t *testing.T) {
	sub := newSubsystem(t)
	h, other := connect(t, sub, nil), connect(t, sub, nil)
	payload, _ := h.state()
	mine, its := other.c.CNTLID(), h.c.CNTLID()
	if err := other.restore(payload); err != nil {
		t.Fatal(err)
	}
	if other.c.CNTLID() != mine || h.c.CNTLID() != its {
		t.Errorf("identifiers %d and %d became %d and %d", mine, its, other.c.CNTLID(), h.c.CNTLID())
	}
}

func TestCNTLID(t *testing.T) {
	sub := newSubsystem(t)
	for want, ask := range map[uint16]int{0: 0, 77: 77, MaxCNTLID: MaxCNTLID} {
		h := connect(t, sub, func(c *Config) { c.CNTLID = ask })
		if got := h.c.CNTLID(); got != want {
			t.Errorf("asked for %d: got %d", ask, got)
		}
	}
	for _, ask := range []int{77, MaxCNTLID + 1, 1 << 20} {
		h := connect(t, sub, func(c *Config) { c.CNTLID = ask })
		if got := h.c.CNTLID(); int(got) == ask || got > MaxCNTLID {
			t.Errorf("asked for %d, which cannot be had: got %d", ask, got)
		}
	}
	if ids := sub.cntlids(); len(ids) != 6 || len(slices.Compact(ids)) != 6 {
		t.Errorf("identifiers %v are not all different", ids)
	}
}

func TestRestoreErrors(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	good, _ := h.state()
	magic, version := bytes.Clone(good), bytes.Clone(good)
	magic[0]++
	version[4]++
	for name, tt := range map[string]struct {
		payload []byte
		want    string
	}{
		"nothing": {nil, "controller state of 0 bytes is too short"},
		"short":   {good[:len(good)-1], "controller state of 6639 bytes, expected 6640"},
		"long":    {append(bytes.Clone(good), 0), "controller state of 6641 bytes, expected 6640"},
		"magic":   {magic, "controller state begins with 0x6c746e44, expected 0x6c746e43"},
		"version": {version, "controller state of another version: 3, and this program understands 2"},
	} {
		if err := h.restore(tt.payload); err == nil || err.Error() != tt.want {
			t.Errorf("%s: error %v, want %s", name, err, tt.want)
		}
	}
	if _, changed := h.state(); changed {
		t.Error("a state that was refused changed the controller")
	}
}

// Whatever bytes are restored, the controller works and its state is sound.
func FuzzRestore(f *testing.F) {
	h := connect(f, newSubsystem(f, newMemory(4096, 512)), nil)
	good, _ := h.state()
	// Magic and version are right, or all is refused; patch goes over the rest
	// of a good state, or over bytes that are all fill.
	const head = 8
	f.Add(false, byte(0), uint16(0), []byte(nil))
	f.Add(true, byte(0xff), uint16(0), []byte(nil))
	f.Add(true, byte(0), uint16(binary.Size(&state{})-head-3), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, all bool, fill byte, off uint16, patch []byte) {
		h := &host{t: t, p: h.p, sub: h.sub}
		cfg := testConfig
		cfg.Poller, cfg.KeepAliveExpired = h.p, func() {}
		h.do(func() {
			var err error
			if h.c, err = h.sub.New(cfg); err != nil {
				t.Error(err)
			}
		})
		defer h.do(func() { h.c.Close() })
		payload := bytes.Clone(good)
		body := payload[head:]
		if all {
			copy(body, bytes.Repeat([]byte{fill}, len(body)))
		}
		copy(body[int(off)%len(body):], patch)
		if err := h.restore(payload); err != nil {
			t.Fatal(err)
		}
		values := h.c.features.values
		for fid, v := range values {
			if v&^featureTable[fid].mask != 0 && nvme.FeatureID(fid) != nvme.FeatNumberOfQueues {
				t.Errorf("feature %02Xh: %#x, which cannot be set", fid, v)
			}
		}
		if n := h.c.features.queues(); int(n.NSQ()) >= cfg.MaxQueues || int(n.NCQ()) >= cfg.MaxQueues {
			t.Errorf("%d and %d queues, minus one, of %d", n.NSQ(), n.NCQ(), cfg.MaxQueues)
		}
		saved, _ := h.state()
		if err := h.restore(saved); err != nil {
			t.Fatal(err)
		}
		if again, _ := h.state(); !bytes.Equal(again, saved) {
			t.Error("a state that was restored and saved changes when it is restored again")
		}
		h.changed(false)
		for range aerl + 1 {
			h.park()
		}
		h.admin(nvme.Identify{CNS: nvme.CNSController}, 0)
		h.log(nvme.LogErrorInformation, 64, false)
	})
}
