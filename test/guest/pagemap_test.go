// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/guest"
	"github.com/leapio/leapio/lib/pagemap"
)

// What leap-pagemap says of a stock kernel's memory is true: its live tests run
// in a guest that swaps to its drive, merges pages, and shows its memory in
// /proc/kcore; and a pattern that the guest puts where its own leap-pagemap
// says is found by the host, by way of leap-pagemap gpa, in QEMU's memory.
func TestPagemap(t *testing.T) {
	dir := t.TempDir()
	for name, pkg := range map[string]string{"pagemap.test": "./lib/pagemap", "watch.test": "./lib/command/pagemap"} {
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, name), pkg)
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=256M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{
		Append: "hugepages=8",
		Files: map[string]guest.File{
			"bin/pagemap.test": {Host: filepath.Join(dir, "pagemap.test"), Mode: 0o755},
			"bin/watch.test":   {Host: filepath.Join(dir, "watch.test"), Mode: 0o755},
			"bin/leap-pagemap": {Host: filepath.Join(bin, "leap-pagemap"), Mode: 0o755},
		},
		Job: `
drives 1
mkswap /dev/nvme0n1
swapon /dev/nvme0n1
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled # never, in so little memory
echo madvise >/sys/kernel/mm/transparent_hugepage/defrag
echo 1 >/sys/kernel/mm/ksm/run
echo 1000 >/sys/kernel/mm/ksm/pages_to_scan
pagemap.test -test.v >tests || { cat tests; exit 1; }
watch.test -test.v -test.run Watch >>tests || { cat tests; exit 1; }
cat tests
for name in TestLookup TestLookupTHP TestLookupHugetlb TestPhysical TestSwapped TestFork TestMoving TestWatch TestWatchMoved TestWatchSwapped TestWatchMerged; do
	grep -q "^--- PASS: $name " tests || { echo "$name did not run"; exit 1; }
done
leap-pagemap contig --size 4M --page 2M --verify --hold -o tsv >huge &
leap-pagemap contig --size 64K --page 4K --verify --hold -o tsv >small &
until test -s huge && test -s small; do sleep 0.1; done
sleep 1
sed 's/^/piece	/' huge small | while read -r line; do notify "$line"; done
notify pieces end
await done
kill %1 %2
healthy
`}})
	for {
		words := strings.Split(r.line(vm, "^piece.*$")[0], "\t")
		if len(words) != 5 {
			break // the end
		}
		r.checkPiece(words[1], words[2], words[3])
	}
	r.send(vm, "done")
	r.wait(vm, 1)
}

// checkPiece holds a piece of memory, of which the guest has said where it is
// and at which offset of the pattern, against what QEMU has in the places that
// leap-pagemap gpa tells.
func (r *rig) checkPiece(offset, phys, size string) {
	r.t.Helper()
	at, gpa, length := r.number64(offset), r.number64(phys), r.number64(size)
	line := "leap-pagemap gpa vm1 -o tsv"
	for n := uint64(0); n < length; n += pagemap.PageSize() {
		line += fmt.Sprintf(" %#x", gpa+n)
	}
	rows := strings.Split(strings.TrimSpace(r.leap(line)), "\n")
	for n := uint64(0); n < length; n += pagemap.PageSize() {
		if len(rows) < 4 {
			r.t.Fatalf("no answer for %#x", gpa+n)
		}
		pid, va := r.hostAddress(gpa+n, rows[:4])
		rows = rows[4:]
		r.checkPattern64(pid, va, int(at+n))
	}
}

// hostAddress reads, from what leap-pagemap says of an address, the process that
// has it and where.
func (r *rig) hostAddress(gpa uint64, rows []string) (pid string, va uint64) {
	r.t.Helper()
	for i, want := range []string{"region mapped", "file shared", "va mapped", "pa present"} {
		words := strings.Split(rows[i], "\t")
		if r.number64(words[0]) != gpa || words[1]+" "+words[3] != want {
			r.t.Fatalf("%#x: %q, want %s", gpa, rows, want)
		}
		if words[1] == "va" {
			pid, va = words[6], r.number64(words[2])
		}
	}
	return pid, va
}

// checkPattern64 looks for the pattern of leap-pagemap contig, from an offset
// on, in a page of a process.
func (r *rig) checkPattern64(pid string, va uint64, offset int) {
	r.t.Helper()
	memory, err := os.Open("/proc/" + pid + "/mem")
	if err != nil {
		r.t.Fatal(err)
	}
	defer memory.Close()
	page := make([]byte, pagemap.PageSize())
	if _, err := memory.ReadAt(page, int64(va)); err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(page); i += 8 {
		if got, want := binary.NativeEndian.Uint64(page[i:]), pagemap.PatternWord(offset+i); got != want {
			r.t.Fatalf("process %s has %#x at %#x, want %#x", pid, got, va+uint64(i), want)
		}
	}
}

// number64 reads a number that a command has printed.
func (r *rig) number64(s string) uint64 {
	r.t.Helper()
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}
