// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

var engines = []struct {
	name string
	cfg  poller.Config
}{
	{"io_uring", poller.Config{Name: "test", CPU: -1, Fence: -1}},
	{"threads", poller.Config{Name: "test", CPU: -1, Fence: -1, NoRing: true}},
}

// folders returns where to test: the folder for temporary files, memory, and
// what LEAP_TEST_FOLDERS names, for other file systems.
func folders(t testing.TB) []string {
	list := []string{t.TempDir()}
	for _, parent := range append([]string{"/dev/shm"}, filepath.SplitList(os.Getenv("LEAP_TEST_FOLDERS"))...) {
		dir, err := os.MkdirTemp(parent, "leapio-test-")
		if err != nil {
			t.Logf("not tested on %s: %v", parent, err)
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		list = append(list, dir)
	}
	return list
}

func spec(kv ...string) *volume.Spec {
	s := &volume.Spec{Name: "d", Kind: "file", Options: make(map[string]string)}
	for _, x := range kv {
		k, v, _ := strings.Cut(x, "=")
		s.Options[k] = v
	}
	return s
}

// shaped returns s with the options of a shape.
func shaped(s *volume.Spec, shape volume.Shape) *volume.Spec {
	s.Note("size", fmt.Sprint(shape.Size))
	s.Note("block", fmt.Sprint(shape.Block))
	return s
}

func open(t testing.TB, env volume.Env, s *volume.Spec) *file {
	t.Helper()
	v, err := Kind.Make(context.Background(), env, s)
	if err != nil {
		t.Fatal(err)
	}
	return v.(*file)
}

func TestSuite(t *testing.T) {
	for i, dir := range folders(t) {
		for _, e := range engines {
			for _, cached := range []bool{false, true} {
				if cached && i > 0 {
					continue // that differs by engine, not by file system
				}
				name := strings.ReplaceAll(filepath.Dir(dir), "/", "_") + "/" + e.name
				if cached {
					name += "/cached"
				}
				t.Run(name, func(t *testing.T) { suite(t, dir, e.cfg, cached) })
			}
		}
	}
}

func suite(t *testing.T, dir string, cfg poller.Config, cached bool) {
	if cfg.NoRing == false {
		requireRing(t, cfg)
	}
	n := 0
	volumetest.Suite(t, volumetest.Subject{
		Make: func(t *testing.T) func(volume.Shape) volume.Volume {
			n++
			s := spec(fmt.Sprintf("path=%s/%s%v%d", dir, cfg.Name, cached, n))
			t.Cleanup(func() {
				if err := Kind.Delete(new(volumetest.Env), s, true); err != nil {
					t.Errorf("Delete: %v", err)
				}
			})
			return func(shape volume.Shape) volume.Volume {
				f := open(t, volumetest.NewEnv(t, dir), shaped(s, shape))
				s.Reopen = true
				if cached {
					f.useCache(t)
				}
				return f
			}
		},
		Poller: cfg,
	})
}

// useCache turns O_DIRECT off, as on file systems that do not have it.
func (f *file) useCache(t *testing.T) {
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := *f.layout.Load()
	l.direct, l.memAlign, l.unit = false, 1, 1
	f.layout.Store(&l)
}

// requireRing skips where pollers have no io_uring, unless LEAP_REQUIRE_URING=1
// forbids that.
func requireRing(t testing.TB, cfg poller.Config) {
	t.Helper()
	p, err := poller.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	var why error
	if err := p.Do(func() { _, why = p.Ring() }); err != nil {
		t.Fatal(err)
	}
	if why != nil && os.Getenv("LEAP_REQUIRE_URING") == "1" {
		t.Fatal(why)
	}
	if why != nil {
		t.Skipf("not run: %v", why)
	}
}

func write(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, []byte("first bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// A volume without path= is a sparse file where the runtime puts them, in
// folders made for it; with data it goes as it came.
func TestDefaultPath(t *testing.T) {
	env := volumetest.NewEnv(t, filepath.Join(t.TempDir(), "state"))
	s := spec("size=1G")
	f := open(t, env, s)
	path := env.DataPath("d")
	if s.Options["path"] != path || s.Options["block"] != "512" || !s.Made {
		t.Errorf("spec is %+v, want path, block and Made filled in", s)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<30 || st.Blocks != 0 || st.Mode&0o777 != 0o600 {
		t.Errorf("size %d, %d blocks, mode %o; want 1 GiB, 0, 600", st.Size, st.Blocks, st.Mode&0o777)
	}
	i := f.Info()
	if i.Size != 1<<30 || i.Block != 512 || !i.VolatileCache || i.WriteGranularity != uint32(st.Blksize) {
		t.Errorf("info is %+v", i)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	if err := Kind.Delete(env, s, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("deleted without data: %v", err)
	}
	for range 2 {
		if err := Kind.Delete(env, s, true); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("deleted with data: %v", err)
		}
	}
}

// An existing file is used as it is, and not ours to delete.
func TestExistingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	write(t, path, 1<<20)
	for _, s := range []*volume.Spec{spec("path=" + path), spec("path="+path, "size=1M", "block=4096")} {
		f := open(t, new(volumetest.Env), s)
		if f.Info().Size != 1<<20 || s.Made {
			t.Errorf("size %d, Made %v; want 1 MiB, false", f.Info().Size, s.Made)
		}
		f.Close()
		if err := Kind.Delete(new(volumetest.Env), s, true); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(path); err != nil || len(b) != 1<<20 || string(b[:11]) != "first bytes" {
			t.Errorf("the file has changed: %d bytes, %q, %v", len(b), b[:11], err)
		}
	}
}

// A file that is longer than the volume that is opened again stays as it is;
// only Trim cuts it. One that has become shorter is not taken.
func TestReopenedLonger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	write(t, path, 3<<20)
	s := spec("path="+path, "size=1M")
	s.Reopen = true
	length := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	f := open(t, new(volumetest.Env), s)
	if n := f.Info().Size; n != 1<<20 || length() != 3<<20 {
		t.Errorf("the volume has %d bytes, the file %d; want 1 and 3 MiB", n, length())
	}
	if err := f.Extend(2 << 20); err != nil || length() != 3<<20 {
		t.Errorf("Extend within the file: %v, %d bytes", err, length())
	}
	if err := f.Trim(); err != nil || length() != 1<<20 {
		t.Errorf("Trim: %v, %d bytes", err, length())
	}
	f.Close()
	if err := os.Truncate(path, 512<<10); err != nil {
		t.Fatal(err)
	}
	_, err := Kind.Make(t.Context(), new(volumetest.Env), s)
	if fault.KindOf(err) != fault.Failure || !strings.Contains(err.Error(), "has 524288 bytes, and the volume has 1048576") {
		t.Errorf("shorter: %v (%v), want a failure with both sizes", err, fault.KindOf(err))
	}
	if length() != 512<<10 {
		t.Errorf("refused, the file has %d bytes", length())
	}
}

// What the file system refuses leaves file and volume as they were.
func TestExtendRefused(t *testing.T) {
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	writable := f.fd
	defer func() { f.fd = writable; f.Close() }()
	var err error
	if f.fd, err = unix.Open(f.path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f.fd)
	if err := f.Extend(2 << 20); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "making "+f.path+" longer, to 2097152 bytes") {
		t.Errorf("Extend: %v", err)
	}
	if err := f.Extend(1 << 63); !errors.Is(err, unix.EFBIG) {
		t.Errorf("Extend beyond what a file can be: %v", err)
	}
	if st, err := os.Stat(f.path); err != nil || st.Size() != 1<<20 || f.Info().Size != 1<<20 {
		t.Errorf("the file has %d bytes, the volume %d: %v", st.Size(), f.Info().Size, err)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("odd"), 1<<20+512)
	write(t, at("odder"), 1000)
	write(t, at("empty"), 0)
	if err := unix.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	reopen := spec("path="+at("gone"), "size=1M")
	reopen.Reopen = true
	for _, x := range []struct {
		spec *volume.Spec
		kind fault.Kind
		want []string
	}{
		{spec(), fault.Usage, []string{"size= is missing", "volumes/d.img"}},
		{spec("size=513"), fault.Usage, []string{"513", "not a multiple", "512"}},
		{spec("size=1M", "block=8192"), fault.Usage, []string{"block=8192"}},
		{spec("size=1M", "blok=512"), fault.Usage, []string{"unknown option blok=", "path=PATH size=SIZE block=512|4096"}},
		{spec("size=x"), fault.Usage, []string{"size=", `"x"`}},
		{spec("path=x", "size=1M"), fault.Usage, []string{"path=x", "not absolute"}},
		{spec("path="+at("odd"), "block=4096"), fault.Usage, []string{"odd", "not a multiple", "4096", "512 too many"}},
		{spec("path=" + at("odder")), fault.Usage, []string{"odder", "1000", "512"}},
		{spec("path="+at("odd"), "size=1M"), fault.Exists, []string{"1049088", "1048576"}},
		{spec("path=" + at("empty")), fault.Failure, []string{"empty"}},
		{spec("path=" + at("pipe")), fault.Usage, []string{"not a regular file but a pipe"}},
		{spec("path=" + dir), fault.Usage, []string{"not a regular file but a folder"}},
		{spec("path=/dev/null"), fault.Usage, []string{"not a regular file but a character device"}},
		{spec("path="+at("none/x"), "size=1M"), fault.NotFound, []string{"none/x"}},
		{spec("path="+at("new"), "size=8191P"), 0, []string{at("new")}},
		{reopen, fault.NotFound, []string{"gone"}},
	} {
		_, err := Kind.Make(t.Context(), volumetest.NewEnv(t, dir), x.spec)
		if err == nil || x.kind != 0 && fault.KindOf(err) != x.kind {
			t.Errorf("%v: got %v (%v), want a fault of kind %v", x.spec.Options, err, fault.KindOf(err), x.kind)
			continue
		}
		for _, w := range x.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: got %q, want %q in it", x.spec.Options, err, w)
			}
		}
	}
	// Nothing that failed has left or changed anything.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("the folder has %v, %v; want 4 entries", entries, err)
	}
	if st, err := os.Stat(at("odd")); err != nil || st.Size() != 1<<20+512 {
		t.Errorf("odd has changed: %v, %v", st, err)
	}
}

