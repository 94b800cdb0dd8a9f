// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

// PageSize is the size of the register page and of the doorbell page in bytes.
// It is also the only memory page size the controllers offer (CAP.MPSMIN and
// CAP.MPSMAX 0).
const PageSize = 4096

const registersMagic = 0x4c65617052656773 // "LeapRegs"

// RegistersVersion is the version of the layout of Registers and Doorbells.
const RegistersVersion = 1

// Registers is the register page of a port. leap-wpt makes it when the port is
// made, fills in the constant registers and writes every word but Status, which
// belongs to the runtime. Each group has cache lines of its own.
//
// leap-wpt answers the guest's register reads at once from this page; the kick
// eventfd only announces that something changed, the page is the truth.
type Registers struct {
	Magic   uint64 // set by Init, checked by Check
	Version uint32 // layout version, set by Init
	VS      uint32 // NVMe Base 3.1.4.2, constant
	CAP     uint64 // NVMe Base 3.1.4.1, constant while the port exists
	CRTO    uint32 // NVMe Base 3.1.4.22, constant
	_       [36]byte

	// Written by leap-wpt. AQA, ASQ and ACQ are stored before the CC that
	// enables the controller.
	CC       uint32 // NVMe Base 3.1.4.5
	AQA      uint32 // NVMe Base 3.1.4.8
	ASQ      uint64 // NVMe Base 3.1.4.9
	ACQ      uint64 // NVMe Base 3.1.4.10
	INTM     uint32 // interrupt mask: INTMS sets, INTMC clears (pin-based only)
	IRQMode  uint32 // an IRQMode
	ResetGen uint64 // reset generation, from 1; rises at every reset edge
	MapGen   uint64 // generation of the region table; rises before DMA_MAP is answered
	Unmasks  uint64 // INTx unmask requests seen (end of interrupt), a counter
	Client   uint32 // 1 while a vfio-user client is connected
	_        [4]byte

	_ [64]byte

	// Written by the runtime while one is attached, by leap-wpt after it is gone.
	Status uint64 // a StatusWord
	_      [56]byte
}

// IRQMode says which interrupts the client has enabled.
type IRQMode uint32

// Interrupt modes of a port (VFIO PCI IRQ indexes).
const (
	IRQNone IRQMode = iota
	IRQINTx
	IRQMSIX
)

// StatusWord is what a runtime says of a port, in one atomic store: the reset
// generation it has reached (low 32 bits of Registers.ResetGen) and CSTS. A
// word of an older generation means that the reset has not ended yet: I/O of
// the generation before may still be in flight.
type StatusWord uint64

// MakeStatus builds a StatusWord.
func MakeStatus(gen uint64, csts nvme.CSTS) StatusWord {
	return StatusWord(gen<<32 | uint64(csts))
}

// Gen returns the low 32 bits of the generation.
func (w StatusWord) Gen() uint32 { return uint32(w >> 32) }

// CSTS returns the controller status of that generation.
func (w StatusWord) CSTS() nvme.CSTS { return nvme.CSTS(uint32(w)) }

// Current reports whether w belongs to reset generation gen.
func (w StatusWord) Current(gen uint64) bool { return w.Gen() == uint32(gen) }

// Init fills in a new page. The reset generation starts at 1 and is
// acknowledged, so that a controller that was never enabled reads CSTS 0.
func (r *Registers) Init(cap nvme.CAP, vs nvme.VS, crto nvme.CRTO) {
	*r = Registers{
		Magic: registersMagic, Version: RegistersVersion,
		CAP: uint64(cap), VS: uint32(vs), CRTO: uint32(crto),
		ResetGen: 1, Status: uint64(MakeStatus(1, 0)),
	}
}

// Renew writes again what is constant, whatever a runtime has made of it.
func (r *Registers) Renew(cap nvme.CAP, vs nvme.VS, crto nvme.CRTO) {
	r.Magic, r.Version = registersMagic, RegistersVersion
	r.CAP, r.VS, r.CRTO = uint64(cap), uint32(vs), uint32(crto)
}

// Check reports whether the page is one this code understands.
func (r *Registers) Check() error {
	if r.Magic != registersMagic {
		return errBadMagic
	}
	if r.Version != RegistersVersion {
		return &VersionError{What: "register page", Got: r.Version, Want: RegistersVersion}
	}
	return nil
}

// LoadStatus reads the runtime's word.
func (r *Registers) LoadStatus() StatusWord { return StatusWord(atomic.LoadUint64(&r.Status)) }

// StoreStatus publishes the runtime's word.
func (r *Registers) StoreStatus(w StatusWord) { atomic.StoreUint64(&r.Status, uint64(w)) }

// LoadCC reads CC. Load ResetGen before and after to know that the admin queue
// registers read in between belong to it.
func (r *Registers) LoadCC() nvme.CC { return nvme.CC(atomic.LoadUint32(&r.CC)) }

// LoadResetGen reads the reset generation.
func (r *Registers) LoadResetGen() uint64 { return atomic.LoadUint64(&r.ResetGen) }

// LoadMapGen reads the generation of the region table that leap-wpt has
// announced. A translation miss under an older one is not yet a fault.
func (r *Registers) LoadMapGen() uint64 { return atomic.LoadUint64(&r.MapGen) }
