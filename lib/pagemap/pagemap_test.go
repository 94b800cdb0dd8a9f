// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestEntry(t *testing.T) {
	for _, tt := range []struct {
		e     Entry
		state State
		pfn   uint64
		known bool
	}{
		{0, Absent, 0, false},
		{bitPresent | 0x12345, Present, 0x12345, true},
		{bitPresent | bitFile | bitExclusive | bitSoftDirty | frameMask, Present, frameMask, true},
		{bitPresent, Present, 0, false}, // hidden
		{bitSwapped | 7<<swapOffsetBit | 2, Swapped, 0, false},
		{bitSwapped | 7<<swapOffsetBit | 26, Special, 0, false},
		{bitSwapped | markerSwapType, Special, 0, false},
		{bitGuard, Guard, 0, false},
		{bitGuard | bitSwapped | markerSwapType, Guard, 0, false}, // how the kernel keeps them
	} {
		if got := tt.e.State(); got != tt.state {
			t.Errorf("%#x is %v, want %v", uint64(tt.e), got, tt.state)
		}
		if pfn, known := tt.e.PFN(); pfn != tt.pfn || known != tt.known {
			t.Errorf("%#x has frame %#x, %t, want %#x, %t", uint64(tt.e), pfn, known, tt.pfn, tt.known)
		}
	}
	if area, offset := Entry(bitSwapped | 7<<swapOffsetBit | 2).Swap(); area != 2 || offset != 7 {
		t.Errorf("swap area %d, offset %d, want 2, 7", area, offset)
	}
	a := Entry(bitPresent | bitSoftDirty | 5)
	if !a.same(bitPresent|bitExclusive|5) || a.same(bitPresent|6) || a.same(bitSwapped|5) {
		t.Error("an entry is the same where only accounting differs, and nowhere else")
	}
}

func TestFlagsString(t *testing.T) {
	for f, want := range map[Flags]string{
		0: "", FlagZero: "zero_page", FlagAnon | FlagTHP | FlagCompoundTail: "anon,compound_tail,thp",
		1<<32 | 1: "locked,reserved", 1<<63 | 1<<50: "bit50,bit63",
	} {
		if got := f.String(); got != want {
			t.Errorf("%#x is %q, want %q", uint64(f), got, want)
		}
	}
}

func TestParseVMA(t *testing.T) {
	for line, want := range map[string]VMA{
		"55bb813e4000-55bb813e9000 r-xp 00002000 fe:00 247026                     /usr/bin/cat": {
			Start: 0x55bb813e4000, End: 0x55bb813e9000, Perms: "r-xp", Offset: 0x2000, Major: 0xfe, Inode: 247026, Name: "/usr/bin/cat"},
		"7ffc0000-7ffd0000 rw-p 00000000 00:00 0 ": {Start: 0x7ffc0000, End: 0x7ffd0000, Perms: "rw-p"},
		"7ffc0000-7ffd0000 ---s 10000000000 103:0a 18446744073709551615 /a b \\x\\012c (deleted)": {
			Start: 0x7ffc0000, End: 0x7ffd0000, Perms: "---s", Offset: 1 << 40, Major: 0x103, Minor: 10, Inode: 1<<64 - 1, Name: "/a b \\x\nc (deleted)"},
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]": {
			Start: 0xffffffffff600000, End: 0xffffffffff601000, Perms: "--xp", Name: "[vsyscall]"},
	} {
		got, err := parseVMA(line)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{
		"", "x", "1000-2000", "1000-2000 rw-p", "2000-1000 rw-p 0 00:00 0", "1000-1000 rw-p 0 00:00 0", "1001-2000 rw-p 0 00:00 0",
		"1000-2001 rw-p 0 00:00 0", "+1000-2000 rw-p 0 00:00 0", "0x1000-2000 rw-p 0 00:00 0", "1000-2000 rw-pp 0 00:00 0",
		"1000-2000 rwzp 0 00:00 0", "1000-2000 rw-p z 00:00 0", "1000-2000 rw-p 0 0000 0", "1000-2000 rw-p 0 00:100000000 0",
		"1000-2000 rw-p 0 00:00 -1", "1000-10000000000000000 rw-p 0 00:00 0",
	} {
		if v, err := parseVMA(line); err == nil {
			t.Errorf("%q is taken as %+v", line, v)
		}
	}
}

