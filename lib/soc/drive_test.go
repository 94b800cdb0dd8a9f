// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
	"github.com/leapio/leapio/lib/wpt"
)

// rig is both daemons in this process, in folders of their own.
type rig struct {
	t       testing.TB
	paths   api.Paths
	log     *slog.Logger
	lines   *testLog
	pollers int // of leap-soc
	poll    poller.Mode
	child   bool // daemons are processes of their own from their next start on
	wpt     *daemon
	soc     *daemon
}

// daemon is a running leap-wpt or leap-soc.
type daemon struct {
	cancel context.CancelFunc
	done   chan error
	kill   func() // by SIGKILL; nil where it is no process of its own
	pid    int    // of its own; 0: none
}

// newRig starts both daemons.
func newRig(t testing.TB) *rig { return newRigOf(t, 1) }

// newRigOf starts both daemons, leap-soc with so many pollers.
func newRigOf(t testing.TB, pollers int) *rig {
	t.Helper()
	r := newFolders(t, pollers)
	r.start()
	return r
}

// newProcesses starts both daemons as processes of their own.
func newProcesses(t testing.TB, pollers int) *rig {
	t.Helper()
	r := newFolders(t, pollers)
	r.child = true
	r.start()
	return r
}

// newFolders makes a rig in which nothing runs.
func newFolders(t testing.TB, pollers int) *rig {
	t.Helper()
	run, err := os.MkdirTemp("", "leap") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	paths, err := api.NewPaths(run, filepath.Join(run, "state"))
	if err != nil {
		t.Fatal(err)
	}
	lines := &testLog{t: t}
	return &rig{t: t, paths: paths, pollers: pollers, log: slog.New(slog.NewTextHandler(lines, nil)), lines: lines}
}

// start starts both daemons, until the end of the test.
func (r *rig) start() {
	r.t.Helper()
	r.startWpt()
	r.t.Cleanup(func() { r.stopWpt() })
	r.startSoc()
	r.t.Cleanup(r.stopSoc)
}

