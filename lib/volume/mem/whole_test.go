// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// hammer changes and reads few pages at random, from one poller. Each block that
// it writes has a value of its own in all words.
type hammer struct {
	q     volume.Queue
	rng   *rand.Rand
	value *atomic.Uint64
	pages uint64
	left  int // requests; negative: for ever
	data  []byte
	req   volume.Request
	torn  int // blocks
	bad   nvme.Status
	reads int
	done  chan struct{}
}

const hammerPages = 4

// newHammer has memory of its own, which is not Go's.
func newHammer(q volume.Queue, seed uint64, value *atomic.Uint64) (*hammer, error) {
	data, err := unix.Mmap(-1, 0, 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return &hammer{q: q, rng: rand.New(rand.NewPCG(seed, 0)), value: value, pages: hammerPages, data: data, done: make(chan struct{})}, err
}

func (h *hammer) next() {
	if h.left == 0 {
		close(h.done)
		return
	}
	h.left--
	r := &h.req
	*r = volume.Request{Owner: h, Offset: h.rng.Uint64N(h.pages) * pageSize, Length: pageSize}
	if h.rng.IntN(3) == 0 { // a block
		r.Offset, r.Length = r.Offset+h.rng.Uint64N(8)*512, 512
	} else if h.rng.IntN(4) == 0 { // of two pages
		r.Offset, r.Length = h.rng.Uint64N(h.pages*8-8)*512, pageSize
	}
	switch k := h.rng.IntN(20); {
	case k < 10:
		r.Op = volume.Read
		h.reads++
	case k < 18:
		r.Op = volume.Write
		for off := uint64(0); off < r.Length; off += 512 {
			v := h.value.Add(1)
			for i := off; i < off+512; i += 8 {
				binary.NativeEndian.PutUint64(h.data[i:], v)
			}
		}
	default:
		r.Op = volume.WriteZeroes
	}
	if r.Op == volume.Read || r.Op == volume.Write {
		// In pieces that have nothing to do with blocks.
		cut := 4 + 4*h.rng.Uint64N(r.Length/4-1)
		r.Segments = []dma.Segment{dma.SegmentOf(h.data[:cut]), dma.SegmentOf(h.data[cut:r.Length])}
	}
	h.q.Submit(r)
}

// Completed implements volume.Owner.
func (h *hammer) Completed(r *volume.Request) {
	if r.Status != nvme.StatusSuccess {
		h.bad = r.Status
	}
	if r.Op == volume.Read {
		h.torn += torn(h.data[:r.Length])
	}
	h.next()
}

// torn counts the blocks that are not of one value.
func torn(p []byte) int {
	n := 0
	for ; len(p) > 0; p = p[512:] {
		if string(p[8:512]) != string(p[:504]) {
			n++
		}
	}
	return n
}

// Pollers that read and change the same blocks never find one in part, and do not
// leave one so.
func TestWhole(t *testing.T) {
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(hammerPages*pageSize, 512))
	defer m.Close()
	var value atomic.Uint64
	var all []*hammer
	for i := range 3 {
		c := volumetest.Connect(t, m, cfg)
		defer c.Close()
		h, err := newHammer(c.Queue, uint64(i), &value)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(h.data)
		h.left = 30_000
		all = append(all, h)
		c.On(h.next)
	}
	for i, h := range all {
		<-h.done
		if h.torn > 0 || h.bad != nvme.StatusSuccess {
			t.Errorf("poller %d: of what %d reads have found, %d blocks were torn; status %v", i, h.reads, h.torn, h.bad)
		}
	}
	if n := torn(m.bytes()); n > 0 {
		t.Errorf("%d blocks are torn in the end", n)
	}
	if n := sealed(t, m); n != 0 {
		t.Errorf("%d intents are left", n)
	}
}

// sealed counts the intents in the log of m.
func sealed(t *testing.T, m *mem) int {
	t.Helper()
	n := 0
	for i := range slotCount {
		if *word(m.log.mem[i*wordSize:]) != 0 {
			n++
		}
	}
	return n
}

// owned is a source whose guest memory is p.
type owned struct{ p []byte }

func (o *owned) Poll() int        { return 0 }
func (o *owned) Arm() poller.Wake { return poller.WakeEvent }
func (o *owned) Fault()           {}
func (o *owned) Holds(a uintptr) bool {
	s := dma.SegmentOf(o.p)
	return a >= uintptr(s.Base) && a < uintptr(s.Base)+uintptr(s.Len)
}

