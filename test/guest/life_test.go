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
// the file system has what was synced, after its journal was replayed.
func TestPowerCut(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
yes 'this was synced' | head -n 50000 >/mnt/synced
sync
i=0
while [ $i -lt 10000 ]; do
	if [ $i = 20 ]; then notify busy; fi
	yes "file $i" | head -c 300000 >/mnt/$((i % 40))
	if [ $((i % 3)) = 0 ]; then sync; fi
	i=$((i + 1))
done
`}})
	r.line(vm, "^busy$")
	time.Sleep(300 * time.Millisecond)
	vm.Kill()
	if _, err := vm.Wait(); !errors.Is(err, guest.ErrKilled) {
		t.Fatalf("guest: got %v, want it killed", err)
	}
	r.waitPort("vm1", "waiting")
	r.boot(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
e2fsck -p /dev/nvme0n1 || [ $? = 1 ]
e2fsck -f -n /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
yes 'this was synced' | head -n 50000 | cmp - /mnt/synced
umount /mnt
healthy
`}})
	r.fsck("d1")
}

// The runtime starts after the guest and goes and comes under it, while fio checks
// all that it reads. The guest sees pauses, nothing else.
func TestRuntimeRestarts(t *testing.T) {
	ends := map[string]func(*daemon){"stopped": (*daemon).stop, "killed": (*daemon).kill}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) { testRestarts(t, shared, end) })
		if all {
			t.Run(name+",shareoff", func(t *testing.T) { testRestarts(t, shareOff, end) })
		}
	}
}

// testRestarts restarts the runtime of a machine whose memory is shared or not;
// end ends it.
func testRestarts(t *testing.T, memory sharing, end func(*daemon)) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-qmap map vm1 d1")
	r.soc.stop()
	vm := r.start(machine{ports: []string{"vm1"}, sharing: memory, Config: guest.Config{Job: `
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
		end(r.soc)
		r.soc.start()
	}
	time.Sleep(time.Second)
	if got := r.port("vm1").ClientPID; got != vm.Pid() {
		t.Errorf("client of the port: got process %d, want QEMU's: %d", got, vm.Pid())
	}
	r.send(vm, "stop")
	r.line(vm, `^runs [1-9]\d*$`)
	r.wait(vm, 1)
}
