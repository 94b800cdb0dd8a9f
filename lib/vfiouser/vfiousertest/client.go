// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/vfiouser"
)

var le = binary.LittleEndian

// Options say how a Client differs from QEMU 11.1, which the zero value is.
type Options struct {
	// Minor is the minor protocol version proposed, 0 or 1.
	Minor uint16
	// Timeout is how long the server has for a reply. Default 5 s, as in QEMU.
	Timeout time.Duration
	// NoMmap leaves BAR0 unmapped although the server offers it, as a machine
	// monitor does that does not know the capability.
	NoMmap bool
}

// maxMsgFDs is how many file descriptors QEMU takes in one message.
const maxMsgFDs = 16

// maxCommands is how many commands of the server may wait to be served.
const maxCommands = 4096

// Client is the vfio-user side of a virtual machine monitor. Calls, region
// accesses and mappings may come from several goroutines; like virtual CPUs in
// QEMU they wait for one another. What changes the machine (Start, SetPAM,
// Command, interrupts) is for one goroutine at a time.
type Client struct {
	conn    *vfiouser.Conn
	mem     *Memory
	options Options

	// big is QEMU's big lock: a caller holds it from its command until the
	// reply is in, and the server's DMA commands are served under it. A
	// server that waits for DMA before it replies waits for ever.
	big sync.Mutex

	id      atomic.Uint32
	mu      sync.Mutex
	waiting map[uint16]chan Reply
	maps    []Mapping
	command uint16 // register of configuration space
	err     error  // why the connection ended

	commands chan request // from the server, to be served
	done     chan struct{}
	wg       sync.WaitGroup

	server    vfiouser.Version
	device    vfiouser.DeviceInfo
	regions   [vfiouser.NumPCIRegions]vfiouser.RegionInfo
	irqs      [vfiouser.NumPCIIRQs]vfiouser.IRQInfo
	areas     []vfiouser.SparseArea // of BAR0
	doorbells []byte                // the doorbell page of BAR0, nil: not mapped
	config    [pciConfigSize]byte   // QEMU's own copy, as read at the start
	bar0      uint64                // address of BAR0
	pam       int                   // index into pamStates
	intx      *Interrupt
	vectors   []*Interrupt // MSI-X
}

// Reply is the answer to a command. The caller owns the file descriptors.
type Reply struct {
	Header  vfiouser.Header
	Payload []byte
	FDs     []int
}

// request is a command from the server.
type request struct {
	header  vfiouser.Header
	payload []byte
}

// Connect connects to the server's socket and sends nothing: the way to begin
// for a test that wants to get the beginning wrong.
func Connect(path string, mem *Memory, options Options) (*Client, error) {
	if options.Timeout == 0 {
		options.Timeout = 5 * time.Second
	}
	socket, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	c := &Client{
		conn:     vfiouser.NewConn(socket, vfiouser.Limits{MaxFDs: maxMsgFDs, WriteTimeout: options.Timeout}),
		mem:      mem,
		options:  options,
		waiting:  make(map[uint16]chan Reply),
		commands: make(chan request, maxCommands),
		done:     make(chan struct{}),
	}
	c.id.Store(^uint32(0)) // the first ID is 0
	c.wg.Go(c.read)
	c.wg.Go(c.serve)
	return c, nil
}

