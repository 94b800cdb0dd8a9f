// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// faultTime is how long a test of random faults lasts, LEAP_TEST_TIME such as
// 10m, and with it whether the others leave nothing out.
func faultTime(t testing.TB) (d time.Duration, long bool) {
	text := os.Getenv("LEAP_TEST_TIME")
	if text == "" {
		return time.Second, false
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("LEAP_TEST_TIME: %v", err)
	}
	return d, true
}

// network is a volume with both digests behind a bad network. Its target has
// one association at a time, so that resubmit=reconnect is right.
type network struct {
	t      *testing.T
	p      *proxy
	r      *remote
	c      *volumetest.Client
	mem    *volumetest.Memory
	rounds uint64
}

func newNetwork(t *testing.T, options ...string) *network {
	s := newLimitedServer(t, shape, target.Limits{InCapsule: 512})
	s.single.Store(true)
	n := &network{t: t, p: newProxy(t, s.addr), mem: volumetest.NewMemory(t, 1<<20)}
	n.r = open(t, spec(n.p.addr, append([]string{"hdr-digest", "on", "data-digest", "on", "resubmit", "reconnect", "reconnect-delay", "10ms"}, options...)...))
	n.r.stalled, n.r.unanswered = 500*time.Millisecond, 500*time.Millisecond
	n.c = volumetest.Connect(t, n.r, cfg)
	return n
}

// arm has every PDU from now on asked about.
func (n *network) arm(f func(passing) ([]byte, bool)) { n.p.spoil.Store(&f) }

// round writes size bytes, of which every block is another one in each round,
// reads them, and compares.
func (n *network) round(size uint64) {
	n.t.Helper()
	n.rounds++
	data := n.mem.Bytes(0, size)
	for i := range size / 8 {
		binary.LittleEndian.PutUint64(data[i*8:], n.rounds<<32|i)
	}
	want := bytes.Clone(data)
	for _, op := range []volume.Op{volume.Write, volume.Read} {
		req := volume.Request{Op: op, Offset: 4096, Length: size, Segments: n.mem.Segments(0, size)}
		if st := n.c.Do(n.t.Context(), &req); st != nvme.StatusSuccess {
			n.t.Fatalf("round %d: %v: %v", n.rounds, op, st)
		}
		if op == volume.Write {
			clear(data)
		}
	}
	if !bytes.Equal(data, want) {
		n.t.Fatalf("round %d: what was written is not what is read", n.rounds)
	}
}

// TestEveryByte: with digests, a bit that is falsified in any byte of a PDU of
// any type is noticed: the command is sent again, over the same connection or
// another one, and the data is right.
func TestEveryByte(t *testing.T) {
	n := newNetwork(t)
	n.round(512)
	_, long := faultTime(t)
	bits := 1 // of each byte
	if long {
		bits = 8
	}
	for _, tt := range []struct {
		name   string
		kind   fabrics.PDUType
		toHost bool
		data   bool // of PDUs with data
		size   uint64
	}{
		{"CapsuleCmd", fabrics.TypeCapsuleCmd, false, false, 512},
		{"CapsuleCmd with data", fabrics.TypeCapsuleCmd, false, true, 512},
		{"CapsuleResp", fabrics.TypeCapsuleResp, true, false, 512},
		{"C2HData", fabrics.TypeC2HData, true, true, 512},
		{"R2T", fabrics.TypeR2T, true, false, 1024},
		{"H2CData", fabrics.TypeH2CData, false, true, 1024},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			length, flips := 1, 0
			for at := 0; at < length*bits; at++ {
				if byte := at / bits; !long && byte > 100 && byte < length-8 {
					at += 6 // data, which is all the same
				}
				var mu sync.Mutex
				flipped, capsules := false, 0
				n.arm(func(x passing) ([]byte, bool) {
					mu.Lock()
					defer mu.Unlock()
					io := x.queue > 0
					if io && x.Type == fabrics.TypeCapsuleCmd && x.n > 1 { // after ICReq and Connect
						capsules++
					}
					// The longest of the type, as its header says, but for Connect.
					if io && !flipped && x.n > 1 && x.Type == tt.kind && x.toHost == tt.toHost && (x.PDO != 0) == tt.data {
						flipped = true
						length = len(x.pdu)
						x.pdu[at/bits] ^= 1 << (at % bits)
						if bits == 1 {
							x.pdu[at] ^= 1<<(at%8) ^ 1
						}
					}
					return x.pdu, false
				})
				n.round(tt.size)
				mu.Lock()
				if !flipped {
					t.Fatal("no such PDU has passed")
				}
				if flips++; capsules < 3 {
					t.Errorf("a bit of byte %d was falsified, and nobody has noticed", at/bits)
				}
				mu.Unlock()
			}
			t.Logf("%d bytes, %d bits falsified", length, flips)
		})
	}
}

