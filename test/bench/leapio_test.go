// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// Who serves has the first core for its own, and the client the second.
const (
	serverCPU = "0"
	clientCPU = "1"
)

// where is how a client gets at a drive.
type where struct {
	dirs []string // of vfio-user ports
	addr string   // HOST:PORT of NVMe/TCP
	nqn  string
}

// daemons are the processes of one side.
type daemons interface {
	// start makes what the side needs and starts them; they serve when it returns.
	start() error
	// launch starts them again after stop, with what they have kept, and does not wait.
	launch() error
	where() where
	counted() (counters, error)
	// memory is what they have resident, with huge pages, in MiB; the data of the
	// memory volume is not counted.
	memory() (float64, error)
	stop() error
}

// counters are what daemons have used since they started.
type counters struct {
	cpu  time.Duration // of processors
	busy time.Duration // of that, as they count it themselves, on commands: who polls uses all of its processor
	gc   uint64        // garbage collections
}

// process is a daemon.
type process struct {
	*exec.Cmd
	log *os.File
}

// launch starts a program on the CPU of those who serve. Its messages go to a log.
func launch(log string, env []string, name string, args ...string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("taskset", append([]string{"-c", serverCPU, name}, args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), f, f
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &process{cmd, f}, nil
}

// end has the process end in its own way, or else kills it.
func (p *process) end() error {
	if p == nil {
		return nil
	}
	defer p.log.Close()
	_ = p.Process.Signal(unix.SIGCONT)
	_ = p.Process.Signal(unix.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = p.Process.Kill() })
	defer late.Stop()
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// leapio is leap-wpt and leap-soc with folders of their own.
type leapio struct {
	bin, dir string
	file     string // of the file volume
	size     int    // of other volumes, in MiB
	side     *side
	port     string
	wpt, soc *process
}

func (l *leapio) paths() api.Paths {
	return api.Paths{Run: filepath.Join(l.dir, "run"), State: filepath.Join(l.dir, "state")}
}

const ourNQN = "nqn.2014-08.org.nvmexpress:uuid:8c3cd5a3-8e0e-4a7f-9a53-0a5f5b1f8d51"

// setup is the commands that make what a side needs.
func (l *leapio) setup() string {
	var b strings.Builder
	volume := func(name string) {
		fmt.Fprintf(&b, "leap-soc volume create %s %s", name, l.side.volume)
		switch l.side.volume {
		case "file":
			fmt.Fprintf(&b, " path=%s\n", l.file)
		case "mem":
			fmt.Fprintf(&b, " size=%dM populate=on\n", l.size) // as the peer does
		default:
			fmt.Fprintf(&b, " size=%dM\n", l.size)
		}
	}
	if l.side.path == tcp {
		volume("d0")
		fmt.Fprintf(&b, "leap-soc subsystem create s0 --nqn %s --allow-any\n", ourNQN)
		fmt.Fprintf(&b, "leap-soc namespace add s0 d0\n")
		fmt.Fprintf(&b, "leap-rdma listen tcp://127.0.0.1:%s s0\n", l.port)
		return b.String()
	}
	for i := range l.side.drives + l.side.idle {
		volume(fmt.Sprintf("d%d", i))
		fmt.Fprintf(&b, "leap-wpt port add p%d --doorbells map\n", i)
		fmt.Fprintf(&b, "leap-qmap map p%d d%d\n", i, i)
	}
	return b.String()
}

func (l *leapio) start() (err error) {
	if l.port, err = freePort(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(l.dir), os.MkdirAll(l.dir, 0o700)); err != nil {
		return err
	}
	setup := filepath.Join(l.dir, "setup")
	if err := os.WriteFile(setup, []byte(l.setup()), 0o600); err != nil {
		return err
	}
	if err := l.run("--setup", setup); err != nil {
		return err
	}
	wait := exec.Command(filepath.Join(l.bin, "leap-soc"), "wait", "runtime", "soc", "applied", "--timeout", "60s")
	wait.Env = append(os.Environ(), l.env()...)
	if out, err := wait.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(l.dir, "soc.log"))
		return fmt.Errorf("leap-soc wait: %w\n%s%s", err, out, log)
	}
	return nil
}

func (l *leapio) env() []string {
	p := l.paths()
	return []string{"LEAP_RUN_DIR=" + p.Run, "LEAP_STATE_DIR=" + p.State}
}

func (l *leapio) launch() error { return l.run() }

// run starts both daemons.
func (l *leapio) run(args ...string) (err error) {
	if l.wpt, err = launch(filepath.Join(l.dir, "wpt.log"), l.env(), filepath.Join(l.bin, "leap-wpt"), "run"); err != nil {
		return err
	}
	args = append([]string{"run", "--pollers", serverCPU}, args...)
	l.soc, err = launch(filepath.Join(l.dir, "soc.log"), l.env(), filepath.Join(l.bin, "leap-soc"), args...)
	return err
}

func (l *leapio) where() where {
	w := where{addr: "127.0.0.1:" + l.port, nqn: ourNQN}
	for i := range l.side.drives + l.side.idle {
		w.dirs = append(w.dirs, filepath.Join(l.paths().Run, "port", fmt.Sprintf("p%d", i)))
	}
	return w
}

func (l *leapio) pids() []int { return []int{l.wpt.Process.Pid, l.soc.Process.Pid} }

func (l *leapio) counted() (c counters, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := l.paths().Runtime("soc")
	if err != nil {
		return c, err
	}
	var s api.Stat
	if err := client.Get(ctx, api.Path("stat", "volume"), &s); err != nil {
		return c, err
	}
	for _, p := range s.Pollers {
		c.busy += p.Busy
	}
	c.gc = s.GC.Cycles
	c.cpu, err = processors(l.pids())
	return c, err
}

func (l *leapio) memory() (float64, error) {
	var sum float64
	for _, pid := range l.pids() {
		// RssShmem is memory of guests and of memory volumes.
		for _, what := range []string{"RssAnon", "RssFile"} {
			n, err := status(pid, what)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

func (l *leapio) stop() error {
	err := errors.Join(l.soc.end(), l.wpt.end())
	l.soc, l.wpt = nil, nil
	return err
}

// freePort finds a TCP port that nobody listens at.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// status reads an amount of memory from /proc/PID/status, in MiB.
func status(pid int, name string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == name+":" {
			kib, err := strconv.ParseFloat(string(f[1]), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, name)
}

// processors is what processes have used of processors.
func processors(pids []int) (time.Duration, error) {
	var ticks time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name, in parentheses, can hold anything.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		const utime, stime = 11, 12
		for _, i := range []int{utime, stime} {
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += time.Duration(n)
		}
	}
	const perSecond = 100 // USER_HZ
	return ticks * time.Second / perSecond, nil
}

// firstCompletion connects to a drive that is about to come, and reads a block.
func firstCompletion(dir string) error {
	mem, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 16 << 20, Sealed: true})
	if err != nil {
		return err
	}
	defer mem.Close()
	var c *vfiousertest.Client
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
		if c, err = vfiousertest.Dial(filepath.Join(dir, "cntrl"), mem, vfiousertest.Options{Timeout: patience}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	defer c.Close()
	n, err := enable(c)
	if err != nil {
		return err
	}
	p, err := n.CreatePair(1, 32, vfiousertest.Polled)
	if err != nil {
		return err
	}
	return p.Read(1, 0, make([]byte, block), block)
}
