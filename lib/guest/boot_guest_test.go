// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

// Tests that boot real guests: go test -tags guest ./lib/guest/. The first run fetches packages; each boot takes some seconds.

package guest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// boot runs a guest and shows its console if the test fails.
func boot(t *testing.T, cfg Config) (*Result, error) {
	t.Helper()
	result, err := Run(t.Context(), cfg)
	t.Logf("%d boots, %.1f s, console:\n%s", result.Boots, result.Elapsed.Seconds(), result.Console)
	return result, err
}

// disk returns the arguments for an NVMe drive of QEMU's own on a new image file, and the file.
func disk(t *testing.T) (args []string, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=none,id=d,format=raw,file=" + path, "-device", "nvme,drive=d,serial=s"}, path
}

// Both kernels run the programs of the image, among them one of the host, and load
// the modules in it.
func TestGuestTools(t *testing.T) {
	for _, kernel := range []Kernel{KernelCloud, KernelBackports} {
		t.Run(string(kernel), func(t *testing.T) {
			result, err := boot(t, Config{
				Kernel: kernel,
				Files:  map[string]File{"/opt/hostsh": {Host: "/bin/sh"}, "/etc/note": {Data: []byte("a note\n")}},
				Job: `nvme version; fio --version; mkfs.ext4 -V; mkfs.xfs -V; xfs_repair -V; echo in $(nproc); /opt/hostsh -c 'cat /etc/note'
for m in ` + strings.Join(guestModules, " ") + `; do modprobe $m; done`,
			})
			if err != nil || result.ExitCode != 0 || result.Boots != 1 {
				t.Fatalf("got status %d, %d boots, %v, want 0, 1", result.ExitCode, result.Boots, err)
			}
			for _, want := range []string{"nvme version ", "fio-", "mke2fs ", "mkfs.xfs version ", "xfs_repair version ", "in 2", "a note"} {
				if !strings.Contains(result.Console, want) {
					t.Errorf("console: got no %q", want)
				}
			}
		})
	}
}

func TestGuestPanic(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		result, err := boot(t, Config{Reboot: reboot, Job: "echo c >/proc/sysrq-trigger; sleep 60"})
		if !errors.Is(err, ErrPanic) || result.ExitCode != -1 {
			t.Errorf("reboot %v: got status %d, %v, want a panic", reboot, result.ExitCode, err)
		}
	}
}

// A job and the host talk, and the first command that fails ends the job. The guest
// has one processor, words for its kernel, and memory as a shared backend, the way
// vfio-user devices need it, which merges with the runner's own machine options.
func TestGuestTalk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	vm, err := Start(ctx, Config{
		Memory: 1024, CPUs: 1, Append: "leap.test=1 loglevel=5",
		QEMUArgs: []string{"-object", "memory-backend-memfd,id=mem,size=1024M,share=on", "-machine", "q35,memory-backend=mem"},
		Job: `notify ready $(uname -s)
answer=$(await)
notify got $answer
await go on >/dev/null
notify has $(grep -o leap.test=1 /proc/cmdline) $(nproc) $(awk '/MemTotal/ {print ($2 > 900000)}' /proc/meminfo)
sh -c 'exit 5'
notify too much`,
	})
	if err != nil {
		t.Fatal(err)
	}
	match, err := vm.WaitLine(ctx, regexp.MustCompile(`^ready (\w+)$`))
	if err != nil || match[1] != "Linux" {
		t.Fatalf("got %q, %v, want ready Linux", match, err)
	}
	for _, line := range []string{"a  line with 'quotes'", "not this one", "go on"} {
		if err := vm.Send(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{`^got a line with 'quotes'$`, `^has leap\.test=1 1 1$`} {
		if _, err := vm.WaitLine(ctx, regexp.MustCompile(want)); err != nil {
			t.Error(err)
		}
	}
	result, err := vm.Wait()
	if err != nil || result.ExitCode != 5 || strings.Contains(result.Console, "too much") {
		t.Errorf("got status %d, %v, want 5 and no line after that\n%s", result.ExitCode, err, result.Console)
	}
}

func TestGuestReboot(t *testing.T) {
	args, _ := disk(t)
	job := `
mkdir -p /mnt
if mount -t ext4 /dev/nvme0n1 /mnt 2>/dev/null; then
	[ "$(cat /mnt/left)" = here ]
	umount /mnt
	exit 3
fi
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
echo here >/mnt/left
umount /mnt
reboot -f
`
	result, err := boot(t, Config{Reboot: true, Job: job, QEMUArgs: args})
	if err != nil || result.ExitCode != 3 || result.Boots != 2 {
		t.Errorf("got status %d, %d boots, %v, want 3, 2", result.ExitCode, result.Boots, err)
	}
	args, _ = disk(t)
	if result, err := boot(t, Config{Job: job, QEMUArgs: args}); err == nil || result.ExitCode != -1 {
		t.Errorf("a reboot that is not allowed: got status %d, %v, want an error", result.ExitCode, err)
	}
}

// Killing QEMU in the middle of writes leaves what was written before on the disk.
func TestGuestKill(t *testing.T) {
	args, path := disk(t)
	vm, err := Start(t.Context(), Config{QEMUArgs: args, Job: `
printf 'first words' | dd of=/dev/nvme0n1 conv=fsync 2>/dev/null
notify written
while :; do dd if=/dev/urandom of=/dev/nvme0n1 bs=64k seek=16 count=64 oflag=direct 2>/dev/null; done`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.WaitLine(t.Context(), regexp.MustCompile("^written$")); err != nil {
		t.Error(err)
	}
	vm.Kill()
	if result, err := vm.Wait(); !errors.Is(err, ErrKilled) || result.ExitCode != -1 {
		t.Errorf("got status %d, %v, want it killed", result.ExitCode, err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(data, []byte("first words")) {
		t.Errorf("disk: got %.20q, %v", data, err)
	}
}

func TestGuestOVMF(t *testing.T) {
	args, _ := disk(t)
	result, err := boot(t, Config{Firmware: OVMF, Job: "nvme list; [ -b /dev/nvme0n1 ]; [ -d /sys/firmware/efi ]", QEMUArgs: args})
	if err != nil || result.ExitCode != 0 || result.Boots != 1 {
		t.Errorf("got status %d, %d boots, %v, want 0, 1", result.ExitCode, result.Boots, err)
	}
}
