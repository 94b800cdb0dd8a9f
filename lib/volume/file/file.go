// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package file is the kind of volume whose blocks are a regular file.
//
// The way of a request:
//
//  1. Submit takes an op for it from the queue's pool. An op turns the request
//     into calls to the kernel, one at a time (queue.go).
//  2. The engine of the queue runs the call: the poller's io_uring, straight
//     from or to guest memory (ring.go), or a few goroutines where there is
//     none (threads.go). When it has no room the op waits in the queue.
//  3. The result ends the request, or leads to its next call: the rest of a
//     short transfer, a flush for FUA, zeroes written by hand.
//
// # The page cache
//
// The file is opened O_DIRECT where the file system can do that in units of
// the volume's block, else it goes through the page cache, all of it. The two
// are never mixed on one file: a buffered write of 512 bytes writes back the
// whole page later, and with it the old content of sectors that direct writes
// have changed in the meantime.
//
// Direct I/O wants aligned memory, while a guest's buffers need only be
// aligned to 4 bytes. Requests with other buffers are copied through aligned
// ones of the queue (bounce.go), piece by piece.
//
// # The lock
//
// A file in use is locked (flock), and all I/O goes through the descriptor
// with the lock: as long as the kernel works for a runtime that has died, its
// successor cannot begin.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
)

var keys = []volume.Key{
	{Name: "path", Value: "PATH", Usage: "the file, absolute; a new one, or one that is used as it is (default: in leap-soc's state folder)"},
	{Name: "size", Value: "SIZE", Usage: "capacity; needed for a new file, which is made sparse"},
	volume.BlockKey,
}

// Kind is the kind file.
var Kind = volume.Kind{
	Name:    "file",
	Summary: "a regular file, through io_uring and past the page cache where the file system allows it",
	Keys:    keys,
	Make:    create,
	Delete:  remove,
}

// file is an open volume.
type file struct {
	path   string
	fd     int
	disk   disk.Disk
	layout atomic.Pointer[layout]
}

// layout is what a file is to its volume; it is replaced as a whole. An op goes
// by the one that it has begun with.
type layout struct {
	info volume.Info
	// direct: the file is open O_DIRECT. Memory must be aligned to memAlign
	// bytes, offsets and lengths to unit bytes (1 and 1 if not direct); the
	// volume's block is a multiple of unit.
	direct         bool
	memAlign, unit uint64
}

func create(ctx context.Context, env volume.Env, spec *volume.Spec) (_ volume.Volume, err error) {
	o, err := readOptions(env, spec)
	if err != nil {
		return nil, err
	}
	data, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			data.giveUp()
		}
	}()
	f := &file{path: o.path, fd: data.fd, disk: o.disk}
	if err := f.adopt(volume.Shape{Size: data.size, Block: o.block}); err != nil {
		return nil, err
	}
	spec.Note("path", o.path)
	spec.Made = spec.Made || data.made
	return f, nil
}

// assumedAlign is what direct I/O needs at most where the kernel does not tell
// (Linux before 6.1, and file systems that do not care).
const assumedAlign = 4096

// adopt makes the volume one of this shape, and opens the file O_DIRECT if its
// file system can serve such blocks so. Nothing is in flight.
func (f *file) adopt(s volume.Shape) error {
	l, err := probe(f.fd, s)
	if err == nil && l.direct && f.layout.Load() != nil {
		// What the page cache holds of smaller blocks comes first.
		err = unix.Fdatasync(f.fd)
	}
	if err == nil {
		err = setDirect(f.fd, l)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.layout.Store(l)
	return nil
}

// probe asks the file system for its units.
func probe(fd int, s volume.Shape) (*layout, error) {
	var st unix.Statx_t
	var fs unix.Statfs_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_DIOALIGN
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, mask, &st)
	if err == nil {
		err = unix.Fstatfs(fd, &fs)
	}
	if err != nil {
		return nil, fmt.Errorf("asking for its file system's units: %w", err)
	}
	l := &layout{memAlign: assumedAlign, unit: assumedAlign, info: volume.Info{
		Size: s.Size, Block: s.Block, VolatileCache: true, AtomicUnit: s.Block,
		// Smaller writes make the file system read, change and write its
		// block; smaller holes are not holes.
		WriteGranularity:   granularity(s.Block, int64(st.Blksize)),
		DiscardGranularity: granularity(s.Block, fs.Frsize),
	}}
	able := true
	if st.Mask&unix.STATX_DIOALIGN != 0 {
		l.memAlign, l.unit = uint64(st.Dio_mem_align), uint64(st.Dio_offset_align)
		able = powerOfTwo(l.memAlign) && powerOfTwo(l.unit) // 0: not on this file
	}
	l.direct = able && uint64(s.Block)%l.unit == 0 && l.memAlign <= bounceSize
	return l, nil
}