// Dial connects and goes through all that QEMU and the firmware do before a
// driver finds the device: see Start.
func Dial(path string, mem *Memory, options Options) (*Client, error) {
	c, err := Connect(path, mem, options)
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection at once, whatever is under way, and frees what the
// client holds. It may be called more than once.
func (c *Client) Close() error {
	err := c.conn.Close()
	c.wg.Wait()
	c.big.Lock()
	defer c.big.Unlock()
	for _, v := range c.vectors {
		v.close()
	}
	c.vectors = nil
	c.intx.close()
	c.intx = nil
	if c.doorbells != nil {
		err = errors.Join(err, unix.Munmap(c.doorbells))
		c.doorbells = nil
	}
	return err
}

// Done is closed when the connection has ended, by either side; Err says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended: io.EOF if the server closed it between
// two messages, nil while it lasts.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Memory returns the guest memory.
func (c *Client) Memory() *Memory { return c.mem }

// Server returns what the server answered to VERSION.
func (c *Client) Server() vfiouser.Version { return c.server }

// read hands every message to whoever it is for, until the connection ends.
func (c *Client) read() {
	err := c.readAll()
	c.conn.Close()
	c.mu.Lock()
	c.err = err
	for id, w := range c.waiting {
		close(w)
		delete(c.waiting, id)
	}
	c.mu.Unlock()
	close(c.commands)
	close(c.done)
}

func (c *Client) readAll() error {
	for {
		m, err := c.conn.ReadMessage()
		if err != nil {
			return err
		}
		if !m.Header.IsReply() {
			select {
			case c.commands <- request{m.Header, slices.Clone(m.Payload)}:
				continue
			default:
				return fmt.Errorf("server has more than %d commands waiting", maxCommands)
			}
		}
		c.mu.Lock()
		w := c.waiting[m.Header.ID]
		delete(c.waiting, m.Header.ID)
		c.mu.Unlock()
		if w == nil {
			return fmt.Errorf("%v reply %#x to no command", m.Header.Command, m.Header.ID)
		}
		r := Reply{Header: m.Header, Payload: slices.Clone(m.Payload)}
		for i := range m.NumFDs() {
			r.FDs = append(r.FDs, m.TakeFD(i))
		}
		w <- r
	}
}

// pending is a command whose reply is awaited.
type pending struct {
	command vfiouser.Command
	id      uint16
	reply   chan Reply
}

// expect registers the caller for the reply with this ID.
func (c *Client) expect(cmd vfiouser.Command, id uint16) (pending, error) {
	p := pending{cmd, id, make(chan Reply, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return p, fmt.Errorf("%v: connection has ended: %w", cmd, c.err)
	}
	if c.waiting[id] != nil {
		return p, fmt.Errorf("%v: a command with ID %#x is under way", cmd, id)
	}
	c.waiting[id] = p.reply
	return p, nil
}

// send sends a command that wants a reply.
func (c *Client) send(cmd vfiouser.Command, fds []int, payload ...[]byte) (pending, error) {
	id := uint16(c.id.Add(1))
	p, err := c.expect(cmd, id)
	if err != nil {
		return p, err
	}
	return p, c.conn.SendFDs(vfiouser.Header{ID: id, Command: cmd}, fds, payload...)
}

// wait waits for the reply to a command. An error reply is an error.
func (c *Client) wait(p pending) (Reply, error) {
	timer := time.NewTimer(c.options.Timeout)
	defer timer.Stop()
	select {
	case r, ok := <-p.reply:
		if !ok {
			return r, fmt.Errorf("%v: no reply, connection has ended: %w", p.command, c.Err())
		}
		return r, r.Header.Err()
	case <-timer.C:
		c.mu.Lock()
		delete(c.waiting, p.id)
		c.mu.Unlock()
		return Reply{}, fmt.Errorf("%v: no reply within %v: %w", p.command, c.options.Timeout, os.ErrDeadlineExceeded)
	}
}

// Call sends any command with any payload and file descriptors, and returns the
// reply. An error reply is a *vfiouser.ReplyError; no reply in time wraps
// os.ErrDeadlineExceeded.
func (c *Client) Call(cmd vfiouser.Command, fds []int, payload ...[]byte) (Reply, error) {
	c.big.Lock()
	defer c.big.Unlock()
	p, err := c.send(cmd, fds, payload...)
	if err != nil {
		return Reply{}, err
	}
	return c.wait(p)
}

// Post sends a command that wants no reply.
func (c *Client) Post(cmd vfiouser.Command, fds []int, payload ...[]byte) error {
	h := vfiouser.Header{ID: uint16(c.id.Add(1)), Command: cmd, Flags: vfiouser.FlagNoAck}
	return c.conn.SendFDs(h, fds, payload...)
}

// SendRaw writes bytes to the socket as they are, with file descriptors at the
// first of them: parts of a message, several messages, or none. The server must
// not reply; CallRaw is for what it replies to.
func (c *Client) SendRaw(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.conn.Socket().WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.conn.Socket().Write(b[n:])
	}
	return err
}

// CallRaw writes a message as it is, with whatever its header says, and waits
// for the reply with the message's ID.
func (c *Client) CallRaw(message []byte, fds ...int) (Reply, error) {
	if len(message) < vfiouser.HeaderSize {
		return Reply{}, fmt.Errorf("message of %d bytes has no ID", len(message))
	}
	c.big.Lock()
	defer c.big.Unlock()
	p, err := c.expect(vfiouser.Command(le.Uint16(message[2:])), le.Uint16(message))
	if err != nil {
		return Reply{}, err
	}
	if err := c.SendRaw(message, fds...); err != nil {
		return Reply{}, err
	}
	return c.wait(p)
}

// Message builds the bytes of a message for SendRaw and CallRaw, with the right
// size in its header.
func Message(h vfiouser.Header, payload ...[]byte) []byte {
	b := make([]byte, vfiouser.HeaderSize)
	for _, p := range payload {
		b = append(b, p...)
	}
	h.Size = uint32(len(b))
	h.Put(b)
	return b
}

// closeAll closes the file descriptors of a reply nobody wants.
func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
