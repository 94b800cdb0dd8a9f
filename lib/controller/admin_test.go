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
	live     []*hostCommand // I/O commands that Abort finds
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
	h := connect(t, newSubsystem(t, newMemory(1<<20, 512)), func(c *Config) { q.p, c.Queues, c.Aborter = c.Poller, q, q })
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
		nvme.AdminGetFeatures: both, nvme.AdminAsyncEventRequest: both, nvme.AdminFormatNVM: both,
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
	e := sqe(nvme.Identify{CNS: nvme.CNSController}, 0)
	e.SetPSDT(3)
	if cmd := h.run(true, e); cmd.Status != nvme.StatusInvalidField|nvme.StatusDNR {
		t.Errorf("reserved PSDT: %v", cmd.Status)
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

// Queues made by Connect are as many as have been granted, and settle that.
func TestConnectQueue(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(2, 2))}, 0)
	h.do(func() {
		for qid, want := range map[uint16]bool{0: false, 4: false, 0xffff: false} {
			if got := h.c.ConnectQueue(qid); got != want {
				t.Errorf("queue %d: %v", qid, got)
			}
		}
	})
	h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(2, 2))}, 0) // none was made
	h.do(func() {
		if !h.c.ConnectQueue(1) || !h.c.ConnectQueue(3) {
			t.Error("a granted queue is refused")
		}
	})
	h.refused(nvme.StatusCommandSequenceError, nvme.SetFeatures{FID: nvme.FeatNumberOfQueues}, 0)
}

// A queue that was not made does not settle the number of queues.
func TestQueueNotMade(t *testing.T) {
	h, q := connectPCI(t)
	q.answer = nvme.StatusInvalidQueueSize | nvme.StatusDNR
	h.refused(nvme.StatusInvalidQueueSize, nvme.CreateCQ{QID: 15, PC: true}, 0)
	h.admin(nvme.SetFeatures{FID: nvme.FeatNumberOfQueues}, 0)
}

// Abort implements Aborter: it looks among the commands of the test.
func (q *testQueues) Abort(sqid, cid uint16, done func(bool)) {
	for _, c := range q.live {
		if c.running() && c.SQID == sqid && c.SQE.CID == cid {
			c.Cancel()
			// Further turns of the poller end it if it can be.
			left := 3
			var look func()
			look = func() {
				if left--; c.running() && left > 0 {
					_ = q.p.Post(look)
					return
				}
				done(!c.running() && c.Status == nvme.StatusAbortRequested)
			}
			_ = q.p.Post(look)
			return
		}
	}
	done(false)
}

func TestAbort(t *testing.T) {
	h, q := connectPCI(t)
	abort := func(sqid, cid uint16, want uint32) {
		t.Helper()
		if cmd := h.admin(nvme.Abort{SQID: sqid, CID: cid}, 0); cmd.DW0 != want {
			t.Errorf("abort of command %d of queue %d: DW0 = %#x, want %#x", cid, sqid, cmd.DW0, want)
		}
	}
	m := h.sub.Namespace(1).Volume.(*memory)
	m.hold = true
	for i := range uint16(3) {
		c := newCommand(t, h.p, rwSQE(nvme.IORead, 1, nvme.RW{}))
		c.SQID, c.SQE.CID = i+1, 40
		q.live = append(q.live, h.start(false, c))
	}
	abort(1, 41, nvme.AbortNotDone)
	abort(4, 40, nvme.AbortNotDone)
	abort(2, 40, 0)
	if q.live[1].wait(); q.live[1].Status != nvme.StatusAbortRequested || !q.live[0].running() || !q.live[2].running() {
		t.Errorf("aborted: %v; the others run: %v, %v", q.live[1].Status, q.live[0].running(), q.live[2].running())
	}
	// A command whose volume does not let go of it is not aborted.
	m.held = m.held[:1]
	abort(3, 40, nvme.AbortNotDone)
	h.do(m.release)
	if q.live[0].wait(); q.live[0].Status != 0 {
		t.Errorf("one that was not aborted: %v", q.live[0].Status)
	}
	h.do(func() { q.live[2].req.Complete(nvme.StatusSuccess) })
	q.live[2].wait()

	// Event requests are the controller's own.
	a, b := h.park(), h.park()
	abort(0, a.SQE.CID+50, nvme.AbortNotDone)
	abort(0, b.SQE.CID, 0)
	if b.wait(); b.Status != nvme.StatusAbortRequested || !a.running() || h.parked() != 1 {
		t.Errorf("event request: %v; the other runs: %v, %d parked", b.Status, a.running(), h.parked())
	}
	h.cancel(a)
	if a.wait(); a.Status != nvme.StatusAbortRequested || h.parked() != 0 {
		t.Errorf("event request cancelled: %v, %d parked", a.Status, h.parked())
	}
	if cmd := connect(t, newSubsystem(t), nil).admin(nvme.Abort{SQID: 1, CID: 2}, 0); cmd.DW0 != nvme.AbortNotDone {
		t.Errorf("a transport that cannot abort: DW0 = %#x", cmd.DW0)
	}
}

// The identifier of a command that has not ended is not another's.
func TestCIDConflict(t *testing.T) {
	h := connect(t, newSubsystem(t), nil)
	request := h.park()
	e := sqe(nvme.Identify{CNS: nvme.CNSController}, 0)
	for _, opcode := range []uint8{e.Opcode, uint8(nvme.AdminAsyncEventRequest), 0xff} {
		e.Opcode, e.CID = opcode, request.SQE.CID
		if cmd := h.run(true, e); cmd.Status != nvme.StatusCIDConflict|nvme.StatusDNR || !request.running() {
			t.Errorf("opcode %02Xh: %v, the request runs: %v", opcode, cmd.Status, request.running())
		}
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
