// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/uring"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// crooked is a volume whose engine does what kernels may do and rarely do: it
// has no room, moves less than it was asked to, has calls tried again, and
// supports no fallocate.
type crooked struct{ *file }

func (v crooked) Open(p *poller.Poller) (volume.Queue, error) {
	x, err := v.file.Open(p)
	if err != nil {
		return nil, err
	}
	q := x.(*queue)
	q.engine = &crookedEngine{engine: q.engine, p: p, rnd: rand.New(rand.NewPCG(1, 2))}
	return q, nil
}

type crookedEngine struct {
	engine
	p     *poller.Poller
	rnd   *rand.Rand
	calls []*crookedCall // by index of the op
}

// crookedCall is a call that ends with an error, or a shortened one.
type crookedCall struct {
	o     *op
	errno unix.Errno
	short [1]unix.Iovec
}

func (c *crookedCall) Run() { c.o.finish(-int(c.errno)) }

func (e *crookedEngine) start(o *op) error {
	for len(e.calls) <= int(o.index) {
		e.calls = append(e.calls, &crookedCall{})
	}
	c := e.calls[o.index]
	switch k := e.rnd.IntN(8); {
	case k == 0:
		return uring.ErrFull
	case k == 1:
		return e.refuse(c, o, unix.EAGAIN)
	case k == 2:
		return e.refuse(c, o, unix.EINTR)
	case o.call.kind == callAllocate:
		return e.refuse(c, o, unix.EOPNOTSUPP)
	case k < 6 && len(o.call.iov) > 0:
		// Less than the first piece, in the units that direct I/O ends at.
		if n := (o.call.iov[0].Len/3 + 1) &^ (o.layout.unit - 1); n > 0 {
			c.short[0] = unix.Iovec{Base: o.call.iov[0].Base, Len: n}
			o.call.iov = c.short[:]
		}
	}
	return e.engine.start(o)
}

func (e *crookedEngine) refuse(c *crookedCall, o *op, errno unix.Errno) error {
	c.o, c.errno = o, errno
	e.p.Defer(c)
	return nil
}

func TestCrookedEngine(t *testing.T) {
	for i, e := range engines {
		for _, cached := range []bool{false, true} {
			if cached && i > 0 {
				continue // slow: threads have every refusal wait for a look
			}
			t.Run(fmt.Sprintf("%s/cached=%v", e.name, cached), func(t *testing.T) {
				if !e.cfg.NoRing {
					requireRing(t, e.cfg)
				}
				volumetest.Suite(t, volumetest.Subject{
					Make: func(t *testing.T) func(volume.Shape) volume.Volume {
						env, s := volumetest.NewEnv(t, t.TempDir()), spec()
						return func(shape volume.Shape) volume.Volume {
							f := open(t, env, shaped(s, shape))
							if s.Reopen = true; cached {
								f.useCache(t)
							}
							return crooked{f}
						}
					},
					Poller: e.cfg,
				})
			})
		}
	}
}

// failing is an engine whose calls all end with one result.
type failing struct {
	p   *poller.Poller
	res int
}

func (e *failing) start(o *op) error {
	e.p.Defer(ending{o, e.res})
	return nil
}
func (e *failing) cancel(*op) {}
func (e *failing) close()     {}

type ending struct {
	o   *op
	res int
}

func (e ending) Run() { e.o.finish(e.res) }

