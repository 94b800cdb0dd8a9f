// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser"
)

// Interrupt is an eventfd through which the device interrupts the guest.
type Interrupt struct{ f *os.File }

func newInterrupt() (*Interrupt, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	return &Interrupt{os.NewFile(uintptr(fd), "eventfd")}, nil
}

func (i *Interrupt) close() {
	if i != nil {
		i.f.Close()
	}
}

// fd returns the descriptor without making the file blocking, as os.File.Fd
// would.
func (i *Interrupt) fd() (fd int, err error) {
	raw, err := i.f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(v uintptr) { fd = int(v) })
	return fd, err
}

// Wait waits for the interrupt and returns how often it fired since the last
// Wait. If it does not fire in time, the error wraps os.ErrDeadlineExceeded.
func (i *Interrupt) Wait(timeout time.Duration) (uint64, error) {
	if err := i.f.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := i.f.Read(b[:]); err != nil {
		return 0, fmt.Errorf("waiting for an interrupt: %w", err)
	}
	return le.Uint64(b[:]), nil
}

// SetIRQs sends any DEVICE_SET_IRQS; ArgSize is filled in.
func (c *Client) SetIRQs(set vfiouser.IRQSet, fds []int, data ...byte) error {
	var b [vfiouser.IRQSetSize]byte
	set.ArgSize = uint32(vfiouser.IRQSetSize + len(data))
	set.Put(b[:])
	if _, err := c.Call(vfiouser.CmdDeviceSetIRQs, fds, b[:], data); err != nil {
		return fmt.Errorf("%v %v %d+%d: %w", set.Index, set.Flags, set.Start, set.Count, err)
	}
	return nil
}

// disable switches an interrupt type off.
func (c *Client) disable(irq vfiouser.IRQ) error {
	return c.SetIRQs(vfiouser.IRQSet{Flags: vfiouser.IRQDataNone | vfiouser.IRQActionTrigger, Index: irq}, nil)
}

const irqEventFD = vfiouser.IRQDataEventFD | vfiouser.IRQActionTrigger

// EnableINTx gives the device an eventfd for its INTx interrupt.
func (c *Client) EnableINTx() error {
	i, err := newInterrupt()
	if err != nil {
		return err
	}
	fd, err := i.fd()
	if err == nil {
		err = c.SetIRQs(vfiouser.IRQSet{Flags: irqEventFD, Index: vfiouser.IRQINTx, Count: 1}, []int{fd})
	}
	if err != nil {
		i.close()
		return err
	}
	c.intx = i
	return nil
}

// DisableINTx takes INTx away.
func (c *Client) DisableINTx() error {
	if err := c.disable(vfiouser.IRQINTx); err != nil {
		return err
	}
	c.intx.close()
	c.intx = nil
	return nil
}

// INTx returns the INTx interrupt, nil while it is off.
func (c *Client) INTx() *Interrupt { return c.intx }

// EndINTx tells the device that the guest has handled INTx: it may fire again.
// QEMU sends this at the guest's next access to the device.
func (c *Client) EndINTx() error {
	return c.SetIRQs(vfiouser.IRQSet{Flags: vfiouser.IRQDataNone | vfiouser.IRQActionUnmask, Index: vfiouser.IRQINTx, Count: 1}, nil)
}

// NumVectors returns how many MSI-X vectors the device has.
func (c *Client) NumVectors() int { return int(c.irqs[vfiouser.IRQMSIX].Count) }

// EnableMSIX does what happens when a driver enables MSI-X: the enable bit is
// written with all vectors masked, INTx goes, MSI-X is switched on without any
// eventfd, and the mask bit is cleared.
func (c *Client) EnableMSIX() error {
	msix := c.Capability(pciCapMSIX)
	if msix == 0 || c.NumVectors() == 0 {
		return errors.New("device has no MSI-X")
	}
	size := uint32(le.Uint16(c.config[msix+msixControl:]) & 0x7ff)
	if err := c.WriteConfig(msix+msixControl, 2, size|msixEnable|msixMaskAll); err != nil {
		return err
	}
	if c.intx != nil {
		if err := c.DisableINTx(); err != nil {
			return err
		}
	}
	if err := c.SetIRQs(vfiouser.IRQSet{Flags: irqEventFD, Index: vfiouser.IRQMSIX, Count: 1}, nil); err != nil {
		return err
	}
	return c.WriteConfig(msix+msixControl, 2, size|msixEnable)
}

// Vector returns the interrupt of an MSI-X vector, giving the device an eventfd
// for it first if it has none: in a message of its own, or, if the device says
// that vectors cannot be added, by switching MSI-X off and on again with one
// more vector, as QEMU does.
func (c *Client) Vector(v int) (*Interrupt, error) {
	if v < 0 || v >= c.NumVectors() {
		return nil, fmt.Errorf("vector %d of %d", v, c.NumVectors())
	}
	if v < len(c.vectors) && c.vectors[v] != nil {
		return c.vectors[v], nil
	}
	first := v
	if c.irqs[vfiouser.IRQMSIX].Flags&vfiouser.IRQNoResize != 0 {
		first = 0
		if err := c.disable(vfiouser.IRQMSIX); err != nil {
			return nil, err
		}
	}
	for len(c.vectors) <= v {
		c.vectors = append(c.vectors, nil)
	}
	if err := c.setVectors(first, v+1); err != nil {
		return nil, err
	}
	return c.vectors[v], nil
}

// setVectors sends the eventfds of some vectors, as many in a message as the
// server takes.
func (c *Client) setVectors(first, end int) error {
	var fds []int
	for v := first; v < end; v++ {
		if c.vectors[v] == nil {
			i, err := newInterrupt()
			if err != nil {
				return err
			}
			c.vectors[v] = i
		}
		fd, err := c.vectors[v].fd()
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	room := max(1, int(c.server.Capabilities.MaxMsgFDs))
	for part := range slices.Chunk(fds, room) {
		set := vfiouser.IRQSet{Flags: irqEventFD, Index: vfiouser.IRQMSIX, Start: uint32(first), Count: uint32(len(part))}
		if err := c.SetIRQs(set, part); err != nil {
			return err
		}
		first += len(part)
	}
	return nil
}

// DisableMSIX switches MSI-X off and INTx on again, as when a driver leaves.
func (c *Client) DisableMSIX() error {
	msix := c.Capability(pciCapMSIX)
	size := uint32(le.Uint16(c.config[msix+msixControl:]) & 0x7ff)
	if err := c.WriteConfig(msix+msixControl, 2, size); err != nil {
		return err
	}
	if err := c.disable(vfiouser.IRQMSIX); err != nil {
		return err
	}
	for _, v := range c.vectors {
		v.close()
	}
	c.vectors = nil
	if c.irqs[vfiouser.IRQINTx].Count == 0 {
		return nil
	}
	return c.EnableINTx()
}
