// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fabrics/tcp"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/file"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// TestAllocations: a command allocates nothing, whichever way its data goes.
func TestAllocations(t *testing.T) {
	f := start(t, Limits{})
	for _, digests := range []bool{false, true} {
		o := fabricstest.Options{HeaderDigest: digests, DataDigest: digests}
		admin := f.enabled(t, o)
		q := f.io(t, admin, o, 1, fabrics.CATTRNoFlowControl)
		capsule := func(e nvme.SQE, sgl nvme.SGLDescriptor, data []byte) []byte {
			e.SetPSDT(nvme.PSDTSGL)
			e.SetSGL1(sgl)
			c := fabrics.CapsuleCmd{SQE: e}
			return q.Encode(fabrics.TypeCapsuleCmd, 0, fabrics.Bytes(&c), data)
		}
		size := func(t fabrics.PDUType, n int) int {
			var h fabrics.CommonHeader
			return int(q.In.Make(&h, t, 0, uint32(n)).Length)
		}
		const n = 256 << 10
		read := capsule(rw(nvme.IORead, 1, 0, n), fabrics.InTransport(n), nil)
		inline := capsule(rw(nvme.IOWrite, 1, 0, 4096), fabrics.InCapsule(4096), make([]byte, 4096))
		write := capsule(rw(nvme.IOWrite, 1, 0, 128<<10), fabrics.InTransport(128<<10), nil)
		got := make([]byte, n+1024)
		say := func(p []byte, answer int) {
			if _, err := q.Conn.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(q.Conn, got[:answer]); err != nil {
				t.Fatal(err)
			}
		}
		// The record, and so the R2T, is the same each time.
		say(write, size(fabrics.TypeR2T, 0))
		d := fabrics.Data{TTAG: binary.LittleEndian.Uint16(got[10:]), DATAL: 128 << 10}
		h2c := q.Encode(fabrics.TypeH2CData, fabrics.FlagLast, fabrics.Bytes(&d), make([]byte, 128<<10))
		say(h2c, size(fabrics.TypeCapsuleResp, 0))
		for name, f := range map[string]func(){
			"read":             func() { say(read, size(fabrics.TypeC2HData, n)) },
			"write in capsule": func() { say(inline, size(fabrics.TypeCapsuleResp, 0)) },
			"write by R2T": func() {
				say(write, size(fabrics.TypeR2T, 0))
				say(h2c, size(fabrics.TypeCapsuleResp, 0))
			},
		} {
			// Nobody else allocates; the runtime may now and then.
			if got := testing.AllocsPerRun(200, f); got != 0 {
				t.Errorf("%s, digests %v: %v allocations", name, digests, got)
			}
		}
	}
}

// Benchmark is our host against our target over loopback, each with threads of
// its own: one queue, with depth commands in flight. 127 is what a queue of 128
// entries holds. Beside the time there is the CPU time that each side uses for a
// command; what the kernel does to deliver a packet is with who sends it. That of
// the target is all of the process but the host's thread.
func Benchmark(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(5)) // three pollers, and the rest
	for _, kind := range []struct {
		name string
		nsid uint32
	}{{"null", 2}, {"mem", 1}, {"file", 4}} {
		for _, op := range []nvme.IOOpcode{nvme.IORead, nvme.IOWrite} {
			for _, n := range []int{4 << 10, 128 << 10} {
				for _, depth := range []int{1, 32, 127} {
					for _, digests := range []bool{false, true} {
						name := fmt.Sprintf("volume=%s/op=%v/size=%dK/depth=%d/digests=%v", kind.name, op, n>>10, depth, digests)
						b.Run(name, func(b *testing.B) {
							file := dataFile(b)
							f := start(b, Limits{})
							if err := f.sub.Add(&controller.Namespace{NSID: 4, Volume: file, Name: "file", UUID: nvme.NewUUID()}); err != nil {
								b.Fatal(err)
							}
							l := newLoad(b, f, digests, rw(op, kind.nsid, 0, n), n, depth)
							defer l.close()
							l.run(b)
						})
					}
				}
			}
		}
	}
}

// dataFile is a volume in a file that has no holes.
func dataFile(b *testing.B) volume.Volume {
	path := filepath.Join(b.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, memSize), 0o600); err != nil {
		b.Fatal(err)
	}
	env := volumetest.NewEnv(b, b.TempDir())
	v, err := file.Kind.Make(b.Context(), env, &volume.Spec{Name: "f", Options: map[string]string{"path": path}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := v.Close(); err != nil {
			b.Error(err)
		}
	})
	return v
}

