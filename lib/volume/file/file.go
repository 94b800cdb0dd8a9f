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

	"golang.org/x/sys/unix"

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
	info volume.Info
	fd   int
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
	f := &file{fd: data.fd, info: volume.Info{Size: data.size, Block: o.block, VolatileCache: true, AtomicUnit: o.block}}
	if err := f.probe(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.path, err)
	}
	spec.Note("path", o.path)
	spec.Made = spec.Made || data.made
	return f, nil
}

// assumedAlign is what direct I/O needs at most where the kernel does not tell
// (Linux before 6.1, and file systems that do not care).
const assumedAlign = 4096

// probe asks the file system for its units and opens the file O_DIRECT if it
// can serve the volume's blocks so.
func (f *file) probe() error {
	var st unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_DIOALIGN
	if err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, mask, &st); err != nil {
		return fmt.Errorf("asking for its file system's units: %w", err)
	}
	f.memAlign, f.unit = assumedAlign, assumedAlign
	able := true
	if st.Mask&unix.STATX_DIOALIGN != 0 {
		f.memAlign, f.unit = uint64(st.Dio_mem_align), uint64(st.Dio_offset_align)
		able = powerOfTwo(f.memAlign) && powerOfTwo(f.unit) // 0: not on this file
	}
	if able && uint64(f.info.Block)%f.unit == 0 && f.memAlign <= bounceSize {
		f.direct = setDirect(f.fd) == nil
	}
	if !f.direct {
		f.memAlign, f.unit = 1, 1
	}
	// Smaller writes make the file system read, change and write its block;
	// smaller holes are not holes.
	f.info.WriteGranularity = max(f.info.Block, st.Blksize)
	f.info.DiscardGranularity = max(f.info.Block, st.Blksize)
	return nil
}

func powerOfTwo(n uint64) bool { return n != 0 && n&(n-1) == 0 }

// setDirect switches an open file to O_DIRECT, so that its lock stays.
func setDirect(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	return err
}

func (f *file) Info() *volume.Info { return &f.info }

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
	fd, err := openRegular(o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	if err := lock(context.Background(), fd, o.path); err != nil {
		return err
	}
	if err := unix.Unlink(o.path); err != nil {
		return fmt.Errorf("deleting %s: %w", o.path, err)
	}
	return syncFolder(o.path)
}
