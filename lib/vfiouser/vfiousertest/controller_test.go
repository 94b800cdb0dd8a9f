// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

// controller is the NVMe part of the test's server: admin commands to make and
// delete queues, identify, shadow doorbells; read, write and flush on a RAM
// disk. One goroutine looks at all doorbells again and again.
type controller struct {
	s    *server
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu     sync.Mutex
	bells  map[uint64]uint32 // trapped doorbell writes, by offset
	sqs    map[uint16]*ctrlSQ
	cqs    map[uint16]*ctrlCQ
	shadow uint64 // 0: none
	events uint64
	disk   []byte
	kicks  int // doorbell writes trapped
}

type ctrlSQ struct {
	id, cq     uint16
	base       uint64
	size, head uint32
}

type ctrlCQ struct {
	base       uint64
	size, tail uint32
	laps       uint32
	vector     int // -1: none
}

const testBlock = 512

func newController(s *server) *controller {
	c := &controller{s: s, stop: make(chan struct{}), disk: make([]byte, 4<<20)}
	c.forget()
	c.wg.Go(func() {
		for {
			select {
			case <-c.stop:
				return
			case <-time.After(20 * time.Microsecond):
				c.scan()
			}
		}
	})
	return c
}

func (c *controller) close() {
	c.once.Do(func() { close(c.stop) })
	c.wg.Wait()
}

func (c *controller) forget() {
	c.sqs, c.cqs = make(map[uint16]*ctrlSQ), make(map[uint16]*ctrlCQ)
	c.bells = make(map[uint64]uint32)
	c.shadow, c.events = 0, 0
	clear(c.s.bells)
}

func (c *controller) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
	c.setCSTS(0)
}

func (c *controller) setCSTS(v nvme.CSTS) {
	c.s.mu.Lock()
	le.PutUint32(c.s.regs[nvme.RegCSTS:], uint32(v))
	c.s.mu.Unlock()
}

// write is a write to a register or doorbell.
func (c *controller) write(offset uint64, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if offset >= nvme.RegDoorbells {
		c.bells[offset] = v
		c.kicks++
		return
	}
	c.s.mu.Lock()
	old := nvme.CC(le.Uint32(c.s.regs[nvme.RegCC:]))
	le.PutUint32(c.s.regs[offset:], v)
	aqa := nvme.AQA(le.Uint32(c.s.regs[nvme.RegAQA:]))
	asq, acq := le.Uint64(c.s.regs[nvme.RegASQ:]), le.Uint64(c.s.regs[nvme.RegACQ:])
	c.s.mu.Unlock()
	if offset != nvme.RegCC {
		return
	}
	switch cc := nvme.CC(v); {
	case cc.EN() && !old.EN():
		c.sqs[0] = &ctrlSQ{base: asq, size: uint32(aqa.ASQS()) + 1}
		c.cqs[0] = &ctrlCQ{base: acq, size: uint32(aqa.ACQS()) + 1}
		c.setCSTS(nvme.CSTS(0).WithRDY(true))
	case !cc.EN() && old.EN():
		c.forget()
		c.setCSTS(0)
	case cc.SHN() != 0:
		c.setCSTS(nvme.CSTS(0).WithRDY(true).WithSHST(nvme.SHSTComplete))
	}
}

// tail returns where a submission queue ends, and asks for the next kick.
func (c *controller) tail(sq *ctrlSQ) uint32 {
	offset := nvme.SQDoorbell(sq.id, 0)
	if sq.id != 0 && c.shadow != 0 {
		at := offset - nvme.RegDoorbells
		shadow, ok1 := c.s.find(c.shadow+at, 4)
		event, ok2 := c.s.find(c.events+at, 4)
		if !ok1 || !ok2 {
			return sq.head
		}
		v := atomic.LoadUint32(word32(shadow, 0))
		if v == sq.head { // idle: ask for a kick, then look again
			atomic.StoreUint32(word32(event, 0), v)
			v = atomic.LoadUint32(word32(shadow, 0))
		}
		return v
	}
	if v, ok := c.bells[offset]; ok {
		return v
	}
	return atomic.LoadUint32(word32(c.s.bells, offset-nvme.RegDoorbells))
}

func (c *controller) scan() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sq := range c.sqs {
		tail := c.tail(sq)
		if tail >= sq.size {
			continue
		}
		for sq.head != tail {
			var e nvme.SQE
			if err := c.s.dma(vfiouser.CmdDMARead, sq.base+uint64(sq.head)*nvme.SQESize, nvme.Bytes(&e)); err != nil {
				return // memory is away for a moment, or the client for good
			}
			if sq.head++; sq.head == sq.size {
				sq.head = 0
			}
			status, dw0 := c.execute(sq, &e)
			c.complete(sq, &e, status, dw0)
		}
	}
}

