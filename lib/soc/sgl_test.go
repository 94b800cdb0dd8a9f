// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// sglCommand is a command of n bytes at block 0 whose data an SGL describes.
func sglCommand(op nvme.IOOpcode, n int, first nvme.SGLDescriptor) nvme.SQE {
	e := nvme.SQE{Opcode: uint8(op), NSID: 1}
	nvme.RW{NLB: uint16(n/512 - 1)}.Put(&e)
	e.SetPSDT(nvme.PSDTSGL)
	e.SetSGL1(first)
	return e
}

// descriptor makes an SGL descriptor with an address.
func descriptor(t nvme.SGLType, at uint64, n int) nvme.SGLDescriptor {
	return nvme.MakeSGL(t, nvme.SGLAddress, at, uint32(n))
}

// TestHostileSGLs: descriptors that are wrong, lead nowhere or in a circle cost
// the command, with the status that says so.
func TestHostileSGLs(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) { testHostileSGLs(t, kind) })
	}
}

func testHostileSGLs(t *testing.T, kind string) {
	_, n := newDrive(t, kind, small)
	q, err := n.CreatePair(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Identify(nvme.CNSController, 0)
	if err != nil {
		t.Fatal(err)
	}
	var id nvme.IdentifyController
	copy(nvme.Bytes(&id), p)
	if want := nvme.SGLSNoAlignment | nvme.SGLSBitBucket | nvme.SGLSLongerThanData; id.SGLS != want {
		t.Errorf("SGLS: got %#x, want %#x", id.SGLS, want)
	}
	at, raw, err := n.Client().Memory().Alloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	const away = 1 << 45
	data := descriptor(nvme.SGLDataBlock, at, 4096)
	tests := []struct {
		name  string
		list  []nvme.SGLDescriptor // at address at
		first nvme.SGLDescriptor
		want  nvme.Status
	}{
		{"data out of the map", nil, descriptor(nvme.SGLDataBlock, away, 4096), nvme.StatusDataTransferError},
		{"data around the end of the address space", nil, descriptor(nvme.SGLDataBlock, 1<<64-100, 4096), nvme.StatusDataTransferError},
		{"data at the last address", nil, descriptor(nvme.SGLDataBlock, 1<<64-1, 4096), nvme.StatusDataTransferError},
		{"data that is firmware and the doorbells", []nvme.SGLDescriptor{descriptor(nvme.SGLDataBlock, 0xfffc0000, 2048), descriptor(nvme.SGLDataBlock, 0xc000001000, 2048)}, descriptor(nvme.SGLLastSegment, at, 32), nvme.StatusDataTransferError},
		{"short data", nil, descriptor(nvme.SGLDataBlock, at, 4095), nvme.StatusInvalidDataSGLLength},
		{"no data", nil, nvme.SGLDescriptor{}, nvme.StatusInvalidDataSGLLength},
		{"segment out of the map", nil, descriptor(nvme.SGLLastSegment, away, 32), nvme.StatusDataTransferError},
		{"segment of nothing", nil, descriptor(nvme.SGLSegment, at, 0), nvme.StatusInvalidSGLSegmentDescriptor},
		{"segment of half a descriptor", nil, descriptor(nvme.SGLSegment, at, 40), nvme.StatusInvalidSGLSegmentDescriptor},
		{"last segment that leads on", []nvme.SGLDescriptor{descriptor(nvme.SGLSegment, at, 32), data}, descriptor(nvme.SGLLastSegment, at, 32), nvme.StatusInvalidSGLSegmentDescriptor},
		{"segment that goes on after its end", []nvme.SGLDescriptor{descriptor(nvme.SGLSegment, at, 32), data}, descriptor(nvme.SGLSegment, at, 32), nvme.StatusInvalidNumberOfSGLDescriptors},
		{"a circle", []nvme.SGLDescriptor{descriptor(nvme.SGLSegment, at, 16)}, descriptor(nvme.SGLSegment, at, 16), nvme.StatusInvalidNumberOfSGLDescriptors},
		{"a circle with little data", []nvme.SGLDescriptor{descriptor(nvme.SGLDataBlock, at, 1), descriptor(nvme.SGLSegment, at, 32)}, descriptor(nvme.SGLSegment, at, 32), nvme.StatusInvalidNumberOfSGLDescriptors},
		{"keys", nil, nvme.MakeSGL(nvme.SGLKeyedDataBlock, nvme.SGLAddress, at, 4096), nvme.StatusInvalidSGLDescriptorType},
		{"data in a capsule", nil, nvme.MakeSGL(nvme.SGLDataBlock, nvme.SGLOffset, 0, 4096), nvme.StatusInvalidSGLDescriptorType},
		{"data of a transport", nil, nvme.MakeSGL(nvme.SGLTransportDataBlock, nvme.SGLTransport, 0, 4096), nvme.StatusInvalidSGLDescriptorType},
		{"a vendor's type", nil, nvme.MakeSGL(nvme.SGLVendorSpecific, nvme.SGLAddress, at, 4096), nvme.StatusInvalidSGLDescriptorType},
		{"a list that is its own data", []nvme.SGLDescriptor{data}, descriptor(nvme.SGLLastSegment, at, 16), nvme.StatusSuccess},
		{"more than is needed", nil, descriptor(nvme.SGLDataBlock, at, 1<<30), nvme.StatusSuccess},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			copy(raw, nvme.SliceBytes(tt.list))
			st := statusOf(q.Do(sglCommand(nvme.IOWrite, 4096, tt.first)))
			if st.Code() != tt.want || st.DNR() != (tt.want != nvme.StatusSuccess && tt.want != nvme.StatusDataTransferError) {
				t.Errorf("status %v, want %v", st, tt.want)
			}
		})
	}
	// The other ways to say where data is.
	reserved := sglCommand(nvme.IOWrite, 4096, data)
	for _, psdt := range []nvme.PSDT{nvme.PSDTSGLMPTRSGL, 3} {
		reserved.SetPSDT(psdt)
		if st := statusOf(q.Do(reserved)); st.Code() != nvme.StatusInvalidField || !st.DNR() {
			t.Errorf("PSDT %d: %v", psdt, st)
		}
	}
	identify := nvme.SQE{Opcode: uint8(nvme.AdminIdentify), NSID: 1}
	identify.SetPSDT(nvme.PSDTSGL)
	identify.SetSGL1(data)
	if st := statusOf(n.AdminCommand(identify)); st.Code() != nvme.StatusInvalidField || !st.DNR() {
		t.Errorf("Identify with an SGL: %v", st)
	}
	// A read into the list that describes it ends, whatever it stores.
	copy(raw, nvme.SliceBytes([]nvme.SGLDescriptor{data}))
	if st := statusOf(q.Do(sglCommand(nvme.IORead, 4096, descriptor(nvme.SGLLastSegment, at, 16)))); st != nvme.StatusSuccess {
		t.Errorf("read over its own list: %v", st)
	}
	exercise(t, second(t, n), vfiousertest.Polled)
}

