// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/units"
)

func run() *cli.Command {
	var (
		name           string
		cpus           cpuList
		setup          setupFlag
		standby, check bool
		group          string
		host           hostLimits
	)
	mode := api.PollAdaptive
	return &cli.Command{
		Name:   "run",
		Usage:  "be the runtime, until TERM or INT",
		Daemon: true,
		Flags: append([]cli.Flag{
			{Name: "name", Arg: "NAME", Usage: "the name of this runtime, one of several; without it, soc", Value: cli.String(&name)},
			{Name: "pollers", Arg: "CPULIST", Usage: "one poller on each of these CPUs, such as 2-5,8; without it, one on any", Value: &cpus},
			{Name: "setup", Arg: "FILE", Usage: "what to make when it is ready, as apply does; without it, /etc/leapio/setup", Value: &setup},
			{Name: "group", Arg: "GROUP", Usage: "whose members may look by the control API, and change nothing; without it, nobody's", Value: cli.String(&group)},
			{Name: "standby", Usage: "wait for the end of the runtime of this name, and take over", Value: cli.Bool(&standby)},
			{Name: "check", Usage: "say whether this program could be the runtime, and do nothing", Value: cli.Bool(&check)},
			{Name: "poll", Arg: "adaptive|busy|interrupt", Usage: "what pollers do without work", Value: cli.Enum(&mode, api.PollAdaptive, api.PollBusy, api.PollInterrupt)},
		}, host.flags()...),
		Run: func(ctx context.Context, call *cli.Call) error {
			if err := api.CheckRuntime(name); err != nil {
				return err
			}
			limits, err := host.limits()
			if err != nil {
				return err
			}
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			poll, err := poller.ParseMode(mode)
			if err != nil {
				return err
			}
			log := call.Logger("soc")
			config := soc.Config{
				Paths: paths, Group: group, Name: cmp.Or(name, api.DefaultRuntime), Version: cli.Version(), CPUs: cpus, Poll: poll, Limits: limits, Standby: standby, Log: log,
				Ready: func() { command.NotifyReady(log) }, Succeeded: func(pid int) { command.NotifyMainPID(log, pid) },
			}
			if check {
				program, err := soc.Check(config)
				if err != nil {
					return err
				}
				return command.ShowProgram(call, program)
			}
			ctx, stop := untilSignal(ctx, log)
			defer stop()
			if file := setup.choose(name, paths, machineSetup); file != "" {
				config.Setup = (&starter{file: file, runtime: name, paths: paths, log: log}).make
			}
			err = soc.Run(ctx, config)
			if errors.Is(err, context.Canceled) {
				return nil // asked to end before it was ready
			}
			return err
		},
	}
}

// hostLimits are the flags for what hosts may take.
type hostLimits struct {
	target.Limits
	capsule, memory, share units.Size
}

func (h *hostLimits) flags() []cli.Flag {
	h.Limits = target.DefaultLimits()
	h.capsule, h.memory, h.share = units.Size(h.InCapsule), units.Size(h.Memory), units.Size(h.Share)
	return []cli.Flag{
		{Name: "host-connections", Arg: "N", Usage: "how many connections hosts may have in all", Value: cli.Int(&h.Connections, 1, target.MaxConnections)},
		{Name: "host-associations", Arg: "N", Usage: "how many controllers hosts may be connected to, without those of discovery", Value: cli.Int(&h.Associations, 1, target.MaxConnections)},
		{Name: "host-queues", Arg: "N", Usage: "how many I/O queues a controller has for a host", Value: cli.Int(&h.Queues, 1, target.MaxQueues)},
		{Name: "host-entries", Arg: "N", Usage: "how many entries such a queue may have", Value: cli.Int(&h.QueueEntries, fabrics.MinAdminQueue, target.MaxQueueEntries)},
		{Name: "host-capsule", Arg: "SIZE", Usage: "how much data a host may send with a command", Value: &h.capsule},
		{Name: "host-memory", Arg: "SIZE", Usage: "the buffers of each poller for data of hosts", Value: &h.memory},
		{Name: "host-share", Arg: "SIZE", Usage: "how much of them one controller may hold", Value: &h.share},
		{Name: "host-patience", Arg: "DURATION", Usage: "how long a host may take that has to go on", Value: cli.Duration(&h.Patience)},
	}
}

// limits returns what the flags say.
func (h *hostLimits) limits() (target.Limits, error) {
	l := h.Limits
	l.InCapsule, l.Memory, l.Share = int(min(h.capsule, math.MaxInt)), int(min(h.memory, math.MaxInt)), int(min(h.share, math.MaxInt))
	if err := l.Check(); err != nil {
		return l, fault.New(fault.Usage, "", "", err)
	}
	return l, nil
}

func upgrade() *cli.Command {
	var runtime string
	dial := func(call *cli.Call) (*api.Client, error) { return command.Runtime(call, runtime) }
	return command.Upgrade("replace the running runtime by another program; guests pause and keep their drives", dial,
		func(ctx context.Context, client *api.Client) (command.Running, error) {
			var r api.RuntimeInfo
			err := client.Get(ctx, api.Path("runtime"), &r)
			return command.Running{Version: r.Version, PID: r.PID, Since: r.Since, Pause: r.Pause, UpgradeError: r.UpgradeError}, err
		}, command.RuntimeFlag(&runtime))
}

// untilSignal gives a context that ends at the first TERM or INT. A second one
// ends the process at once: leap-wpt sees that, and keeps the guests' drives.
// HUP is ignored. stop ends the handling.
func untilSignal(ctx context.Context, log *slog.Logger) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				switch {
				case sig == unix.SIGHUP:
					log.Info("HUP ignored: there is nothing to read again")
				case ctx.Err() == nil:
					log.Info("ending", "signal", sig)
					cancel()
				default:
					os.Exit(fault.ExitInterrupted)
				}
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// maxCPU is the highest CPU number Linux has (CPU_SETSIZE - 1).
const maxCPU = 1023

// cpuList is a list of CPUs as the kernel writes them, cpuset(7): "0-3,8". Each
// CPU is in it once.
type cpuList []int

// Set reads s.
func (l *cpuList) Set(s string) error {
	var cpus []int
	for _, part := range strings.Split(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := parseCPU(low)
		if err != nil {
			return err
		}
		last := first
		if isRange {
			if last, err = parseCPU(high); err != nil {
				return err
			}
		}
		if last < first {
			return fmt.Errorf("the range %s runs backwards", part)
		}
		for cpu := first; cpu <= last; cpu++ {
			if slices.Contains(cpus, cpu) {
				return fmt.Errorf("CPU %d is in it twice", cpu)
			}
			cpus = append(cpus, cpu)
		}
	}
	*l = cpus
	return nil
}

// parseCPU reads the number of a CPU.
func parseCPU(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > maxCPU {
		return 0, fmt.Errorf("%s is not a CPU number of 0 to %d", cmp.Or(s, "nothing"), maxCPU)
	}
	return int(n), nil
}

// String is the list, one number each.
func (l *cpuList) String() string {
	var parts []string
	for _, cpu := range *l {
		parts = append(parts, strconv.Itoa(cpu))
	}
	return strings.Join(parts, ",")
}
