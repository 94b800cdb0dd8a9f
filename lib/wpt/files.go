// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Store keeps open files for the program that is started after this one has
// crashed: the file descriptor store of a service manager.
type Store interface {
	// Put has fd kept under a name; it stays the caller's. A file that is there
	// already, under whatever name, may be ignored.
	Put(name string, fd int) error
	// Remove has what is kept under a name closed.
	Remove(name string) error
}

// fileID is the number of an open file in tables, and its name in the store, in
// base 36: service managers tell all names in one word of the environment.
type fileID int

const (
	noFile    fileID = -1
	rootTable fileID = 0 // the broker's own table, where everything begins
)

func (id fileID) String() string { return strconv.FormatInt(int64(id), 36) }

// parseFileID reads a name in the store.
func parseFileID(name string) (fileID, bool) {
	n, err := strconv.ParseInt(name, 36, 32)
	return fileID(n), err == nil && n >= 0 && fileID(n).String() == name
}

// identity tells open files apart: several descriptors of one are one file in
// the store. Memory is the same if it is the same file and can be used alike.
type identity struct {
	dev, ino uint64
	access   int
	other    string // for files without an inode of their own
}

// identify returns the identity of an open file.
func identify(fd int) identity {
	var st unix.Stat_t
	access, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	it := identity{dev: st.Dev, ino: st.Ino, access: access & (unix.O_ACCMODE | unix.O_PATH)}
	if err == nil && st.Mode&unix.S_IFMT != 0 {
		return it
	}
	it.other = "descriptor " + strconv.Itoa(fd)
	if text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd)); err == nil {
		for line := range strings.Lines(string(text)) {
			if id, ok := strings.CutPrefix(line, "eventfd-id:"); ok {
				it.other = "eventfd " + strings.TrimSpace(id)
			}
		}
	}
	return it
}

// file is an open file that the next program gets. It is in the store as long as
// it has a descriptor here.
type file struct {
	id  fileID
	who identity
	fds []int
}

// files are all open files that the next program gets, whether it replaces this
// one or is started after a crash. Who opens such a file has it kept before a
// table names it, and closes it here when no table does any more.
type files struct {
	store Store // nil: there is none, or it has failed
	log   *slog.Logger

	mu    sync.Mutex
	open  map[int]*file // by descriptor
	known map[identity]*file
	next  fileID
	free  []fileID // below next
	left  map[fileID]*leftFile
}

// leftFile is what a program before has left.
type leftFile struct {
	fd      int
	claimed bool
}

func newFiles(store Store, log *slog.Logger) *files {
	return &files{store: store, log: log, open: make(map[int]*file), known: make(map[identity]*file), next: rootTable + 1}
}

// keep has the next program get fd, which is closed by close from now on.
func (f *files) keep(fd int) { f.keepAs(noFile, fd) }

// keepAs is keep with a number; noFile: any.
func (f *files) keepAs(id fileID, fd int) {
	who := identify(fd)
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.known[who]
	if k == nil {
		if id == noFile {
			id = f.newID()
		}
		k = &file{id: id, who: who}
		f.known[who] = k
		if f.store != nil {
			f.check(f.store.Put(k.id.String(), fd))
		}
	}
	k.fds = append(k.fds, fd)
	f.open[fd] = k
}

// keepCopy is keep for a descriptor of its own of what Go has open; it returns
// that.
func (f *files) keepCopy(c syscall.Conn) (int, error) {
	fd, err := duplicate(c)
	if err != nil {
		return noFD, err
	}
	f.keep(fd)
	return fd, nil
}

// newID returns a number that is free. The caller holds mu.
func (f *files) newID() fileID {
	if n := len(f.free); n > 0 {
		id := f.free[n-1]
		f.free = f.free[:n-1]
		return id
	}
	f.next++
	return f.next - 1
}

// check gives up a store that fails: clients are not to wait for it again and
// again, and after a crash something would be missing anyway.
func (f *files) check(err error) {
	if err != nil && f.store != nil {
		f.store = nil
		f.log.Error("the service manager does not keep open files any more: a crash will cost guests their drives", "err", err)
	}
}

