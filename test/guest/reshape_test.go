// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// A volume grows under a file system that is in use, then shrinks; the guest
// gives it blocks of 4096 bytes, finds it so after a restart of leap-soc, and
// write protects it for a while.
func TestReshape(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=16M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
d=/dev/nvme0n1
protected() { [ "$(blockdev --getro $d)" = $1 ]; }
mkfs.ext4 -q $d
mount -t ext4 $d /mnt
yes 'a line that the guest wrote' | head -n 100000 >/mnt/note
notify small
await grown
eventually size $d 67108864
umount /mnt
e2fsck -f -n $d
sum=$(dd if=$d bs=1M count=16 status=none | md5sum)
notify "large"
await shrunk
eventually size $d 16777216
[ "$sum" = "$(md5sum <$d)" ]
nvme format $d --lbaf=1 --force
want 4096 blockdev --getss $d
eventually size $d 16777216
fill $d 'blocks of 4096'
notify formatted
await restarted
filled $d 'blocks of 4096'
nvme format $d --lbaf=0 --force
want 512 blockdev --getss $d
fill $d 'blocks of 512'
nvme set-feature /dev/nvme0 --namespace-id=1 --feature-id=0x84 --value=1
eventually protected 1
if dd if=/dev/zero of=$d bs=1M count=1 2>/tmp/dd; then echo 'a protected drive was written'; exit 1; fi
notify protected
await looked
nvme set-feature /dev/nvme0 --namespace-id=1 --feature-id=0x84 --value=0
eventually protected 0
filled $d 'blocks of 512'
fill $d 'written again'
healthy
`}})
	r.line(vm, "^small$")
	r.leap("leap-soc volume resize d1 64M")
	r.send(vm, "grown")
	r.line(vm, "^large$")
	r.leap("leap-soc volume resize d1 16M --shrink")
	r.send(vm, "shrunk")
	r.line(vm, "^formatted$")
	if got := r.fact("volume/d1/block"); got != "4096" {
		t.Errorf("block: %s", got)
	}
	r.soc.stop()
	r.soc.start()
	r.send(vm, "restarted")
	r.line(vm, "^protected$")
	var all []api.Namespace
	r.leapJSON(&all, "leap-soc namespace list")
	if len(all) != 1 || !all[0].WriteProtected || all[0].ReadOnly {
		t.Errorf("namespaces %+v, want one that a host has protected", all)
	}
	r.send(vm, "looked")
	r.wait(vm, 1)
	r.waitPort("vm1", "waiting")
	if got := r.fact("volume/d1/block"); got != "512" {
		t.Errorf("block: %s", got)
	}
	r.checkPattern("d1", "written again")
}
