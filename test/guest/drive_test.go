// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/guest"
)

// A guest finds its drive, makes a file system on it and leaves a file there,
// which is then read from outside.
func TestDrive(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=64M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
nvme list
notify "$(nvme id-ctrl /dev/nvme0 -o json | tr -d '\n')"
want 67108864 blockdev --getsize64 /dev/nvme0n1
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
yes 'a line that the guest wrote' | head -n 100000 >/mnt/note
umount /mnt
e2fsck -f -n /dev/nvme0n1
healthy
`}})
	var id struct{ MN, SN, SUBNQN string }
	if err := json.Unmarshal([]byte(r.line(vm, `^\{.*\}$`)[0]), &id); err != nil {
		t.Error("id-ctrl:", err)
	}
	result := r.wait(vm, 1)
	if got, want := strings.TrimSpace(id.MN), "LeapIO Virtual NVMe Drive"; got != want {
		t.Errorf("model: got %q, want %q", got, want)
	}
	if got, want := strings.TrimSpace(id.SN), r.fact("subsystem/vm1/serial"); got != want || got == "" {
		t.Errorf("serial: got %q, want %q", got, want)
	}
	if got, want := id.SUBNQN, r.fact("subsystem/vm1/nqn"); got != want || got == "" {
		t.Errorf("SUBNQN: got %q, want %q", got, want)
	}
	if !strings.Contains(result.Console, "/dev/nvme0n1 ") {
		t.Error("nvme list: no /dev/nvme0n1")
	}
	r.waitPort("vm1", "waiting")
	r.fsck("d1")
	if got, want := r.readFile("d1", "/note"), strings.Repeat("a line that the guest wrote\n", 100000); got != want {
		t.Errorf("/note from outside: got %d bytes %.60q, want %d", len(got), got, len(want))
	}
}

// Two machines fill their drives at the same time. One has two drives, of which one
// has two namespaces. None finds anything of another's.
func TestTwoMachines(t *testing.T) {
	r := newRig(t)
	for _, volume := range []string{"d1 file size=8M", "d2 file size=8M block=4096", "d3 file size=16M", "d4 file size=16M"} {
		r.leap("leap-soc volume create " + volume)
	}
	r.leap("leap-qmap map vm1a d1")
	r.leap("leap-qmap map vm1b d2 d3")
	r.leap("leap-qmap map vm2 d4")
	const job = `
for volume in $volumes; do fill ${volume#*=} "this is ${volume%%=*}"; done
notify full
await look
for volume in $volumes; do filled ${volume#*=} "this is ${volume%%=*}"; done
healthy
`
	one := r.start(machine{ports: []string{"vm1a", "vm1b"}, Config: guest.Config{CPUs: 1, Job: fmt.Sprintf(`
drives 3
a=$(drive %[1]s 1)
b=$(drive %[2]s 1)
c=$(drive %[2]s 2)
want 512 blockdev --getss $a
want 4096 blockdev --getss $b
want 16777216 blockdev --getsize64 $c
volumes="d1=$a d2=$b d3=$c"
notify up
await go
`, r.fact("subsystem/vm1a/nqn"), r.fact("subsystem/vm1b/nqn")) + job}})
	two := r.start(machine{ports: []string{"vm2"}, Config: guest.Config{CPUs: 1, Job: `
drives 1
volumes=d4=/dev/nvme0n1
notify up
await go
` + job}})
	// Both are up before one writes, and have written before one reads.
	vms := []*guest.VM{one, two}
	for _, step := range []struct{ after, send string }{{"^up$", "go"}, {"^full$", "look"}} {
		for _, vm := range vms {
			r.line(vm, step.after)
		}
		for _, vm := range vms {
			r.send(vm, step.send)
		}
	}
	for _, vm := range vms {
		r.wait(vm, 1)
	}
	for _, volume := range []string{"d1", "d2", "d3", "d4"} {
		r.checkPattern(volume, "this is "+volume)
	}
}