// load is a host that keeps a number of commands in flight.
type load struct {
	admin  *host.Admin
	socket *host.Socket
	p      *poller.Poller
	set    *tcp.Set
	queue  *host.Queue
	flight []inFlight
	blocks uint64 // of each command
	next   uint64 // block

	left, running int
	failed        nvme.Status
	done          chan struct{}
}

// inFlight is a command in flight.
type inFlight struct {
	host.Command
	l *load
}

// newLoad connects.
func newLoad(b *testing.B, f *fixture, digests bool, e nvme.SQE, n, depth int) *load {
	l := &load{flight: make([]inFlight, depth), blocks: uint64(n / 512), done: make(chan struct{}, 1)}
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	addr, err := fabrics.ParseAddress("tcp://" + f.addr.String() + "/" + testNQN)
	check(err)
	o := host.Options{HostNQN: hostNQN, HostID: nvme.NewUUID(), HeaderDigest: digests, DataDigest: digests, Timeout: patience}
	l.admin, err = host.Connect(b.Context(), addr, o)
	check(err)
	check(l.admin.Enable(b.Context()))
	id, err := l.admin.IdentifyController(b.Context())
	check(err)
	l.socket, err = l.admin.ConnectQueue(b.Context(), addr, o, id, 1)
	check(err)
	l.p, err = poller.Start(poller.Config{Name: "host", CPU: -1, Fence: -1, NoRing: true})
	check(err)
	check(l.p.Do(func() {
		if l.set, err = tcp.NewSet(l.p); err == nil {
			l.queue, err = host.NewQueue(l.set, l.socket, func(error) {})
		}
	}))
	check(err)
	for i := range l.flight {
		r := &l.flight[i]
		r.SQE, r.Data, r.Owner, r.l = e, make([]byte, n), r, l
	}
	return l
}

func (l *load) close() {
	_ = l.p.Do(func() { l.queue.Close(io.EOF) })
	_ = l.p.Do(l.set.Close)
	l.p.Stop()
	l.socket.Close()
	l.admin.Close()
}

// run runs b.N commands.
func (l *load) run(b *testing.B) {
	b.SetBytes(int64(len(l.flight[0].Data)))
	b.ReportAllocs()
	var before, after cpu
	_ = l.p.Do(func() { before = usage(b) })
	b.ResetTimer()
	_ = l.p.Post(func() {
		l.left = b.N
		for i := range l.flight {
			l.begin(&l.flight[i])
		}
	})
	<-l.done
	b.StopTimer()
	_ = l.p.Do(func() { after = usage(b) })
	if l.failed != nvme.StatusSuccess {
		b.Fatal(l.failed)
	}
	mine := after.thread - before.thread
	b.ReportMetric(float64(mine)/float64(b.N), "host-cpu-ns/op")
	b.ReportMetric(float64(after.all-before.all-mine)/float64(b.N), "target-cpu-ns/op")
}

// begin begins a command, if there is one left.
func (l *load) begin(r *inFlight) {
	if l.left == 0 {
		if l.running == 0 {
			l.done <- struct{}{}
		}
		return
	}
	l.left--
	nvme.RW{SLBA: l.next, NLB: uint16(l.blocks - 1)}.Put(&r.SQE)
	const step = 6073 // commands, a prime: neighbours are not served one after the other
	l.next = (l.next + step*l.blocks) % (memSize / 512)
	if l.running++; !l.queue.Start(&r.Command) {
		l.failed = nvme.StatusHostPathingError
		l.end(r)
	}
}

// Ended implements host.Owner.
func (r *inFlight) Ended(c *host.Command) {
	if c.Lost || c.Status != nvme.StatusSuccess {
		r.l.failed = c.Status
	}
	r.l.end(r)
}

// end notes the end of a command.
func (l *load) end(r *inFlight) {
	if l.running--; l.failed != nvme.StatusSuccess {
		l.left = 0
	}
	l.begin(r)
}

// cpu is what was used of processors.
type cpu struct{ thread, all time.Duration }

// usage is that of this thread, and of the process.
func usage(b *testing.B) cpu {
	get := func(who int) time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Error(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return cpu{get(unix.RUSAGE_THREAD), get(unix.RUSAGE_SELF)}
}
