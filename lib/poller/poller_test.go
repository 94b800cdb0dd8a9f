// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package poller

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/uring"
)

func TestMode(t *testing.T) {
	for _, m := range modes {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "invalid", "Busy"} {
		if _, err := ParseMode(s); err == nil || !strings.Contains(err.Error(), "adaptive, busy, interrupt") {
			t.Errorf("ParseMode(%q): %v, want an error with the modes", s, err)
		}
	}
	if s := Mode(9).String(); s != "invalid" {
		t.Errorf("Mode(9) is %q", s)
	}
}

// Posted functions run in order, each once, and before Stop returns.
func TestPost(t *testing.T) {
	eachMode(t, func(t *testing.T, p *Poller) {
		const n = 1000
		var got []int
		for i := range n {
			if err := p.Post(func() { got = append(got, i) }); err != nil {
				t.Fatal(err)
			}
		}
		p.Stop()
		if len(got) != n || !slices.IsSorted(got) {
			t.Errorf("%d functions ran, in order: %v; want %d", len(got), slices.IsSorted(got), n)
		}
		if err := p.Post(func() { t.Error("ran after Stop") }); err != ErrStopped {
			t.Errorf("Post after Stop: %v, want ErrStopped", err)
		}
		if err := p.Do(func() {}); err != ErrStopped {
			t.Errorf("Do after Stop: %v, want ErrStopped", err)
		}
		p.Stop()
	})
}

// A function that posts runs what it has posted, but not at once.
func TestPostFromPoller(t *testing.T) {
	p := start(t, Config{})
	done := make(chan bool)
	inside := false
	do(t, p, func() {
		inside = true
		if err := p.Post(func() { done <- inside }); err != nil {
			t.Error(err)
		}
		inside = false
	})
	if wait(t, done, "the posted function") {
		t.Error("it ran inside of Post")
	}
}

// Whatever Post has accepted runs, also while Stop is under way.
func TestPostWhileStopping(t *testing.T) {
	for range 50 {
		p := start(t, Config{Mode: Interrupt})
		var accepted, ran atomic.Int64
		var posters sync.WaitGroup
		for range 4 {
			posters.Go(func() {
				for p.Post(func() { ran.Add(1) }) == nil {
					accepted.Add(1)
				}
			})
		}
		for accepted.Load() < 100 {
			runtime.Gosched()
		}
		p.Stop()
		posters.Wait()
		if accepted.Load() != ran.Load() {
			t.Fatalf("%d functions accepted, %d ran", accepted.Load(), ran.Load())
		}
	}
}

func TestPostAllocations(t *testing.T) {
	for _, m := range []Mode{Adaptive, Interrupt} {
		p := start(t, Config{Mode: m})
		done := make(chan struct{}, 1)
		f := func() { done <- struct{}{} }
		if n := testing.AllocsPerRun(100, func() {
			if err := p.Post(f); err != nil {
				t.Error(err)
			}
			<-done
		}); n != 0 {
			t.Errorf("%s: Post allocates %v times, want 0", m, n)
		}
		p.Stop()
	}
}

// A poller that found nothing to do sleeps, without looking at anything, and
// wakes for what is posted and for what it watches.
func TestSleep(t *testing.T) {
	for _, m := range []Mode{Adaptive, Interrupt} {
		t.Run(m.String(), func(t *testing.T) {
			p := start(t, Config{Mode: m})
			s, fd := newSource(WakeEvent), eventfd(t)
			do(t, p, func() {
				p.Add(s)
				if err := p.Watch(fd); err != nil {
					t.Error(err)
				}
			})
			for i := range int64(5) {
				asleep(t, p)
				before := s.polls.Load()
				time.Sleep(20 * time.Millisecond)
				if n := s.polls.Load(); n > before+10 { // a signal wakes it too
					t.Errorf("looked %d times while asleep", n-before)
				}
				s.work.Store(i + 1)
				signal(t, fd)
				if got := wait(t, s.told, "waking up"); got != i+1 {
					t.Errorf("saw %d, want %d", got, i+1)
				}
				asleep(t, p)
				do(t, p, func() {})
			}
			do(t, p, func() { p.Unwatch(fd); p.Remove(s) })
			asleep(t, p)
			signal(t, fd)
			asleep(t, p)
		})
	}
}

