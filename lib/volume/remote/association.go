// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// association is an association with the controller: what it can do, and what
// of it is not in use.
type association struct {
	admin   *host.Admin
	ctrl    nvme.IdentifyController
	ns      namespace     // as it was when the association was made
	queues  uint16        // I/O queues that there may be
	next    uint16        // the last QID that was used
	quiesce time.Duration // from the last command on the admin queue until nothing is in execution

	// ctx ends, with the cause, when a connection of it has broken, or what it
	// leads to is not the volume any more: report.
	ctx    context.Context
	report context.CancelCauseFunc

	noAccess atomic.Bool // it has been logged that the controller cannot get at the namespace

	lost atomic.Bool
	safe atomic.Int64 // when nothing of it is in execution any more, as remote.now; 0: it is not lost yet

	mu   sync.Mutex
	idle []*host.Socket // of lanes that have ended, or have given one back
	owed bool           // a lane has been asked for one that it does not need

	few, turns bool // it has been logged that there are few, and that lanes take turns; for keep
}

// connectLimit is how long it may take to make an association, beside the limits
// of each step: a controller may answer everything at the last moment.
const connectLimit = time.Minute

var errConnectLimit = fault.Errorf(fault.Timeout, "", "", "it is not done within %v", connectLimit)

// connect makes an association before ctx ends, and checks that its namespace is
// the volume's.
func (r *remote) connect(ctx context.Context) (*association, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectLimit, errConnectLimit)
	defer cancel()
	a := &association{}
	a.ctx, a.report = context.WithCancelCause(r.ctx)
	var err error
	if a.admin, err = host.Connect(ctx, r.addr, r.options); err != nil {
		a.report(err)
		return nil, fmt.Errorf("%s: %w", r.addr, err)
	}
	if err = a.identify(ctx, r.addr.NSID, r.options.KeepAlive); err == nil {
		err = r.check(&a.ns)
	}
	if err != nil {
		a.report(err)
		a.admin.Close()
		return nil, fmt.Errorf("%s: %w", r.addr, err)
	}
	return a, nil
}

// identify enables the controller and asks for all that is to be known. It is
// asked to tell of changes before the namespace is looked at.
func (a *association) identify(ctx context.Context, nsid uint32, keepAlive time.Duration) error {
	if err := a.admin.Enable(ctx); err != nil {
		return err
	}
	id, err := a.admin.IdentifyController(ctx)
	if err != nil {
		return err
	}
	a.ctrl = *id
	if a.ctrl.KAS == 0 {
		return fault.Errorf(fault.Unsupported, "", "", "the controller has no Keep Alive")
	}
	a.quiesce = keepAlive + time.Duration(a.ctrl.KAS)*100*time.Millisecond // it rounds up
	if cqt := time.Duration(a.ctrl.CQT) * time.Millisecond; cqt > 0 {
		a.quiesce += cqt
	} else {
		a.quiesce += keepAlive
	}
	if a.ctrl.OAES&nvme.NoticeNamespaceAttribute != 0 {
		var e nvme.SQE
		nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: nvme.NoticeNamespaceAttribute}.Put(&e)
		if _, err := optional(a.admin.Do(ctx, "Set Features Asynchronous Event Configuration", e, nil, nil)); err != nil {
			return err
		}
	}
	if err := a.ns.identify(ctx, a.admin, &a.ctrl, nsid); err != nil {
		return err
	}
	return a.countQueues(ctx)
}

// optional is for the result of a command that a controller need not know: that
// it does not is no error, but not ok.
func optional(_ nvme.CQE, err error) (ok bool, _ error) {
	if errors.As(err, new(*host.StatusError)) {
		return false, nil
	}
	return err == nil, err
}

// countQueues asks for as many I/O queues as there may be.
func (a *association) countQueues(ctx context.Context) error {
	const most = 1024
	var e nvme.SQE
	nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(most-1, most-1))}.Put(&e)
	c, err := a.admin.Do(ctx, "Set Features Number of Queues", e, nil, nil)
	if err != nil {
		return err
	}
	n := nvme.NumberOfQueues(c.DW0)
	a.queues = uint16(min(int(n.NSQ()), int(n.NCQ()), most-1)) + 1
	return nil
}

// park keeps the socket of a lane that does not need it for the next one.
func (a *association) park(s *host.Socket) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lost.Load() {
		s.Close()
		return
	}
	a.idle = append(a.idle, s)
}

// socket returns an I/O queue that no lane has; nil: the controller has no more.
func (a *association) socket(r *remote) (*host.Socket, error) {
	a.mu.Lock()
	if n := len(a.idle); n > 0 {
		s := a.idle[n-1]
		a.idle = a.idle[:n-1]
		a.mu.Unlock()
		return s, nil
	}
	a.mu.Unlock()
	if a.next == a.queues {
		return nil, nil
	}
	a.next++
	return a.admin.ConnectQueue(a.ctx, r.addr, r.options, &a.ctrl, a.next)
}

// owe notes that a lane is asked for a connection; false: one is already.
func (a *association) owe() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.owed
	a.owed = true
	return !before
}

// settle notes that the lane that was asked for a connection has given it back,
// or has none to give.
func (a *association) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.owed = false
}

// end closes what of the association is not with a lane.
func (a *association) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost.Store(true)
	a.admin.Close()
	for _, s := range a.idle {
		s.Close()
	}
	a.idle = nil
}
