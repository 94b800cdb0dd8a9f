// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/qpair"
)

// A runtime may take as long as its I/O takes. But one that hangs would keep a
// guest waiting for ever, and whoever could take its place. So while a port
// waits for its runtime, the runtime is asked whether all its pollers still
// run, and one that does not answer is killed. Nobody else is asked anything.

var errHung = errors.New("its pollers do not run")

// expect has the holder watched: the port waits for it from now on. The caller
// holds mu.
func (p *port) expect() {
	if p.holder == nil {
		return
	}
	select {
	case p.holder.expected <- struct{}{}:
	default:
	}
}

// overdue tells since when the port has waited for rt; the zero time: it does
// not.
func (p *port) overdue(rt *runtime) (since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holder != rt || p.closed {
		return time.Time{}
	}
	for _, w := range []struct {
		waits bool
		since time.Time
	}{
		{!p.acknowledged(), p.edge},
		{len(p.unmaps.open) > 0, p.unmaps.since},
		{p.detaching, p.detachedAt},
	} {
		if w.waits && (since.IsZero() || w.since.Before(since)) {
			since = w.since
		}
	}
	return since
}

// overdue tells since when the first port has waited for rt; the zero time: none
// does.
func (rt *runtime) overdue() (since time.Time) {
	for _, p := range rt.broker.allPorts() {
		if at := p.overdue(rt); !at.IsZero() && (since.IsZero() || at.Before(since)) {
			since = at
		}
	}
	return since
}

// watch asks a runtime that is waited for whether it is alive, until its link
// ends.
func (rt *runtime) watch() {
	limits := &rt.broker.limits
	for ping := uint64(1); ; {
		select {
		case <-rt.expected:
		case <-rt.ended:
			return
		}
		for since := rt.overdue(); !since.IsZero(); since = rt.overdue() {
			if left := limits.patience - time.Since(since); left > 0 {
				if !rt.sleep(left) {
					return
				}
				continue
			}
			// Without file descriptors there is nothing to fail.
			_ = rt.out.add(qpair.Message{Kind: qpair.MsgPing, ID: ping}, nil)
			rt.broker.counts.pings.Add(1)
			if !rt.answers(ping, limits.alive) {
				rt.broker.counts.latePings.Add(1)
				rt.kill()
				return
			}
			ping++
			if !rt.sleep(limits.patience) {
				return
			}
		}
	}
}

// sleep waits, and reports false if the link has ended.
func (rt *runtime) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-rt.ended:
		return false
	}
}

// answers waits for the answer to a ping, or the end of the link.
func (rt *runtime) answers(ping uint64, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case id := <-rt.pongs:
			if id == ping {
				return true
			}
		case <-rt.ended:
			return true
		case <-timer.C:
			return false
		}
	}
}

// pong is a MsgPong.
func (rt *runtime) pong(id uint64) {
	select {
	case rt.pongs <- id:
	default: // nobody has asked
	}
}

// kill ends the process of a runtime that hangs. What it has in flight is waited
// for as ever.
func (rt *runtime) kill() {
	rt.fail(errHung)
	if rt.process < 0 || rt.pid == os.Getpid() {
		return
	}
	if err := unix.PidfdSendSignal(rt.process, unix.SIGKILL, nil, 0); err != nil {
		rt.broker.log.Error("killing a runtime that hangs", "runtime", rt.name, "pid", rt.pid, "err", err)
	}
}

// peerProcess returns a pidfd of the process at the other end of a socket, noFD
// where the kernel has none to give.
func peerProcess(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return noFD
	}
	fd := noFD
	if err := raw.Control(func(s uintptr) {
		if got, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			fd = got
		}
	}); err != nil {
		return noFD
	}
	if fd == noFD { // before Linux 6.5
		if got, err := unix.PidfdOpen(peerPID(conn), 0); err == nil {
			fd = got
		}
	}
	return fd
}