// A busy poller looks again and again, and arms nothing.
func TestBusy(t *testing.T) {
	p := start(t, Config{Mode: Busy})
	s := newSource(WakeEvent)
	do(t, p, func() { p.Add(s) })
	s.work.Store(1)
	wait(t, s.told, "work nobody was told about")
	if n := s.arms.Load(); n != 0 {
		t.Errorf("armed %d times", n)
	}
}

// A source that cannot wake the poller is looked at in its sleep; work that
// comes while it is being armed is not slept over.
func TestWake(t *testing.T) {
	for _, m := range []Mode{Adaptive, Interrupt} {
		p := start(t, Config{Mode: m})
		silent := newSource(WakeLook)
		do(t, p, func() { p.Add(newSource(WakeEvent)); p.Add(silent) })
		for i := range int64(5) {
			time.Sleep(5 * time.Millisecond)
			silent.work.Store(i + 1)
			wait(t, silent.told, "a look")
		}
		late := &lateSource{source: newSource(WakeEvent)}
		do(t, p, func() { p.Remove(silent); p.Add(late) })
		wait(t, late.told, "a look at what came while arming")
		p.Stop()
	}
}

// lateSource gets work when it is armed.
type lateSource struct{ *source }

func (s *lateSource) Arm() Wake {
	if s.seen == 0 {
		s.work.Store(1)
	}
	return s.source.Arm()
}

// Several pollers wake for one eventfd that nobody reads, each time.
func TestSharedWatch(t *testing.T) {
	fd := eventfd(t)
	var pollers [2]*Poller
	var sources [2]*source
	for i := range pollers {
		p, s := start(t, Config{Mode: Interrupt}), newSource(WakeEvent)
		do(t, p, func() {
			p.Add(s)
			if err := p.Watch(fd); err != nil {
				t.Error(err)
			}
		})
		pollers[i], sources[i] = p, s
	}
	for n := range int64(20) {
		for i, s := range sources {
			if n%2 == 0 { // awake or asleep, it makes no difference
				asleep(t, pollers[i])
			}
			s.work.Store(n + 1)
		}
		signal(t, fd)
		for _, s := range sources {
			wait(t, s.told, "waking up")
		}
	}
}

// remover removes sources from within Poll.
type remover struct {
	*source
	p    *Poller
	gone []Source
}

func (r *remover) Poll() int {
	for _, s := range r.gone {
		r.p.Remove(s)
	}
	r.gone = nil
	return r.source.Poll()
}

// Sources can be removed while they are being polled, themselves too.
func TestRemove(t *testing.T) {
	p := start(t, Config{})
	first, last := newSource(WakeEvent), newSource(WakeEvent)
	r := &remover{source: newSource(WakeEvent), p: p}
	r.gone = []Source{r, first, newSource(WakeEvent)}
	do(t, p, func() { p.Add(first); p.Add(r); p.Add(last) })
	do(t, p, func() {})
	do(t, p, func() {
		if left := slices.Collect(p.sources); len(left) != 1 || left[0] != Source(last) {
			t.Errorf("%d sources are left, want the last alone", len(left))
		}
	})
	before := first.polls.Load()
	last.work.Store(1)
	do(t, p, func() {})
	wait(t, last.told, "a look at the source that stays")
	if n := first.polls.Load(); n != before {
		t.Error("a source is polled after Remove")
	}
}

type runner func()

func (r runner) Run() { r() }

