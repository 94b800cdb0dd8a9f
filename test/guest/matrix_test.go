// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"math/bits"
	"os"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
	"github.com/leapio/leapio/lib/nvme"
)

// wiring is a way a drive can be wired.
type wiring struct {
	doorbells string
	sharing   sharing
	block     int
	kernel    guest.Kernel
	cpus      int
	interrupt string // msix or intx
	depth     int    // entries of an I/O queue
	sgl       bool   // data are described by SGLs where Linux can, else by PRPs
}

const (
	msix, intx = "msix", "intx"
	// Linux takes the entries that it may, or fewer where it is told so; 2 is the
	// least there can be.
	deepest, flattest = 1024, 2
)

func (w wiring) String() string {
	data := "prp"
	if w.sgl {
		data = "sgl"
	}
	return fmt.Sprintf("%s,%s,%d,%s,%dcpu,%s,%d,%s", w.doorbells, w.sharing, w.block, w.kernel, w.cpus, w.interrupt, w.depth, data)
}

// wirings are all combinations if they are asked for, else some that have each
// value of each. Linux rings shadow doorbells wherever memory is shared, and those
// of the page where it is not.
func wirings() []wiring {
	if !all {
		return []wiring{
			{api.DoorbellsTrap, shared, 512, guest.KernelCloud, 2, msix, deepest, true},
			{api.DoorbellsMap, shared, 4096, guest.KernelBackports, 2, intx, flattest, false},
			{api.DoorbellsTrap, shareOff, 512, guest.KernelBackports, 1, msix, deepest, true},
			{api.DoorbellsMap, noFile, 4096, guest.KernelCloud, 2, intx, deepest, false},
		}
	}
	product := []wiring{{}}
	each := func(values int, set func(w *wiring, i int)) {
		var next []wiring
		for _, w := range product {
			for i := range values {
				set(&w, i)
				next = append(next, w)
			}
		}
		product = next
	}
	each(2, func(w *wiring, i int) { w.doorbells = [...]string{api.DoorbellsTrap, api.DoorbellsMap}[i] })
	each(3, func(w *wiring, i int) { w.sharing = [...]sharing{shared, shareOff, noFile}[i] })
	each(2, func(w *wiring, i int) { w.block = [...]int{512, 4096}[i] })
	each(2, func(w *wiring, i int) { w.kernel = [...]guest.Kernel{guest.KernelCloud, guest.KernelBackports}[i] })
	each(2, func(w *wiring, i int) { w.cpus = 1 + i })
	each(2, func(w *wiring, i int) { w.interrupt = [...]string{msix, intx}[i] })
	each(2, func(w *wiring, i int) { w.depth = [...]int{deepest, flattest}[i] })
	// Each value of each meets both SGLs and PRPs.
	for i := range product {
		product[i].sgl = bits.OnesCount(uint(i))%2 != 0
	}
	return product
}

// append is what tells the kernel of a wiring.
func (w wiring) append() string {
	words := []string{"nvme.sgl_threshold=0"}
	if w.sgl {
		words[0] = "nvme.sgl_threshold=1" // bytes of a segment, on average
	}
	if w.interrupt == intx {
		words = append(words, "pci=nomsi")
	}
	if w.depth != deepest {
		words = append(words, fmt.Sprintf("nvme.io_queue_depth=%d", w.depth))
	}
	return strings.Join(words, " ")
}

// hint begins what leap-soc says of memory that is not shared.
const hint = "guest memory is not shared"

