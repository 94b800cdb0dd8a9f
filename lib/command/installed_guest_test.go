// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// installedGuest is a machine that uses the drive of a port.
type installedGuest struct {
	*machine
	t     testing.TB
	drive *vfiousertest.NVMe
}

// guest boots a machine. Its interrupts are MSI-X; how says more.
func (r *installed) guest(port string, options vfiousertest.MemoryOptions, shadow bool) *installedGuest {
	r.t.Helper()
	options.Low = 16 << 20
	memory, err := vfiousertest.NewMemory(options)
	if err != nil {
		r.t.Fatal(err)
	}
	g := &installedGuest{machine: &machine{memory: memory}, t: r.t}
	r.t.Cleanup(g.close)
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("port %s: %v", port, err)
		}
	}
	g.client, err = vfiousertest.Dial(filepath.Join(r.dir, "run", "port", port, "cntrl"), memory, vfiousertest.Options{})
	must(err)
	g.drive, err = vfiousertest.NewNVMe(g.client)
	must(err)
	must(g.drive.UseMSIX())
	must(g.drive.Enable(16))
	if shadow {
		must(g.drive.EnableShadowDoorbells())
	}
	g.pair, err = g.drive.CreatePair(1, 16, 1)
	must(err)
	return g
}

// do makes one I/O command with data.
func (g *installedGuest) do(e nvme.SQE, data []byte) error {
	if data != nil {
		buffer, err := g.memory.NewBuffer(len(data), vfiousertest.Shape{})
		if err != nil {
			return err
		}
		defer buffer.Free()
		buffer.Write(data)
		buffer.Set(&e)
	}
	_, err := g.pair.Do(e)
	return err
}

// use makes every kind of I/O command on a namespace, and sees what it does.
func (g *installedGuest) use(nsid uint32, keeps bool) {
	g.t.Helper()
	const block, n = 512, 8192
	data, got := bytes.Repeat([]byte("leapio: "), n/8), make([]byte, n)
	command := func(op nvme.IOOpcode, rw nvme.RW) nvme.SQE {
		e := nvme.SQE{Opcode: uint8(op), NSID: nsid}
		rw.NLB = n/block - 1
		rw.Put(&e)
		return e
	}
	must := func(what string, err error) {
		g.t.Helper()
		if err != nil {
			g.t.Fatalf("namespace %d: %s: %v", nsid, what, err)
		}
	}
	must("write", g.pair.Write(nsid, 0, data, block))
	must("write with FUA", g.do(command(nvme.IOWrite, nvme.RW{SLBA: 64, FUA: true}), data))
	must("flush", g.pair.Flush(nsid))
	must("read", g.pair.Read(nsid, 0, got, block))
	if keeps && !bytes.Equal(got, data) {
		g.t.Fatalf("namespace %d: reads %.8q", nsid, got)
	}
	if !keeps {
		return
	}
	must("compare", g.do(command(nvme.IOCompare, nvme.RW{SLBA: 64}), data))
	must("verify", g.do(command(nvme.IOVerify, nvme.RW{}), nil))
	must("write zeroes", g.do(command(nvme.IOWriteZeroes, nvme.RW{DEAC: true}), nil))
	must("write zeroes, not deallocated", g.do(command(nvme.IOWriteZeroes, nvme.RW{SLBA: 128}), nil))
	must("read", g.pair.Read(nsid, 0, got, block))
	if !bytes.Equal(got, make([]byte, n)) {
		g.t.Fatalf("namespace %d: after write zeroes it reads %.8q", nsid, got)
	}
	trim := nvme.SQE{Opcode: uint8(nvme.IODatasetManagement), NSID: nsid}
	nvme.DatasetManagement{AD: true}.Put(&trim)
	must("deallocate", g.do(trim, nvme.SliceBytes([]nvme.DSMRange{{SLBA: 64, NLB: n / block}})))
}
