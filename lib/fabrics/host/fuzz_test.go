// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// fuzzPatience is how long an input may take before it counts as a hang.
const fuzzPatience = 30 * time.Second

// mark is what is in memory around that of a command, and in what nothing has
// come to.
const mark = 0xa5

// marked returns memory for n bytes in the middle of more, and checks later that
// nothing has been stored there but in the n bytes.
func marked(t *testing.T, n int) (data []byte, check func()) {
	all := bytes.Repeat([]byte{mark}, n+256)
	return all[128:][:n:n], func() {
		for _, around := range [][]byte{all[:128], all[128+n:]} {
			if bytes.Count(around, []byte{mark}) != len(around) {
				t.Error("memory beside that of the command was changed")
			}
		}
	}
}

// framings are what is agreed on with the digests of the low bits of options.
func framings(options uint8) (in, out fabrics.Framing) {
	header, data := options&fabrics.DGSTHeader != 0, options&fabrics.DGSTData != 0
	in = fabrics.Framing{From: fabrics.FromController, Align: 4, MaxData: maxData, HeaderDigest: header, DataDigest: data}
	out = fabrics.Framing{From: fabrics.FromHost, Align: fabrics.Align(options >> 2 & fabrics.MaxPDA), MaxCapsule: 8 << 10, MaxData: 4096, HeaderDigest: header, DataDigest: data}
	return in, out
}

// pdu encodes a PDU of a controller, for seeds.
func pdu(t fabrics.PDUType, flags uint8, h, data []byte) []byte {
	_, out := framings(0)
	out.From = fabrics.FromController
	var common fabrics.CommonHeader
	f := out.Make(&common, t, flags, uint32(len(data)))
	copy(h, fabrics.Bytes(&common))
	b := make([]byte, f.Length)
	copy(b, h)
	copy(b[f.DataOffset:], data)
	return b
}

func seedResponse(cid uint16, st nvme.Status, dw0 uint32) []byte {
	r := fabrics.CapsuleResp{CQE: nvme.CQE{CID: cid, DW0: dw0}}
	r.CQE.SetStatus(st, false)
	return pdu(fabrics.TypeCapsuleResp, 0, fabrics.Bytes(&r), nil)
}

func seedData(cid uint16, off, n uint32, flags uint8) []byte {
	d := fabrics.Data{CCCID: cid, DATAO: off, DATAL: n}
	return pdu(fabrics.TypeC2HData, flags, fabrics.Bytes(&d), make([]byte, n))
}

func seedR2T(cid uint16, off, n uint32) []byte {
	r := fabrics.R2T{CCCID: cid, TTAG: 7, R2TO: off, R2TL: n}
	return pdu(fabrics.TypeR2T, 0, fabrics.Bytes(&r), nil)
}

func seedTermReq() []byte {
	r := fabrics.MakeTermReq(fabrics.TypeC2HTermReq, fabrics.Violation{FES: fabrics.FESSequence}, 0)
	return bytes.Clone(fabrics.Bytes(&r))
}

// FuzzAdmin: whatever a controller sends to an admin queue, every command ends
// once, nothing is stored but in its memory, and the queue's goroutine ends.
func FuzzAdmin(f *testing.F) {
	const last, success = fabrics.FlagLast, fabrics.FlagLast | fabrics.FlagSuccess
	f.Add(uint8(0), bytes.Join([][]byte{seedResponse(1, 0, 0x40002), seedData(2, 0, 1024, last), seedResponse(2, 0, 0), seedData(3, 0, 4096, success)}, nil))
	f.Add(uint8(0), bytes.Join([][]byte{seedData(3, 0, 2048, 0), seedData(2, 0, 1024, success), seedData(3, 2048, 2048, last), seedResponse(3, nvme.StatusInvalidField, 0)}, nil))
	f.Add(uint8(0), seedR2T(1, 0, 8))
	f.Add(uint8(3), seedTermReq())
	f.Fuzz(func(t *testing.T, options uint8, stream []byte) {
		before := runtime.NumGoroutine()
		near, far := net.Pipe()
		x := &exchange{pdus: pdus{conn: near, maxH2C: 4096}}
		x.in, x.out = framings(options)
		x.start()
		discarded := make(chan struct{})
		go func() {
			defer close(discarded)
			_, _ = io.Copy(io.Discard, far)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
		defer cancel()
		ends := make(chan error, 3)
		var checks []func()
		for i, n := range []int{0, 1024, 4096} {
			data, check := marked(t, n)
			checks = append(checks, check)
			var out []byte
			if n == 0 {
				data, out = nil, make([]byte, 512)
			}
			// One after the other, so that their CIDs are known.
			e := nvme.SQE{Opcode: uint8(nvme.AdminIdentify)}
			c, err := x.begin(&e, data)
			if err != nil || int(c.cid) != i+1 {
				t.Fatalf("command %d: %v", i, err)
			}
			go func() {
				if err := x.transmit(ctx, fuzzPatience, e, out); err != nil {
					x.fail(err)
				}
				<-c.done
				if c.err == nil && c.cqe.StatusField().Code() == nvme.StatusSuccess && c.got != len(c.in) {
					c.err = io.ErrShortBuffer
				}
				ends <- c.err
			}()
		}
		_, _ = far.Write(stream)
		far.Close()
		for range cap(ends) {
			select {
			case err := <-ends:
				if err == io.ErrShortBuffer {
					t.Error("a command has succeeded without its data")
				}
			case <-ctx.Done():
				t.Fatal("a command has not ended")
			}
		}
		x.stop()
		<-discarded
		for _, check := range checks {
			check()
		}
		if len(x.calls) != 0 {
			t.Errorf("%d commands are left", len(x.calls))
		}
		for end := time.Now().Add(fuzzPatience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatal("a goroutine is left")
			}
		}
	})
}

