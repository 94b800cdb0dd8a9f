// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// NVMe is the guest's driver of an NVMe controller. Methods that change the
// controller (Enable, Disable, creating and deleting queues) are for one
// goroutine at a time; queues are as concurrent as they say.
type NVMe struct {
	client *Client
	mem    *Memory
	cap    nvme.CAP
	mode   interruptMode
	admin  *Pair

	shadow, events []byte // shadow doorbells and event indexes, nil: not in use
	dbbuf          [2]uint64

	sqs [1 << 16]atomic.Pointer[SQ]
	cqs map[uint16]*CQ
}

type interruptMode int

const (
	modePolled interruptMode = iota
	modeINTx
	modeMSIX
)

// Polled as a vector asks for a completion queue without interrupts.
const Polled = -1

// NewNVMe finds an NVMe controller behind a client that has been started, as a
// driver does when it probes: bus mastering on, capabilities read. Completions
// are polled until UseMSIX or UseINTx says otherwise.
func NewNVMe(c *Client) (*NVMe, error) {
	n := &NVMe{client: c, mem: c.mem, cqs: make(map[uint16]*CQ)}
	if err := c.Command(pciCommandIO | pciCommandMemory | pciCommandMaster | pciCommandSERR | pciCommandINTxOff); err != nil {
		return nil, err
	}
	v, err := c.Read64(nvme.RegCAP)
	if err != nil {
		return nil, err
	}
	n.cap = nvme.CAP(v)
	if vs, err := c.Read32(nvme.RegVS); err != nil || vs == 0 || vs == ^uint32(0) {
		return nil, fmt.Errorf("no NVMe controller: version %#x, %w", vs, err)
	}
	return n, nil
}

// Client returns the machine the controller is in.
func (n *NVMe) Client() *Client { return n.client }

// Admin returns the admin queues, nil before Enable.
func (n *NVMe) Admin() *Pair { return n.admin }

// CAP returns the controller's capabilities.
func (n *NVMe) CAP() nvme.CAP { return n.cap }

// UseMSIX enables MSI-X: completion queues made from now on may have a vector.
// The admin queue has vector 0 if Enable comes later.
func (n *NVMe) UseMSIX() error {
	n.mode = modeMSIX
	return n.client.EnableMSIX()
}

// UseINTx enables the INTx interrupt for all queues made from now on.
func (n *NVMe) UseINTx() error {
	n.mode = modeINTx
	return n.client.Command(pciCommandIO | pciCommandMemory | pciCommandMaster | pciCommandSERR)
}

// interrupt returns the interrupt of a vector in the mode in use.
func (n *NVMe) interrupt(vector int) (*Interrupt, error) {
	switch {
	case vector == Polled || n.mode == modePolled:
		return nil, nil
	case n.mode == modeINTx:
		return n.client.INTx(), nil
	}
	return n.client.Vector(vector)
}

// CSTS reads the controller status.
func (n *NVMe) CSTS() (nvme.CSTS, error) {
	v, err := n.client.Read32(nvme.RegCSTS)
	return nvme.CSTS(v), err
}

// WaitCSTS reads the controller status until ok likes it or the time is up.
func (n *NVMe) WaitCSTS(what string, timeout time.Duration, ok func(nvme.CSTS) bool) error {
	deadline := time.Now().Add(timeout)
	for {
		csts, err := n.CSTS()
		if err != nil || ok(csts) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: CSTS is %#x after %v: %w", what, uint32(csts), timeout, os.ErrDeadlineExceeded)
		}
		time.Sleep(time.Millisecond)
	}
}

// Enable disables the controller if need be, gives it admin queues of this
// depth, enables it, and waits until it is ready.
func (n *NVMe) Enable(depth int) error {
	cc, err := n.client.Read32(nvme.RegCC)
	if err != nil {
		return err
	}
	if nvme.CC(cc).EN() {
		if err := n.Disable(); err != nil {
			return err
		}
	}
	n.forgetQueues()
	cq, cqAddress, err := n.newCQ(0, depth)
	if err != nil {
		return err
	}
	sq, sqAddress, err := n.newSQ(0, depth, cq)
	if err != nil {
		return err
	}
	if cq.Interrupt, err = n.interrupt(0); err != nil {
		return err
	}
	n.cqs[0] = cq
	n.sqs[0].Store(sq)
	n.admin = newPair(sq, cq)

	enabled := nvme.CC(0).WithIOSQES(nvme.SQEShift).WithIOCQES(nvme.CQEShift)
	for _, write := range []func() error{
		func() error {
			return n.client.Write32(nvme.RegAQA, uint32(nvme.MakeAQA(uint16(depth-1), uint16(depth-1))))
		},
		func() error { return n.client.Write64(nvme.RegASQ, sqAddress) },
		func() error { return n.client.Write64(nvme.RegACQ, cqAddress) },
		func() error { return n.client.Write32(nvme.RegCC, uint32(enabled)) },
		func() error { return n.client.Write32(nvme.RegCC, uint32(enabled.WithEN(true))) },
	} {
		if err := write(); err != nil {
			return err
		}
	}
	return n.WaitCSTS("ready", n.timeout(), nvme.CSTS.RDY)
}

// timeout is CAP.TO, how long the controller may take to become ready or not.
func (n *NVMe) timeout() time.Duration { return max(n.cap.Timeout(), 500*time.Millisecond) }

// Disable clears CC.EN and waits until the controller is not ready. All queues
// are gone then.
func (n *NVMe) Disable() error {
	if err := n.client.Write32(nvme.RegCC, 0); err != nil {
		return err
	}
	if err := n.WaitCSTS("not ready", n.timeout(), func(c nvme.CSTS) bool { return !c.RDY() }); err != nil {
		return err
	}
	n.forgetQueues()
	return nil
}

// Shutdown asks for a normal shutdown and waits until it is complete.
func (n *NVMe) Shutdown() error {
	cc, err := n.client.Read32(nvme.RegCC)
	if err != nil {
		return err
	}
	if err := n.client.Write32(nvme.RegCC, uint32(nvme.CC(cc).WithSHN(nvme.SHNNormal))); err != nil {
		return err
	}
	return n.WaitCSTS("shutdown", n.timeout(), func(c nvme.CSTS) bool { return c.SHST() == nvme.SHSTComplete })
}

// forgetQueues drops all queues and gives their memory back. The controller is
// disabled and writes to none of them any more.
func (n *NVMe) forgetQueues() {
	for id, cq := range n.cqs {
		cq.free()
		delete(n.cqs, id)
	}
	for id := range n.sqs {
		if sq := n.sqs[id].Swap(nil); sq != nil {
			sq.free()
		}
	}
	n.admin = nil
	if n.shadow != nil {
		n.mem.Free(n.dbbuf[0], PageSize)
		n.mem.Free(n.dbbuf[1], PageSize)
		n.shadow, n.events = nil, nil
	}
}