// id returns the number of an open file, noFile for noFD.
func (f *files) id(fd int) fileID {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.open[fd]; k != nil {
		return k.id
	}
	return noFile
}

// same reports whether both are descriptors of one file, the first one kept.
func (f *files) same(kept, fd int) bool {
	who := identify(fd)
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.open[kept]
	return k != nil && k.who == who
}

// close closes descriptors that were kept; noFD is none.
func (f *files) close(fds ...int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fd := range fds {
		if f.drop(fd) {
			unix.Close(fd)
		}
	}
}

// forget is close for a descriptor that others have closed, or will.
func (f *files) forget(fd int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(fd)
}

// drop forgets a descriptor; false: it is not kept. The caller holds mu.
func (f *files) drop(fd int) bool {
	k := f.open[fd]
	if k == nil {
		return false
	}
	delete(f.open, fd)
	k.fds = slices.DeleteFunc(k.fds, func(n int) bool { return n == fd })
	if len(k.fds) == 0 {
		f.remove(k.id)
		if f.known[k.who] == k {
			delete(f.known, k.who)
		}
	}
	return true
}

// remove frees a number. The caller holds mu.
func (f *files) remove(id fileID) {
	if f.store != nil {
		f.check(f.store.Remove(id.String()))
	}
	if id != rootTable {
		f.free = append(f.free, id)
	}
}

// closeAll closes everything, and has the store forget it.
func (f *files) closeAll() { f.close(slices.Collect(maps.Keys(f.open))...) }

// abandon closes everything here; what is in the store stays.
func (f *files) abandon() {
	f.store = nil
	f.closeAll()
	for _, l := range f.left {
		if !l.claimed {
			unix.Close(l.fd)
		}
	}
}

// all returns a descriptor of each file.
func (f *files) all() map[fileID]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[fileID]int, len(f.open))
	for fd, k := range f.open {
		if _, ok := all[k.id]; !ok {
			all[k.id] = fd
		}
	}
	// The others go with this program.
	for fd, k := range f.open {
		if all[k.id] != fd {
			delete(f.open, fd)
			unix.Close(fd)
		}
	}
	return all
}

// adopt takes over what a program before has left, for claim. sweep follows.
func (f *files) adopt(left map[fileID]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = make(map[fileID]*leftFile, len(left))
	for id, fd := range left {
		f.left[id] = &leftFile{fd: fd}
		f.next = max(f.next, id+1)
	}
	for id := rootTable + 1; id < f.next; id++ {
		if f.left[id] == nil {
			f.free = append(f.free, id)
		}
	}
	slices.Reverse(f.free) // the smallest first
}

// claim returns a descriptor of a file that was left, which is kept from now on;
// false: there is none.
func (f *files) claim(id fileID) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.left[id]
	if l == nil {
		return noFD, false
	}
	fd := l.fd
	if l.claimed {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return noFD, false
		}
		fd = dup
	}
	k := f.open[l.fd]
	if k == nil {
		k = &file{id: id, who: identify(fd)}
		f.known[k.who] = k
	}
	l.claimed = true
	k.fds = append(k.fds, fd)
	f.open[fd] = k
	return fd, true
}

// sweep closes what was left and not claimed, and has the store forget it: what
// was being opened or closed at a crash, most of all. It returns how many there
// were.
func (f *files) sweep() (swept int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, l := range f.left {
		if !l.claimed {
			// The store has it open for a moment more: a connection is to end now, and
			// a lock as well.
			_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
			_ = unix.Flock(l.fd, unix.LOCK_UN)
			unix.Close(l.fd)
			f.remove(id)
			swept++
		}
	}
	f.left = nil
	return swept
}

// duplicate returns another descriptor of a socket or file.
func duplicate(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return noFD, err
	}
	fd := noFD
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return noFD, cerr
	}
	return fd, err
}
