// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"fmt"

	"github.com/leapio/leapio/lib/nvme"
)

// Read reads len(data) bytes, whole blocks, from a namespace.
func (p *Pair) Read(nsid uint32, slba uint64, data []byte, blockSize int) error {
	return p.ReadShaped(nsid, slba, data, blockSize, Shape{})
}

// ReadShaped is Read with a buffer of a certain shape.
func (p *Pair) ReadShaped(nsid uint32, slba uint64, data []byte, blockSize int, shape Shape) error {
	return p.transfer(nvme.IORead, nsid, slba, data, blockSize, shape)
}

// Write writes data, whole blocks, to a namespace.
func (p *Pair) Write(nsid uint32, slba uint64, data []byte, blockSize int) error {
	return p.WriteShaped(nsid, slba, data, blockSize, Shape{})
}

// WriteShaped is Write with a buffer of a certain shape.
func (p *Pair) WriteShaped(nsid uint32, slba uint64, data []byte, blockSize int, shape Shape) error {
	return p.transfer(nvme.IOWrite, nsid, slba, data, blockSize, shape)
}

func (p *Pair) transfer(op nvme.IOOpcode, nsid uint32, slba uint64, data []byte, blockSize int, shape Shape) error {
	blocks := len(data) / blockSize
	if len(data)%blockSize != 0 || blocks == 0 || blocks > 1<<16 {
		return fmt.Errorf("transfer of %d bytes in blocks of %d", len(data), blockSize)
	}
	b, err := p.CQ.drive.mem.NewBuffer(len(data), shape)
	if err != nil {
		return err
	}
	e := nvme.SQE{Opcode: uint8(op), NSID: nsid}
	nvme.RW{SLBA: slba, NLB: uint16(blocks - 1)}.Put(&e)
	b.Set(&e)
	if op == nvme.IOWrite {
		b.Write(data)
	}
	_, err = p.Do(e)
	if op == nvme.IORead && err == nil {
		b.Read(data)
	}
	if completed(err) {
		b.Free()
	}
	return err
}

// Flush flushes a namespace.
func (p *Pair) Flush(nsid uint32) error {
	_, err := p.Do(nvme.SQE{Opcode: uint8(nvme.IOFlush), NSID: nsid})
	return err
}
