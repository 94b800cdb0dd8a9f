// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel selects one of the stock kernels.
type Kernel string

const (
	// KernelCloud is the cloud kernel of Debian stable; nvme and ext4 are built in.
	KernelCloud Kernel = "linux"
	// KernelBackports is the same of Debian's backports: newer by a year or so.
	KernelBackports Kernel = "linux-backports"
)

// Firmware selects what starts the kernel.
type Firmware string

const (
	// SeaBIOS starts the ELF kernel by its PVH entry: the fastest way.
	SeaBIOS Firmware = "seabios"
	// OVMF is UEFI: it starts the bzImage by its EFI stub, and drives NVMe controllers itself before.
	OVMF Firmware = "ovmf"
)

// Why a guest ended without the exit status of its job; for errors.Is.
var (
	ErrTimeout = errors.New("guest took too long")
	ErrPanic   = errors.New("kernel panic in the guest")
	ErrKilled  = errors.New("guest was killed")
)

// Config describes a guest. The zero value of each field but Job is a sensible default.
type Config struct {
	// Job is a shell script, run by init under "sh -eu" with root's rights. Its exit status ends the guest.
	Job string
	// Files are put into the guest: path in the guest to content.
	Files map[string]File
	// Memory is the guest's RAM in MiB; 0 means 512. It must equal the size of a memory backend named in QEMUArgs.
	Memory int
	// CPUs is the number of processors; 0 means 2.
	CPUs int
	// Kernel is the kernel booted; "" means KernelCloud.
	Kernel Kernel
	// Append is added to the kernel command line, for example "nvme_core.io_timeout=5".
	Append string
	// Firmware is what boots it; "" means SeaBIOS.
	Firmware Firmware
	// QEMUArgs are added to QEMU's command line: devices, drives, memory backends. -machine options merge with the runner's, the later
	// one of the same property winning.
	QEMUArgs []string
	// Reboot lets the guest reboot. Otherwise a reboot ends it, as an error unless the job had ended.
	Reboot bool
	// Accel is how QEMU runs code; "" chooses KVM where a probe has shown that it works, else TCG.
	Accel Accel
	// Timeout is the time for one boot with all the job does in it; 0 means 120 s. Each reboot starts it anew.
	Timeout time.Duration
	// Console receives each line the guest prints as it comes, and QEMU's own messages; nil for none.
	Console io.Writer
	// Progress receives a line per step of fetching packages; nil means standard error.
	Progress io.Writer
}

// Result is what is left of a guest.
type Result struct {
	// ExitCode is the job's exit status, 0 to 255; -1 when the guest ended without one.
	ExitCode int
	// Console is everything the guest printed, notify's lines and QEMU's own messages among it, in order of arrival.
	Console string
	// Boots counts how often init started.
	Boots int
	// Elapsed is the time QEMU ran.
	Elapsed time.Duration
}

// VM is a running guest.
type VM struct {
	cmd     *exec.Cmd
	control *os.File // our end of the control line
	log     *lineLog
	timeout time.Duration
	started time.Time
	done    chan struct{} // closed when result and err are final
	up      chan struct{} // closed at the first boot

	mu     sync.Mutex
	timer  *time.Timer // ends a boot that takes too long
	cause  error       // why we killed it
	status int         // the job's; -1 until it ended
	boots  int

	result Result
	err    error
}

// Run boots a guest and waits for its end. A job that fails is a result, not an error; the result is never nil and holds the console also
// beside an error. When ctx ends, the guest does.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	vm, err := Start(ctx, cfg)
	if err != nil {
		return &Result{ExitCode: -1}, err
	}
	return vm.Wait()
}

