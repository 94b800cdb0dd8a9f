// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Accel is how QEMU runs the guest's code.
type Accel string

const (
	// AccelTCG translates it: works everywhere, some ten times slower than the machine.
	AccelTCG Accel = "tcg"
	// AccelKVM lets the processor run it.
	AccelKVM Accel = "kvm"
)

// kvmProbeTime is what a guest that does nothing may take under KVM. It needs about one second where KVM works; TCG needs four.
const kvmProbeTime = 8 * time.Second

// chooseAccel returns KVM if a stock kernel really runs under it. That /dev/kvm opens proves nothing: nested and paravirtual hosts offer a
// KVM in which such a kernel stops or crawls. So a guest is booted to see, once per boot of the machine and set of bundles; LEAP_ACCEL
// (tcg or kvm) decides without.
func (c *cache) chooseAccel(ctx context.Context, kernel Kernel) (Accel, error) {
	switch env := Accel(os.Getenv("LEAP_ACCEL")); env {
	case AccelTCG, AccelKVM:
		return env, nil
	case "":
	default:
		return "", fmt.Errorf("LEAP_ACCEL=%s: want tcg or kvm", env)
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return AccelTCG, nil
	}
	dev.Close()
	key, err := c.probeKey(ctx, kernel)
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.dir, "kvm")
	read := func() (Accel, bool) {
		data, _ := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == key {
				return Accel(fields[1]), true
			}
		}
		return "", false
	}
	if accel, ok := read(); ok {
		return accel, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if accel, ok := read(); ok {
		return accel, nil
	}
	c.say("probing KVM for up to %s", kvmProbeTime)
	accel := AccelTCG
	result, err := Run(ctx, Config{Kernel: kernel, Accel: AccelKVM, Timeout: kvmProbeTime, Job: "true", Progress: io.Discard})
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err == nil && result.ExitCode == 0:
		accel = AccelKVM
		c.say("KVM runs a stock kernel (%.1f s)", result.Elapsed.Seconds())
	default:
		c.say("KVM does not run a stock kernel here: using TCG")
	}
	// Findings of earlier boots of the machine are of no use.
	data, _ := os.ReadFile(path)
	boot, _, _ := strings.Cut(key, "/")
	var keep strings.Builder
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, boot+"/") {
			keep.WriteString(line)
		}
	}
	fmt.Fprintf(&keep, "%s %s\n", key, accel)
	return accel, replaceFile(path, []byte(keep.String()), 0o644)
}

// probeKey names what a probe's finding holds for: this boot of the machine, this kernel, this QEMU.
func (c *cache) probeKey(ctx context.Context, kernel Kernel) (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("probing KVM: %w", err)
	}
	key := strings.TrimSpace(string(id))
	for _, name := range []string{bundleQEMU, string(kernel)} {
		dir, err := c.bundleDir(ctx, name)
		if err != nil {
			return "", err
		}
		key += "/" + filepath.Base(dir)
	}
	return key, nil
}