// startWpt starts leap-wpt and waits until it serves.
func (r *rig) startWpt() {
	r.t.Helper()
	if r.child {
		r.wpt = r.startChild("leap-wpt")
		r.eventually("leap-wpt answers", func() bool {
			return r.paths.Wpt().Get(context.Background(), "/v1/ports", new(api.List[api.Port])) == nil
		})
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	r.wpt = &daemon{cancel: cancel, done: make(chan error, 1)}
	go func() {
		r.wpt.done <- wpt.Run(ctx, wpt.Config{Paths: r.paths, Logger: r.log, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-r.wpt.done:
		r.t.Fatal("leap-wpt:", err)
	}
}

// stopWpt stops leap-wpt: guests lose their drives.
func (r *rig) stopWpt() {
	r.wpt.cancel()
	if err := <-r.wpt.done; err != nil {
		r.t.Error("leap-wpt:", err)
	}
}

// startSoc starts leap-soc and waits until it serves.
func (r *rig) startSoc() {
	r.t.Helper()
	var d *daemon
	if r.child {
		d = r.startChild("leap-soc")
	} else {
		ctx, cancel := context.WithCancel(context.Background())
		d = &daemon{cancel: cancel, done: make(chan error, 1)}
		go func() {
			d.done <- soc.Run(ctx, soc.Config{Paths: r.paths, Log: r.log, Poll: r.poll, CPUs: slices.Repeat([]int{-1}, r.pollers)})
		}()
	}
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var info api.RuntimeInfo
		if err := r.client().Get(context.Background(), "/v1/runtime", &info); err == nil {
			break
		} else if time.Since(start) > 10*time.Second {
			r.t.Fatal("leap-soc does not answer:", err)
		}
		select {
		case err := <-d.done:
			r.t.Fatal("leap-soc:", err)
		default:
		}
	}
	r.soc = d
}

// stopSoc stops leap-soc cleanly.
func (r *rig) stopSoc() {
	if r.soc == nil {
		return
	}
	r.soc.cancel()
	select {
	case err := <-r.soc.done:
		if err != nil {
			r.t.Error("leap-soc:", err)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("leap-soc does not stop")
	}
	r.soc = nil
}

func (r *rig) client() *api.Client {
	c, err := r.paths.Runtime("")
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// call makes a call that must succeed.
func call[T any](r *rig, c *api.Client, method, path string, in any) T {
	r.t.Helper()
	var out T
	var err error
	switch method {
	case "GET":
		err = c.Get(context.Background(), path, &out)
	case "POST":
		err = c.Post(context.Background(), path, in, &out)
	case "PUT":
		err = c.Put(context.Background(), path, in, &out)
	case "DELETE":
		err = c.Delete(context.Background(), path, in, &out)
	}
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	return out
}

// volume makes a volume.
func (r *rig) volume(name, kind string, options ...string) {
	r.t.Helper()
	spec := api.VolumeSpec{Name: name, Kind: kind, Options: make(api.Options)}
	for i := 0; i < len(options); i += 2 {
		spec.Options[options[i]] = options[i+1]
	}
	call[api.Volume](r, r.client(), "POST", "/v1/volumes", spec)
}

// wire makes a port that shows volumes, as leap-qmap map does.
func (r *rig) wire(port, doorbells string, volumes ...string) {
	r.t.Helper()
	call[api.Subsystem](r, r.client(), "POST", "/v1/subsystems", api.SubsystemSpec{Name: port, Implicit: true, Volumes: volumes})
	call[api.Port](r, r.paths.Wpt(), "POST", "/v1/ports", api.PortSpec{Name: port, Doorbells: doorbells})
	call[api.Port](r, r.paths.Wpt(), "PUT", "/v1/ports/"+port, api.PortBinding{Subsystem: port})
}

// guest connects a machine to a port and enables its controller.
func (r *rig) guest(port string, mem vfiousertest.MemoryOptions) *vfiousertest.NVMe {
	r.t.Helper()
	m, err := vfiousertest.NewMemory(mem)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { m.Close() })
	c, err := vfiousertest.Dial(r.paths.PortSocket(port), m, vfiousertest.Options{})
	if err != nil {
		r.t.Fatal("connecting:", err)
	}
	r.t.Cleanup(func() { c.Close() })
	n, err := vfiousertest.NewNVMe(c)
	if err != nil {
		r.t.Fatal("probing:", err)
	}
	return n
}

// testLog sends log lines to the test, and counts those that complain.
type testLog struct {
	t          testing.TB
	mu         sync.Mutex
	complaints [][]byte
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if testing.Verbose() {
		fmt.Fprint(os.Stderr, string(b))
	}
	if bytes.Contains(b, []byte("level=WARN")) || bytes.Contains(b, []byte("level=ERROR")) {
		l.complaints = append(l.complaints, bytes.Clone(b))
	}
	return len(b), nil
}

// complained returns how many lines complained.
func (l *testLog) complained() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.complaints)
}

// has reports whether a line that complained has all the words.
func (l *testLog) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.complaints, func(line []byte) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !bytes.Contains(line, []byte(w)) })
	})
}

var small = vfiousertest.MemoryOptions{Low: 64 << 20, High: 16 << 20}

// TestDrive writes and reads through every kind of volume, doorbell and
// interrupt there is.
func TestDrive(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap, "shadow"} {
			for _, irq := range []string{"poll", "msix", "intx"} {
				t.Run(kind+"/"+doorbells+"/"+irq, func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					r.volume("d1", kind, "size", "32M")
					mode := doorbells
					if mode == "shadow" {
						mode = api.DoorbellsTrap
					}
					r.wire("vm1", mode, "d1")
					n := r.guest("vm1", small)
					vector := vfiousertest.Polled
					var err error
					switch irq {
					case "msix":
						vector, err = 1, n.UseMSIX()
					case "intx":
						vector, err = 0, n.UseINTx()
					}
					if err == nil {
						err = n.Enable(32)
					}
					if err != nil {
						t.Fatal(err)
					}
					if doorbells == "shadow" {
						if err := n.EnableShadowDoorbells(); err != nil {
							t.Fatal("shadow doorbells:", err)
						}
					}
					exercise(t, n, vector)
				})
			}
		}
	}
}

