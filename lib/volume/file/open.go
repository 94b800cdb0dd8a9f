// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/volume"
)

// options are what a Spec says.
type options struct {
	path      string
	byDefault bool   // the path is the runtime's choice
	size      uint64 // 0: not given
	block     uint32
	reopen    bool
	disk      disk.Disk
}

func readOptions(env volume.Env, spec *volume.Spec) (*options, error) {
	if err := spec.CheckKeys(keys); err != nil {
		return nil, err
	}
	o := &options{path: spec.Options["path"], reopen: spec.Reopen, disk: env.Disk()}
	switch {
	case o.path == "":
		o.path, o.byDefault = env.DataPath(spec.Name), true
	case !filepath.IsAbs(o.path):
		return nil, fault.Errorf(fault.Usage, "", "", "option path=%s: it is not absolute, and leap-soc runs in a folder of its own", o.path)
	}
	o.path = filepath.Clean(o.path)
	var err error
	if o.size, err = spec.Size(); err != nil {
		return nil, err
	}
	o.block, err = spec.Block()
	return o, err
}

// data is the open and locked file, and what opening it has left on disk.
type data struct {
	fd    int
	size  uint64
	made  bool
	path  string
	folds []string // folders made, outermost first
	disk  disk.Disk
}

// giveUp closes the file and removes what was made.
func (d *data) giveUp() {
	if d.made {
		_ = d.disk.Remove(d.path)
	}
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
	for i := len(d.folds) - 1; i >= 0; i-- {
		_ = d.disk.Remove(d.folds[i]) // only if it is empty
	}
}

// open opens or makes the file. If it fails it leaves nothing behind.
func (o *options) open(ctx context.Context) (*data, error) {
	fd, err := openRegular(o.disk, o.path)
	switch {
	case err == nil:
		return o.existing(ctx, fd)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case o.reopen:
		return nil, fault.New(fault.NotFound, "", "", fmt.Errorf("the data file %s is gone", o.path),
			"put the file back, or delete the volume")
	case o.size == 0:
		return nil, fault.Errorf(fault.Usage, "", "", "option size= is missing: %s does not exist and would be made", o.path)
	}
	return o.create(ctx)
}

// existing takes an open file as it is.
func (o *options) existing(ctx context.Context, fd int) (*data, error) {
	d := &data{fd: fd, path: o.path, disk: o.disk}
	err := lock(ctx, fd, o.path)
	if err == nil {
		err = o.check(d)
	}
	if err == nil && !o.reopen {
		// Whoever has made it may not have seen to that.
		err = o.settle(d)
	}
	if err != nil {
		d.giveUp()
		return nil, err
	}
	return d, nil
}

// settle has the file survive a power loss.
func (o *options) settle(d *data) error {
	if err := o.disk.Sync(d.fd); err != nil {
		return fmt.Errorf("syncing %s: %w", o.path, err)
	}
	err := syncFolder(o.disk, o.path)
	if !d.made && errors.Is(err, fs.ErrPermission) {
		return nil // the folder is not ours
	}
	return err
}

// check compares the file with what was asked for.
func (o *options) check(d *data) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return fmt.Errorf("%s: %w", o.path, err)
	}
	d.size = uint64(st.Size)
	if o.leftover(d.fd, &st) {
		if err := o.disk.Truncate(d.fd, int64(o.size)); err != nil {
			return fmt.Errorf("making %s of %d bytes: %w", o.path, o.size, err)
		}
		d.size, d.made = o.size, true
	}
	switch {
	case st.Nlink == 0:
		return fault.Errorf(fault.NotFound, "", "", "%s was deleted while it was being opened", o.path)
	case o.reopen && o.size != 0:
		// The file is longer after a resize that was cut short, or where
		// somebody has appended to it: what is beyond is left alone.
		if d.size < o.size {
			return fault.New(fault.Failure, "", "", fmt.Errorf("%s has %d bytes, and the volume has %d: the file has become shorter",
				o.path, d.size, o.size), "put the whole file back, or delete the volume")
		}
		d.size = o.size
	case o.size != 0 && o.size != d.size:
		return fault.New(fault.Exists, "", "", fmt.Errorf("%s exists and has %s (%d bytes), size= says %s (%d bytes)",
			o.path, units.Size(d.size), d.size, units.Size(o.size), o.size),
			"leave size= out to use the file as it is")
	case d.size == 0:
		return fault.Errorf(fault.Failure, "", "", "%s is empty: a volume is not", o.path)
	}
	if err := volume.CheckSize(d.size, o.block); err != nil {
		return fmt.Errorf("%s: %w", o.path, err)
	}
	return nil
}

