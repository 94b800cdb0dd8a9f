// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// LinkVersion is the version of the link protocol.
const LinkVersion = 2

// MessageSize is the size of every link message, in bytes. RelayRead replies
// and RelayWrite requests carry their data behind it.
const MessageSize = 512

// MaxRelay is the most data one RelayRead or RelayWrite moves, in bytes.
const MaxRelay = 32 << 10

// MessageKind says what a Message is about.
type MessageKind uint32

// Link messages. The runtime speaks first.
const (
	// MsgHello (runtime): Version; Name is the runtime's; ID its process.
	MsgHello MessageKind = iota + 1
	// MsgWelcome (leap-wpt): Gen is the epoch granted; fd: write end of the
	// fence pipe, to be registered in every io_uring before its first request.
	// Status is 0, or why the runtime is refused (EBUSY: another of this name
	// is alive; EPROTO: Version is what leap-wpt speaks).
	MsgWelcome
	// MsgAttach (leap-wpt): Port is served by this runtime from now on, as a
	// controller of the subsystem Subsystem; Name is the port's; Flags has
	// PortMapped; Index is a PollMode; Gen is the generation of the region
	// table, empty until the MsgMaps that follow. fds: register page, doorbell
	// page, state area, kick eventfd.
	MsgAttach
	// MsgDetach (leap-wpt): stop serving Port and answer MsgDetached.
	MsgDetach
	// MsgDetached (runtime): Port is no longer used; no I/O for it is in flight.
	MsgDetached
	// MsgMap (leap-wpt): Addr, Size, Offset, Flags (Region*) of a region of
	// Port; table generation Gen. fd: the memory, if shared.
	MsgMap
	// MsgUnmap (leap-wpt): Addr, Size; table generation Gen; ID is answered.
	MsgUnmap
	// MsgUnmapped (runtime): the range of the MsgUnmap with that ID has left
	// the table, and no new I/O touches it.
	MsgUnmapped
	// MsgVector (leap-wpt): interrupt Index (a VFIO index) vector Start of Port
	// has the eventfd that comes with the message, or none.
	MsgVector
	// MsgRelayRead (runtime): read Size bytes at Addr of Port; ID is answered.
	MsgRelayRead
	// MsgRelayWrite (runtime): write the data behind the message.
	MsgRelayWrite
	// MsgRelayed (leap-wpt): answer to either: Status (an errno), data.
	MsgRelayed
	// MsgKeep (runtime): keep the fd under Name until MsgDrop, also when the
	// runtime dies. Answered by MsgKept.
	MsgKeep
	// MsgFetch (runtime): answered by MsgKept with the fd, or Status ENOENT.
	MsgFetch
	// MsgDrop (runtime): close what is kept under Name. Not answered.
	MsgDrop
	// MsgKept (leap-wpt): answer to MsgKeep and MsgFetch with their ID.
	MsgKept
	// MsgStatus (runtime): the Status word of Port has changed. The page is
	// the truth; this lets leap-wpt publish it as a fact and an event.
	MsgStatus
	// MsgPing (leap-wpt): a guest waits for the runtime; ID is answered.
	MsgPing
	// MsgPong (runtime): every poller has run since the MsgPing with that ID.
	MsgPong
)

// Flags of MsgMap and MsgAttach.
const (
	RegionRead  = 1 << 0 // the device may read
	RegionWrite = 1 << 1 // the device may write
	RegionOwn   = 1 << 2 // the port's own BAR page: never an address of data
	PortMapped  = 1 << 8 // the doorbell page is mapped into the guest: poll it
)

// PollMode is how the pollers of a port are to wait for work, in MsgAttach.
type PollMode = uint32

// Poll modes of a port.
const (
	PollDefault PollMode = iota // as the runtime was started
	PollAdaptive
	PollBusy
	PollInterrupt
)

// Message is one link message: fixed size, native byte order (both ends run on
// the same kernel), unused fields zero. Names are padded with NUL.
type Message struct {
	Kind      MessageKind
	Version   uint32
	Port      uint32 // leap-wpt's number of the port, never reused while it runs
	Flags     uint32
	ID        uint64
	Gen       uint64
	Addr      uint64
	Size      uint64
	Offset    uint64
	Index     uint32
	Start     uint32
	Status    int32 // errno
	_         [4]byte
	Name      [64]byte
	Subsystem [224]byte // a name or an NQN (at most 223 bytes, NVMe Base 4.7)
	_         [152]byte
}

// nameField is a field of a Message that holds a name.
type nameField interface{ [64]byte | [224]byte }

// SetName stores a name, which must fit.
func SetName[T nameField](to *T, name string) error {
	b := nameBytes(to)
	if len(name) >= len(b) {
		return fmt.Errorf("name %q is longer than %d bytes", name, len(b)-1)
	}
	clear(b[copy(b, name):])
	return nil
}

// NameOf returns a name from a message.
func NameOf[T nameField](from *T) string {
	b := nameBytes(from)
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Link is one end of a link: a SOCK_SEQPACKET connection. Send may be called
// from several goroutines, Recv from one.
type Link struct {
	conn *net.UnixConn
	buf  [MessageSize + MaxRelay]byte
	oob  [256]byte
}

// maxLinkFDs is the most fds a message carries (MsgAttach).
const maxLinkFDs = 4

// NewLink wraps a connection of network "unixpacket".
func NewLink(conn *net.UnixConn) *Link { return &Link{conn: conn} }

// Close ends the link; a blocked Recv returns.
func (l *Link) Close() error { return l.conn.Close() }

// Send sends m, at most MaxRelay bytes of data and the fds, which stay the
// caller's.
func (l *Link) Send(m *Message, data []byte, fds ...int) error {
	if len(data) > MaxRelay {
		return fmt.Errorf("link message with %d bytes of data, limit %d", len(data), MaxRelay)
	}
	b := messageBytes(m)
	if len(data) > 0 {
		b = append(bytes.Clone(b), data...)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := l.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("sending link message: %w", err)
	}
	return nil
}

// Recv receives one message. data is valid until the next call; the fds are
// the caller's. The error is net.ErrClosed at the end of the link, whoever ended
// it; anything else is a peer that breaks the protocol.
func (l *Link) Recv() (m Message, data []byte, fds []int, err error) {
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(l.buf[:], l.oob[:])
	fds, cerr := parseRights(l.oob[:oobn])
	switch {
	case errors.Is(err, io.EOF):
		err = errLinkEnd
	case err != nil:
	case cerr != nil:
		err = cerr
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("link message too long")
	case n < MessageSize:
		err = fmt.Errorf("link message of %d bytes, expected at least %d", n, MessageSize)
	case len(fds) > maxLinkFDs:
		err = fmt.Errorf("link message with %d fds, limit %d", len(fds), maxLinkFDs)
	}
	if err != nil {
		CloseFDs(fds)
		return Message{}, nil, nil, err
	}
	copy(messageBytes(&m), l.buf[:MessageSize])
	return m, l.buf[MessageSize:n], fds, nil
}

// errLinkEnd: the peer has closed its end.
var errLinkEnd = fmt.Errorf("link closed by peer: %w", net.ErrClosed)

// parseRights returns the fds of a control message, close-on-exec.
func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("link control message: %w", err)
	}
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials and the like are not ours to ask for
		}
		fds = append(fds, got...)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

// CloseFDs closes what a message brought.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
