// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/pagemap"
)

// watched is memory of the test under a watcher, all written.
type watched struct {
	*watcher
	t       *testing.T
	memory  []byte
	pages   []seen         // of memory, at the last look
	changes map[string]int // what was told of memory
}

func newWatched(t *testing.T, size int) *watched {
	t.Helper()
	frames, err := openFrames()
	if err != nil {
		t.Fatal(err)
	}
	if frames == nil {
		t.Skip("page frame numbers are for root")
	}
	t.Cleanup(func() { frames.Close() })
	p, err := pagemap.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	w := &watched{t: t, memory: b, changes: make(map[string]int)}
	w.watcher = &watcher{process: p, frames: frames, print: func(c change) error { w.changes[c.Change]++; return nil }}
	return w
}

// see looks once more, at the memory alone: the rest of the test moves as it
// likes.
func (w *watched) see() {
	w.t.Helper()
	var now []seen
	start := addrOf(w.memory)
	err := w.process.Walk(start, start+uint64(len(w.memory)), func(addr uint64, entries []pagemap.Entry) error {
		now = appendSeen(now, addr, entries)
		return nil
	})
	if err == nil {
		err = w.compare(w.pages, now, time.Now())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.pages = now
}

// until makes something happen again and again until it was told as often as
// want.
func (w *watched) until(want string, least int, f func() error) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); w.changes[want] < least; time.Sleep(20 * time.Millisecond) {
		if err := f(); err != nil {
			w.t.Fatal(err)
		}
		w.see()
		if time.Now().After(end) {
			w.t.Fatalf("changes %v, want %d %s", w.changes, least, want)
		}
	}
}

// TestWatchMoved: pages that are collapsed into a huge one have moved there.
func TestWatchMoved(t *testing.T) {
	const huge = 2 << 20
	w := newWatched(t, 2*huge)
	if err := unix.Madvise(w.memory, unix.MADV_NOHUGEPAGE); err != nil {
		t.Skip("no transparent huge pages:", err)
	}
	for i := 0; i < len(w.memory); i += int(pagemap.PageSize()) {
		w.memory[i] = 1
	}
	w.see()
	if err := unix.Madvise(w.memory, unix.MADV_HUGEPAGE); err != nil {
		t.Fatal(err)
	}
	if err := unix.Madvise(w.memory, unix.MADV_COLLAPSE); err != nil {
		t.Skip("the kernel makes no huge page of them:", err)
	}
	w.see()
	if w.changes[changeMoved] < huge/int(pagemap.PageSize())/2 || len(w.changes) != 1 {
		t.Errorf("changes %v", w.changes)
	}
}

// TestWatchSwapped needs a machine that swaps, as the guest tests have one.
func TestWatchSwapped(t *testing.T) {
	if b, err := os.ReadFile("/proc/swaps"); err != nil || bytes.Count(b, []byte("\n")) < 2 {
		t.Skip("this machine does not swap")
	}
	w := newWatched(t, 64*int(pagemap.PageSize()))
	for i := range w.memory {
		w.memory[i] = byte(i / 7)
	}
	w.see()
	w.until(changeOut, 32, func() error { return unix.Madvise(w.memory, unix.MADV_PAGEOUT) })
	for i := range w.memory {
		if w.memory[i] != byte(i/7) {
			t.Fatalf("byte %d has changed", i)
		}
	}
	w.see()
	if w.changes[changeIn] < 32 {
		t.Errorf("changes %v", w.changes)
	}
}

// TestWatchMerged needs a machine on which KSM runs, as the guest tests have
// one.
func TestWatchMerged(t *testing.T) {
	if b, err := os.ReadFile("/sys/kernel/mm/ksm/run"); err != nil || string(b) != "1\n" {
		t.Skip("KSM does not run")
	}
	w := newWatched(t, 64*int(pagemap.PageSize()))
	for i := range w.memory {
		w.memory[i] = byte(i%int(pagemap.PageSize())/5 + 100)
	}
	if err := unix.Madvise(w.memory, unix.MADV_MERGEABLE); err != nil {
		t.Skip("no KSM:", err)
	}
	w.see()
	w.until(changeMerged, 32, func() error { return nil })
	for i := 0; i < len(w.memory); i += int(pagemap.PageSize()) {
		w.memory[i] = byte(i / int(pagemap.PageSize())) // all different: they stay apart
	}
	w.see()
	if w.changes[changeCopied] < 32 {
		t.Errorf("changes %v", w.changes)
	}
}
