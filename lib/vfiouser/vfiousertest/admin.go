// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"errors"
	"fmt"

	"github.com/leapio/leapio/lib/nvme"
)

// errDisabled is what admin commands say before Enable.
var errDisabled = errors.New("controller is not enabled")

// AdminCommand sends an admin command and waits for its completion.
func (n *NVMe) AdminCommand(e nvme.SQE) (nvme.CQE, error) {
	if n.admin == nil {
		return nvme.CQE{}, errDisabled
	}
	return n.admin.Do(e)
}

// AdminRead sends an admin command that returns size bytes of data.
func (n *NVMe) AdminRead(e nvme.SQE, size int) ([]byte, error) {
	b, err := n.mem.NewBuffer(size, Shape{})
	if err != nil {
		return nil, err
	}
	b.Set(&e)
	data := make([]byte, size)
	_, err = n.AdminCommand(e)
	b.Read(data)
	if completed(err) {
		b.Free()
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Identify returns an Identify data structure.
func (n *NVMe) Identify(cns nvme.CNS, nsid uint32) ([]byte, error) {
	e := nvme.SQE{NSID: nsid}
	nvme.Identify{CNS: cns}.Put(&e)
	return n.AdminRead(e, nvme.IdentifySize)
}

// SetFeatures sets a feature that needs no data and returns DW0 of the
// completion.
func (n *NVMe) SetFeatures(fid nvme.FeatureID, value uint32) (uint32, error) {
	var e nvme.SQE
	nvme.SetFeatures{FID: fid, Value: value}.Put(&e)
	c, err := n.AdminCommand(e)
	return c.DW0, err
}

// GetFeatures returns the current value of a feature that has no data.
func (n *NVMe) GetFeatures(fid nvme.FeatureID) (uint32, error) {
	var e nvme.SQE
	nvme.GetFeatures{FID: fid}.Put(&e)
	c, err := n.AdminCommand(e)
	return c.DW0, err
}

// SetQueues asks for this many I/O queue pairs and returns how many there may
// be.
func (n *NVMe) SetQueues(pairs int) (int, error) {
	v, err := n.SetFeatures(nvme.FeatNumberOfQueues, uint32(nvme.MakeNumberOfQueues(uint16(pairs-1), uint16(pairs-1))))
	got := nvme.NumberOfQueues(v)
	return min(pairs, int(got.NSQ())+1, int(got.NCQ())+1), err
}

// CreateCQ makes an I/O completion queue. With vector Polled it has no
// interrupt.
func (n *NVMe) CreateCQ(id uint16, depth, vector int) (*CQ, error) {
	cq, address, err := n.newCQ(id, depth)
	if err != nil {
		return nil, err
	}
	if cq.Interrupt, err = n.interrupt(vector); err != nil {
		cq.free()
		return nil, err
	}
	e := nvme.SQE{PRP1: address}
	nvme.CreateCQ{QID: id, QSIZE: uint16(depth - 1), PC: true, IEN: vector != Polled, IV: uint16(max(vector, 0))}.Put(&e)
	if _, err := n.AdminCommand(e); err != nil {
		if completed(err) {
			cq.free()
		}
		return nil, fmt.Errorf("creating completion queue %d: %w", id, err)
	}
	n.cqs[id] = cq
	return cq, nil
}

// CreateSQ makes an I/O submission queue whose completions go to the completion
// queue with the given ID. The command is sent whether or not there is one.
func (n *NVMe) CreateSQ(id uint16, depth int, cqid uint16) (*SQ, error) {
	cq := n.cqs[cqid]
	sq, address, err := n.newSQ(id, depth, cq)
	if err != nil {
		return nil, err
	}
	e := nvme.SQE{PRP1: address}
	nvme.CreateSQ{QID: id, QSIZE: uint16(depth - 1), PC: true, CQID: cqid}.Put(&e)
	if _, err := n.AdminCommand(e); err != nil {
		if completed(err) {
			sq.free()
		}
		return nil, fmt.Errorf("creating submission queue %d: %w", id, err)
	}
	if cq == nil {
		return nil, fmt.Errorf("creating submission queue %d: controller took it without completion queue %d", id, cqid)
	}
	n.sqs[id].Store(sq)
	return sq, nil
}

// DeleteSQ deletes an I/O submission queue. The command is sent whether or not
// there is one.
func (n *NVMe) DeleteSQ(id uint16) error {
	if _, err := n.AdminCommand(nvme.SQE{Opcode: uint8(nvme.AdminDeleteIOSQ), CDW10: uint32(id)}); err != nil {
		return fmt.Errorf("deleting submission queue %d: %w", id, err)
	}
	if sq := n.sqs[id].Swap(nil); sq != nil {
		sq.free()
	}
	return nil
}

// DeleteCQ deletes an I/O completion queue. The command is sent whether or not
// there is one.
func (n *NVMe) DeleteCQ(id uint16) error {
	if _, err := n.AdminCommand(nvme.SQE{Opcode: uint8(nvme.AdminDeleteIOCQ), CDW10: uint32(id)}); err != nil {
		return fmt.Errorf("deleting completion queue %d: %w", id, err)
	}
	if cq := n.cqs[id]; cq != nil {
		cq.free()
		delete(n.cqs, id)
	}
	return nil
}

// CreatePair makes a completion and a submission queue with the same ID and
// depth.
func (n *NVMe) CreatePair(id uint16, depth, vector int) (*Pair, error) {
	cq, err := n.CreateCQ(id, depth, vector)
	if err != nil {
		return nil, err
	}
	sq, err := n.CreateSQ(id, depth, id)
	if err != nil {
		return nil, errors.Join(err, n.DeleteCQ(id))
	}
	return newPair(sq, cq), nil
}

// DeletePair deletes the queues CreatePair made.
func (n *NVMe) DeletePair(p *Pair) error {
	if err := n.DeleteSQ(p.SQ.ID); err != nil {
		return err
	}
	return n.DeleteCQ(p.CQ.ID)
}

// NewPair joins queues made one by one for Do and its like. Of several
// submission queues with one completion queue only one can be in a Pair.
func NewPair(sq *SQ) *Pair { return newPair(sq, sq.cq) }

// EnableShadowDoorbells gives the controller shadow doorbells (Doorbell Buffer
// Config) and uses them for all I/O queues, those there are and those to come.
// The admin queue keeps its registers, as in Linux. No queue may be in use.
func (n *NVMe) EnableShadowDoorbells() error {
	var pages [2][]byte
	for i := range pages {
		var err error
		if n.dbbuf[i], pages[i], err = n.mem.Alloc(PageSize); err != nil {
			return err
		}
	}
	var e nvme.SQE
	nvme.DoorbellBuffer{Shadow: n.dbbuf[0], EventIndex: n.dbbuf[1]}.Put(&e)
	if _, err := n.AdminCommand(e); err != nil {
		if completed(err) {
			n.mem.Free(n.dbbuf[0], PageSize)
			n.mem.Free(n.dbbuf[1], PageSize)
		}
		return fmt.Errorf("enabling shadow doorbells: %w", err)
	}
	n.shadow, n.events = pages[0], pages[1]
	for id, cq := range n.cqs {
		if id != 0 {
			cq.bell.useShadow(n.shadow, n.events)
		}
	}
	for id := 1; id < len(n.sqs); id++ {
		if sq := n.sqs[id].Load(); sq != nil {
			sq.bell.useShadow(n.shadow, n.events)
		}
	}
	return nil
}
