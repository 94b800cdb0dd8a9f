// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"sync/atomic"

	"github.com/leapio/leapio/lib/nvme"
)

// doorbell is one doorbell register, reached in whatever way the driver has.
type doorbell struct {
	drive  *NVMe
	offset uint64 // in BAR0
	value  uint32 // last rung

	mapped *uint32 // the register itself; nil: writes are trapped
	shadow *uint32 // in guest memory; nil: no shadow doorbells
	event  *uint32 // the event index beside it
}

// newDoorbell finds the doorbell at an offset in BAR0.
func (n *NVMe) newDoorbell(offset uint64, io bool) doorbell {
	d := doorbell{drive: n, offset: offset}
	if b := n.client.doorbells; b != nil {
		if at := offset - n.client.areas[0].Offset; at+4 <= uint64(len(b)) {
			d.mapped = word32(b, at)
		}
	}
	if io && n.shadow != nil {
		d.useShadow(n.shadow, n.events)
	}
	return d
}

// useShadow makes the doorbell a shadow doorbell, beginning with its value.
func (d *doorbell) useShadow(shadow, events []byte) {
	at := d.offset - nvme.RegDoorbells
	if at+4 > uint64(len(shadow)) {
		return
	}
	d.shadow, d.event = word32(shadow, at), word32(events, at)
	atomic.StoreUint32(d.shadow, d.value)
}

// ring tells the controller the new value. With shadow doorbells the register
// itself is written only if the controller asked for it: the value passes the
// event index (Base Specification, "Doorbell Buffer Config"). The store of the
// shadow and the load of the event index are atomic and in that order.
func (d *doorbell) ring(v uint32) error {
	old := d.value
	d.value = v
	if d.shadow != nil {
		atomic.StoreUint32(d.shadow, v)
		if event := atomic.LoadUint32(d.event); uint16(v-event-1) >= uint16(v-old) {
			return nil
		}
	}
	if d.mapped != nil {
		atomic.StoreUint32(d.mapped, v)
		return nil
	}
	return d.drive.client.Write32(d.offset, v)
}
