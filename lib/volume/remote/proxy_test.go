// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// proxy is a network between a host and a target that can be bad.
type proxy struct {
	addr netip.AddrPort // where it listens
	to   netip.AddrPort

	// spoil is asked about every PDU: it returns what of it passes, as it is to
	// be, and whether that is the end of the connection. nil: all passes.
	spoil atomic.Pointer[func(passing) (pdu []byte, cut bool)]

	l     net.Listener
	over  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]*pair
	made  int // connections since the last cut
}

// passing is a PDU on its way.
type passing struct {
	fabrics.CommonHeader
	pdu    []byte // the whole of it, which may be changed
	conn   int    // connections made after the last cut have numbers from 0 on
	queue  int    // QID; -1: of a connection that is being initialized
	toHost bool
	n      int // number of the PDU in its direction, from 0 on
}

// pair is a connection through the proxy.
type pair struct {
	number       int
	queue        atomic.Int32
	host, target net.Conn
	hold         chan struct{} // closed: nothing passes, nobody is told
	once         sync.Once
}

func newProxy(t testing.TB, to netip.AddrPort) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: netip.MustParseAddrPort(l.Addr().String()), to: to, l: l, over: make(chan struct{}), conns: make(map[net.Conn]*pair)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		close(p.over)
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		host, err := p.l.Accept()
		if err != nil {
			return
		}
		target, err := net.Dial("tcp", p.to.String())
		if err != nil {
			host.Close()
			continue
		}
		x := &pair{host: host, target: target, hold: make(chan struct{})}
		p.mu.Lock()
		p.conns[host] = x
		x.number = p.made
		p.made++
		p.mu.Unlock()
		p.wg.Go(func() { p.pass(x, host, target) })
		p.wg.Go(func() { p.pass(x, target, host) })
	}
}

// pass carries PDUs one way.
func (p *proxy) pass(x *pair, from, to net.Conn) {
	defer p.end(x)
	b := make([]byte, 1<<20)
	for n := 0; ; n++ {
		pdu, err := nextPDU(from, b)
		select {
		case <-x.hold:
			if err != nil {
				<-p.over // the other end is not told
				return
			}
			continue
		default:
		}
		if err != nil {
			return
		}
		passes := passing{pdu: pdu, conn: x.number, queue: -1, toHost: from == x.target, n: n}
		copy(fabrics.Bytes(&passes.CommonHeader), pdu)
		if n == 1 && !passes.toHost { // Connect
			var c fabrics.CapsuleCmd
			copy(fabrics.Bytes(&c), pdu)
			x.queue.Store(int32(fabrics.ConnectOf(&c.SQE).QID))
		}
		if n > 0 {
			passes.queue = int(x.queue.Load())
		}
		cut := false
		if f := p.spoil.Load(); f != nil {
			pdu, cut = (*f)(passes)
		}
		if _, err := to.Write(pdu); err != nil || cut {
			return
		}
	}
}

// nextPDU reads a PDU, which may be longer than the buffer if somebody has
// falsified its length: then it is what fits.
func nextPDU(from io.Reader, b []byte) ([]byte, error) {
	if _, err := io.ReadFull(from, b[:fabrics.CommonHeaderSize]); err != nil {
		return nil, err
	}
	n := min(max(binary.LittleEndian.Uint32(b[4:]), fabrics.CommonHeaderSize), uint32(len(b)))
	_, err := io.ReadFull(from, b[fabrics.CommonHeaderSize:n])
	return b[:n], err
}

func (p *proxy) end(x *pair) {
	x.host.Close()
	x.target.Close()
	p.mu.Lock()
	delete(p.conns, x.host)
	p.mu.Unlock()
}

// cut closes every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made = 0
	for _, x := range p.conns {
		x.host.Close()
		x.target.Close()
	}
}

// hold has nothing pass on the connections that there are; new ones are good.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.conns {
		x.once.Do(func() { close(x.hold) })
	}
}

// verify writes a region and reads it twice, again and again, and compares every
// byte: a write that takes effect late is found by the second look.
type verify struct {
	t       testing.TB
	c       *volumetest.Client
	req     volume.Request
	off     uint64
	data    []byte
	want    []byte
	segs    []dma.Segment
	size    uint64
	round   uint64
	rounds  uint64
	looked  bool // once in this round
	running bool
	done    *sync.WaitGroup
}

// load starts n verifiers on each client that share nothing, and returns when
// each has done its rounds: the result is what waits for that.
func load(t testing.TB, clients []*volumetest.Client, n int, rounds uint64) (wait func()) {
	const region = 320 << 10
	var done sync.WaitGroup
	for i, c := range clients {
		mem := volumetest.NewMemory(t, uint64(n)*region)
		for j := range n {
			at := uint64(j) * region
			v := &verify{t: t, c: c, off: uint64(i*n+j) * region, rounds: rounds, done: &done}
			// Short and in the capsule, long and by R2Ts, longer than one command.
			v.size = []uint64{4096, 8192, 64 << 10, 128 << 10, region}[j%5]
			v.data, v.segs = mem.Bytes(at, v.size), mem.Segments(at, v.size)
			v.want = make([]byte, v.size)
			done.Add(1)
			c.On(v.write)
		}
	}
	return done.Wait
}

// fill makes p what is in the region in this round.
func (v *verify) fill(p []byte) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v.round<<40|v.off+uint64(i))
	}
}

func (v *verify) write() {
	if v.round++; v.round > v.rounds {
		v.done.Done()
		return
	}
	v.fill(v.data)
	v.submit(volume.Write)
}

func (v *verify) submit(op volume.Op) {
	v.req = volume.Request{Op: op, Offset: v.off, Length: v.size, Segments: v.segs, Owner: v}
	v.running = true
	v.c.Queue.Submit(&v.req)
}

// Completed implements volume.Owner.
func (v *verify) Completed(r *volume.Request) {
	if !v.running {
		v.t.Errorf("a request at %d has ended twice", v.off)
		return
	}
	v.running = false
	if r.Status != nvme.StatusSuccess {
		v.t.Errorf("round %d at %d: %s: %v", v.round, v.off, r.Op, r.Status)
		v.done.Done()
		return
	}
	if r.Op == volume.Write {
		clear(v.data)
		v.submit(volume.Read)
		return
	}
	if v.fill(v.want); !bytes.Equal(v.data, v.want) {
		v.t.Errorf("round %d at %d: what is read is not what was written", v.round, v.off)
		v.done.Done()
		return
	}
	if v.looked = !v.looked; v.looked {
		clear(v.data)
		v.submit(volume.Read)
		return
	}
	v.write()
}