// Start boots a guest, fetching what the cache lacks. When ctx ends, or this process dies, the guest is killed. The caller must call Wait.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c, err := openCache(cfg.Progress)
	if err != nil {
		return nil, err
	}
	needed := []string{bundleQEMU, bundleTools, string(cfg.Kernel)}
	if cfg.Firmware == OVMF {
		needed = append(needed, bundleOVMF)
	}
	// All at once, so that the package lists are read once.
	if err := c.fetch(ctx, false, needed...); err != nil {
		return nil, err
	}
	if cfg.Accel == "" {
		if cfg.Accel, err = c.chooseAccel(ctx, cfg.Kernel); err != nil {
			return nil, err
		}
	}
	vm := &VM{timeout: cfg.Timeout, status: -1, done: make(chan struct{}), up: make(chan struct{}), log: newLineLog(cfg.Console)}
	if err := vm.start(ctx, c, cfg); err != nil {
		return nil, fmt.Errorf("starting a guest: %w", err)
	}
	return vm, nil
}

func (cfg *Config) setDefaults() {
	if cfg.Memory == 0 {
		cfg.Memory = 512
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.Kernel == "" {
		cfg.Kernel = KernelCloud
	}
	if cfg.Firmware == "" {
		cfg.Firmware = SeaBIOS
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 120 * time.Second
	}
	if cfg.Progress == nil {
		cfg.Progress = os.Stderr
	}
}

func (cfg *Config) check() error {
	switch {
	case cfg.Job == "":
		return errors.New("guest: no job")
	case cfg.Memory < 128:
		return fmt.Errorf("guest: %d MiB of memory: want 128 or more", cfg.Memory)
	case cfg.CPUs < 1:
		return fmt.Errorf("guest: %d CPUs: want 1 or more", cfg.CPUs)
	case cfg.Kernel != KernelCloud && cfg.Kernel != KernelBackports:
		return fmt.Errorf("guest: kernel %q: want %q or %q", cfg.Kernel, KernelCloud, KernelBackports)
	case cfg.Firmware != SeaBIOS && cfg.Firmware != OVMF:
		return fmt.Errorf("guest: firmware %q: want %q or %q", cfg.Firmware, SeaBIOS, OVMF)
	case cfg.Accel != "" && cfg.Accel != AccelTCG && cfg.Accel != AccelKVM:
		return fmt.Errorf("guest: accelerator %q: want %q or %q", cfg.Accel, AccelTCG, AccelKVM)
	case cfg.Timeout < 0:
		return fmt.Errorf("guest: time-out %s: want a positive one", cfg.Timeout)
	}
	return nil
}

// Descriptors in QEMU, after its standard three (exec.Cmd.ExtraFiles): the two serial lines and the initial RAM file system.
const (
	consoleFD = 3
	controlFD = 4
	initrdFD  = 5
)

// qemuArgs returns QEMU's arguments.
func (cfg *Config) qemuArgs(ctx context.Context, c *cache) ([]string, error) {
	kernelDir, err := c.bundleDir(ctx, string(cfg.Kernel))
	if err != nil {
		return nil, err
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,smm=off,sata=off,smbus=off",
		"-m", strconv.Itoa(cfg.Memory) + "M", "-smp", strconv.Itoa(cfg.CPUs),
		"-chardev", "socket,id=console,fd=" + strconv.Itoa(consoleFD), "-serial", "chardev:console",
		"-chardev", "socket,id=control,fd=" + strconv.Itoa(controlFD), "-serial", "chardev:control",
		"-initrd", "/proc/self/fd/" + strconv.Itoa(initrdFD),
	}
	if cfg.Accel == AccelKVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", "max")
	}
	kernel := "vmlinux"
	if cfg.Firmware == OVMF {
		dir, err := c.bundleDir(ctx, bundleOVMF)
		if err != nil {
			return nil, err
		}
		args = append(args, "-bios", filepath.Join(dir, "root/usr/share/ovmf/OVMF.fd"))
		kernel = "vmlinuz"
	}
	// A panic reboots at once; where reboots are allowed the guest is ended by what it prints.
	cmdline := "console=ttyS0 quiet panic=-1"
	if cfg.Reboot {
		cmdline = "console=ttyS0 quiet panic=0"
	} else {
		args = append(args, "-no-reboot")
	}
	if cfg.Append != "" {
		cmdline += " " + cfg.Append
	}
	args = append(args, "-kernel", filepath.Join(kernelDir, kernel), "-append", cmdline)
	return append(args, cfg.QEMUArgs...), nil
}

