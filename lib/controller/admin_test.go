// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// testQueues is a transport's queues: it notes what it is asked for, and
// answers in a later turn.
type testQueues struct {
	p        *poller.Poller
	answer   nvme.Status
	noShadow bool
	calls    []string
}

func (q *testQueues) call(done func(nvme.Status), format string, args ...any) {
	q.calls = append(q.calls, fmt.Sprintf(format, args...))
	st := q.answer
	if err := q.p.Post(func() { done(st) }); err != nil {
		panic(err)
	}
}

func (q *testQueues) CreateCQ(cmd nvme.CreateCQ, addr uint64, done func(nvme.Status)) {
	q.call(done, "create cq %d size %d vector %d at %#x", cmd.QID, cmd.QSIZE, cmd.IV, addr)
}

func (q *testQueues) CreateSQ(cmd nvme.CreateSQ, addr uint64, done func(nvme.Status)) {
	q.call(done, "create sq %d size %d cq %d at %#x", cmd.QID, cmd.QSIZE, cmd.CQID, addr)
}

func (q *testQueues) DeleteCQ(qid uint16, done func(nvme.Status)) { q.call(done, "delete cq %d", qid) }
func (q *testQueues) DeleteSQ(qid uint16, done func(nvme.Status)) { q.call(done, "delete sq %d", qid) }

func (q *testQueues) Shadow(doorbells, events uint64, done func(nvme.Status)) {
	q.call(done, "shadow %#x %#x", doorbells, events)
}

func (q *testQueues) CanShadow() bool { return !q.noShadow }

// connectPCI makes a controller whose queues are made by admin commands.
func connectPCI(t *testing.T) (*host, *testQueues) {
	t.Helper()
	q := new(testQueues)
	h := connect(t, newSubsystem(t, newMemory(1<<20, 512)), func(c *Config) { q.p, c.Queues = c.Poller, q })
	return h, q
}

// raw is a command by its opcode alone.
type raw uint8

func (r raw) Put(e *nvme.SQE) { e.Opcode = uint8(r) }

func TestAdminOpcodes(t *testing.T) {
	fabrics := connect(t, newSubsystem(t), func(c *Config) { c.KeepAliveExpired = func() {} })
	pci, q := connectPCI(t)
	slow, _ := connectPCI(t)
	slow.do(func() { slow.c.cfg.Queues.(*testQueues).noShadow = true })
	_ = q
	const both, onPCI, onFabrics, shadowed = "pci slow fabrics", "pci slow", "fabrics", "pci"
	want := map[nvme.AdminOpcode]string{
		nvme.AdminDeleteIOSQ: onPCI, nvme.AdminCreateIOSQ: onPCI, nvme.AdminDeleteIOCQ: onPCI, nvme.AdminCreateIOCQ: onPCI,
		nvme.AdminGetLogPage: both, nvme.AdminIdentify: both, nvme.AdminAbort: both, nvme.AdminSetFeatures: both,
		nvme.AdminGetFeatures: both, nvme.AdminAsyncEventRequest: both,
		nvme.AdminKeepAlive: onFabrics, nvme.AdminDoorbellBufferConfig: shadowed,
	}
	for name, h := range map[string]*host{"fabrics": fabrics, "pci": pci, "slow": slow} {
		effects := h.log(nvme.LogCommandEffects, 4096, false)
		for op := range 256 {
			offered := strings.Contains(want[nvme.AdminOpcode(op)], name)
			if supported := effects[op*4]&1 != 0; supported != offered {
				t.Errorf("%s: effects log says %v of %v", name, supported, nvme.AdminOpcode(op))
			}
			if op == int(nvme.AdminAsyncEventRequest) {
				continue
			}
			cmd := h.run(true, nvme.SQE{Opcode: uint8(op), CDW10: 1, CDW11: 1, NSID: 1})
			if refused := cmd.Status == nvme.StatusInvalidOpcode|nvme.StatusDNR; refused == offered {
				t.Errorf("%s: %v: status %v, offered %v", name, nvme.AdminOpcode(op), cmd.Status, offered)
			}
		}
	}
}

func TestAdminFused(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	for _, fuse := range []nvme.Fuse{nvme.FuseFirst, nvme.FuseSecond, 3} {
		e := sqe(nvme.Identify{CNS: nvme.CNSController}, 0)
		e.SetFuse(fuse)
		if cmd := h.run(true, e); cmd.Status != nvme.StatusInvalidField|nvme.StatusDNR {
			t.Errorf("fuse %d: %v", fuse, cmd.Status)
		}
	}
}