// A failed creation takes back the folders it has made, and only those.
func TestFailedCreation(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "b")
	if _, err := Kind.Make(t.Context(), volumetest.NewEnv(t, state), spec("size=8191P")); err == nil {
		t.Fatal("a file of 8191 PiB was made")
	}
	if _, err := os.Stat(filepath.Dir(state)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folders were left: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(state))); err != nil {
		t.Errorf("a folder that was there is gone: %v", err)
	}
}

// A file in use is waited for, and then refused; who waits can give up.
func TestLock(t *testing.T) {
	defer func(d time.Duration) { lockWait = d }(lockWait)
	env := volumetest.NewEnv(t, t.TempDir())
	first := open(t, env, spec("size=1M"))

	lockWait = 50 * time.Millisecond
	_, err := Kind.Make(t.Context(), env, spec())
	if fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), "in use") {
		t.Errorf("in use: got %v (%v), want a fault of kind exists", err, fault.KindOf(err))
	}
	made := spec("size=1M")
	made.Made = true
	if err := Kind.Delete(env, made, true); fault.KindOf(err) != fault.Exists {
		t.Errorf("deleting a file in use: %v", err)
	}

	lockWait = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Kind.Make(ctx, env, spec()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: got %v", err)
	}

	second := make(chan error)
	go func() {
		v, err := Kind.Make(context.Background(), env, spec())
		if err == nil {
			err = v.Close()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Errorf("the second one did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	if err := <-second; err != nil {
		t.Errorf("released: %v", err)
	}

	// A file that is deleted while it is waited for is not used.
	first = open(t, env, spec())
	go func() {
		_, err := Kind.Make(context.Background(), env, spec())
		second <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := os.Remove(env.DataPath("d")); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := <-second; fault.KindOf(err) != fault.NotFound {
		t.Errorf("deleted: %v (%v), want a fault of kind not_found", err, fault.KindOf(err))
	}
}
