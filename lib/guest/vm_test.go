// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeQEMU installs bundles in which QEMU is a shell script: descriptor 3 is the console, 4 the control line.
func fakeQEMU(t *testing.T, script string) {
	t.Helper()
	c := testCache(t)
	t.Setenv("LEAP_ACCEL", "tcg")
	installTest(t, c, bundleQEMU, "1", map[string]string{"root/usr/bin/qemu-system-x86_64": "#!/bin/sh\n" + script})
	installTest(t, c, bundleTools, "1", map[string]string{"root/usr/bin/busybox": "box"})
	installTest(t, c, string(KernelCloud), "1", map[string]string{"vmlinux": "", "root/etc/modules": ""})
}

// checkGoroutines fails the test if more goroutines run at its end than at this call.
func checkGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 100 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<16)
		t.Errorf("goroutines left: got %d, want %d\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
	})
}

func TestRunResult(t *testing.T) {
	checkGoroutines(t)
	fakeQEMU(t, `printf '\033[2Jnoise\nboot\n' >&4; printf '\033[2J\033[01;01H\033[=3hone\r\ntwo\n' >&3; sleep 0.1; echo "say three" >&4; sleep 0.1; echo words >&2; echo "exit 7" >&4; exit 0`)
	var console bytes.Buffer
	result, err := Run(t.Context(), Config{Job: "true", Console: &console, Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode != 7 || result.Boots != 1 || result.Elapsed <= 0 {
		t.Errorf("got status %d, %d boots, %s, want 7, 1", result.ExitCode, result.Boots, result.Elapsed)
	}
	if want := "one\ntwo\nthree\nqemu: words\n"; result.Console != want || console.String() != want {
		t.Errorf("console: got %q and streamed %q, want %q", result.Console, console.String(), want)
	}
}

func TestRunWithoutStatus(t *testing.T) {
	for _, c := range []struct {
		name, script string
		is           error
		want         string
	}{
		{"ends early", "echo boot >&4; echo last >&3; exit 0", nil, "ended before its job did; last lines of the guest:\n\tlast"},
		{"QEMU fails", "echo 'no such device' >&2; exit 1", nil, "QEMU: exit status 1; last lines of the guest:\n\tqemu: no such device"},
		{"panic", "echo '[    1.5] Kernel panic - not syncing: x' >&3; exec sleep 60", ErrPanic, "Kernel panic - not syncing: x"},
		{"panic and end", "echo 'Kernel panic - not syncing: x' >&3; exit 0", ErrPanic, "Kernel panic - not syncing: x"},
		{"timeout", "exec sleep 60", ErrTimeout, "more than 300ms; the guest printed nothing"},
		{"bad status", "echo 'exit 300' >&4; exit 0", nil, "ended before its job did"},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkGoroutines(t)
			fakeQEMU(t, c.script)
			timeout := 300 * time.Millisecond
			if c.is != ErrTimeout {
				timeout = time.Minute
			}
			result, err := Run(t.Context(), Config{Job: "true", Timeout: timeout, Progress: io.Discard})
			if err == nil || !strings.Contains(err.Error(), c.want) || (c.is != nil && !errors.Is(err, c.is)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
			if result == nil || result.ExitCode != -1 {
				t.Errorf("got result %+v, want status -1", result)
			}
		})
	}
}

func TestKillAndCancel(t *testing.T) {
	checkGoroutines(t)
	fakeQEMU(t, "echo boot >&4; exec sleep 60")
	vm, err := Start(t.Context(), Config{Job: "true", Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", vm.Pid())); err != nil {
		t.Errorf("QEMU's process: %v", err)
	}
	vm.Kill()
	vm.Kill()
	for range 2 {
		if _, err := vm.Wait(); !errors.Is(err, ErrKilled) {
			t.Errorf("after Kill: got %v", err)
		}
	}
	vm.Kill()

	ctx, cancel := context.WithCancel(t.Context())
	vm, err = Start(ctx, Config{Job: "true", Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := vm.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: got %v", err)
	}
	if _, err := vm.WaitLine(t.Context(), regexp.MustCompile("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitLine after the end: got %v, want the cause", err)
	}
	if err := vm.Send(t.Context(), "x"); err == nil {
		t.Error("Send after the end: got no error")
	}
}

// TestDeathHelper is the process TestDeathSignal kills: it starts a guest, prints QEMU's process id and waits.
func TestDeathHelper(t *testing.T) {
	if os.Getenv("GUEST_DEATH_HELPER") == "" {
		t.Skip("runs only as a child of TestDeathSignal")
	}
	vm, err := Start(t.Context(), Config{Job: "true", Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("pid %d\n", vm.Pid())
	_, err = vm.Wait()
	t.Fatal(err)
}

// QEMU dies with the process that started it, however that one ends.
func TestDeathSignal(t *testing.T) {
	fakeQEMU(t, "exec sleep 60")
	helper := exec.Command(os.Args[0], "-test.run=^TestDeathHelper$")
	helper.Env = append(os.Environ(), "GUEST_DEATH_HELPER=1")
	out, err := helper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, scanErr := fmt.Fscanf(out, "pid %d\n", &pid)
	if err := helper.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = helper.Wait() // "signal: killed"
	if scanErr != nil {
		t.Fatal(scanErr)
	}
	for range 500 {
		// A zombie waiting for its new parent is dead too.
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d: still there 5 s after its parent's death", pid)
}

func TestWaitLineAndSend(t *testing.T) {
	checkGoroutines(t)
	fakeQEMU(t, `echo "say ready 42" >&4; echo boot >&4; read -r line <&4; echo "say got $line" >&4; echo "exit 0" >&4; exit 0`)
	vm, err := Start(t.Context(), Config{Job: "true", Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	match, err := vm.WaitLine(t.Context(), regexp.MustCompile(`^ready (\d+)$`))
	if err != nil || !slices.Equal(match, []string{"ready 42", "42"}) {
		t.Fatalf("got %q, %v, want the line and its number", match, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := vm.WaitLine(ctx, regexp.MustCompile("ready")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the same line again: got %v, want to wait", err)
	}
	for _, bad := range []string{"two\nlines", strings.Repeat("x", 1001)} {
		if err := vm.Send(t.Context(), bad); err == nil {
			t.Errorf("sending %.10q: got no error", bad)
		}
	}
	if err := vm.Send(t.Context(), "go on"); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.WaitLine(t.Context(), regexp.MustCompile(`^got go on$`)); err != nil {
		t.Error(err)
	}
	if result, err := vm.Wait(); err != nil || result.ExitCode != 0 {
		t.Errorf("got %+v, %v, want status 0", result, err)
	}
}

func TestConfigCheck(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no job":      {},
		"memory":      {Job: "true", Memory: 64},
		"cpus":        {Job: "true", CPUs: -1},
		"kernel":      {Job: "true", Kernel: "hurd"},
		"firmware":    {Job: "true", Firmware: "coreboot"},
		"accelerator": {Job: "true", Accel: "xen"},
		"timeout":     {Job: "true", Timeout: -1},
	} {
		if _, err := Start(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), "guest: ") {
			t.Errorf("%s: got %v, want an error of the check", name, err)
		}
	}
	fakeQEMU(t, "exit 0")
	t.Setenv("LEAP_ACCEL", "xen")
	if _, err := Start(t.Context(), Config{Job: "true", Progress: io.Discard}); err == nil || !strings.Contains(err.Error(), "LEAP_ACCEL=xen") {
		t.Errorf("LEAP_ACCEL: got %v", err)
	}
}

func TestQEMUArgs(t *testing.T) {
	fakeQEMU(t, "exit 0")
	c, err := openCache(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	installTest(t, c, bundleOVMF, "1", map[string]string{"root/usr/share/ovmf/OVMF.fd": ""})
	for _, test := range []struct {
		cfg  Config
		want []string // in this order
		not  string
	}{
		{Config{Accel: AccelTCG, QEMUArgs: []string{"-machine", "q35,memory-backend=mem"}, Append: "a=b"},
			[]string{"-machine q35,", "-m 512M -smp 2", "-accel tcg,thread=multi", "-no-reboot", "/vmlinux -append console=ttyS0 quiet panic=-1 a=b",
				"-machine q35,memory-backend=mem"}, "-bios"},
		{Config{Accel: AccelKVM, Memory: 1024, CPUs: 4, Firmware: OVMF, Reboot: true},
			[]string{"-m 1024M -smp 4", "-accel kvm -cpu host", "-bios ", "OVMF.fd", "/vmlinuz -append console=ttyS0 quiet panic=0"}, "-no-reboot"},
	} {
		test.cfg.setDefaults()
		args, err := test.cfg.qemuArgs(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(args, " ")
		rest := got
		for _, want := range test.want {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("got %s, want %q in it", got, want)
			}
			rest = after
		}
		if strings.Contains(got, test.not) {
			t.Errorf("got %s, want no %s", got, test.not)
		}
	}
}

func TestReadLines(t *testing.T) {
	long := strings.Repeat("x", maxLine+5)
	var got []string
	readLines(strings.NewReader("a\r\n\n"+long+"\nend"), func(line string) { got = append(got, line) })
	want := []string{"a", "", long[:maxLine], long[maxLine:], "end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %d lines %.20q, want %d", len(got), got, len(want))
	}
}