// TestReadVMAs: mappings that a reader is told twice, since they grew while it
// read, count once.
func TestReadVMAs(t *testing.T) {
	const text = "1000-2000 rw-p 00000000 00:00 0 \n" +
		"4000-6000 rw-p 00000000 00:00 0 [stack]\n" +
		"3000-6000 rw-p 00000000 00:00 0 [stack]\n" +
		"7000-8000 rw-p 00000000 00:00 0 \n"
	var starts []uint64
	if err := readVMAs(strings.NewReader(text), func(v VMA) bool {
		starts = append(starts, v.Start)
		return true
	}); err != nil || !reflect.DeepEqual(starts, []uint64{0x1000, 0x4000, 0x7000}) {
		t.Errorf("mappings at %#x: %v", starts, err)
	}
	calls := 0
	if err := readVMAs(strings.NewReader(text), func(VMA) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%d calls after false: %v", calls, err)
	}
	if err := readVMAs(strings.NewReader(text+"garbage\n"), func(VMA) bool { return true }); err == nil {
		t.Error("garbage is taken")
	}
}

const smaps = `1000-2000 r--p 00000000 fe:00 7                     /a: b-c
Size:                  4 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
VmFlags: rd mr mw me 
200000-600000 rw-s 00000000 00:0f 8                     /dev/hugepages/x
Size:               4096 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
`

func TestReadPageSize(t *testing.T) {
	for start, want := range map[uint64]uint64{0x1000: 4 << 10, 0x200000: 2 << 20, 0x3000: 0} {
		if got, err := readPageSize(strings.NewReader(smaps), start); err != nil || got != want {
			t.Errorf("page size at %#x is %d, %v, want %d", start, got, err, want)
		}
	}
	for _, bad := range []string{"many kB", "4", "-4 kB", "18014398509481984 kB"} {
		text := strings.ReplaceAll(smaps, "2048 kB", bad)
		if got, err := readPageSize(strings.NewReader(text), 0x200000); err == nil {
			t.Errorf("page size %q is taken as %d", bad, got)
		}
	}
}

