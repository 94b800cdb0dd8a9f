// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file is a process of hostile peers: this test binary, which TestHostile starts again.

package target

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// attackEnv has the address of the target to attack, how hard, 1 and up, and which attack it is to be, or all.
const attackEnv = "LEAP_TEST_ATTACK"

func TestMain(m *testing.M) {
	if words := os.Getenv(attackEnv); words != "" {
		attackAll(words)
		return
	}
	os.Exit(m.Run())
}

// manyConnections is how many are many.
const manyConnections = 10000

// attacker is one kind of hostility.
type attacker struct {
	addr  netip.AddrPort
	force int
	r     *rand.Rand
	hosts byte // given out
	open  []net.Conn
}

// attacks are all kinds. A peer that is told to go, or is not let in, is no reason to stop.
var attacks = []struct {
	name string
	run  func(*attacker)
}{
	{"fields", (*attacker).fields},
	{"truncated", (*attacker).truncated},
	{"endless", (*attacker).endless},
	{"drip", (*attacker).drip},
	{"half open", (*attacker).halfOpen},
	{"connections", (*attacker).connections},
	{"connect", (*attacker).connect},
	{"before Connect", (*attacker).early},
	{"data", (*attacker).data},
	{"admin", (*attacker).admin},
	{"discovery", (*attacker).discovery},
	{"properties", (*attacker).properties},
	{"storm", (*attacker).storm},
}

// attackAll runs the attacks it is told, some at once, and says what it has done. At the end it waits for a byte, with what is open open.
func attackAll(words string) {
	var target, which string
	var force int
	if _, err := fmt.Sscanf(words, "%s %d %s", &target, &force, &which); err != nil {
		panic(err)
	}
	newAttacker := func(seed int) *attacker {
		return &attacker{addr: netip.MustParseAddrPort(target), force: force, r: rand.New(rand.NewPCG(uint64(seed), 1)), hosts: byte(seed * 16)}
	}
	go func() {
		for which == "all" { // until the end: the target ends those that hang for too long
			a := newAttacker(len(attacks))
			a.hang()
			time.Sleep(time.Second)
			a.hangUp()
		}
	}()
	var wait sync.WaitGroup
	turns := make(chan struct{}, 4)
	for i, attack := range attacks {
		if which != "all" && which != attack.name {
			continue
		}
		a := newAttacker(i)
		wait.Go(func() {
			turns <- struct{}{}
			start := time.Now()
			attack.run(a)
			fmt.Printf("%s: %v\n", attack.name, time.Since(start).Round(time.Millisecond))
			if which == "all" {
				a.hangUp()
			}
			<-turns
		})
	}
	wait.Wait()
	fmt.Println("done")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// reporter is the test of fabricstest here: what fails ends what is tried, and nothing else.
type reporter struct{ testing.TB }

type abandoned struct{}

func (reporter) Helper()               {}
func (reporter) Cleanup(func())        {}
func (reporter) Fatal(...any)          { panic(abandoned{}) }
func (reporter) Fatalf(string, ...any) { panic(abandoned{}) }

// try runs f, which may be cut off.
func (a *attacker) try(f func()) {
	defer func() {
		if e := recover(); e != nil && e != (abandoned{}) {
			panic(e)
		}
	}()
	f()
}

// times runs f n times, and more with more force.
func (a *attacker) times(n int, f func(i int)) {
	for i := range n * a.force {
		a.try(func() { f(i) })
	}
}

// keep keeps a connection open until hangUp.
func (a *attacker) keep(q *fabricstest.Queue) *fabricstest.Queue {
	a.open = append(a.open, q.Conn)
	return q
}

func (a *attacker) hangUp() {
	for _, c := range a.open {
		c.Close()
	}
	a.open = nil
}

func (a *attacker) dial() *fabricstest.Queue { return a.keep(fabricstest.Dial(reporter{}, a.addr)) }

func (a *attacker) initialized() *fabricstest.Queue {
	return a.keep(fabricstest.Initialize(reporter{}, a.addr, fabricstest.Options{}))
}

// host connects an admin queue as a host of its own, and enables the controller.
func (a *attacker) host() *fabricstest.Queue {
	q := a.initialized()
	a.hosts++
	q.Options.Host = a.hosts
	cqe := q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
	if cqe.StatusField() != 0 {
		panic(abandoned{})
	}
	q.Configure(fabricstest.Enabled)
	q.WaitStatus(nvme.CSTS.RDY)
	return q
}

// io connects an I/O queue.
func (a *attacker) io(admin *fabricstest.Queue, qid uint16) *fabricstest.Queue {
	q := a.initialized()
	q.Options.Host = admin.Options.Host
	cqe := q.Connect(fabrics.ConnectCommand{QID: qid, SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, admin.CNTLID))
	if cqe.StatusField() != 0 {
		panic(abandoned{})
	}
	return q
}

// linger has what was said arrive before the connection goes, with all others: the end is waited for a moment, or not.
func (a *attacker) linger(q *fabricstest.Queue) {
	if a.r.IntN(4) == 0 {
		_ = q.Conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, _ = q.Conn.Read(make([]byte, 1<<10))
	}
	if tcp, ok := q.Conn.(*net.TCPConn); ok && a.r.IntN(3) == 0 {
		_ = tcp.SetLinger(0) // a reset
	}
	a.hangUp()
}

// hang holds all buffers it can get: with data it was asked for and does not send, and with data that it does not take.
func (a *attacker) hang() {
	a.times(6, func(i int) {
		admin := a.host()
		for qid := uint16(1); qid <= 3; qid++ {
			q := a.io(admin, qid)
			for range 8 {
				if i%2 == 0 {
					q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, dma.MaxTransfer), To: make([]byte, dma.MaxTransfer)})
				} else {
					q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 1, 0, dma.MaxTransfer), From: make([]byte, dma.MaxTransfer)})
				}
			}
		}
	})
}

