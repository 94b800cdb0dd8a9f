// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
)

// The constant registers, the same for every port and every runtime: a machine
// may start before any runtime, and its runtime may change.
var (
	// constCAP: queues of MaxEntries, contiguous; the longest time-out there is
	// (127.5 s), since a reset may have to wait for slow I/O and an enable for a
	// runtime; the NVM command set; pages of 4 KiB; ready with media, as version
	// 2.0 wants it.
	constCAP = nvme.CAP(0).WithMQES(qpair.MaxEntries - 1).WithCQR(true).WithTO(255).
			WithCSS(nvme.CSSNVM).WithCRMS(nvme.CRMSWithMedia)
	constVS   = nvme.MakeVS(2, 0, 0)
	constCRTO = nvme.MakeCRTO(255, 0) // as CAP.TO
)

// Bits that a guest can set, and that it can see.
const (
	ccBits   = 0x00fffff1 // all of CC but the reserved bits and CRIME (NVMe Base 2.0, 3.1.3.5)
	aqaBits  = 0x0fff0fff
	asqBits  = ^uint64(0xfff)
	cstsBits = 0x2f // RDY, CFS, SHST, PP
)

// readBAR0 reads 1, 2, 4 or 8 bytes at a multiple of as many. Doorbells, and
// offsets without a register, read as 0.
func (p *port) readBAR0(off uint64, b []byte) error {
	if err := checkRegister(off, len(b)); err != nil {
		return err
	}
	var word [8]byte
	if off < nvme.RegDoorbells {
		p.mu.Lock()
		binary.LittleEndian.PutUint64(word[:], p.registerPair(off&^7))
		p.mu.Unlock()
	}
	copy(b, word[off&7:])
	return nil
}

// checkRegister reports whether an access to BAR0 has a size and an alignment
// that registers allow.
func checkRegister(off uint64, n int) error {
	if err := checkAccess("BAR0", off, n, bar0Size); err != nil {
		return err
	}
	if n > 8 || n&(n-1) != 0 || off%uint64(n) != 0 {
		return fmt.Errorf("BAR0: access to %d bytes at %#x: %w", n, off, unix.EINVAL)
	}
	return nil
}

// registerPair returns the 8 bytes of registers at off, a multiple of 8.
func (p *port) registerPair(off uint64) uint64 {
	r := p.regs.Page
	intm := uint64(atomic.LoadUint32(&r.INTM)) // INTMS and INTMC both read as the mask
	switch off {
	case nvme.RegCAP:
		return r.CAP
	case nvme.RegVS:
		return uint64(r.VS) | intm<<32
	case nvme.RegINTMC:
		return intm | uint64(r.LoadCC())<<32
	case nvme.RegCSTS &^ 7:
		return uint64(p.csts()) << 32
	case nvme.RegNSSR:
		return uint64(atomic.LoadUint32(&r.AQA)) << 32
	case nvme.RegASQ:
		return atomic.LoadUint64(&r.ASQ)
	case nvme.RegACQ:
		return atomic.LoadUint64(&r.ACQ)
	case nvme.RegCRTO:
		return uint64(r.CRTO)
	}
	return 0
}

