// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Entries: maxEntries + 1},
		{Entries: 8, CQEntries: 4},
		{Entries: 8, CQEntries: maxCQEntries + 1},
		{Entries: 8, FixedFiles: -1},
		{Entries: 8, FixedFiles: maxEntries + 1},
	} {
		r, err := New(c)
		if err == nil {
			r.Close()
			t.Errorf("New(%+v) made a ring", c)
		} else if errors.Is(err, ErrUnavailable) {
			t.Errorf("New(%+v) blames the system: %v", c, err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(Config{Entries: 5})
	requireRing(t, err)
	defer r.Close()
	if len(r.sqes) != 8 || r.Cap() != 16 {
		t.Errorf("5 entries gave queues of %d and %d, want 8 and 16", len(r.sqes), r.Cap())
	}
}

// Capacity is a hard limit with a clear answer, and smaller submission queues
// are no limit at all.
func TestFull(t *testing.T) {
	eachSetup(t, Config{Entries: 4, CQEntries: 32}, func(t *testing.T, r *Ring) {
		var c counter
		for round := range 3 {
			for i := range r.Cap() {
				if _, err := r.Nop(&c); err != nil {
					t.Fatalf("round %d, operation %d: %v", round, i, err)
				}
			}
			if _, err := r.Nop(&c); err != ErrFull {
				t.Fatalf("operation beyond the capacity: %v, want ErrFull", err)
			}
			if r.InFlight() != 32 || r.Queued() != 4 {
				t.Errorf("in flight %d, queued %d; want 32, 4", r.InFlight(), r.Queued())
			}
			var e *InFlightError
			if err := r.Close(); !errors.As(err, &e) || e.Count != 32 {
				t.Fatalf("Close with 32 in flight = %v", err)
			}
			// The last batch was not submitted by itself: 28 are there.
			if n, err := r.Reap(5); n != 5 || err != nil {
				t.Fatalf("Reap(5) = %d, %v", n, err)
			}
			if n, err := r.Reap(100); n != 23 || err != nil {
				t.Fatalf("Reap(100) = %d, %v, want 23", n, err)
			}
			if n, err := r.Submit(); n != 4 || err != nil {
				t.Fatalf("Submit = %d, %v, want 4", n, err)
			}
			if n, err := r.Submit(); n != 0 || err != nil {
				t.Fatalf("Submit of nothing = %d, %v", n, err)
			}
			finish(t, r)
		}
		if c != (counter{0, 96, 0}) {
			t.Errorf("completions %+v, want 96", c)
		}
	})
}

// The table is made as large as the completion queue, so that this cannot
// overflow. With a larger one the kernel keeps completions aside, and none
// may be lost.
func TestCompletionQueueOverflow(t *testing.T) {
	eachSetup(t, Config{Entries: 4, CQEntries: 8}, func(t *testing.T, r *Ring) {
		const n = 100
		r.ops = newTable(n)
		var c counter
		for range n {
			for {
				_, err := r.Nop(&c)
				if err == nil {
					break
				}
				// Old kernels take nothing while completions are aside.
				if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				if _, err := r.Reap(1); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := r.Submit(); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if r.sqFlags.Load()&sqCQOverflow == 0 {
			t.Fatal("the queue did not overflow: nothing was tested")
		}
		finish(t, r)
		if c != (counter{0, n, 0}) {
			t.Errorf("completions %+v, want %d", c, n)
		}
	})
}

// refill queues a new operation from Done, through the full submission queue.
type refill struct {
	t    *testing.T
	r    *Ring
	left int
	done int
}

func (c *refill) Done(res int32, _ uint32) {
	c.done++
	if c.left > 0 {
		c.left--
		if _, err := c.r.Nop(c); err != nil {
			c.t.Error(err)
		}
		if c.r.sqFlags.Load()&sqCQOverflow != 0 {
			c.t.Fatal("the completion queue overflowed")
		}
	}
}

// Done may queue as many operations as it ended, at full capacity, and the
// completion queue never overflows.
func TestQueueFromDone(t *testing.T) {
	eachSetup(t, Config{Entries: 2, CQEntries: 16}, func(t *testing.T, r *Ring) {
		c := &refill{t: t, r: r, left: 1000}
		for range r.Cap() {
			_, err := r.Nop(c)
			must(t, 0, err)
		}
		for r.InFlight() > 0 {
			if _, err := r.Submit(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Reap(r.Cap()); err != nil {
				t.Fatal(err)
			}
		}
		if c.done != 1016 {
			t.Errorf("%d completions, want 1016", c.done)
		}
	})
}

// bomb panics in Done, as touching guest memory that went away does.
type bomb struct{ counter }

func (c *bomb) Done(res int32, flags uint32) {
	c.counter.Done(res, flags)
	panic("bomb")
}

func TestPanicInDone(t *testing.T) {
	eachSetup(t, Config{Entries: 4, CQEntries: 4}, func(t *testing.T, r *Ring) {
		var c bomb
		for range 3 { // more than the completion queue holds, in all
			for range 4 {
				_, err := r.Nop(&c)
				must(t, 0, err)
			}
			_, err := r.Submit()
			must(t, 0, err)
			for r.InFlight() > 0 {
				func() {
					defer func() {
						if p := recover(); p != "bomb" {
							t.Fatalf("recovered %v", p)
						}
					}()
					n, err := r.Reap(4)
					t.Fatalf("Reap = %d, %v, want the panic of Done", n, err)
				}()
			}
		}
		if c.counter != (counter{0, 12, 0}) {
			t.Errorf("completions %+v, want 12", c.counter)
		}
	})
}

func TestManyInFlight(t *testing.T) {
	eachSetup(t, Config{Entries: 64, CQEntries: 512}, func(t *testing.T, r *Ring) {
		const block, blocks = 4096, 512
		data := pattern(block*blocks, 5)
		f := tempFile(t, data)
		got := make([]byte, len(data))
		c := counter{want: block}
		for i := range blocks {
			at := (i * 37 % blocks) * block
			_, err := r.Read(FD(fd(f)), iov(got[at:at+block]), int64(at), 0, &c)
			must(t, 0, err)
		}
		finish(t, r)
		if c != (counter{block, blocks, 0}) || !bytes.Equal(got, data) {
			t.Errorf("completions %+v, data equal %v", c, bytes.Equal(got, data))
		}
	})
}

// The ring's thread, asleep in epoll on the ring, wakes for a completion that
// arrives later, every time with one registration, whether it slept already
// or was about to.
func TestEpoll(t *testing.T) {
	eachSetup(t, Config{Entries: 8}, func(t *testing.T, r *Ring) {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ep)
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r.FD())}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, r.FD(), &ev); err != nil {
			t.Fatal(err)
		}
		events := make([]unix.EpollEvent, 4)
		wait := func(ms int) int {
			for {
				n, err := unix.EpollWait(ep, events, ms)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		pr, pw := pipe(t)
		delays := make(chan time.Duration)
		defer close(delays)
		go func() {
			for d := range delays {
				for end := time.Now().Add(d); time.Now().Before(end); {
				}
				pw.Write([]byte("x"))
			}
		}()
		buf := make([]byte, 8)
		for round := range 300 {
			var c result
			_, err := r.Read(FD(fd(pr)), iov(buf), -1, 0, &c)
			must(t, 0, err)
			_, err = r.Submit()
			must(t, 0, err)
			if n := wait(0); n != 0 {
				t.Fatalf("round %d: readable before anything completed", round)
			}
			delay := time.Duration(round) * 100 * time.Nanosecond
			if round < 5 {
				delay = 20 * time.Millisecond // surely asleep
			}
			delays <- delay
			if n := wait(20_000); n != 1 {
				t.Fatalf("round %d: asleep with a completion ready", round)
			}
			if n, err := r.Reap(8); n != 1 || err != nil || c.res != 1 {
				t.Fatalf("round %d: Reap = %d, %v, result %+v", round, n, err, c)
			}
			if n := wait(0); n != 0 {
				t.Fatalf("round %d: readable with nothing left", round)
			}
		}
	})
}

// Completions that wait for the owner to enter the kernel are found by Reap
// without sleeping.
func TestReapSpins(t *testing.T) {
	eachSetup(t, Config{Entries: 64}, func(t *testing.T, r *Ring) {
		pr, pw := pipe(t)
		const n = 60 // more than the kernel completes in one enter
		c := counter{want: 1}
		for range n {
			_, err := r.Read(FD(fd(pr)), iov(make([]byte, 1)), -1, 0, &c)
			must(t, 0, err)
		}
		_, err := r.Submit()
		must(t, 0, err)
		if _, err := pw.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); r.InFlight() > 0; {
			if _, err := r.Reap(7); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(end) {
				t.Fatalf("completions %+v, want %d", c, n)
			}
		}
		if c != (counter{1, n, 0}) {
			t.Errorf("completions %+v, want %d", c, n)
		}
	})
}

func TestWrongThread(t *testing.T) {
	for _, s := range setups {
		if s.flags&setupSingleIssuer != 0 {
			t.Run(s.name, func(t *testing.T) {
				testWrongThread(t, testRing(t, Config{Entries: 4, FixedFiles: 1}, s))
			})
		}
	}
}

func testWrongThread(t *testing.T, r *Ring) {
	var c counter
	_, err := r.Nop(&c)
	must(t, 0, err)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // another thread: this test's is locked too
		defer runtime.UnlockOSThread()
		_, err := r.Submit()
		errs <- err
		errs <- r.UpdateFile(0, 0)
	}()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrWrongThread) {
			t.Errorf("use by another thread: %v, want ErrWrongThread", err)
		}
	}
	finish(t, r)
	if c != (counter{0, 1, 0}) {
		t.Errorf("completions %+v, want 1", c)
	}
}