// start writes the image, starts QEMU and the goroutines that follow it; finish ends them all.
func (vm *VM) start(ctx context.Context, c *cache, cfg Config) error {
	args, err := cfg.qemuArgs(ctx, c)
	if err != nil {
		return err
	}
	qemu, err := c.program(ctx, "qemu-system-x86_64")
	if err != nil {
		return err
	}
	initrd, err := cfg.initrd(ctx, c)
	if err != nil {
		return err
	}
	defer initrd.Close()
	console, consoleQEMU, err := socketPair()
	if err != nil {
		return err
	}
	control, controlQEMU, err := socketPair()
	if err != nil {
		return errors.Join(err, console.Close(), consoleQEMU.Close())
	}
	vm.control = control
	words, wordsQEMU, err := os.Pipe()
	if err != nil {
		return errors.Join(err, console.Close(), consoleQEMU.Close(), control.Close(), controlQEMU.Close())
	}
	vm.cmd = exec.Command(qemu.path, append(qemu.args, args...)...)
	vm.cmd.Env = append(os.Environ(), qemu.env...)
	vm.cmd.Stdout, vm.cmd.Stderr = wordsQEMU, wordsQEMU
	vm.cmd.ExtraFiles = []*os.File{consoleQEMU, controlQEMU, initrd}
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	vm.started = time.Now()
	exited, err := startTied(vm.cmd)
	// QEMU has its own copies now.
	err = errors.Join(err, consoleQEMU.Close(), controlQEMU.Close(), wordsQEMU.Close())
	if err != nil {
		return errors.Join(err, console.Close(), control.Close(), words.Close())
	}
	vm.timer = time.AfterFunc(vm.timeout, func() { vm.kill(fmt.Errorf("%w: more than %s", ErrTimeout, vm.timeout)) })

	var readers sync.WaitGroup
	readers.Go(func() { readLines(console, vm.consoleLine) })
	readers.Go(func() { readLines(control, vm.controlLine) })
	readers.Go(func() { readLines(words, func(line string) { vm.log.add("qemu: " + line) }) })
	stop := context.AfterFunc(ctx, func() { vm.kill(fmt.Errorf("guest was killed: %w", context.Cause(ctx))) })
	go func() {
		exit := <-exited
		stop()
		readers.Wait()
		err := errors.Join(console.Close(), control.Close(), words.Close())
		vm.finish(exit, err)
	}()
	return nil
}

