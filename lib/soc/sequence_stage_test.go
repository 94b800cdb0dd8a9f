// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// This file and its neighbours (sequence_*_test.go) play sequences of what a
// host may do, sane or not, against both daemons, and hold every answer against
// a model of their own: model (what a drive must have), guest (a driver that
// also does what no driver would), and player (one sequence).

// Guest memory of the machine that plays. Everything has its place, so that a
// sequence does the same each time.
const (
	playRAM    = 24 << 20
	adminSQAt  = 0x100000
	adminCQAt  = 0x102000
	ioSQAt     = 0x110000 // 64 KiB for each identifier
	ioCQAt     = 0x1a0000 // 16 KiB for each
	shadowAt   = 0x1e0000
	listsAt    = 0x1f0000
	listsEnd   = 0x240000
	arenaAt    = 0x400000
	arenaEnd   = 0x1400000
	nowhere    = 1 << 45      // no memory
	firmwareAt = 0xfffc0000   // read-only, and without a file
	doorbellAt = 0xc000001000 // where the doorbell page lies
)

// Further regions: the same file again at other addresses. The first two touch,
// but not in the file.
var playRegions = [...]vfiousertest.Mapping{
	{Address: 0x40000000, Size: 1 << 20, Offset: 0x1400000, Flags: vfiouser.DMARead | vfiouser.DMAWrite},
	{Address: 0x40100000, Size: 1 << 20, Offset: 0x1600000, Flags: vfiouser.DMARead | vfiouser.DMAWrite},
	{Address: 0x50000000, Size: 64 << 10, Offset: 0x1780000, Flags: vfiouser.DMARead},
}

// stage is what the sequences of one process share: both daemons, the machine
// that plays, and one that must notice nothing.
type stage struct {
	r      *rig
	mem    *vfiousertest.Memory
	client *vfiousertest.Client
	other  *vfiousertest.Pair
	rounds uint64 // of other
	disks  [4]*disk
	mapped [len(playRegions)]bool
	dirty  bool // a sequence has not come to its end
	// private: guest memory is reached by messages; there are no further regions.
	private bool
	shown   map[uint32]showing // by NSID
}

// showing is a volume that is a namespace.
type showing struct {
	d        *disk
	readOnly bool
	byHost   bool // readOnly is a host's doing
}

// firstShown is what the drive shows when a sequence begins; the last disk is
// in no namespace.
var firstShown = [...]uint32{1, 2, 3}

// inMemory has temporary files in memory, where state files and flushes cost
// next to nothing.
func inMemory(t testing.TB) {
	const folder = "/dev/shm"
	if _, err := os.Stat(folder); err == nil {
		t.Setenv("TMPDIR", folder)
	}
}

// newStage starts everything.
func newStage(t testing.TB, private bool) *stage {
	t.Helper()
	inMemory(t)
	r := newRig(t)
	s := &stage{r: r, shown: make(map[uint32]showing), private: private}
	r.volume("d1", "mem", "size", "2M")
	r.volume("d2", "mem", "size", "1M", "block", "4096")
	r.volume("d3", "file", "size", "1M")
	r.volume("d4", "mem", "size", "512K")
	r.volume("other", "mem", "size", "1M")
	s.disks = [...]*disk{newDisk("d1", 2<<20, 512), newDisk("d2", 1<<20, 4096), newDisk("d3", 1<<20, 512), newDisk("d4", 512<<10, 512)}
	r.wire("vm1", api.DoorbellsTrap, "d1", "d2", "d3")
	for i, nsid := range firstShown {
		s.shown[nsid] = showing{d: s.disks[i]}
	}
	r.wire("vm2", api.DoorbellsTrap, "other")
	n := r.guest("vm2", vfiousertest.MemoryOptions{Low: 4 << 20})
	if err := n.Enable(8); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.other, err = n.CreatePair(1, 8, vfiousertest.Polled); err != nil {
		t.Fatal(err)
	}
	if s.mem, err = vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: playRAM, Private: private}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Close(); s.mem.Close() })
	s.connect(t)
	return s
}

// connect starts the machine that plays: again, if there was one before.
func (s *stage) connect(t testing.TB) {
	t.Helper()
	if s.client != nil {
		s.client.Close()
	}
	var err error
	for start := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		// The port may just be getting rid of the machine before.
		if s.client, err = vfiousertest.Dial(s.r.paths.PortSocket("vm1"), s.mem, vfiousertest.Options{}); err == nil {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("connecting:", err)
		}
	}
	clear(s.mapped[:])
	s.remap(t)
	s.master(t)
}

// remap maps the further regions that are not mapped.
func (s *stage) remap(t testing.TB) {
	t.Helper()
	for i := range playRegions {
		if !s.mapped[i] && !s.private {
			s.toggle(t, i)
		}
	}
}

