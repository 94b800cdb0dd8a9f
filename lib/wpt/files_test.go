// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeStore notes the names of what is kept.
type fakeStore struct {
	names map[string]bool
	calls int
	err   error
}

func (s *fakeStore) Put(name string, fd int) error {
	s.calls++
	if s.err == nil {
		s.names[name] = true
	}
	return s.err
}

func (s *fakeStore) Remove(name string) error {
	s.calls++
	delete(s.names, name)
	return s.err
}

func (s *fakeStore) kept() []string { return slices.Sorted(maps.Keys(s.names)) }

// makeFile makes a memfd.
func makeFile(t *testing.T) int {
	t.Helper()
	fd, err := unix.MemfdCreate("file", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// One file is kept once, however many descriptors there are, as long as there is
// one. Numbers are used again.
func TestFilesIdentity(t *testing.T) {
	checkLeaks(t)
	store := &fakeStore{names: make(map[string]bool)}
	f := newFiles(store, testLogger(t))
	a := makeFile(t)
	b, err := unix.FcntlInt(uintptr(a), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	other, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	same, err := unix.FcntlInt(uintptr(event), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{a, b, event, other, same} {
		f.keep(fd)
	}
	if f.id(a) != f.id(b) || f.id(event) != f.id(same) || f.id(event) == f.id(other) || f.id(a) == f.id(event) {
		t.Errorf("numbers %v %v, eventfds %v %v, another %v", f.id(a), f.id(b), f.id(event), f.id(same), f.id(other))
	}
	if got := store.kept(); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("kept: %v", got)
	}
	f.close(a)
	if got := store.kept(); len(got) != 3 {
		t.Errorf("kept after one of two descriptors was closed: %v", got)
	}
	f.close(b)
	f.close(b, noFD) // nothing of it is open
	if got := store.kept(); !slices.Equal(got, []string{"2", "3"}) {
		t.Errorf("kept: %v", got)
	}
	c := makeFile(t)
	f.keep(c)
	if f.id(c) != 1 {
		t.Errorf("a new file has number %v, and 1 is free", f.id(c))
	}
	f.closeAll()
	if got := store.kept(); len(got) != 0 {
		t.Errorf("kept at the end: %v", got)
	}
}

// A store that fails is not asked again.
func TestFilesStoreFails(t *testing.T) {
	checkLeaks(t)
	store := &fakeStore{names: make(map[string]bool), err: errors.New("full")}
	f := newFiles(store, testLogger(t))
	for range 3 {
		f.keep(makeFile(t))
	}
	f.closeAll()
	if store.calls != 1 {
		t.Errorf("%d calls, want 1", store.calls)
	}
}

// What is left is claimed as often as it is named; the rest is closed.
func TestFilesClaim(t *testing.T) {
	checkLeaks(t)
	store := &fakeStore{names: map[string]bool{"1": true, "z": true}}
	f := newFiles(store, testLogger(t))
	f.adopt(map[fileID]int{1: makeFile(t), 35: makeFile(t)})
	a, ok := f.claim(1)
	b, again := f.claim(1)
	if _, none := f.claim(2); !ok || !again || none || a == b || f.id(a) != 1 || f.id(b) != 1 {
		t.Errorf("claimed %d %v, %d %v", a, ok, b, again)
	}
	if n := f.sweep(); n != 1 {
		t.Errorf("%d files were closed, want 1", n)
	}
	if got := store.kept(); !slices.Equal(got, []string{"1"}) {
		t.Errorf("kept: %v", got)
	}
	f.closeAll()
	if got := store.kept(); len(got) != 0 {
		t.Errorf("kept at the end: %v", got)
	}
}

// Whoever is killed while he writes a table leaves the document before.
func TestTableTorn(t *testing.T) {
	type document struct{ N int }
	table, err := newTable()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(table.fd)
	var got document
	if _, err := openTable(table.fd, &got); !errors.Is(err, errDamaged) {
		t.Errorf("a table without a document: %v", err)
	}
	for n := range 4 {
		if err := table.write(document{n}); err != nil {
			t.Fatal(err)
		}
		if _, err := openTable(table.fd, &got); err != nil || got.N != n {
			t.Errorf("document %d: got %d, %v", n, got.N, err)
		}
	}
	// Each byte of the next one is where it may be cut.
	at := int64((table.number+1)%2) * tableSlot
	before := make([]byte, 64)
	if n, err := unix.Pread(table.fd, before, at); err != nil || n < tableHead {
		t.Fatal(n, err)
	}
	next := *table
	if err := next.write(document{1000}); err != nil {
		t.Fatal(err)
	}
	after := make([]byte, 64)
	n, err := unix.Pread(table.fd, after, at)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range n {
		torn := slices.Concat(after[:cut], before[cut:n])
		if _, err := unix.Pwrite(table.fd, torn, at); err != nil {
			t.Fatal(err)
		}
		opened, err := openTable(table.fd, &got)
		if err != nil || got.N != 3 && (got.N != 1000 || !slices.Equal(torn, after[:n])) {
			t.Errorf("cut at %d: got %+v, %v, %v", cut, got, opened, err)
		}
	}
}
