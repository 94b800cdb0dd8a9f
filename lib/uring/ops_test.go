// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}

func TestReadWrite(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		f := tempFile(t, nil)
		one, two, three := pattern(4096, 1), pattern(512, 2), pattern(8192, 3)

		got := do(t, r, func(c Completion) (Op, error) { return r.Write(FD(fd(f)), iov(one), 4096, 0, c) })
		if got != 4096 {
			t.Fatalf("write of one segment = %d, want 4096", got)
		}
		got = do(t, r, func(c Completion) (Op, error) {
			return r.Write(FD(fd(f)), iov(two, three), 8192, unix.RWF_DSYNC, c)
		})
		if got != 512+8192 {
			t.Fatalf("write of two segments = %d, want %d", got, 512+8192)
		}
		want := bytes.Join([][]byte{make([]byte, 4096), one, two, three}, nil)
		if data, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(data, want) {
			t.Fatalf("the file differs from what was written (%d bytes, %v)", len(data), err)
		}

		a, b := make([]byte, 4096), make([]byte, 512)
		got = do(t, r, func(c Completion) (Op, error) { return r.Read(FD(fd(f)), iov(a), 4096, 0, c) })
		if got != 4096 || !bytes.Equal(a, one) {
			t.Errorf("read of one segment = %d, equal %v", got, bytes.Equal(a, one))
		}
		got = do(t, r, func(c Completion) (Op, error) { return r.Read(FD(fd(f)), iov(a, b), 4096, 0, c) })
		if got != 4608 || !bytes.Equal(a, one) || !bytes.Equal(b, two) {
			t.Errorf("read of two segments = %d, equal %v %v", got, bytes.Equal(a, one), bytes.Equal(b, two))
		}
		// Short at the end of the file, nothing behind it, nothing for nothing.
		if got = do(t, r, func(c Completion) (Op, error) {
			return r.Read(FD(fd(f)), iov(a), int64(len(want))-100, 0, c)
		}); got != 100 {
			t.Errorf("read at the end = %d, want 100", got)
		}
		if got = do(t, r, func(c Completion) (Op, error) { return r.Read(FD(fd(f)), iov(a), 1<<40, 0, c) }); got != 0 {
			t.Errorf("read behind the end = %d, want 0", got)
		}
		if got = do(t, r, func(c Completion) (Op, error) { return r.Read(FD(fd(f)), nil, 0, 0, c) }); got != 0 {
			t.Errorf("read of nothing = %d, want 0", got)
		}
	})
}

func TestSyncAndFallocate(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		data := pattern(64<<10, 9)
		f := tempFile(t, data)
		if got := do(t, r, func(c Completion) (Op, error) { return r.Fdatasync(FD(fd(f)), c) }); got != 0 {
			t.Fatalf("fdatasync = %d, want 0", got)
		}
		for _, m := range []struct {
			name string
			mode uint32
			off  int64
		}{
			{"punch hole", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 4096},
			{"zero range", unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 32768},
		} {
			got := do(t, r, func(c Completion) (Op, error) { return r.Fallocate(FD(fd(f)), m.mode, m.off, 8192, c) })
			if unix.Errno(-got) == unix.EOPNOTSUPP {
				t.Logf("%s: the file system of %s cannot", m.name, f.Name())
				continue
			}
			if got != 0 {
				t.Fatalf("%s = %d, want 0", m.name, got)
			}
			clear(data[m.off : m.off+8192])
			if file, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(file, data) {
				t.Fatalf("%s: the file differs from the model (%v)", m.name, err)
			}
		}
		if got := do(t, r, func(c Completion) (Op, error) {
			return r.Fallocate(FD(fd(f)), 0, 1<<20, 4096, c)
		}); got != 0 {
			t.Fatalf("fallocate = %d, want 0", got)
		}
		if st, err := f.Stat(); err != nil || st.Size() != 1<<20+4096 {
			t.Errorf("size after fallocate = %v, %v", st, err)
		}
	})
}