// Continuations run in order, after what deferred them, on a stack that does
// not grow.
func TestDefer(t *testing.T) {
	p := start(t, Config{})
	var got []int
	do(t, p, func() {
		for i := range 3 {
			p.Defer(runner(func() {
				got = append(got, i)
				p.Defer(runner(func() { got = append(got, 10+i) }))
			}))
		}
		if got != nil {
			t.Error("ran inside of Defer")
		}
	})
	do(t, p, func() {})
	do(t, p, func() {
		if want := []int{0, 1, 2, 10, 11, 12}; !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v", got, want)
		}
	})

	const chain = 100_000
	done := make(chan int)
	left, deepest := chain, 0
	pcs := make([]uintptr, 1000)
	var step runner
	step = func() {
		deepest = max(deepest, runtime.Callers(0, pcs))
		if left--; left > 0 {
			p.Defer(step)
			return
		}
		done <- deepest
	}
	do(t, p, func() { p.Defer(step) })
	if n := wait(t, done, "the end of the chain"); n > 30 {
		t.Errorf("the stack was %d calls deep", n)
	}
	do(t, p, func() {
		if n := cap(p.house.deferred); n > 4*maxDeferred {
			t.Errorf("the list of continuations has grown to %d", n)
		}
	})
}

// Continuations without end keep neither posted functions nor sources waiting.
func TestDeferForEver(t *testing.T) {
	p := start(t, Config{})
	s := newSource(WakeEvent)
	var stop bool
	var step runner
	step = func() {
		if !stop {
			p.Defer(step)
		}
	}
	do(t, p, func() { p.Add(s); p.Defer(step) })
	s.work.Store(1)
	wait(t, s.told, "a look at the source")
	do(t, p, func() { stop = true })
}

func TestNoRing(t *testing.T) {
	p := start(t, Config{NoRing: true})
	do(t, p, func() {
		if ring, err := p.Ring(); ring != nil || !errors.Is(err, uring.ErrUnavailable) {
			t.Errorf("Ring() = %v, %v; want nil and ErrUnavailable", ring, err)
		}
		if err := p.SetFence(0); err != nil {
			t.Error(err)
		}
	})
}

// result takes the end of an operation.
type result chan int32

func (r result) Done(res int32, _ uint32) { r <- res }

// Completions wake a sleeping poller.
func TestRingWakes(t *testing.T) {
	for _, m := range modes {
		p := start(t, Config{Mode: m})
		requireRing(t, p)
		fd := eventfd(t)
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil { // it blocks
			t.Fatal(err)
		}
		buf, end := make([]byte, 8), make(result, 1)
		iov := []unix.Iovec{{Base: &buf[0], Len: 8}}
		for range 3 {
			do(t, p, func() {
				ring, _ := p.Ring()
				if _, err := ring.Read(uring.FD(fd), iov, -1, 0, end); err != nil {
					t.Error(err)
				}
			})
			if m != Busy {
				asleep(t, p)
			}
			signal(t, fd)
			if res := wait(t, end, "the completion"); res != 8 {
				t.Errorf("read %d, want 8", res)
			}
		}
		p.Stop()
	}
}

// Stop ends the ring, also with a wish to cancel queued in the last turn, and
// leaves nothing behind.
func TestNoLeaks(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, noRing := range []bool{false, true} {
		fd := eventfd(t)
		noLeaks(t, func() {
			p, err := Start(Config{Name: "test", CPU: -1, Fence: -1, NoRing: noRing})
			if err != nil {
				t.Fatal(err)
			}
			last := func() {
				if err := p.Watch(fd); err != nil {
					t.Error(err)
				}
				ring, _ := p.Ring()
				if ring == nil {
					return
				}
				buf, end := make([]byte, 8), make(result, 3)
				op, err := ring.Read(uring.FD(fd), []unix.Iovec{{Base: &buf[0], Len: 8}}, -1, 0, end)
				if err == nil {
					_, err = ring.Cancel(op, end)
				}
				if err == nil { // takes a thread of the kernel's and its time
					_, err = ring.Fdatasync(uring.FD(int(file.Fd())), end)
				}
				if err != nil {
					t.Error(err)
				}
			}
			// Stop comes before the loop has seen what last does.
			begin := make(chan struct{})
			for _, f := range []func(){func() { <-begin }, last} {
				if err := p.Post(f); err != nil {
					t.Fatal(err)
				}
			}
			var stopped sync.WaitGroup
			stopped.Go(p.Stop)
			eventually(t, "Stop", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.stopping
			})
			close(begin)
			stopped.Wait()
			p.Stop()
		})
	}
	noLeaks(t, func() {
		if _, err := Start(Config{Name: "bad", CPU: 1 << 20, Fence: -1}); err == nil || !strings.Contains(err.Error(), "bad") {
			t.Errorf("a poller on a CPU that does not exist: %v", err)
		}
		if _, err := Start(Config{Name: "bad", CPU: -1, Fence: 1 << 20}); err == nil {
			// Without io_uring there is nothing to register it with.
			t.Log("a fence that is not open was not noticed")
		}
	})
}

