// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/command/commandtest"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// managed is a leap-wpt whose service manager brings it back, and a leap-soc.
type managed struct {
	t       *testing.T
	dir     string
	env     []string
	log     *os.File
	manager *commandtest.Manager
	wpt     *commandtest.Process
	ready   int
}

func newManaged(t *testing.T) *managed {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "leap-store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &managed{t: t, dir: dir}
	m.env = append(os.Environ(), "LEAP_RUN_DIR="+filepath.Join(dir, "run"), "LEAP_STATE_DIR="+filepath.Join(dir, "state"))
	if m.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", m.logged())
		}
		m.log.Close()
	})
	if m.manager, err = commandtest.NewManager(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.manager.Close(); err != nil {
			t.Error(err)
		}
	})
	m.start()
	t.Cleanup(func() {
		_ = m.wpt.Signal(syscall.SIGKILL)
		_ = m.wpt.Wait()
	})
	return m
}

func (m *managed) logged() string {
	text, err := os.ReadFile(m.log.Name())
	if err != nil {
		m.t.Error(err)
	}
	if n := len(text) - 100<<10; n > 0 {
		text = text[n:]
	}
	return string(text)
}

// start starts leap-wpt and waits until it serves.
func (m *managed) start() {
	m.t.Helper()
	path, err := exec.LookPath("leap-wpt")
	if err == nil {
		m.wpt, err = m.manager.Start(path, []string{"run"}, m.env, m.log)
	}
	if err == nil {
		m.ready, err = m.manager.AwaitReady(m.ready, m.wpt, limit)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// crash kills leap-wpt and brings it back.
func (m *managed) crash() {
	m.t.Helper()
	if err := m.wpt.Signal(syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	_ = m.wpt.Wait()
	m.start()
}

// run runs a command that must succeed.
func (m *managed) run(line string) string {
	m.t.Helper()
	words := strings.Fields(line)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = m.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// startSoc starts a leap-soc, which lives through everything.
func (m *managed) startSoc() {
	m.t.Helper()
	path, err := exec.LookPath("leap-soc")
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(path, "run")
	cmd.Env, cmd.Stdout, cmd.Stderr = m.env, m.log, m.log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			m.t.Errorf("leap-soc: %v", err)
		}
	})
	for begin := time.Now(); exec.Command("test", "-s", filepath.Join(m.dir, "run", "soc.pid")).Run() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > limit {
			m.t.Fatal("leap-soc is not ready")
		}
	}
}

// guest is a machine with the drive of a port.
func (m *managed) guest(port string, options vfiousertest.MemoryOptions) *vfiousertest.NVMe {
	m.t.Helper()
	memory, err := vfiousertest.NewMemory(options)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { memory.Close() })
	c, err := vfiousertest.Dial(filepath.Join(m.dir, "run", "port", port, "cntrl"), memory, vfiousertest.Options{Timeout: limit})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	n, err := vfiousertest.NewNVMe(c)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// visit is a machine that comes to a port, and goes.
func (m *managed) visit(port string) error {
	memory, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 4 << 20})
	if err != nil {
		return err
	}
	defer memory.Close()
	c, err := vfiousertest.Dial(filepath.Join(m.dir, "run", "port", port, "cntrl"), memory, vfiousertest.Options{Timeout: limit})
	if err != nil {
		return err
	}
	return c.Close()
}

// busy is what guests do until stop, an error ends the test.
type busy struct {
	t    *testing.T
	stop chan struct{}
	wg   sync.WaitGroup
}

// loop does something again and again, at least once.
func (b *busy) loop(what string, f func(round uint64) error) {
	b.wg.Go(func() {
		for round := uint64(1); ; round++ {
			if err := f(round); err != nil {
				b.t.Errorf("%s, round %d: %v", what, round, err)
				return
			}
			select {
			case <-b.stop:
				b.t.Logf("%s: %d rounds", what, round)
				return
			default:
			}
		}
	})
}

// verify writes and reads blocks that nobody else uses.
func verify(q *vfiousertest.Pair, at uint64) func(round uint64) error {
	return func(round uint64) error {
		want, got := make([]byte, 4096), make([]byte, 4096)
		for i := 0; i < len(want); i += 16 {
			binary.LittleEndian.PutUint64(want[i:], round)
			binary.LittleEndian.PutUint64(want[i+8:], at)
		}
		lba := at*1024 + round%128*8
		if err := q.Write(1, lba, want, 512); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := q.Read(1, lba, got, 512); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("block %d reads %x, want %x", lba, got[:16], want[:16])
		}
		return nil
	}
}

