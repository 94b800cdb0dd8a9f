// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// step is a command of a host's attach sequence, and what must come of it.
type step struct {
	fields putter
	nsid   uint32
	out    []byte
	want   nvme.Status
	check  func(t *testing.T, cmd *hostCommand)
}

func (h *host) attach(steps []step) {
	h.t.Helper()
	for i, s := range steps {
		cmd := newCommand(h.t, h.p, sqe(s.fields, s.nsid))
		cmd.out, cmd.late = s.out, i%2 == 1
		h.start(true, cmd).wait()
		if cmd.Status != s.want {
			h.t.Fatalf("step %d: %s: %v (%#x), want %v", i, nvme.FormatSQE(true, &cmd.SQE), cmd.Status, uint16(cmd.Status), s.want)
		}
		if s.check != nil {
			s.check(h.t.(*testing.T), cmd)
		}
	}
}

// isController checks what hosts insist on in Identify Controller.
func isController(c *Controller) func(*testing.T, *hostCommand) {
	return func(t *testing.T, cmd *hostCommand) {
		var id nvme.IdentifyController
		copy(nvme.Bytes(&id), cmd.data())
		nqn, err := nvme.NQNField(&id.SUBNQN)
		if err != nil || nqn != c.sub.NQN || id.CNTLID != c.CNTLID() || id.NN == 0 || id.SQES != 0x66 || id.CQES != 0x44 ||
			id.CNTRLTYPE != nvme.ControllerTypeIO || id.MDTS == 0 || id.VER != nvme.MakeVS(2, 0, 0) {
			t.Errorf("Identify Controller: NQN %q (%v), %+v", nqn, err, id)
		}
	}
}

func isNamespace(blocks uint64, shift uint8) func(*testing.T, *hostCommand) {
	return func(t *testing.T, cmd *hostCommand) {
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), cmd.data())
		if lbads := id.LBAF[id.FormatIndex()].LBADS; id.NSZE != blocks || id.NCAP != blocks || lbads != shift || id.NGUID == [16]byte{} {
			t.Errorf("Identify Namespace: %d blocks of 2^%d, NGUID %x", id.NSZE, lbads, id.NGUID)
		}
	}
}

func hasNamespaces(want ...uint32) func(*testing.T, *hostCommand) {
	return func(t *testing.T, cmd *hostCommand) {
		var l nvme.NSList
		copy(nvme.Bytes(&l), cmd.data())
		for i, nsid := range append(want, 0) {
			if l.NSIDs[i] != nsid {
				t.Errorf("namespaces %v, want %v", l.NSIDs[:len(want)+1], want)
				return
			}
		}
	}
}

func granted(v uint32) func(*testing.T, *hostCommand) {
	return func(t *testing.T, cmd *hostCommand) {
		if cmd.DW0 != v {
			t.Errorf("DW0 %#x, want %#x", cmd.DW0, v)
		}
	}
}

const refusedField = nvme.StatusInvalidField | nvme.StatusDNR

