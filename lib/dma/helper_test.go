// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package dma

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const rw = ProtRead | ProtWrite

// memfd makes a file of size bytes that the test closes.
func memfd(t testing.TB, name string, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return fd
}

// mappings counts the mappings of a memfd in this process.
func mappings(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "memfd:"+name+" ")
}

// inbox is a poller that runs what was posted when the test says so.
type inbox []func()

func (in *inbox) post(f func()) { *in = append(*in, f) }

func (in *inbox) run() {
	for len(*in) > 0 {
		f := (*in)[0]
		*in = (*in)[1:]
		f()
	}
}

// atOnce is a poller that runs what is posted within post.
func atOnce(f func()) { f() }

func mustMap(t testing.TB, s *Space, addr, size uint64, prot Prot, fd int, offset uint64) {
	t.Helper()
	if err := s.Map(1, addr, size, prot, fd, offset); err != nil {
		t.Fatal(err)
	}
}

// closed reports whether done is closed.
func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// relay is memory that is reached by messages.
type relay struct {
	base uint64
	mem  []byte
	err  error
}

func (r *relay) span(addr uint64, n int) ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if addr < r.base || addr-r.base > uint64(len(r.mem)) || uint64(n) > uint64(len(r.mem))-(addr-r.base) {
		return nil, fmt.Errorf("relay: %#x+%d is not there", addr, n)
	}
	return r.mem[addr-r.base:][:n], nil
}

func (r *relay) ReadMemory(p []byte, addr uint64) error {
	from, err := r.span(addr, len(p))
	copy(p, from)
	return err
}

func (r *relay) WriteMemory(p []byte, addr uint64) error {
	to, err := r.span(addr, len(p))
	copy(to, p)
	return err
}
