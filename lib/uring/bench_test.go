// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// batch returns a function that runs n operations, queued by queue, to their
// end, spinning.
func batch(t testing.TB, r *Ring, n int, c *counter, queue func(i int) (Op, error)) func() {
	return func() {
		for i := range n {
			if _, err := queue(i); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Submit(); err != nil {
			t.Fatal(err)
		}
		for r.InFlight() > 0 {
			if _, err := r.Reap(n); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	eachSetup(t, Config{Entries: 16, FixedFiles: 1}, func(t *testing.T, r *Ring) {
		f := tempFile(t, pattern(16<<10, 1))
		slot, err := r.RegisterFile(fd(f))
		if err != nil {
			t.Fatal(err)
		}
		var c counter
		file, buf := FD(fd(f)), make([]byte, 8192)
		one, two := iov(buf), iov(buf[:4096], buf[4096:])
		for name, queue := range map[string]func(int) (Op, error){
			"nop":       func(int) (Op, error) { return r.Nop(&c) },
			"read":      func(int) (Op, error) { return r.Read(file, one, 0, 0, &c) },
			"readv":     func(int) (Op, error) { return r.Read(Fixed(slot), two, 4096, 0, &c) },
			"write":     func(int) (Op, error) { return r.Write(Fixed(slot), one, 0, 0, &c) },
			"writev":    func(int) (Op, error) { return r.Write(file, two, 8192, 0, &c) },
			"cancel":    func(int) (Op, error) { return r.Cancel(1, &c) },
			"fdatasync": func(i int) (Op, error) { return r.Fdatasync(file, &c) },
			"fallocate": func(i int) (Op, error) { return r.Fallocate(file, 0, 0, 4096, &c) },
		} {
			if n := testing.AllocsPerRun(20, batch(t, r, 8, &c, queue)); n != 0 {
				t.Errorf("%s: %v allocations in a batch, want 0", name, n)
			}
		}
		for range r.Cap() {
			_, err := r.Nop(&c)
			must(t, 0, err)
		}
		if n := testing.AllocsPerRun(20, func() {
			if _, err := r.Nop(&c); !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("ErrFull: %v allocations, want 0", n)
		}
		finish(t, r)
	})
}

func benchRing(b *testing.B) *Ring {
	runtime.LockOSThread()
	b.Cleanup(runtime.UnlockOSThread)
	r, err := New(Config{Entries: 64, FixedFiles: 1})
	requireRing(b, err)
	b.Cleanup(func() { r.Close() })
	return r
}

// runBatches counts one operation as one round of the benchmark.
func runBatches(b *testing.B, r *Ring, n int, c *counter, queue func(i int) (Op, error)) {
	run := batch(b, r, n, c, queue)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += n {
		run()
	}
	b.StopTimer()
	if c.others != 0 {
		b.Fatalf("completions %+v", c)
	}
}

func BenchmarkNop(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("batch=", n), func(b *testing.B) {
			r := benchRing(b)
			var c counter
			runBatches(b, r, n, &c, func(int) (Op, error) { return r.Nop(&c) })
		})
	}
}

// BenchmarkRead4K reads from the page cache.
func BenchmarkRead4K(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("batch=", n), func(b *testing.B) {
			r := benchRing(b)
			f := tempFile(b, pattern(64*4096, 1))
			slot, err := r.RegisterFile(fd(f))
			if err != nil {
				b.Fatal(err)
			}
			c := counter{want: 4096}
			segments := make([][]unix.Iovec, n)
			for i := range segments {
				segments[i] = iov(make([]byte, 4096))
			}
			runBatches(b, r, n, &c, func(i int) (Op, error) {
				return r.Read(Fixed(slot), segments[i], int64(i)*4096, 0, &c)
			})
		})
	}
}
