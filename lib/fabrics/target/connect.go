// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"errors"
	"time"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/stats"
)

var errDisconnect = errors.New("disconnected by the host")

// fabricsCommand executes a Fabrics command (NVMe Base, "Fabrics Command Set").
func (q *queue) fabricsCommand(c *command) {
	c.own()
	t := fabrics.TypeOf(&c.SQE)
	switch {
	case t == fabrics.Connect && q.progress == initialized:
		q.connect(c)
	case t == fabrics.Connect, q.progress != live:
		c.finish(nvme.StatusCommandSequenceError | nvme.StatusDNR)
	case t == fabrics.PropertyGet && q.id == 0:
		q.propertyGet(c)
	case t == fabrics.PropertySet && q.id == 0:
		q.propertySet(c)
	case t == fabrics.Disconnect:
		q.disconnect(c)
	default:
		c.finish(nvme.StatusInvalidOpcode | nvme.StatusDNR)
	}
}

func (q *queue) propertyGet(c *command) {
	p, ok := fabrics.PropertyOf(&c.SQE)
	value, known := q.a.property(p)
	if !ok || !known {
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	c.DW0, c.DW1 = uint32(value), uint32(value>>32)
	c.finish(nvme.StatusSuccess)
}

func (q *queue) propertySet(c *command) {
	p, ok := fabrics.PropertyOf(&c.SQE)
	if !ok || p.Wide || p.OFST != nvme.RegCC {
		c.finish(nvme.StatusInvalidField | nvme.StatusDNR)
		return
	}
	q.a.configure(nvme.CC(p.Value))
	c.finish(nvme.StatusSuccess)
}

// disconnect deletes an I/O queue: its connection ends after the response.
func (q *queue) disconnect(c *command) {
	switch {
	case q.id == 0:
		c.finish(fabrics.StatusInvalidQueueType | nvme.StatusDNR)
	case fabrics.DisconnectFormat(&c.SQE) != 0:
		c.finish(fabrics.StatusIncompatibleFormat | nvme.StatusDNR)
	default:
		c.finish(nvme.StatusSuccess)
		q.conn.Finish(errDisconnect)
	}
}

// invalid ends a Connect for the field at this offset.
func (c *command) invalid(offset uint16, inData bool) {
	c.DW0 = uint32(fabrics.MakeInvalidParameter(offset, inData))
	c.finish(fabrics.StatusInvalidParameters | nvme.StatusDNR)
}

// connect executes Connect: first what the command itself says, then its data.
func (q *queue) connect(c *command) {
	cmd := fabrics.ConnectOf(&c.SQE)
	switch {
	case cmd.RECFMT != 0:
		c.finish(fabrics.StatusIncompatibleFormat | nvme.StatusDNR)
	case cmd.SQSIZE == 0 || int(cmd.SQSIZE) >= q.t.limits.entries(cmd.QID):
		c.invalid(fabrics.OffsetSQSIZE, false)
	default:
		q.progress = joining
		c.want(connectSize, controller.FromHost, func(st nvme.Status) { q.connectData(c, cmd, st) })
	}
}

const connectSize = 1024

// request is a Connect whose data is there and is right in itself.
type request struct {
	fabrics.ConnectCommand
	hostID          [16]byte
	cntlid          uint16
	subNQN, hostNQN string
}

// connectData goes on with Connect when its data is there, or is known not to come.
func (q *queue) connectData(c *command, cmd fabrics.ConnectCommand, st nvme.Status) {
	q.progress = initialized // until it succeeds
	if st != nvme.StatusSuccess {
		c.finish(st)
		return
	}
	var d fabrics.ConnectData
	p := fabrics.Bytes(&d)
	for _, s := range c.Segments {
		p = p[copy(p, s.Bytes()):]
	}
	r := request{ConnectCommand: cmd, hostID: d.HOSTID, cntlid: d.CNTLID}
	var ok bool
	if r.subNQN, ok = fabrics.Name(&d.SUBNQN); !ok || nvme.CheckNQN(r.subNQN) != nil {
		c.invalid(fabrics.OffsetSUBNQN, true)
		return
	}
	if r.hostNQN, ok = fabrics.Name(&d.HOSTNQN); !ok || nvme.CheckNQN(r.hostNQN) != nil {
		c.invalid(fabrics.OffsetHOSTNQN, true)
		return
	}
	if r.QID == 0 {
		q.connectAdmin(c, r)
	} else {
		q.connectIO(c, r)
	}
}

// connectAdmin begins an association.
func (q *queue) connectAdmin(c *command, r request) {
	if r.cntlid != fabrics.CNTLIDDynamic {
		c.invalid(fabrics.OffsetCNTLID, true)
		return
	}
	a := &association{
		t: q.t, admin: q, since: time.Now(), hostNQN: r.hostNQN, subNQN: r.subNQN, hostID: r.hostID, kato: r.KATO,
		queues: make(map[uint16]*queue), accounts: make([]account, len(q.t.cfg.Pollers)),
	}
	if q.t.discovers(r.subNQN) {
		a.discovery = newDiscovery(a)
		q.enter(c, a, r)
		return
	}
	q.progress = joining
	q.alone(r, func(ok bool) {
		q.progress, q.since = initialized, q.on.p.Now() // the host's time begins again
		switch {
		case q.dead:
			c.finish(nvme.StatusAbortedSQDeletion)
		case !ok:
			q.l.seldom("host has to wait for its own commands of before", "host", a.hostNQN, "subsystem", a.subNQN)
			c.finish(fabrics.StatusControllerBusy)
		case !q.t.takeSeat():
			q.l.seldom("there are as many associations as may be", "host", a.hostNQN, "associations", q.t.limits.Associations)
			c.finish(fabrics.StatusControllerBusy)
		case a.attach(c):
			q.enter(c, a, r)
		default:
			q.t.leaveSeat()
		}
	})
}

// enter makes the queue the admin queue of a new association.
func (q *queue) enter(c *command, a *association, r request) {
	q.t.enlist(a)
	q.l.live.Add(1)
	q.accept(c, a, r)
}

// attach finds the subsystem and makes the controller; otherwise it has ended the command.
func (a *association) attach(c *command) bool {
	var err error
	a.sub, err = a.t.cfg.Subsystem(a.admin.l.id, a.subNQN, a.hostNQN)
	switch {
	case errors.Is(err, ErrNoSubsystem):
		c.invalid(fabrics.OffsetSUBNQN, true)
		return false
	case errors.Is(err, ErrHostNotAllowed):
		c.finish(fabrics.StatusInvalidHost | nvme.StatusDNR)
		return false
	}
	if err == nil {
		err = a.newController(-1)
	}
	if err != nil {
		a.admin.l.seldom("subsystem is not ready for a host", "host", a.hostNQN, "subsystem", a.subNQN, "err", err)
		c.finish(fabrics.StatusControllerBusy)
		return false
	}
	a.cntlid = a.ctrl.CNTLID()
	return true
}

// connectIO adds an I/O queue to an association, which another poller may have.
func (q *queue) connectIO(c *command, r request) {
	a := q.t.find(r.subNQN, r.cntlid)
	switch {
	case q.t.discovers(r.subNQN):
		c.invalid(fabrics.OffsetQID, false)
		return
	case a == nil:
		c.invalid(fabrics.OffsetCNTLID, true)
		return
	case a.hostNQN != r.hostNQN:
		c.invalid(fabrics.OffsetHOSTNQN, true)
		return
	case a.hostID != r.hostID:
		c.invalid(fabrics.OffsetHOSTID, true)
		return
	}
	q.progress = joining
	a.post(func() {
		if a.gone {
			_ = q.on.p.Post(func() { q.joined(c, a, nil, r, nvme.StatusCommandSequenceError|nvme.StatusDNR, 0) })
			return
		}
		st, parameter := a.join(q, r.QID)
		ctrl := a.ctrl
		_ = q.on.p.Post(func() { q.joined(c, a, ctrl, r, st, parameter) })
	})
}

// joined goes on with the Connect of an I/O queue when the association has answered.
func (q *queue) joined(c *command, a *association, ctrl *controller.Controller, r request, st nvme.Status, parameter fabrics.InvalidParameter) {
	q.progress = initialized
	if st != nvme.StatusSuccess {
		c.DW0 = uint32(parameter)
		c.finish(st)
		return
	}
	q.a, q.id = a, r.QID // whatever comes, the association is told of the end
	if q.dead {
		c.finish(nvme.StatusAbortedSQDeletion)
		return
	}
	visit := a.accounts[q.on.index].on(q.on.p).Enter()
	worker, err := ctrl.Worker(q.on.p)
	visit.Leave()
	if q.worker = worker; err != nil {
		q.l.seldom("I/O queue cannot be made", "host", a.hostNQN, "queue", r.QID, "err", err)
		c.finish(nvme.StatusInternalError)
		q.conn.Finish(errAssociationEnded)
		return
	}
	q.accept(c, a, r)
}

// accept ends a Connect that succeeds.
func (q *queue) accept(c *command, a *association, r request) {
	q.a, q.id, q.owner = a, r.QID, a.id
	if a.discovery == nil {
		q.account, q.stats = &a.accounts[q.on.index], stats.NewSet()
		q.conn.Share = q.account.on(q.on.p)
		q.conn.Widen()
	}
	q.noFlow = r.CATTR&fabrics.CATTRNoFlowControl != 0
	q.progress = live
	q.t.welcome(q, a.discovery != nil)
	if err := q.resize(int(r.SQSIZE) + 1); err != nil {
		q.l.seldom("queue cannot be made", "host", a.hostNQN, "queue", r.QID, "err", err)
		c.finish(nvme.StatusInternalError)
		q.conn.Finish(errAssociationEnded)
		return
	}
	c.DW0 = uint32(a.cntlid)
	q.head = 1 // Connect was the first entry
	if q.noFlow {
		q.head = noHead
	}
	c.finish(nvme.StatusSuccess)
}

// noHead is SQHD without flow control.
const noHead = 0xffff