// edges are values of bytes.
var edges = []byte{0, 1, 0x1f, 0x20, 0x7f, 0x80, 0xff}

// stages bring a connection to where a PDU is tried.
func (a *attacker) stage(i int) *fabricstest.Queue {
	switch i {
	case 0:
		return a.dial()
	case 1:
		return a.initialized()
	case 2:
		return a.host()
	default:
		return a.io(a.host(), 1)
	}
}

// pdus are one of each type that a host sends, and two that it does not.
func pdus() [][]byte {
	q := fabricstest.Queue{Out: fabrics.Framing{From: fabrics.FromHost, Align: 4}}
	var connect nvme.SQE
	fabrics.ConnectCommand{SQSIZE: 31}.Put(&connect)
	connect.SetPSDT(nvme.PSDTSGL)
	connect.SetSGL1(fabrics.InCapsule(1024))
	write := rw(nvme.IOWrite, 3, 0, 512)
	write.SetPSDT(nvme.PSDTSGL)
	write.SetSGL1(fabrics.InCapsule(512))
	capsule := func(e nvme.SQE, data []byte) []byte {
		c := fabrics.CapsuleCmd{SQE: e}
		return q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), data)
	}
	d := fabrics.Data{DATAL: 64}
	return [][]byte{
		icReq(9, 0),
		capsule(connect, fabrics.Bytes(fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))),
		capsule(write, make([]byte, 512)),
		q.Encode(fabrics.TypeH2CData, fabrics.FlagLast, fabrics.Bytes(&d), make([]byte, 64)),
		raw(30, 2, 0, 24, 0, 30, 0, 0, 0, 1),
		raw(24, 9, 0, 24, 0, 24), raw(24, 7, 0, 24, 0, 24),
	}
}

// fields says every PDU at every stage, with a byte at one of its edges. Blocks of others are out of reach: the namespace has none of
// theirs, and what says where to write is left alone.
func (a *attacker) fields() {
	all := pdus()
	a.times(1200, func(int) {
		q := a.stage(a.r.IntN(4))
		p := bytes.Clone(all[a.r.IntN(len(all))])
		p[a.r.IntN(min(len(p), 48))] = edges[a.r.IntN(len(edges))]
		_, _ = q.Conn.Write(p)
		a.linger(q)
	})
}

// truncated stops anywhere in a session, and goes or stays.
func (a *attacker) truncated() {
	whole := session(false)
	for _, s := range steps(false) {
		whole = append(whole, s...)
	}
	a.times(600, func(i int) {
		q := a.dial()
		_, _ = q.Conn.Write(whole[:a.r.IntN(len(whole))])
		if i%4 != 0 {
			q.Conn.Close()
		}
	})
}

