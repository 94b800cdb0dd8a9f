// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

// IRQ is the index of an interrupt type of a PCI function
// (VFIO_PCI_*_IRQ_INDEX).
type IRQ uint32

// Interrupt types of a PCI function.
const (
	IRQINTx    IRQ = 0
	IRQMSI     IRQ = 1
	IRQMSIX    IRQ = 2
	IRQErr     IRQ = 3
	IRQReq     IRQ = 4
	NumPCIIRQs     = 5
)

// String returns the name of the interrupt type, or "irq" and the number.
func (i IRQ) String() string {
	return indexName(uint32(i), "irq ", []string{"INTX", "MSI", "MSIX", "ERR", "REQ"})
}

// IRQInfoFlags is the flags word of a DEVICE_GET_IRQ_INFO reply.
type IRQInfoFlags uint32

// Flags of a DEVICE_GET_IRQ_INFO reply (VFIO_IRQ_INFO_*).
const (
	IRQEventFD    IRQInfoFlags = 1 << 0 // signalled by eventfd
	IRQMaskable   IRQInfoFlags = 1 << 1 // takes the mask and unmask actions
	IRQAutoMasked IRQInfoFlags = 1 << 2 // masks itself when it fires, until unmasked
	IRQNoResize   IRQInfoFlags = 1 << 3 // vectors are set up as one set: all must go before one can be added
)

// String prints the flags by name.
func (f IRQInfoFlags) String() string {
	return flagString(uint32(f), "eventfd", "maskable", "automasked", "noresize")
}

// IRQInfoSize is the length of an IRQInfo in bytes.
const IRQInfoSize = 16

// IRQInfo is the request of DEVICE_GET_IRQ_INFO, where only ArgSize and Index
// count, and its reply.
type IRQInfo struct {
	ArgSize uint32 // request: greatest reply taken; reply: its full size. Bytes
	Flags   IRQInfoFlags
	Index   IRQ
	Count   uint32 // interrupts of this type, 0: the device has none
}

// ParseIRQInfo reads a DEVICE_GET_IRQ_INFO request or reply.
func ParseIRQInfo(b []byte) (IRQInfo, error) {
	if len(b) < IRQInfoSize {
		return IRQInfo{}, shortError("DEVICE_GET_IRQ_INFO", len(b), IRQInfoSize)
	}
	m := IRQInfo{
		ArgSize: le.Uint32(b[0:]),
		Flags:   IRQInfoFlags(le.Uint32(b[4:])),
		Index:   IRQ(le.Uint32(b[8:])),
		Count:   le.Uint32(b[12:]),
	}
	return m, checkArgSize("DEVICE_GET_IRQ_INFO", m.ArgSize, IRQInfoSize)
}

// Put writes the structure to the first IRQInfoSize bytes of b.
func (m *IRQInfo) Put(b []byte) {
	_ = b[IRQInfoSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint32(b[8:], uint32(m.Index))
	le.PutUint32(b[12:], m.Count)
}

// IRQSetFlags is the flags word of a DEVICE_SET_IRQS request: one kind of data
// and one action.
type IRQSetFlags uint32

// Flags of a DEVICE_SET_IRQS request (VFIO_IRQ_SET_*).
const (
	IRQDataNone      IRQSetFlags = 1 << 0 // no data: the action holds for the whole range
	IRQDataBool      IRQSetFlags = 1 << 1 // one byte per interrupt: where it is not 0
	IRQDataEventFD   IRQSetFlags = 1 << 2 // eventfds come with the message; none: those of the range are taken away
	IRQActionMask    IRQSetFlags = 1 << 3
	IRQActionUnmask  IRQSetFlags = 1 << 4
	IRQActionTrigger IRQSetFlags = 1 << 5

	IRQDataMask       = IRQDataNone | IRQDataBool | IRQDataEventFD
	IRQActionTypeMask = IRQActionMask | IRQActionUnmask | IRQActionTrigger
)

// String prints the flags by name.
func (f IRQSetFlags) String() string {
	return flagString(uint32(f), "none", "bool", "eventfd", "mask", "unmask", "trigger")
}

// IRQSetSize is the length of an IRQSet without data in bytes.
const IRQSetSize = 20

// IRQSet is the request of DEVICE_SET_IRQS: an action on the interrupts
// Start to Start+Count-1 of one type. The reply is empty.
//
// QEMU switches a type off with IRQDataNone|IRQActionTrigger and a Count of 0,
// and switches MSI-X on with IRQDataEventFD|IRQActionTrigger, a Count of 1 and
// no eventfd.
type IRQSet struct {
	ArgSize uint32 // of this structure and the data in bytes
	Flags   IRQSetFlags
	Index   IRQ
	Start   uint32
	Count   uint32
}

// ParseIRQSet reads a DEVICE_SET_IRQS request. bools is the data of an
// IRQDataBool request, exactly Count bytes of b, and nil for any other. One kind
// of data and one action are set; Start+Count does not overflow.
func ParseIRQSet(b []byte) (m IRQSet, bools []byte, err error) {
	const what = "DEVICE_SET_IRQS"
	if len(b) < IRQSetSize {
		return IRQSet{}, nil, shortError(what, len(b), IRQSetSize)
	}
	m = IRQSet{
		ArgSize: le.Uint32(b[0:]),
		Flags:   IRQSetFlags(le.Uint32(b[4:])),
		Index:   IRQ(le.Uint32(b[8:])),
		Start:   le.Uint32(b[12:]),
		Count:   le.Uint32(b[16:]),
	}
	if err := checkArgSize(what, m.ArgSize, IRQSetSize); err != nil {
		return m, nil, err
	}
	data, action := m.Flags&IRQDataMask, m.Flags&IRQActionTypeMask
	if !oneBit(uint32(data)) || !oneBit(uint32(action)) || m.Flags != data|action {
		return m, nil, formatErrorf(what, "flags %#x (%v): one kind of data and one action needed", uint32(m.Flags), m.Flags)
	}
	if m.Start+m.Count < m.Start {
		return m, nil, formatErrorf(what, "range of %d from %d", m.Count, m.Start)
	}
	if data == IRQDataBool {
		bools = b[IRQSetSize:]
		if uint64(m.Count) > uint64(len(bools)) {
			return m, nil, formatErrorf(what, "%d interrupts, data for %d", m.Count, len(bools))
		}
		bools = bools[:m.Count]
	}
	return m, bools, nil
}

// Put writes the structure to the first IRQSetSize bytes of b.
func (m *IRQSet) Put(b []byte) {
	_ = b[IRQSetSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
	le.PutUint32(b[8:], uint32(m.Index))
	le.PutUint32(b[12:], m.Start)
	le.PutUint32(b[16:], m.Count)
}

func oneBit(v uint32) bool { return v != 0 && v&(v-1) == 0 }