// exercise writes and reads back on a queue pair of a drive of 32 MiB.
func exercise(t *testing.T, n *vfiousertest.NVMe, vector int) {
	t.Helper()
	q, err := n.CreatePair(1, 64, vector)
	if err != nil {
		t.Fatal("creating queues:", err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{512, 4096, 8192, 64 << 10, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		lba := uint64(rng.IntN((32<<20 - size) / 512))
		if err := q.Write(1, lba, data, 512); err != nil {
			t.Fatalf("write of %d bytes at %d: %v", size, lba, err)
		}
		got := make([]byte, size)
		if err := q.Read(1, lba, got, 512); err != nil {
			t.Fatalf("read of %d bytes at %d: %v", size, lba, err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes at %d: read back is not what was written", size, lba)
		}
	}
	if err := q.Flush(1); err != nil {
		t.Fatal("flush:", err)
	}
}

// TestUnsharedMemory serves guests whose memory is reached by messages only,
// also where that shows only when the guest has written to it; across a reset
// and a restart.
func TestUnsharedMemory(t *testing.T) {
	for name, mem := range map[string]vfiousertest.MemoryOptions{
		"no files":     {Low: 64 << 20, Private: true},
		"private copy": {Low: 64 << 20, Copied: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.volume("d1", "mem", "size", "32M")
			r.wire("vm1", api.DoorbellsTrap, "d1")
			n := r.guest("vm1", mem)
			if err := n.UseMSIX(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := n.Enable(32); err != nil {
					t.Fatal(err)
				}
				exercise(t, n, 1)
			}
			r.stopSoc()
			r.startSoc()
			exercise(t, second(t, n), 1)
			n.Client().Close()
			r.waitState("vm1", api.PortWaiting)
			next := r.guest("vm1", small)
			if err := next.Enable(32); err != nil {
				t.Fatal(err)
			}
			exercise(t, next, vfiousertest.Polled)
		})
	}
}

// TestRestart stops and starts leap-soc under a drive in use.
func TestRestart(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t)
			r.volume("d1", kind, "size", "32M")
			r.wire("vm1", api.DoorbellsTrap, "d1")
			n := r.guest("vm1", small)
			if err := n.UseMSIX(); err != nil {
				t.Fatal(err)
			}
			if err := n.Enable(32); err != nil {
				t.Fatal(err)
			}
			q, err := n.CreatePair(1, 64, 1)
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte("leap"), 1024)
			for round := range 5 {
				data[0] = byte(round)
				if err := q.Write(1, uint64(round)*8, data, 512); err != nil {
					t.Fatal("write:", err)
				}
				r.stopSoc()
				r.startSoc()
				got := make([]byte, len(data))
				if err := q.Read(1, uint64(round)*8, got, 512); err != nil {
					t.Fatalf("read after restart %d: %v", round, err)
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("restart %d: data changed", round)
				}
			}
			if err := n.Disable(); err != nil {
				t.Fatal(err)
			}
			if err := n.Enable(32); err != nil {
				t.Fatal(err)
			}
			exercise(t, n, 1)
		})
	}
}

// TestRestartUnderLoad stops and starts leap-soc while a guest writes and
// verifies on several queues: it sees pauses, never an error or a wrong byte.
func TestRestartUnderLoad(t *testing.T) {
	restarts := 10
	if testing.Short() {
		restarts = 3
	}
	for _, kind := range []string{"mem", "file"} {
		for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap, "shadow"} {
			t.Run(kind+"/"+doorbells, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				r.volume("d1", kind, "size", "64M")
				n := r.drive("vm1", doorbells, small, "d1")
				load := newLoad(t, n, 2)
				for range restarts {
					time.Sleep(20 * time.Millisecond)
					r.stopSoc()
					r.startSoc()
				}
				load.end()
			})
		}
	}
}