// writeBAR0 writes 4 or 8 bytes at a multiple of as many. The registers of a
// pair are written in order, the lower first. Read-only registers ignore it.
func (p *port) writeBAR0(off uint64, b []byte) error {
	if err := checkRegister(off, len(b)); err != nil {
		return err
	}
	if len(b) < 4 {
		return fmt.Errorf("BAR0: write of %d bytes at %#x: %w", len(b), off, unix.EINVAL)
	}
	if off >= nvme.RegDoorbells {
		for ; len(b) > 0; b, off = b[4:], off+4 {
			p.bells.Page.Store(off-nvme.RegDoorbells, binary.LittleEndian.Uint32(b))
		}
		// Always: whether the runtime sleeps is its business.
		raise(p.kick)
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; len(b) > 0; b, off = b[4:], off+4 {
		p.writeRegister(off, binary.LittleEndian.Uint32(b))
	}
	return nil
}

// writeRegister writes one register, or half of one. The caller holds mu.
func (p *port) writeRegister(off uint64, v uint32) {
	r := p.regs.Page
	switch off {
	case nvme.RegINTMS:
		atomic.StoreUint32(&r.INTM, r.INTM|v)
		raise(p.kick)
	case nvme.RegINTMC:
		atomic.StoreUint32(&r.INTM, r.INTM&^v)
		raise(p.kick)
	case nvme.RegCC:
		p.writeCC(nvme.CC(v & ccBits))
	case nvme.RegAQA, nvme.RegASQ, nvme.RegASQ + 4, nvme.RegACQ, nvme.RegACQ + 4:
		if p.cc.EN() {
			return // NVMe Base 2.0, 3.1.3.8: only while EN is 0
		}
		switch off {
		case nvme.RegAQA:
			atomic.StoreUint32(&r.AQA, v&aqaBits)
		case nvme.RegASQ, nvme.RegASQ + 4:
			atomic.StoreUint64(&r.ASQ, putHalf(r.ASQ, off, v)&asqBits)
		default:
			atomic.StoreUint64(&r.ACQ, putHalf(r.ACQ, off, v)&asqBits)
		}
	}
}

// putHalf replaces the half of a 64-bit register that lies at off.
func putHalf(old, off uint64, v uint32) uint64 {
	if off&4 != 0 {
		return old&0xffffffff | uint64(v)<<32
	}
	return old&^0xffffffff | uint64(v)
}

// writeCC stores CC. Clearing EN is a reset edge. The caller holds mu.
func (p *port) writeCC(cc nvme.CC) {
	r := p.regs.Page
	old := p.cc
	// Who was killed over this write may have stored the register, and not come to
	// the edge. One edge too many does no harm: the guest waits for this one.
	again := p.client != nil && p.client.request.again
	if cc == old && !again {
		return
	}
	edge := !cc.EN() && (old.EN() || again)
	if edge {
		atomic.StoreUint32(&r.INTM, 0)
	}
	p.cc = cc
	atomic.StoreUint32(&r.CC, uint32(cc))
	step()
	if edge {
		p.resetEdge()
		step()
	}
	p.settle()
	raise(p.kick)
	p.publish()
}

// resetFunction is a reset of the whole function: DEVICE_RESET, function level
// reset, or the end of a client. All registers get their first values, then the
// generation rises. The caller holds mu.
func (p *port) resetFunction() {
	r := p.regs.Page
	p.config.reset()
	p.cc = 0
	p.functionGen = r.LoadResetGen() + 1
	p.note()
	atomic.StoreUint32(&r.CC, 0)
	atomic.StoreUint32(&r.AQA, 0)
	atomic.StoreUint64(&r.ASQ, 0)
	atomic.StoreUint64(&r.ACQ, 0)
	atomic.StoreUint32(&r.INTM, 0)
	p.resetEdge()
	if p.client != nil {
		p.client.dropRelays()
	}
	p.settle()
	raise(p.kick)
	p.publish()
}

// resetEdge begins a reset generation, which the runtime has to acknowledge. The
// caller holds mu.
func (p *port) resetEdge() {
	if p.acknowledged() {
		p.edge = time.Now()
	}
	p.renewPages()
	atomic.AddUint64(&p.regs.Page.ResetGen, 1)
	p.expect()
}

// renewPages writes again what is constant in the pages. A runtime can write to
// all of them; what one does costs its ports, until a reset or the next runtime.
// The caller holds mu.
func (p *port) renewPages() {
	p.regs.Page.Renew(constCAP, constVS, constCRTO)
	p.state.Page.Init()
}

// acknowledged reports whether all I/O of earlier generations has ended. The
// caller holds mu.
func (p *port) acknowledged() bool {
	return p.regs.Page.LoadStatus().Current(p.regs.Page.LoadResetGen())
}

// functionReset reports whether the last reset was one of the function. The
// caller holds mu.
func (p *port) functionReset() bool { return p.functionGen == p.regs.Page.LoadResetGen() }

// csts is what the guest sees of the status. The caller holds mu.
func (p *port) csts() nvme.CSTS {
	s := p.regs.Page.LoadStatus().CSTS() & cstsBits
	switch {
	case p.acknowledged():
		if p.client != nil && p.client.staleWrites() {
			// The client may still carry out what the function wrote before its
			// reset. Until it has, the guest must take its memory for in use, and
			// not begin anew: RDY is what it does not wait for.
			s = s.WithRDY(!p.cc.EN())
		}
		return s
	case p.functionReset():
		// I/O of the function before its reset is still in flight. A guest that
		// enables the controller all the same waits for RDY.
		return nvme.CSTS(0).WithCFS(!p.cc.EN())
	}
	// A controller reset that has not ended: RDY stays as it was. Once the
	// guest has set EN again, RDY speaks of the new generation.
	return nvme.CSTS(0).WithRDY(s.RDY() && !p.cc.EN())
}

// settle acknowledges resets and shutdowns in the place of a runtime: while no
// runtime holds the port, no I/O can be in flight, and these are changes of
// registers only. An enabled controller stays as it is: its guest waits. The
// caller holds mu.
func (p *port) settle() {
	if p.holder != nil {
		return
	}
	r := p.regs.Page
	gen, w := r.LoadResetGen(), r.LoadStatus()
	s := w.CSTS()
	if !w.Current(gen) {
		s = 0
	}
	if !s.RDY() && !s.CFS() {
		shst := nvme.SHSTNormal
		if p.cc.SHN() != 0 {
			shst = nvme.SHSTComplete
		}
		s = s.WithSHST(shst)
	}
	if next := qpair.MakeStatus(gen, s); next != w {
		r.StoreStatus(next)
	}
	p.notify()
}
