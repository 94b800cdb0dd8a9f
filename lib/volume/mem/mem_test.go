// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

var cfg = poller.Config{Name: "test", CPU: -1, Fence: -1}

func spec(size uint64, block uint32) *volume.Spec {
	return &volume.Spec{Name: "m", Kind: "mem", Options: map[string]string{"size": fmt.Sprint(size), "block": fmt.Sprint(block)}}
}

func open(t testing.TB, env volume.Env, s *volume.Spec) *mem {
	t.Helper()
	v, err := Kind.Make(t.Context(), env, s)
	if err != nil {
		t.Fatal(err)
	}
	return v.(*mem)
}

func TestSuite(t *testing.T) {
	volumetest.Suite(t, volumetest.Subject{
		Make: func(t *testing.T) func(volume.Shape) volume.Volume {
			env, reopen := volumetest.NewEnv(t, t.TempDir()), false
			return func(shape volume.Shape) volume.Volume {
				s := spec(shape.Size, shape.Block)
				s.Reopen = reopen
				v := open(t, env, s)
				reopen = true
				return v
			}
		},
		Poller: cfg,
	})
}

// The memory is kept from creation to deletion, and only for its own volume.
func TestKept(t *testing.T) {
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(1<<20, 512)
	m := open(t, env, s)
	m.bytes()[5] = 77
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}

	s.Reopen = true
	m = open(t, env, s)
	if m.bytes()[5] != 77 {
		t.Error("opened again, the volume is empty")
	}
	m.Close()

	bigger := spec(2<<20, 512)
	bigger.Reopen = true
	if _, err := Kind.Make(t.Context(), env, bigger); fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("opened with another size: %v", err)
	}

	// A new volume does not show what one of the same name has left.
	m = open(t, env, spec(1<<20, 512))
	if m.bytes()[5] != 0 {
		t.Error("a new volume has old data")
	}
	m.Close()

	for range 2 {
		if err := Kind.Delete(env, s, false); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	if n := env.Kept(); n != 0 {
		t.Errorf("%d descriptors kept after Delete, want 0", n)
	}
	// As after a restart of the machine.
	m = open(t, env, s)
	if m.bytes()[5] != 0 || env.Kept() != 2 {
		t.Error("the volume did not come back empty and kept")
	}
	m.Close()
}

// Only sealed memory is mapped: a shrinking one would kill this process.
func TestUnsealed(t *testing.T) {
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(1<<20, 512)
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := env.Keep(keptName(s), fd); err != nil {
		t.Fatal(err)
	}
	s.Reopen = true
	if _, err := Kind.Make(t.Context(), env, s); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("got %v, want an error about seals", err)
	}
}

// Memory of a version that sealed it against growing serves on, and only as
// large as it is.
func TestSealedAgainstGrowing(t *testing.T) {
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(1<<20, 512)
	m := open(t, env, s)
	if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err == nil {
		t.Error("the memory could be sealed by somebody else")
	}
	m.Close()
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(env.Drop(keptName(s)), env.Keep(keptName(s), fd)); err != nil {
		t.Fatal(err)
	}
	s.Reopen = true
	m = open(t, env, s)
	defer m.Close()
	m.bytes()[5] = 77
	if err := m.Extend(2 << 20); fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "sealed it against growing") {
		t.Errorf("Extend: %v (%v), want an unsupported fault about seals", err, fault.KindOf(err))
	}
	if err := m.Extend(1 << 20); err != nil || m.bytes()[5] != 77 || m.Info().Size != 1<<20 {
		t.Errorf("Extend to the same size: %v; %d bytes, beginning with %d", err, m.Info().Size, m.bytes()[5])
	}
}

// A volume that shrinks gives its memory up, and one that grows beside a poller
// that copies leaves it what it has mapped.
func TestReshapeMemory(t *testing.T) {
	const size = 4 << 20
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(size, 512))
	defer m.Close()
	old := m.bytes()
	for i := range old {
		old[i] = 1
	}
	if err := errors.Join(m.Reshape(volume.Shape{Size: pageSize + 512, Block: 512}), m.Trim()); err != nil {
		t.Fatal(err)
	}
	if n := pages(t, m); n != 2 || old[pageSize+511] != 1 || old[pageSize+512] != 0 {
		t.Errorf("%d pages in use, want 2; beyond the end: %d", n, old[pageSize+512])
	}
	if err := errors.Join(m.Extend(2*size), m.Reshape(volume.Shape{Size: 2 * size, Block: 512})); err != nil {
		t.Fatal(err)
	}
	m.bytes()[size-1] = 7
	if old[size-1] != 7 || len(m.maps) != 2 {
		t.Errorf("the mapping of before shows %d, want 7; %d mappings", old[size-1], len(m.maps))
	}
	if err := m.Extend(size); err != nil || len(m.maps) != 2 {
		t.Errorf("there is room: %v, %d mappings", err, len(m.maps))
	}
}