// verify writes and reads back in a region of its own until stop.
func verify(t *testing.T, q *vfiousertest.Pair, region uint64, stop <-chan struct{}) {
	rng := rand.New(rand.NewPCG(region, 1))
	last := make(map[uint64][]byte)
	for {
		select {
		case <-stop:
			return
		default:
		}
		lba := region*8192 + uint64(rng.IntN(100))*8
		if want := last[lba]; want != nil {
			got := make([]byte, len(want))
			if err := q.Read(1, lba, got, 512); err != nil || !bytes.Equal(got, want) {
				t.Errorf("region %d: read at %d: %v, equal %t", region, lba, err, bytes.Equal(got, want))
				return
			}
		}
		data := pattern(4096, rng.Uint64())
		if err := q.Write(1, lba, data, 512); err != nil {
			t.Errorf("region %d: write at %d: %v", region, lba, err)
			return
		}
		last[lba] = data
	}
}

// TestGuestBeforeRuntime: a guest that starts first waits for the runtime.
func TestGuestBeforeRuntime(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "32M")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	r.stopSoc()
	n := r.guest("vm1", small)
	enabled := make(chan error, 1)
	go func() { enabled <- n.Enable(32) }()
	time.Sleep(100 * time.Millisecond)
	select {
	case err := <-enabled:
		t.Fatal("enabled without a runtime:", err)
	default:
	}
	r.startSoc()
	if err := <-enabled; err != nil {
		t.Fatal(err)
	}
	exercise(t, n, vfiousertest.Polled)
}

// TestBrokerRestarts: a runtime attaches to a new leap-wpt and has it keep the
// memory of its volumes, so that they survive the runtime's own restart again.
func TestBrokerRestarts(t *testing.T) {
	r := newRig(t)
	r.volume("d1", "mem", "size", "32M")
	r.wire("vm1", api.DoorbellsTrap, "d1")
	data := pattern(4096, 11)
	use := func(write bool) {
		t.Helper()
		n := r.guest("vm1", small)
		if err := n.Enable(32); err != nil {
			t.Fatal(err)
		}
		q, err := n.CreatePair(1, 64, vfiousertest.Polled)
		if err != nil {
			t.Fatal(err)
		}
		if write {
			if err := q.Write(1, 7, data, 512); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(data))
		if err := q.Read(1, 7, got, 512); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read: %v, equal %t", err, bytes.Equal(got, data))
		}
		n.Client().Close()
		r.waitState("vm1", api.PortWaiting)
	}
	use(true)
	r.stopWpt()
	r.startWpt()
	use(false)
	r.stopSoc()
	r.startSoc()
	use(false)
}

// TestConcurrentCreates makes volumes from many clients at once, some of which
// fail; what failed is not there after a restart.
func TestConcurrentCreates(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := range 10 {
				spec := api.VolumeSpec{Name: fmt.Sprintf("v%d.%d", i, j), Kind: "null", Options: api.Options{"size": "1M"}}
				if j%2 == 1 {
					spec.Options["size"] = "1000" // not whole blocks
				}
				err := r.client().Post(context.Background(), "/v1/volumes", spec, nil)
				if (err == nil) != (j%2 == 0) {
					t.Errorf("%s: %v", spec.Name, err)
				}
			}
		})
	}
	wg.Wait()
	for range 2 {
		if n := len(call[api.List[api.Volume]](r, r.client(), "GET", "/v1/volumes", nil)); n != 50 {
			t.Errorf("%d volumes, want 50", n)
		}
		r.stopSoc()
		r.startSoc()
	}
}