// granularity is unit bytes, if that is a number of blocks.
func granularity(block uint32, unit int64) uint32 {
	if unit < int64(block) || unit > math.MaxUint32 || unit%int64(block) != 0 {
		return block
	}
	return uint32(unit)
}

func powerOfTwo(n uint64) bool { return n != 0 && n&(n-1) == 0 }

// setDirect switches an open file, so that its lock stays, to O_DIRECT if l
// asks for that, else to the page cache. What the file system does not do
// after all is taken out of l.
func setDirect(fd int, l *layout) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if l.direct {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
		l.direct = err == nil
	}
	if l.direct {
		return nil
	}
	l.memAlign, l.unit = 1, 1
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	return err
}

func (f *file) Info() *volume.Info { return &f.layout.Load().info }

// Open returns a queue on the poller's io_uring, or one with threads of its
// own where the poller has none.
func (f *file) Open(p *poller.Poller) (volume.Queue, error) {
	q := &queue{f: f, p: p}
	if err := q.bufs.init(); err != nil {
		return nil, err
	}
	if ring, _ := p.Ring(); ring != nil {
		q.engine = &ringEngine{ring, f.fd}
	} else {
		q.engine = startThreads(p, f.fd)
	}
	p.Add(q)
	return q, nil
}

// Extend implements volume.Reshaper: the new part is a hole.
func (f *file) Extend(size uint64) error {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	switch {
	case err != nil:
	case size > math.MaxInt64:
		err = unix.EFBIG
	case uint64(st.Size) < size:
		err = f.truncate(size)
	default:
		err = f.disk.Sync(f.fd) // who was killed here has not done that
	}
	if err != nil {
		return fmt.Errorf("making %s longer, to %d bytes: %w", f.path, size, err)
	}
	return nil
}

// Trim implements volume.Reshaper.
func (f *file) Trim() error {
	var st unix.Stat_t
	size := f.Info().Size
	err := unix.Fstat(f.fd, &st)
	if err == nil && uint64(st.Size) > size {
		err = f.truncate(size)
	}
	if err != nil {
		return fmt.Errorf("making %s shorter, to %d bytes: %w", f.path, size, err)
	}
	return nil
}

// truncate makes the file have this size, also after a power loss.
func (f *file) truncate(size uint64) error {
	if err := f.disk.Truncate(f.fd, int64(size)); err != nil {
		return err
	}
	return f.disk.Sync(f.fd)
}

// Reshape implements volume.Reshaper.
func (f *file) Reshape(s volume.Shape) error {
	now := f.layout.Load()
	if s.Block != now.info.Block {
		return f.adopt(s)
	}
	next := *now
	next.info.Size = s.Size
	f.layout.Store(&next)
	return nil
}

// Close closes the file and so gives up its lock.
func (f *file) Close() error {
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}

// remove deletes the file of a deleted volume, if Make made it and nobody else
// has taken it into use since.
func remove(env volume.Env, spec *volume.Spec, data bool) error {
	if !data || !spec.Made {
		return nil
	}
	o, err := readOptions(env, spec)
	if err != nil {
		return err
	}
	fd, err := openRegular(o.disk, o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Who was killed here may not have done that.
		if err := syncFolder(o.disk, o.path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	if err := lock(context.Background(), fd, o.path); err != nil {
		return err
	}
	if err := o.disk.Remove(o.path); err != nil {
		return fmt.Errorf("deleting the file: %w", err)
	}
	return syncFolder(o.disk, o.path)
}