// TestBitBuckets: what a bit bucket takes of a read is nowhere, and a write has
// all its data from the other descriptors. Shared memory and not.
func TestBitBuckets(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		for name, opts := range map[string]vfiousertest.MemoryOptions{"shared": small, "private": {Low: small.Low, Private: true}} {
			t.Run(kind+","+name, func(t *testing.T) {
				_, n := newDrive(t, kind, opts)
				q, err := n.CreatePair(1, 64, vfiousertest.Polled)
				if err != nil {
					t.Fatal(err)
				}
				want := pattern(64<<10, 5)
				if err := q.Write(1, 0, want, 512); err != nil {
					t.Fatal(err)
				}
				mem := n.Client().Memory()
				at, raw, err := mem.Alloc(64 << 10)
				if err != nil {
					t.Fatal(err)
				}
				segment, list, err := mem.Alloc(4096)
				if err != nil {
					t.Fatal(err)
				}
				descriptors := []nvme.SGLDescriptor{
					descriptor(nvme.SGLBitBucket, 0, 1000), descriptor(nvme.SGLDataBlock, at+5, 24), descriptor(nvme.SGLBitBucket, 0, 40<<10),
					descriptor(nvme.SGLDataBlock, at+100, 512), descriptor(nvme.SGLBitBucket, 0, 64<<10),
				}
				copy(list, nvme.SliceBytes(descriptors))
				for i := range raw {
					raw[i] = 0xee
				}
				read := sglCommand(nvme.IORead, len(want), descriptor(nvme.SGLLastSegment, segment, len(descriptors)*nvme.SGLDescriptorSize))
				if st := statusOf(q.Do(read)); st != nvme.StatusSuccess {
					t.Fatal("read:", st)
				}
				memory := bytes.Repeat([]byte{0xee}, len(raw))
				copy(memory[5:], want[1000:1024])
				copy(memory[100:], want[1024+40<<10:][:512])
				if !bytes.Equal(raw, memory) {
					t.Error("a read with bit buckets stored something else than its data blocks")
				}
				if st := statusOf(q.Do(sglCommand(nvme.IORead, len(want), descriptor(nvme.SGLBitBucket, 0, len(want))))); st != nvme.StatusSuccess {
					t.Error("read of which nothing is kept:", st)
				}

				// The same list has 536 bytes for a write, which is too little for two
				// blocks and more than enough for one.
				for i := range raw {
					raw[i] = byte(i)
				}
				write := sglCommand(nvme.IOWrite, 1024, read.SGL1())
				if st := statusOf(q.Do(write)); st.Code() != nvme.StatusInvalidDataSGLLength {
					t.Errorf("write of two blocks: %v", st)
				}
				write = sglCommand(nvme.IOWrite, 512, read.SGL1())
				if st := statusOf(q.Do(write)); st != nvme.StatusSuccess {
					t.Error("write of one block:", st)
				}
				copy(want, append(bytes.Clone(raw[5:29]), raw[100:588]...))
				got := make([]byte, len(want))
				if err := q.Read(1, 0, got, 512); err != nil || !bytes.Equal(got, want) {
					t.Errorf("after the write: %v, equal %t", err, bytes.Equal(got, want))
				}
			})
		}
	}
}
