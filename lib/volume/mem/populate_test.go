// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// smaps returns a figure of /proc/self/smaps, in KiB, of the mapping that data begins.
func smaps(t *testing.T, data []byte, what string) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begin := fmt.Sprintf("%x-", reflect.ValueOf(data).Pointer())
	found := false
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		if strings.HasPrefix(line, begin) {
			found = true
		}
		if found && strings.HasPrefix(line, what+":") {
			if _, err := fmt.Sscanf(line[len(what)+1:], "%d kB", &n); err != nil {
				t.Fatal(line, err)
			}
			return n
		}
	}
	t.Fatalf("no %s of a mapping at %s", what, begin)
	return 0
}

// blocks returns how much memory the volume takes, in bytes.
func (m *mem) blocks(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestPopulate: with populate=on all memory is there from the beginning, also what a
// volume grows by, and what is in it stays.
func TestPopulate(t *testing.T) {
	const size, more = 8<<20 + 4096, 16 << 20
	env := volumetest.NewEnv(t, t.TempDir())
	s := spec(size, 512)
	lazy := open(t, env, s)
	if n := lazy.blocks(t); n != 0 {
		t.Errorf("without populate=on, %d bytes are there", n)
	}
	if err := lazy.Close(); err != nil {
		t.Fatal(err)
	}
	s.Options["populate"] = "on"
	m := open(t, env, s)
	if n := m.blocks(t); n < size {
		t.Errorf("%d of %d bytes are there", n, size)
	}
	copy(m.bytes()[size-5:], "hello")
	for i := 0; i < size; i += 4096 {
		m.bytes()[i] = 1 // mapped, as far as it was not
	}
	huge := smaps(t, m.bytes(), "ShmemPmdMapped") >> 11
	if t.Logf("%d pages of 2 MiB", huge); huge == 0 && canCollapse(t) {
		t.Error("no huge page, and the kernel has some")
	}
	if err := m.Extend(more); err != nil {
		t.Fatal(err)
	}
	if err := m.Reshape(volume.Shape{Size: more, Block: 512}); err != nil {
		t.Fatal(err)
	}
	if n := m.blocks(t); n < more {
		t.Errorf("grown, %d of %d bytes are there", n, more)
	}
	if got := string(m.bytes()[size-5 : size]); got != "hello" {
		t.Errorf("after growing, %q is where hello was", got)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// canCollapse reports whether the kernel makes huge pages of shared memory here.
func canCollapse(t *testing.T) bool {
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, hugePage); err != nil {
		t.Fatal(err)
	}
	data, err := mapMemory(fd, hugePage)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapMemory(data)
	data[0] = 1
	return unix.Madvise(data, unix.MADV_COLLAPSE) == nil
}

// TestPopulateEnds: who no longer waits for a large volume does not get it, and
// nothing is left of it.
func TestPopulateEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	env := volumetest.NewEnv(t, t.TempDir())
	s := spec(1<<30, 512)
	s.Options["populate"] = "on"
	if _, err := Kind.Make(ctx, env, s); !errors.Is(err, context.Canceled) {
		t.Errorf("made, with nobody waiting: %v", err)
	}
	if env.Kept() != 0 {
		t.Error("memory is left")
	}
}

// TestPopulateTooMuch: more memory than there is does not cost anybody his process,
// neither at creation nor in a volume that grows.
func TestPopulateTooMuch(t *testing.T) {
	const tooMuch = 16 << 40
	env := volumetest.NewEnv(t, t.TempDir())
	s := spec(tooMuch, 512)
	s.Options["populate"] = "on"
	if _, err := Kind.Make(t.Context(), env, s); fault.KindOf(err) != fault.Failure || !strings.Contains(err.Error(), "16 TiB") {
		t.Errorf("made: %v", err)
	}
	if env.Kept() != 0 {
		t.Error("memory is left")
	}
	s = spec(4<<20, 512)
	s.Options["populate"] = "on"
	m := open(t, env, s)
	if err := m.Extend(tooMuch); fault.KindOf(err) != fault.Failure {
		t.Errorf("grown: %v", err)
	}
	if n := m.blocks(t); n > 16<<20 {
		t.Errorf("%d bytes are taken", n)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMapMemory: mappings begin at a huge page, whatever their size, and leave no
// hole and nothing else mapped.
func TestMapMemory(t *testing.T) {
	for _, size := range []uint64{1, 512, 4096, hugePage - 512, hugePage, 3*hugePage + 4096} {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			t.Fatal(err)
		}
		data, err := mapMemory(fd, size)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		if at := reflect.ValueOf(data).Pointer(); at%hugePage != 0 || uint64(len(data)) != size {
			t.Errorf("%d bytes are mapped at %#x, %d wanted", len(data), at, size)
		}
		data[0], data[size-1] = 1, 1
		if got, want := smaps(t, data, "Size"), int(size+4095)/4096*4; got != want {
			t.Errorf("a mapping of %d bytes has %d KiB, want %d", size, got, want)
		}
		if err := unmapMemory(data); err != nil {
			t.Error(err)
		}
	}
}
