// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
)

const (
	// readyTimeout is CAP.TO and CRTO in units of 500 ms: a reset waits for I/O to end.
	readyTimeout = 255
	// sgls is how commands describe their data.
	sgls = nvme.SGLSNoAlignment | nvme.SGLSLongerThanData | nvme.SGLSAddressOffset | nvme.SGLSTransportBlocks
	// ofcs says that I/O queues can be deleted by Disconnect.
	ofcs = 1 << 0
)

// version is the VS property.
var version = nvme.MakeVS(2, 0, 0)

// association is a host's use of a subsystem. Unless noted, its fields are for the poller of the admin queue.
type association struct {
	t     *Target
	id    uint64
	admin *queue
	since time.Time

	// Fixed from Connect on.
	hostNQN, subNQN string
	hostID          [16]byte
	sub             *controller.Subsystem // nil for a discovery controller
	cntlid          uint16
	kato            uint32

	ctrl      *controller.Controller
	discovery *discovery // or that
	queues    map[uint16]*queue
	count     atomic.Int32 // of queues, for anybody
	accounts  []account    // by shard; each for its poller

	cc        nvme.CC
	csts      nvme.CSTS
	resetting bool
	flushing  bool // at shutdown
	ending    bool
	gone      bool
	follow    []func() // told when it has gone
}

var (
	errAssociationEnded = errors.New("the association has ended")
	errKeepAlive        = errors.New("keep alive timeout")
	errReset            = errors.New("the host has reset the controller")
)

// post runs f on the association's poller, which outlives it.
func (a *association) post(f func()) { _ = a.admin.on.p.Post(f) }

// describe may be called from any goroutine.
func (a *association) describe() Association {
	return Association{
		HostNQN: a.hostNQN, SubsystemNQN: a.subNQN, CNTLID: a.cntlid,
		Queues: int(a.count.Load()), Peer: a.admin.peer, Since: a.since,
	}
}

// enlist makes the association known, so that I/O queues find it, and gives it its number; a discovery controller also its CNTLID.
func (t *Target) enlist(a *association) {
	a.id = t.number()
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.discovery != nil {
		a.cntlid = t.discoveryCNTLID()
	}
	t.associations[a] = true
	t.cfg.Changed()
}

// takeSeat counts an association with a subsystem, if there may be one more.
func (t *Target) takeSeat() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seats >= t.limits.Associations {
		return false
	}
	t.seats++
	return true
}

// leaveSeat counts one less.
func (t *Target) leaveSeat() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seats--
}

// discoveryCNTLID returns a free controller identifier of the discovery subsystem: hosts know it by a name of its own, and two of its
// controllers by their identifiers. t.mu is held.
func (t *Target) discoveryCNTLID() uint16 {
	for {
		t.lastCNTLID = t.lastCNTLID%controller.MaxCNTLID + 1
		used := false
		for a := range t.associations {
			used = used || a.discovery != nil && a.cntlid == t.lastCNTLID
		}
		if !used { // there are more identifiers than connections
			return t.lastCNTLID
		}
	}
}

// find returns the association of an I/O queue, or nil.
func (t *Target) find(subNQN string, cntlid uint16) *association {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.associations {
		if a.cntlid == cntlid && a.subNQN == subNQN && a.discovery == nil {
			return a
		}
	}
	return nil
}

// newController makes the controller, which has the identifier cntlid if that is free, or any if it is negative.
func (a *association) newController(cntlid int) error {
	limits := &a.t.limits
	ctrl, err := a.sub.New(controller.Config{
		Poller: a.admin.on.p, CNTLID: cntlid, VS: version, MaxQueues: limits.Queues, SGLS: sgls,
		KeepAlive: a.kato, KeepAliveExpired: func() { a.end(errKeepAlive) },
		Aborter: a, Fabrics: limits.fields(), Log: a.t.cfg.Log,
	})
	if err != nil {
		return err
	}
	if cntlid >= 0 && int(ctrl.CNTLID()) != cntlid {
		ctrl.Close()
		return fmt.Errorf("controller identifier %d is in use", cntlid)
	}
	a.ctrl = ctrl
	return nil
}