// FuzzQueue: whatever a controller sends to an I/O queue, every command ends
// once, nothing is stored but in the memory of reads, nothing is sent that is not
// in that of writes, and what succeeds has moved all its data.
func FuzzQueue(f *testing.F) {
	const entries, last, success = 5, fabrics.FlagLast, fabrics.FlagLast | fabrics.FlagSuccess
	// The slots are given out from the highest one down.
	const read, write, short, flush = 3, 2, 1, 0
	f.Add(uint8(0), bytes.Join([][]byte{seedData(read, 0, 4096, 0), seedData(read, 4096, 4096, success), seedResponse(flush, 0, 0), seedResponse(short, 0, 0)}, nil))
	f.Add(uint8(0), bytes.Join([][]byte{seedR2T(write, 4096, 4096), seedR2T(write, 0, 100), seedR2T(write, 100, 3996), seedData(read, 0, 8192, last)}, nil))
	f.Add(uint8(4), bytes.Join([][]byte{seedR2T(write, 0, 8192), seedResponse(write, nvme.StatusInternalError, 0), seedResponse(read, nvme.StatusDNR|nvme.StatusInvalidField, 0)}, nil))
	f.Add(uint8(0), seedTermReq())
	f.Add(uint8(0), seedResponse(read|1<<cidBits, 0, 0))
	p, err := poller.Start(poller.Config{Name: "fuzz", CPU: -1, Fence: -1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Stop)
	on := func(work func()) {
		if err := p.Do(work); err != nil {
			panic(err)
		}
	}
	var set *tcp.Set
	on(func() { set, err = tcp.NewSet(p) })
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { on(set.Close) })

	f.Fuzz(func(t *testing.T, options uint8, stream []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fds[1]), "controller")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sent := make(chan []byte, 1)
		go func() {
			all, _ := io.ReadAll(conn)
			sent <- all
		}()
		s := &Socket{QID: 1, fd: fds[0], maxH2C: 4096, entries: entries, inCapsule: 512}
		defer s.Close()
		s.in, s.out = framings(options)
		closed := make(chan error, 1)
		var q *Queue
		on(func() { q, err = NewQueue(set, s, func(err error) { closed <- err }) })
		if err != nil {
			t.Fatal(err)
		}
		o := &owner{done: make(chan *Command, 2*entries)}
		var checks []func()
		commands := []*Command{
			{SQE: nvme.SQE{Opcode: uint8(nvme.IORead)}, Data: make([]byte, testSize)},
			{SQE: nvme.SQE{Opcode: uint8(nvme.IOWrite)}, Data: make([]byte, testSize)},
			{SQE: nvme.SQE{Opcode: uint8(nvme.IOWrite)}, Data: make([]byte, 512)},
			{SQE: nvme.SQE{Opcode: uint8(nvme.IOFlush)}},
		}
		on(func() {
			for _, c := range commands {
				data, check := marked(t, len(c.Data))
				checks = append(checks, check)
				if c.Data, c.Owner = data, o; c.SQE.Opcode == uint8(nvme.IOWrite) {
					for i := range data {
						data[i] = byte(i)
					}
				}
				if !q.Start(c) {
					t.Error("a command was not started")
				}
			}
		})
		_ = conn.SetWriteDeadline(time.Now().Add(fuzzPatience))
		_, _ = conn.Write(stream)
		_ = conn.(*net.UnixConn).CloseWrite()
		select {
		case <-closed:
		case <-time.After(fuzzPatience):
			t.Fatal("the queue has not ended")
		}
		on(func() {}) // what is told twice is told by then
		if len(o.done) != len(commands) || q.Room() != entries-1 {
			t.Errorf("%d ends of %d commands, and room for %d", len(o.done), len(commands), q.Room())
		}
		for _, c := range commands {
			if !c.Lost && c.Status == nvme.StatusSuccess && !c.moves() {
				t.Errorf("a command has succeeded without its data: %+v", c.SQE)
			}
			if c.SQE.Opcode == uint8(nvme.IOWrite) {
				for i, b := range c.Data {
					if b != byte(i) {
						t.Fatal("the data of a write was changed")
					}
				}
			}
		}
		for _, check := range checks {
			check()
		}
		conn.Close()
		checkSent(t, <-sent, options)
	})
}