// What finds its page being changed waits, and nothing else does; it can be
// cancelled, and its memory taken away.
func TestLocked(t *testing.T) {
	const size = 2 * stripeCount * pageSize
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(size, 512))
	defer m.Close()
	c := volumetest.Connect(t, m, cfg)
	defer c.Close()
	guest := volumetest.NewMemory(t, 8*pageSize)
	gone := volumetest.NewMemory(t, pageSize)
	c.On(func() { c.Poller.Add(&owned{gone.Bytes(0, pageSize)}) })
	for i := range m.bytes() {
		m.bytes()[i] = 1
	}
	copy(guest.Bytes(0, pageSize), "new")
	copy(gone.Bytes(0, pageSize), "gone")

	const page = 3
	stripe := m.stripes.of(page * pageSize)
	if !stripe.lock() || stripe.lock() {
		t.Fatal("a stripe is not locked once")
	}
	if m.stripes.lockPages(1, 5) || m.stripes[1].seq.Load()%2 != 0 || m.stripes[5].seq.Load()%2 != 0 {
		t.Fatal("pages of which one is locked were locked, or stayed so")
	}
	wait := make(chan int, 16)
	owner := func(i int) ender { return ender{i, wait} }
	reqs := []*volume.Request{
		{Op: volume.Write, Offset: page * pageSize, Length: 512, Segments: guest.Segments(0, 512), Owner: owner(0)},
		{Op: volume.Read, Offset: (page - 1) * pageSize, Length: 2 * pageSize, Segments: guest.Segments(pageSize, 2*pageSize), Owner: owner(1)},
		{Op: volume.WriteZeroes, Offset: pageSize, Length: stripeCount * pageSize, Owner: owner(2)},
		{Op: volume.Write, Offset: page * pageSize, Length: 512, Segments: guest.Segments(0, 512), Owner: owner(3)}, // cancelled
		{Op: volume.Write, Offset: page*pageSize + 512, Length: 512, Segments: gone.Segments(0, 512), Owner: owner(4)},
		{Op: volume.Flush, Owner: owner(5)},
		{Op: volume.Write, Offset: size - 512, Length: 512, Segments: guest.Segments(0, 512), Owner: owner(6)},
	}
	c.On(func() {
		for _, r := range reqs {
			c.Queue.Submit(r)
		}
		c.Queue.Cancel(reqs[3])
	})
	ended := map[int]bool{<-wait: true, <-wait: true, <-wait: true}
	if !ended[3] || !ended[5] || !ended[6] || reqs[3].Status != nvme.StatusAbortRequested {
		t.Fatalf("%v have ended first, number 3 with %v", ended, reqs[3].Status)
	}
	gone.TakeAway(t)
	if i := <-wait; i != 4 || reqs[4].Status != nvme.StatusDataTransferError {
		t.Fatalf("number %d has ended: %v", i, reqs[i].Status)
	}
	c.On(func() {}) // the others have been tried again
	select {
	case i := <-wait:
		t.Fatalf("number %d has ended", i)
	default:
	}
	stripe.unlock()
	for range 3 {
		if i := <-wait; reqs[i].Status != nvme.StatusSuccess {
			t.Errorf("number %d: %v", i, reqs[i].Status)
		}
	}
	zeroed := m.bytes()[pageSize : (1+stripeCount)*pageSize]
	for i, b := range zeroed {
		if at := i + pageSize; b != 0 && (at < page*pageSize || at >= page*pageSize+512) {
			t.Fatalf("byte %d is %d", at, b)
		}
	}
	if m.bytes()[pageSize-1] != 1 || m.bytes()[(1+stripeCount)*pageSize] != 1 || string(m.bytes()[size-512:][:3]) != "new" {
		t.Error("beside what was zeroed, or at the end, is not what should be")
	}
	for i := range m.stripes {
		if m.stripes[i].seq.Load()%2 != 0 {
			t.Errorf("stripe %d is locked", i)
		}
	}
}

// ender says which request has ended.
type ender struct {
	i  int
	to chan int
}

func (e ender) Completed(*volume.Request) { e.to <- e.i }