// What the kernel says comes out as the status that hosts know.
func TestStatus(t *testing.T) {
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	defer f.Close()
	c := volumetest.Connect(t, f, poller.Config{Name: "test", CPU: -1, Fence: -1})
	defer c.Close()
	mem := volumetest.NewMemory(t, 4096)
	e := &failing{p: c.Poller}
	c.On(func() { c.Queue.(*queue).engine = e })
	for _, x := range []struct {
		op   volume.Op
		res  int
		want nvme.Status
	}{
		{volume.Read, -int(unix.EIO), nvme.StatusUnrecoveredReadError},
		{volume.Read, -int(unix.ENODATA), nvme.StatusUnrecoveredReadError},
		{volume.Read, 0, nvme.StatusUnrecoveredReadError},
		{volume.Read, -int(unix.EFAULT), nvme.StatusDataTransferError},
		{volume.Read, -int(unix.EINVAL), nvme.StatusInternalError},
		{volume.Read, -int(unix.EOPNOTSUPP), nvme.StatusUnrecoveredReadError},
		{volume.Write, -int(unix.EIO), nvme.StatusWriteFault},
		{volume.Write, 0, nvme.StatusWriteFault},
		{volume.Write, -int(unix.EROFS), nvme.StatusWriteFault},
		{volume.Write, -int(unix.EFAULT), nvme.StatusDataTransferError},
		{volume.Write, -int(unix.ENOSPC), nvme.StatusCapacityExceeded},
		{volume.Write, -int(unix.EDQUOT), nvme.StatusCapacityExceeded},
		{volume.Write, -int(unix.ECANCELED), nvme.StatusAbortRequested},
		{volume.Flush, -int(unix.EIO), nvme.StatusWriteFault},
		{volume.WriteZeroes, -int(unix.ENOSPC), nvme.StatusCapacityExceeded},
		{volume.Discard, -int(unix.EIO), nvme.StatusWriteFault},
		{volume.Discard, -int(unix.EOPNOTSUPP), nvme.StatusSuccess},
		{volume.Op(99), 0, nvme.StatusInternalError},
	} {
		e.res = x.res
		r := volume.Request{Op: x.op}
		if x.op != volume.Flush {
			r.Length = 4096
		}
		if x.op <= volume.Write {
			r.Segments = mem.Segments(0, 4096)
		}
		if got := c.Do(t.Context(), &r); got != x.want {
			t.Errorf("%s, result %d: got %v, want %v", x.op, x.res, got, x.want)
		}
	}
}

// scripted is an engine that keeps what it was asked for and answers as told.
type scripted struct {
	p       *poller.Poller
	results []int
	asked   []asked
	cancels int
}

// asked is a call: n is the length of its iovecs, or of the range.
type asked struct {
	kind  callKind
	flags uint32
	off   int64
	n     int64
}

func (e *scripted) start(o *op) error {
	c := o.call
	for _, v := range c.iov {
		c.n += int64(v.Len)
	}
	e.asked = append(e.asked, asked{c.kind, c.flags, c.off, c.n})
	res := int(c.n)
	if c.kind == callSync || c.kind == callAllocate {
		res = 0
	}
	if len(e.results) > 0 {
		res, e.results = e.results[0], e.results[1:]
	}
	e.p.Defer(ending{o, res})
	return nil
}

func (e *scripted) cancel(*op) { e.cancels++ }
func (e *scripted) close()     {}

// script opens a queue with a scripted engine on a direct volume whose unit is
// 512 bytes and whose file system has blocks of 4096.
func script(t *testing.T) (*volumetest.Client, *scripted) {
	t.Helper()
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	t.Cleanup(func() { f.Close() })
	l := *f.layout.Load()
	l.direct, l.memAlign, l.unit = true, 512, 512
	l.info.DiscardGranularity = 4096
	f.layout.Store(&l)
	c := volumetest.Connect(t, f, poller.Config{Name: "test", CPU: -1, Fence: -1})
	e := &scripted{p: c.Poller}
	c.On(func() { c.Queue.(*queue).engine = e })
	return c, e
}