// fio reads and writes at random, on a file system and on the drive itself, and
// finds every block as it left it.
func TestWirings(t *testing.T) {
	for _, w := range wirings() {
		t.Run(w.String(), func(t *testing.T) {
			r := newRig(t)
			r.leap(fmt.Sprintf("leap-soc volume create d1 file size=64M block=%d", w.block))
			r.leap("leap-qmap map vm1 d1 --doorbells " + w.doorbells)
			vm := r.start(machine{
				ports:   []string{"vm1"},
				sharing: w.sharing,
				Config: guest.Config{Kernel: w.kernel, CPUs: w.cpus, Append: w.append(), Job: `
drives 1
block=$(blockdev --getss /dev/nvme0n1)
notify block $block
grep nvme0q /proc/interrupts >/tmp/interrupts
notify interrupts $(grep -c PCI-MSI /tmp/interrupts) $(grep -c IO-APIC /tmp/interrupts)
await go
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
storm /mnt/file 12M $block
umount /mnt
e2fsck -f -n /dev/nvme0n1
notify clean
await go
storm /dev/nvme0n1 12M $block 1023
notify depth $(cat /sys/block/nvme0n1/queue/nr_requests)
await go
healthy
`}})
			if got, want := r.line(vm, `^block (\d+)$`)[1], fmt.Sprint(w.block); got != want {
				t.Errorf("logical block: got %s, want %s", got, want)
			}
			w.check(r, vm)
			r.send(vm, "go")
			r.line(vm, "^clean$")
			r.fsck("d1") // while the guest waits
			r.send(vm, "go")
			// One entry of a queue stays empty.
			if got, want := r.line(vm, `^depth (\d+)$`)[1], fmt.Sprint(w.depth-1); got != want {
				t.Errorf("Linux has %s commands under way at most, want %s", got, want)
			}
			w.checkRings(r)
			r.send(vm, "go")
			r.wait(vm, 1)
			want := 0
			if w.sharing != shared {
				want = 1
			}
			if got := strings.Count(r.soc.logged(), hint); got != want {
				t.Errorf("%q in the log of leap-soc: got %d times, want %d", hint, got, want)
			}
		})
	}
}

// doorbellFile is the name that the file of a doorbell page has in memory maps.
const doorbellFile = "memfd:leapio-doorbells"

// check looks whether the drive is wired as it should be, from outside.
func (w wiring) check(r *rig, vm *guest.VM) {
	r.t.Helper()
	// Without MSI-X all queues share one line, and Linux makes one for I/O.
	queues, interrupts := w.cpus, fmt.Sprintf("%d 0", w.cpus+1)
	if w.interrupt == intx {
		queues, interrupts = 1, "0 1"
	}
	if got := r.line(vm, `^interrupts (.*)$`)[1]; got != interrupts {
		r.t.Errorf("lines of MSI-X and of others in /proc/interrupts: got %s, want %s", got, interrupts)
	}
	var port struct{ Queues []api.QueuePair }
	r.leapJSON(&port, "leap-qmap show vm1")
	io := 0
	for _, q := range port.Queues {
		if q.QID == 0 {
			continue
		}
		io++
		if want := w.sharing == shared; q.Shadow != want {
			r.t.Errorf("queue %d: got shadow doorbells %v, want %v", q.QID, q.Shadow, want)
		}
		if want := uint32(w.depth); q.SQEntries != want || q.CQEntries != want {
			r.t.Errorf("queue %d: got %d and %d entries, want %d", q.QID, q.SQEntries, q.CQEntries, want)
		}
	}
	if io != queues {
		r.t.Errorf("got %d I/O queues, want %d", io, queues)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", vm.Pid()))
	if err != nil {
		r.t.Fatal(err)
	}
	if got, want := strings.Contains(string(maps), doorbellFile), w.doorbells == api.DoorbellsMap; got != want {
		r.t.Errorf("QEMU has the doorbells mapped: got %v, want %v", got, want)
	}
}

// checkRings looks how the commands of I/O that are still in the rings describe
// their data. Linux uses PRPs for what is in one or two pages.
func (w wiring) checkRings(r *rig) {
	r.t.Helper()
	sgl, all := 0, 0
	var port struct{ Queues []api.QueuePair }
	r.leapJSON(&port, "leap-qmap show vm1")
	for _, q := range port.Queues {
		if q.QID == 0 {
			continue
		}
		ring := []byte(r.leap(fmt.Sprintf("leap-qmap dump vm1 %d --sq -o binary", q.QID)))
		for ; len(ring) >= nvme.SQESize; ring = ring[nvme.SQESize:] {
			if opcode := nvme.IOOpcode(ring[0]); opcode == nvme.IORead || opcode == nvme.IOWrite {
				all++
				if ring[1]>>6 != 0 { // PSDT
					sgl++
				}
			}
		}
	}
	// A ring of two entries need not have any just now.
	if all == 0 || !w.sgl && sgl > 0 || w.sgl && sgl == 0 && w.depth == deepest {
		r.t.Errorf("%d of %d reads and writes in the rings have SGLs, with SGLs %v", sgl, all, w.sgl)
	}
}