// A page that is changed all the time is read in the end, with its writers kept
// out.
func TestReread(t *testing.T) {
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(pageSize, 512))
	defer m.Close()
	c := volumetest.Connect(t, m, cfg)
	defer c.Close()
	for i := range m.bytes() {
		m.bytes()[i] = 5
	}
	guest := volumetest.NewMemory(t, pageSize)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				m.stripes[0].lock()
				m.stripes[0].unlock()
			}
		}
	}()
	for range 500 {
		clear(guest.Bytes(0, pageSize))
		r := volume.Request{Op: volume.Read, Length: pageSize, Segments: guest.Segments(0, pageSize)}
		if st := c.Do(t.Context(), &r); st != nvme.StatusSuccess || guest.Bytes(0, pageSize)[pageSize-1] != 5 {
			t.Fatalf("read: %v, last byte %d", st, guest.Bytes(0, pageSize)[pageSize-1])
		}
	}
	close(stop)
	<-stopped
}

// Slots belong to pollers, and are given to others.
func TestSlots(t *testing.T) {
	m := open(t, volumetest.NewEnv(t, t.TempDir()), spec(pageSize, 512))
	defer m.Close()
	var pollers []*poller.Poller
	number := func(p *poller.Poller) int {
		s, err := m.log.enter(p)
		if err != nil {
			t.Fatal(err)
		}
		return s.number
	}
	for i := range slotCount {
		pollers = append(pollers, new(poller.Poller))
		if n := number(pollers[i]); n != i {
			t.Fatalf("poller %d has slot %d", i, n)
		}
	}
	if _, err := m.log.enter(new(poller.Poller)); err == nil {
		t.Error("there is a slot for one too many")
	}
	if n := number(pollers[7]); n != 7 {
		t.Errorf("another queue of poller 7 has slot %d", n)
	}
	m.log.leave(pollers[7])
	m.log.leave(pollers[9])
	m.log.leave(pollers[7])
	if a, b := number(new(poller.Poller)), number(new(poller.Poller)); a != 7 || b != 9 {
		t.Errorf("slots %d and %d, want 7 and 9, which were given back", a, b)
	}
}

