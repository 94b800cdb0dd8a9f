// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package disktest cuts the power. A Recorder is a disk.Disk that does what it
// is asked for in a real folder and writes it down; Cut then puts in its place
// what a disk can hold if the power fails after any of the steps: what was not
// synced is there, or is not, or in part. Tests begin again from there with the
// real thing.
//
// The disk is as bad as POSIX has it: names and content that were not synced are
// independent of one another, sectors of a file too, and syncing a file says
// nothing about its name. Renaming is one step. Modes are not recorded.
package disktest

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
)

// sector is what is written as a whole.
const sector = 512

// Recorder is a Disk in the folder Root, which exists and whose own name is safe.
// It is for one goroutine at a time.
type Recorder struct {
	Root string

	steps  []step
	marks  []int          // steps that had been made at each Mark
	files  map[int]int    // inode by descriptor
	inodes map[string]int // by path
	next   int
	// Lies: what Sync and SyncDir of a name that it reports are not done, as code
	// that forgets them. nil: none.
	Lies func(call, path string) bool
}

var _ disk.Disk = (*Recorder)(nil)

// NewRecorder makes one for the folder root, with what is in there safe.
func NewRecorder(root string) (*Recorder, error) {
	r := &Recorder{Root: root, files: make(map[int]int), inodes: map[string]int{".": 0}, next: 1}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		s := r.note(r.step(link, path, e.IsDir()))
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			r.note(step{kind: write, inode: s.inode, data: data})
			r.note(step{kind: sync, inode: s.inode})
		}
		r.note(step{kind: sync, inode: r.inode(filepath.Dir(path))})
		return nil
	})
	r.Mark()
	return r, err
}

// kind is what a step does.
type kind uint8

const (
	link kind = iota // name in folder in is that of inode
	unlink
	rename // to the name to
	write  // data at off
	truncate
	sync // an inode: a file, or the names in a folder
)

type step struct {
	kind     kind
	in       int
	name, to string
	inode    int
	folder   bool // inode is one
	off      int64
	data     []byte
}

// step is one about a name.
func (r *Recorder) step(k kind, path string, folder bool) step {
	return step{kind: k, in: r.inode(filepath.Dir(path)), name: filepath.Base(path), inode: r.inode(path), folder: folder}
}

func (s step) String() string {
	switch s.kind {
	case link:
		return fmt.Sprintf("make %s: %d", s.name, s.inode)
	case unlink:
		return "remove " + s.name
	case rename:
		return "rename " + s.name + " " + s.to
	case write:
		return fmt.Sprintf("write %d: %d bytes at %d", s.inode, len(s.data), s.off)
	case truncate:
		return fmt.Sprintf("truncate %d: to %d bytes", s.inode, s.off)
	}
	return fmt.Sprintf("sync %d", s.inode)
}

// Mark notes that something has been acknowledged, and returns the number of that:
// 0 is the start.
func (r *Recorder) Mark() int {
	r.marks = append(r.marks, len(r.steps))
	return len(r.marks) - 1
}

func (r *Recorder) note(s step) step {
	r.steps = append(r.steps, s)
	return s
}

func (r *Recorder) rel(path string) string {
	rel, err := filepath.Rel(r.Root, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		panic(path + " is not on the disk " + r.Root)
	}
	return rel
}

// inode returns the number of what is at path, a new one if nothing was.
func (r *Recorder) inode(path string) int {
	rel := r.rel(path)
	if _, ok := r.inodes[rel]; !ok {
		r.inodes[rel] = r.next
		r.next++
	}
	return r.inodes[rel]
}

// Mkdir implements disk.Disk.
func (r *Recorder) Mkdir(path string, mode fs.FileMode) error {
	if err := disk.OS.Mkdir(path, mode); err != nil {
		return err
	}
	r.note(r.step(link, path, true))
	return nil
}

