// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// MaxEntries is the most entries of an I/O queue.
const MaxEntries = 128

// MaxTransfer is the most data of a command on an I/O queue, in bytes.
const MaxTransfer = maxData

// Socket is an I/O queue that is connected, with no command in flight. It is
// served by a Queue on a poller, and can be by another one after that.
type Socket struct {
	QID uint16

	fd        int
	in, out   fabrics.Framing
	maxH2C    uint32
	entries   int
	inCapsule uint32
}

// Close ends the connection. It may be called twice.
func (s *Socket) Close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// ConnectQueue makes the I/O queue qid of the association a, whose address and
// options are as at Connect, with at most MaxEntries entries. id is what the
// controller says of itself. Errors are those of Connect.
func (a *Admin) ConnectQueue(ctx context.Context, addr fabrics.Address, o Options, id *nvme.IdentifyController, qid uint16) (*Socket, error) {
	s := &Socket{QID: qid, fd: -1, entries: min(MaxEntries, int(a.cap.MQES())+1)}
	if id.MAXCMD != 0 {
		s.entries = min(s.entries, max(int(id.MAXCMD), 2)) // one of them is never used
	}
	if in := uint64(id.IOCCSZ) * 16; in > nvme.SQESize && id.ICDOFF == 0 {
		s.inCapsule = uint32(min(in-nvme.SQESize, maxData))
	}
	if s.entries < 2 {
		return nil, fault.Errorf(fault.Peer, "", "", "queue %d: the controller takes %d commands at a time", qid, s.entries)
	}
	c := fabrics.ConnectCommand{QID: qid, SQSIZE: uint16(s.entries - 1), CATTR: fabrics.CATTRNoFlowControl}
	q, err := dial(ctx, addr, o, c, a.cntlid)
	if err != nil {
		return nil, fmt.Errorf("queue %d: %w", qid, err)
	}
	defer q.Close()
	s.in, s.out, s.maxH2C = q.in, q.out, q.maxH2C
	s.out.MaxCapsule, s.out.MaxData = s.inCapsule, s.maxH2C
	if err := s.take(q.conn.(*net.TCPConn)); err != nil {
		return nil, fmt.Errorf("queue %d: %w", qid, err)
	}
	return s, nil
}

// take duplicates the descriptor of a connection. When the last one is closed,
// also by the end of this process, the peer is told by a reset: it need not
// wait for more.
func (s *Socket) take(conn *net.TCPConn) error {
	if err := conn.SetLinger(0); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if control := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); control != nil {
		return control
	}
	return err
}

// duplicate returns another descriptor of the connection.
func (s *Socket) duplicate() (int, error) {
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating a connection: %w", err)
	}
	return fd, nil
}
