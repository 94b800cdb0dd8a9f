// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// A machine's drive has its blocks with another leap-soc, over NVMe/TCP. Both are
// killed under it, in turn, while fio checks all that it reads.
func TestRemote(t *testing.T) {
	far, near := newRig(t), newRig(t)
	far.leap("leap-soc volume create d1 file size=64M")
	url := strings.TrimSpace(far.leap("leap-rdma listen tcp://127.0.0.1:0 d1 --allow any"))
	near.leap("leap-soc volume create far remote data-digest=on keep-alive=1s addr=" + url)
	near.leap("leap-qmap map vm1 far")
	vm := near.start(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
notify busy
for i in 1 2 3; do storm /mnt/file 12M 512; done
echo 'from afar' >/mnt/note
umount /mnt
e2fsck -f -n /dev/nvme0n1
healthy
`}})
	near.line(vm, "^busy$")
	for range 2 {
		for _, d := range []*daemon{far.soc, near.soc} {
			time.Sleep(500 * time.Millisecond)
			d.kill()
			d.start()
		}
	}
	near.wait(vm, 1)
	near.waitPort("vm1", api.PortWaiting)
	far.fsck("d1")
	if got := far.readFile("d1", "/note"); got != "from afar\n" {
		t.Errorf("/note where the blocks are: got %q", got)
	}
}
