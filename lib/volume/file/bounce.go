// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
)

const (
	// bounceSize is the piece in bytes that a request with unaligned memory is
	// copied by.
	bounceSize = 256 << 10
	// bounceCount is how many such pieces a queue has under way; further
	// requests wait. Untouched buffers take no memory.
	bounceCount = 16
)

// buffers are a queue's page-aligned buffers.
type buffers struct {
	all    []byte
	free   [][]byte
	zeroes []byte // read-only; all of it is the kernel's one page of zeroes
}

func (b *buffers) init() error {
	var err error
	if b.all, err = dma.Reserve(bounceCount * bounceSize); err == nil {
		b.zeroes, err = unix.Mmap(-1, 0, bounceSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	}
	if err != nil {
		b.unmap()
		return fmt.Errorf("making buffers: %w", err)
	}
	for i := range bounceCount {
		b.free = append(b.free, b.all[i*bounceSize:(i+1)*bounceSize])
	}
	return nil
}

// take returns a buffer, or nil if all are in use.
func (b *buffers) take() []byte {
	n := len(b.free)
	if n == 0 {
		return nil
	}
	buf := b.free[n-1]
	b.free = b.free[:n-1]
	return buf
}

func (b *buffers) give(buf []byte) { b.free = append(b.free, buf) }

func (b *buffers) unmap() {
	for _, m := range [][]byte{b.all, b.zeroes} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	*b = buffers{}
}

// gather fills buf from segs, beginning skip bytes in.
func gather(buf []byte, segs []dma.Segment, skip uint64) {
	for _, s := range segs {
		if skip >= s.Len {
			skip -= s.Len
			continue
		}
		if buf = buf[copy(buf, s.Bytes()[skip:]):]; len(buf) == 0 {
			return
		}
		skip = 0
	}
}

// scatter copies buf to segs, beginning skip bytes in.
func scatter(segs []dma.Segment, skip uint64, buf []byte) {
	for _, s := range segs {
		if skip >= s.Len {
			skip -= s.Len
			continue
		}
		if buf = buf[copy(s.Bytes()[skip:], buf):]; len(buf) == 0 {
			return
		}
		skip = 0
	}
}
