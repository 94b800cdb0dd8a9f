// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// irqType is what DEVICE_GET_IRQ_INFO says of a type of interrupt.
type irqType struct {
	count uint32
	flags vfiouser.IRQInfoFlags
}

// irqTypes lists the types by index. The error interrupt is never sent; QEMU
// warns if it is not there.
var irqTypes = [vfiouser.NumPCIIRQs]irqType{
	vfiouser.IRQINTx: {1, vfiouser.IRQEventFD | vfiouser.IRQMaskable | vfiouser.IRQAutoMasked},
	vfiouser.IRQMSIX: {qpair.Vectors, vfiouser.IRQEventFD},
	vfiouser.IRQErr:  {1, vfiouser.IRQEventFD},
}

// noFD in the place of an eventfd: there is none.
const noFD = -1

// irqs are the interrupt eventfds a client has given, which irqs owns.
type irqs struct {
	fds  [vfiouser.NumPCIIRQs][]int // by type and vector
	msix bool                       // MSI-X is enabled, vectors or not
	mask bool                       // INTx is masked by the client
	old  []int                      // in no place any more, to be closed
}

func newIRQs() *irqs {
	q := &irqs{}
	for i, t := range irqTypes {
		q.fds[i] = make([]int, t.count)
		for v := range q.fds[i] {
			q.fds[i][v] = noFD
		}
	}
	return q
}

// mode tells which type of interrupt the client wants.
func (q *irqs) mode() qpair.IRQMode {
	switch {
	case q.msix:
		return qpair.IRQMSIX
	case q.fds[vfiouser.IRQINTx][0] != noFD:
		return qpair.IRQINTx
	}
	return qpair.IRQNone
}

// takeOld gives the eventfds that have been replaced to the caller.
func (q *irqs) takeOld() []int {
	old := q.old
	q.old = nil
	return old
}

// deliver returns the eventfd of a vector as the runtime is to know it.
func (q *irqs) deliver(index vfiouser.IRQ, vector uint32) int {
	if index == vfiouser.IRQINTx && q.mask {
		return noFD
	}
	return q.fds[index][vector]
}

// change is a vector whose eventfd is another one now.
type change struct {
	index  vfiouser.IRQ
	vector uint32
}

// check reports whether the server can do what a DEVICE_SET_IRQS request asks.
func (q *irqs) check(m *vfiouser.IRQSet, fds int) error {
	count := uint32(0)
	if m.Index < vfiouser.NumPCIIRQs {
		count = irqTypes[m.Index].count
	}
	data, action := m.Flags&vfiouser.IRQDataMask, m.Flags&vfiouser.IRQActionTypeMask
	switch {
	case m.Start > count || m.Count > count-m.Start:
		return fmt.Errorf("%v has %d vectors, %d from %d asked for: %w", m.Index, count, m.Count, m.Start, unix.EINVAL)
	case m.Count == 0 && (data != vfiouser.IRQDataNone || action != vfiouser.IRQActionTrigger || m.Start != 0):
		return fmt.Errorf("%v: empty range: %w", m.Index, unix.EINVAL)
	case data != vfiouser.IRQDataEventFD && fds != 0:
		return fmt.Errorf("%v: %d file descriptors without a use: %w", m.Index, fds, unix.EINVAL)
	case data == vfiouser.IRQDataEventFD && fds != 0 && uint32(fds) != m.Count:
		return fmt.Errorf("%v: %d eventfds for %d vectors: %w", m.Index, fds, m.Count, unix.EINVAL)
	case action != vfiouser.IRQActionTrigger && m.Index != vfiouser.IRQINTx:
		return fmt.Errorf("%v cannot be masked: %w", m.Index, unix.ENOTSUP)
	case action != vfiouser.IRQActionTrigger && data == vfiouser.IRQDataEventFD:
		return fmt.Errorf("%v: masking by eventfd: %w", m.Index, unix.ENOTSUP)
	}
	return nil
}

// set gives vectors start, start+1, ... the eventfds, or none if there are no
// fds, and returns the vectors it changed. The fds are q's from then on, those
// that they replace are to be taken by takeOld.
func (q *irqs) set(index vfiouser.IRQ, start, count uint32, fds []int) []change {
	var changes []change
	for i := range count {
		fd := noFD
		if len(fds) > 0 {
			fd = fds[i]
		}
		at := &q.fds[index][start+i]
		if *at == noFD && fd == noFD {
			continue
		}
		if *at != noFD {
			q.old = append(q.old, *at)
		}
		*at = fd
		changes = append(changes, change{index, start + i})
	}
	if index == vfiouser.IRQMSIX {
		q.msix = true
	}
	return changes
}

// disable takes all eventfds of a type away.
func (q *irqs) disable(index vfiouser.IRQ) []change {
	changes := q.set(index, 0, irqTypes[index].count, nil)
	switch index {
	case vfiouser.IRQMSIX:
		q.msix = false
	case vfiouser.IRQINTx:
		q.mask = false
	}
	return changes
}

// disableAll takes all eventfds away.
func (q *irqs) disableAll() []change {
	var changes []change
	for index := range vfiouser.IRQ(vfiouser.NumPCIIRQs) {
		changes = append(changes, q.disable(index)...)
	}
	return changes
}

// trigger fires vectors start to start+count-1; bools, if not nil, tells which.
func (q *irqs) trigger(index vfiouser.IRQ, start, count uint32, bools []byte) {
	for i := range count {
		if bools == nil || bools[i] != 0 {
			if fd := q.fds[index][start+i]; fd != noFD {
				raise(fd)
			}
		}
	}
}

// one is what is added to the counter of an eventfd.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// raise adds 1 to a non-blocking eventfd. A full counter is as good.
func raise(fd int) { _, _ = unix.Write(fd, one) }

// checkEventFD reports whether fd is an eventfd, and makes it non-blocking:
// whoever fires an interrupt must not wait for the client to take it.
func checkEventFD(fd int) error {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if !strings.HasPrefix(name, "anon_inode:[eventfd") {
		return fmt.Errorf("%s is not an eventfd: %w", name, unix.EINVAL)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}