// Open implements disk.Disk.
func (r *Recorder) Open(path string, flags int, mode fs.FileMode) (int, error) {
	_, err := os.Lstat(path)
	fd, oerr := disk.OS.Open(path, flags, mode)
	if oerr != nil {
		return fd, oerr
	}
	inode := r.inode(path)
	if err != nil {
		r.note(r.step(link, path, false))
	} else if flags&unix.O_TRUNC != 0 {
		r.note(step{kind: truncate, inode: inode})
	}
	r.files[fd] = inode
	return fd, nil
}

// Write implements disk.Disk.
func (r *Recorder) Write(fd int, p []byte) error {
	off, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err == nil {
		err = disk.OS.Write(fd, p)
	}
	if err != nil {
		return err
	}
	r.note(step{kind: write, inode: r.file(fd), off: off, data: append([]byte(nil), p...)})
	return nil
}

// Truncate implements disk.Disk.
func (r *Recorder) Truncate(fd int, size int64) error {
	if err := disk.OS.Truncate(fd, size); err != nil {
		return err
	}
	r.note(step{kind: truncate, inode: r.file(fd), off: size})
	return nil
}

// Sync implements disk.Disk.
func (r *Recorder) Sync(fd int) error {
	inode := r.file(fd)
	for path, i := range r.inodes {
		if i == inode && r.lies("Sync", path) {
			return nil
		}
	}
	r.note(step{kind: sync, inode: inode})
	return nil
}

// SyncDir implements disk.Disk.
func (r *Recorder) SyncDir(path string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	if path == filepath.Dir(r.Root) {
		return nil // where Root has its name, which is safe
	}
	if !r.lies("SyncDir", r.rel(path)) {
		r.note(step{kind: sync, inode: r.inode(path)})
	}
	return nil
}

func (r *Recorder) lies(call, path string) bool { return r.Lies != nil && r.Lies(call, path) }

// Rename implements disk.Disk.
func (r *Recorder) Rename(from, to string) error {
	if err := disk.OS.Rename(from, to); err != nil {
		return err
	}
	if filepath.Dir(from) != filepath.Dir(to) {
		panic("rename to another folder: " + from + " " + to)
	}
	st := r.step(rename, from, false)
	st.to = filepath.Base(to)
	r.note(st)
	delete(r.inodes, r.rel(from))
	r.inodes[r.rel(to)] = st.inode
	return nil
}

// Remove implements disk.Disk.
func (r *Recorder) Remove(path string) error {
	if err := disk.OS.Remove(path); err != nil {
		return err
	}
	r.note(r.step(unlink, path, false))
	delete(r.inodes, r.rel(path))
	return nil
}

func (r *Recorder) file(fd int) int {
	inode, ok := r.files[fd]
	if !ok {
		panic(fmt.Sprintf("descriptor %d was not opened here", fd))
	}
	return inode
}

// Steps says what has been recorded, for a test that fails.
func (r *Recorder) Steps() []string {
	var all []string
	for _, s := range r.steps {
		all = append(all, s.String())
	}
	return all
}

// tree is what a disk holds: the content of its inodes, and the names in its folders.
type tree struct {
	files   map[int][]byte
	folders map[int]map[string]int
}

func newTree() *tree {
	return &tree{files: make(map[int][]byte), folders: map[int]map[string]int{0: {}}}
}

func (t *tree) clone() *tree {
	c := &tree{files: maps.Clone(t.files), folders: make(map[int]map[string]int)}
	for i, names := range t.folders {
		c.folders[i] = maps.Clone(names)
	}
	return c
}

// make writes the tree to the folder dir, blocks of zeroes as holes.
func (t *tree) make(dir string, folder int) error {
	for name, inode := range t.folders[folder] {
		path := filepath.Join(dir, name)
		if t.folders[inode] != nil {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			if err := t.make(path, inode); err != nil {
				return err
			}
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		data := t.files[inode]
		err = f.Truncate(int64(len(data)))
		for off := 0; off < len(data) && err == nil; off += 4096 {
			if b := data[off:min(off+4096, len(data))]; strings.Trim(string(b), "\x00") != "" {
				_, err = f.WriteAt(b, int64(off))
			}
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}