// leap-wpt is killed again and again, at any moment, under guests that write and
// verify, whose doorbells are messages, and who register memory, move interrupts
// and reset meanwhile. They see pauses, nothing else; leap-soc lives through it.
// When all guests have gone the service manager keeps no more than before.
func TestStoreKills(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 8
	}
	m := newManaged(t)
	m.startSoc()
	for i, kind := range []string{"mem", "file", "mem"} {
		m.run(fmt.Sprintf("leap-soc volume create d%d %s size=8M", i+1, kind))
		m.run(fmt.Sprintf("leap-qmap map vm%d d%d", i+1, i+1))
	}
	before := len(m.manager.Stored())
	b := &busy{t: t, stop: make(chan struct{})}

	const depth = 16
	steady := m.guest("vm1", vfiousertest.MemoryOptions{Low: 16 << 20, High: 4 << 20})
	if err := steady.UseMSIX(); err != nil {
		t.Fatal(err)
	}
	if err := steady.Enable(depth); err != nil {
		t.Fatal(err)
	}
	for id := range uint16(2) {
		q, err := steady.CreatePair(id+1, depth, int(id)+1)
		if err != nil {
			t.Fatal(err)
		}
		b.loop(fmt.Sprintf("queue %d", id+1), verify(q, uint64(id)))
	}
	client := steady.Client()
	b.loop("memory", func(uint64) error { return client.ChurnPAM() })
	b.loop("registers", func(round uint64) error {
		if err := client.WriteConfig(0x3c, 1, uint32(round)&0xff); err != nil {
			return err
		}
		if got, err := client.ReadConfig(0x3c, 1); err != nil || got != uint32(round)&0xff {
			return fmt.Errorf("interrupt line is %#x, %w, want %#x", got, err, round&0xff)
		}
		return nil
	})
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	b.loop("interrupts", func(round uint64) error {
		set := vfiouser.IRQSet{Flags: vfiouser.IRQDataEventFD | vfiouser.IRQActionTrigger, Index: vfiouser.IRQMSIX, Start: 3 + uint32(round%4), Count: 1}
		if err := client.SetIRQs(set, []int{event}); err != nil {
			return err
		}
		return client.SetIRQs(set, nil)
	})

	resetting := m.guest("vm2", vfiousertest.MemoryOptions{Low: 16 << 20})
	b.loop("resets", func(round uint64) error {
		if err := resetting.Enable(depth); err != nil {
			return fmt.Errorf("enable: %w", err)
		}
		q, err := resetting.CreatePair(1, depth, vfiousertest.Polled)
		if err != nil {
			return fmt.Errorf("queues: %w", err)
		}
		if err := verify(q, 0)(round); err != nil {
			return err
		}
		if round%3 == 0 {
			return resetting.Shutdown()
		}
		return resetting.Disable()
	})

	private := m.guest("vm3", vfiousertest.MemoryOptions{Low: 16 << 20, Private: true})
	if err := private.Enable(depth); err != nil {
		t.Fatal(err)
	}
	q, err := private.CreatePair(1, depth, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	b.loop("unshared", verify(q, 0))

	m.run("leap-wpt port add vm4")
	before += 7 // its pages, eventfd, journal, table and socket
	b.loop("comes and goes", func(uint64) error {
		err := m.visit("vm4")
		if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil // leap-wpt was killed between accept and what it notes
		}
		return err
	})

	for range kills {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		m.crash()
		if t.Failed() {
			break
		}
	}
	close(b.stop)
	b.wg.Wait()
	m.run("leap-soc wait port vm4 waiting --timeout 30s")
	for i, n := range []*vfiousertest.NVMe{steady, resetting, private} {
		n.Client().Close()
		m.run(fmt.Sprintf("leap-soc wait port vm%d waiting --timeout 30s", i+1))
	}
	if regexp.MustCompile("level=ERROR .*component=wpt").MatchString(m.logged()) {
		t.Error("leap-wpt logged an error")
	}
	if after := m.manager.Stored(); len(after) != before {
		t.Errorf("%d files are kept, %d before there were guests: %v", len(after), before, after)
	}
}