// fields are what a capsule can be.
func (l *Limits) fields() controller.Fabrics {
	return controller.Fabrics{
		IOCCSZ: uint32(nvme.SQESize+l.InCapsule) / 16, IORCSZ: nvme.CQESize / 16, MSDBD: 1, OFCS: ofcs, MAXCMD: uint16(l.QueueEntries),
	}
}

// capabilities is the CAP property.
func (l *Limits) capabilities() nvme.CAP {
	return nvme.CAP(0).WithMQES(uint16(l.QueueEntries - 1)).WithCQR(true).WithTO(readyTimeout).WithCSS(nvme.CSSNVM).WithCRMS(nvme.CRMSWithMedia)
}

// property returns the value of a property, of 8 bytes or of 4.
func (a *association) property(p fabrics.Property) (uint64, bool) {
	if p.Wide {
		return uint64(a.t.limits.capabilities()), p.OFST == nvme.RegCAP
	}
	switch p.OFST {
	case nvme.RegVS:
		return uint64(version), true
	case nvme.RegCC:
		return uint64(a.cc), true
	case nvme.RegCSTS:
		return uint64(a.csts), true
	case nvme.RegCRTO:
		return uint64(nvme.MakeCRTO(readyTimeout, 0)), true
	}
	return 0, false
}

// configure takes a new value of CC (NVMe Base, "Controller Configuration").
func (a *association) configure(cc nvme.CC) {
	before := a.cc
	a.cc = cc
	switch {
	case cc.EN() && !before.EN() && !a.resetting:
		a.enable()
	case !cc.EN() && before.EN():
		a.reset()
	}
	if cc.SHN() != nvme.SHNNone && before.SHN() == nvme.SHNNone {
		a.shutdown()
	}
}

// enable makes the controller ready.
func (a *association) enable() {
	if reason := checkEnable(a.cc, a.discovery != nil); reason != "" {
		a.admin.l.seldom("controller cannot be enabled", "host", a.hostNQN, "reason", reason)
		a.csts = a.csts.WithCFS(true)
		return
	}
	a.csts = a.csts.WithRDY(true)
}

// checkEnable says why a controller cannot be enabled with these values, or "".
func checkEnable(cc nvme.CC, discovery bool) string {
	switch {
	case cc.MPS() != 0:
		return fmt.Sprintf("CC.MPS %d is not supported", cc.MPS())
	case cc.CSS() != nvme.CCCSSNVM && !discovery:
		return fmt.Sprintf("CC.CSS %d is not supported", cc.CSS())
	case cc.AMS() != 0:
		return fmt.Sprintf("CC.AMS %d is not supported", cc.AMS())
	case !discovery && (cc.IOSQES() != nvme.SQEShift || cc.IOCQES() != nvme.CQEShift):
		return fmt.Sprintf("I/O queue entry sizes 2^%d and 2^%d are not supported", cc.IOSQES(), cc.IOCQES())
	}
	return ""
}

// reset ends the I/O queues and what the admin queue executes, and makes a new controller. CSTS.RDY is 1 until that is done.
func (a *association) reset() {
	if a.discovery != nil {
		a.discovery.stop()
		a.discovery.reset()
		a.csts = 0
		return
	}
	a.resetting = true
	a.closeQueues(errReset)
	for _, c := range a.admin.all {
		switch {
		case c.admin && c.stage == executing:
			c.muted = true
			c.Cancel()
		case c.stage == pending:
			c.stage, c.muted = done, true
			c.recycle()
		}
	}
	a.admin.line = nil
	a.settle()
}

