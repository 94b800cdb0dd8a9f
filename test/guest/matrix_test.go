// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// wiring is a way a drive can be wired.
type wiring struct {
	doorbells string
	sharing   sharing
	block     int
	kernel    guest.Kernel
	cpus      int
}

func (w wiring) String() string {
	return fmt.Sprintf("%s,%s,%d,%s,%dcpu", w.doorbells, w.sharing, w.block, w.kernel, w.cpus)
}

// wirings are all combinations if they are asked for, else some that have each
// value of each but the kernel. Linux rings shadow doorbells wherever memory is
// shared, and those of the page where it is not.
func wirings() []wiring {
	if !all {
		return []wiring{
			{api.DoorbellsTrap, shared, 512, guest.KernelCloud, 2},
			{api.DoorbellsMap, shared, 4096, guest.KernelCloud, 1},
			{api.DoorbellsTrap, shareOff, 512, guest.KernelCloud, 1},
			{api.DoorbellsMap, noFile, 512, guest.KernelCloud, 2},
		}
	}
	var product []wiring
	for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap} {
		for _, sharing := range []sharing{shared, shareOff, noFile} {
			for _, block := range []int{512, 4096} {
				for _, kernel := range []guest.Kernel{guest.KernelCloud, guest.KernelBackports} {
					for _, cpus := range []int{1, 2} {
						product = append(product, wiring{doorbells, sharing, block, kernel, cpus})
					}
				}
			}
		}
	}
	return product
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
				Config: guest.Config{Kernel: w.kernel, CPUs: w.cpus, Job: `
drives 1
block=$(blockdev --getss /dev/nvme0n1)
notify block $block
await go
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
storm /mnt/file 12M $block
umount /mnt
e2fsck -f -n /dev/nvme0n1
notify clean
await go
storm /dev/nvme0n1 12M $block
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
			r.wait(vm, 1)
			want := 0
			if w.sharing != shared {
				want = 1
			}
			if got := strings.Count(r.soc.log.String(), hint); got != want {
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
	}
	if io != w.cpus {
		r.t.Errorf("got %d I/O queues, want one per processor: %d", io, w.cpus)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", vm.Pid()))
	if err != nil {
		r.t.Fatal(err)
	}
	if got, want := strings.Contains(string(maps), doorbellFile), w.doorbells == api.DoorbellsMap; got != want {
		r.t.Errorf("QEMU has the doorbells mapped: got %v, want %v", got, want)
	}
}
