// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// A guest reboots and finds what it has left. QEMU stays, and so does its
// connection.
func TestReboot(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Reboot: true, Job: `
drives 1
if mount -t ext4 /dev/nvme0n1 /mnt; then
	want 'from the first boot' cat /mnt/left
	umount /mnt
	e2fsck -f -n /dev/nvme0n1
	healthy
	exit 0
fi
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
echo 'from the first boot' >/mnt/left
umount /mnt
healthy
reboot -f
`}})
	r.wait(vm, 2)
	r.fsck("d1")
}

// QEMU is killed while its guest writes. The port is free for another one, and
// the file systems have what was synced, after their journals were replayed.
func TestPowerCut(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-soc volume create d2 file size=320M") // XFS wants no less than 300
	r.leap("leap-qmap map vm1 d1 d2")
	const mounted = `
modprobe xfs
drives 2
a=$(drive "$(cat /sys/class/nvme/nvme0/subsysnqn)" 1)
b=$(drive "$(cat /sys/class/nvme/nvme0/subsysnqn)" 2)
mkdir /mnt/a /mnt/b
`
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Job: mounted + `
mkfs.ext4 -q $a
mkfs.xfs -q $b
mount -t ext4 $a /mnt/a
mount -t xfs $b /mnt/b
for on in /mnt/a /mnt/b; do yes 'this was synced' | head -n 50000 >$on/synced; done
sync
busy() {
	i=0
	while [ $i -lt 10000 ]; do
		if [ $i = 20 ]; then notify busy; fi
		yes "file $i" | head -c 300000 >$1/$((i % 40))
		if [ $((i % 3)) = 0 ]; then sync; fi
		i=$((i + 1))
	done
}
busy /mnt/a &
busy /mnt/b &
wait
`}})
	for range 2 {
		r.line(vm, "^busy$")
	}
	time.Sleep(300 * time.Millisecond)
	vm.Kill()
	if _, err := vm.Wait(); !errors.Is(err, guest.ErrKilled) {
		t.Fatalf("guest: got %v, want it killed", err)
	}
	r.waitPort("vm1", "waiting")
	r.boot(machine{ports: []string{"vm1"}, Config: guest.Config{Job: mounted + `
e2fsck -p $a || [ $? = 1 ]
e2fsck -f -n $a
mount -t ext4 $a /mnt/a
mount -t xfs $b /mnt/b
yes 'this was synced' | head -n 50000 >/tmp/synced
for on in /mnt/a /mnt/b; do
	cmp /tmp/synced $on/synced
	umount $on
done
xfs_repair -n $b >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
healthy
`}})
	r.fsck("d1")
	r.tool("xfs_repair", "-n", "-f", r.image("d2"))
}

// Daemons go and come under a guest while fio checks all that it reads: the
// runtime, which starts after the guest, or another program that replaces the
// broker, or the runtime, or the broker, which its service manager brings back.
// The guest sees pauses, nothing else.
func TestRestarts(t *testing.T) {
	stop := func(r *rig) {
		r.soc.stop()
		r.soc.start()
	}
	kill := func(r *rig) {
		r.soc.kill()
		r.soc.start()
	}
	upgrade := func(r *rig) { r.wpt.upgrade() }
	succeed := func(r *rig) { r.soc.upgrade() }
	crash := func(r *rig) {
		r.wpt.kill()
		r.wpt.start()
	}
	for _, test := range []struct {
		name   string
		memory sharing
		append string
		step   func(*rig)
		all    bool // among all only
	}{
		{"stopped", shared, "", stop, false},
		{"killed,intx", shared, "pci=nomsi", kill, false},
		{"upgrade", shared, "", upgrade, false},
		{"succeeded", shared, "", succeed, false},
		{"crashed", shared, "", crash, false},
		{"stopped,intx", shared, "pci=nomsi", stop, true},
		{"killed", shared, "", kill, true},
		{"stopped,shareoff", shareOff, "", stop, true},
		{"killed,shareoff", shareOff, "", kill, true},
		{"upgrade,intx", shared, "pci=nomsi", upgrade, true},
		{"upgrade,shareoff", shareOff, "", upgrade, true},
		{"succeeded,intx", shared, "pci=nomsi", succeed, true},
		{"succeeded,shareoff", shareOff, "", succeed, true},
		{"crashed,intx", shared, "pci=nomsi", crash, true},
		{"crashed,shareoff", shareOff, "", crash, true},
	} {
		if all || !test.all {
			t.Run(test.name, func(t *testing.T) { testRestarts(t, test.memory, test.append, test.step) })
		}
	}
}

// testRestarts takes a step again and again under a machine whose memory is shared
// or not and whose kernel is told something.
func testRestarts(t *testing.T, memory sharing, words string, step func(*rig)) {
	r := newManagedRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-qmap map vm1 d1")
	r.soc.stop()
	vm := r.start(machine{ports: []string{"vm1"}, sharing: memory, Config: guest.Config{Append: words, Job: `
drives 1
(await stop && touch /stop) &
notify up
runs=0
until [ -e /stop ]; do
	storm /dev/nvme0n1 16M 512
	runs=$((runs + 1))
done
notify runs $runs
healthy
`}})
	// Firmware enables the controller and waits for it.
	r.waitPort("vm1", api.PortFrozen)
	time.Sleep(2 * time.Second)
	if got := r.port("vm1").State; got != api.PortFrozen {
		t.Errorf("port without a runtime: got %s, want %s", got, api.PortFrozen)
	}
	r.soc.start()
	r.line(vm, "^up$")
	for range 6 {
		time.Sleep(1500 * time.Millisecond)
		step(r)
	}
	time.Sleep(time.Second)
	if got := r.port("vm1").ClientPID; got != vm.Pid() {
		t.Errorf("client of the port: got process %d, want QEMU's: %d", got, vm.Pid())
	}
	r.send(vm, "stop")
	r.line(vm, `^runs [1-9]\d*$`)
	r.wait(vm, 1)
}