func TestErrorResults(t *testing.T) {
	// Memory the kernel cannot write: not accessible, and behind the end of
	// a file that was made shorter.
	forbidden, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(forbidden)
	mem, err := unix.MemfdCreate("shrunk", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mem)
	if err := unix.Ftruncate(mem, 4096); err != nil {
		t.Fatal(err)
	}
	gone, err := unix.Mmap(mem, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(gone)
	if err := unix.Ftruncate(mem, 0); err != nil {
		t.Fatal(err)
	}

	eachSetup(t, Config{Entries: 8, FixedFiles: 2}, func(t *testing.T, r *Ring) {
		f := tempFile(t, pattern(8192, 1))
		ro, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		file := FD(fd(f))
		buf := iov(make([]byte, 4096))
		for _, c := range []struct {
			name  string
			want  unix.Errno
			queue func(Completion) (Op, error)
		}{
			{"no such descriptor", unix.EBADF, func(c Completion) (Op, error) { return r.Read(FD(1<<20), buf, 0, 0, c) }},
			{"negative descriptor", unix.EBADF, func(c Completion) (Op, error) { return r.Read(FD(-7), buf, 0, 0, c) }},
			{"descriptor beyond int32", unix.EBADF, func(c Completion) (Op, error) { return r.Fdatasync(FD(1<<32), c) }},
			{"empty slot", unix.EBADF, func(c Completion) (Op, error) { return r.Read(Fixed(1), buf, 0, 0, c) }},
			{"slot outside", unix.EBADF, func(c Completion) (Op, error) { return r.Fdatasync(Fixed(2), c) }},
			{"slot beyond int32", unix.EBADF, func(c Completion) (Op, error) { return r.Fdatasync(Fixed(1<<32), c) }},
			{"read-only file", unix.EBADF, func(c Completion) (Op, error) { return r.Write(FD(fd(ro)), buf, 0, 0, c) }},
			{"forbidden memory", unix.EFAULT, func(c Completion) (Op, error) { return r.Read(file, iov(forbidden), 0, 0, c) }},
			{"forbidden memory, second segment alone", unix.EFAULT, func(c Completion) (Op, error) {
				return r.Write(file, iov(forbidden, forbidden), 0, 0, c)
			}},
			{"lost memory", unix.EFAULT, func(c Completion) (Op, error) { return r.Read(file, iov(gone), 0, 0, c) }},
			{"nil memory", unix.EFAULT, func(c Completion) (Op, error) {
				return r.Read(file, []unix.Iovec{{Len: 4096}}, 0, 0, c)
			}},
			{"negative offset", unix.EINVAL, func(c Completion) (Op, error) { return r.Read(file, buf, -4096, 0, c) }},
			{"too many segments", unix.EINVAL, func(c Completion) (Op, error) {
				return r.Read(file, make([]unix.Iovec, 1025), 0, 0, c)
			}},
			{"unknown flag", unix.EOPNOTSUPP, func(c Completion) (Op, error) { return r.Read(file, buf, 0, 1<<30, c) }},
			{"fallocate of nothing", unix.EINVAL, func(c Completion) (Op, error) { return r.Fallocate(file, 0, 0, 0, c) }},
		} {
			if got := do(t, r, c.queue); got != -int32(c.want) {
				t.Errorf("%s: got %d (%v), want %d (%v)", c.name, got, unix.Errno(-got), -int32(c.want), c.want)
			}
		}
		if got := do(t, r, func(c Completion) (Op, error) { return r.Read(file, buf, 0, 0, c) }); got != 4096 {
			t.Errorf("read after the errors = %d, want 4096", got)
		}
		if _, err := r.Nop(nil); err == nil {
			t.Error("an operation without a Completion was queued")
		}
	})
}

// An entry the kernel refuses must not hold up those behind it, whatever the
// flags of the ring.
func TestInvalidEntryInBatch(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		f := tempFile(t, pattern(4096, 1))
		var good, bad counter
		good.want, bad.want = 0, -int32(unix.EINVAL)
		for i := range 8 {
			var err error
			if i%3 == 1 {
				_, err = r.queue(&sqe{opcode: opFsync, fd: int32(fd(f)), opFlags: 1 << 31}, nil, &bad)
			} else {
				_, err = r.Nop(&good)
			}
			must(t, 0, err)
		}
		n, err := r.Submit()
		if n != 8 || err != nil {
			t.Errorf("Submit = %d, %v, want 8, nil", n, err)
		}
		finish(t, r)
		if good != (counter{0, 5, 0}) || bad != (counter{-int32(unix.EINVAL), 3, 0}) {
			t.Errorf("good %+v, bad %+v", good, bad)
		}
	})
}