// What a change that was cut short has left is given up when the volume is
// opened again, or when it grows.
func TestReshapeCutShort(t *testing.T) {
	const size = 64 * pageSize
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(size, 512)
	m := open(t, env, s)
	fillAll := func() {
		for i := range m.bytes() {
			m.bytes()[i] = 1
		}
	}
	fillAll()
	if err := m.Reshape(volume.Shape{Size: 8 * pageSize, Block: 512}); err != nil {
		t.Fatal(err)
	}
	if err := m.Extend(size); err != nil || m.bytes()[8*pageSize-1] != 1 || m.bytes()[8*pageSize] != 0 {
		t.Errorf("grown: %v; %d and %d at the old end", err, m.bytes()[8*pageSize-1], m.bytes()[8*pageSize])
	}
	fillAll()
	m.Close()
	s = spec(8*pageSize, 512)
	s.Reopen = true
	m = open(t, env, s)
	defer m.Close()
	if n := pages(t, m); n != 8 || len(m.bytes()) != 8*pageSize {
		t.Errorf("opened again: %d pages in use, %d bytes mapped; want 8 pages", n, len(m.bytes()))
	}
}

// pages returns how much memory is in use, in pages.
func pages(t *testing.T, m *mem) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512 / pageSize
}

// Memory is taken by writes and given back, whole pages of it, in steps where
// it is much.
func TestHoles(t *testing.T) {
	const size = 4*clearStep + pageSize
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(size, 512))
	defer m.Close()
	c := volumetest.Connect(t, m, cfg)
	defer c.Close()
	if n := pages(t, m); n != 0 {
		t.Errorf("new: %d pages in use, want 0", n)
	}
	for i := range m.bytes() {
		m.bytes()[i] = 1
	}
	for _, op := range []volume.Op{volume.Discard, volume.WriteZeroes} {
		for i := range m.bytes() {
			m.bytes()[i] = 1
		}
		r := volume.Request{Op: op, Offset: 512, Length: size - 1024}
		if st := c.Do(t.Context(), &r); st != nvme.StatusSuccess {
			t.Errorf("%s: %v", op, st)
		}
		if n := pages(t, m); n != 2 {
			t.Errorf("after %s of all but two blocks: %d pages in use, want 2", op, n)
		}
		for i, v := range m.bytes() {
			if want := byte(0); v != want && i >= 512 && i < size-512 {
				t.Fatalf("%s: byte %d is %d", op, i, v)
			}
		}
		if m.bytes()[511] != 1 || m.bytes()[size-512] != 1 {
			t.Errorf("%s went beyond its range", op)
		}
	}
}

// A long clear does not keep others waiting, and ends early when cancelled.
func TestCancelClear(t *testing.T) {
	const size = 64 * clearStep
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(size, 512))
	defer m.Close()
	c := volumetest.Connect(t, m, cfg)
	defer c.Close()
	m.bytes()[0], m.bytes()[size-1] = 1, 1
	reqs := []volume.Request{
		{Op: volume.Discard, Length: size},
		{Op: volume.Flush},
	}
	c.Batch(t, reqs, true)
	if reqs[0].Status != nvme.StatusAbortRequested || reqs[1].Status != nvme.StatusSuccess {
		t.Errorf("got %v and %v, want the clear aborted and the flush done", reqs[0].Status, reqs[1].Status)
	}
	if m.bytes()[size-1] != 1 {
		t.Error("the clear went to its end")
	}
}

func TestOptions(t *testing.T) {
	for _, x := range []struct {
		options map[string]string
		want    string
	}{
		{nil, "size= is missing"},
		{map[string]string{"size": "1M", "path": "/x"}, "unknown option path=: a mem volume takes size=SIZE block=512|4096 populate=on|off"},
		{map[string]string{"size": "1M", "populate": "yes"}, "populate=yes: neither on nor off"},
		{map[string]string{"size": "8191E"}, "size="},
		{map[string]string{"size": "0"}, "not empty"},
		{map[string]string{"size": "513"}, "not a multiple"},
		{map[string]string{"size": ""}, "no value"},
		{map[string]string{"size": "1M", "block": "1024"}, "neither 512 nor 4096"},
	} {
		env := volumetest.NewEnv(t, t.TempDir())
		_, err := Kind.Make(t.Context(), env, &volume.Spec{Name: "m", Kind: "mem", Options: x.options})
		if err == nil || !strings.Contains(err.Error(), x.want) || fault.KindOf(err) != fault.Usage {
			t.Errorf("%v: got %v (%v), want a usage fault with %q", x.options, err, fault.KindOf(err), x.want)
		}
		if env.Kept() != 0 {
			t.Errorf("%v: a failed creation left memory behind", x.options)
		}
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, op := range []volume.Op{volume.Read, volume.Write} {
		for _, size := range []uint64{4 << 10, 128 << 10} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/size=%dK/qd=%d", op, size>>10, depth), func(b *testing.B) {
					m := open(b, volumetest.NewEnv(b, b.TempDir()), spec(4<<20, 4096))
					defer m.Close()
					volumetest.Bench(b, m, cfg, op, size, depth)
				})
			}
		}
	}
}
