// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// proxy is a network between a host and a target that can be bad.
type proxy struct {
	addr netip.AddrPort // where it listens
	to   netip.AddrPort

	corrupt atomic.Int64 // how many bytes are still to be falsified
	flipped atomic.Int64 // how many have been

	l     net.Listener
	over  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]*pair
}

// pair is a connection through the proxy.
type pair struct {
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
		p.mu.Unlock()
		p.wg.Go(func() { p.pass(x, host, target) })
		p.wg.Go(func() { p.pass(x, target, host) })
	}
}

// pass carries bytes one way.
func (p *proxy) pass(x *pair, from, to net.Conn) {
	defer p.end(x)
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 32<<10)
	passed, next := 0, 4096+rnd.IntN(64<<10) // the handshakes have no digests
	for {
		n, err := from.Read(b)
		select {
		case <-x.hold:
			if err != nil {
				<-p.over // the other end is not told
				return
			}
			continue
		default:
		}
		if passed += n; passed > next && n > 0 && p.corrupt.Load() > 0 && p.corrupt.Add(-1) >= 0 {
			b[rnd.IntN(n)] ^= 1 << rnd.IntN(8)
			p.flipped.Add(1)
			next = passed + 64<<10 + rnd.IntN(256<<10)
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
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

// verify writes and reads a region again and again, and compares every byte.
type verify struct {
	t       testing.TB
	c       *volumetest.Client
	req     volume.Request
	off     uint64
	data    []byte
	segs    []dma.Segment
	size    uint64
	round   uint64
	rounds  uint64
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
			done.Add(1)
			c.On(v.write)
		}
	}
	return done.Wait
}

// pattern is what is in the region in a round.
func (v *verify) pattern(i int) byte {
	return byte(uint64(i)>>9*31 + v.round*7 + v.off>>12 + uint64(i))
}

func (v *verify) write() {
	if v.round++; v.round > v.rounds {
		v.done.Done()
		return
	}
	for i := range v.data {
		v.data[i] = v.pattern(i)
	}
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
	for i, b := range v.data {
		if b != v.pattern(i) {
			v.t.Errorf("round %d at %d: byte %d is %#x, want %#x", v.round, v.off, i, b, v.pattern(i))
			v.done.Done()
			return
		}
	}
	v.write()
}