func TestClosed(t *testing.T) {
	eachSetup(t, Config{Entries: 4, FixedFiles: 1}, func(t *testing.T, r *Ring) {
		for range 2 {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		_, nop := r.Nop(&counter{})
		_, submit := r.Submit()
		_, reap := r.Reap(1)
		_, register := r.RegisterFile(0)
		for name, err := range map[string]error{
			"Nop": nop, "Submit": submit, "Reap": reap, "RegisterFile": register, "UpdateFile": r.UpdateFile(0, 0),
		} {
			if err != ErrClosed {
				t.Errorf("%s on a closed ring = %v, want ErrClosed", name, err)
			}
		}
		if r.FD() != -1 || r.Queued() != 0 || r.InFlight() != 0 {
			t.Errorf("closed ring: fd %d, queued %d, in flight %d", r.FD(), r.Queued(), r.InFlight())
		}
	})
}

func TestTable(t *testing.T) {
	tab := newTable(2)
	c := new(counter)
	a, b := tab.put(c, nil), tab.put(c, nil)
	if !tab.full() || a == b || a == 0 || b == 0 {
		t.Fatalf("ops %#x %#x, full %v", a, b, tab.full())
	}
	if tab.take(a) == nil || tab.take(a) != nil {
		t.Error("an operation is there not once")
	}
	for _, op := range []Op{0, makeOp(2, 1), makeOp(1<<31, 1), makeOp(b.index(), b.gen()+1)} {
		if tab.take(op) != nil {
			t.Errorf("op %#x was found", op)
		}
	}
	tab.slots[a.index()].gen = 1<<32 - 1 // the last of 2^32 names
	if op := tab.put(c, nil); op == 0 || op.gen() == 0 {
		t.Errorf("op %#x after the generation wrapped", op)
	}
	if tab.used != 2 {
		t.Errorf("%d used, want 2", tab.used)
	}
}
