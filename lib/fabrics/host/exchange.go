// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
)

// exchange is the commands of a connection and their answers, in whatever order
// they come. Commands may be sent from several goroutines; one of its own, from
// start to stop, receives.
type exchange struct {
	pdus
	done chan struct{} // closed when receiving has ended

	sending sync.Mutex // one PDU after the other

	mu    sync.Mutex
	last  uint16 // CID
	calls map[uint16]*call
	err   error // why there are no more commands
}

// call is a command in execution.
type call struct {
	cid  uint16
	in   []byte // room for its data
	got  int    // bytes of it that have come
	cqe  nvme.CQE
	err  error
	done chan struct{} // closed when it has ended: cqe or err is there
}

// start receives answers, on a connection that has been initialized.
func (x *exchange) start() {
	x.calls, x.done = make(map[uint16]*call), make(chan struct{})
	go func() {
		defer close(x.done)
		for {
			if err := x.next(); err != nil {
				x.fail(step("waiting for the answer", err))
				return
			}
		}
	}()
}

// stop closes the connection and waits until nothing is received any more.
func (x *exchange) stop() {
	x.fail(net.ErrClosed)
	<-x.done
}

// fail closes the connection and ends every command with err: their memory is
// not touched any more.
func (x *exchange) fail(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return
	}
	x.err = err
	x.conn.Close()
	for _, c := range x.calls {
		x.end(c, err)
	}
}

// end ends a command. x.mu is held.
func (x *exchange) end(c *call, err error) {
	delete(x.calls, c.cid)
	c.err = err
	close(c.done)
}

// execute sends a command with its data, if any, and waits for its end, for as
// long as limit if that is not 0. Where it does not come in time, or before ctx
// ends, that is the end of the connection: the controller may still send what
// it was asked for.
func (x *exchange) execute(ctx context.Context, limit time.Duration, e nvme.SQE, out, in []byte) (nvme.CQE, error) {
	c, err := x.begin(&e, in)
	if err != nil {
		return nvme.CQE{}, err
	}
	if out != nil {
		e.SetSGL1(fabrics.InCapsule(uint32(len(out))))
	} else {
		e.SetSGL1(fabrics.InTransport(uint32(len(in))))
	}
	if err := x.transmit(ctx, limit, e, out); err != nil {
		x.fail(step("sending", err))
	}
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		x.fail(context.Cause(ctx))
	case <-expired:
		x.fail(step("waiting for the answer", os.ErrDeadlineExceeded))
	}
	<-c.done
	return c.cqe, c.err
}

// begin gives a command its CID.
func (x *exchange) begin(e *nvme.SQE, in []byte) (*call, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return nil, x.err
	}
	const notSpecific = 0xffff // of no command, in the error log
	for x.last++; x.calls[x.last] != nil || x.last == notSpecific; x.last++ {
	}
	c := &call{cid: x.last, in: in, done: make(chan struct{})}
	x.calls[c.cid] = c
	e.CID = c.cid
	e.SetPSDT(nvme.PSDTSGL)
	return c, nil
}

// transmit sends a capsule.
func (x *exchange) transmit(ctx context.Context, limit time.Duration, e nvme.SQE, data []byte) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	return within(ctx, limit, x.conn.SetWriteDeadline, func() error { return x.send(e, data) })
}

// next receives a PDU and does what it says.
func (x *exchange) next() error {
	header, data, err := x.receive()
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch t := fabrics.PDUType(header[0]); t {
	case fabrics.TypeC2HData:
		var d fabrics.Data
		copy(fabrics.Bytes(&d), header)
		return x.data(&d, data)
	case fabrics.TypeCapsuleResp:
		var r fabrics.CapsuleResp
		copy(fabrics.Bytes(&r), header)
		return x.response(&r.CQE)
	default:
		return broken("%v comes while an answer is awaited", t)
	}
}

// data takes data of a command, which comes in order. x.mu is held.
func (x *exchange) data(d *fabrics.Data, data []byte) error {
	c := x.calls[d.CCCID]
	switch {
	case c == nil:
		return broken("data of command %d comes, which is none in execution", d.CCCID)
	case int64(d.DATAO) != int64(c.got) || len(data) > len(c.in)-c.got || int64(d.DATAL) != int64(len(data)):
		return broken("data of command %d at %d comes, %d bytes of %d; it is at byte %d of %d", c.cid, d.DATAO, len(data), d.DATAL, c.got, len(c.in))
	}
	c.got += copy(c.in[c.got:], data)
	if d.Flags&fabrics.FlagSuccess == 0 {
		return nil
	}
	return x.succeed(c, nvme.CQE{CID: c.cid})
}

// response takes the end of a command. x.mu is held.
func (x *exchange) response(cqe *nvme.CQE) error {
	c := x.calls[cqe.CID]
	switch {
	case c == nil:
		return broken("command %d ends, which is none in execution", cqe.CID)
	case cqe.StatusField().Code() == nvme.StatusSuccess:
		return x.succeed(c, *cqe)
	}
	c.cqe = *cqe
	x.end(c, nil)
	return nil
}

// succeed ends a command well, if all its data has come. x.mu is held.
func (x *exchange) succeed(c *call, cqe nvme.CQE) error {
	if c.got != len(c.in) {
		return broken("the command ended well with %d of %d bytes", c.got, len(c.in))
	}
	c.cqe = cqe
	x.end(c, nil)
	return nil
}

// within runs f, which ends with an error when ctx does or its time is up,
// because the deadline set has then passed.
func within(ctx context.Context, limit time.Duration, set func(time.Time) error, f func() error) error {
	var end time.Time
	if limit > 0 {
		end = time.Now().Add(limit)
	}
	_ = set(end) // a closed connection says so at once
	stop := context.AfterFunc(ctx, func() { _ = set(time.Unix(1, 0)) })
	err := f()
	if !stop() && err != nil {
		return context.Cause(ctx)
	}
	return err
}