// checkSent checks that what a queue has sent is PDUs, and H2CData that of the
// long write.
func checkSent(t *testing.T, all []byte, options uint8) {
	_, in := framings(options)
	for len(all) >= fabrics.CommonHeaderSize {
		var h fabrics.CommonHeader
		copy(fabrics.Bytes(&h), all)
		f, v := in.Check(&h)
		if v.Bad() {
			t.Fatalf("the queue has sent %v: %v", h.Type, v)
		}
		if int(f.Length) > len(all) {
			return // the connection has ended within it
		}
		if h.Type == fabrics.TypeH2CData {
			var d fabrics.Data
			copy(fabrics.Bytes(&d), all)
			for i, b := range all[f.DataOffset:][:f.DataLength] {
				if b != byte(int(d.DATAO)+i) {
					t.Fatalf("H2CData at %d has other data", d.DATAO)
				}
			}
		}
		all = all[f.Length:]
	}
}

// FuzzTransfer: of whatever R2Ts, those that are taken ask for each byte once,
// and are answered in full.
func FuzzTransfer(f *testing.F) {
	f.Add([]byte{0, 4, 1, 4, 2, 4, 8, 8})
	f.Add([]byte{9, 1, 7, 1, 8, 1, 0, 200})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const size, chunk = 64, 5
		var x transfer
		var asked, sent [size]int
		x.reset(0)
		answer := func() {
			s, _, _ := x.next(chunk)
			if s.from >= s.to || s.to-s.from > chunk || s.to > size {
				t.Fatalf("sending %+v", s)
			}
			for i := s.from; i < s.to; i++ {
				sent[i]++
			}
		}
		for len(ops) >= 2 {
			from, n := uint32(ops[0]), uint32(ops[1])
			ops = ops[2:]
			if from >= 128 {
				if x.count > 0 {
					answer()
				}
				continue
			}
			if x.take(&fabrics.R2T{R2TO: from, R2TL: n}, size).Bad() {
				continue
			}
			for i := from; i < from+n; i++ {
				asked[i]++
			}
		}
		for x.count > 0 {
			answer()
		}
		all := true
		for i := range asked {
			if asked[i] > 1 || asked[i] != sent[i] {
				t.Fatalf("byte %d was asked for %d times, and sent %d times", i, asked[i], sent[i])
			}
			all = all && asked[i] == 1
		}
		if x.done(size) != all {
			t.Errorf("done: %v, all bytes were asked for: %v", x.done(size), all)
		}
	})
}

// FuzzDiscoveryLog: whatever is in a discovery log, and however it changes, it is
// read or an error, and its records can be looked at.
func FuzzDiscoveryLog(f *testing.F) {
	page := make([]byte, 3<<10)
	page[8] = 2
	var e fabrics.DiscoveryEntry
	e.Set("nqn.2026-01.org.example:one", "192.0.2.1", "4420")
	copy(page[1024:], fabrics.Bytes(&e))
	f.Add(uint8(0), page)
	f.Add(uint8(3), page[:1040])
	f.Add(uint8(255), bytes.Repeat([]byte{0xff}, 1024))
	f.Fuzz(func(t *testing.T, changes uint8, page []byte) {
		near, far := net.Pipe()
		a := &Admin{exchange: exchange{pdus: pdus{conn: near, maxH2C: 4096}}, timeout: fuzzPatience}
		a.in, a.out = framings(0)
		a.start()
		served := make(chan struct{})
		go func() {
			defer close(served)
			for {
				var c fabrics.CapsuleCmd
				if _, err := io.ReadFull(far, fabrics.Bytes(&c)); err != nil {
					return
				}
				log := c.SQE.GetLogPage()
				data := make([]byte, log.Bytes())
				if log.LPO < uint64(len(page)) {
					copy(data, page[log.LPO:])
				}
				if log.LPO == 0 && changes > 0 {
					changes--
					data[0] += changes // of the generation counter
				}
				d := fabrics.Data{CCCID: c.SQE.CID, DATAL: uint32(len(data))}
				if _, err := far.Write(pdu(fabrics.TypeC2HData, fabrics.FlagLast|fabrics.FlagSuccess, fabrics.Bytes(&d), data)); err != nil {
					return
				}
			}
		}()
		_, entries, err := a.DiscoveryLog(t.Context())
		if err == nil && len(entries) > maxEntries {
			t.Errorf("%d records", len(entries))
		}
		for i := range entries {
			e := &entries[i]
			_, _, _, _, _ = e.Subsystem(), e.Address(), e.Service(), e.SUBTYPE.String(), e.TRTYPE.String()
		}
		a.Close()
		far.Close()
		<-served
	})
}
