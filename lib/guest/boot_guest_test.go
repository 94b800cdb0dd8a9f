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

func TestGuestTools(t *testing.T) {
	for _, kernel := range []Kernel{KernelCloud, KernelBackports} {
		t.Run(string(kernel), func(t *testing.T) {
			result, err := boot(t, Config{Kernel: kernel, Job: "nvme version; fio --version; mkfs.ext4 -V; echo in $(nproc)"})
			if err != nil || result.ExitCode != 0 || result.Boots != 1 {
				t.Fatalf("got status %d, %d boots, %v, want 0, 1", result.ExitCode, result.Boots, err)
			}
			for _, want := range []string{"nvme version ", "fio-", "mke2fs ", "in 2"} {
				if !strings.Contains(result.Console, want) {
					t.Errorf("console: got no %q", want)
				}
			}
		})
	}
}

func TestGuestJobStatus(t *testing.T) {
	// The first failing command ends the job: set -e.
	result, err := boot(t, Config{Job: "echo one\nsh -c 'exit 7'\necho two"})
	if err != nil || result.ExitCode != 7 || strings.Contains(result.Console, "two") {
		t.Errorf("got status %d, %v, want 7 and no second line", result.ExitCode, err)
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

func TestGuestTalk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	vm, err := Start(ctx, Config{Job: "notify ready $(uname -s)\nanswer=$(await)\nnotify got $answer\nawait go on >/dev/null\nexit 5"})
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
	if _, err := vm.WaitLine(ctx, regexp.MustCompile(`^got a line with 'quotes'$`)); err != nil {
		t.Error(err)
	}
	if result, err := vm.Wait(); err != nil || result.ExitCode != 5 {
		t.Errorf("got %+v, %v, want status 5", result, err)
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

// Memory given as a shared backend, the way vfio-user devices need it, merges with the runner's own machine options.
func TestGuestSharedMemory(t *testing.T) {
	args := []string{"-object", "memory-backend-memfd,id=mem,size=1024M,share=on", "-machine", "q35,memory-backend=mem"}
	result, err := boot(t, Config{Memory: 1024, CPUs: 1, Append: "leap.test=1 loglevel=5", QEMUArgs: args,
		Job: "grep -q leap.test=1 /proc/cmdline; [ $(awk '/MemTotal/ {print $2}' /proc/meminfo) -gt 900000 ]; [ $(nproc) = 1 ]"})
	if err != nil || result.ExitCode != 0 {
		t.Errorf("got status %d, %v, want 0", result.ExitCode, err)
	}
}

func TestGuestFilesAndModules(t *testing.T) {
	result, err := boot(t, Config{
		Files: map[string]File{"/opt/hostsh": {Host: "/bin/sh"}, "/etc/note": {Data: []byte("a note\n")}},
		Job:   `/opt/hostsh -c 'cat /etc/note'; for m in xfs nvme-tcp nvmet-tcp virtio_net vfio-pci uio_pci_generic null_blk loop; do modprobe $m; done`,
	})
	if err != nil || result.ExitCode != 0 || !strings.Contains(result.Console, "a note") {
		t.Errorf("got status %d, %v, want 0 and the note", result.ExitCode, err)
	}
}