func TestCancel(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		pr, pw := pipe(t)
		file, buf := FD(fd(pr)), make([]byte, 16)
		var read, cancel result
		op, err := r.Read(file, iov(buf), -1, 0, &read)
		must(t, op, err)
		finishTo(t, r, 1)
		if n, err := r.Reap(8); n != 0 || err != nil {
			t.Fatalf("Reap with an empty pipe = %d, %v", n, err)
		}
		_, err = r.Cancel(op, &cancel)
		must(t, 0, err)
		finish(t, r)
		if read != (result{-int32(unix.ECANCELED), 1}) || cancel != (result{0, 1}) {
			t.Fatalf("read %+v, cancel %+v; want -ECANCELED, 0", read, cancel)
		}

		// The slot of op is used again: a late Cancel must not hit that.
		var again, late result
		op2, err := r.Read(file, iov(buf), -1, 0, &again)
		must(t, op2, err)
		for op2.index() != op.index() {
			t.Fatalf("op %#x does not reuse the slot of %#x", op2, op)
		}
		if op2 == op {
			t.Fatal("two operations have one name")
		}
		_, err = r.Cancel(op, &late)
		must(t, 0, err)
		finishTo(t, r, 1)
		if late != (result{-int32(unix.ENOENT), 1}) || again.calls != 0 {
			t.Fatalf("late cancel %+v, read %+v; want -ENOENT, untouched", late, again)
		}
		if _, err := pw.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		finish(t, r)
		if again != (result{5, 1}) || string(buf[:5]) != "hello" {
			t.Errorf("read %+v %q, want 5 hello", again, buf[:5])
		}
	})
}

func TestFixedFile(t *testing.T) {
	eachSetup(t, Config{Entries: 8, FixedFiles: 2}, func(t *testing.T, r *Ring) {
		a, b := tempFile(t, pattern(4096, 1)), tempFile(t, pattern(4096, 2))
		buf := make([]byte, 4096)
		check := func(slot int, want int32, seed byte) {
			t.Helper()
			got := do(t, r, func(c Completion) (Op, error) { return r.Read(Fixed(slot), iov(buf), 0, 0, c) })
			if got != want {
				t.Fatalf("read of slot %d = %d, want %d", slot, got, want)
			}
			if want > 0 && !bytes.Equal(buf, pattern(4096, seed)) {
				t.Fatalf("slot %d holds another file", slot)
			}
		}
		for want, f := range []*os.File{a, b} {
			if slot, err := r.RegisterFile(fd(f)); slot != want || err != nil {
				t.Fatalf("RegisterFile = %d, %v, want %d", slot, err, want)
			}
			f.Close() // the ring keeps it open
		}
		check(0, 4096, 1)
		check(1, 4096, 2)

		c := tempFile(t, pattern(4096, 3))
		if _, err := r.RegisterFile(fd(c)); !errors.Is(err, errNoFreeSlot) {
			t.Errorf("RegisterFile in a full table = %v", err)
		}
		if err := r.UpdateFile(1, fd(c)); err != nil {
			t.Fatal(err)
		}
		check(1, 4096, 3)
		if err := r.UpdateFile(0, -1); err != nil {
			t.Fatal(err)
		}
		check(0, -int32(unix.EBADF), 0)
		if slot, err := r.RegisterFile(fd(c)); slot != 0 || err != nil {
			t.Errorf("RegisterFile after a slot was emptied = %d, %v, want 0", slot, err)
		}

		for _, slot := range []int{-1, 2, 1 << 32} {
			if err := r.UpdateFile(slot, fd(c)); err == nil || !strings.Contains(err.Error(), "outside") {
				t.Errorf("UpdateFile(%d) = %v", slot, err)
			}
		}
		for _, bad := range []int{-2, 1 << 20, 1 << 40} {
			if err := r.UpdateFile(0, bad); !errors.Is(err, unix.EBADF) {
				t.Errorf("UpdateFile of fd %d = %v, want EBADF", bad, err)
			}
		}
		if err := r.UpdateFile(0, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := r.RegisterFile(-1); !errors.Is(err, unix.EBADF) {
			t.Errorf("RegisterFile(-1) = %v, want EBADF", err)
		}
	})
}

// The ring alone keeps iovecs and buffers reachable while an operation is in
// flight.
func TestMemoryIsKept(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		pr, pw := pipe(t)
		freed := make(chan bool, 1)
		var c result
		func() {
			type buffer struct {
				data [64]byte
				_    *byte // not a tiny object
			}
			b := new(buffer)
			runtime.AddCleanup(b, func(struct{}) { freed <- true }, struct{}{})
			_, err := r.Read(FD(fd(pr)), iov(b.data[:32], b.data[32:]), -1, 0, &c)
			must(t, 0, err)
		}()
		finishTo(t, r, 1)
		for range 3 {
			runtime.GC()
		}
		select {
		case <-freed:
			t.Fatal("a buffer was freed under the kernel")
		default:
		}
		if _, err := pw.Write(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		finish(t, r)
		if c.res != 64 {
			t.Errorf("read = %d, want 64", c.res)
		}
		runtime.GC()
		<-freed // and let go afterwards
	})
}