// TestCalls: the calls that a request becomes.
func TestCalls(t *testing.T) {
	const (
		punching = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		zeroing  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
		unable   = -int(unix.EOPNOTSUPP)
	)
	for _, x := range []struct {
		name    string
		op      volume.Op
		flags   volume.Flags
		off, n  uint64
		skew    uint64
		results []int
		want    []asked
		status  nvme.Status
	}{
		{"read", volume.Read, 0, 512, 4096, 0, nil,
			[]asked{{callRead, 0, 512, 4096}}, 0},
		{"short read", volume.Read, 0, 512, 4096, 0, []int{700, 1024, 2560},
			[]asked{{callRead, 0, 512, 4096}, {callRead, 0, 1024, 3584}, {callRead, 0, 2048, 2560}}, 0},
		{"read that gets nowhere", volume.Read, 0, 512, 4096, 0, []int{1024, 100},
			[]asked{{callRead, 0, 512, 4096}, {callRead, 0, 1536, 3072}}, nvme.StatusUnrecoveredReadError},
		{"bounced read", volume.Read, 0, 0, bounceSize + 4096, 4, nil,
			[]asked{{callRead, 0, 0, bounceSize}, {callRead, 0, bounceSize, 4096}}, 0},
		{"write", volume.Write, 0, 0, 4096, 0, nil,
			[]asked{{callWrite, 0, 0, 4096}}, 0},
		{"durable write", volume.Write, volume.FUA, 0, 4096, 0, []int{512},
			[]asked{{callWrite, unix.RWF_DSYNC, 0, 4096}, {callWrite, unix.RWF_DSYNC, 512, 3584}}, 0},
		{"durable bounced write", volume.Write, volume.FUA, 0, 4096, 4, nil,
			[]asked{{callWrite, unix.RWF_DSYNC, 0, 4096}}, 0},
		{"again", volume.Write, 0, 0, 4096, 0, []int{-int(unix.EINTR), -int(unix.EAGAIN)},
			[]asked{{callWrite, 0, 0, 4096}, {callWrite, 0, 0, 4096}, {callWrite, 0, 0, 4096}}, 0},
		{"flush", volume.Flush, 0, 0, 0, 0, nil,
			[]asked{{callSync, 0, 0, 0}}, 0},
		{"write zeroes", volume.WriteZeroes, 0, 512, 1024, 0, nil,
			[]asked{{callAllocate, zeroing, 512, 1024}}, 0},
		{"durable write zeroes", volume.WriteZeroes, volume.FUA, 512, 1024, 0, nil,
			[]asked{{callAllocate, zeroing, 512, 1024}, {callSync, 0, 0, 0}}, 0},
		{"deallocate", volume.WriteZeroes, volume.Deallocate, 512, 1024, 0, nil,
			[]asked{{callAllocate, punching, 512, 1024}}, 0},
		{"zeroes by hand", volume.WriteZeroes, 0, 512, bounceSize + 1024, 0, []int{unable},
			[]asked{{callAllocate, zeroing, 512, bounceSize + 1024}, {callWrite, 0, 512, bounceSize}, {callWrite, 0, 512 + bounceSize, 1024}}, 0},
		{"durable zeroes by hand", volume.WriteZeroes, volume.FUA | volume.Deallocate, 512, 1024, 0, []int{unable},
			[]asked{{callAllocate, punching, 512, 1024}, {callWrite, unix.RWF_DSYNC, 512, 1024}}, 0},
		{"discard", volume.Discard, 0, 512, 16384, 0, nil,
			[]asked{{callAllocate, punching, 4096, 12288}}, 0},
		{"discard of one block", volume.Discard, 0, 4096, 4096, 0, nil,
			[]asked{{callAllocate, punching, 4096, 4096}}, 0},
		{"discard of less than a hole", volume.Discard, 0, 512, 4096, 0, nil, nil, 0},
		{"discard where there are no holes", volume.Discard, 0, 0, 4096, 0, []int{unable},
			[]asked{{callAllocate, punching, 0, 4096}}, 0},
	} {
		c, e := script(t)
		e.results = x.results
		r := volume.Request{Op: x.op, Flags: x.flags, Offset: x.off, Length: x.n}
		if x.op == volume.Read || x.op == volume.Write {
			r.Segments = volumetest.NewMemory(t, 1<<20).Segments(x.skew, x.n)
		}
		st := c.Do(t.Context(), &r)
		if st != x.status || !slices.Equal(e.asked, x.want) {
			t.Errorf("%s: %v after calls %+v; want %v after %+v", x.name, st, e.asked, x.status, x.want)
		}
	}
}

