// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package mem is the kind of volume that lives in memory: a sealed memfd,
// mapped here and kept by leap-wpt, so that the data outlives this process. It
// does not outlive leap-wpt or the machine: then the volume comes back empty.
//
// Data is copied by the CPU on the poller of the request. Blocks never
// written, discarded or zeroed take no memory. No block is ever found in part as
// one command has left it and in part as another: neither by a poller beside
// (stripes.go), nor by the next process (log.go).
//
// The memory can grow. Pollers may be copying then, so a larger mapping takes
// the place of the one before, which stays until Close. It never becomes
// shorter, since that would kill whoever has it mapped: a volume that shrinks
// gives up its pages instead.
package mem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

var keys = []volume.Key{
	{Name: "size", Value: "SIZE", Usage: "capacity; memory is taken as blocks are written"},
	volume.BlockKey,
	{Name: "populate", Value: "on|off", Default: "off", Usage: "take all memory at once, in huge pages where the kernel has them: faster, and not short of it later"},
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
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// keptName is the name leap-wpt knows the memory of a volume by.
func keptName(spec *volume.Spec) string { return "mem/" + spec.Name }

func create(ctx context.Context, env volume.Env, spec *volume.Spec) (volume.Volume, error) {
	if err := spec.CheckKeys(keys); err != nil {
		return nil, err
	}
	size, block, err := spec.SizeAndBlock()
	if err != nil {
		return nil, err
	}
	all, err := volume.ParseSwitch("populate", cmp.Or(spec.Options["populate"], "off"))
	if err != nil {
		return nil, err
	}
	fd, kept, err := memory(env, spec, size)
	if err != nil {
		return nil, err
	}
	logFD, logKept, err := logMemory(env, spec, fd, size, !kept)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	log, err := openLog(logFD)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	m := &mem{spec: *spec, fd: fd, log: log, all: all}
	_ = m.Reshape(volume.Shape{Size: size, Block: block}) // never fails
	if err := m.remap(size); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if !kept {
		if all {
			if err := populate(ctx, m.bytes(), 0); err != nil {
				return nil, errors.Join(err, m.Close())
			}
		}
		err = env.Keep(keptName(spec), fd)
	}
	if err == nil && !logKept {
		err = env.Keep(logName(spec), log.fd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("having leap-wpt keep the memory: %w", err), m.Close())
	}
	spec.Made = true
	return m, nil
}

// memory returns what leap-wpt kept for a volume that existed before, or new
// memory that is yet to be kept.
func memory(env volume.Env, spec *volume.Spec, size uint64) (fd int, kept bool, err error) {
	fd, kept, err = fetch(env, keptName(spec), size, !spec.Reopen)
	if err == nil && kept {
		// What a resize that was cut short has left.
		if err = trim(fd, size); err != nil {
			unix.Close(fd)
		}
	}
	return fd, kept, err
}

// fetch returns memory of size bytes at least that leap-wpt has kept under name,
// or new memory that is yet to be kept. fresh: what is kept is not ours, but of an
// older volume of this name.
func fetch(env volume.Env, name string, size uint64, fresh bool) (fd int, kept bool, err error) {
	if fresh {
		if err := drop(env, name); err != nil {
			return -1, false, err
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

// drop has leap-wpt forget what it keeps under name, if there is anything.
func drop(env volume.Env, name string) error {
	if err := env.Drop(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("having leap-wpt forget %s: %w", name, err)
	}
	return nil
}

// newMemory makes zeroed, sealed memory.
func newMemory(name string, size uint64) (int, error) {
	if err := checkAddressable(size); err != nil {
		return -1, err
	}
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

// checkAddressable refuses what cannot be mapped.
func checkAddressable(size uint64) error {
	if size > math.MaxInt {
		return fault.Errorf(fault.Usage, "", "", "size %d is beyond this machine's address space", size)
	}
	return nil
}

// checkMemory checks that fd can be mapped for good, size bytes of it.
func checkMemory(fd int, size uint64) error {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		return fault.Errorf(fault.Failure, "", "", "it is no sealed memory")
	}
	has, err := sizeOf(fd)
	if err == nil && has < size {
		err = fault.Errorf(fault.Exists, "", "", "it has %d bytes, size= says %d", has, size)
	}
	return err
}

// sizeOf returns the size of the memory, used or not, in bytes.
func sizeOf(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("asking for the size of the memory: %w", err)
	}
	return uint64(st.Size), nil
}

// remove has leap-wpt forget the memory, with data or without: nobody else
// could ever read it.
func remove(env volume.Env, spec *volume.Spec, _ bool) error {
	return errors.Join(drop(env, keptName(spec)), drop(env, logName(spec)))
}

type mem struct {
	spec    volume.Spec
	fd      int
	info    atomic.Pointer[volume.Info]
	data    atomic.Pointer[[]byte] // the latest mapping: at least Info.Size bytes
	maps    [][]byte               // all of them
	stripes stripes
	log     *intentLog
	all     bool // populate=on
}

func (m *mem) Info() *volume.Info { return m.info.Load() }

// bytes returns the memory, which may be more than the volume has.
func (m *mem) bytes() []byte { return *m.data.Load() }

// Kept returns what a leap-wpt that does not know the volume yet is to keep, by
// name. The descriptors stay the volume's.
func (m *mem) Kept() map[string]int {
	return map[string]int{keptName(&m.spec): m.fd, logName(&m.spec): m.log.fd}
}

func (m *mem) Open(p *poller.Poller) (volume.Queue, error) {
	slot, err := m.log.enter(p)
	if err != nil {
		return nil, err
	}
	q := &queue{m: m, p: p, slot: slot}
	q.next = q.step
	return q, nil
}

// remap maps size bytes. Pollers go over to them with their next requests.
func (m *mem) remap(size uint64) error {
	data, err := mapMemory(m.fd, size)
	if err != nil {
		return fmt.Errorf("mapping %d bytes of memory: %w", size, err)
	}
	m.maps = append(m.maps, data)
	m.data.Store(&data)
	return nil
}

// Extend implements volume.Reshaper.
func (m *mem) Extend(size uint64) error {
	if err := checkAddressable(size); err != nil {
		return err
	}
	// What is beyond the end, from a time when there was more, reads zero.
	if err := m.Trim(); err != nil {
		return err
	}
	has, err := sizeOf(m.fd)
	if err != nil {
		return err
	}
	if has < size {
		switch err := unix.Ftruncate(m.fd, int64(size)); {
		case errors.Is(err, unix.EPERM):
			return fault.Errorf(fault.Unsupported, "", "", "the memory was made by a version of leap-soc that sealed it against growing").
				Hint("make a new volume, and copy the data to it in the machine")
		case err != nil:
			return fmt.Errorf("making %d bytes of memory: %w", size, err)
		}
	}
	before := m.Info().Size
	if uint64(len(m.bytes())) < size {
		if err := m.remap(size); err != nil {
			return err
		}
	}
	if m.all {
		return populate(context.Background(), m.bytes()[:size], before&^(hugePage-1))
	}
	return nil
}

// Reshape implements volume.Reshaper.
func (m *mem) Reshape(s volume.Shape) error {
	m.info.Store(&volume.Info{
		Size: s.Size, Block: s.Block,
		WriteGranularity:   s.Block,
		DiscardGranularity: max(s.Block, pageSize),
		AtomicUnit:         s.Block,
	})
	return nil
}

// Trim implements volume.Reshaper.
func (m *mem) Trim() error { return trim(m.fd, m.Info().Size) }

// trim gives up all pages beyond size; what is left of the last one reads zero.
func trim(fd int, size uint64) error {
	has, err := sizeOf(fd)
	if err != nil || has <= size {
		return err
	}
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for {
		switch err := unix.Fallocate(fd, punch, int64(size), int64(has-size)); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("giving up %d bytes of memory: %w", has-size, err)
		}
	}
}

func (m *mem) Close() error {
	if m.fd < 0 {
		return nil
	}
	err := errors.Join(unix.Close(m.fd), m.log.close())
	for _, data := range m.maps {
		err = errors.Join(err, unmapMemory(data))
	}
	m.maps, m.fd = nil, -1
	return err
}