// leftover reports whether the file is what a process that was killed while it
// made the volume has left: without size or as large as it is to be, with nothing
// in it, and where it goes by default.
func (o *options) leftover(fd int, st *unix.Stat_t) bool {
	if !o.byDefault || o.reopen || o.size == 0 || st.Nlink == 0 || st.Blocks != 0 || st.Size != 0 && uint64(st.Size) != o.size {
		return false
	}
	_, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	return err == unix.ENXIO && volume.CheckSize(o.size, o.block) == nil
}

// create makes the file, sparse, so that it is there after a power loss.
func (o *options) create(ctx context.Context) (_ *data, err error) {
	if err := volume.CheckSize(o.size, o.block); err != nil {
		return nil, err
	}
	d := &data{fd: -1, size: o.size, path: o.path, disk: o.disk}
	defer func() {
		if err != nil {
			d.giveUp()
		}
	}()
	if o.byDefault {
		if d.folds, err = makeFolders(o.disk, filepath.Dir(o.path)); err != nil {
			return nil, err
		}
	}
	d.fd, err = o.disk.Open(o.path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the file: %w", err)
	}
	d.made = true
	if err := lock(ctx, d.fd, o.path); err != nil {
		return nil, err
	}
	if err := o.disk.Truncate(d.fd, int64(o.size)); err != nil {
		return nil, fmt.Errorf("making %s of %d bytes: %w", o.path, o.size, err)
	}
	return d, o.settle(d)
}

// makeFolders makes dir and what is missing above it, so that it survives a power
// loss, and returns what it made, also if it fails.
func makeFolders(d disk.Disk, dir string) (made []string, err error) {
	var missing []string
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		missing = append(missing, dir)
		dir = filepath.Dir(dir)
	}
	// The innermost may have been made by somebody who was killed just then.
	if err := syncFolder(d, dir); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := d.Mkdir(missing[i], 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return made, fmt.Errorf("making the folder: %w", err)
		} else if err == nil {
			made = append(made, missing[i])
		}
		if err := syncFolder(d, missing[i]); err != nil {
			return made, err
		}
	}
	return made, nil
}

// syncFolder makes the entry of path in its folder survive a power loss.
func syncFolder(d disk.Disk, path string) error {
	if err := d.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("syncing the folder of %s: %w", path, err)
	}
	return nil
}

// openRegular opens a regular file for reading and writing. It looks first:
// opening other things can block or have effects.
func openRegular(d disk.Disk, path string) (int, error) {
	info, err := os.Stat(path)
	if err != nil {
		return -1, fmt.Errorf("opening the file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return -1, fault.Errorf(fault.Usage, "", "", "%s is not a regular file but %s", path, nature(info.Mode()))
	}
	fd, err := d.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the file: %w", err)
	}
	return fd, nil
}

// nature says what a file that is not regular is.
func nature(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a folder"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeDevice != 0:
		return "a block device"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return m.Type().String()
}

// lockWait is how long a file in use is waited for: the kernel of a runtime
// that was killed may still work on it.
var lockWait = 10 * time.Second

const lockRetry = 20 * time.Millisecond

// lock takes the file for us alone, until it is closed. It waits lockWait at
// most; then the fault is of kind Exists: the file is in use.
func lock(ctx context.Context, fd int, path string) error {
	deadline := time.Now().Add(lockWait)
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
			continue
		case err != unix.EWOULDBLOCK:
			return fmt.Errorf("locking %s: %w", path, err)
		case !time.Now().Before(deadline):
			return fault.New(fault.Exists, "", "", fmt.Errorf("%s is in use by another process or volume", path),
				"`fuser -v "+path+"` shows the processes that have it open")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the lock on %s: %w", path, ctx.Err())
		case <-time.After(lockRetry):
		}
	}
}
