// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package guest boots real Linux guests under QEMU for tests, demonstrations and experiments. Nothing has to be installed for it: QEMU, a
// stock Debian kernel and the guest's programs are fetched as Debian packages through the machine's own apt configuration, verified by
// apt, and unpacked into a cache that belongs to the user. Once the cache is filled no network is needed.
//
// The parts, in the order data flows through them:
//
//	sources.go, apt.go   where Debian packages come from; a private apt root beside the machine's
//	bundle.go, elf.go    what is taken out of which packages, with the shared libraries it needs
//	kernel.go            the ELF kernel inside a bzImage; modules with their dependencies
//	cache.go             the cache directory: versions, locking, atomic replacement
//	cpio.go, image.go    the initial RAM file system of one guest: its whole root file system
//	accel.go, vm.go      one QEMU process: arguments, console, control line, end
//
// A guest runs one job, a shell script, and ends with the job's exit status. It has two serial lines. The first is the console: kernel
// messages and what the job prints. The second is the control line, on which only the guest's init and the commands notify and await
// write, so that kernel messages can never tear what a test waits for. In the job:
//
//	notify TEXT    the host sees TEXT as a whole line (VM.WaitLine)
//	await [TEXT]   waits for a line from the host (VM.Send); with TEXT, for that line
//	modprobe NAME  loads one of the kernel modules in the image
//
// The job runs under "sh -eu" of busybox, whose shell prefers its own applets to programs of the same name in PATH; the full path
// selects the other one (/usr/sbin/mke2fs). It runs again at each boot of a guest started with Config.Reboot, in a fresh root file
// system: what it finds on its disks tells it which boot it is.
//
// Environment: LEAP_CACHE is the cache directory (default: leapio in the user's cache directory). LEAP_ACCEL, tcg or kvm, decides where
// Config.Accel does not, in place of the probe. LEAP_DEBIAN_URI is the address of a Debian mirror, for machines whose apt has none.
//
// Guests run for x86-64 on x86-64 hosts.
package guest