// TestEveryCut: a connection is cut before, within and after each PDU of an
// association, in both directions, from ICReq on: nothing is lost.
func TestEveryCut(t *testing.T) {
	n := newNetwork(t)
	work := func() {
		n.round(512)
		n.round(1024)
	}
	// What there is to cut: the PDUs of an association as it goes well.
	type place struct {
		queue  int
		toHost bool
		n      int
	}
	var mu sync.Mutex
	lengths := make(map[place]int)
	record := true
	n.arm(func(x passing) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if record {
			lengths[place{x.queue, x.toHost, x.n}] = len(x.pdu)
		}
		return x.pdu, false
	})
	n.p.cut()
	work()
	mu.Lock()
	record = false
	mu.Unlock()

	_, long := faultTime(t)
	cuts, missed := 0, 0
	for at, length := range lengths {
		offsets := []int{0, 1, length / 2, length}
		if long {
			offsets = nil
			for i := range length + 1 {
				offsets = append(offsets, i)
			}
		}
		for _, offset := range offsets {
			done := false
			n.arm(func(x passing) ([]byte, bool) {
				mu.Lock()
				defer mu.Unlock()
				if done || at != (place{x.queue, x.toHost, x.n}) {
					return x.pdu, false
				}
				done = true
				return x.pdu[:min(offset, len(x.pdu))], true
			})
			n.p.cut()
			fabricstest.WaitFor(t, "an association", func() bool { return n.r.Err() == nil })
			work()
			mu.Lock()
			if cuts++; !done {
				missed++
			}
			mu.Unlock()
		}
	}
	t.Logf("%d PDUs, %d cuts", len(lengths), cuts-missed)
	if len(lengths) < 30 || missed*10 > cuts {
		t.Errorf("of %d cuts in %d PDUs %d have not been made: nothing was tested", cuts, len(lengths), missed)
	}
}

// TestUnprotected says what becomes of ICReq and ICResp, which have no digests:
// whatever byte of them is falsified, the data is right, and digests are used.
func TestUnprotected(t *testing.T) {
	n := newNetwork(t)
	_, long := faultTime(t)
	for _, toHost := range []bool{false, true} {
		for at := range fabrics.ICSize {
			for bit := range 8 {
				if !long && (at < fabrics.CommonHeaderSize && bit != at || at >= 16 && (bit > 0 || at%16 != 0)) {
					continue // reserved, or what any PDU has
				}
				done := false
				var mu sync.Mutex
				n.arm(func(x passing) ([]byte, bool) {
					mu.Lock()
					defer mu.Unlock()
					if x.conn == 1 && x.toHost == toHost && x.n == 0 && !done {
						done = true
						x.pdu[at] ^= 1 << bit
					}
					if x.n > 0 && x.Type != fabrics.TypeC2HTermReq && x.Type != fabrics.TypeH2CTermReq && x.Flags&fabrics.FlagHDGST == 0 {
						t.Errorf("bit %d of byte %d of the initialization was falsified: %v has no digest", bit, at, x.Type)
					}
					return x.pdu, false
				})
				n.p.cut()
				n.round(1024)
				mu.Lock()
				if !done {
					t.Error("nothing was falsified")
				}
				mu.Unlock()
			}
		}
	}
}

// TestBadNetwork: PDUs are late, cut short, falsified, left out or twice there,
// and connections end, at random, under verified load of several pollers over
// several connections each: every byte that is read is right, and every request
// ends once.
func TestBadNetwork(t *testing.T) {
	duration, _ := faultTime(t)
	seed := rand.Uint64()
	if text := os.Getenv("LEAP_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LEAP_TEST_SEED=%d", seed)
	n := newNetwork(t, "queues", "3")
	clients := []*volumetest.Client{n.c, volumetest.Connect(t, n.r, cfg)}
	var mu sync.Mutex
	rnd, faults := rand.New(rand.NewPCG(seed, 0)), make(map[string]int)
	n.arm(func(x passing) ([]byte, bool) {
		if x.n == 0 {
			return x.pdu, false
		}
		mu.Lock()
		k, at, bit := rnd.IntN(500), rnd.IntN(len(x.pdu)), rnd.IntN(8)
		what := ""
		switch {
		case k == 0:
			what = "cut"
		case k < 4:
			what = "falsified"
		case k == 4:
			what = "shortened"
		case k == 5:
			what = "left out"
		case k == 6:
			what = "twice"
		case k < 20:
			what = "late"
		}
		if what != "" {
			faults[what]++
		}
		mu.Unlock()
		switch what {
		case "cut":
			return x.pdu[:at], true
		case "falsified":
			x.pdu[at] ^= 1 << bit
		case "shortened":
			return append(x.pdu[:at:at], x.pdu[min(at+1+bit, len(x.pdu)):]...), false
		case "left out":
			return nil, false
		case "twice":
			return append(x.pdu[:len(x.pdu):len(x.pdu)], x.pdu...), false
		case "late":
			time.Sleep(time.Duration(at) * time.Microsecond)
		}
		return x.pdu, false
	})
	kinds := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(faults)
	}
	for end := time.Now().Add(duration); (time.Now().Before(end) || kinds() < 6) && !t.Failed(); {
		load(t, clients, 5, 3)()
	}
	t.Log(fmt.Sprint(faults))
}
