// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// UEFI uses the drive before it starts the kernel, which then finds it.
func TestUEFI(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=16M")
	r.leap("leap-qmap map vm1 d1")
	enabled := r.countEnabled("vm1")
	r.boot(machine{ports: []string{"vm1"}, Config: guest.Config{Firmware: guest.OVMF, Job: `
ls /sys/firmware/efi
drives 1
fill /dev/nvme0n1 'UEFI was here'
healthy
`}})
	r.checkPattern("d1", "UEFI was here")
	if n := enabled(); n != 2 {
		t.Errorf("the controller was enabled %d times, want 2: by the firmware, by the kernel", n)
	}
}

// countEnabled counts how often a port becomes enabled, until the function it
// returns is called.
func (r *rig) countEnabled(port string) func() int {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "leap-wpt"), "events", "-o", "tsv")
	cmd.Env = r.env()
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() int {
		r.waitPort(port, api.PortWaiting)
		cancel()
		_ = cmd.Wait() // "signal: killed"
		n := 0
		for line := range strings.Lines(out.String()) {
			// time, kind, name, state
			if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) > 3 && f[1] == api.KindPort && f[2] == port && f[3] == api.PortEnabled {
				n++
			}
		}
		return n
	}
}

// bootSector copies eight sectors from block 2048 to block 4096 of the drive it
// was started from, by means of the BIOS, and resets the machine. Its
// instructions are for the 8086; it is loaded at 7c00h.
var bootSector = [512]byte{
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, // mov ds, ax
	0x8e, 0xd0, // mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 7c00h
	0xbe, 0x40, 0x7c, // mov si, 7c40h
	0xb4, 0x42, // mov ah, 42h: extended read; dl is the drive since the start
	0xcd, 0x13, // int 13h
	0x72, 0x08, // jc +8, to the reset
	0xbe, 0x50, 0x7c, // mov si, 7c50h
	0xb8, 0x00, 0x43, // mov ax, 4300h: extended write
	0xcd, 0x13, // int 13h
	0xba, 0xf9, 0x0c, // mov dx, 0cf9h: reset control of the chip set
	0xb0, 0x06, // mov al, 6
	0xee,       // out dx, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp -3

	// The packets of the two calls: their size, sectors, buffer 0000h:8000h, block.
	0x40: 16, 0, 8, 0, 0x00, 0x80, 0, 0, 0x00, 0x08, 0, 0, 0, 0, 0, 0,
	0x50: 16, 0, 8, 0, 0x00, 0x80, 0, 0, 0x00, 0x10, 0, 0, 0, 0, 0, 0,

	510: 0x55, 0xaa,
}

// bootDisk makes a drive that starts with bootSector in a file, and returns what
// the boot sector has to make of it.
func bootDisk(t *testing.T) (path string, want []byte) {
	t.Helper()
	want = make([]byte, 8<<20)
	copy(want, bootSector[:])
	rng := rand.New(rand.NewPCG(1, 2))
	payload := want[2048*512:][:8*512]
	for i := range payload {
		payload[i] = byte(rng.Uint32())
	}
	path = filepath.Join(t.TempDir(), "boot.img")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	copy(want[4096*512:], payload)
	return path, want
}

// checkDisk compares a drive's file with what it should be.
func checkDisk(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("the drive of %d bytes is not what its boot sector had to make of it, from block %d on", len(got), i/512)
		}
	}
}

// firmwareOnly are QEMU's arguments for a machine without a kernel that ends when
// it is reset.
var firmwareOnly = []string{"-M", "q35", "-m", fmt.Sprintf("%dM", memory), "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"}

// A machine without any kernel starts from the drive: SeaBIOS rings the doorbells
// of the page, has one queue pair of I/O and looks for completions by itself.
func TestBootFromDrive(t *testing.T) {
	for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap} {
		t.Run(doorbells, func(t *testing.T) {
			r := newRig(t)
			path, want := bootDisk(t)
			r.leap("leap-soc volume create d1 file path=" + path)
			r.leap("leap-qmap map vm1 d1 --doorbells " + doorbells)
			r.tool("qemu-system-x86_64", append(firmwareOnly, r.qemuArgs(machine{ports: []string{"vm1"}})...)...)
			checkDisk(t, path, want)
			r.waitPort("vm1", api.PortWaiting)
		})
	}
}

// leapio serve runs a machine with daemons of its own.
func TestServe(t *testing.T) {
	r := &rig{t: t, paths: api.Paths{Run: "/nonexistent", State: "/nonexistent"}}
	path, want := bootDisk(t)
	qemu, err := guest.Wrapper(t.Context(), os.Stderr, "qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	r.run(filepath.Join(bin, "leapio"), "serve", "file", "path="+path, "--mem", fmt.Sprintf("%dM", memory),
		"--run", qemu+" "+strings.Join(firmwareOnly, " ")+" $leap_qemu")
	checkDisk(t, path, want)
}
