// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// FuzzRegions makes accesses of b: 11 bytes each say what, where, how much and
// which data. What is constant stays so, whatever comes.
func FuzzRegions(f *testing.F) {
	step := func(kind, n byte, off uint16, data uint64) []byte {
		b := binary.LittleEndian.AppendUint16([]byte{kind, n}, off)
		return binary.LittleEndian.AppendUint64(b, data)
	}
	f.Add([]byte{})
	f.Add(bytes.Join([][]byte{
		step(1, 4, nvme.RegAQA, 0x1f001f), step(1, 8, nvme.RegASQ, 0x1000), step(1, 4, nvme.RegCC, 1), step(0, 4, nvme.RegCSTS, 0),
		step(1, 4, 0x1000, 3), step(1, 4, nvme.RegCC, 0), step(3, 2, cfgDeviceControl, 0x8000), step(3, 4, cfgBAR0, 0xffffffff), step(2, 8, 0, 0),
	}, nil))
	b := startBroker(f, testPaths(f), limits{})
	p := addPort(f, b, api.PortSpec{Name: "vm1"})
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := newClient(p, unconnected(t))
		if err != nil {
			t.Fatal(err)
		}
		defer b.files.close(c.socketFD)
		defer c.conn.Close()
		c.negotiated = true
		for ; len(in) >= 12; in = in[12:] {
			off, n := uint64(binary.LittleEndian.Uint16(in[2:])), in[1]%9
			m := vfiouser.RegionAccess{Offset: off, Count: uint32(n)}
			if in[0]&2 != 0 {
				m.Region = vfiouser.RegionConfig
			}
			payload := make([]byte, vfiouser.RegionAccessSize, 32)
			m.Put(payload)
			if in[0]&1 != 0 {
				c.regionWrite(append(payload, in[4:4+min(n, 8)]...))
			} else {
				c.regionRead(payload)
			}
		}
		if got := readRegister(t, p, nvme.RegCAP, 8); got != uint64(constCAP) {
			t.Errorf("CAP is %#x", got)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.acknowledged() {
			t.Error("a reset without a runtime is not acknowledged")
		}
		for i := range p.config {
			if (p.config[i]^configImage[i])&^configMask[i] != 0 {
				t.Errorf("configuration byte %#x is %#x", i, p.config[i])
			}
		}
	})
}

// unconnected returns a socket whose other end is closed.
func unconnected(t testing.TB) *net.UnixConn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// FuzzLink has a runtime send messages made of b; leap-wpt lives, and serves
// the next one.
func FuzzLink(f *testing.F) {
	message := func(m qpair.Message, data string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(m.Kind))
		b = binary.LittleEndian.AppendUint32(b, m.Port)
		b = binary.LittleEndian.AppendUint64(b, m.ID)
		b = binary.LittleEndian.AppendUint64(b, m.Addr)
		b = binary.LittleEndian.AppendUint64(b, m.Size)
		return append(append(b, m.Name[:8]...), data...)
	}
	f.Add(message(qpair.Message{Kind: qpair.MsgStatus, Port: 1}, ""), uint8(0))
	f.Add(message(qpair.Message{Kind: qpair.MsgRelayWrite, Port: 1, Addr: 0x1000, Size: 4}, "data"), uint8(0))
	f.Add(message(qpair.Message{Kind: qpair.MsgKeep, Name: [64]byte{'x'}}, ""), uint8(1))
	f.Add(message(qpair.Message{Kind: qpair.MsgFetch, Name: [64]byte{'x'}}, ""), uint8(0))
	f.Add(message(qpair.Message{Kind: qpair.MsgUnmapped, Port: 1, ID: ^uint64(0)}, ""), uint8(2))
	b := startBroker(f, testPaths(f), limits{})
	p := addPort(f, b, api.PortSpec{Name: "vm1", Subsystem: "s1"})
	null, err := os.Open(filepath.Join(os.DevNull))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, in []byte, fds uint8) {
		link, welcome, fence := connect(t, b, api.DefaultRuntime)
		if welcome.Status != 0 {
			t.Fatalf("refused: %v", unix.Errno(welcome.Status))
		}
		for len(in) >= 40 {
			m := qpair.Message{
				Kind: qpair.MessageKind(binary.LittleEndian.Uint32(in)), Port: binary.LittleEndian.Uint32(in[4:]),
				ID: binary.LittleEndian.Uint64(in[8:]), Addr: binary.LittleEndian.Uint64(in[16:]), Size: binary.LittleEndian.Uint64(in[24:]),
			}
			copy(m.Name[:], in[32:40])
			var data []byte
			if in = in[40:]; m.Kind == qpair.MsgRelayWrite {
				data, in = in[:min(len(in), 64)], in[min(len(in), 64):]
			}
			pass := make([]int, fds%5)
			for i := range pass {
				pass[i] = int(null.Fd())
			}
			if link.Send(&m, data, pass...) != nil {
				break
			}
		}
		link.Close()
		qpair.CloseFDs(fence)
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Microsecond) {
			b.linkMu.Lock()
			gone := len(b.runtimes) == 0
			b.linkMu.Unlock()
			p.mu.Lock()
			gone = gone && p.holder == nil
			p.mu.Unlock()
			if gone {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the runtime is not gone")
			}
		}
	})
}
