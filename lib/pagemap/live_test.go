// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// self opens the test's own address space, in the ways a kernel may offer.
func self(t *testing.T, old bool) *Process {
	t.Helper()
	p, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p.noQuery, p.noScan = old, old
	t.Cleanup(func() { p.Close() })
	return p
}

// frames opens the kernel's tables where the test may.
func frames(t *testing.T) *Frames {
	t.Helper()
	f, err := OpenFrames()
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("page frame numbers are for root:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mapMemory maps memory for the test.
func mapMemory(t *testing.T, fd int, size uint64, prot, flags int) []byte {
	t.Helper()
	b, err := unix.Mmap(fd, 0, int(size), prot, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

const (
	readWrite = unix.PROT_READ | unix.PROT_WRITE
	anonymous = unix.MAP_PRIVATE | unix.MAP_ANON
)

// both runs a test with the kernel's new calls and without.
func both(t *testing.T, f func(t *testing.T, p *Process)) {
	for name, old := range map[string]bool{"ioctls": false, "files": true} {
		t.Run(name, func(t *testing.T) { f(t, self(t, old)) })
	}
}

// TestLookup looks at memory of every kind of which the truth is known.
func TestLookup(t *testing.T) {
	both(t, func(t *testing.T, p *Process) {
		k := frames(t)
		look := func(b []byte, page int) Page {
			t.Helper()
			got, err := p.Lookup(addrOf(b)+uint64(page)*pageSize+8, k)
			if err != nil {
				t.Fatal(err)
			}
			if got.State == Present && (!got.HasPhys || !got.HasFlags || got.Phys%pageSize != 8) {
				t.Fatalf("present, but %+v", got)
			}
			return got
		}

		b := mapMemory(t, -1, 8*pageSize, readWrite, anonymous)
		if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil {
			t.Fatal(err)
		}
		b[0] = 1
		if got := look(b, 0); got.State != Present || got.Size != pageSize || got.Flags&FlagAnon == 0 || got.Zero || got.MapCount != 1 || got.VMA.Perms != "rw-p" {
			t.Errorf("a page that was written: %+v, flags %v", got, got.Flags)
		}
		if got := look(b, 1); got.State != Absent || got.Size != 0 || got.HasPhys {
			t.Errorf("a page that was not touched: %+v", got)
		}
		if _ = b[2*pageSize]; b[2*pageSize] != 0 {
			t.Error("new memory is not zero")
		}
		if got := look(b, 2); got.State != Present || !got.Zero {
			t.Errorf("a page that was only read: %+v, flags %v", got, got.Flags)
		}

		none := mapMemory(t, -1, pageSize, unix.PROT_NONE, anonymous)
		if got := look(none, 0); got.State != Absent || got.VMA.Perms != "---p" {
			t.Errorf("a page without permissions: %+v", got)
		}
		if got, err := p.Lookup(0, k); err != nil || got.State != Unmapped {
			t.Errorf("address 0: %+v, %v", got, err)
		}
		if got, err := p.Lookup(1<<63, k); err != nil || got.State != Unmapped {
			t.Errorf("an address of the kernel: %+v, %v", got, err)
		}

		// One page of a shared file, twice.
		fd, err := unix.MemfdCreate("pagemap-test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, int64(2*pageSize)); err != nil {
			t.Fatal(err)
		}
		one := mapMemory(t, fd, 2*pageSize, readWrite, unix.MAP_SHARED)
		two := mapMemory(t, fd, 2*pageSize, readWrite, unix.MAP_SHARED)
		one[pageSize], two[pageSize] = 1, 2
		x, y := look(one, 1), look(two, 1)
		if x.Phys != y.Phys || !x.Entry.File() || !x.VMA.Shared() || x.VMA.Inode == 0 || x.MapCount != 2 || x.Entry.Exclusive() {
			t.Errorf("a shared page is\n%+v and\n%+v", x, y)
		}

		// A private mapping has the file's page until it is written.
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, make([]byte, 2*pageSize), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		shared := mapMemory(t, int(file.Fd()), pageSize, readWrite, unix.MAP_SHARED)
		private := mapMemory(t, int(file.Fd()), pageSize, readWrite, unix.MAP_PRIVATE)
		if shared[0]+private[0] != 0 {
			t.Error("the file is not zero")
		}
		if x, y := look(shared, 0), look(private, 0); x.Phys != y.Phys || !y.Entry.File() || y.VMA.Name != path {
			t.Errorf("before the write\n%+v and\n%+v", x, y)
		}
		private[0] = 1
		if x, y := look(shared, 0), look(private, 0); x.Phys == y.Phys || y.Entry.File() || y.Flags&FlagAnon == 0 {
			t.Errorf("after the write\n%+v and\n%+v", x, y)
		}
	})
}

// TestLookupTHP: a part of a transparent huge page says so.
func TestLookupTHP(t *testing.T) {
	k := frames(t)
	p := self(t, false)
	huge := hugeSize()
	b := mapMemory(t, -1, 2*huge, readWrite, anonymous)
	if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
		t.Skip("no transparent huge pages:", err)
	}
	at := (huge - addrOf(b)%huge) % huge
	b[at] = 1
	got, err := p.Lookup(addrOf(b)+at+5*pageSize, k)
	if err != nil {
		t.Fatal(err)
	}
	if p.noScan {
		t.Skip("this kernel does not tell how a page is mapped")
	}
	if got.Flags&FlagTHP == 0 {
		t.Skip("the kernel gave no huge page")
	}
	if got.Size != huge || got.Phys%huge != 5*pageSize {
		t.Errorf("a part of a huge page: %+v, flags %v", got, got.Flags)
	}
	u, err := p.Usage(addrOf(b)+at, addrOf(b)+at+huge, nil)
	if want := (Usage{Present: huge, Exclusive: huge, Runs: 1, Longest: huge}); err != nil || u != want {
		t.Errorf("usage %+v, %v, want %+v", u, err, want)
	}
}

// TestLookupHugetlb: so does one of the kernel's pools.
func TestLookupHugetlb(t *testing.T) {
	k := frames(t)
	const size = 2 << 20
	reserve(t, size, 2)
	b, err := NewBuffer(2*size, size)
	if errors.Is(err, unix.ENOMEM) {
		t.Skip("no huge pages:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	both(t, func(t *testing.T, p *Process) {
		got, err := p.Lookup(addrOf(b.Bytes)+size+3*pageSize+1, k)
		if err != nil || got.Size != size || got.Flags&FlagHuge == 0 || got.Phys%size != 3*pageSize+1 {
			t.Errorf("a part of a page of %d: %+v, flags %v, %v", size, got, got.Flags, err)
		}
	})
	u, err := b.Runs(func(r Run) error {
		if r.Size%size != 0 || r.Phys%size != 0 {
			t.Errorf("run %+v of pages of %d", r, size)
		}
		return nil
	})
	if err != nil || u.Present != 2*size {
		t.Errorf("%+v, %v", u, err)
	}
	if err := b.Verify(nil); err != nil {
		t.Error(err)
	}
}

// reserve has the kernel keep as many huge pages while the test runs.
func reserve(t *testing.T, size, pages uint64) {
	t.Helper()
	all, err := Pools(Sysfs)
	if err != nil {
		t.Skip(err)
	}
	i := slices.IndexFunc(all, func(p Pool) bool { return p.PageSize == size && p.Node < 0 })
	if i < 0 {
		t.Skip("no pages of this size")
	}
	if all[i].Free-all[i].Promised >= pages {
		return
	}
	if got, err := Reserve(Sysfs, size, -1, all[i].Total+pages); err != nil || got < all[i].Total+pages {
		t.Skipf("no huge pages: %d, %v", got, err)
	}
	t.Cleanup(func() {
		if _, err := Reserve(Sysfs, size, -1, all[i].Total); err != nil {
			t.Error(err)
		}
	})
}

// TestBuffer: without huge pages, base pages; every one of them is there.
func TestBuffer(t *testing.T) {
	b, err := NewBuffer(64*pageSize+1, pageSize)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOMEM) {
		t.Skip("no memory may be pinned:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var size uint64
	u, err := b.Runs(func(r Run) error { size += r.Size; return nil })
	if err != nil || uint64(len(b.Bytes)) != 65*pageSize || u.Present != 65*pageSize || size+u.Hidden != u.Present {
		t.Errorf("%d bytes: %+v, %v, runs of %d", len(b.Bytes), u, err, size)
	}
	if err := b.Verify(nil); err != nil {
		t.Error(err)
	}
	for _, bad := range [][2]uint64{{0, 0}, {1 << 50, 0}, {pageSize, 3}, {pageSize, pageSize / 2}, {pageSize, 3 * pageSize}} {
		if b, err := NewBuffer(bad[0], bad[1]); err == nil {
			t.Errorf("a buffer of %d bytes of pages of %d", bad[0], bad[1])
			b.Close()
		}
	}
}

// TestWalk: what Walk and Usage tell of a range with holes is what the entries
// say, one by one.
func TestWalk(t *testing.T) {
	both(t, func(t *testing.T, p *Process) {
		const pages = 3 * walkEntries / 2
		b := mapMemory(t, -1, pages*pageSize, readWrite, anonymous)
		if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil {
			t.Fatal(err)
		}
		touched := map[uint64]bool{}
		for n := uint64(0); n < pages; n += n/7 + 1 {
			b[n*pageSize] = 1
			touched[addrOf(b)+n*pageSize] = true
		}
		seen := 0
		last := uint64(0)
		start, end := addrOf(b), addrOf(b)+uint64(len(b))
		if err := p.Walk(start, end, func(addr uint64, entries []Entry) error {
			if addr < last {
				t.Errorf("%#x after %#x", addr, last)
			}
			for i, e := range entries {
				at := addr + uint64(i)*pageSize
				if e.Present() != touched[at] {
					t.Errorf("page %#x is %v", at, e.State())
				}
				if e.Present() {
					seen++
				}
			}
			last = addr + uint64(len(entries))*pageSize
			return nil
		}); err != nil || seen != len(touched) {
			t.Errorf("%d pages, want %d: %v", seen, len(touched), err)
		}
		u, err := p.Usage(start, end, nil)
		if err != nil || u.Present != uint64(len(touched))*pageSize || u.Swapped+u.Special+u.File != 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		stop := errors.New("stop")
		if err := p.Walk(start, end, func(uint64, []Entry) error { return stop }); err != stop {
			t.Errorf("an error of the callback became %v", err)
		}
	})
}

// TestPhysical reads memory at the physical address that Lookup tells, by way
// of the kernel's own mapping of it.
func TestPhysical(t *testing.T) {
	k := frames(t)
	core, err := os.Open("/proc/kcore")
	if err != nil {
		t.Skip("the kernel does not show its memory:", err)
	}
	defer core.Close()
	image, err := elf.NewFile(core)
	if err != nil {
		t.Skip("the kernel does not show its memory:", err)
	}
	p := self(t, false)
	b := mapMemory(t, -1, 8*pageSize, readWrite, anonymous)
	for n := range 8 {
		at := b[uint64(n)*pageSize:][:pageSize]
		for i := range at {
			at[i] = byte(i*(n+3) + i>>8)
		}
		page, err := p.Lookup(addrOf(at), k)
		if err != nil || !page.HasPhys {
			t.Fatalf("%+v, %v", page, err)
		}
		got := make([]byte, pageSize)
		i := slices.IndexFunc(image.Progs, func(s *elf.Prog) bool {
			const notMemory = 1<<64 - 1
			return s.Type == elf.PT_LOAD && s.Paddr != notMemory && page.Phys-s.Paddr < s.Memsz
		})
		if i < 0 {
			t.Skipf("the kernel does not show physical address %#x", page.Phys)
		}
		if _, err := image.Progs[i].ReadAt(got, int64(page.Phys-image.Progs[i].Paddr)); err != nil {
			t.Skip("the kernel does not show its memory:", err)
		}
		if !bytes.Equal(got, at) {
			t.Errorf("at physical address %#x is %.16x..., the page has %.16x...", page.Phys, got, at)
		}
	}
}

// TestSwapped needs a machine that swaps, as the guest tests have one.
func TestSwapped(t *testing.T) {
	if b, err := os.ReadFile("/proc/swaps"); err != nil || bytes.Count(b, []byte("\n")) < 2 {
		t.Skip("this machine does not swap")
	}
	const pages = 64
	b := mapMemory(t, -1, pages*pageSize, readWrite, anonymous)
	for n := range uint64(pages) {
		b[n*pageSize] = byte(n + 1)
	}
	both(t, func(t *testing.T, p *Process) {
		k := frames(t)
		swapped := func() (u Usage) {
			t.Helper()
			if err := unix.Madvise(b, unix.MADV_PAGEOUT); err != nil {
				t.Fatal(err)
			}
			u, err := p.Usage(addrOf(b), addrOf(b)+uint64(len(b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		for end := time.Now().Add(30 * time.Second); swapped().Swapped < pages/2*pageSize; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the kernel does not swap: %+v", swapped())
			}
		}
		out := 0
		for n := range uint64(pages) {
			addr := addrOf(b) + n*pageSize
			page, err := p.Lookup(addr, k)
			if err != nil {
				t.Fatal(err)
			}
			if page.State != Swapped {
				continue
			}
			out++
			if page.HasPhys || page.Size != 0 || page.Entry.File() {
				t.Errorf("a page that is swapped out: %+v", page)
			}
			if b[n*pageSize] != byte(n+1) {
				t.Errorf("page %d has changed", n)
			}
			if page, err = p.Lookup(addr, k); err != nil || page.State != Present {
				t.Errorf("a page that was swapped in: %+v, %v", page, err)
			}
		}
		if out == 0 {
			t.Error("no page was found swapped out")
		}
	})
}

// child is another process whose memory is looked at, and the first line it prints.
func child(t *testing.T, script string) (cmd *exec.Cmd, first string, out *bufio.Reader, proceed func()) {
	t.Helper()
	cmd = exec.Command("sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	out = bufio.NewReader(pipe)
	if first, err = out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(first), out, func() { in.Write([]byte("go\n")) }
}

// TestFork: a process and the one it has forked have the same pages until one
// of them writes.
func TestFork(t *testing.T) {
	k := frames(t)
	cmd, first, _, _ := child(t, "exec 5<&0; a=$(head -c 300000 /dev/zero | tr '\\0' a); (read x <&5; :) & echo $!; wait")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	parent, err1 := Open(cmd.Process.Pid)
	forked, err2 := Open(pid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	defer forked.Close()
	shared, own := 0, 0
	err = parent.VMAs(func(v VMA) bool {
		if v.Perms != "rw-p" {
			return true
		}
		for addr := v.Start; addr < v.End; addr += pageSize {
			x, err1 := parent.Lookup(addr, k)
			y, err2 := forked.Lookup(addr, k)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			switch {
			case x.State != Present || y.State != Present || x.Zero:
			case x.Phys != y.Phys:
				own++
			default:
				shared++
				if x.Entry.Exclusive() || x.MapCount < 2 {
					t.Errorf("a page of two: %+v", x)
				}
			}
		}
		return true
	})
	if err != nil || shared < 20 || own == 0 {
		t.Errorf("%d shared pages, %d of their own: %v", shared, own, err)
	}
}

// aMapping returns the first mapping of a process.
func aMapping(t *testing.T, p *Process) (first VMA) {
	t.Helper()
	if err := p.VMAs(func(v VMA) bool { first = v; return false }); err != nil {
		t.Fatal(err)
	}
	return first
}

// TestGone: a process that ends, or starts another program, is no address space
// any more; nothing is told of what has its number next.
func TestGone(t *testing.T) {
	for name, script := range map[string]string{
		"ended":    "echo ready; read x; exit 0",
		"exec":     "echo ready; read x; exec sh -c 'echo again; read y'",
		"replaced": "echo ready; read x; exec sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			cmd, _, out, proceed := child(t, script)
			p, err := Open(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			first := aMapping(t, p)
			if page, err := p.Lookup(first.Start, nil); err != nil || page.State == Unmapped {
				t.Fatalf("%+v, %v", page, err)
			}
			proceed()
			switch name {
			case "ended":
				cmd.Wait()
			case "exec":
				if _, err := out.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			case "replaced":
				for {
					if n, _ := p.pagemap.ReadAt(make([]byte, entrySize), 0); n == 0 {
						break
					}
					time.Sleep(time.Millisecond)
				}
			}
			if page, err := p.Lookup(first.Start, nil); !errors.Is(err, ErrGone) {
				t.Errorf("lookup: %+v, %v", page, err)
			}
			if err := p.VMAs(func(VMA) bool { return true }); !errors.Is(err, ErrGone) {
				t.Errorf("mappings: %v", err)
			}
			if u, err := p.Usage(first.Start, first.End, nil); !errors.Is(err, ErrGone) {
				t.Errorf("usage: %+v, %v", u, err)
			}
			p.noScan, p.noQuery = true, true
			if u, err := p.Usage(first.Start, first.End, nil); !errors.Is(err, ErrGone) {
				t.Errorf("usage without scan: %+v, %v", u, err)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	cmd, _, _, proceed := child(t, "echo ready; read x")
	proceed()
	cmd.Wait()
	for pid, want := range map[int]error{-1: ErrNoProcess, 0: ErrNoProcess, 1 << 30: ErrNoProcess, cmd.Process.Pid: ErrNoProcess} {
		if p, err := Open(pid); !errors.Is(err, want) {
			t.Errorf("process %d: %v", pid, err)
			p.Close()
		}
	}
	if b, err := os.ReadFile("/proc/2/comm"); err == nil && string(b) == "kthreadd\n" && os.Getuid() == 0 {
		if _, err := Open(2); !errors.Is(err, ErrNoMemory) {
			t.Errorf("a kernel thread: %v", err)
		}
	}
}

// TestMoving: a page that is replaced all the time is told as it was at one
// moment, or not at all.
func TestMoving(t *testing.T) {
	k := frames(t)
	p := self(t, false)
	b := mapMemory(t, -1, pageSize, readWrite, anonymous)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			b[0] = 1
			unix.Madvise(b, unix.MADV_DONTNEED)
		}
	}()
	for range 3000 {
		page, err := p.Lookup(addrOf(b), k)
		switch {
		case errors.Is(err, ErrMoving):
		case err != nil:
			t.Fatal(err)
		case page.State == Present && page.Flags&(FlagBuddy|FlagSlab) != 0:
			t.Fatalf("a page that the process has is free: %+v, flags %v", page, page.Flags)
		case page.State != Present && page.State != Absent:
			t.Fatalf("%+v", page)
		}
	}
	close(stop)
	<-done
}

func BenchmarkLookup(b *testing.B) {
	p, err := Open(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	k, err := OpenFrames()
	if err != nil {
		b.Skip(err)
	}
	defer k.Close()
	data := make([]byte, 1<<20)
	for b.Loop() {
		if _, err := p.Lookup(addrOf(data), k); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUsage reports pages in a second over a range that is all there.
func BenchmarkUsage(b *testing.B) {
	p, err := Open(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	data, err := unix.Mmap(-1, 0, 256<<20, readWrite, anonymous|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(data)
	start := addrOf(data)
	for b.Loop() {
		if _, err := p.Usage(start, start+uint64(len(data)), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(data))/float64(pageSize)*float64(b.N)/b.Elapsed().Seconds(), "pages/s")
}