// TestCounter: runs go on over the pieces of a walk, and end at every gap in
// either address.
func TestCounter(t *testing.T) {
	var runs []Run
	c := counter{run: func(r Run) error { runs = append(runs, r); return nil }}
	page := func(pfn uint64) Entry { return Entry(bitPresent | pfn) }
	for _, piece := range []struct {
		page    uint64
		entries []Entry
	}{
		{10, []Entry{page(100), page(101) | bitFile}},
		{12, []Entry{page(102) | bitExclusive, page(104), 0, page(106)}},
		{20, []Entry{page(107), bitSwapped | 1, page(108), bitPresent, page(200), bitSwapped | 30, page(201)}},
	} {
		if err := c.count(piece.page*pageSize, piece.entries); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.end(); err != nil {
		t.Fatal(err)
	}
	run := func(page, pfn, n uint64) Run { return Run{page * pageSize, pfn * pageSize, n * pageSize} }
	want := []Run{run(10, 100, 3), run(13, 104, 1), run(15, 106, 1), run(20, 107, 1), run(22, 108, 1), run(24, 200, 1), run(26, 201, 1)}
	if !reflect.DeepEqual(runs, want) {
		t.Errorf("runs\n%v, want\n%v", runs, want)
	}
	wantSum := Usage{
		Present: 10 * pageSize, Swapped: pageSize, Special: pageSize, File: pageSize, Exclusive: pageSize, Hidden: pageSize,
		Runs: 7, Longest: 3 * pageSize,
	}
	if c.sum != wantSum {
		t.Errorf("sum %+v, want %+v", c.sum, wantSum)
	}
}

// fakePools makes a sysfs with pools of two sizes on two nodes.
func fakePools(t *testing.T) string {
	t.Helper()
	sys := t.TempDir()
	put := func(dir, name, value string) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, pool := range []struct{ dir, total, free string }{
		{filepath.Join(machinePools(sys), "hugepages-1048576kB"), "0", "0"},
		{filepath.Join(machinePools(sys), "hugepages-2048kB"), "8", "5"},
		{filepath.Join(nodePools(sys, 0), "hugepages-2048kB"), "6", "4"},
		{filepath.Join(nodePools(sys, 10), "hugepages-2048kB"), "2", "1"},
	} {
		put(pool.dir, "nr_hugepages", pool.total)
		put(pool.dir, "free_hugepages", pool.free)
		put(pool.dir, "surplus_hugepages", "1")
		put(pool.dir, "resv_hugepages", "2")
	}
	return sys
}

func TestPools(t *testing.T) {
	sys := fakePools(t)
	got, err := Pools(sys)
	want := []Pool{
		{PageSize: 2 << 20, Node: -1, Total: 8, Free: 5, Surplus: 1, Promised: 2},
		{PageSize: 1 << 30, Node: -1, Surplus: 1, Promised: 2},
		{PageSize: 2 << 20, Node: 0, Total: 6, Free: 4, Surplus: 1},
		{PageSize: 2 << 20, Node: 10, Total: 2, Free: 1, Surplus: 1},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("pools %+v, %v, want %+v", got, err, want)
	}
	if n, err := Reserve(sys, 2<<20, 10, 7); n != 7 || err != nil {
		t.Errorf("reserved %d, %v", n, err)
	}
	if b, _ := os.ReadFile(filepath.Join(nodePools(sys, 10), "hugepages-2048kB/nr_hugepages")); !strings.HasPrefix(string(b), "7") {
		t.Errorf("nr_hugepages is %q", b)
	}
	if _, err := Reserve(sys, 4<<20, -1, 7); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pages of a size that is not there: %v", err)
	}
	if _, err := Pools(t.TempDir()); err == nil {
		t.Error("no error without huge pages")
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(smaps)
	f.Add("55bb813e4000-55bb813e9000 r-xp 00002000 fe:00 247026                     /usr/bin/cat\n")
	f.Fuzz(func(t *testing.T, text string) {
		before := uint64(0)
		_ = readVMAs(strings.NewReader(text), func(v VMA) bool {
			if v.Start < before || v.End <= v.Start || v.Start%pageSize != 0 || v.End%pageSize != 0 {
				t.Fatalf("mapping %+v after %#x", v, before)
			}
			before = v.End
			return true
		})
		_, _ = readPageSize(strings.NewReader(text), 0x1000)
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(uint64(bitPresent|5), uint64(bitPresent|6), uint64(bitSwapped))
	f.Fuzz(func(t *testing.T, a, b, c uint64) {
		entries := []Entry{Entry(a), Entry(b), Entry(c)}
		var inRuns uint64
		n := counter{run: func(r Run) error {
			inRuns += r.Size
			if r.Size == 0 || r.Size%pageSize != 0 {
				t.Fatalf("run %+v", r)
			}
			return nil
		}}
		if err := n.count(0, entries); err != nil {
			t.Fatal(err)
		}
		if err := n.end(); err != nil {
			t.Fatal(err)
		}
		if n.sum.Present != inRuns+n.sum.Hidden || n.sum.Longest > inRuns || n.sum.Present+n.sum.Swapped+n.sum.Special > 3*pageSize {
			t.Fatalf("%#x: %+v with runs of %d bytes", entries, n.sum, inRuns)
		}
	})
}
