// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command tool fetches and runs what the project's guests are made of; it is for contributors and scripts, and is not installed:
//
//	go run ./lib/guest/tool fetch [-update] [BUNDLE...]
//	go run ./lib/guest/tool path PROGRAM
//	go run ./lib/guest/tool boot [OPTION...] [-- QEMU-ARGUMENT...]
//
// fetch fills the cache; path prints a script that runs QEMU, mandoc, fio, nvme and so on from it; boot runs a job in a guest, shows what
// the guest prints and exits with the job's status. Without a terminal and a network it works from the cache alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/leapio/leapio/lib/guest"
)

// exitTrouble is the status of anything that went wrong beside the job: no guest, no end, no status.
const exitTrouble = 125

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status, err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "tool:", err)
	}
	os.Exit(status)
}

// run executes one sub-command and returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, words io.Writer) (int, error) {
	if len(args) == 0 {
		return exitTrouble, errors.New("want a command: fetch, path or boot (-h after it shows its options)")
	}
	var status int
	var err error
	switch args[0] {
	case "fetch":
		err = fetch(ctx, args[1:], words)
	case "path":
		err = path(ctx, args[1:], out, words)
	case "boot":
		status, err = boot(ctx, args[1:], in, out, words)
	default:
		err = fmt.Errorf("no command %q: want fetch, path or boot", args[0])
	}
	if err != nil {
		status = exitTrouble
	}
	return status, err
}

// newFlags returns an empty set of options for a sub-command used like usage.
func newFlags(usage string, words io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(usage, flag.ContinueOnError)
	flags.SetOutput(words)
	return flags
}

// fetch fills the cache.
func fetch(ctx context.Context, args []string, words io.Writer) error {
	flags := newFlags("fetch [-update] [BUNDLE...]; bundles: "+strings.Join(guest.Bundles(), ", "), words)
	update := flags.Bool("update", false, "replace bundles of which there are newer packages; no guest may run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return guest.Fetch(ctx, words, *update, flags.Args()...)
}

// path prints the path of a program's script.
func path(ctx context.Context, args []string, out, words io.Writer) error {
	flags := newFlags("path PROGRAM; programs: "+strings.Join(guest.Programs(), ", "), words)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("path: want one of %s", strings.Join(guest.Programs(), ", "))
	}
	script, err := guest.Wrapper(ctx, words, flags.Arg(0))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, script)
	return err
}

// boot runs a job in a guest and returns its exit status.
func boot(ctx context.Context, args []string, in io.Reader, out, words io.Writer) (int, error) {
	cfg := guest.Config{Files: map[string]guest.File{}, Console: out, Progress: words}
	flags := newFlags("boot [OPTION...] [-- QEMU-ARGUMENT...]", words)
	job := flags.String("job", "-", "`file` with the shell script to run in the guest; - is standard input")
	flags.IntVar(&cfg.Memory, "mem", 512, "memory in `MiB`")
	flags.IntVar(&cfg.CPUs, "smp", 2, "number of processors")
	flags.StringVar(&cfg.Append, "append", "", "`words` for the kernel command line")
	flags.StringVar((*string)(&cfg.Kernel), "kernel", string(guest.KernelCloud), "kernel: linux or linux-backports")
	flags.StringVar((*string)(&cfg.Firmware), "firmware", string(guest.SeaBIOS), "firmware: seabios or ovmf")
	flags.StringVar((*string)(&cfg.Accel), "accel", "", "tcg or kvm; by default what a probe finds")
	flags.BoolVar(&cfg.Reboot, "reboot", false, "let the guest reboot")
	flags.DurationVar(&cfg.Timeout, "timeout", 0, "time for one boot and its job (default 2m)")
	flags.Func("file", "`HOST:GUEST`: put the host's file HOST at the path GUEST; may be repeated", func(s string) error {
		host, path, ok := strings.Cut(s, ":")
		if !ok || host == "" || path == "" {
			return errors.New("want HOST:GUEST")
		}
		cfg.Files[path] = guest.File{Host: host}
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return exitTrouble, err
	}
	cfg.QEMUArgs = flags.Args()
	var text []byte
	var err error
	if *job == "-" {
		text, err = io.ReadAll(in)
	} else {
		text, err = os.ReadFile(*job)
	}
	if err != nil {
		return exitTrouble, fmt.Errorf("reading the job: %w", err)
	}
	cfg.Job = string(text)
	result, err := guest.Run(ctx, cfg)
	return result.ExitCode, err
}
