// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package mem is the kind of volume that lives in memory: a sealed memfd,
// mapped here and kept by leap-wpt, so that the data outlives this process. It
// does not outlive leap-wpt or the machine: then the volume comes back empty.
//
// Data is copied by the CPU on the poller of the request. Blocks never
// written, discarded or zeroed take no memory.
package mem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

var keys = []volume.Key{
	{Name: "size", Value: "SIZE", Usage: "capacity; memory is taken as blocks are written"},
	volume.BlockKey,
}

// Kind is the kind mem.
var Kind = volume.Kind{
	Name:    "mem",
	Summary: "memory kept by leap-wpt: survives the death of leap-soc, not that of leap-wpt or the machine",
	Keys:    keys,
	Make:    create,
	Delete:  remove,
}

// seals: nobody can shrink the memory under our mapping, or unseal it.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// keptName is the name leap-wpt knows the memory of a volume by.
func keptName(spec *volume.Spec) string { return "mem/" + spec.Name }

func create(_ context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
	if err := spec.CheckKeys(keys); err != nil {
		return nil, err
	}
	size, block, err := spec.SizeAndBlock()
	if err != nil {
		return nil, err
	}
	if size > math.MaxInt {
		return nil, fault.Errorf(fault.Usage, "", "", "size %d is beyond this machine's address space", size)
	}
	fd, kept, err := memory(env, spec, size)
	if err != nil {
		return nil, err
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mapping %d bytes of memory: %w", size, err)
	}
	m := &mem{name: keptName(spec), fd: fd, data: data, info: volume.Info{
		Size: size, Block: block,
		WriteGranularity:   block,
		DiscardGranularity: max(block, pageSize),
		AtomicUnit:         block,
	}}
	if !kept {
		if err := env.Keep(keptName(spec), fd); err != nil {
			return nil, errors.Join(fmt.Errorf("having leap-wpt keep the memory: %w", err), m.Close())
		}
	}
	spec.Made = true
	return m, nil
}

// memory returns what leap-wpt kept for a volume that existed before, or new
// memory that is yet to be kept.
func memory(env volume.Env, spec *volume.Spec, size uint64) (fd int, kept bool, err error) {
	name := keptName(spec)
	if !spec.Reopen {
		// What an older volume of this name may have left is not ours.
		if err := env.Drop(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return -1, false, fmt.Errorf("having leap-wpt forget %s: %w", name, err)
		}
		fd, err = newMemory(name, size)
		return fd, false, err
	}
	fd, err = env.Fetch(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fd, err = newMemory(name, size)
		return fd, false, err
	case err != nil:
		return -1, false, fmt.Errorf("fetching %s from leap-wpt: %w", name, err)
	}
	if err := checkMemory(fd, size); err != nil {
		unix.Close(fd)
		return -1, false, fmt.Errorf("%s kept by leap-wpt: %w", name, err)
	}
	return fd, true, nil
}

// newMemory makes zeroed, sealed memory.
func newMemory(name string, size uint64) (int, error) {
	fd, err := unix.MemfdCreate("leapio/"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("making memory: %w", err)
	}
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("making %d bytes of memory: %w", size, err)
	}
	return fd, nil
}

// checkMemory checks that fd can be mapped for good.
func checkMemory(fd int, size uint64) error {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		return fault.Errorf(fault.Failure, "", "", "it is no sealed memory")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("asking for its size: %w", err)
	}
	if uint64(st.Size) != size {
		return fault.Errorf(fault.Exists, "", "", "it has %d bytes, size= says %d", st.Size, size)
	}
	return nil
}

// remove has leap-wpt forget the memory, with data or without: nobody else
// could ever read it.
func remove(env volume.Env, spec *volume.Spec, _ bool) error {
	if err := env.Drop(keptName(spec)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("having leap-wpt forget %s: %w", keptName(spec), err)
	}
	return nil
}

type mem struct {
	info volume.Info
	name string // that leap-wpt knows the memory by
	fd   int
	data []byte
}

func (m *mem) Info() *volume.Info { return &m.info }

// Kept returns what a leap-wpt that does not know the volume yet is to keep.
// The descriptor stays the volume's.
func (m *mem) Kept() (name string, fd int) { return m.name, m.fd }

func (m *mem) Open(p *poller.Poller) (volume.Queue, error) {
	q := &queue{m: m, p: p}
	q.next = q.step
	return q, nil
}

func (m *mem) Close() error {
	if m.data == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(m.data), unix.Close(m.fd))
	m.data, m.fd = nil, -1
	return err
}