// initrd makes the guest's file system, in a file without a name: nothing stays behind when this process is killed.
func (cfg *Config) initrd(ctx context.Context, c *cache) (*os.File, error) {
	var trees []string
	for _, name := range []string{bundleTools, string(cfg.Kernel)} {
		dir, err := c.bundleDir(ctx, name)
		if err != nil {
			return nil, err
		}
		trees = append(trees, filepath.Join(dir, "root"))
	}
	f, err := os.CreateTemp("", "leap-guest-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), writeImage(f, cfg.Job, cfg.Files, trees...)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// startTied starts the command and returns a channel with its end. The kernel sends the death signal when the thread that started a
// process ends, not the process it belongs to; so that thread stays for it.
func startTied(cmd *exec.Cmd) (exited <-chan error, err error) {
	started, end := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until the goroutine ends
		err := cmd.Start()
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}

// socketPair returns a connected pair: our end and the one for QEMU.
func socketPair() (ours, qemu *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that Close ends a Read
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "guest serial line"), os.NewFile(uintptr(fds[1]), "guest serial line"), nil
}

// panicLine matches the kernel's last words, with or without a time stamp.
var panicLine = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?Kernel panic - not syncing`)

// escapes matches the terminal sequences with which UEFI firmware clears the screen.
var escapes = regexp.MustCompile(`\x1b\[[=?0-9;]*[A-Za-z]`)

// consoleLine takes a line of the console.
func (vm *VM) consoleLine(line string) {
	line = escapes.ReplaceAllString(line, "")
	vm.log.add(line)
	if panicLine.MatchString(line) {
		// The kernel prints some lines more, and ends the guest itself unless it may reboot.
		time.AfterFunc(time.Second, func() { vm.kill(ErrPanic) })
		vm.mu.Lock()
		defer vm.mu.Unlock()
		if vm.cause == nil {
			vm.cause = ErrPanic
		}
	}
}

// controlLine takes a line of the control line: "boot", "say TEXT" or "exit STATUS". Noise of a dying guest is ignored.
func (vm *VM) controlLine(line string) {
	word, rest, _ := strings.Cut(line, " ")
	if word == "say" {
		vm.log.add(rest)
		return
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch word {
	case "boot":
		if vm.boots++; vm.boots == 1 {
			close(vm.up)
		}
		vm.timer.Reset(vm.timeout)
	case "exit":
		if status, err := strconv.ParseUint(rest, 10, 8); err == nil {
			vm.status = int(status)
		}
	}
}

// kill ends QEMU; the first cause given counts.
func (vm *VM) kill(cause error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	select {
	case <-vm.done:
		return
	default:
	}
	if vm.cause == nil {
		vm.cause = cause
	}
	// os.ErrProcessDone is the only error there can be: it ended before.
	_ = vm.cmd.Process.Kill()
}

// finish sets the result.
func (vm *VM) finish(exit, cleanup error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.timer.Stop()
	vm.result = Result{ExitCode: vm.status, Console: vm.log.text(), Boots: vm.boots, Elapsed: time.Since(vm.started)}
	switch {
	case vm.cause != nil:
		vm.err = fmt.Errorf("%w%s", vm.cause, vm.log.tail())
	case exit != nil:
		vm.err = fmt.Errorf("QEMU: %w%s", exit, vm.log.tail())
	case vm.status < 0:
		vm.err = fmt.Errorf("guest ended before its job did%s", vm.log.tail())
	}
	vm.err = errors.Join(vm.err, cleanup)
	ended := vm.err
	if ended == nil {
		ended = fmt.Errorf("guest ended, exit status %d%s", vm.status, vm.log.tail())
	}
	vm.log.end(ended)
	close(vm.done)
}

// Wait waits for the guest's end. It may be called more than once, and returns what Run does.
func (vm *VM) Wait() (*Result, error) {
	<-vm.done
	result := vm.result
	return &result, vm.err
}

// Kill ends the guest as a power cut does, at once and without a word to it. Wait then returns ErrKilled.
func (vm *VM) Kill() { vm.kill(ErrKilled) }

// Pid returns QEMU's process id.
func (vm *VM) Pid() int { return vm.cmd.Process.Pid }

// Console returns what the guest has printed so far, as in Result.
func (vm *VM) Console() string { return vm.log.text() }

// WaitLine waits for a whole line that matches re, printed by the guest or given to notify, and returns the match with its submatches.
// Each line is looked at once: the next call goes on after the line returned. It ends with an error when the guest or ctx does.
func (vm *VM) WaitLine(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return vm.log.waitLine(ctx, re)
}

// Send gives the guest a line of at most 1000 bytes, for the command await. It waits until the guest has booted; a line sent while the
// guest reboots is lost.
func (vm *VM) Send(ctx context.Context, line string) error {
	if len(line) > 1000 || strings.ContainsAny(line, "\r\n") {
		return fmt.Errorf("sending %d bytes: want one line of at most 1000", len(line))
	}
	select {
	case <-vm.up:
	case <-ctx.Done():
		return fmt.Errorf("sending %q: %w", line, ctx.Err())
	case <-vm.done:
		return fmt.Errorf("sending %q: the guest has ended", line)
	}
	if _, err := io.WriteString(vm.control, line+"\n"); err != nil {
		return fmt.Errorf("sending %q: %w", line, err)
	}
	return nil
}