// endless says what has no end: PDUs that are longer than any, one after the other, and commands whose answers are not taken.
func (a *attacker) endless() {
	zeroes := make([]byte, 1<<20)
	long := func(t fabrics.PDUType, hlen, pdo byte) []byte {
		return []byte{byte(t), 0, hlen, pdo, 0xff, 0xff, 0xff, 0xff}
	}
	flood := func(q *fabricstest.Queue, p []byte) {
		_ = q.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // the target need not take it
		for range 64 {
			if _, err := q.Conn.Write(p); err != nil {
				return
			}
		}
	}
	a.times(3, func(int) {
		for stage := range 4 {
			for _, head := range [][]byte{nil, long(fabrics.TypeICReq, 128, 0), long(fabrics.TypeH2CTermReq, 24, 0), long(fabrics.TypeCapsuleCmd, 72, 72), long(fabrics.TypeH2CData, 24, 24)} {
				a.try(func() {
					q := a.stage(stage)
					_, _ = q.Conn.Write(head)
					flood(q, zeroes)
				})
			}
		}
		for _, p := range pdus() {
			q := a.stage(3)
			flood(q, bytes.Repeat(p, 100))
		}
	})
	a.times(2, func(int) {
		q := a.io(a.host(), 1)
		_ = q.Conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for range 31 {
			q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 2, 0, dma.MaxTransfer), From: make([]byte, dma.MaxTransfer)})
		}
	})
}

// drip sends ICReq a byte at a time, which takes longer than the target waits.
func (a *attacker) drip() {
	p := icReq(9, 0)
	a.times(200, func(int) { a.dial() })
	for end := time.Now().Add(3 * time.Second); len(p) > 0 && time.Now().Before(end); p = p[1:] {
		for _, c := range a.open {
			_, _ = c.Write(p[:1])
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// halfOpen connects and says nothing, or says that it will say nothing, or resets.
func (a *attacker) halfOpen() {
	a.times(600, func(i int) {
		q := a.dial()
		tcp := q.Conn.(*net.TCPConn)
		switch i % 3 {
		case 0:
			_ = tcp.CloseWrite()
		case 1:
			_ = tcp.SetLinger(0)
			tcp.Close()
		}
	})
}

// connections has 10,000 connections at once, from many addresses, and says of how many the target has heard.
func (a *attacker) connections() {
	for round := range a.force {
		a.hangUp()
		for i := range manyConnections {
			d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(round), byte(i>>8)+1)}}
			c, err := d.Dial("tcp", a.addr.String())
			if err != nil {
				continue
			}
			if i%2 == 0 {
				_, _ = c.Write(icReq(9, 0)[:i%128])
			}
			a.open = append(a.open, c)
		}
		fmt.Printf("%d connections\n", len(a.open))
	}
}

// connect says Connect in every way, as fast as it goes, also again and again on one connection.
func (a *attacker) connect() {
	names := []string{testNQN, otherNQN, busyNQN, hostNQN, fabrics.DiscoveryNQN, discoveryNQN, "", "nqn.\x00x", "nqn.\x1b[2J"}
	a.times(100, func(int) {
		q := a.initialized()
		for range 10 {
			d := fabricstest.ConnectData(names[a.r.IntN(len(names))], names[a.r.IntN(len(names))], uint16(a.r.Uint32()))
			if a.r.IntN(2) == 0 {
				d.CNTLID = fabrics.CNTLIDDynamic
			}
			q.Connect(fabrics.ConnectCommand{
				RECFMT: uint16(a.r.IntN(8)) / 7, QID: uint16(a.r.IntN(3)), SQSIZE: uint16(a.r.IntN(2) * a.r.IntN(0x10000)), CATTR: uint8(a.r.Uint32()), KATO: a.r.Uint32(),
			}, d)
		}
		a.linger(q)
	})
	a.times(400, func(int) { a.linger(a.host()) })
}

// early sends commands before Connect.
func (a *attacker) early() {
	a.times(50, func(int) {
		q := a.initialized()
		for i := range 50 {
			e := nvme.SQE{Opcode: byte(a.r.Uint32()), NSID: uint32(i)}
			if e.Opcode == fabrics.Opcode {
				continue // it may be Connect
			}
			q.Do(&fabricstest.Request{SQE: e})
		}
		q.Corked = true // and then more at once than there may be
		for range 20 {
			q.Start(&fabricstest.Request{SQE: nvme.SQE{Opcode: 2}})
		}
		q.Flush()
		a.linger(q)
	})
}