// What Linux does from enable to block device.
func TestAttachLinux(t *testing.T) {
	q := new(testQueues)
	sub := newSubsystem(t, newMemory(1<<20, 512), newMemory(8<<20, 4096))
	h := connect(t, sub, func(c *Config) { q.p, c.Queues = c.Poller, q })
	var ts nvme.Timestamp
	ts.Set(1_700_000_000_000, 0)
	h.attach([]step{
		{fields: nvme.Identify{CNS: nvme.CNSController}, check: isController(h.c)},
		{fields: nvme.GetLogPage{LID: nvme.LogCommandEffects, NUMD: 1023}, nsid: nvme.NSIDBroadcast},
		{fields: nvme.Identify{CNS: nvme.CNSIOCSController}},
		{fields: nvme.SetFeatures{FID: nvme.FeatTimestamp}, out: nvme.Bytes(&ts)},
		{fields: nvme.SetFeatures{FID: nvme.FeatHostBehavior}, out: nvme.Bytes(&nvme.HostBehavior{ACRE: 1, LBAFEE: 1})},
		{fields: nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, nsid: nvme.NSIDBroadcast},
		{fields: nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold}},
		{fields: nvme.DoorbellBuffer{Shadow: 0x1000, EventIndex: 0x2000}},
		{fields: nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: 1<<16 | 1}, check: granted(1<<16 | 1)},
		{fields: nvme.CreateCQ{QID: 1, QSIZE: 1023, PC: true, IEN: true, IV: 1}},
		{fields: nvme.CreateSQ{QID: 1, QSIZE: 1023, PC: true, QPRIO: nvme.QPRIOMedium, CQID: 1}},
		{fields: nvme.CreateCQ{QID: 2, QSIZE: 1023, PC: true, IEN: true, IV: 2}},
		{fields: nvme.CreateSQ{QID: 2, QSIZE: 1023, PC: true, QPRIO: nvme.QPRIOMedium, CQID: 2}},
		{fields: nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: nvme.NoticeNamespaceAttribute}},
	})
	aer := h.park()
	scan := func(nsid uint32, blocks uint64, shift uint8) []step {
		return []step{
			{fields: nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, nsid: nsid},
			{fields: nvme.Identify{CNS: nvme.CNSIndependentNamespace}, nsid: nsid},
			{fields: nvme.Identify{CNS: nvme.CNSNamespace}, nsid: nsid, check: isNamespace(blocks, shift)},
			{fields: nvme.Identify{CNS: nvme.CNSIOCSNamespace}, nsid: nsid},
		}
	}
	h.attach([]step{{fields: nvme.Identify{CNS: nvme.CNSActiveNamespaces}, check: hasNamespaces(1, 2)}})
	h.attach(scan(1, 2048, 9))
	h.attach(scan(2, 2048, 12))
	// A namespace comes: the event is followed by a read of the list and a scan.
	if err := sub.Add(testNamespace(3, newMemory(512, 512))); err != nil {
		t.Fatal(err)
	}
	told(t, aer, nvme.EventNamespaceAttribute)
	h.park()
	h.attach([]step{
		{fields: nvme.GetLogPage{LID: nvme.LogChangedNamespaces, NUMD: 1023}, nsid: nvme.NSIDBroadcast, check: hasNamespaces(3)},
		{fields: nvme.Identify{CNS: nvme.CNSActiveNamespaces}, check: hasNamespaces(1, 2, 3)},
	})
	h.attach(scan(3, 1, 9))
	// And the reboot.
	h.attach([]step{
		{fields: raw(nvme.AdminDeleteIOSQ)},
		{fields: raw(nvme.AdminDeleteIOCQ)},
	})
}

// What SPDK's initiator does; it takes a refusal of what is optional.
func TestAttachSPDK(t *testing.T) {
	q := new(testQueues)
	h := connect(t, newSubsystem(t, newMemory(1<<20, 512)), func(c *Config) { q.p, c.Queues = c.Poller, q })
	h.attach([]step{
		{fields: nvme.Identify{CNS: nvme.CNSController}, check: isController(h.c)},
		{fields: nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold}},
		{fields: nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: 0x11f}},
	})
	for range aerl + 1 {
		if cmd := h.park(); !cmd.running() {
			t.Fatalf("an event request ended: %v", cmd.Status)
		}
	}
	h.attach([]step{
		{fields: nvme.GetFeatures{FID: nvme.FeatKeepAliveTimer}, want: refusedField}, // KAS is 0
		{fields: nvme.Identify{CNS: nvme.CNSIOCSController}},
		{fields: nvme.Identify{CNS: nvme.CNSIOCSController, CSI: nvme.CSIZNS}, want: refusedField},
		{fields: nvme.Identify{CNS: nvme.CNSIOCSController, CSI: nvme.CSIKV}, want: refusedField},
		{fields: nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: 126<<16 | 126}, check: granted(14<<16 | 14)},
		{fields: nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}, check: granted(14<<16 | 14)},
		{fields: nvme.Identify{CNS: nvme.CNSActiveNamespaces}, check: hasNamespaces(1)},
		{fields: nvme.Identify{CNS: nvme.CNSNamespace}, nsid: 1, check: isNamespace(2048, 9)},
		{fields: nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, nsid: 1},
		{fields: nvme.Identify{CNS: nvme.CNSIOCSNamespace}, nsid: 1},
		{fields: nvme.GetLogPage{LID: nvme.LogSupportedLogPages, NUMD: 255}, nsid: nvme.NSIDBroadcast},
		{fields: nvme.SetFeatures{FID: nvme.FeatHostBehavior}, out: nvme.Bytes(&nvme.HostBehavior{LBAFEE: 1})},
		{fields: nvme.DoorbellBuffer{Shadow: 0x1000, EventIndex: 0x2000}},
		{fields: nvme.SetFeatures{FID: nvme.FeatHostIdentifier}, out: make([]byte, 16), want: refusedField},
		{fields: nvme.CreateCQ{QID: 1, QSIZE: 255, PC: true}},
		{fields: nvme.CreateSQ{QID: 1, QSIZE: 255, PC: true, CQID: 1}},
	})
	if cmd := h.run(false, rwSQE(nvme.IORead, 1, nvme.RW{})); cmd.Status != 0 {
		t.Errorf("the first read: %v", cmd.Status)
	}
}
