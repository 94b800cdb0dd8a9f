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
	mu  sync.Mutex
	fds map[keptName]int
}

type keptName struct{ runtime, name string }

// keep keeps a duplicate of fd, in the place of what had the name before.
func (k *keptFiles) keep(runtime, name string, fd int) error {
	if name == "" {
		return unix.EINVAL
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := keptName{runtime, name}
	old, replace := k.fds[at]
	if !replace && k.count(runtime) >= maxKept {
		return unix.ENOSPC
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if replace {
		unix.Close(old)
	}
	if k.fds == nil {
		k.fds = make(map[keptName]int)
	}
	k.fds[at] = dup
	return nil
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

// drop closes what is kept, if anything is.
func (k *keptFiles) drop(runtime, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := keptName{runtime, name}
	if fd, ok := k.fds[at]; ok {
		unix.Close(fd)
		delete(k.fds, at)
	}
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

// close closes everything.
func (k *keptFiles) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, fd := range k.fds {
		unix.Close(fd)
	}
	k.fds = nil
}

// take gives up everything to the caller.
func (k *keptFiles) take() []keptHandover {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []keptHandover
	for at, fd := range k.fds {
		all = append(all, keptHandover{Runtime: at.runtime, Name: at.name, File: fd})
	}
	k.fds = nil
	return all
}

// put takes what take gave.
func (k *keptFiles) put(all []keptHandover) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fds = make(map[keptName]int, len(all))
	for _, f := range all {
		k.fds[keptName{f.Runtime, f.Name}] = f.File
	}
}