// What is kept can be damaged, or be that of another release: then leap-wpt begins
// anew, or leaves it alone until there is a program that knows it. A clean stop
// leaves nothing.
func TestStoreTables(t *testing.T) {
	m := newManaged(t)
	m.run("leap-wpt port add vm1")
	before := m.manager.Stored()
	root := func() *os.File {
		t.Helper()
		f, err := m.manager.File("0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	end := func(sig syscall.Signal) error {
		t.Helper()
		if err := m.wpt.Signal(sig); err != nil {
			t.Fatal(err)
		}
		return m.wpt.Wait()
	}
	path, err := exec.LookPath("leap-wpt")
	if err != nil {
		t.Fatal(err)
	}
	c := m.guest("vm1", vfiousertest.MemoryOptions{Low: 4 << 20}).Client()
	attached := m.manager.Stored()

	// Another release.
	for name, version := range map[string]byte{"newer": 99, "older": 1} {
		_ = end(syscall.SIGKILL)
		f, old := root(), make([]byte, 1)
		for _, at := range []int64{8, 1<<30 + 8} {
			if _, err := f.ReadAt(old, at); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{version}, at); err != nil {
				t.Fatal(err)
			}
		}
		if m.wpt, err = m.manager.Start(path, []string{"run"}, m.env, m.log); err != nil {
			t.Fatal(err)
		}
		if err := m.wpt.Wait(); err == nil || err.Error() != "exit status 6" {
			t.Errorf("%s: got %v, want exit status 6", name, err)
		}
		if want := fmt.Sprintf("of version %d, and this build knows %d", version, old[0]); !strings.Contains(m.logged(), want) {
			t.Errorf("%s: nobody is told why", name)
		}
		if now := m.manager.Stored(); !slices.Equal(now, attached) {
			t.Errorf("%s: %v are kept, before it was refused %v", name, now, attached)
		}
		for _, at := range []int64{8, 1<<30 + 8} {
			if _, err := f.WriteAt(old, at); err != nil {
				t.Fatal(err)
			}
		}
		m.start()
		if _, err := c.ReadConfig(0, 4); err != nil {
			t.Errorf("%s, and the right program again: %v", name, err)
		}
	}

	// Half of it is damaged: the document before counts.
	_ = end(syscall.SIGKILL)
	f := root()
	if _, err := f.WriteAt([]byte("x"), 40); err != nil {
		t.Fatal(err)
	}
	m.start()
	if _, err := c.ReadConfig(0, 4); err != nil {
		t.Errorf("one damaged slot: %v", err)
	}

	// All of it is.
	_ = end(syscall.SIGKILL)
	if _, err := f.WriteAt([]byte("x"), 40); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 1<<30+40); err != nil {
		t.Fatal(err)
	}
	m.start()
	<-c.Done()
	if !strings.Contains(m.logged(), "beginning anew: guests that were attached lose their drives") {
		t.Error("nobody is told that guests lose their drives")
	}
	if now := m.manager.Stored(); len(now) != len(before) {
		t.Errorf("%v are kept, without a guest %v", now, before)
	}
	if err := m.visit("vm1"); err != nil {
		t.Errorf("a guest after that: %v", err)
	}
	m.run("leap-soc wait port vm1 waiting --timeout 30s")

	// A clean stop.
	if err := end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if now := m.manager.Stored(); len(now) > 0 {
		t.Errorf("after a clean stop %v are kept", now)
	}
	m.start()
	if now := m.manager.Stored(); len(now) != len(before) {
		t.Errorf("%v are kept, at first %v", now, before)
	}
}

// As many files as the unit has kept can be given back: their names fit into one
// string of the environment, which execve(2) bounds.
func TestStoreMax(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join(unitDir, "leap-wpt.service"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^FileDescriptorStoreMax=([0-9]+)$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit has no FileDescriptorStoreMax=")
	}
	most, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	size := len("LISTEN_FDNAMES=") + 1
	for id := range most {
		size += len(strconv.FormatInt(int64(id), 36)) + 1
	}
	if room := 32 * 4096; size > room || size < room*9/10 {
		t.Errorf("the names of %d files take %d bytes of %d", most, size, room)
	}
}
