// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/units"
)

// keptFiles are what runtimes leave in our care to outlive them: the memory of
// volumes, mostly. A name belongs to all runtimes of one name, one after the
// other.
type keptFiles struct {
	files *files
	mu    sync.Mutex
	fds   map[keptName]int
}

type keptName struct{ runtime, name string }

// keep keeps a duplicate of fd, in the place of what had the name before: that
// is the caller's, noFD if there was nothing.
func (k *keptFiles) keep(runtime, name string, fd int) (int, error) {
	if name == "" {
		return noFD, unix.EINVAL
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := keptName{runtime, name}
	old, replace := k.fds[at]
	if !replace && k.count(runtime) >= maxKept {
		return noFD, unix.ENOSPC
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return noFD, err
	}
	k.files.keep(dup)
	if !replace {
		old = noFD
	}
	k.set(at, dup)
	return old, nil
}

// put keeps fd itself.
func (k *keptFiles) put(runtime, name string, fd int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.set(keptName{runtime, name}, fd)
}

// set puts a file in its place. The caller holds mu.
func (k *keptFiles) set(at keptName, fd int) {
	if k.fds == nil {
		k.fds = make(map[keptName]int)
	}
	k.fds[at] = fd
}

// count returns how many files a runtime has here.
func (k *keptFiles) count(runtime string) (n int) {
	for at := range k.fds {
		if at.runtime == runtime {
			n++
		}
	}
	return n
}

// fetch returns a duplicate of what is kept, ENOENT if nothing is.
func (k *keptFiles) fetch(runtime, name string) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, ok := k.fds[keptName{runtime, name}]
	if !ok {
		return noFD, unix.ENOENT
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// drop gives up what is kept to the caller, noFD if nothing is.
func (k *keptFiles) drop(runtime, name string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := keptName{runtime, name}
	fd, ok := k.fds[at]
	if !ok {
		return noFD
	}
	delete(k.fds, at)
	return fd
}

// list describes what is kept, by runtime and name.
func (k *keptFiles) list() []api.Kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(k.fds), func(a, b keptName) int {
		return cmp.Or(cmp.Compare(a.runtime, b.runtime), cmp.Compare(a.name, b.name))
	})
	out := make([]api.Kept, 0, len(names))
	for _, at := range names {
		var st unix.Stat_t
		size := units.Size(0)
		if unix.Fstat(k.fds[at], &st) == nil {
			size = units.Size(st.Size)
		}
		out = append(out, api.Kept{Name: at.name, Runtime: at.runtime, Size: size})
	}
	return out
}

// entries are what the next program has to know.
func (k *keptFiles) entries() (all []keptEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, fd := range k.fds {
		all = append(all, keptEntry{Runtime: at.runtime, Name: at.name, File: k.files.id(fd)})
	}
	return all
}