// shutdown makes what the host has written survive power loss.
func (a *association) shutdown() {
	complete := func() { a.csts = a.csts.WithSHST(nvme.SHSTComplete) }
	if a.discovery != nil || a.ending {
		complete()
		return
	}
	w, err := a.ctrl.Worker(a.admin.on.p)
	if err != nil {
		a.admin.l.seldom("flush at shutdown failed", "host", a.hostNQN, "err", err)
		complete()
		return
	}
	a.csts = a.csts.WithSHST(nvme.SHSTOccurring)
	a.flushing = true
	a.ctrl.Shutdown(w, func() {
		a.flushing = false
		w.Close()
		complete()
		a.settle()
	})
}

// closeQueues closes the I/O queues.
func (a *association) closeQueues(err error) {
	for _, q := range a.queues {
		_ = q.on.p.Post(func() {
			if err == errDisconnected {
				q.conn.Finish(err)
			} else {
				q.conn.Close(err)
			}
		})
	}
}

// join adds I/O queue q, whose Connect asks for qid, or says why not.
func (a *association) join(q *queue, qid uint16) (nvme.Status, fabrics.InvalidParameter) {
	switch {
	case a.ending || a.resetting || !a.csts.RDY():
		return nvme.StatusCommandSequenceError | nvme.StatusDNR, 0
	case !a.ctrl.ConnectQueue(qid):
		return fabrics.StatusInvalidParameters | nvme.StatusDNR, fabrics.MakeInvalidParameter(fabrics.OffsetQID, false)
	case a.queues[qid] != nil:
		return nvme.StatusCommandSequenceError | nvme.StatusDNR, 0
	}
	a.queues[qid] = q
	a.count.Add(1)
	return nvme.StatusSuccess, 0
}

// left takes an I/O queue away that has ended.
func (a *association) left(q *queue) {
	if a.queues[q.id] == q {
		delete(a.queues, q.id)
		a.count.Add(-1)
	}
	a.settle()
}

// end ends the association.
func (a *association) end(err error) {
	if a.ending {
		return
	}
	a.ending = true
	if err == errKeepAlive {
		a.admin.l.seldom("host has not kept its association alive", "host", a.hostNQN, "subsystem", a.subNQN)
	}
	a.csts = 0
	if a.discovery != nil {
		a.discovery.stop()
	}
	if err == errDisconnected {
		a.closeQueues(errDisconnected)
		a.admin.conn.Finish(errDisconnected)
	} else {
		a.cut(errAssociationEnded)
	}
	a.settle()
}

// cut closes all connections.
func (a *association) cut(err error) {
	a.closeQueues(err)
	a.admin.conn.Close(err)
}

// settle goes on with the end of the association, or of its controller, when its commands have ended.
func (a *association) settle() {
	if a.gone || !a.ending && !a.resetting || a.flushing || len(a.queues) > 0 {
		return
	}
	if a.ending {
		if a.admin.ended {
			a.leave()
		}
		return
	}
	if a.admin.executing > a.ctrl.Parked() {
		return
	}
	for _, c := range a.admin.all {
		c.muted = c.muted || c.admin // event requests, which Close ends
	}
	a.ctrl.Close()
	a.resetting, a.csts = false, 0
	if err := a.newController(int(a.cntlid)); err != nil {
		a.admin.l.seldom("controller cannot be reset", "host", a.hostNQN, "subsystem", a.subNQN, "err", err)
		a.csts = a.csts.WithCFS(true)
		a.end(errAssociationEnded)
		return
	}
	if a.cc.EN() {
		a.enable()
	}
}

// leave ends the controller. Nothing of the association is in execution.
func (a *association) leave() {
	a.gone = true
	if a.ctrl != nil {
		a.ctrl.Close()
	}
	for i := range a.accounts {
		a.accounts[i].close() // nothing of it is used any more
		if s := a.accounts[i].share; s != nil {
			_ = a.t.cfg.Pollers[i].Post(s.Close)
		}
	}
	a.t.mu.Lock()
	delete(a.t.associations, a)
	a.t.mu.Unlock()
	if a.discovery == nil {
		a.t.leaveSeat()
	}
	a.t.cfg.Changed()
	for _, told := range a.follow {
		told()
	}
	a.admin.l.live.Done()
}