func (c *controller) complete(sq *ctrlSQ, e *nvme.SQE, status nvme.Status, dw0 uint32) {
	cq := c.cqs[sq.cq]
	cqe := nvme.CQE{DW0: dw0, SQHead: uint16(sq.head), SQID: sq.id, CID: e.CID}
	cqe.SetStatus(status, cq.laps%2 == 0)
	at := cq.base + uint64(cq.tail)*nvme.CQESize
	if b, ok := c.s.find(at, nvme.CQESize); ok {
		copy(b, nvme.Bytes(&cqe)[:12])
		atomic.StoreUint32(word32(b, 12), cqe.DW3())
	} else {
		c.s.dma(vfiouser.CmdDMAWrite, at, nvme.Bytes(&cqe)[:12])
		c.s.dma(vfiouser.CmdDMAWrite, at+12, nvme.Bytes(&cqe)[12:])
	}
	if cq.tail++; cq.tail == cq.size {
		cq.tail = 0
		cq.laps++
	}
	if cq.vector >= 0 {
		c.s.interrupt(uint32(cq.vector))
	}
}

func (c *controller) execute(sq *ctrlSQ, e *nvme.SQE) (nvme.Status, uint32) {
	if sq.id != 0 {
		return c.executeIO(e), 0
	}
	switch nvme.AdminOpcode(e.Opcode) {
	case nvme.AdminIdentify:
		page := make([]byte, nvme.IdentifySize)
		page[0] = byte(e.Identify().CNS) + 1
		page[4095] = byte(e.NSID)
		return c.move(e, page, true), 0
	case nvme.AdminSetFeatures:
		return 0, e.SetFeatures().Value
	case nvme.AdminCreateIOCQ:
		q := e.CreateCQ()
		if q.QID == 0 || c.cqs[q.QID] != nil {
			return nvme.StatusInvalidQueueIdentifier, 0
		}
		cq := &ctrlCQ{base: e.PRP1, size: uint32(q.QSIZE) + 1, vector: -1}
		if q.IEN {
			cq.vector = int(q.IV)
		}
		c.cqs[q.QID] = cq
	case nvme.AdminCreateIOSQ:
		q := e.CreateSQ()
		if c.cqs[q.CQID] == nil {
			return nvme.StatusCompletionQueueInvalid, 0
		}
		c.sqs[q.QID] = &ctrlSQ{id: q.QID, cq: q.CQID, base: e.PRP1, size: uint32(q.QSIZE) + 1}
		delete(c.bells, nvme.SQDoorbell(q.QID, 0))
	case nvme.AdminDeleteIOSQ:
		if c.sqs[e.DeleteQID()] == nil {
			return nvme.StatusInvalidQueueIdentifier, 0
		}
		delete(c.sqs, e.DeleteQID())
	case nvme.AdminDeleteIOCQ:
		for _, sq := range c.sqs {
			if sq.cq == e.DeleteQID() {
				return nvme.StatusInvalidQueueDeletion, 0
			}
		}
		delete(c.cqs, e.DeleteQID())
	case nvme.AdminDoorbellBufferConfig:
		c.shadow, c.events = e.PRP1, e.PRP2
	default:
		return nvme.StatusInvalidOpcode, 0
	}
	return 0, 0
}

func (c *controller) executeIO(e *nvme.SQE) nvme.Status {
	op := nvme.IOOpcode(e.Opcode)
	if op == nvme.IOFlush {
		return 0
	}
	rw := e.RW()
	from, n := rw.SLBA*testBlock, uint64(rw.Blocks())*testBlock
	if from+n > uint64(len(c.disk)) {
		return nvme.StatusLBAOutOfRange
	}
	return c.move(e, c.disk[from:from+n], op == nvme.IORead)
}

// move moves data between host memory, as the PRP entries say, and b.
func (c *controller) move(e *nvme.SQE, b []byte, toHost bool) nvme.Status {
	page, list := e.PRP1, uint64(0)
	for len(b) > 0 {
		n := min(uint64(len(b)), PageSize-page%PageSize)
		cmd := vfiouser.CmdDMARead
		if toHost {
			cmd = vfiouser.CmdDMAWrite
		}
		if err := c.s.dma(cmd, page, b[:n]); err != nil {
			return nvme.StatusDataTransferError
		}
		if b = b[n:]; len(b) == 0 {
			break
		}
		switch {
		case list == 0 && len(b) <= PageSize:
			page = e.PRP2
			continue
		case list == 0:
			list = e.PRP2
		}
		var entry [8]byte
		if err := c.s.dma(vfiouser.CmdDMARead, list, entry[:]); err != nil {
			return nvme.StatusDataTransferError
		}
		if list%PageSize == PageSize-8 && len(b) > PageSize {
			list = le.Uint64(entry[:])
			if err := c.s.dma(vfiouser.CmdDMARead, list, entry[:]); err != nil {
				return nvme.StatusDataTransferError
			}
		}
		list += 8
		page = le.Uint64(entry[:])
	}
	return 0
}