// data answers R2Ts with too much, too little, twice, for another tag, in another order.
func (a *attacker) data() {
	a.times(150, func(i int) {
		q := a.io(a.host(), 1)
		q.Options.InCapsule = 512
		q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 65536), To: make([]byte, 65536)})
		pdu, err := q.Receive()
		if err != nil || pdu.Type != fabrics.TypeR2T {
			panic(abandoned{})
		}
		var r2t fabrics.R2T
		copy(fabrics.Bytes(&r2t), pdu.Header)
		d := fabrics.Data{CCCID: r2t.CCCID, TTAG: r2t.TTAG, DATAL: 4096}
		say := func(flags uint8) {
			_, _ = q.Conn.Write(q.Encode(fabrics.TypeH2CData, flags, fabrics.Bytes(&d), make([]byte, d.DATAL)))
		}
		switch i % 6 {
		case 0:
			d.TTAG = uint16(a.r.Uint32())
		case 1:
			d.DATAO = uint32(a.r.Uint64())
		case 2:
			d.DATAL = 65536 + 4
		case 3:
			say(0)
		case 4:
			d.CCCID++
		case 5:
			d.DATAL = 65536
			say(fabrics.FlagLast)
		}
		say(fabrics.FlagLast * uint8(a.r.IntN(2)))
		a.linger(q)
	})
}

// admin floods an admin queue with event requests and aborts, of nothing and of commands that are held.
func (a *attacker) admin() {
	a.times(10, func(int) {
		admin := a.host()
		q := a.io(admin, 1)
		for range 16 {
			q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 512), From: make([]byte, 512)})
		}
		for range 200 {
			var r fabricstest.Request
			if a.r.IntN(2) == 0 {
				r.SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
				admin.Start(&r)
			} else {
				nvme.Abort{SQID: uint16(a.r.IntN(3)), CID: uint16(a.r.IntN(40))}.Put(&r.SQE)
				admin.Start(&r)
			}
			if a.r.IntN(8) > 0 {
				_ = admin.Conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // event requests are not answered
				if _, err := admin.Next(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					panic(abandoned{}) // more than there may be
				}
			}
		}
	})
}

// discovery reads much, at once and without taking it, and stays.
func (a *attacker) discovery() {
	a.times(100, func(i int) {
		q := a.initialized()
		q.Connect(fabrics.ConnectCommand{SQSIZE: 31, KATO: a.r.Uint32()}, fabricstest.ConnectData(otherNQN, fabrics.DiscoveryNQN, fabrics.CNTLIDDynamic))
		q.Configure(fabricstest.Enabled)
		for range 20 {
			get := nvme.GetLogPage{LID: nvme.LogDiscovery, LPO: uint64(a.r.IntN(1024)) * 4}
			n := 4 << a.r.IntN(19)
			get.NUMD = uint32(n/4 - 1)
			r := fabricstest.Request{From: make([]byte, n)}
			get.Put(&r.SQE)
			if q.Start(&r); i%2 == 0 {
				if _, err := q.Next(); err != nil {
					panic(abandoned{})
				}
			}
		}
	})
}

// properties gets and sets properties as fast as it goes, and switches the controller on and off.
func (a *attacker) properties() {
	a.times(10, func(int) {
		q := a.initialized()
		a.hosts++
		q.Options.Host = a.hosts
		q.Connect(fabrics.ConnectCommand{SQSIZE: 31}, fabricstest.ConnectData(hostNQN, testNQN, fabrics.CNTLIDDynamic))
		for range 2000 {
			var r fabricstest.Request
			p := fabrics.Property{OFST: uint32(a.r.IntN(0x70)), Wide: a.r.IntN(2) == 0, Value: a.r.Uint64()}
			switch a.r.IntN(3) {
			case 0:
				p.PutGet(&r.SQE)
			case 1:
				p.PutSet(&r.SQE)
			default:
				p = fabrics.Property{OFST: nvme.RegCC, Value: uint64(fabricstest.Enabled) &^ uint64(a.r.IntN(2))}
				p.PutSet(&r.SQE)
			}
			q.Do(&r)
		}
	})
}

// storm has hosts come, begin something, and go.
func (a *attacker) storm() {
	a.times(150, func(int) {
		admin := a.host()
		for qid := uint16(1); qid <= 3; qid++ {
			q := a.io(admin, qid)
			q.Start(&fabricstest.Request{SQE: rw(nvme.IORead, 3, 0, 4096), From: make([]byte, 4096)})
			q.Start(&fabricstest.Request{SQE: rw(nvme.IOWrite, 1, 0, 65536), To: make([]byte, 65536)})
		}
		a.linger(admin)
	})
}
