// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// protection has hosts decide on namespace nsid; status answers them.
func (h *host) protection(nsid uint32, status func() nvme.Status) {
	ns := h.sub.Namespace(nsid)
	ns.Protect = func(on bool, done func(nvme.Status)) {
		go func() {
			st := status()
			if st == nvme.StatusSuccess {
				ns.SetProtected(on)
				drained := make(chan bool)
				h.sub.Follow(nsid, func() { close(drained) })
				<-drained
			}
			done(st)
		}()
	}
}

func success() nvme.Status { return nvme.StatusSuccess }

func protect(state uint32) nvme.SetFeatures {
	return nvme.SetFeatures{FID: nvme.FeatNamespaceWriteProtect, Value: state}
}

// isProtected checks the state of namespace nsid, as every host sees it.
func isProtected(t *testing.T, nsid uint32, want bool, hosts ...*host) {
	t.Helper()
	for _, h := range hosts {
		state, nsattr, status := nvme.WPSNone, uint8(0), nvme.StatusSuccess
		if want {
			state, nsattr, status = nvme.WPSWriteProtect, nvme.NSATTRWriteProtected, nvme.StatusNamespaceWriteProtected|nvme.StatusDNR
		}
		if got := h.admin(nvme.GetFeatures{FID: nvme.FeatNamespaceWriteProtect}, nsid).DW0; got != state {
			t.Errorf("namespace %d: state %d, want %d", nsid, got, state)
		}
		if got := h.admin(nvme.GetFeatures{FID: nvme.FeatNamespaceWriteProtect, SEL: nvme.SelectDefault}, nsid).DW0; got != nvme.WPSNone {
			t.Errorf("namespace %d: default state %d", nsid, got)
		}
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), h.identified(nvme.Identify{CNS: nvme.CNSNamespace}, nsid))
		if id.NSATTR != nsattr {
			t.Errorf("namespace %d: NSATTR %#x, want %#x", nsid, id.NSATTR, nsattr)
		}
		for _, op := range []nvme.IOOpcode{nvme.IOWrite, nvme.IOWriteZeroes} {
			if st := h.run(false, rwSQE(op, nsid, nvme.RW{})).Status; st != status {
				t.Errorf("namespace %d: %v: %v, want %v", nsid, op, st, status)
			}
		}
		if st := h.run(true, sqe(nvme.FormatNVM{}, nsid)).Status; st != status {
			t.Errorf("namespace %d: format: %v, want %v", nsid, st, status)
		}
		if st := h.run(false, rwSQE(nvme.IORead, nsid, nvme.RW{})).Status; st != 0 {
			t.Errorf("namespace %d: read: %v", nsid, st)
		}
	}
}

// A host protects a namespace: writes in flight end first and are on the
// medium, all controllers refuse further ones, and their hosts are told.
func TestProtect(t *testing.T) {
	m := newMemory(1<<20, 512)
	sub := newSubsystem(t, m, newMemory(1<<20, 512))
	h, other := connect(t, sub, nil), connect(t, sub, nil)
	o := h.second()
	h.protection(1, success)
	isProtected(t, 1, false, h, other)
	other.admin(enableNotices, 0)

	m.setHold(true)
	write := o.start(false, newCommand(t, o.p, rwSQE(nvme.IOWrite, 1, nvme.RW{})))
	set := h.start(true, newCommand(t, h.p, sqe(protect(nvme.WPSWriteProtect), 1)))
	settle(h, o, other)
	if !set.running() {
		t.Fatal("protected with a write in flight")
	}
	m.mu.Lock()
	m.log = nil
	m.mu.Unlock()
	o.do(m.release)
	ended(t, "write in flight", 0, write)
	ended(t, "set", 0, set)
	if n := len(m.log); n != 1 || m.log[0].Op != volume.Flush {
		t.Errorf("%d requests since the write, want a flush", n)
	}
	told(t, other.park(), nvme.EventNamespaceAttribute)
	if got := other.changed(false); len(got) != 1 || got[0] != 1 {
		t.Errorf("changed namespaces %v, want 1", got)
	}
	isProtected(t, 1, true, h, other)
	isProtected(t, 2, false, h, other)
	h.admin(protect(nvme.WPSWriteProtect), 1) // again
	other.admin(protect(nvme.WPSNone), 1)
	isProtected(t, 1, false, h, other)
	told(t, other.park(), nvme.EventNamespaceAttribute)
	h.idle()
}

// What cannot be is refused, and leaves everything as it was.
func TestProtectErrors(t *testing.T) {
	m := newMemory(1<<20, 512)
	sub := newSubsystem(t, m, newMemory(1<<20, 512), newMemory(1<<20, 512))
	admins := testNamespace(4, newMemory(1<<20, 512))
	admins.ReadOnly = true
	if err := sub.Add(admins); err != nil {
		t.Fatal(err)
	}
	h := connect(t, sub, nil)
	h.protection(1, success)
	h.protection(2, success)
	h.protection(4, success)
	for _, tt := range []struct {
		state uint32
		nsid  uint32
		want  nvme.Status
	}{
		{nvme.WPSUntilPowerCycle, 1, nvme.StatusInvalidField},
		{nvme.WPSPermanent, 1, nvme.StatusInvalidField},
		{7, 1, nvme.StatusInvalidField},
		{nvme.WPSWriteProtect, 3, nvme.StatusFeatureNotChangeable}, // nobody keeps it
		{nvme.WPSNone, 4, nvme.StatusFeatureNotChangeable},         // whoever made it says so
		{nvme.WPSWriteProtect, nvme.NSIDBroadcast, nvme.StatusFeatureNotChangeable},
		{nvme.WPSWriteProtect, 9, nvme.StatusInvalidField},
		{nvme.WPSWriteProtect, 0, nvme.StatusInvalidNamespaceOrFormat},
	} {
		h.refused(tt.want, protect(tt.state), tt.nsid)
	}
	h.admin(protect(nvme.WPSWriteProtect), 4)
	isProtected(t, 1, false, h)
	isProtected(t, 4, true, h)

	// All of them, if all can; and none, if one fails.
	sub.Remove(3, func() {})
	h.admin(protect(nvme.WPSWriteProtect), nvme.NSIDBroadcast)
	isProtected(t, 1, true, h)
	isProtected(t, 2, true, h)
	h.admin(protect(nvme.WPSNone), 1)
	h.admin(protect(nvme.WPSNone), 2)
	h.protection(2, func() nvme.Status { return nvme.StatusInternalError })
	if st := h.run(true, sqe(protect(nvme.WPSWriteProtect), nvme.NSIDBroadcast)).Status; st != nvme.StatusInternalError {
		t.Errorf("set: %v", st)
	}
	isProtected(t, 1, false, h)
	isProtected(t, 2, false, h)

	m.fail[volume.Flush] = nvme.StatusWriteFault
	if st := h.run(true, sqe(protect(nvme.WPSWriteProtect), 1)).Status; st != nvme.StatusWriteFault {
		t.Errorf("set, without a flush: %v", st)
	}
	delete(m.fail, volume.Flush)
	isProtected(t, 1, false, h)
}