func TestCPU(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	p, err := Start(Config{Name: "pinned", CPU: cpu, Fence: -1, Mode: Interrupt})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if p.CPU() != cpu || p.Name() != "pinned" || p.Mode() != Interrupt {
		t.Errorf("CPU %d, name %q, mode %v", p.CPU(), p.Name(), p.Mode())
	}
	do(t, p, func() {
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &set); err != nil || set.Count() != 1 || !set.IsSet(cpu) {
			t.Errorf("the thread may run on %d CPUs, %v; want CPU %d alone", set.Count(), err, cpu)
		}
	})
	if p := start(t, Config{}); p.CPU() != -1 {
		t.Errorf("not pinned: CPU %d, want -1", p.CPU())
	}
}

// The fence is open as long as the ring is, whatever happens to the
// descriptor; a fence can be replaced, and given up.
func TestFence(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	p, err := Start(Config{Name: "test", CPU: -1, Fence: int(w.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	requireRing(t, p)
	w.Close()
	if hungUp(t, r, 50) {
		t.Fatal("hung up while the poller runs")
	}
	do(t, p, func() {
		if err := p.SetFence(int(w2.Fd())); err != nil {
			t.Error(err)
		}
	})
	w2.Close()
	if !hungUp(t, r, int(patience.Milliseconds())) {
		t.Error("the fence that was replaced is silent")
	}
	if hungUp(t, r2, 50) {
		t.Error("the new fence hung up while the poller runs")
	}
	do(t, p, func() {
		if err := p.SetFence(-1); err != nil {
			t.Error(err)
		}
	})
	if !hungUp(t, r2, int(patience.Milliseconds())) {
		t.Error("the fence that was given up is silent")
	}
	r3, w3, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r3.Close()
	do(t, p, func() {
		if err := p.SetFence(int(w3.Fd())); err != nil {
			t.Error(err)
		}
	})
	w3.Close()
	if hungUp(t, r3, 50) {
		t.Error("the third fence hung up while the poller runs")
	}
	p.Stop()
	if !hungUp(t, r3, int(patience.Milliseconds())) {
		t.Error("silent after Stop")
	}
}

// hungUp waits up to ms for the writers of a pipe to be gone.
func hungUp(t *testing.T, r *os.File, ms int) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1 && fds[0].Revents&unix.POLLHUP != 0
	}
}

// BenchmarkDo is the way to a poller and back.
func BenchmarkDo(b *testing.B) {
	for _, m := range modes {
		b.Run(m.String(), func(b *testing.B) {
			p := start(b, Config{Mode: m})
			done := make(chan struct{})
			f := func() { done <- struct{}{} }
			b.ReportAllocs()
			for b.Loop() {
				if err := p.Post(f); err != nil {
					b.Fatal(err)
				}
				<-done
			}
		})
	}
}

// BenchmarkDefer is one continuation.
func BenchmarkDefer(b *testing.B) {
	p := start(b, Config{Mode: Busy})
	done := make(chan struct{})
	left := b.N
	var step runner
	step = func() {
		if left--; left > 0 {
			p.Defer(step)
		} else {
			close(done)
		}
	}
	b.ReportAllocs()
	do(b, p, func() { p.Defer(step) })
	<-done
}
