// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

// Package guest_test boots stock guests in a stock QEMU with drives of LeapIO:
//
//	make guest       the default set
//	make guest-all   and every combination of doorbells, memory, blocks, kernels, processors, interrupts and depths of queues
//
// The commands are built once and run as an admin runs them: leap-wpt and
// leap-soc as processes of their own, wired by leap-soc and leap-qmap, QEMU with
// the arguments that leap-wpt port qemu prints. What a guest wrote is looked at
// from inside and, after it is gone, from outside in the file on the host.
//
//	main_test.go      builds the commands
//	rig_test.go       both daemons in folders of their own; guests with their drives
//	job_test.go       shell functions for the jobs of guests
//	drive_test.go     a drive, two machines
//	commands_test.go  what nvme-cli can have it do, and what it counts
//	nvmedoc_test.go   docs/nvme.md, to hold the drive against
//	matrix_test.go    fio on a file system, in every way a drive can be wired
//	life_test.go      reboots, power cuts, restarts of the runtime
//	mix_test.go       kills and upgrades of both daemons under discards, flushes and FUA; and under hosts
//	wait_test.go      what guests make of a runtime that is away
//	host_test.go      a guest as a host over NVMe/TCP: all that its kernel and nvme-cli do
//	loss_test.go      the same while runtimes and guests are killed, away, or frozen
//	remote_test.go    a drive whose blocks are on another machine
//	nvmet_test.go     the same with the Linux kernel's target there
//	hotplug_test.go   a drive that is plugged in and out
//	firmware_test.go  drives as SeaBIOS and UEFI use them
//	pagemap_test.go   what leap-pagemap says, inside a guest and of one
//	demo_test.go      what make demo runs
package guest_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// bin is the folder of the commands under test.
var bin string

// all asks for every combination: LEAP_GUEST_ALL=1.
var all = os.Getenv("LEAP_GUEST_ALL") != ""

func TestMain(m *testing.M) {
	status, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

// buildAndRun builds the commands from the sources beside this test and runs
// the tests with them.
func buildAndRun(m *testing.M) (status int, err error) {
	if bin, err = os.MkdirTemp("", "leap-bin-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(bin)
	// A process whose parent has ended becomes our child, as a runtime that has
	// taken over.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, err
	}
	build := exec.Command("go", "build", "-o", bin, "./cmd/...")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("building the commands: %w\n%s", err, out)
	}
	return m.Run(), nil
}