// What a process has left in the log is stored, and only that.
func TestRedo(t *testing.T) {
	const size = 8 * pageSize
	for _, x := range []struct {
		name   string
		intent uint64
		torn   uint64 // bytes that were stored before the end
		want   string // all of the range, or "" for an error
	}{
		{"nothing begun", 0, 0, "o"},
		{"begun", intentOf(pageSize, pageSize), 0, "n"},
		{"half", intentOf(pageSize, pageSize), 1000, "n"},
		{"all", intentOf(pageSize, pageSize), pageSize, "n"},
		{"a block", intentOf(pageSize+1024, 512), 100, "n"},
		{"the last block", intentOf(size-512, 512), 100, "n"},
		{"zeroes", intentOf(pageSize, pageSize) | intentZero, 1000, "\x00"},
		{"beyond the end", intentOf(size, 512), 0, ""},
		{"across the end", intentOf(size-512, 1024), 0, ""},
		{"more than a page", intentOf(0, pageSize+512), 0, ""},
		{"of nothing", intentOf(pageSize, 0), 0, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			env, s := volumetest.NewEnv(t, t.TempDir()), spec(size, 512)
			m := open(t, env, s)
			for i := range m.bytes() {
				m.bytes()[i] = 'o'
			}
			p := new(poller.Poller)
			for range 3 { // not the first slot
				p = new(poller.Poller)
				if _, err := m.log.enter(p); err != nil {
					t.Fatal(err)
				}
			}
			slot := m.log.slots[p]
			for i := range slot.data {
				slot.data[i] = 'n'
			}
			off, n := x.intent&^(unit-1), x.intent&intentUnits*unit
			if x.intent == 0 {
				n = 512
			}
			for i := range x.torn {
				m.bytes()[off+i] = 'n'
			}
			*slot.intent = x.intent
			m.Close()

			s.Reopen = true
			v, err := Kind.Make(t.Context(), env, s)
			if x.want == "" {
				if err == nil {
					v.Close()
					t.Error("a log that cannot be was believed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m = v.(*mem)
			defer m.Close()
			for i, b := range m.bytes() {
				want := byte('o')
				if uint64(i) >= off && uint64(i) < off+n {
					want = x.want[0]
				}
				if b != want {
					t.Fatalf("byte %d is %q, want %q", i, b, want)
				}
			}
			if sealed(t, m) != 0 {
				t.Error("the intent was left")
			}
		})
	}
}

// A volume whose memory leap-wpt does not have is empty, whatever there is of its
// log; one without a log gets one.
func TestLogAlone(t *testing.T) {
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(pageSize, 512)
	m := open(t, env, s)
	m.bytes()[0] = 7
	p := new(poller.Poller)
	slot, err := m.log.enter(p)
	if err != nil {
		t.Fatal(err)
	}
	slot.data[0] = 9
	*slot.intent = intentOf(0, 512)
	m.Close()
	s.Reopen = true
	if err := env.Drop(logName(s)); err != nil {
		t.Fatal(err)
	}
	m = open(t, env, s)
	if m.bytes()[0] != 7 || env.Kept() != 2 {
		t.Errorf("without a log: the first byte is %d, and %d files are kept", m.bytes()[0], env.Kept())
	}
	if slot, err = m.log.enter(p); err != nil {
		t.Fatal(err)
	}
	slot.data[0] = 9
	*slot.intent = intentOf(0, 512)
	m.Close()
	if err := env.Drop(keptName(s)); err != nil {
		t.Fatal(err)
	}
	m = open(t, env, s)
	defer m.Close()
	if m.bytes()[0] != 0 || env.Kept() != 2 {
		t.Errorf("with a log alone: the first byte is %d, and %d files are kept", m.bytes()[0], env.Kept())
	}
}

// envKilled has the test binary be a process that is killed while it writes, from
// two pollers, to the volume in the descriptors 3 and 4.
const envKilled = "LEAPIO_TEST_KILLED"

func TestMain(m *testing.M) {
	if os.Getenv(envKilled) != "" {
		fmt.Fprintln(os.Stderr, killed())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// killed does not return unless it fails.
func killed() error {
	s := spec(hammerPages*pageSize, 512)
	s.Reopen = true
	v, err := Kind.Make(nil, inherited{keptName(s): 3, logName(s): 4}, s)
	if err != nil {
		return err
	}
	var value atomic.Uint64
	for i := range 2 {
		p, err := poller.Start(cfg)
		if err != nil {
			return err
		}
		var h *hammer
		if derr := p.Do(func() {
			var q volume.Queue
			if q, err = v.Open(p); err != nil {
				return
			}
			if h, err = newHammer(q, uint64(time.Now().UnixNano())+uint64(i), &value); err == nil {
				h.left = -1
				h.next()
			}
		}); derr != nil || err != nil {
			return fmt.Errorf("%v, %v", derr, err)
		}
	}
	fmt.Println("writing")
	select {}
}

// inherited is a volume.Env of descriptors.
type inherited map[string]int

func (inherited) DataPath(string) string { return "" }
func (inherited) Disk() disk.Disk        { return disk.OS }
func (inherited) Logger() *slog.Logger   { return slog.New(slog.DiscardHandler) }
func (inherited) Keep(string, int) error { return nil }
func (inherited) Drop(string) error      { return nil }
func (e inherited) Fetch(name string) (int, error) {
	if fd, ok := e[name]; ok {
		return fd, nil
	}
	return -1, fs.ErrNotExist
}

// A process that is killed while it writes leaves blocks in part, and the next
// one makes them whole.
func TestKilled(t *testing.T) {
	env, s := volumetest.NewEnv(t, t.TempDir()), spec(hammerPages*pageSize, 512)
	m := open(t, env, s)
	m.Close()
	s.Reopen = true
	kills, before, intents := 60, 0, 0
	if testing.Short() {
		kills = 10
	}
	for i := range kills {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envKilled+"=1")
		for _, name := range []string{keptName(s), logName(s)} {
			fd, err := env.Fetch(name)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), name)
			defer f.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = out.Read(make([]byte, 1))
		time.Sleep(time.Duration(i%7) * time.Millisecond) // the moment is of no consequence
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			t.Fatalf("the process does not write: %v", err)
		}
		raw := make([]byte, hammerPages*pageSize)
		if err := readFull(int(cmd.ExtraFiles[0].Fd()), raw, 0); err != nil {
			t.Fatal(err)
		}
		before += torn(raw)
		words := make([]byte, slotCount*wordSize)
		if err := readFull(int(cmd.ExtraFiles[1].Fd()), words, 0); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(words); at += wordSize {
			if binary.NativeEndian.Uint64(words[at:]) != 0 {
				intents++
			}
		}
		m = open(t, env, s)
		if n := torn(m.bytes()); n > 0 {
			t.Errorf("after kill %d, %d blocks are torn", i, n)
		}
		if sealed(t, m) != 0 {
			t.Errorf("after kill %d, intents are left", i)
		}
		m.Close()
	}
	t.Logf("%d kills have left %d intents and %d torn blocks, which were made whole", kills, intents, before)
}
