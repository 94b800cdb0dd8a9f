// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package file

import (
	"fmt"
	"math/rand/v2"
	"runtime"
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
	q.engine = &crookedEngine{engine: q.engine, p: p, unit: v.unit, rnd: rand.New(rand.NewPCG(1, 2))}
	return q, nil
}

type crookedEngine struct {
	engine
	p     *poller.Poller
	unit  uint64
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
		if n := (o.call.iov[0].Len/3 + 1) &^ (e.unit - 1); n > 0 {
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
					Make: func(t *testing.T, size uint64, block uint32) func() volume.Volume {
						env, s := volumetest.NewEnv(t, t.TempDir()), spec(fmt.Sprint("size=", size), fmt.Sprint("block=", block))
						return func() volume.Volume {
							f := open(t, env, s)
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

// Memory is only copied where direct I/O needs it so.
func TestBounceOnlyUnaligned(t *testing.T) {
	f := open(t, volumetest.NewEnv(t, t.TempDir()), spec("size=1M"))
	defer f.Close()
	if !f.direct {
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
		{mem.Cut(f.memAlign, f.unit, 4096-f.unit), false},
		{mem.Segments(4, 4096), f.memAlign > 4},
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