// toggle maps a further region, or unmaps it.
func (s *stage) toggle(t testing.TB, i int) {
	t.Helper()
	m := playRegions[i]
	m.FD = s.mem.FD()
	var err error
	if s.mapped[i] {
		err = s.client.Unmap(m.Address, m.Size)
	} else {
		err = s.client.Map(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mapped[i] = !s.mapped[i]
}

// master lets the device use memory, as after every reset of the function.
func (s *stage) master(t testing.TB) {
	t.Helper()
	if err := s.client.Command(0x0406); err != nil { // memory, bus master, no INTx
		t.Fatal(err)
	}
}

// bytes returns guest memory at an address, which may be in a further region.
func (s *stage) bytes(t testing.TB, address uint64, n int) []byte {
	t.Helper()
	for _, m := range playRegions {
		if address >= m.Address && address < m.Address+m.Size {
			address = m.Offset + address - m.Address
			break
		}
	}
	b, err := s.mem.Bytes(address, uint64(n))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bystander checks that the other machine's drive works.
func (s *stage) bystander(t testing.TB) {
	t.Helper()
	s.rounds++
	data, got := pattern(4096, s.rounds), make([]byte, 4096)
	at := s.rounds % 200 * 8
	if err := s.other.Write(1, at, data, 512); err != nil {
		t.Fatal("the other machine:", err)
	}
	if err := s.other.Read(1, at, got, 512); err != nil || string(got) != string(data) {
		t.Fatalf("the other machine: read back: %v, equal %t", err, string(got) == string(data))
	}
}

// show makes a volume a namespace, and hide takes one away.
func (s *stage) show(nsid uint32, d *disk, readOnly bool) {
	call[api.Namespace](s.r, s.r.client(), "POST", "/v1/subsystems/vm1/namespaces", api.NamespaceSpec{Volume: d.name, NSID: nsid, ReadOnly: readOnly})
	s.shown[nsid] = showing{d: d, readOnly: readOnly}
}

func (s *stage) hide(nsid uint32) {
	call[api.None](s.r, s.r.client(), "DELETE", fmt.Sprintf("/v1/subsystems/vm1/namespaces/%d", nsid), nil)
	delete(s.shown, nsid)
}

// restage shows what is shown first, and nothing else.
func (s *stage) restage() {
	first := func(nsid uint32) *disk {
		for i, id := range firstShown {
			if id == nsid {
				return s.disks[i]
			}
		}
		return nil
	}
	for nsid, now := range s.shown {
		if now.d != first(nsid) || now.readOnly {
			s.hide(nsid)
		}
	}
	for _, nsid := range firstShown {
		if s.shown[nsid].d == nil {
			s.show(nsid, first(nsid), false)
		}
	}
}

// disk is what a volume must contain. The content of a block is told by one
// word, its mark; 0 is a block of zeroes.
type disk struct {
	name   string
	size   int // bytes, as block
	block  int
	blocks uint64
	first  struct{ size, block int } // when it was made
	now    []uint64                  // by block
	maybe  map[uint64][]uint64       // what a block may have instead
	lo, hi uint64                    // blocks that may not be zeroes: from lo to below hi
}

func newDisk(name string, size, block int) *disk {
	n := size / block
	d := &disk{name: name, size: size, block: block, blocks: uint64(n), now: make([]uint64, n), maybe: make(map[uint64][]uint64), lo: uint64(n)}
	d.first.size, d.first.block = size, block
	return d
}

// touch notes that blocks may change.
func (d *disk) touch(at, n uint64) { d.lo, d.hi = min(d.lo, at), max(d.hi, at+n) }

// set says what a block has.
func (d *disk) set(at, mark uint64) {
	d.now[at] = mark
	delete(d.maybe, at)
}

// allow says what a block may have as well.
func (d *disk) allow(at, mark uint64) {
	if d.now[at] != mark {
		d.maybe[at] = append(d.maybe[at], mark)
	}
}

// forget says that anything may be there.
func (d *disk) forget() { d.lo, d.hi = 0, d.blocks }

// wiped says that all is zeroes.
func (d *disk) wiped() {
	clear(d.now)
	clear(d.maybe)
	d.lo, d.hi = d.blocks, 0
}

// holds reports whether a block may have this mark, which from now on it has.
func (d *disk) holds(at, mark uint64) bool {
	ok := d.now[at] == mark
	for _, m := range d.maybe[at] {
		ok = ok || m == mark
	}
	if ok {
		d.set(at, mark)
	}
	return ok
}

// markStep makes every word of a block another.
const markStep = 0x9e3779b97f4a7c15

// fillBlock writes the block that a mark tells.
func fillBlock(b []byte, mark uint64) {
	if mark == 0 {
		clear(b)
		return
	}
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], mark+uint64(i)*markStep)
	}
}

// markOf tells a block's mark; ok is false where it is no whole block.
func markOf(b []byte) (mark uint64, ok bool) {
	mark = binary.LittleEndian.Uint64(b)
	step := uint64(markStep)
	if mark == 0 {
		step = 0
	}
	for i := 8; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != mark+uint64(i)*step {
			return mark, false
		}
	}
	return mark, true
}

// hangs is how long nothing takes. The fuzzer itself ends a process whose input
// takes 10 s, without a word of what was played.
const hangs = 7 * time.Second

// pauseFor gives others the processor, the longer the longer it has waited.
func pauseFor(spins int) {
	if spins < 500 {
		runtime.Gosched()
	} else {
		time.Sleep(50 * time.Microsecond)
	}
}

// waitStatus reads CSTS until ok likes it.
func (s *stage) waitStatus(t testing.TB, what string, ok func(nvme.CSTS) bool) {
	t.Helper()
	for start, spins := time.Now(), 0; ; spins++ {
		v, err := s.client.Read32(nvme.RegCSTS)
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if ok(nvme.CSTS(v)) {
			return
		}
		if time.Since(start) > hangs {
			t.Fatalf("waiting for %s: CSTS is %#x", what, v)
		}
		pauseFor(spins)
	}
}