func TestQueueCommands(t *testing.T) {
	h, q := connectPCI(t)
	run := func(fields putter, prp1, prp2 uint64) nvme.Status {
		t.Helper()
		e := sqe(fields, 0)
		if prp1 != 0 {
			e.PRP1, e.PRP2 = prp1, prp2
		}
		return h.run(true, e).Status
	}
	h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(1, 2))}, 0)
	for _, tt := range []struct {
		fields     putter
		prp1, prp2 uint64
		want       nvme.Status
		call       string
	}{
		{nvme.CreateCQ{QID: 3, QSIZE: 63, PC: true, IEN: true, IV: 2}, 0x1000, 0, 0, "create cq 3 size 63 vector 2 at 0x1000"},
		{nvme.CreateCQ{QID: 4, QSIZE: 63, PC: true}, 0x1000, 0, nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR, ""},
		{nvme.CreateSQ{QID: 2, QSIZE: 31, PC: true, CQID: 3}, 0x2000, 0, 0, "create sq 2 size 31 cq 3 at 0x2000"},
		{nvme.CreateSQ{QID: 3, QSIZE: 31, PC: true, CQID: 3}, 0x2000, 0, nvme.StatusInvalidQueueIdentifier | nvme.StatusDNR, ""},
		{nvme.DoorbellBuffer{Shadow: 0x3000, EventIndex: 0x4000}, 0, 0, 0, "shadow 0x3000 0x4000"},
	} {
		q.calls = nil
		if got := run(tt.fields, tt.prp1, tt.prp2); got != tt.want {
			t.Errorf("%+v: status %v, want %v", tt.fields, got, tt.want)
		}
		if got := strings.Join(q.calls, "; "); got != tt.call {
			t.Errorf("%+v: transport was asked for %q, want %q", tt.fields, got, tt.call)
		}
	}
	q.calls = nil
	for _, op := range []nvme.AdminOpcode{nvme.AdminDeleteIOSQ, nvme.AdminDeleteIOCQ} {
		if cmd := h.run(true, nvme.SQE{Opcode: uint8(op), CDW10: 2}); cmd.Status != 0 {
			t.Errorf("%v: %v", op, cmd.Status)
		}
	}
	if want := []string{"delete sq 2", "delete cq 2"}; !slices.Equal(q.calls, want) {
		t.Errorf("transport was asked for %q, want %q", q.calls, want)
	}
	// Once a queue has been made, their number is settled.
	h.refused(nvme.StatusCommandSequenceError, nvme.SetFeatures{FID: nvme.FeatNumberOfQueues}, 0)
	// What the transport says is the answer.
	q.answer = nvme.StatusInvalidQueueSize | nvme.StatusDNR
	h.refused(nvme.StatusInvalidQueueSize, nvme.CreateCQ{QID: 1, PC: true}, 0)
	h.refused(nvme.StatusInvalidQueueSize, nvme.CreateSQ{QID: 1, PC: true}, 0)
	h.refused(nvme.StatusInvalidQueueSize, nvme.DoorbellBuffer{}, 0)
	for _, fields := range []putter{nvme.CreateCQ{QID: 1}, nvme.CreateSQ{QID: 1}, nvme.DoorbellBuffer{}} {
		e := sqe(fields, 0)
		e.SetPSDT(nvme.PSDTSGL)
		if cmd := h.run(true, e); cmd.Status != nvme.StatusInvalidField|nvme.StatusDNR {
			t.Errorf("%+v with an SGL: %v", fields, cmd.Status)
		}
	}
}

// A queue that was not made does not settle the number of queues.
func TestQueueNotMade(t *testing.T) {
	h, q := connectPCI(t)
	q.answer = nvme.StatusInvalidQueueSize | nvme.StatusDNR
	h.refused(nvme.StatusInvalidQueueSize, nvme.CreateCQ{QID: 15, PC: true}, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues}, 0)
}

func TestAbort(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	cmd := h.admin(nvme.Abort{SQID: 1, CID: 2}, 0)
	if cmd.DW0 != nvme.AbortNotDone {
		t.Errorf("DW0 = %#x, want %#x", cmd.DW0, nvme.AbortNotDone)
	}
}

// Data may come later, in any pieces, or not at all.
func TestAdminData(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(1<<20, 512)), nil)
	whole := h.admin(nvme.Identify{CNS: nvme.CNSController}, 0).data()
	defer h.do(func() {
		if left := h.p.Touch(nil); left != nil {
			t.Errorf("a command that has ended is still said to touch memory: %T", left)
		}
	})
	for _, late := range []bool{false, true} {
		for _, pieces := range [][]int{{4096}, {1}, {4, 4092}, {13, 1000}} {
			cmd := newCommand(t, h.p, sqe(nvme.Identify{CNS: nvme.CNSController}, 0))
			cmd.late, cmd.pieces = late, pieces
			h.start(true, cmd).wait()
			if got := cmd.data(); cmd.Status != 0 || string(got) != string(whole) {
				t.Errorf("late %v, pieces %v: status %v, data differs", late, pieces, cmd.Status)
			}
		}
		for _, fields := range []putter{
			nvme.Identify{CNS: nvme.CNSController},
			nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127},
			nvme.SetFeatures{FID: nvme.FeatTimestamp},
		} {
			cmd := newCommand(t, h.p, sqe(fields, 0))
			cmd.late, cmd.refuse = late, nvme.StatusInvalidPRPOffset|nvme.StatusDNR
			if h.start(true, cmd).wait(); cmd.Status != cmd.refuse {
				t.Errorf("late %v: %s: %v, want %v", late, nvme.FormatSQE(true, &cmd.SQE), cmd.Status, cmd.refuse)
			}
		}
	}
}