// What the file system cannot do it is asked for once.
func TestUnsupportedOnce(t *testing.T) {
	c, e := script(t)
	e.results = []int{-int(unix.EOPNOTSUPP), 4096, -int(unix.EOPNOTSUPP)}
	for _, r := range []volume.Request{
		{Op: volume.WriteZeroes, Length: 4096},
		{Op: volume.Discard, Length: 4096},
		{Op: volume.WriteZeroes, Length: 4096},
		{Op: volume.WriteZeroes, Length: 4096, Flags: volume.Deallocate},
		{Op: volume.Discard, Length: 4096},
	} {
		if st := c.Do(t.Context(), &r); st != nvme.StatusSuccess {
			t.Errorf("%s: %v", r.Op, st)
		}
	}
	var kinds []callKind
	for _, a := range e.asked {
		kinds = append(kinds, a.kind)
	}
	if want := []callKind{callAllocate, callWrite, callAllocate, callWrite, callWrite}; !slices.Equal(kinds, want) {
		t.Errorf("calls %v, want %v", kinds, want)
	}
}

// A wish to cancel a request that has ended does not hit the one after it.
func TestCancelLate(t *testing.T) {
	c, e := script(t)
	first, second := volume.Request{Op: volume.Flush}, volume.Request{Op: volume.Flush, Owner: nobody{}}
	if st := c.Do(t.Context(), &first); st != nvme.StatusSuccess {
		t.Fatal(st)
	}
	c.On(func() {
		c.Queue.Submit(&second)
		c.Queue.Cancel(&first)
		c.Queue.Cancel(&volume.Request{Scratch: [2]uint64{1 << 40}})
		if e.cancels != 0 {
			t.Error("a request that was not meant is cancelled")
		}
		c.Queue.Cancel(&second)
		if e.cancels != 1 {
			t.Error("the request is not cancelled")
		}
	})
}

// Memory is only copied where direct I/O needs it so.
func TestBounceOnlyUnaligned(t *testing.T) {
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	defer f.Close()
	if !f.layout.Load().direct {
		t.Skip("not run: the file system of the temporary folder has no direct I/O")
	}
	c := volumetest.Connect(t, f, poller.Config{Name: "test", CPU: -1, Fence: -1})
	defer c.Close()
	mem := volumetest.NewMemory(t, 1<<20)
	for _, x := range []struct {
		segs []dma.Segment
		want bool
	}{
		{mem.Segments(0, 4096), false},
		{mem.Cut(f.layout.Load().memAlign, f.layout.Load().unit, 4096-f.layout.Load().unit), false},
		{mem.Segments(4, 4096), f.layout.Load().memAlign > 4},
		{mem.Cut(0, 4, 4092), true},
	} {
		var used bool
		r := volume.Request{Op: volume.Read, Length: 4096, Segments: x.segs, Owner: nobody{}}
		c.On(func() {
			q := c.Queue.(*queue)
			q.Submit(&r)
			used = len(q.bufs.free) < bounceCount
		})
		if used != x.want {
			t.Errorf("%v: copied: %v, want %v", x.segs, used, x.want)
		}
		// Ends before the memory does.
		flush := volume.Request{Op: volume.Read, Length: 4096, Segments: mem.Segments(8192, 4096)}
		for range 2 {
			c.Do(t.Context(), &flush)
		}
	}
}

type nobody struct{}

func (nobody) Completed(*volume.Request) {}

// Closing a queue ends its goroutines.
func TestThreadsEnd(t *testing.T) {
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	defer f.Close()
	before := runtime.NumGoroutine()
	for range 3 {
		c := volumetest.Connect(t, f, poller.Config{Name: "test", CPU: -1, Fence: -1, NoRing: true})
		if n := runtime.NumGoroutine(); n < before+threadCount {
			t.Errorf("%d goroutines with a queue, want %d more than %d", n, threadCount, before)
		}
		c.Close()
	}
	// A goroutine that was waited for is counted for a moment longer.
	for tries := 0; runtime.NumGoroutine() > before; tries++ {
		if tries == 1000 {
			t.Fatalf("%d goroutines after Close, want %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(time.Millisecond)
	}
}

func BenchmarkFile(b *testing.B) {
	for _, e := range engines {
		for _, op := range []volume.Op{volume.Read, volume.Write} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/4K/depth=%d", e.name, op, depth), func(b *testing.B) {
					f := open(b, volumetest.NewEnv(b, b.TempDir()), spec("size=64M", "block=4096"))
					defer f.Close()
					volumetest.Bench(b, f, e.cfg, op, 4096, depth)
				})
			}
		}
	}
}
